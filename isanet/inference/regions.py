"""The regions of a label map as outlines and as COCO's run lengths, exact to the pixel; numpy alone.

Outlines run along the edges of pixels: a point (x, y) is a corner of pixels, x to the right and y down, and (0, 0) is
the top left corner of the image, so that the pixel in column x and row y covers (x, y) to (x + 1, y + 1). In a row of
corners, the ends of the horizontal edges lie next to each other, and in a column those of the vertical ones. So rings
are found by sorting corners, and only walking along them is a loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int64]
Ints = NDArray[np.int64]


class Polygon(NamedTuple):
    """The outline of one connected region.

    Attributes:
        outer: (N, 2) corners (x, y), clockwise as seen on a screen; the first is not repeated at the end.
        holes: The same for each hole, counterclockwise.
    """

    outer: Ring
    holes: tuple[Ring, ...]


def polygons(mask: NDArray[np.bool_], min_area: int = 1) -> list[Polygon]:
    """The outlines of a mask's regions, largest first. Filled, they give the mask again, pixel by pixel.

    Pixels that share an edge are connected (4-connectivity); regions that touch in a corner are two. No ring crosses or
    touches itself; rings may touch each other in corners.

    Args:
        mask: (H, W).
        min_area: Smaller regions are left out; in pixels, without those of holes.
    """
    padded = np.pad(mask, 1)
    changes = np.flatnonzero(padded.reshape(-1)[1:] != padded.reshape(-1)[:-1]) + 1
    if not changes.size:
        return []
    starts, ends = changes[::2], changes[1::2]  # of the runs of pixels in rows
    region_of_run = _connected(starts, ends, padded.shape[1])
    areas = np.bincount(region_of_run, weights=ends - starts)

    def region(y: Ints, x: Ints) -> Ints:  # of pixels of the padded mask
        found: Ints = region_of_run[np.searchsorted(starts, y * padded.shape[1] + x, "right") - 1]
        return found

    y, x, column_order = _corners(padded, region)
    # The neighbor of corner i by a horizontal edge is i ^ 1, and by a vertical edge:
    vertical = np.empty_like(column_order)
    vertical[column_order] = column_order.reshape(-1, 2)[:, ::-1].reshape(-1)
    # A corner where a ring starts has the ring's inside below it, if it is an outer one; else above. (y, x) is padded.
    is_outer = padded[y + 1, x + 1]
    regions = region(y + is_outer, x + 1)
    outers: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring in _rings(vertical):
        index = int(regions[ring[0]])
        if areas[index] < min_area:
            continue
        points = np.stack([x[ring], y[ring]], axis=1)
        if is_outer[ring[0]]:
            outers[index] = points
        else:
            holes.setdefault(index, []).append(np.roll(points[::-1], 1, axis=0))  # backwards, from the same corner
    order = sorted(outers, key=lambda index: (-areas[index], index))
    return [Polygon(outers[index], tuple(holes.get(index, ()))) for index in order]


def _connected(starts: Ints, ends: Ints, width: int) -> Ints:
    """The region of each run of pixels in rows of this width, as the index of the region's first run."""
    # Runs of the next row that share an edge with a run are those from `first` until `last`
    first = np.searchsorted(ends, starts + width, "right")
    last = np.searchsorted(starts, ends + width, "left")
    upper = np.repeat(np.arange(len(starts)), last - first)
    lower = np.arange(len(upper)) + np.repeat(first - (np.cumsum(last - first) - (last - first)), last - first)
    region = np.arange(len(starts))
    while len(upper):
        one, other = region[upper], region[lower]
        apart = one != other
        upper, lower, one, other = upper[apart], lower[apart], one[apart], other[apart]
        np.minimum.at(region, np.maximum(one, other), np.minimum(one, other))
        while (region != (above := region[region])).any():
            region = above
    return region


def _corners(padded: NDArray[np.bool_], region: Any) -> tuple[Ints, Ints, Ints]:
    """Where rings turn: y, x by rows, so that each two are the ends of a horizontal edge; and their order by columns.

    Where two regions touch in a corner, it is two corners, of two rings. So it is where one region touches itself,
    with the rings of what is outside apart.
    """
    up_left, up_right, down_left, down_right = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    twice = (up_left != up_right) & (up_left != down_left) & (up_left == down_right)
    y, x = np.nonzero((up_left ^ up_right ^ down_left ^ down_right) | twice)
    twice = twice[y, x]
    falling = up_left[y, x]  # where `twice`: whether the pixels up left and down right are inside
    has_upper = up_left[y, x] != up_right[y, x]  # whether a vertical edge leads up from the corner
    ys, xs, falls = y[twice], x[twice], falling[twice]
    # Of the two corners, the first has the edge to the left. Around its own pixel, it has the upper one, if `falling`.
    same = region(ys, np.where(falls, xs, xs + 1)) == region(ys + 1, np.where(falls, xs + 1, xs))
    has_upper[twice] = falls != same
    repeats = 1 + twice
    y, x, has_upper = np.repeat(y, repeats), np.repeat(x, repeats), np.repeat(has_upper, repeats)
    second = np.flatnonzero((y[1:] == y[:-1]) & (x[1:] == x[:-1])) + 1
    has_upper[second] = ~has_upper[second]
    # In a column, the end of the upper edge comes before the start of the lower one
    return y, x, np.lexsort((~has_upper, y, x))


def _rings(vertical: Ints) -> Iterator[Ints]:
    """The corners of each ring in order: from its first one by rows, the top left, to the right."""
    following, seen = vertical.tolist(), bytearray(len(vertical))
    for start in range(0, len(following), 2):
        if seen[start]:
            continue
        ring: list[int] = []
        corner = start
        while not seen[corner]:
            opposite = corner ^ 1
            seen[corner] = seen[opposite] = 1
            ring += (corner, opposite)
            corner = following[opposite]
        yield np.array(ring)


def class_runs(labels: NDArray[Any]) -> Iterator[tuple[int, Ints, Ints]]:
    """For each class that occurs, in order: starts and ends of its runs, with the columns one after the other."""
    flat = labels.T.reshape(-1)
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    values = flat[bounds[:-1]]
    order = np.argsort(values, kind="stable")
    for runs in np.split(order, np.flatnonzero(np.diff(values[order].astype(np.int64))) + 1):
        yield int(values[runs[0]]), bounds[runs], bounds[runs + 1]


def bounding_box(starts: Ints, ends: Ints, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels, of runs down the columns."""
    left, right = int(starts[0]) // height, int(ends[-1] - 1) // height
    top, bottom = int((starts % height).min()), int(((ends - 1) % height).max())
    if (starts // height != (ends - 1) // height).any():  # a run from one column's bottom to the next one's top
        top, bottom = 0, height - 1
    return left, top, right - left + 1, bottom - top + 1


def coco_counts(starts: Ints, ends: Ints, size: int) -> str:
    """COCO's compressed run lengths, as `pycocotools.mask.encode` writes them.

    Lengths outside and inside in turn; from the fourth on, the difference to the last but one. A number is written five
    bits to a character, lowest first, the sixth bit says that more follow, and the sign is that of its last fifth bit.

    Args:
        starts: Of the runs inside, in order.
        ends: Behind each of them.
        size: Number of pixels.
    """
    bounds = np.stack([starts, ends], axis=1).reshape(-1)
    counts = np.diff(bounds, prepend=0, append=size)
    counts = counts[:-1] if counts[-1] == 0 else counts
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    characters, more = [], np.ones(len(rest), bool)
    while more.any():
        bits, rest, written = rest & 31, rest >> 5, more
        more = written & (rest != np.where(bits & 16, -1, 0))
        characters.append(np.where(written, bits + 32 * more + 48, 0).astype(np.uint8))
    text = np.stack(characters, axis=1)
    return str(text[text != 0].tobytes(), "ascii")
