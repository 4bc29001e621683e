"""Cleaning and wording of text for terminals, logs, pages and images: names, numbers, shares, lists, tables.

Class names, file names and metadata come from untrusted files; whatever shows them passes them through `clean` or
`shortened`.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice

MAX_LINE = 2000
"""Most characters of a line with untrusted text."""


def clean(text: str) -> str:
    """One line without control characters and lone surrogates, each of which becomes U+FFFD, and without C++ traces."""
    text = without_trace(text)
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


JOINERS = "\u200c\u200d"
"""Letters of Persian and many emoji are joined or kept apart by them."""


def without_controls(text: str, substitute: str = "\ufffd") -> str:
    """The text with what could steer a terminal (control characters, marks of direction) and lone surrogates replaced.

    Unlike `clean`, it keeps every space and joiner of every script, as in the names of screenshots on a Mac.
    """
    return "".join(
        char if char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs" else substitute
        for char in text
    )


def without_trace(text: str) -> str:
    """A message of torch without the C++ stack trace that may follow it."""
    message, raised, trace = text.partition("Exception raised from ")
    return message.rstrip() if raised and "(most recent call first)" in trace else text


def shortened(name: str, length: int = 32) -> str:
    """A cleaned name of at most `length` characters."""
    name = clean(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def listed(items: Iterable[object], limit: int = 10) -> str:
    """The first `limit` items, cleaned and comma-separated, and an ellipsis if there are more."""
    first = [shortened(str(item), 500) for item in islice(items, limit + 1)]
    return ", ".join(first[:limit]) + (", …" if len(first) > limit else "")


def plural(number: int, one: str, many: str = "") -> str:
    """`1 mask`, `2 masks`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """`40.5 s`, `12 min 3 s`, `2 h 40 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: float, digits: int = 2) -> str:
    """A fraction with its percent sign; never rounded to "0 %" or "100 %" when it is neither."""
    text, least = f"{100 * share:.{digits}f}", 10.0**-digits
    if share == 0:
        return "0 %"
    if float(text) == 0:
        return f"<{least:.{digits}f} %"
    return f">{100 - least:.{digits}f} %" if float(text) == 100 and share < 1 else f"{text} %"


def percent_number(fraction: float) -> str:
    """A fraction in percent, two decimals, without the sign; "-" for NaN. For columns of metrics."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table of cleaned cells, two spaces apart: the first `left` columns aligned left, the others right."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - display_width(cell))
            cells.append(cell + space if column < left else space + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def csv_line(cells: Iterable[str | float]) -> str:
    """A line of a CSV file. Text that a spreadsheet would take for a formula gets a ' in front."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(
        _csv_text(cell) if isinstance(cell, str) else cell for cell in cells
    )
    return stream.getvalue()


def _csv_text(text: str) -> str:
    text = without_controls(text)[:MAX_LINE]
    is_formula = text != "" and unicodedata.normalize("NFKC", text[0]) in "=+-@"  # full-width ones too
    return f"'{text}" if is_formula else text


def markdown_text(text: str) -> str:
    """A text as Markdown that shows it literally: GitHub's kind makes links of bare addresses too."""
    return re.sub(r"([\\`*_\[\]<>&#|~:@]|(?<=[wW])\.)", r"\\\1", shortened(text, 500))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown whose first row is its head; cells are Markdown."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], f"|{'---|' * len(rows[0])}\n", *lines[1:]])


_LATEX = {char: f"\\{char}" for char in "#$%&_"} | {
    char: f"\\text{name}{{}}"
    for char, name in {
        "\\": "backslash",
        "{": "braceleft",  # unlike \{, leaves the braces of BibTeX balanced
        "}": "braceright",
        "~": "asciitilde",
        "^": "asciicircum",
        "<": "less",
        ">": "greater",
        "|": "bar",
    }.items()
}


def latex_text(text: str) -> str:
    """A text as LaTeX that shows it literally, also within BibTeX; letters beyond ASCII stay as they are."""
    return "".join(_LATEX.get(char, char) for char in shortened(text, 500))


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: East Asian wide characters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
