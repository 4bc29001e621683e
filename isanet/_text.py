"""Cleaning and wording of text: class names and file names of others, numbers, shares."""

from __future__ import annotations


def shortened(name: str) -> str:
    """A class name on one line, of at most 32 characters."""
    name = " ".join(name.split())
    return name if len(name) <= 32 else name[:31] + "…"


def clean(text: str) -> str:
    """One line without control characters and halves of surrogates, which names and paths may have."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def plural(number: int, one: str, many: str = "") -> str:
    """`1 mask`, `2 masks`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float, digits: int = 2) -> str:
    """A share in words, never none or all when it is not."""
    text, least = f"{100 * share:.{digits}f}", 10.0**-digits
    if share == 0:
        return "0 %"
    if float(text) == 0:
        return f"<{least:.{digits}f} %"
    return f">{100 - least:.{digits}f} %" if float(text) == 100 and share < 1 else f"{text} %"
