"""What the commands print: sizes, errors, log lines.

Text from untrusted files is cleaned here, and messages that name Python's arguments name the command's options.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
from ast import literal_eval

from isanet._text import MAX_LINE, shortened, without_trace
from isanet.errors import MirrorsExhaustedError, OfflineError

running: argparse.ArgumentParser | None = None
"""The parser of the command that runs."""

_ARGUMENT = re.compile(
    r"--set \S+|\w\([^()]*(?:\([^()]*\)[^()]*)*\)"  # these stay: what is an option already, and a call
    r"|(?<![^\s(])([a-z_]+)=('[^']*'|\"[^\"]*\"|range\(\d+, \d+\)|\([^()]*\)|\[[^][]*\]|[\w.+-]*\w)?"
)


_VALUE = r"(?:[^\s(),]|\((?:[^()]|\([^()]*\))*\))*"
_BOTH = re.compile(rf"(?<![^\s(])[a-z_]+={_VALUE}(?:, [a-z_]+={_VALUE})* \((--[a-z][^()]*)\)")
"""Arguments of Python, and in parentheses the options of the command line."""


class LogFormatter(logging.Formatter):
    """Without control characters and endless lines; line breaks stay, for tracebacks and lists."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record as `isanet: MESSAGE`."""
        return "isanet: " + _clean_lines(in_options(super().format(record)))


def error_text(error: BaseException) -> str:
    """The message of an error on one cleaned line; a list of failed addresses stays a list, one line each."""
    if isinstance(error, MirrorsExhaustedError | OfflineError):
        return _clean_lines(in_options(str(error)))
    if isinstance(error, OSError) and error.filename is not None:
        return shortened(f"cannot use {error.filename}: {error.strerror}; check the path and its permissions", MAX_LINE)
    return shortened(in_options(str(error)), MAX_LINE) or type(error).__name__


def in_options(text: str, parser: argparse.ArgumentParser | None = None) -> str:
    """A message with `name=value` as `--name value`, where the command that runs has that option.

    Arguments that set a field of the recipe become `--set name=value` where there is `--set`.
    """
    options = {} if (parser := parser or running) is None else parser._option_string_actions

    def worded(match: re.Match[str]) -> str:
        name, value = match.groups(default="")
        option = f"--{name.replace('_', '-')}"
        option = "--force" if name == "overwrite" else option if option in options else option + "s"
        if option in options and (options[option].nargs != 0 or value == "True"):
            return f"{option} {'' if options[option].nargs == 0 else _typed(value)}".rstrip()
        if name and "--set" in options and name in _recipe_fields():
            return f"--set {name}={_typed(value, in_json=True)}"
        return match[0]

    def the_option(match: re.Match[str]) -> str:
        return match[1] if match[1].split()[0] in options else match[0]

    text = _ARGUMENT.sub(worded, _BOTH.sub(the_option, text)) if options else text
    text = re.sub(r"(--[a-z-]+) \(\1\)", r"\1", text)
    return re.sub(
        r"--set \S+(?: --set \S+)+", lambda each: "--set" + each[0].replace("--set", "").replace("  ", " "), text
    )


def _typed(value: str, *, in_json: bool = False) -> str:
    """A value in Python's words as it is typed on a command line."""
    if numbers := re.fullmatch(r"range\((\d+), (\d+)\)", value):
        return f"{numbers[1]}-{int(numbers[2]) - 1}"
    try:
        known = literal_eval(value)
    except (ValueError, SyntaxError):
        return value.strip("()[]")
    if isinstance(known, str):
        return shlex.quote(known)
    if in_json:
        return json.dumps(known, separators=(",", ":"))
    return shlex.quote(",".join(map(str, known)) or "none") if isinstance(known, tuple | list) else str(known)


def _recipe_fields() -> set[str]:
    from isanet.training.recipe import Recipe

    return {*Recipe.__dataclass_fields__}


def megabytes(size: int) -> str:
    """A number of bytes in decimal megabytes, without decimals."""
    return f"{size / 1e6:,.0f} MB"


def _clean_lines(text: str) -> str:
    return "\n".join(
        re.sub(r"\S+(?:\s\S+)*", lambda words: shortened(words[0], MAX_LINE), line)[:MAX_LINE]  # columns stay apart
        for line in without_trace(text).splitlines()
    )
