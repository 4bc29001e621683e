"""Tools built on everything else: self-test, benchmark, demonstration, and publishing for maintainers.

A model's name or a model comes in; an outcome, measurements or an image go out. Nothing here imports `isanet.cli`.
"""
