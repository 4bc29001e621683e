"""An image with a legend beside it that can be read, whatever the image is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def with_legend(image: Image.Image, entries: Sequence[tuple[tuple[int, int, int], str, str]]) -> Image.Image:
    """The image with a white panel of (color, name, share) entries at its right or below it.

    Text grows with the image, within limits, and shrinks when there are many entries. Of all numbers of columns on
    both sides, the one that keeps the whole smallest is taken, its longer side counting most.
    """
    width, height = image.size
    crowd = min(1.0, math.sqrt(24 / len(entries)))
    text = round(min(max(math.sqrt(width * height) / 32 * crowd, max(width, height) / 100, 13), 110))
    font = ImageFont.load_default(text)
    line, gap = round(text * 1.5), round(text * 0.6)
    name_width = math.ceil(max(font.getlength(name) for _, name, _ in entries))
    share_width = math.ceil(max(font.getlength(share) for _, _, share in entries))
    entry_width = text + gap + name_width + gap + share_width

    def layout(columns: int, below: bool) -> tuple[int, int, int]:
        """Canvas width and height, and rows of entries."""
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
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    left, top = (2 * gap, height + gap) if below else (width + 2 * gap, gap)
    for number, (color, name, share) in enumerate(entries):
        x = left + number // rows * (entry_width + 2 * gap)
        y = top + number % rows * line + line // 2
        box = (x, y - text // 2, x + text, y - text // 2 + text)
        draw.rectangle(box, fill=color, outline=(128, 128, 128), width=max(1, text // 16))
        draw.text((x + text + gap, y), name, fill=(32, 32, 32), font=font, anchor="lm")
        draw.text((x + entry_width, y), share, fill=(32, 32, 32), font=font, anchor="rm")
    return canvas
