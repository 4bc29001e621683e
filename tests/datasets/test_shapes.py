"""What is inside a shape, by the documented rules: centers of pixels, even-odd, later on top, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isanet.datasets.shapes import (
    MAX_POINTS,
    UNLABELED,
    Bitmap,
    Rings,
    Runs,
    ellipse,
    fill,
    paint,
    polygon,
    rectangle,
    run_lengths,
)
from tests.helpers.exports import counts_of, packed_counts


def filled(*rings: Any, size: tuple[int, int] = (8, 8)) -> Any:
    """(H, W) bool."""
    layers = [Rings(0, tuple(polygon(ring) for ring in rings))]
    return paint(layers, size, 10**6)[0] == 0


def by_rays(rings: list[Any], size: tuple[int, int]) -> Any:
    """The same by its definition: the number of edges to the left of each center is odd."""
    inside = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            for ring in rings:
                for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
                    if (y0 <= y + 0.5) != (y1 <= y + 0.5):
                        low, high = ((x0, y0), (x1, y1)) if y0 <= y1 else ((x1, y1), (x0, y0))
                        at = low[0] + (y + 0.5 - low[1]) * ((high[0] - low[0]) / (high[1] - low[1]))
                        inside[y, x] ^= at <= x + 0.5
    return inside


POINTS = st.tuples(st.integers(-24, 40).map(lambda v: v / 2), st.integers(-24, 40).map(lambda v: v / 2))


@given(st.lists(st.lists(POINTS, min_size=3, max_size=7), min_size=1, max_size=3))
def test_a_pixel_is_painted_if_its_center_is_inside_by_the_even_odd_rule(rings: list[Any]) -> None:
    expected = by_rays(rings, (9, 11))
    found, left, top = fill([np.array(ring, float) for ring in rings], (9, 11))
    whole = np.zeros((9, 11), bool)
    whole[top : top + found.shape[0], left : left + found.shape[1]] = found
    if expected.any():
        np.testing.assert_array_equal(whole, expected)
    else:
        assert whole.sum() <= 1  # a shape without a center paints one pixel, or lies outside


def test_holes_and_self_crossing_shapes() -> None:
    ring = filled([[0, 0], [8, 0], [8, 8], [0, 8]], [[2, 2], [6, 2], [6, 6], [2, 6]])
    expected = np.ones((8, 8), bool)
    expected[2:6, 2:6] = False
    np.testing.assert_array_equal(ring, expected)
    twice = filled([[0, 0], [8, 0], [8, 8], [0, 8], [0, 0], [2, 2], [6, 2], [6, 6], [2, 6], [2, 2]])
    np.testing.assert_array_equal(twice, expected)  # enclosed twice is outside
    bow = filled([[0, 0], [8, 8], [8, 0], [0, 8]])
    assert bow[4, [0, 7]].all()
    assert not bow[[0, 7], 4].any()


@pytest.mark.parametrize("corner", [(0.1, 0.1), (3.6, 5.7), (7.55, 7.55)])
def test_a_shape_between_centers_is_not_lost(corner: tuple[float, float]) -> None:
    x, y = corner
    inside = filled([[x, y], [x + 0.2, y], [x + 0.2, y + 0.2], [x, y + 0.2]])
    assert np.argwhere(inside).tolist() == [[int(y), int(x)]]
    line = filled([[1, 2], [5, 2], [1, 2]])
    assert np.argwhere(line).tolist() == [[2, 2]]


def test_the_later_shape_is_on_top_and_overlap_is_counted() -> None:
    layers = [
        Rings(0, (rectangle(0, 0, 4, 4),)),
        Rings(1, (rectangle(2, 2, 6, 6),)),
        Rings(1, (rectangle(3, 3, 4, 4),)),
    ]
    mask, overlap = paint(layers, (8, 8), 10**6)
    assert (int(mask[3, 3]), int(mask[1, 1]), int(mask[7, 7]), overlap) == (1, 0, UNLABELED, 4)


def test_what_lies_outside_is_cut_off() -> None:
    assert filled([[-100, -100], [100, -100], [100, 100], [-100, 100]]).all()
    assert not filled([[20, 20], [30, 20], [30, 30]]).any()
    assert not filled([[-9, 1], [-5, 1], [-5, 3]]).any()
    circle = paint([Rings(0, (ellipse(4, 4, 3, 3),))], (8, 8), 10**6)[0] == 0
    assert abs(int(circle.sum()) - 9 * np.pi) < 4
    np.testing.assert_array_equal(circle, circle.T)


@given(st.integers(0, 2**30 - 1), st.integers(1, 6), st.integers(1, 6))
def test_run_lengths_are_read_as_numbers_and_as_text(bits: int, height: int, width: int) -> None:
    inside = np.array([bits >> i & 1 for i in range(height * width)], bool).reshape(height, width)
    counts = counts_of(inside)
    for form in (counts, packed_counts(counts)):
        found = run_lengths(form, (height, width))
        assert found.tolist() == counts
        mask, _ = paint([Runs(3, found, (height, width))], (height, width), 100)
        np.testing.assert_array_equal(mask == 3, inside)


@pytest.mark.parametrize(
    "counts",
    [
        [3],
        [2, 3],
        [-1, 5],
        [2.0, 2],
        [10**30],
        ["4"],
        "2",
        "~",
        "o" * 100,
        None,
        [True, 3],
        {},
        [1 << 63, 4 - (1 << 63)],
    ],
)
def test_wrong_run_lengths_are_refused_before_they_are_unpacked(counts: Any) -> None:
    with pytest.raises(ValueError, match=r"run-length|run lengths|whole numbers"):
        run_lengths(counts, (2, 2))


@pytest.mark.parametrize(
    "points",
    [
        [], [[1, 2]], [[1, 2], [3, 4]], [1, 2, 3, 4, 5], [["1", "2"]] * 3, [[1, 2], [3]], None, "abc", {"a": 1}, 3,
        [[1, 2], [3, float("nan")], [5, 6]], [[1, 2], [3, 1e300], [5, 6]], [[1, 2], [3, 10**400], [5, 6]],
        [[[1, 2], [3, 4], [5, 6]]], [[1, None]] * 3, [[1, 2, 3]] * 3, [[0, 0]] * (2 * MAX_POINTS + 1),
    ],
)  # fmt: skip
def test_wrong_points_are_refused(points: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|coordinate"):
        polygon(points)


def test_a_bitmap_that_is_no_image_or_too_large_is_refused(tmp_path: Path) -> None:
    import io

    from PIL import Image

    from isanet.errors import DatasetError

    stream = io.BytesIO()
    Image.new("1", (200, 200), 1).save(stream, "PNG")
    for data in (b"", b"abc", stream.getvalue()[:60], stream.getvalue()):
        with pytest.raises(DatasetError, match="bitmap in the annotations"):
            paint([Bitmap(0, data)], (8, 8), 1000)
    mask, _ = paint([Bitmap(0, stream.getvalue(), -190, -195)], (8, 16), 10**6)
    assert np.argwhere(mask == 0).max(0).tolist() == [4, 9]
    assert (paint([Bitmap(0, stream.getvalue(), 500, 500)], (8, 16), 10**6)[0] == UNLABELED).all()
