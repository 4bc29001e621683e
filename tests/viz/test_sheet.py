"""Images of what a training does: rows of image, truth and prediction, and curves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.labels import IGNORED
from isanet.viz.charts import png, training_chart
from isanet.viz.sheet import TILE, Row, sheet

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ["red", "green", "blue"]


def row(height: int, width: int, *, truth: int = 0, prediction: int = 1) -> Row:
    image = np.full((height, width, 3), 100, np.uint8)
    labels = np.full((height, width), prediction, np.uint8)
    return Row("name", image, labels, np.full((height, width), truth, np.uint8))


def middles(image: Image.Image, rows: int, height: int) -> list[list[Any]]:
    """The color in the middle of each of the three tiles of each row."""
    tops = [number * (height + 26 + 6) + 26 + height // 2 for number in range(rows)]
    return [[image.getpixel((TILE // 2 + place * (TILE + 6), top)) for place in range(3)] for top in tops]


def test_image_truth_and_prediction_stand_beside_each_other() -> None:
    image = sheet([row(112, TILE), row(112, TILE, truth=2, prediction=0)], CLASSES, PALETTE)
    assert middles(image, 2, 112) == [
        [(100, 100, 100), (150, 50, 50), (50, 150, 50)],
        [(100, 100, 100), (50, 50, 150), (150, 50, 50)],
    ]


def test_where_the_truth_is_ignored_no_color_lies_over_it() -> None:
    image = sheet([row(112, TILE, truth=IGNORED)], CLASSES, PALETTE)
    assert middles(image, 1, 112)[0][1] == (50, 50, 50)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 40), (900, 300), (300, 3000), (5, 2000)])
def test_any_size_has_room(height: int, width: int) -> None:
    image = sheet([row(height, width)], CLASSES, PALETTE)
    assert 100 < image.width < 5 * TILE
    assert image.height < 6000


def test_the_legend_names_what_occurs_with_its_text() -> None:
    one, other = (
        sheet([row(112, TILE)], CLASSES, PALETTE, {"red": text, "blue": "not there"})
        for text in ("IoU 5 %", "IoU 95 %")
    )
    tiles = 112 + 26
    assert np.array_equal(np.asarray(one)[:tiles, : 3 * TILE], np.asarray(other)[:tiles, : 3 * TILE])
    assert one.tobytes() != other.tobytes()
    colors = {color for _, color in one.getcolors(1 << 24) or ()}
    assert {PALETTE[0], PALETTE[1]} <= colors
    assert PALETTE[2] not in colors


def test_names_that_are_too_long_are_cut() -> None:
    image = sheet([row(50, 60)._replace(caption="x" * 500)], CLASSES, PALETTE)
    assert image.width < 3 * TILE + 400


@pytest.mark.parametrize("steps", [1, 2, 400])
@pytest.mark.parametrize("validated", [False, True])
def test_curves_show_what_there_is(steps: int, validated: bool) -> None:
    history = [
        (step, step / 10, 2 / step, 0.01 / step, 5.0, step / 500 if validated and step % 50 in (0, 1) else math.nan)
        for step in range(1, steps + 1)
    ]
    figure = training_chart(history, "a run of $5")
    panels = [axes for axes in figure.axes if axes.get_ylabel() != "learning rate"]
    assert len(panels) == (2 if validated else 1)
    drawn: Any = panels[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, [row[2] for row in history])
    if validated:
        points: Any = panels[1].lines[0].get_ydata()
        np.testing.assert_allclose(points, [100 * row[5] for row in history if not math.isnan(row[5])])
    assert png(figure)[:8] == b"\x89PNG\r\n\x1a\n"
