"""Annotations become pixels: polygons, run lengths and small images are painted into a mask, one after the other.

* The later shape is on top. A pixel that two classes claim goes to the later one, and is counted as overlap.
* Coordinates are continuous: (0, 0) is the corner of the first pixel, whose center is (0.5, 0.5). A pixel is painted
  if its center is inside; what lies outside the image is cut off.
* Rings of one shape are filled by the even-odd rule: a ring in a ring is a hole, and where a ring crosses itself, what
  it encloses twice is outside.
* A shape that holds no center of a pixel is not lost: it paints the pixel in which the mean of its points lies.

Nothing is painted by a library's drawing functions, whose edges differ between versions.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isanet.errors import DatasetError
from isanet.images.masks import open_mask, packed
from isanet.images.reading import open_header

UNLABELED = -1
"""The value of pixels that no shape covers."""

MAX_POINTS = 100_000
"""Points of a shape; with more, filling it would take seconds."""

MAX_COORDINATE = 1e6

Pixels = NDArray[np.int32]


class Rings(NamedTuple):
    """A filled shape: its class, and the (N, 2) points (x, y) of its outline and holes."""

    label: int
    rings: tuple[NDArray[np.float64], ...]


class Runs(NamedTuple):
    """COCO's run lengths, down the columns, in turn outside and inside the shape; `size` is (height, width)."""

    label: int
    counts: NDArray[np.int64]
    size: tuple[int, int]


class Bitmap(NamedTuple):
    """A small image at (left, top), as the bytes of a PNG or as a file; pixels that are not 0 are painted."""

    label: int
    source: bytes | Path
    left: int = 0
    top: int = 0


class Values(NamedTuple):
    """A mask file of the whole image, and the class (or `UNLABELED`) of its values, or of its colors as 24 bits."""

    path: Path
    indices: Mapping[int, int]
    by_color: bool


Layer = Rings | Runs | Bitmap | Values


def paint(layers: Sequence[Layer], size: tuple[int, int], max_pixels: int) -> tuple[Pixels, int]:
    """Paint layers, the last on top.

    Args:
        layers: Of one image.
        size: (height, width) of the image; already bounded.
        max_pixels: Larger files are refused before they are decoded.

    Returns:
        (H, W) classes and `UNLABELED`; and the number of pixels that changed from one class to another.

    Raises:
        DatasetError: A file cannot be read, has another size, or holds a value that is not listed.
    """
    mask = np.full(size, UNLABELED, np.int32)
    overlap = 0
    for layer in layers:
        if isinstance(layer, Values):
            return _look_up(layer, max_pixels), 0
        inside, left, top = _inside(layer, size, max_pixels)
        part = mask[top : top + inside.shape[0], left : left + inside.shape[1]]
        overlap += int(np.count_nonzero(inside & (part != UNLABELED) & (part != layer.label)))
        part[inside] = layer.label
    return mask, overlap


def _inside(layer: Rings | Runs | Bitmap, size: tuple[int, int], max_pixels: int) -> tuple[NDArray[np.bool_], int, int]:
    """Which pixels of a window are painted, and its left and top, inside the image."""
    if isinstance(layer, Rings):
        return fill(layer.rings, size)
    if isinstance(layer, Runs):
        flat = np.repeat(np.arange(len(layer.counts)) % 2 == 1, layer.counts)
        return flat.reshape(layer.size[::-1]).T, 0, 0
    values = _bitmap(layer, max_pixels)
    left, top = max(layer.left, 0), max(layer.top, 0)
    values = values[top - layer.top :, left - layer.left :][: max(size[0] - top, 0), : max(size[1] - left, 0)]
    return values, left, top


def fill(rings: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> tuple[NDArray[np.bool_], int, int]:
    """The pixels of a window whose centers are inside (even-odd), and the left and top of that window."""
    points = np.concatenate(rings)
    height, width = size
    (left, top), (right, bottom) = points.min(0), points.max(0)
    left, right = (min(max(math.floor(x), 0), width) for x in (left, right + 1))
    top, bottom = (min(max(math.floor(y), 0), height) for y in (top, bottom + 1))
    crossings = np.zeros((bottom - top, right - left + 1), np.uint8)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, 0).tolist(), strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            rows = np.arange(max(math.ceil(y0 - 0.5), top), min(math.ceil(y1 - 0.5), bottom))
            if rows.size:
                x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                columns = np.clip(np.ceil(x - 0.5) - left, 0, right - left).astype(np.int64)
                crossings[rows - top, columns] ^= 1
    inside = np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1].astype(bool)
    x, y = np.floor(points.mean(0)).astype(int).tolist()
    if not inside.any() and 0 <= x < width and 0 <= y < height:
        return np.ones((1, 1), bool), x, y
    return inside, left, top


def _bitmap(layer: Bitmap, max_pixels: int) -> NDArray[np.bool_]:
    if isinstance(layer.source, Path):
        image = open_mask(layer.source, max_pixels=max_pixels)
    else:
        stream = io.BytesIO(layer.source)
        try:
            image = open_header(stream, Path("a bitmap in the annotations"), max_pixels)
            if image.width * image.height > max_pixels:
                raise ValueError(f"it is {image.width}x{image.height}")
            image.load()
        except Exception as error:  # decoders raise nearly anything on damaged data
            raise DatasetError(f"a bitmap in the annotations cannot be read ({error}); export them again") from error
    if image.mode not in ("1", "L", "P"):
        image = image.getchannel("A") if image.mode in ("LA", "RGBA") else image.convert("L")
    inside: NDArray[np.bool_] = np.asarray(image) != 0
    return inside


def _look_up(layer: Values, max_pixels: int) -> Pixels:
    image = open_mask(layer.path, max_pixels=max_pixels)
    stored = packed(np.asarray(image.convert("RGB"))) if layer.by_color else np.asarray(image)
    if stored.ndim != 2:
        raise DatasetError(f"the mask {layer.path} has mode {image.mode}; expected one channel of class values")
    known = np.array(sorted(layer.indices), np.int64)
    nearest = np.searchsorted(known, stored).clip(max=len(known) - 1)
    stray = stored[known[nearest] != stored]
    if stray.size:
        value = f"the color #{int(stray[0]):06x}" if layer.by_color else f"the value {int(stray[0])}"
        raise DatasetError(
            f"the mask {layer.path} has {value} in {int((stray == stray[0]).sum()):,} pixels, which the export's list "
            "of classes does not have; add it there, or export the masks again"
        )
    labels = np.array([layer.indices[value] for value in known.tolist()], np.int32)
    return np.asarray(labels[nearest])


# --- from what an annotation file holds, checked


def polygon(points: Any) -> NDArray[np.float64]:
    """(N, 2) points from pairs, or from a flat list x, y, x, y.

    Raises:
        ValueError: They are not at least three points of finite numbers.
    """
    if not isinstance(points, list) or len(points) > 2 * MAX_POINTS:
        raise ValueError(f"expected a list of at most {MAX_POINTS:,} points")
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim == 1 and array.size % 2 == 0:
        array = array.reshape(-1, 2)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 3 or _is_text(points):
        raise ValueError(f"expected at least three points (x, y), got {str(points)[:60]}")
    if not (np.abs(array) <= MAX_COORDINATE).all():  # NaN is not either
        raise ValueError(f"a coordinate is not within {MAX_COORDINATE:,.0f} of the image")
    return array


def _is_text(points: list[Any]) -> bool:
    return any(isinstance(part, str) for point in points for part in (point if isinstance(point, list) else [point]))


def rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    """The four corners, see `polygon`."""
    return polygon([[left, top], [right, top], [right, bottom], [left, bottom]])


def ellipse(x: float, y: float, across: float, down: float, angle: float = 0) -> NDArray[np.float64]:
    """64 points of an ellipse with this center, these half axes and this turn in radians, see `polygon`."""
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in (x, y, across, down, angle)):
        raise ValueError("the ellipse is not of finite numbers")
    turns = np.arange(64) * (2 * np.pi / 64)
    u, v = across * np.cos(turns), down * np.sin(turns)
    cos, sin = math.cos(angle), math.sin(angle)
    return polygon(np.stack([x + u * cos - v * sin, y + u * sin + v * cos], 1).tolist())


def run_lengths(counts: Any, size: tuple[int, int]) -> NDArray[np.int64]:
    """COCO's run lengths, a list or the text that pycocotools writes (`rleToString`).

    Raises:
        ValueError: They do not cover exactly the image.
    """
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("the counts of a run-length encoding are not whole numbers of at least 0")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"the run lengths cover {sum(counts):,} pixels, and the image is {size[1]}x{size[0]}")
    return np.array(counts, np.int64)


def _unpacked(text: str) -> list[int]:
    """Numbers from 5 bits per character, lowest first, the sixth if more follow; from the fourth on as differences."""
    counts: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{char!r} is not in a run-length encoding")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
