from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.labels import LABEL_SPACES, generic_palette
from isanet.viz.charts import confusion_chart, iou_chart, to_png, training_chart

CLASSES = ("road", "car", "sky", "boat")
IOU = (6 / 9, 3 / 6, math.nan, math.nan)


def rendered(figure: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))


def random_confusion(count: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    return generator.integers(0, 50, (count, count)) + np.diag(generator.integers(100, 5000, count))


def test_bars_have_the_colors_of_the_classes() -> None:
    palette = ((10, 200, 30), (200, 10, 30), (255, 255, 255), (1, 2, 250))
    pixels = rendered(iou_chart((0.9, 0.8, 0.7, 0.6), CLASSES, palette)).reshape(-1, 3)
    for color in palette:
        assert (pixels == color).all(axis=1).sum() > 1000


def test_bars_are_sorted_and_as_long_as_the_iou() -> None:
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))
    pixels = rendered(iou_chart((1, 0.5, 1, 0), CLASSES, palette))
    red, green, blue = (np.argwhere((pixels == color).all(axis=2)) for color in palette[:3])
    lengths = [np.ptp(found[:, 1]) for found in (red, green, blue)]
    assert lengths[1] / lengths[0] == pytest.approx(0.5, abs=0.02)
    assert red[:, 0].max() < blue[:, 0].min() < blue[:, 0].max() < green[:, 0].min()


def test_rows_without_ground_truth_are_hatched_not_zero() -> None:
    axes = confusion_chart(np.array([[6, 2, 2, 0], [1, 3, 0, 0], [0] * 4, [0] * 4]), CLASSES).axes[0]
    assert [(patch.get_y(), patch.get_hatch()) for patch in axes.patches] == [(1.5, "////"), (2.5, "////")]
    (cells,) = axes.collections
    shares = np.asarray(cells.get_array())
    assert shares[:2] == pytest.approx(np.array([[0.6, 0.2, 0.2, 0], [0.25, 0.75, 0, 0]]))
    assert axes.yaxis_inverted()  # the first class on top
    assert {text.get_text() for text in axes.texts} == {"60.0", "20.0", "25.0", "75.0"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road  0", "car  1", "sky  2", "boat  3"]


def test_many_classes_have_names_but_no_numbers() -> None:
    space = LABEL_SPACES["ade20k150"]
    axes = confusion_chart(random_confusion(150), space.classes).axes[0]
    assert len({label.get_text() for label in axes.get_xticklabels()}) == len(axes.get_yticklabels()) == 150
    assert not axes.texts
    figure = iou_chart(np.linspace(0, 1, 150).tolist(), space.classes, space.palette)
    assert len(figure.axes) == 3  # columns, so that it fits a screen


def test_absent_classes_are_named_below_the_bars() -> None:
    figure = iou_chart(IOU, CLASSES, generic_palette(4))
    (text,) = [text.get_text() for text in figure.texts if "absent" in text.get_text()]
    assert text.replace("\xa0", " ") == "absent from ground truth and prediction: sky 2, boat 3"
    chart = iou_chart([math.nan] * 5000, [str(index) for index in range(5000)], [(0, 0, 0)] * 5000)
    (text,) = [text.get_text() for text in chart.texts if "absent" in text.get_text()]
    assert len(text) < 5000
    assert text.endswith("…")


@pytest.mark.parametrize("steps", [1, 2, 400])
@pytest.mark.parametrize("validated", [False, True])
def test_training_curves_show_the_history(steps: int, validated: bool) -> None:
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
    assert to_png(figure)[:8] == b"\x89PNG\r\n\x1a\n"
