"""The main parser, logging, and errors -> one line and an exit code.

Answers go to standard output; progress, warnings and errors go to standard error.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import NoReturn

from isanet._version import __version__
from isanet.cli import check, choose, cite, evaluate, export, finetune, masks, models, printing, publish, segment, serve
from isanet.cli.options import Run
from isanet.cli.printing import LogFormatter, error_text
from isanet.errors import IsanetError

GROUPS = (choose, models, segment, serve, evaluate, finetune, export, masks, check, cite, publish)
"""The files with commands, in the order of `isanet --help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 for a failure, or 130 after Ctrl-C.

    Raises:
        SystemExit: With code 2 for a wrong call, 0 after `--help` and `--version`, 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options, unknown = _parser(arguments).parse_known_args(arguments)
    if unknown:  # the parser of the command says so, because it knows its options
        options.wrong_call(f"unrecognized arguments: {' '.join(unknown)}")
    printing.running = options.parser
    logger, handler = logging.getLogger("isanet"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logger.addHandler(handler)
    earlier_level = logger.level
    logger.setLevel(logging.DEBUG if options.debug else logging.WARNING if options.quiet else logging.INFO)
    warnings.filterwarnings("ignore", module="PIL")  # a line for each damaged tag; the image is read or refused anyway
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    try:
        with _terminable():
            code: int = options.run(options)
        print(end="", flush=True)  # unlike sys.stdout.flush(), also where standard output is closed
        return code
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        left = "" if hasattr(error, "__notes__") else "; no incomplete file was left"  # else the log has named it
        print(f"isanet: interrupted{left}", file=sys.stderr)
        return 130
    except (IsanetError, ValueError, OSError, MemoryError, RuntimeError) as error:
        if options.debug:
            raise
        smaller = "--set accumulate=2" if options.command == "finetune" else "--batch-size 1"
        hint = f"; try {smaller}, or --device cpu" if "out of memory" in str(error) else ""
        if (
            isinstance(error, OSError)
            and error.filename is None
            and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EIO)
        ):
            error = OSError(f"cannot write to standard output: {error.strerror}")  # files are named by their errors
        print(f"isanet: error: {error_text(error)}{hint}", file=sys.stderr)
        return 1
    finally:
        printing.running = None
        logger.removeHandler(handler)
        logger.setLevel(earlier_level)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, as batch systems and containers send it, end a command as Ctrl-C does: no temporary file is left."""
    handled = threading.current_thread() is threading.main_thread()
    if not handled or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a worker that was forked ends at once
            signal.raise_signal(number)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest command, option or value for one that is mistyped."""

    given: Sequence[str] = ()
    """All arguments of the call."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and this message, and exits with 2."""
        wrong, known = "", re.findall(r"--[\w-]+", self.format_help())
        if choice := re.search(r"'(.+)' \(choose from (.+)\)$", message):
            wrong, known = choice[1], re.findall(r"[\w-]+", choice[2])
        elif message.startswith(("unrecognized arguments", "the following arguments are required")):
            options = [word.partition("=")[0] for word in self.given if word.startswith("--")]
            wrong = next((option for option in options if not any(each.startswith(option) for each in known)), "")
        if near := get_close_matches(wrong, known, 1):
            instead = "" if wrong in message else f" instead of {wrong}"
            message = f"{message.partition(' (choose from')[0]}; did you mean {near[0]}{instead}?"
        super().error(message)


def _parser(given: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = _Parser(prog="isanet", description="Pretrained ISANet segmentation models.")
    parser.add_argument("--version", action="version", version=f"isanet {__version__}")
    anywhere = _Parser(add_help=False)  # before the command or after it
    for each, default in ((parser, False), (anywhere, argparse.SUPPRESS)):
        each.add_argument("--debug", action="store_true", default=default, help="show tracebacks and debug messages")
        each.add_argument("--quiet", action="store_true", default=default, help="show only warnings and errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[anywhere])
        added.given = given
        added.set_defaults(run=run, parser=added, wrong_call=added.error)  # prints the usage and exits with 2
        return added

    for group in GROUPS:
        group.add_commands(add_command)
    return parser
