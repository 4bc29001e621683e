"""Text of untrusted files on its way to the terminal."""

from __future__ import annotations

import logging

import pytest

import isanet
from isanet._text import MAX_LINE
from isanet.cli.printing import LogFormatter, error_text


def test_an_error_is_one_clean_line() -> None:
    assert error_text(ValueError("a\x1b[2J\nb\r c")) == "a\ufffd[2J b c"
    assert error_text(MemoryError()) == "MemoryError"


@pytest.mark.parametrize("kind", [isanet.MirrorsExhaustedError, isanet.OfflineError])
def test_a_list_of_addresses_stays_a_list(kind: type[isanet.DownloadError]) -> None:
    error = kind("no address gave x:\n  https://a/x: 404\n  https://b/x: a\x1b[2J\tb")
    assert error_text(error) == "no address gave x:\n  https://a/x: 404\n  https://b/x: a\ufffd[2J b"


def test_log_lines_are_clean_and_stay_lines() -> None:
    record = logging.LogRecord("isanet", logging.INFO, "", 0, "a %s:\n  b", ("\x1b]0;x\x07",), None)
    assert LogFormatter().format(record) == "isanet: a \ufffd]0;x\ufffd:\n  b"


def test_lines_are_cut() -> None:
    record = logging.LogRecord("isanet", logging.INFO, "", 0, "a %s\nb", ("x" * 60_000,), None)
    assert [len(line) for line in LogFormatter().format(record).splitlines()] == [MAX_LINE + len("isanet: "), 1]
    assert len(error_text(ValueError("x" * 60_000))) == MAX_LINE


def test_columns_of_a_table_stay_apart() -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": ("shares\nCLASS      PIXELS\nsky   5.00 %\x1b",)})
    assert LogFormatter().format(record) == "isanet: shares\nCLASS      PIXELS\nsky   5.00 %\ufffd"
