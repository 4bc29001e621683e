"""A legend beside or below an image, readable at any size and shape of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MAX_PANEL = 1 << 24
"""Largest area of a legend in pixels, beyond four times that of the image."""


def with_legend(image: Image.Image, entries: Sequence[tuple[tuple[int, int, int], str, str]]) -> Image.Image:
    """Add a white panel with a legend at the right of an image (mode RGB, any size) or below it.

    Text grows with the image, within limits, and shrinks if there are many entries. Of all numbers of columns and both
    positions, the one with the smallest result is taken; its longer side weighs most. `entries` are (color, name,
    detail) of each class, at least one; texts are drawn as they are. Where the panel would take more than `MAX_PANEL`,
    as beside a single line of a million pixels or for ten thousand classes, the image is returned as it is.
    """
    width, height = image.size
    crowd = min(1.0, math.sqrt(24 / len(entries)))
    text = round(min(max(math.sqrt(width * height) / 32 * crowd, max(width, height) / 100, 13), 110))
    font = ImageFont.load_default(text)
    line, gap = round(text * 1.5), round(text * 0.6)
    name_width = math.ceil(max(font.getlength(name) for _, name, _ in entries))
    detail_width = math.ceil(max(font.getlength(detail) for _, _, detail in entries))
    entry_width = text + gap + name_width + gap + detail_width

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
    draw = ImageDraw.Draw(canvas)
    left, top = (2 * gap, height + gap) if below else (width + 2 * gap, gap)
    for number, (color, name, detail) in enumerate(entries):
        x = left + number // rows * (entry_width + 2 * gap)
        y = top + number % rows * line + line // 2
        box = (x, y - text // 2, x + text, y - text // 2 + text)
        draw.rectangle(box, fill=color, outline=(128, 128, 128), width=max(1, text // 16))
        draw.text((x + text + gap, y), name, fill=(32, 32, 32), font=font, anchor="lm")
        draw.text((x + entry_width, y), detail, fill=(32, 32, 32), font=font, anchor="rm")
    return canvas
