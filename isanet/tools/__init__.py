"""Tools built on everything else: self-test, benchmark, demonstration.

A model's name or a model comes in; an outcome, measurements or an image go out. Nothing here imports `isanet.cli`.
"""
