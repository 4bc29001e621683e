"""The command `isanet`: arguments come in; printed lines, files and an exit code go out.

`run.py` has the main parser and turns errors into one line and an exit code. Every other file holds a group of
commands, each with its parser (`add_commands`) and the function that runs it. torch, numpy and the like are imported
inside the functions that need them, so that `isanet list` and `--help` answer at once.
"""

from isanet.cli.run import main

__all__ = ["main"]
