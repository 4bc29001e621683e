from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.labels import IGNORED
from isanet.viz.sheet import ALPHA, GAP, HEADER, MARGIN, TITLE, WIDTH, Preview, draw_sheet, fitted

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ["red", "green", "blue"]


def preview(height: int, width: int, *, ground_truth: int = 0, prediction: int = 1) -> Preview:
    image = np.full((height, width, 3), 100, np.uint8)
    labels = np.full((height, width), prediction, np.uint8)
    return Preview("name", image, labels, np.full((height, width), ground_truth, np.uint8))


def gray(color: tuple[int, int, int] = (0, 0, 0), value: int = 100) -> tuple[int, ...]:
    """A gray pixel under a color."""
    return tuple(int(ALPHA * channel + (1 - ALPHA) * value) for channel in color)


def cell_colors(image: Image.Image, rows: int, columns: int, height: int, top: int = GAP) -> list[list[Any]]:
    """The color in the middle of each cell of rows of images of one height."""
    step = (WIDTH - 2 * MARGIN + GAP) // columns
    middles = [top + row * (HEADER + height + GAP) + HEADER + height // 2 for row in range(rows)]
    return [[image.getpixel((MARGIN + column * step + 100, y)) for column in range(columns)] for y in middles]


def test_image_ground_truth_and_prediction_are_side_by_side() -> None:
    image = draw_sheet([preview(50, 200), preview(50, 200, ground_truth=2, prediction=0)], CLASSES, PALETTE)
    assert image.width == WIDTH
    assert cell_colors(image, 2, 3, fitted(200, 50, 3)[1]) == [
        [(100, 100, 100), gray(PALETTE[0]), gray(PALETTE[1])],
        [(100, 100, 100), gray(PALETTE[2]), gray(PALETTE[0])],
    ]


def test_without_predictions_there_are_two_columns() -> None:
    image = draw_sheet([preview(50, 200)._replace(prediction=None)] * 2, CLASSES, PALETTE, columns=2)
    assert cell_colors(image, 2, 2, fitted(200, 50, 2)[1]) == [[(100, 100, 100), gray(PALETTE[0])]] * 2


def test_one_preview_in_two_columns_has_the_legend_beside_its_prediction() -> None:
    scores = {"red": 0.5, "green": float("nan")}
    image = draw_sheet([preview(100, 200)], CLASSES, PALETTE, scores, columns=2, title="mIoU 50%")
    height = fitted(200, 100, 2)[1]
    top = GAP + round(1.6 * TITLE)
    cells = cell_colors(image, 2, 2, height, top)
    assert [*cells[0], cells[1][0]] == [(100, 100, 100), gray(PALETTE[0]), gray(PALETTE[1])]
    assert image.height == top + 2 * (HEADER + height + GAP) + GAP  # nothing is below
    panel = np.asarray(image)[top + 2 * HEADER + height + GAP :, WIDTH // 2 + GAP :]
    red, green = ((panel == color).all(-1).sum() for color in PALETTE[:2])
    assert red > 1.5 * green > 0  # the swatch and a bar of half the length; NaN has no bar


def test_ignored_pixels_of_the_ground_truth_have_no_color() -> None:
    image = draw_sheet([preview(50, 200, ground_truth=IGNORED)], CLASSES, PALETTE)
    assert cell_colors(image, 1, 3, fitted(200, 50, 3)[1])[0][1] == gray()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 40), (900, 300), (300, 3000), (5, 2000), (1000, 4)])
def test_any_size_of_image_gives_a_bounded_sheet(height: int, width: int) -> None:
    image = draw_sheet([preview(height, width)], CLASSES, PALETTE)
    assert image.width == WIDTH
    assert image.height < 0.6 * WIDTH


def test_the_legend_names_the_classes_present_with_their_scores() -> None:
    one, other = (
        draw_sheet([preview(50, 200)], CLASSES, PALETTE, {"red": score, "blue": 1.0}) for score in (0.05, 0.95)
    )
    tiles = HEADER + fitted(200, 50, 3)[1]
    assert np.array_equal(np.asarray(one)[:tiles], np.asarray(other)[:tiles])
    assert one.tobytes() != other.tobytes()
    colors = {color for _, color in one.getcolors(1 << 24) or ()}
    assert {PALETTE[0], PALETTE[1]} <= colors
    assert PALETTE[2] not in colors


@pytest.mark.parametrize("count", [1, 150, 5000])
def test_any_number_of_classes_gives_a_bounded_sheet(count: int) -> None:
    labels = np.arange(count).reshape(1, -1) % 255
    one = Preview("name", np.zeros((1, count, 3), np.uint8), labels, labels)
    names, palette = (
        [f"class {index} {'long ' * 9}" for index in range(count)],
        [(index % 256, 0, 0) for index in range(count)],
    )
    assert draw_sheet([one], names, palette).height < 4 * WIDTH


def test_long_captions_are_truncated() -> None:
    image = draw_sheet([preview(50, 60)._replace(caption="x" * 500)], CLASSES, PALETTE)
    assert image.width == WIDTH


def test_previews_are_taken_one_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []

    def previews() -> Iterator[Preview]:
        for size in (20, 30, 40):
            assert not any(image() is not None for image in alive[:-1])
            alive.append(weakref.ref((one := preview(size, size)).image))
            yield one
            del one

    assert draw_sheet(previews(), CLASSES, PALETTE).height > 3 * 400
