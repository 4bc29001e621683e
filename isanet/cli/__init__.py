"""The command `isanet`: one file for each group of commands, with its parser and its run; `run.py` puts them together."""

from isanet.cli.run import main

__all__ = ["main"]
