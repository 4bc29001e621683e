"""What one position of an image attends to, drawn over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet.images.reading import RGBImage

if TYPE_CHECKING:
    from isanet.attention import AttentionMaps

WIDTH = 512
"""The longer side of a panel's image, in pixels."""

GRID = (110, 110, 110)
"""Color of the borders of blocks."""

HEAT = np.array([(0, 0, 0), (120, 20, 110), (235, 90, 40), (255, 200, 60), (255, 255, 225)], np.float64)
"""Colors of weights from zero to the largest."""


def attention(image: Image.Image | RGBImage, maps: AttentionMaps, *, index: int = 0) -> Image.Image:
    """Draw over an image what one of its positions attends to: in each range, and in both together.

    Brightness goes with the root of the weight, from zero to the panel's largest, which its title says.

    >>> from isanet import viz
    >>> image, _ = dataset.read(0)
    >>> maps = model.attention(images, (40, 64))
    >>> viz.attention(image, maps).save("attention.png")

    Args:
        image: Mode RGB, or (H, W, 3) uint8 RGB; of any size, as the maps are stretched over it.
        maps: Of `ISANet.attention`.
        index: Which image of the batch that the maps are of.

    Returns:
        Mode RGB, two panels side by side and two rows of them (one row of a model with a single range). A ring marks
        the position.
    """
    base = image if isinstance(image, Image.Image) else Image.fromarray(image)
    scale = WIDTH / max(base.size)
    size = (max(1, round(base.width * scale)), max(1, round(base.height * scale)))
    base = base.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    rows, columns = maps.inside
    height, width = size[1] / (rows.stop - rows.start), size[0] / (columns.stop - columns.start)  # of a cell
    left, top = (maps.position[1] - columns.start) * width, (maps.position[0] - rows.start) * height

    panels = [("position", base.copy())]
    x, y = left + width / 2, top + height / 2
    for radius, color in ((11, "black"), (10, "white"), (9, "white"), (8, "black")):
        ImageDraw.Draw(panels[0][1]).ellipse((x - radius, y - radius, x + radius, y + radius), outline=color)
    named = (("long range, one cell of each block", maps.long_range), ("short range, its own block", maps.short_range))
    ranges = [(title, weights) for title, weights in named if weights is not None]
    both = [("both, one after the other", maps.product)] if len(ranges) == 2 else []
    for number, (title, weights) in enumerate(ranges + both):
        inside = weights[index, rows, columns].detach().float().cpu().numpy()
        panel = _heated(base, inside)
        draw = ImageDraw.Draw(panel)
        if number < len(ranges):
            for line in range(-rows.start, rows.stop, maps.block_size):
                draw.line((0, line * height, size[0], line * height), fill=GRID)
            for line in range(-columns.start, columns.stop, maps.block_size):
                draw.line((line * width, 0, line * width, size[1]), fill=GRID)
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline="white")
        panels.append((f"{title}: at most {100 * float(inside.max()):.2g} %", panel))

    font, header, gap, column = ImageFont.load_default(15), 26, 8, max(size[0], WIDTH * 3 // 4)
    total = (2 * (column + gap) + gap, (len(panels) + 1) // 2 * (size[1] + header) + gap)
    canvas = Image.new("RGB", total, "white")
    for number, (title, panel) in enumerate(panels):
        corner = gap + number % 2 * (column + gap), number // 2 * (size[1] + header) + header
        canvas.paste(panel, corner)
        ImageDraw.Draw(canvas).text(
            (corner[0], corner[1] - header / 2), title, fill=(32, 32, 32), font=font, anchor="lm"
        )
    return canvas


def _heated(base: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """The image darkened and gray, with weights (h, w) stretched over it in colors."""
    levels = np.sqrt(weights / max(float(weights.max()), 1e-12))
    steps = np.linspace(0, 1, len(HEAT))
    colors = np.stack([np.interp(levels, steps, channel) for channel in HEAT.T], -1).round().astype(np.uint8)
    heat = Image.fromarray(colors).resize(base.size, Image.Resampling.NEAREST)
    alpha = Image.fromarray((levels * 215).astype(np.uint8)).resize(base.size, Image.Resampling.NEAREST)
    dark = base.convert("L").convert("RGB").point(lambda value: value * 0.7)
    return Image.composite(heat, dark, alpha)
