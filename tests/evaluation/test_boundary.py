from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix

NAN = math.nan


def split(height: int, width: int, column: int) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    labels[:, column:] = 1
    return labels


def spots(*pixels: tuple[int, int], shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for pixel in pixels:
        labels[pixel] = 1
    return labels


def scored(prediction: np.ndarray, target: np.ndarray, num_classes: int = 2, **options: Any) -> list[float]:
    score = BoundaryScore(num_classes, **options)
    score.update(prediction, target)
    return list(score.per_class().tolist())


@pytest.mark.parametrize(("shift", "expected"), [(0, 1), (3, 1), (-3, 1), (4, 0), (-4, 0)])
def test_an_outline_matches_within_the_tolerance(shift: int, expected: float) -> None:
    # The diagonal is 100: a tolerance of 3 pixels.
    assert scored(split(60, 80, 40 + shift), split(60, 80, 40), tolerance=0.03) == [expected, expected]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [((3, 4), 1), ((-4, 3), 1), ((0, 5), 1), ((-5, 0), 1), ((4, 4), 0), ((5, 1), 0), ((-1, -5), 0)],
)
def test_distance_is_euclidean(offset: tuple[int, int], expected: float) -> None:
    y, x = 30 + offset[0], 40 + offset[1]
    assert scored(spots((y, x)), spots((30, 40)), tolerance=0.05)[1] == expected


def test_a_tolerance_of_n_pixels_is_not_rounded_down() -> None:
    assert 0.21**2 * 100**2 < 21**2
    assert scored(split(60, 80, 51), split(60, 80, 30), tolerance=0.21) == [1, 1]
    assert scored(split(60, 80, 52), split(60, 80, 30), tolerance=0.21) == [0, 0]


def test_precision_and_recall_are_distinguished() -> None:
    one, both = spots((30, 40)), spots((30, 40), (5, 5))
    score = BoundaryScore(2)
    score.update(both, one)  # precision 1/2, recall 1
    score.update(one, both)  # the reverse
    assert score.per_class()[1] == pytest.approx(2 / 3, abs=1e-15)
    assert score.total[1] == pytest.approx(4 / 3, abs=1e-15)
    # Class 0 has the four neighbors of each spot: 8 pixels against 4.
    assert score.per_class()[0] == pytest.approx(2 * 0.5 / 1.5, abs=1e-15)
    # Of three spots in the ground truth one is found, and one of two found is right: P = 1/2, R = 1/3.
    assert scored(both, spots((30, 40), (50, 70), (5, 70)))[1] == pytest.approx(2 / 5, abs=1e-15)


def test_boundaries_do_not_wrap_into_the_next_row() -> None:
    prediction, target = np.zeros((2, 6, 60), np.uint8)
    prediction[2, 59] = target[3, 0] = 1
    assert scored(prediction, target, tolerance=0.05)[1] == 0
    prediction, target = np.zeros((2, 6, 60), np.uint8)
    prediction[5, 30] = target[0, 30] = 1
    assert scored(prediction, target, tolerance=0.05)[1] == 0


def test_a_boundary_of_another_class_does_not_match() -> None:
    target = split(60, 80, 40)
    assert scored(np.where(target == 1, 2, 0), target, 3) == [1, 0, 0]


def test_a_class_without_a_boundary_does_not_count() -> None:
    full, half = np.zeros((20, 30), np.uint8), split(20, 30, 15)
    assert all(math.isnan(value) for value in scored(full, full))
    assert scored(full, half) == [0, 0]  # in one of the two: nothing matches
    assert scored(half, full) == [0, 0]
    score = BoundaryScore(3)
    score.update(full, full)
    score.update(half, half)
    assert score.count.tolist() == [1, 1, 0]
    assert score.per_class().tolist() == pytest.approx([1, 1, NAN], nan_ok=True)
    assert score.mean() == 1
    assert math.isnan(BoundaryScore(3).mean())


def test_scores_are_means_over_images_then_classes() -> None:
    score = BoundaryScore(3, tolerance=0.03)
    score.update(split(60, 80, 40), split(60, 80, 40))
    score.update(split(60, 80, 60), split(60, 80, 40))
    third = 2 * (split(60, 80, 40))
    score.update(third, third)
    assert score.total.tolist() == [2, 1, 1]
    assert score.count.tolist() == [3, 2, 1]
    assert score.per_class().tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert score.mean() == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert (score.total.dtype, score.count.dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_nothing_is_judged_where_the_ground_truth_is_ignored(ignore_index: int) -> None:
    target = split(60, 80, 40).astype(np.int16)
    prediction = target.copy()
    target[10:30] = ignore_index
    prediction[12:28, 5:70:7] = 1  # boundaries within
    prediction[12:28, 10:60:7] = 500  # and what is no class
    prediction[10:30, :20] = 1  # and along the edge of ignored pixels
    assert scored(prediction, target, ignore_index=ignore_index) == [1, 1]
    with pytest.raises(ValueError, match="target has values"):
        scored(prediction, target, ignore_index=None)


@pytest.mark.parametrize("ignore_index", [-1, 511])
def test_an_ignore_index_beyond_the_dtype_ignores_nothing(ignore_index: int) -> None:
    target = split(60, 80, 40) * 255  # 255 is what both are modulo 256
    assert scored(target, target, 256, ignore_index=ignore_index)[255] == 1
    confusion = ConfusionMatrix(256, ignore_index)
    confusion.update(target, target)
    assert int(confusion.matrix[255, 255]) == 60 * 40


def test_a_tolerance_of_zero_wants_identical_pixels() -> None:
    target = split(60, 80, 40)
    assert scored(target, target, tolerance=0) == [1, 1]
    assert scored(split(60, 80, 41), target, tolerance=0) == [0, 0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (5, 0), (1, 1)])
def test_images_without_neighbors_do_not_count(shape: tuple[int, int]) -> None:
    assert math.isnan(scored(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))[0])


def test_invalid_input_is_refused() -> None:
    for tolerance in (-0.1, 1.5, NAN):
        with pytest.raises(ValueError, match=f"tolerance is a fraction .*got {tolerance}"):
            BoundaryScore(2, tolerance=tolerance)
    score = BoundaryScore(2)
    with pytest.raises(ValueError, match=r"expected \(H, W\), got \(1, 4, 4\)"):
        score.update(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"prediction has values that are no class: 2 \(1 pixel\)"):
        score.update(np.array([[0, 2]]), np.array([[0, 1]]))
    with pytest.raises(ValueError, match="one shape"):
        score.update(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))
    assert not score.count.any()


def boundary_by_hand(labels: np.ndarray, known: np.ndarray, index: int) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    height, width = labels.shape
    for y, x in np.argwhere((labels == index) & known):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and known[v, u] and labels[v, u] != index:
                edge[y, x] = True
    return edge


@pytest.mark.parametrize("tolerance", [0.0, 0.0075, 0.03, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(40, 56), (3, 70), (33, 1)])
def test_a_distance_transform_gives_the_same(shape: tuple[int, int], tolerance: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    K = 5
    rng = np.random.default_rng(8)
    score, totals, images = BoundaryScore(K, tolerance=tolerance), np.zeros(K), np.zeros(K, int)
    for _ in range(4):
        coarse = rng.integers(0, K - 1, (-(-shape[0] // 8), -(-shape[1] // 8)))
        target = np.kron(coarse, np.ones((8, 8), int))[: shape[0], : shape[1]]
        prediction = np.roll(target, rng.integers(-3, 4, 2), (0, 1))
        prediction[rng.random(shape) < 0.01] = rng.integers(K)
        target[rng.random(shape) < 0.02] = 255
        score.update(prediction, target)
        known, reach = target != 255, tolerance * math.hypot(*shape)
        for index in range(K):
            predicted, true = (boundary_by_hand(labels, known, index) for labels in (prediction, target))
            if not predicted.any() and not true.any():
                continue
            images[index] += 1
            if predicted.any() and true.any():
                precision = (ndimage.distance_transform_edt(~true)[predicted] <= reach).mean()
                recall = (ndimage.distance_transform_edt(~predicted)[true] <= reach).mean()
                totals[index] += 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert score.count.tolist() == images.tolist()
    assert score.total.tolist() == pytest.approx(totals.tolist(), abs=1e-12)
    assert images.sum() > K
