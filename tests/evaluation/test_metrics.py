from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isanet.evaluation import metrics as metrics_module
from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.labels import LABEL_SPACES

NAN = math.nan
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")


def count(prediction: Any, target: Any, num_classes: int, **options: Any) -> ConfusionMatrix:
    confusion = ConfusionMatrix(num_classes, **options)
    confusion.update(torch.as_tensor(prediction), torch.as_tensor(target))
    return confusion


def looped(prediction: np.ndarray, target: np.ndarray, num_classes: int, ignore_index: int | None) -> list[list[int]]:
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for predicted, true in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
        if true != ignore_index:
            matrix[true][predicted] += 1
    return matrix


def draw(rng: np.random.Generator, shape: tuple[int, ...], num_classes: int, ignore_index: int | None) -> Any:
    """A prediction and its ground target, int64; at ignored pixels the prediction is anything."""
    target = rng.integers(0, num_classes, shape)
    prediction = np.where(rng.random(shape) < 0.5, target, rng.integers(0, num_classes, shape))
    if ignore_index is not None:
        ignored = rng.random(shape) < 0.2
        target[ignored] = ignore_index
        prediction[ignored] = rng.integers(-300, 100_000, ignored.sum())
    return prediction, target


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# --- counting


def test_rows_are_ground_truth_and_columns_prediction() -> None:
    confusion = count([[0, 0, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 2]], 4)
    assert confusion.matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion.matrix.dtype == torch.int64


@pytest.mark.parametrize("target_type", DTYPES)
@pytest.mark.parametrize("prediction_type", DTYPES)
def test_every_pair_of_dtypes_counts_alike(prediction_type: str, target_type: str) -> None:
    arrays = (
        np.array([[0, 1, 1], [1, 0, 1]]).astype(prediction_type),
        np.array([[0, 0, 1], [1, 1, 1]]).astype(target_type),
    )
    tensors = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])
    for prediction in (arrays[0], tensors[0]):
        for target in (arrays[1], tensors[1]):
            confusion = ConfusionMatrix(2)
            confusion.update(prediction, target)
            assert confusion.matrix.tolist() == [[1, 1], [1, 3]]


@pytest.mark.parametrize("ignore_index", [None, 255, -1, 0, 3, 300, 70_000])
@pytest.mark.parametrize("num_classes", [4, 19, 150, 255, 256, 257, 1000])
def test_counts_equal_those_of_a_loop_over_pixels(num_classes: int, ignore_index: int | None) -> None:
    rng = np.random.default_rng(num_classes)
    confusion, expected = ConfusionMatrix(num_classes, ignore_index), np.zeros((num_classes, num_classes), np.int64)
    for shape in ((12, 30), (2, 8, 9)):
        prediction, target = draw(rng, shape, num_classes, ignore_index)
        confusion.update(prediction, target)
        expected += looped(prediction, target, num_classes, ignore_index)
    assert np.array_equal(confusion.matrix.numpy(), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("num_classes", [19, 256])
def test_uint8_and_wider_dtypes_agree(num_classes: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, num_classes, (40, 50))
    prediction = rng.integers(0, num_classes, (40, 50))
    target[rng.random(target.shape) < 0.3] = 255
    prediction[target == 255] = 200
    confusion = ConfusionMatrix(num_classes)
    confusion.update(prediction.astype(dtype), target.astype(dtype))
    assert confusion.matrix.tolist() == looped(prediction, target, num_classes, 255)


@pytest.mark.parametrize("num_classes", [19, 300])
def test_chunks_add_up(num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = draw(np.random.default_rng(2), (23, 31), num_classes, 255)
    monkeypatch.setattr(metrics_module, "_CHUNK", {"cpu": 50})
    assert count(prediction, target, num_classes).matrix.tolist() == looped(prediction, target, num_classes, 255)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0, 2)])
def test_empty_images_count_nothing(shape: tuple[int, ...]) -> None:
    confusion = count(torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8), 3)
    assert confusion.matrix.tolist() == [[0] * 3] * 3


def test_a_scalar_is_counted() -> None:
    assert count(torch.tensor(1), torch.tensor(0), 2).matrix.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("num_classes", [8, 300])
@pytest.mark.parametrize(
    "layout", ["transposed", "strided", "flipped", "read-only", "big-endian", "tensor", "expanded"]
)
def test_memory_layout_does_not_matter(layout: str, num_classes: int) -> None:
    base = np.random.default_rng(3).integers(0, 8, (12, 16)).astype(np.int16)
    labels: Any = {
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "flipped": base[:, ::-1],
        "read-only": base,
        "big-endian": base.astype(">i2"),
        "tensor": torch.from_numpy(base)[::2].T,
        "expanded": torch.from_numpy(base)[:1].expand(12, 16),
    }[layout]
    if layout == "read-only":
        labels.flags.writeable = False
    contiguous = np.ascontiguousarray(np.asarray(labels).astype(np.int64))
    other = (contiguous + 1) % 8
    confusion = ConfusionMatrix(num_classes)
    confusion.update(labels, other)
    confusion.update(other, labels)
    expected = np.add(looped(contiguous, other, num_classes, 255), looped(other, contiguous, num_classes, 255))
    assert np.array_equal(confusion.matrix.numpy(), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("num_classes", [5, 300])
def test_inputs_are_not_modified(num_classes: int, dtype: str) -> None:
    prediction = torch.arange(5).to(getattr(torch, dtype)).repeat(4)
    target = prediction.flip(0)
    before = prediction.clone(), target.clone()
    ConfusionMatrix(num_classes, ignore_index=2).update(prediction, target)
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])


def test_large_counts_stay_exact() -> None:
    confusion = ConfusionMatrix(2)
    confusion.matrix[0, 0] = 2**53  # from here on, float64 does not have every integer
    confusion.update(torch.tensor([0]), torch.tensor([0]))
    assert int(confusion.matrix[0, 0]) == 2**53 + 1


def test_works_in_and_out_of_inference_mode() -> None:
    outside = ConfusionMatrix(2)
    boundary = BoundaryScore(2)
    with torch.inference_mode():
        inside = ConfusionMatrix(2)
        inside_boundary = BoundaryScore(2)
        labels = torch.tensor([[0, 1]])
        for confusion in (inside, outside):
            confusion.update(labels, labels)
        for score in (boundary, inside_boundary):
            score.update(labels, labels)
    inside.update(labels, labels)
    inside.merge(outside)
    inside_boundary.update(labels, labels)
    assert inside.matrix.tolist() == [[3, 0], [0, 3]]
    assert outside.matrix.tolist() == [[1, 0], [0, 1]]
    assert boundary.count.tolist() == [1, 1]
    assert inside_boundary.count.tolist() == [2, 2]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("num_classes", [19, 300])
def test_works_with_deterministic_algorithms(num_classes: int) -> None:
    prediction, target = draw(np.random.default_rng(4), (9, 9), num_classes, 255)
    assert count(prediction, target, num_classes).matrix.tolist() == looped(prediction, target, num_classes, 255)
    BoundaryScore(num_classes).update(prediction, target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("num_classes", [19, 300])
def test_cuda_and_cpu_agree(num_classes: int) -> None:
    prediction, target = draw(np.random.default_rng(5), (60, 80), num_classes, 255)
    confusion = ConfusionMatrix(num_classes, device="cuda")
    confusion.update(prediction, torch.from_numpy(target).cuda())
    assert confusion.matrix.is_cuda
    assert torch.equal(confusion.matrix.cpu(), count(prediction, target, num_classes).matrix)
    assert confusion.iou().device.type == "cpu"
    on_cpu, on_cuda = BoundaryScore(num_classes), BoundaryScore(num_classes, device="cuda")
    for score in (on_cpu, on_cuda):
        score.update(prediction, target)
    torch.testing.assert_close(on_cuda.per_class(), on_cpu.per_class(), rtol=0, atol=1e-12, equal_nan=True)


def test_merge_adds_and_keeps_the_other() -> None:
    first, second = count([0, 1], [0, 0], 2), count([1], [1], 2)
    state = first.matrix
    first.merge(second)
    assert first.matrix is state  # what was handed to an all-reduce stays the state
    assert first.matrix.tolist() == [[1, 1], [0, 1]]
    assert second.matrix.tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ValueError, match="3 classes into those of 2"):
        first.merge(ConfusionMatrix(3))
    with pytest.raises(ValueError, match="ignore_index 0 into those with 255"):
        first.merge(ConfusionMatrix(2, 0))


# --- invalid input


@pytest.mark.parametrize("kind", [ConfusionMatrix, BoundaryScore])
@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "19", True, 4097, 65536])
def test_an_invalid_num_classes_is_refused(kind: Any, num_classes: Any) -> None:
    with pytest.raises(ValueError, match=rf"num_classes must be an integer of 1 to 4096, got {num_classes!r}"):
        kind(num_classes)


@pytest.mark.parametrize("kind", [ConfusionMatrix, BoundaryScore])
@pytest.mark.parametrize("ignore_index", [255.0, "255", True, [255]])
def test_an_invalid_ignore_index_is_refused(kind: Any, ignore_index: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"ignore_index must be an integer or None, got {re.escape(repr(ignore_index))}"
    ):
        kind(2, ignore_index)


@pytest.mark.parametrize("kind", [ConfusionMatrix, BoundaryScore])
def test_numpy_integers_are_accepted(kind: Any) -> None:
    metric = kind(np.int64(3), np.uint8(2))
    assert (type(metric.num_classes), metric.num_classes) == (int, 3)
    assert (type(metric.ignore_index), metric.ignore_index) == (int, 2)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(2, 2),
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(2, 2, dtype=torch.uint64),
        np.zeros((2, 2)),
        np.zeros((2, 2), object),
        [[0, 0], [0, 0]],
    ],
    ids=lambda labels: str(getattr(labels, "dtype", "list")),
)
@pytest.mark.parametrize("which", ["prediction", "target"])
def test_what_holds_no_class_indices_is_refused(which: str, labels: Any) -> None:
    pair = {"prediction": torch.zeros(2, 2, dtype=torch.uint8), "target": torch.zeros(2, 2, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=rf"^{which} must be class indices.*logits\.argmax\(dim=1\)"):
        ConfusionMatrix(2).update(**(pair | {which: labels}))


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(4, 6\) and \(6, 4\)"):
        ConfusionMatrix(2).update(torch.zeros(4, 6, dtype=torch.uint8), torch.zeros(6, 4, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
@pytest.mark.parametrize(
    ("prediction", "target", "ignore_index", "message"),
    [
        ([0, 1, 2, 0], [0, 7, 7, 3], 255, r"target has .*: 3 \(1 pixel\), 7 \(2 pixels\); valid are 0\.\.2 and 255 "),
        ([0, 1, 2, 0], [0, 7, 7, 1], None, r"target has .*: 7 \(2 pixels\); valid are 0\.\.2; .*ignore_index"),
        ([0, 3, 9, 9], [0, 1, 1, 255], 255, r"prediction has .*: 3 \(1 pixel\), 9 \(1 pixel\); valid are 0\.\.2; "),
        ([3, 0, 0, 0], [3, 0, 0, 1], 255, r"^target"),
        (list(range(10, 18)), [0] * 8, 255, r": 10 \(1 pixel\), .*14 \(1 pixel\), 3 more values; "),
        # Both are 127 modulo 256, which is how torch compares bytes with numbers beyond them.
        ([0, 1], [0, 127], -129, r"127 \(1 pixel\); valid are 0\.\.2 and -129"),
        ([0, 1], [0, 127], 383, r"127 \(1 pixel\); valid are 0\.\.2 and 383"),
    ],
)
def test_invalid_values_are_named_and_nothing_is_counted(
    prediction: list[int], target: list[int], ignore_index: int | None, message: str, dtype: str
) -> None:
    confusion = ConfusionMatrix(3, ignore_index)
    confusion.matrix.fill_(5)
    pair = [torch.tensor(values).to(getattr(torch, dtype)) for values in (prediction, target)]
    with pytest.raises(ValueError, match=message):
        confusion.update(*pair)
    assert confusion.matrix.tolist() == [[5] * 3] * 3


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63 - 1, 256, 300, 2**32])
@pytest.mark.parametrize("num_classes", [3, 256])
def test_values_do_not_wrap_into_the_range(num_classes: int, value: int) -> None:
    confusion = ConfusionMatrix(num_classes)
    for prediction, target in (([0, value], [0, 0]), ([0, 0], [0, value])):
        with pytest.raises(ValueError, match=rf": {value} \(1 pixel\)"):
            confusion.update(torch.tensor(prediction), torch.tensor(target))
    assert not confusion.matrix.any()


@pytest.mark.parametrize("value", [3, 254, 255, -1, 1000, 2**62])
def test_any_prediction_is_allowed_at_ignored_pixels(value: int) -> None:
    assert count([1, value], [1, 255], 3).matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


# --- metrics


def test_metrics_computed_by_hand() -> None:
    confusion = count([0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 2], 4)
    assert confusion.iou().tolist() == pytest.approx([2 / 5, 1 / 3, 0, NAN], abs=1e-15, nan_ok=True)
    assert confusion.recall().tolist() == pytest.approx([2 / 3, 1 / 2, 0, NAN], abs=1e-15, nan_ok=True)
    assert confusion.precision().tolist() == pytest.approx([2 / 4, 1 / 2, NAN, NAN], abs=1e-15, nan_ok=True)
    assert confusion.miou() == pytest.approx((2 / 5 + 1 / 3 + 0) / 3, abs=1e-15)
    assert confusion.mean_accuracy() == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-15)
    assert confusion.pixel_accuracy() == 3 / 6
    assert confusion.frequency_weighted_iou() == pytest.approx((3 * 2 / 5 + 2 / 3) / 6, abs=1e-15)
    assert {values.dtype for values in (confusion.iou(), confusion.recall(), confusion.precision())} == {torch.float64}


def test_a_class_only_predicted_has_iou_zero() -> None:
    confusion = count([0, 1], [0, 0], 3)
    assert confusion.iou().tolist() == pytest.approx([1 / 2, 0, NAN], nan_ok=True)
    assert confusion.miou() == 1 / 4
    assert confusion.recall().tolist() == pytest.approx([1 / 2, NAN, NAN], nan_ok=True)
    assert confusion.mean_accuracy() == 1 / 2
    assert confusion.frequency_weighted_iou() == 1 / 2


def test_an_ignored_class_counts_where_it_is_predicted() -> None:
    confusion = count([0, 1, 1, 0], [0, 0, 1, 1], 2, ignore_index=0)
    assert confusion.matrix.tolist() == [[0, 0], [1, 1]]
    assert confusion.iou().tolist() == [0, 1 / 2]


@pytest.mark.parametrize("ignored", [True, False])
def test_nothing_counted_gives_nan(ignored: bool) -> None:
    confusion = count([0, 1], [255, 255], 2) if ignored else ConfusionMatrix(2)
    for values in (confusion.iou(), confusion.recall(), confusion.precision()):
        assert values.isnan().all()
    for value in (
        confusion.miou(),
        confusion.mean_accuracy(),
        confusion.pixel_accuracy(),
        confusion.frequency_weighted_iou(),
    ):
        assert isinstance(value, float)
        assert math.isnan(value)


@pytest.mark.parametrize("ignore_index", [255, 3, None])
@pytest.mark.parametrize("num_classes", [5, 19])
def test_torchmetrics_agrees(num_classes: int, ignore_index: int | None) -> None:
    theirs = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(6)
    options = {"num_classes": num_classes, "ignore_index": ignore_index, "validate_args": False}
    matrix, jaccard = theirs.MulticlassConfusionMatrix(**options), theirs.MulticlassJaccardIndex(**options)
    confusion = ConfusionMatrix(num_classes, ignore_index)
    for _ in range(3):
        prediction, target = draw(rng, (2, 30, 40), num_classes - 1, ignore_index)  # the last class is absent
        if ignore_index is not None:  # torchmetrics needs a class there too, and an ignored class is none
            prediction[target == ignore_index] = 0
        prediction[prediction == ignore_index] = 0
        confusion.update(prediction, target)
        for metric in (matrix, jaccard):
            metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
    assert torch.equal(matrix.compute(), confusion.matrix)
    counts = matrix.compute().double()
    iou = counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
    torch.testing.assert_close(confusion.iou(), iou, rtol=0, atol=1e-12, equal_nan=True)
    # Theirs divides in float32.
    assert confusion.miou() == pytest.approx(float(jaccard.compute()), abs=1e-6)


def test_the_cityscapes_evaluator_agrees(tmp_path: Path) -> None:
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    space = LABEL_SPACES["cityscapes19"]
    ids = np.array(space.official_ids, np.uint8)
    train_ids = np.full(256, 255, np.uint8)
    train_ids[ids] = np.arange(len(space))
    rng = np.random.default_rng(7)
    confusion, files = ConfusionMatrix(len(space)), []
    for index in range(3):
        target = rng.integers(0, 34, (24, 40)).astype(np.uint8)  # all official ids, with those that are ignored
        target[target == ids[16]] = 0  # one class is in the prediction alone,
        prediction = np.where(rng.random(target.shape) < 0.6, train_ids[target], rng.integers(0, 19, target.shape))
        prediction[prediction == 255] = 3
        target[target == ids[18]] = 0  # and one
        prediction[prediction == 18] = 0  # nowhere
        pair = tmp_path / f"pred_{index}.png", tmp_path / f"gt_{index}_labelIds.png"
        Image.fromarray(ids[prediction]).save(pair[0])
        Image.fromarray(target).save(pair[1])
        files.append([str(path) for path in pair])
        confusion.update(prediction, train_ids[target])
    args = copy.copy(official.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    predictions, targets = zip(*files, strict=True)
    result = official.evaluateImgLists(predictions, targets, args)
    theirs = [result["classScores"][name] for name in space.classes]
    assert confusion.iou().tolist() == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert confusion.miou() == pytest.approx(result["averageScoreClasses"], abs=1e-12)
    assert theirs[16] == 0
    assert math.isnan(theirs[18])
