from __future__ import annotations

import csv
import logging
import math

import pytest

from isanet._text import aligned, clean, csv_line, display_width, listed, percent, percent_number, plural, shortened
from isanet.cli.printing import LogFormatter, error_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\t c ", "a b c"),
        ("a\x1b[31m", "a\ufffd[31m"),
        ("a\x00\udcff", "a\ufffd\ufffd"),
        ("a\u202eb\u200f\u2066", "a\ufffdb\ufffd\ufffd"),
        ("道路", "道路"),
        ("", ""),
    ],
)
def test_cleaned_text_is_one_printable_line(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_shortened_names_are_cleaned_and_bounded() -> None:
    assert shortened("a\nb\x00") == "a b\ufffd"
    assert shortened("x" * 32) == "x" * 32
    assert shortened("x" * 33) == "x" * 31 + "…"


def test_cells_of_a_table_are_no_formulas_and_steer_nothing() -> None:
    cells = [
        "a,b",
        'say "x"',
        0.25,
        0,
        "=1",
        "+1",
        "-1",
        "@x",
        "\uff1d1",
        "\t=1",
        "\r1",
        "a\nb\x1b\u202e\udcff",
        "",
        " =1",
    ]
    line = csv_line(cells)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert next(csv.reader([line])) == [
        "a,b", 'say "x"', "0.25", "0",
        "'=1", "'+1", "'-1", "'@x", "'\uff1d1", "\ufffd=1", "\ufffd1", "a\ufffdb\ufffd\ufffd\ufffd",
        "", " =1",
    ]  # fmt: skip
    assert csv_line(["  写真\u3000می\u200cخواهم"]) == "  写真\u3000می\u200cخواهم\n"
    assert len(csv_line(["x" * 60_000])) == 2001


def test_listed_items_end_with_an_ellipsis_if_there_are_more() -> None:
    assert listed([]) == ""
    assert listed(["a", 2], 2) == "a, 2"
    assert listed(iter("abc"), 2) == "a, b, …"
    assert listed(["a\x1b\nb", "x" * 60_000]) == "a\ufffd b, " + "x" * 499 + "…"


def test_numbers_and_their_nouns() -> None:
    assert [plural(number, "mask") for number in (0, 1, 2000)] == ["0 masks", "1 mask", "2,000 masks"]
    assert plural(2, "class", "classes") == "2 classes"


@pytest.mark.parametrize(
    ("share", "expected"), [(0, "0 %"), (1, "100.00 %"), (0.5, "50.00 %"), (1e-9, "<0.01 %"), (1 - 1e-9, ">99.99 %")]
)
def test_percent_is_never_rounded_to_none_or_all(share: float, expected: str) -> None:
    assert percent(share) == expected


def test_percent_numbers_have_no_sign() -> None:
    assert [percent_number(value) for value in (0.12345, 1.0, math.nan)] == ["12.35", "100.00", "-"]


def test_columns_of_wide_characters_and_combining_marks_are_aligned() -> None:
    lines = aligned([["class", "IoU"], ["道路", "5"], ["e\u0301te\u0301", "100"]])
    assert lines == ["class  IoU", "道路     5", "e\u0301te\u0301    100"]
    assert {display_width(line) for line in lines} == {10}
    assert aligned([["a", "b", ""], ["aa", "bb", "c"]], left=2) == ["a   b", "aa  bb  c"]


TRACE = """shape '[2]' is invalid for input of size 3
Exception raised from infer_size_impl at InferSize.h:99 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x57 (0x7f01 in libc10.so)
C++ CapturedTraceback:
#4 std::_Function_handler from Logging.cpp:0"""


def test_traces_of_cpp_are_cut() -> None:
    assert clean(TRACE) == "shape '[2]' is invalid for input of size 3"
    assert error_text(RuntimeError(TRACE)) == "shape '[2]' is invalid for input of size 3"
    record = logging.LogRecord("isanet", logging.WARNING, "", 0, "a.png: %s", (TRACE,), None)
    assert LogFormatter().format(record) == "isanet: a.png: shape '[2]' is invalid for input of size 3"
    assert clean("Exception raised from the dead") == "Exception raised from the dead"
