"""The inference-optimized copy of a network: an ISANet goes in, a `FastISANet` with the same labels comes out.

`optimize` makes it and says why; `network` is the copy, `layers` its parts.
"""
