"""A sheet of images in columns, with one legend for all: images with ground truth and prediction, or results."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet._text import shortened
from isanet.images.reading import RGBImage
from isanet.labels import IGNORED
from isanet.viz.legend import INK, Entry, draw_panel

WIDTH = 1600
"""Of a sheet in pixels. Pages and notebooks show it at half of it, so `TEXT` is twice the size that is read."""

TEXT, TITLE, GAP, MARGIN = 28, 40, 12, 20

INNER = WIDTH - 2 * MARGIN

HEADER = round(1.6 * TEXT)
"""Height of a caption."""

MAX_ENTRIES = 200
"""Classes in the legend; more are left out."""

ALPHA = 0.6
"""Weight of the classes' colors over the image in gray: in color, a red car would not show that it is labeled blue."""


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


class Tile(NamedTuple):
    """One cell of a sheet: an image (mode RGB) of the size of `fitted`, and what stands above it."""

    caption: str
    image: Image.Image


def draw_sheet(
    previews: Iterable[Preview],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    scores: Mapping[str, float] | None = None,
    *,
    columns: int = 3,
    title: str = "",
) -> Image.Image:
    """Draw image, ground truth and prediction side by side, and a legend of the classes present.

    Args:
        previews: At least one, taken one at a time. Pixels that the ground truth ignores are darkened, without a color.
        classes: Names.
        palette: Colors of the classes, (red, green, blue) of 0..255.
        scores: IoU by class name, drawn as bars in the legend; NaN has none.
        columns: Images in a row: 3 give each preview a row of its own, 2 do if none has a prediction.
        title: Shown above all.

    Returns:
        Mode RGB, `WIDTH` pixels wide.
    """
    colors = np.zeros((IGNORED + 1, 3), np.uint8)
    colors[: len(palette)] = palette[: IGNORED + 1]
    present = set[int]()

    def tiles() -> Iterator[Tile]:
        for preview in previews:
            size = fitted(preview.image.shape[1], preview.image.shape[0], columns)
            image = Image.fromarray(preview.image).resize(size, Image.Resampling.LANCZOS)
            yield Tile(f"image: {preview.caption}", image)
            gray = np.asarray(image.convert("L"))[..., None]
            for name, labels in (("ground truth", preview.ground_truth), ("prediction", preview.prediction)):
                if labels is not None:
                    present.update(np.unique(labels).tolist())
                    drawn = np.asarray(Image.fromarray(colors[labels]).resize(size, Image.Resampling.NEAREST))
                    yield Tile(name, Image.fromarray((ALPHA * drawn + (1 - ALPHA) * gray).astype(np.uint8)))

    def entries() -> list[Entry]:
        shown = [index for index in sorted(present) if index < len(classes)]
        values = {index: (scores or {}).get(classes[index], float("nan")) for index in shown}
        return [
            Entry(palette[index], shortened(classes[index]), f"{value:.0%}" if value == value else "", value)
            for index, value in values.items()
        ]

    return lay_out(tiles(), columns, entries, title, "IoU" if scores else "")


def fitted(width: int, height: int, columns: int) -> tuple[int, int]:
    """The size at which an image fits into one of so many columns: its full width, or a height of 4/3 of it."""
    cell = _cell(columns)
    factor = min(cell / width, cell * 4 / 3 / height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def lay_out(
    tiles: Iterable[Tile], columns: int, entries: Callable[[], list[Entry]], title: str = "", heading: str = ""
) -> Image.Image:
    """Put tiles into rows, and a legend into what the last row leaves free, if it fits there, or else below.

    Args:
        tiles: At least one, taken one at a time.
        columns: Tiles in a row.
        entries: Gives the legend's entries when all tiles are drawn.
        title: Shown above all; may be empty.
        heading: Of the legend; may be empty.
    """
    tiles, cell = iter(tiles), _cell(columns)
    parts = [_line(title, INNER, TITLE)] if title else []
    free = 0
    while row := list(islice(tiles, columns)):
        drawn = Image.new("RGB", (INNER, HEADER + max(tile.image.height for tile in row) + GAP), "white")
        for column, tile in enumerate(row):
            drawn.paste(_line(tile.caption, cell, TEXT), (column * (cell + GAP), 0))
            drawn.paste(tile.image, (column * (cell + GAP), HEADER))
        parts.append(drawn)
        free = (columns - len(row)) * (cell + GAP) - GAP
    legend = entries()[:MAX_ENTRIES]
    if legend and free > 0 and (panel := draw_panel(legend, TEXT, free)).height <= parts[-1].height - HEADER:
        parts[-1].paste(_line(heading, free, TEXT), (INNER - free, 0))
        parts[-1].paste(panel, (INNER - free, HEADER))
    elif legend:
        parts += [_line(heading, INNER, TEXT)] if heading else []
        parts.append(draw_panel(legend, TEXT, INNER))
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + 2 * GAP), "white")
    top = GAP
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height
    return sheet


def sheet_png(sheet: Image.Image) -> bytes:
    """A sheet as a PNG of 256 colors: in all of them, the noise of photographs takes five times the space."""
    stream = io.BytesIO()
    sheet.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(stream, format="PNG")
    return stream.getvalue()


def _cell(columns: int) -> int:
    """Width of a column in pixels."""
    return (INNER - (columns - 1) * GAP) // columns


def _line(text: str, width: int, size: int) -> Image.Image:
    """A line with as much of a text as fits into `width` pixels."""
    font = ImageFont.load_default(size)
    text = shortened(text, 200)
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    line = Image.new("RGB", (width, round(1.6 * size)), "white")
    ImageDraw.Draw(line).text((0, line.height / 2), text, fill=INK, font=font, anchor="lm")
    return line
