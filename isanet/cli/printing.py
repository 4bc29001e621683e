"""What the commands print: sizes, errors, log lines. Text from untrusted files is cleaned here."""

from __future__ import annotations

import logging

from isanet._text import MAX_LINE, shortened, without_trace
from isanet.errors import MirrorsExhaustedError, OfflineError


class LogFormatter(logging.Formatter):
    """Without control characters and endless lines; line breaks stay, for tracebacks and lists."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record as `isanet: MESSAGE`."""
        return "isanet: " + _clean_lines(super().format(record))


def error_text(error: BaseException) -> str:
    """The message of an error on one cleaned line; a list of failed addresses stays a list, one line each."""
    if isinstance(error, MirrorsExhaustedError | OfflineError):
        return _clean_lines(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return shortened(f"cannot use {error.filename}: {error.strerror}; check the path and its permissions", MAX_LINE)
    return shortened(str(error), MAX_LINE) or type(error).__name__


def megabytes(size: int) -> str:
    """A number of bytes in decimal megabytes, without decimals."""
    return f"{size / 1e6:,.0f} MB"


def _clean_lines(text: str) -> str:
    return "\n".join(
        " " * (len(line) - len(line.lstrip(" "))) + shortened(line, MAX_LINE)
        for line in without_trace(text).splitlines()
    )
