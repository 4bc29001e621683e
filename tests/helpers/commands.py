"""The command line, within the test's own process."""

from __future__ import annotations

from isanet.cli import main


def run(*arguments: object) -> int:
    """Run `isanet ARGUMENTS`; returns the exit code."""
    return main([str(argument) for argument in arguments])
