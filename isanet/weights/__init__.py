"""Bytes and tensors: the manifest, downloads, the cache, checkpoints and their conversion; never a network.

The manifest and the cache need no torch, so nothing is imported here: `isanet list` answers at once.
"""
