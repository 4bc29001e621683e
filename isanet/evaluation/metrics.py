"""Metrics of semantic segmentation: the confusion matrix and what follows from it, and the boundary F-score.

Both classes count image by image, need no image twice, and hold their state in small tensors that can be summed
over processes. Fractions are 0..1 and NaN where they are not defined; they are float64, on the CPU.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Labels = Tensor | NDArray[Any]
"""Class indices: bool (False is class 0, True is class 1) or any integer type but uint64; on any device."""

_DTYPES = {"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"}

_MAX_CLASSES = 4096  # a matrix of 128 MiB, and as much again while pixels are counted

# Pixels that are counted at a time. On a processor what fits its cache is the fastest; elsewhere this bounds memory.
_CHUNK = {"cpu": 1 << 19}
_CHUNK_ELSEWHERE = 1 << 24


class ConfusionMatrix:
    """Counts of pixels by (true class, predicted class), and the fractions made of them.

    A class is absent from a sum of images if neither truth nor prediction has it; it then has no IoU (NaN) and does
    not enter means. To sum over processes, all-reduce `matrix`.

    Args:
        num_classes: K, at most 4096: matrices are full.
        ignore_index: Pixels of this true value are not counted, whatever is predicted there. It may be any integer,
            negative or itself a class; None: all pixels count.
        device: Where pixels are counted and `matrix` is; labels are brought there.

    Attributes:
        matrix: (K, K) int64 counts on the device; rows are the truth, columns the prediction.
        num_classes: As given.
        ignore_index: As given.

    Raises:
        ValueError: `num_classes` is not an integer of 1 to 4096, or `ignore_index` neither one nor None.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, device: str | torch.device = "cpu") -> None:
        self.num_classes = _number_of_classes(num_classes)
        self.ignore_index = _index_to_ignore(ignore_index)
        with torch.inference_mode(False):  # what is made in inference mode could not be updated out of it
            self.matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Labels, target: Labels) -> None:
        """Count the pixels of one image or more.

        Args:
            prediction: Predicted classes, 0..K-1; any value on ignored pixels.
            target: True classes, 0..K-1 or `ignore_index`, of the same shape: any, empty too.

        Raises:
            ValueError: Types, shapes or values are not as above. Nothing is counted then.
        """
        prediction, target = _pair(prediction, target, self.matrix.device)
        self.matrix += _counts(prediction, target, self.num_classes, self.ignore_index)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix, on any device.

        Raises:
            ValueError: It is of another number of classes, or ignores another value.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge counts of {other.num_classes} classes into those of {self.num_classes}")
        if other.ignore_index != self.ignore_index:
            raise ValueError(
                f"cannot merge counts with ignore_index {other.ignore_index} into those with {self.ignore_index}"
            )
        self.matrix += other.matrix.to(self.matrix.device)

    def iou(self) -> Tensor:
        """Intersection over union: (K,), NaN for classes absent from both truth and prediction."""
        both, truth, predicted = self._sums()
        return both / (truth + predicted - both)

    def miou(self) -> float:
        """Mean of `iou` over the classes that have one; NaN if nothing was counted."""
        return float(self.iou().nanmean())

    def recall(self) -> Tensor:
        """Share of each true class that was found, its "accuracy": (K,), NaN for classes absent from the truth."""
        both, truth, _ = self._sums()
        return both / truth

    def precision(self) -> Tensor:
        """Share of each predicted class that is right: (K,), NaN for classes that were never predicted."""
        both, _, predicted = self._sums()
        return both / predicted

    def mean_accuracy(self) -> float:
        """Mean of `recall` over the classes of the truth; NaN if nothing was counted."""
        return float(self.recall().nanmean())

    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right; NaN if nothing was counted."""
        both, truth, _ = self._sums()
        return float(both.sum() / truth.sum())

    def frequency_weighted_iou(self) -> float:
        """Mean of `iou` over the classes of the truth, weighted by their pixels; NaN if nothing was counted."""
        _, truth, _ = self._sums()
        there = truth > 0
        return float((truth * self.iou())[there].sum() / truth.sum())

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels by class: right, in the truth, in the prediction. Integers: only quotients are rounded."""
        matrix = self.matrix.cpu()  # not every device has float64
        return matrix.diagonal().double(), matrix.sum(dim=1).double(), matrix.sum(dim=0).double()


class BoundaryScore:
    """Boundary F-score: how well the outlines of the classes are met, whatever their areas.

    Source: Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation?, BMVC 2013, from
    where the tolerance is too. What it leaves open is settled here:

    * A pixel is on the boundary of its class if one of its four neighbors has another class. The image's border is
      no boundary.
    * Pixels ignored in the truth are on no boundary, and make none of their neighbors: not in the prediction either,
      which is thus not judged where the truth is unknown.
    * Precision is the share of a class's boundary pixels in the prediction that have one of the truth, of the same
      class, at a Euclidean distance of at most `tolerance` times the image's diagonal, not rounded: pixels at exactly
      that distance count, and below one pixel (a diagonal under 134 for 0.0075) only the very same do. Recall is the
      reverse. F = 2PR / (P + R), and 0 if one of the two has no boundary.
    * An image counts for the classes that have a boundary in its truth or its prediction; one that fills the image
      has none.

    To sum over processes, all-reduce `total` and `count`.

    Args:
        num_classes: As for `ConfusionMatrix`.
        ignore_index: The same.
        tolerance: Fraction of the image's diagonal, 0 (the very same pixels) to 1.
        device: Where boundaries are compared and the state is, one that has float64.

    Attributes:
        total: (K,) float64 sums of the F-scores of the images, on the device.
        count: (K,) int64 numbers of these images, on the device.
        num_classes: As given.
        ignore_index: As given.
        tolerance: As given.

    Raises:
        ValueError: As for `ConfusionMatrix`, or `tolerance` is not in 0..1.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        tolerance: float = 0.0075,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_classes = _number_of_classes(num_classes)
        self.ignore_index = _index_to_ignore(ignore_index)
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance is a fraction of the image's diagonal, 0..1, got {tolerance}")
        self.tolerance = tolerance
        with torch.inference_mode(False):  # what is made in inference mode could not be updated out of it
            self.total = torch.zeros(self.num_classes, dtype=torch.float64, device=device)
            self.count = torch.zeros(self.num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Labels, target: Labels) -> None:
        """Score one image.

        Args:
            prediction: (H, W) predicted classes, 0..K-1; any value on ignored pixels.
            target: (H, W) true classes, 0..K-1 or `ignore_index`.

        Raises:
            ValueError: Types, shapes or values are not as above. The image does not count then.
        """
        prediction, target = _pair(prediction, target, self.total.device)
        if target.ndim != 2:
            raise ValueError(f"boundaries are scored by image: expected (H, W), got {tuple(target.shape)}")
        _counts(prediction, target, self.num_classes, self.ignore_index)  # refuses values that are no class
        H, W = target.shape
        # Squared distances are integers. The small addition keeps a tolerance of whole pixels whole in spite of
        # rounding.
        reach2 = math.floor(self.tolerance**2 * (H**2 + W**2) + 1e-9)
        margin = math.isqrt(reach2)
        counted = _counted(target, self.ignore_index)
        predicted = _boundary(prediction, counted, margin)
        true = _boundary(target, counted, margin)
        plane, stride = (H + 2 * margin) * (W + 2 * margin), W + 2 * margin
        precision, predicted_pixels = self._shares(predicted, _near(predicted, true, stride, reach2), plane)
        recall, true_pixels = self._shares(true, _near(true, predicted, stride, reach2), plane)
        self.total += (2 * precision * recall / (precision + recall)).nan_to_num(0)
        self.count += predicted_pixels + true_pixels > 0

    def per_class(self) -> Tensor:
        """Mean F-score of each class over the images that count for it: (K,), NaN if there is none."""
        return self.total.cpu() / self.count.cpu()

    def mean(self) -> float:
        """Mean of `per_class` over the classes that have one; NaN if no image counts."""
        return float(self.per_class().nanmean())

    def _shares(self, keys: Tensor, near: Tensor, plane: int) -> tuple[Tensor, Tensor]:
        """By class: the share of the boundary pixels that are near, 0 if there are none, and their number."""
        classes = keys // plane
        pixels = torch.bincount(classes, minlength=self.num_classes)
        return torch.bincount(classes[near], minlength=self.num_classes).double() / pixels.clamp(min=1), pixels


def _number_of_classes(value: int) -> int:
    number = _whole(value)
    if number is None or not 1 <= number <= _MAX_CLASSES:
        raise ValueError(f"num_classes must be an integer of 1 to {_MAX_CLASSES}, got {value!r}")
    return number


def _index_to_ignore(value: int | None) -> int | None:
    index = _whole(value)
    if index is None and value is not None:
        raise ValueError(f"ignore_index must be an integer or None, got {value!r}")
    return index


def _whole(value: object) -> int | None:
    """Any integer type's value as int; None for anything else, bool too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _pair(prediction: Labels, target: Labels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as tensors on the device, of types that torch computes with.

    Raises:
        ValueError: One is not made of class indices, or the shapes differ.
    """
    ours, truth = _tensor("prediction", prediction, device), _tensor("target", target, device)
    if ours.shape != truth.shape:
        raise ValueError(f"prediction and target must have one shape, got {tuple(ours.shape)} and {tuple(truth.shape)}")
    return ours, truth


def _tensor(name: str, labels: Labels, device: torch.device) -> Tensor:
    if isinstance(labels, np.ndarray):
        dtype: str = labels.dtype.name
    else:
        dtype = str(getattr(labels, "dtype", type(labels).__name__)).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(
            f"{name} must be class indices, a tensor or array of one of {', '.join(sorted(_DTYPES))}, got {dtype}; "
            "of logits (N, K, H, W) pass logits.argmax(dim=1)"
        )
    if isinstance(labels, np.ndarray):
        # torch knows neither foreign byte orders nor negative strides, and warns of arrays that are read-only.
        native = labels.astype(labels.dtype.newbyteorder("="), copy=False)
        labels = torch.from_numpy(np.require(native, None, ["C", "W"]))
    labels = labels.to(device)
    if labels.dtype == torch.bool:
        return labels.to(torch.uint8)
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32) else labels


def _counts(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """(K, K) int64 counts of the pairs (truth, prediction) of the pixels that are not ignored.

    All pairs are counted into a table that has room for values that are no class too. What is ignored and what is
    wrong is then read off the table, which is small, and not off the pixels: one pass over them, without masks.

    Args:
        prediction: As `_pair` gives it.
        target: The same.
        num_classes: K.
        ignore_index: As for `ConfusionMatrix`.

    Raises:
        ValueError: A pixel that is not ignored has a value that is no class.
    """
    prediction, target = prediction.flatten(), target.flatten()
    if not target.numel():
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=target.device)
    # Pairs of bytes fit 16 bits, and their table is small; this costs 0.2 ms for 2 megapixels of uint8.
    bytes_alone = num_classes <= 256 and all(
        0 <= int(value) < 256 for labels in (prediction, target) for value in torch.aminmax(labels)
    )
    side, ignored = (256, ignore_index) if bytes_alone else (num_classes + 2, num_classes)
    table = torch.zeros(side * side, dtype=torch.int64, device=target.device)
    step = _CHUNK.get(target.device.type, _CHUNK_ELSEWHERE)
    for ours, truth in zip(torch.split(prediction, step), torch.split(target, step), strict=True):
        if bytes_alone:
            truth = truth.int()
        else:
            ours, truth = _folded(ours, num_classes, None), _folded(truth, num_classes, ignore_index)
        table += torch.bincount((truth * side).add_(ours), minlength=side * side)
    table = table.view(side, side)
    if ignored is not None and 0 <= ignored < side:
        table[ignored] = 0
    counts = table[:num_classes, :num_classes]
    if bool(counts.sum() != table.sum()):
        raise ValueError(_wrong_values(prediction, target, num_classes, ignore_index))
    return counts


def _folded(labels: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Labels as int64: classes as they are, K for ignored, K+1 for anything else."""
    labels = labels.long()  # a uint8 tensor compares with a number beyond its range modulo 256
    folded = labels.where((labels >= 0) & (labels < num_classes), num_classes + 1)
    return folded if ignore_index is None else folded.masked_fill_(labels == ignore_index, num_classes)


def _counted(target: Tensor, ignore_index: int | None) -> Tensor:
    if ignore_index is None or not torch.iinfo(target.dtype).min <= ignore_index <= torch.iinfo(target.dtype).max:
        return torch.ones_like(target, dtype=torch.bool)
    return target != ignore_index


def _wrong_values(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> str:
    """What to say of values that are no class: those of the target first, which may be the cause of the others."""
    counted = _counted(target, ignore_index)
    classes = f"0..{num_classes - 1}"
    name, valid, advice = (
        "target",
        classes if ignore_index is None else f"{classes} and {ignore_index} (ignore_index)",
        "map the dataset's own values to class indices first, or pass the value to ignore as ignore_index",
    )
    wrong = target.long()[counted & (_folded(target, num_classes, None) > num_classes)]
    if not wrong.numel():
        name, valid, advice = "prediction", classes, "check that num_classes is that of the model"
        wrong = prediction.long()[counted & (_folded(prediction, num_classes, None) > num_classes)]
    values, pixels = (found.tolist() for found in torch.unique(wrong, return_counts=True))
    named = [f"{value} ({n} {'pixel' if n == 1 else 'pixels'})" for value, n in zip(values, pixels, strict=True)]
    if len(named) > 5:
        named[5:] = [f"{len(named) - 5} more values"]
    return f"{name} has values that are no class: {', '.join(named)}; valid are {valid}; nothing was counted: {advice}"


def _boundary(labels: Tensor, counted: Tensor, margin: int) -> Tensor:
    """Boundary pixels of all classes, one sorted number each.

    Args:
        labels: (H, W).
        counted: (H, W) bool; other pixels are on no boundary and make none.
        margin: Empty pixels to leave around the image, so that no run of that length wraps into another row or class.

    Returns:
        (n,) int64, ascending: positions in a stack of K planes, each of (H + 2 margin, W + 2 margin) pixels.
    """
    H, W = labels.shape
    edge = torch.zeros_like(counted)
    down = (labels[1:] != labels[:-1]) & counted[1:] & counted[:-1]
    across = (labels[:, 1:] != labels[:, :-1]) & counted[:, 1:] & counted[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    y, x = edge.nonzero(as_tuple=True)
    row = labels[y, x].long() * (H + 2 * margin) + y + margin
    return (row * (W + 2 * margin) + x + margin).sort().values


def _near(keys: Tensor, others: Tensor, stride: int, reach2: int) -> Tensor:
    """Which boundary pixels have one of the others within a distance.

    A disk is a stack of horizontal runs; in each, the first of the sorted others that is not before its start is
    either within the run or nothing is. So the cost is by boundary pixels, not by pixels and classes.

    Args:
        keys: (n,) from `_boundary`.
        others: (m,) from `_boundary` with the same margin.
        stride: Width of the planes, margins included.
        reach2: Square of the distance.

    Returns:
        (n,) bool.
    """
    near = torch.zeros_like(keys, dtype=torch.bool)
    others = torch.cat((others, others.new_tensor([torch.iinfo(torch.int64).max])))
    left = torch.arange(len(keys), device=keys.device)
    for dy in sorted(range(-math.isqrt(reach2), math.isqrt(reach2) + 1), key=abs):  # most are found in the first ones
        half = math.isqrt(reach2 - dy * dy)
        start = keys[left] + (dy * stride - half)
        found = others[torch.searchsorted(others, start)] <= start + 2 * half
        near[left[found]] = True
        left = left[~found]
    return near
