"""The confusion matrix and the metrics derived from it; and how class indices are checked and counted.

State is a small integer tensor, updated image by image, that can be summed over processes. Metrics are fractions in
0..1, float64 on the CPU, and NaN where undefined.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet._text import percent_number, plural

ClassIndices = Tensor | NDArray[Any]
"""Class indices: bool (False is class 0, True is class 1) or any integer type but uint64; on any device."""

_DTYPES = {"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"}

_MAX_CLASSES = 4096  # a matrix of 128 MiB, and as much again while counting

# Pixels counted at a time: on a CPU, what fits its cache is the fastest; elsewhere this bounds memory.
_CHUNK = {"cpu": 1 << 19}
_CHUNK_ELSEWHERE = 1 << 24


class ConfusionMatrix:
    """Pixel counts by (ground truth, prediction), and the metrics derived from them.

    A class is absent if it is in neither ground truth nor prediction; it has no IoU (NaN) and does not enter means. To
    sum over processes, all-reduce `matrix`.

    >>> matrix = isanet.metrics.ConfusionMatrix(2)
    >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 255]))
    >>> matrix.miou()
    0.5

    Args:
        num_classes: K, 1 to 4096; the matrix is dense.
        ignore_index: Pixels with this ground truth are not counted, whatever the prediction. Any integer, negative or
            itself a class; None: all pixels count.
        device: Where pixels are counted and `matrix` is kept; inputs are moved there.

    Attributes:
        matrix: (K, K) int64 pixel counts on the device; rows ground truth, columns prediction.
        num_classes: As given.
        ignore_index: As given.

    Raises:
        ValueError: `num_classes` is not an integer in 1..4096, or `ignore_index` neither an integer nor None.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, device: str | torch.device = "cpu") -> None:
        self.num_classes, self.ignore_index = checked_classes(num_classes, ignore_index)
        with torch.inference_mode(False):  # inference tensors cannot be updated outside
            self.matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=device)

    def __repr__(self) -> str:
        pixels = plural(int(self.matrix.sum()), "pixel")
        classes = plural(self.num_classes, "class", "classes")
        return f"ConfusionMatrix({classes}, {pixels}, mIoU {percent_number(self.miou())} %)"

    def update(self, prediction: ClassIndices, target: ClassIndices) -> None:
        """Count the pixels of one or more images.

        >>> matrix = isanet.metrics.ConfusionMatrix(11)
        >>> matrix.update(model(images).argmax(dim=1), masks)

        Args:
            prediction: Predicted classes, 0..K-1; any value at ignored pixels.
            target: Ground-truth classes, 0..K-1 or `ignore_index`; any shape, the same as the prediction's.

        Raises:
            ValueError: A dtype, shape or value is not as above; nothing is counted then.
        """
        prediction, target = checked_pair(prediction, target, self.matrix.device)
        self.matrix += count_pairs(prediction, target, self.num_classes, self.ignore_index)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix, on any device.

        >>> one, other = isanet.metrics.ConfusionMatrix(2), isanet.metrics.ConfusionMatrix(2)
        >>> other.update(np.array([0, 1]), np.array([0, 0]))
        >>> one.merge(other)
        >>> one.pixel_accuracy()
        0.5

        Raises:
            ValueError: `num_classes` or `ignore_index` differ.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge counts of {other.num_classes} classes into those of {self.num_classes}")
        if other.ignore_index != self.ignore_index:
            raise ValueError(
                f"cannot merge counts with ignore_index {other.ignore_index} into those with {self.ignore_index}"
            )
        self.matrix += other.matrix.to(self.matrix.device)

    def iou(self) -> Tensor:
        """Intersection over union of each class: (K,), NaN for absent classes.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> matrix.iou()
        tensor([0.5000, 0.6667], dtype=torch.float64)
        """
        correct, target, predicted = self._sums()
        return correct / (target + predicted - correct)

    def miou(self) -> float:
        """Mean of `iou` over the classes that are not absent; NaN if nothing was counted.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> round(matrix.miou(), 4)
        0.5833
        """
        return float(self.iou().nanmean())

    def recall(self) -> Tensor:
        """Correct share of each class's ground-truth pixels, its "accuracy": (K,), NaN without ground truth.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> matrix.recall()
        tensor([0.5000, 1.0000], dtype=torch.float64)
        """
        correct, target, _ = self._sums()
        return correct / target

    def precision(self) -> Tensor:
        """Correct share of each class's predicted pixels: (K,), NaN for classes never predicted.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> matrix.precision()
        tensor([1.0000, 0.6667], dtype=torch.float64)
        """
        correct, _, predicted = self._sums()
        return correct / predicted

    def mean_accuracy(self) -> float:
        """Mean of `recall` over the classes in the ground truth; NaN if nothing was counted.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> matrix.mean_accuracy()
        0.75
        """
        return float(self.recall().nanmean())

    def pixel_accuracy(self) -> float:
        """Correct share of all counted pixels; NaN if nothing was counted.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> matrix.pixel_accuracy()
        0.75
        """
        correct, target, _ = self._sums()
        return float(correct.sum() / target.sum())

    def frequency_weighted_iou(self) -> float:
        """Mean of `iou` weighted by the classes' ground-truth pixels; NaN if nothing was counted.

        >>> matrix = isanet.metrics.ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
        >>> round(matrix.frequency_weighted_iou(), 4)
        0.5833
        """
        _, target, _ = self._sums()
        present = target > 0
        return float((target * self.iou())[present].sum() / target.sum())

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of each class that are correct, in the ground truth, and predicted; (K,) float64, exact integers."""
        matrix = self.matrix.cpu()  # not every device has float64
        return matrix.diagonal().double(), matrix.sum(dim=1).double(), matrix.sum(dim=0).double()


def checked_classes(num_classes: int, ignore_index: int | None) -> tuple[int, int | None]:
    """Both as Python's integers; a ValueError if they are not as `ConfusionMatrix` takes them."""
    number, ignored = _as_int(num_classes), _as_int(ignore_index)
    if number is None or not 1 <= number <= _MAX_CLASSES:
        raise ValueError(f"num_classes must be an integer of 1 to {_MAX_CLASSES}, got {num_classes!r}")
    if ignored is None and ignore_index is not None:
        raise ValueError(f"ignore_index must be an integer or None, got {ignore_index!r}")
    return number, ignored


def _as_int(value: object) -> int | None:
    """Any integer type's value as int; None for anything else, including bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def checked_pair(prediction: ClassIndices, target: ClassIndices, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as tensors on the device; a ValueError if one holds no class indices or the shapes differ."""
    predicted, true = _tensor("prediction", prediction, device), _tensor("target", target, device)
    if predicted.shape != true.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {tuple(predicted.shape)} and {tuple(true.shape)}"
        )
    return predicted, true


def _tensor(name: str, labels: ClassIndices, device: torch.device) -> Tensor:
    dtype = str(getattr(labels, "dtype", type(labels).__name__)).removeprefix("torch.")
    if isinstance(labels, np.ndarray):
        dtype = labels.dtype.name  # whatever the byte order
    if dtype not in _DTYPES:
        raise ValueError(
            f"{name} must be class indices, a tensor or array of one of {', '.join(sorted(_DTYPES))}, got {dtype}; "
            "for logits (N, K, H, W) pass logits.argmax(dim=1)"
        )
    if isinstance(labels, np.ndarray):
        # torch supports neither foreign byte orders nor negative strides, and warns about read-only arrays
        native = labels.astype(labels.dtype.newbyteorder("="), copy=False)
        labels = torch.from_numpy(np.require(native, None, ["C", "W"]))
    labels = labels.to(device)
    if labels.dtype == torch.bool:
        return labels.to(torch.uint8)
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32) else labels


def count_pairs(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """(K, K) int64 counts of (ground truth, prediction) over the pixels that are not ignored.

    All pairs are counted in a histogram with room for values that are no class. Ignored and invalid pixels are then
    read off the small histogram instead of the pixels: one pass over them, without boolean masks.

    Raises:
        ValueError: A pixel that is not ignored has a value that is no class.
    """
    prediction, target = prediction.flatten(), target.flatten()
    if not target.numel():
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=target.device)
    # Pairs of bytes fit 16 bits, and their histogram is small; the check costs 0.2 ms for 2 megapixels of uint8
    all_bytes = num_classes <= 256 and all(
        0 <= int(value) < 256 for labels in (prediction, target) for value in torch.aminmax(labels)
    )
    side, ignored = (256, ignore_index) if all_bytes else (num_classes + 2, num_classes)
    histogram = torch.zeros(side * side, dtype=torch.int64, device=target.device)
    step = _CHUNK.get(target.device.type, _CHUNK_ELSEWHERE)
    for predicted, true in zip(torch.split(prediction, step), torch.split(target, step), strict=True):
        if all_bytes:
            true = true.int()
        else:
            predicted = _folded(predicted, num_classes, None)
            true = _folded(true, num_classes, ignore_index)
        histogram += torch.bincount((true * side).add_(predicted), minlength=side * side)
    histogram = histogram.view(side, side)
    if ignored is not None and 0 <= ignored < side:
        histogram[ignored] = 0
    counts = histogram[:num_classes, :num_classes]
    if bool(counts.sum() != histogram.sum()):
        raise ValueError(_invalid_values(prediction, target, num_classes, ignore_index))
    return counts


def _folded(labels: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Class indices as int64: classes unchanged, K for ignored, K+1 for anything else."""
    labels = labels.long()  # uint8 tensors compare with numbers beyond their range modulo 256
    folded = labels.where((labels >= 0) & (labels < num_classes), num_classes + 1)
    return folded if ignore_index is None else folded.masked_fill_(labels == ignore_index, num_classes)


def counted_pixels(target: Tensor, ignore_index: int | None) -> Tensor:
    """Bool mask of the pixels that are not ignored."""
    if ignore_index is None or not torch.iinfo(target.dtype).min <= ignore_index <= torch.iinfo(target.dtype).max:
        return torch.ones_like(target, dtype=torch.bool)
    return target != ignore_index


def _invalid_values(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> str:
    """The message about values that are no class: the target's first, since they may explain the prediction's."""
    counted = counted_pixels(target, ignore_index)
    invalid = {
        name: labels[counted & (_folded(labels, num_classes, None) > num_classes)]
        for name, labels in (("target", target), ("prediction", prediction))
    }
    name, valid = "prediction", f"0..{num_classes - 1}"
    advice = "check that num_classes is that of the model"
    if invalid["target"].numel():
        name, valid = "target", valid if ignore_index is None else f"{valid} and {ignore_index} (ignore_index)"
        advice = "map the dataset's own values to class indices first, or pass the value to ignore as ignore_index"
    values, pixels = (found.tolist() for found in torch.unique(invalid[name], return_counts=True))
    named = [f"{value} ({plural(n, 'pixel')})" for value, n in zip(values, pixels, strict=True)]
    if len(named) > 5:
        named[5:] = [f"{len(named) - 5} more values"]
    return f"{name} has values that are no class: {', '.join(named)}; valid are {valid}; nothing was counted: {advice}"
