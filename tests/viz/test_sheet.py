from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.labels import IGNORED
from isanet.viz.sheet import TILE, Preview, draw_sheet

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ["red", "green", "blue"]


def preview(height: int, width: int, *, ground_truth: int = 0, prediction: int = 1) -> Preview:
    image = np.full((height, width, 3), 100, np.uint8)
    labels = np.full((height, width), prediction, np.uint8)
    return Preview("name", image, labels, np.full((height, width), ground_truth, np.uint8))


def tile_colors(image: Image.Image, rows: int, height: int) -> list[list[Any]]:
    """The color in the middle of each of the three tiles of each row."""
    tops = [number * (height + 26 + 6) + 26 + height // 2 for number in range(rows)]
    return [[image.getpixel((TILE // 2 + place * (TILE + 6), top)) for place in range(3)] for top in tops]


def test_image_ground_truth_and_prediction_are_side_by_side() -> None:
    image = draw_sheet([preview(112, TILE), preview(112, TILE, ground_truth=2, prediction=0)], CLASSES, PALETTE)
    assert tile_colors(image, 2, 112) == [
        [(100, 100, 100), (150, 50, 50), (50, 150, 50)],
        [(100, 100, 100), (50, 50, 150), (150, 50, 50)],
    ]


def test_ignored_pixels_of_the_ground_truth_have_no_color() -> None:
    image = draw_sheet([preview(112, TILE, ground_truth=IGNORED)], CLASSES, PALETTE)
    assert tile_colors(image, 1, 112)[0][1] == (50, 50, 50)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 40), (900, 300), (300, 3000), (5, 2000), (1000, 4)])
def test_any_size_of_image_gives_a_bounded_sheet(height: int, width: int) -> None:
    image = draw_sheet([preview(height, width)], CLASSES, PALETTE)
    assert 100 < image.width < 5 * TILE
    assert image.height < 1200


def test_the_legend_names_the_classes_present_with_their_details() -> None:
    one, other = (
        draw_sheet([preview(112, TILE)], CLASSES, PALETTE, {"red": text, "blue": "not there"})
        for text in ("IoU 5 %", "IoU 95 %")
    )
    tiles = 112 + 26
    assert np.array_equal(np.asarray(one)[:tiles, : 3 * TILE], np.asarray(other)[:tiles, : 3 * TILE])
    assert one.tobytes() != other.tobytes()
    colors = {color for _, color in one.getcolors(1 << 24) or ()}
    assert {PALETTE[0], PALETTE[1]} <= colors
    assert PALETTE[2] not in colors


def test_long_captions_are_truncated() -> None:
    image = draw_sheet([preview(50, 60)._replace(caption="x" * 500)], CLASSES, PALETTE)
    assert image.width < 3 * TILE + 400


def test_previews_are_taken_one_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []

    def previews() -> Iterator[Preview]:
        for size in (20, 30, 40):
            assert not any(image() is not None for image in alive[:-1])
            alive.append(weakref.ref((one := preview(size, size)).image))
            yield one
            del one

    assert draw_sheet(previews(), CLASSES, PALETTE).height > 3 * 400
