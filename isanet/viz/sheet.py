"""A sheet of images: each beside its truth and what a model says of it, with one legend for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet._text import clean, shortened
from isanet.images.reading import RGBImage
from isanet.labels import IGNORED
from isanet.viz.legend import with_legend

TILE = 448
"""Width of an image on the sheet, in pixels; smaller ones are enlarged by a whole factor."""

Palette = Sequence[tuple[int, int, int]]


class Row(NamedTuple):
    """One image of a sheet.

    Attributes:
        caption: Above it.
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) class indices.
        truth: (H, W) class indices and IGNORED.
    """

    caption: str
    image: RGBImage
    prediction: NDArray[Any]
    truth: NDArray[Any]


def sheet(
    rows: Sequence[Row], classes: Sequence[str], palette: Palette, texts: Mapping[str, str] | None = None
) -> Image.Image:
    """Image, truth and prediction beside each other, a row for each, and a legend of the classes that occur.

    Args:
        rows: One at least. Where the truth is ignored, no color lies over it, and the image is dark.
        classes: Names.
        palette: Colors of the classes.
        texts: For each class what stands behind its name in the legend, such as its IoU.

    Returns:
        Mode RGB.
    """
    colors = np.zeros((IGNORED + 1, 3), np.uint8)
    colors[: len(palette)] = palette[: IGNORED + 1]
    font = ImageFont.load_default(15)
    drawn = [_drawn(row, colors, font) for row in rows]
    whole = Image.new("RGB", (max(row.width for row in drawn), sum(row.height for row in drawn)), "white")
    top = 0
    for image in drawn:
        whole.paste(image, (0, top))
        top += image.height
    occurring = sorted(
        {int(index) for row in rows for part in (row.prediction, row.truth) for index in np.unique(part)}
    )
    entries = [
        (palette[index], shortened(clean(classes[index])), (texts or {}).get(classes[index], ""))
        for index in occurring
        if index < len(classes)
    ]
    return with_legend(whole, entries)


def _drawn(row: Row, colors: NDArray[np.uint8], font: Any) -> Image.Image:
    tiles = [("image", row.image)]
    for name, labels in (("truth", row.truth), ("prediction", row.prediction)):
        tiles.append((name, (row.image // 2 + colors[labels] // 2).astype(np.uint8)))
    height, width = row.image.shape[:2]
    factor = TILE / width if width > TILE else max(1, math.floor(TILE / width))
    size = (round(width * factor), max(1, round(height * factor)))
    gap, head = 6, 26
    canvas = Image.new("RGB", (3 * size[0] + 2 * gap, size[1] + head + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, pixels) in enumerate(tiles):
        left = number * (size[0] + gap)
        resample = Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST
        canvas.paste(Image.fromarray(pixels).resize(size, resample), (left, head))
        text = f"{name}: {clean(row.caption)}" if number == 0 else name
        draw.text((left + 2, head / 2), _fitting(text, size[0], font), fill=(32, 32, 32), font=font, anchor="lm")
    return canvas


def _fitting(text: str, width: int, font: Any) -> str:
    while text and font.getlength(text) > width - 4:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text
