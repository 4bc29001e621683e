"""A sheet of images: each beside its ground truth and a prediction, with one legend for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet._text import shortened
from isanet.images.reading import RGBImage
from isanet.labels import IGNORED
from isanet.viz.legend import with_legend

TILE = 448
"""Width of an image on the sheet, in pixels, and half its greatest height; smaller ones are enlarged by an integer
factor."""


class Preview(NamedTuple):
    """One image of a sheet.

    Attributes:
        caption: Shown above the image.
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) class indices; None: there is none, and nothing is drawn for it.
        ground_truth: (H, W) class indices and IGNORED.
    """

    caption: str
    image: RGBImage
    prediction: NDArray[Any] | None
    ground_truth: NDArray[Any]


def draw_sheet(
    previews: Iterable[Preview],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    details: Mapping[str, str] | None = None,
) -> Image.Image:
    """Draw image, ground truth and prediction side by side, one preview per row, and a legend of the classes present.

    Args:
        previews: At least one, taken one at a time. Pixels that the ground truth ignores are darkened, without a color.
        classes: Names.
        palette: Colors of the classes, (red, green, blue) of 0..255.
        details: Text behind a class's name in the legend, such as its IoU, by class name.

    Returns:
        Mode RGB.
    """
    colors = np.zeros((IGNORED + 1, 3), np.uint8)
    colors[: len(palette)] = palette[: IGNORED + 1]
    font = ImageFont.load_default(15)
    rows, present = [], set[int]()
    for preview in previews:
        rows.append(_draw_row(preview, colors, font))
        for labels in (preview.prediction, preview.ground_truth):
            present |= set() if labels is None else set(np.unique(labels).tolist())
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    entries = [
        (palette[index], shortened(classes[index]), (details or {}).get(classes[index], ""))
        for index in sorted(present)
        if index < len(classes)
    ]
    return with_legend(canvas, entries) if entries else canvas


def _draw_row(preview: Preview, colors: NDArray[np.uint8], font: Any) -> Image.Image:
    tiles = [("image", preview.image)]
    for name, labels in (("ground truth", preview.ground_truth), ("prediction", preview.prediction)):
        if labels is not None:
            tiles.append((name, (preview.image // 2 + colors[labels] // 2).astype(np.uint8)))
    height, width = preview.image.shape[:2]
    factor = min(TILE / width, 2 * TILE / height)
    factor = math.floor(factor) if factor > 1 else factor
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    gap, header, column = 6, 26, max(size[0], TILE // 4)
    canvas = Image.new("RGB", (len(tiles) * (column + gap) - gap, size[1] + header + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, pixels) in enumerate(tiles):
        left = number * (column + gap)
        resample = Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST
        canvas.paste(Image.fromarray(pixels).resize(size, resample), (left, header))
        text = f"{name}: {shortened(preview.caption, 100)}" if number == 0 else name
        draw.text((left + 2, header / 2), _truncated(text, column, font), fill=(32, 32, 32), font=font, anchor="lm")
    return canvas


def _truncated(text: str, width: int, font: Any) -> str:
    """As much of a text as fits into `width` pixels."""
    while text and font.getlength(text) > width - 4:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text
