"""A legend beside or below an image, readable at any size and shape of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MAX_PANEL = 1 << 24
"""Largest area of a legend in pixels, beyond four times that of the image."""

INK, LIGHT = (32, 32, 32), (228, 228, 228)


class Entry(NamedTuple):
    """One class of a legend; texts are drawn as they are.

    Attributes:
        color: (red, green, blue) of 0..255.
        name: Of the class.
        detail: What stands behind the name, at the right.
        score: Length of a bar between them, 0..1; NaN: there is none.
    """

    color: tuple[int, int, int]
    name: str
    detail: str = ""
    score: float = math.nan


def with_legend(image: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Add a white panel with a legend at the right of an image (mode RGB, any size) or below it.

    Text grows with the image, within limits, and shrinks if there are many entries. Of all numbers of columns and both
    positions, the one with the smallest result is taken; its longer side weighs most. There is at least one entry.
    Where the panel would take more than `MAX_PANEL`, as beside a single line of a million pixels or for ten thousand
    classes, the image is returned as it is.
    """
    width, height = image.size
    crowd = min(1.0, math.sqrt(24 / len(entries)))
    text = round(min(max(math.sqrt(width * height) / 32 * crowd, max(width, height) / 100, 13), 110))
    line, gap = round(text * 1.5), round(text * 0.6)
    entry_width = sum(_widths(entries, text))

    def layout(columns: int, below: bool) -> tuple[int, int, int]:
        """Width and height of the canvas in pixels, and number of rows of entries."""
        rows = math.ceil(len(entries) / columns)
        panel_width, panel_height = columns * (entry_width + 2 * gap) + 2 * gap, rows * line + 2 * gap
        if below:
            return max(width, panel_width), height + panel_height, rows
        return width + panel_width, max(height, panel_height), rows

    def cost(choice: tuple[int, bool]) -> int:
        canvas_width, canvas_height, _ = layout(*choice)
        return max(canvas_width, canvas_height) ** 2 + canvas_width * canvas_height

    columns, below = min(((c, b) for c in range(1, len(entries) + 1) for b in (True, False)), key=cost)
    canvas_width, canvas_height, rows = layout(columns, below)
    if canvas_width * canvas_height > 5 * width * height + MAX_PANEL:
        return image
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    canvas.paste(image, (0, 0))
    left, top = (2 * gap, height + gap) if below else (width + 2 * gap, gap)
    _draw(canvas, entries, text, rows, left, top, entry_width, line)
    return canvas


def draw_panel(entries: Sequence[Entry], text: int, width: int) -> Image.Image:
    """A white panel of a width, with a legend in as many columns as fit; its bars take what is left.

    Args:
        entries: At least one.
        text: Size of the font in pixels.
        width: Of the panel in pixels.
    """
    scored = any(entry.score == entry.score for entry in entries)
    line, gap = round(text * 1.9), round(text * 0.6)
    entry_width = sum(_widths(entries, text)) + (4 * text if scored else 0)
    columns = min(max(1, (width + 2 * gap) // (entry_width + 2 * gap)), len(entries))
    rows = math.ceil(len(entries) / columns)
    if scored:
        columns = math.ceil(len(entries) / rows)
        entry_width = (width + 2 * gap) // columns - 2 * gap
    panel = Image.new("RGB", (width, rows * line), "white")
    _draw(panel, entries, text, rows, 0, 0, entry_width, line)
    return panel


def _widths(entries: Sequence[Entry], text: int) -> tuple[int, int]:
    """Of the color and the longest name, and of the longest detail, each with a gap."""
    font, gap = ImageFont.load_default(text), round(text * 0.6)
    name, detail = (
        math.ceil(max(font.getlength(word) for word in words))
        for words in zip(*((e.name, e.detail) for e in entries), strict=True)
    )
    return text + gap + name + gap, detail


def _draw(
    canvas: Image.Image,
    entries: Sequence[Entry],
    text: int,
    rows: int,
    left: int,
    top: int,
    entry_width: int,
    line: int,
) -> None:
    """Draw entries in columns of so many rows."""
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(text)
    gap, thick = round(text * 0.6), max(1, text // 16)
    before, behind = _widths(entries, text)
    for number, (color, name, detail, score) in enumerate(entries):
        x = left + number // rows * (entry_width + 2 * gap)
        y = top + number % rows * line + line // 2
        up, down = y - text // 2, y - text // 2 + text
        draw.rectangle((x, up, x + text, down), fill=color, outline=(128, 128, 128), width=thick)
        draw.text((x + text + gap, y), name, fill=INK, font=font, anchor="lm")
        draw.text((x + entry_width, y), detail, fill=INK, font=font, anchor="rm")
        if score == score:  # not NaN
            start, length = x + before, entry_width - before - behind - gap
            draw.rectangle((start, up + text // 4, start + length, down - text // 4), fill=LIGHT)
            draw.rectangle((start, up + text // 4, start + round(length * score), down - text // 4), fill=color)
