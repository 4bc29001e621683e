"""Outlines and run lengths of label maps, against what others make of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

from isanet.datasets.shapes import fill
from isanet.inference.regions import Polygon, bounding_box, class_runs, coco_counts, polygons

Mask = NDArray[np.bool_]


def mask_of(*rows: str) -> Mask:
    return np.array([[char == "#" for char in row] for row in rows])


def doubled_area(ring: NDArray[np.int64]) -> int:
    """Twice the area, positive where the ring is clockwise as seen on a screen."""
    x, y = ring.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def area(polygon: Polygon) -> int:
    return sum(map(doubled_area, (polygon.outer, *polygon.holes))) // 2


def check(mask: Mask) -> None:
    """The polygons fill exactly the mask, one for each region; no ring touches itself; sizes descend."""
    found = polygons(mask)
    filled = np.zeros_like(mask)
    for polygon in found:
        rings = (polygon.outer, *polygon.holes)
        for ring in rings:
            assert len({tuple(point) for point in ring.tolist()}) == len(ring)
            assert (doubled_area(ring) > 0) == (ring is polygon.outer)
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps == 0).sum(axis=1) == 1).all()
            assert ((steps == 0) != np.roll(steps == 0, 1, axis=0)).all()  # each point is a turn
        inside, left, top = fill([ring.astype(float) for ring in rings], mask.shape)
        part = filled[top : top + inside.shape[0], left : left + inside.shape[1]]
        assert not (part & inside).any()
        part |= inside
        assert area(polygon) == inside.sum()
    np.testing.assert_array_equal(filled, mask)
    regions, count = ndimage.label(mask)
    sizes = np.bincount(regions.ravel())[1:]
    assert len(found) == count
    assert [area(polygon) for polygon in found] == sorted(sizes.tolist(), reverse=True)


SHAPES = {
    "empty": mask_of("...", "..."),
    "full": mask_of("###", "###"),
    "one pixel": mask_of("#"),
    "corner to corner": mask_of("#.", ".#"),
    "corner to corner, rising": mask_of(".#", "#."),
    "hole": mask_of("###", "#.#", "###"),
    "two holes that share a corner": mask_of("####", "#.##", "##.#", "####"),
    "hole that reaches the outline's corner": mask_of(".####", "##..#", "#.#.#", "#####"),
    "island in a hole": mask_of("#####", "#...#", "#.#.#", "#...#", "#####"),
    "island that touches the hole's corner": mask_of("####", "#..#", "#.##", "###."),
    "island corner to corner in a hole": mask_of("#####", "#...#", "#.#.#", "#..##", "#####"),
    "ring closed by a corner": mask_of("###.", "#..#", "#..#", "####"),
    "checkerboard": np.indices((5, 6)).sum(0) % 2 == 0,
    "comb at the border": mask_of("#.#.#", "#.#.#", "#####"),
    "spiral": mask_of("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_polygons_fill_the_mask_again(name: str) -> None:
    mask = SHAPES[name]
    for turned in (mask, mask[::-1], mask[:, ::-1], mask.T, np.pad(mask, 2)):
        check(turned)


@pytest.mark.parametrize("seed", range(8))
def test_polygons_fill_random_masks_again(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(40):
        mask = generator.random(generator.integers(1, 12, 2)) < generator.random()
        check(mask)
    check(np.kron(generator.random((7, 9)) < 0.5, np.ones(generator.integers(1, 20, 2), bool)))


def test_corners_are_those_of_pixels_and_small_regions_are_left_out() -> None:
    mask = mask_of("###.", "#.#.", "###.", "...#")
    (frame, dot) = polygons(mask)
    assert frame.outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert [hole.tolist() for hole in frame.holes] == [[[1, 1], [1, 2], [2, 2], [2, 1]]]
    assert (dot.outer.tolist(), dot.holes) == ([[3, 3], [4, 3], [4, 4], [3, 4]], ())
    assert [len(polygons(mask, min_area)) for min_area in (0, 1, 2, 8, 9)] == [2, 2, 1, 1, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_run_lengths_are_those_of_pycocotools(dtype: type) -> None:
    generator = np.random.default_rng(0)
    maps = [generator.integers(0, 4, generator.integers(1, 30, 2)) for _ in range(60)]
    maps += [np.kron(labels, np.ones((170, 9), int)) for labels in maps[:10]]  # long runs take more characters
    maps += [np.full((3, 5), 299), np.arange(12).reshape(3, 4) % 2]
    for wide in maps:
        labels = (wide % 256 if dtype is np.uint8 else wide).astype(dtype)
        classes = []
        for index, starts, ends in class_runs(labels):
            classes.append(index)
            expected = coco_mask.encode(np.asfortranarray(labels == index, np.uint8))
            assert coco_counts(starts, ends, labels.size) == expected["counts"].decode()
            assert list(bounding_box(starts, ends, labels.shape[0])) == coco_mask.toBbox(expected).tolist()
            assert (ends - starts).sum() == coco_mask.area(expected)
        assert classes == np.unique(labels).tolist()
