"""The boundary F-score: how well a prediction meets the outlines of the classes, whatever their areas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isanet._text import percent_number, plural
from isanet.evaluation.metrics import ClassIndices, checked_classes, checked_pair, count_pairs, counted_pixels


class BoundaryScore:
    """Boundary F-score of each class, averaged over images.

    >>> score = isanet.metrics.BoundaryScore(11)
    >>> score.update(result.labels, result.labels)
    >>> score.mean()
    1.0

    Source, also of the default tolerance: Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic
    segmentation?, BMVC 2013. What the paper leaves open is defined here:

    * A pixel is on the boundary of its class if one of its four neighbors has another class. The image border is no
      boundary.
    * Pixels ignored in the ground truth are on no boundary and put none of their neighbors on one, also in the
      prediction, which is thus not judged where the ground truth is unknown.
    * Precision is the share of a class's predicted boundary pixels that have a ground-truth boundary pixel of the same
      class at a Euclidean distance of at most `tolerance` times the image's diagonal. The distance is not rounded:
      pixels at exactly that distance count, and below one pixel (a diagonal under 134 for 0.0075) only identical pixels
      do. Recall is the reverse. F = 2PR / (P + R), and 0 if one of the two has no boundary.
    * An image counts for the classes that have a boundary in its ground truth or its prediction; a class that fills
      the image has none.

    To sum over processes, all-reduce `total` and `count`.

    Args:
        num_classes: As for `isanet.metrics.ConfusionMatrix`.
        ignore_index: The same.
        tolerance: Fraction of the image's diagonal, 0 (identical pixels) to 1.
        device: Where boundaries are compared and the state is kept; needs float64.

    Attributes:
        total: (K,) float64 sums of the images' F-scores, on the device.
        count: (K,) int64 numbers of images in these sums, on the device.
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
        self.num_classes, self.ignore_index = checked_classes(num_classes, ignore_index)
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance is a fraction of the image's diagonal, 0..1, got {tolerance}")
        self.tolerance = tolerance
        with torch.inference_mode(False):  # inference tensors cannot be updated outside
            self.total = torch.zeros(self.num_classes, dtype=torch.float64, device=device)
            self.count = torch.zeros(self.num_classes, dtype=torch.int64, device=device)

    def __repr__(self) -> str:
        return f"BoundaryScore({plural(self.num_classes, 'class', 'classes')}, mean {percent_number(self.mean())} %)"

    def update(self, prediction: ClassIndices, target: ClassIndices) -> None:
        """Score one image.

        >>> score = isanet.metrics.BoundaryScore(2, tolerance=0)
        >>> score.update(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8))

        Args:
            prediction: (H, W) predicted classes, 0..K-1; any value at ignored pixels.
            target: (H, W) ground-truth classes, 0..K-1 or `ignore_index`.

        Raises:
            ValueError: A dtype, shape or value is not as above; the image does not count then.
        """
        prediction, target = checked_pair(prediction, target, self.total.device)
        if target.ndim != 2:
            raise ValueError(f"boundaries are scored image by image: expected (H, W), got {tuple(target.shape)}")
        count_pairs(prediction, target, self.num_classes, self.ignore_index)  # refuses values that are no class
        H, W = target.shape
        # Squared distances are integers; the small term keeps a tolerance of n pixels from being rounded below n
        reach2 = math.floor(self.tolerance**2 * (H**2 + W**2) + 1e-9)
        margin = math.isqrt(reach2)
        counted = counted_pixels(target, self.ignore_index)
        predicted = _boundary(prediction, counted, margin)
        true = _boundary(target, counted, margin)
        plane, stride = (H + 2 * margin) * (W + 2 * margin), W + 2 * margin
        precision, predicted_pixels = self._matched(predicted, _near(predicted, true, stride, reach2), plane)
        recall, true_pixels = self._matched(true, _near(true, predicted, stride, reach2), plane)
        self.total += (2 * precision * recall / (precision + recall)).nan_to_num(0)
        self.count += predicted_pixels + true_pixels > 0

    def per_class(self) -> Tensor:
        """Mean F-score of each class over the images that count for it: (K,), NaN without such images.

        >>> score = isanet.metrics.BoundaryScore(2)
        >>> score.update(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8))
        >>> score.per_class()
        tensor([1., 1.], dtype=torch.float64)
        """
        return self.total.cpu() / self.count.cpu()

    def mean(self) -> float:
        """Mean of `per_class` over the classes that have a score; NaN if no image counts.

        >>> isanet.metrics.BoundaryScore(2).mean()  # of no image
        nan
        """
        return float(self.per_class().nanmean())

    def _matched(self, keys: Tensor, near: Tensor, plane: int) -> tuple[Tensor, Tensor]:
        """For each class the near share of its boundary pixels (0 without any), and their number."""
        classes = keys // plane
        pixels = torch.bincount(classes, minlength=self.num_classes)
        return torch.bincount(classes[near], minlength=self.num_classes).double() / pixels.clamp(min=1), pixels


def _boundary(labels: Tensor, counted: Tensor, margin: int) -> Tensor:
    """Boundary pixels of all classes as sorted keys, one integer each; only among `counted` pixels.

    A key, int64, is a flat index into a stack of K planes of (H + 2 margin, W + 2 margin) pixels. The empty margin
    keeps runs of that length from wrapping into another row or class.
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
    """Which keys of `_boundary` have one of the others, in planes of width `stride`, within the root of `reach2`.

    A disk is a stack of horizontal runs. In each run, either the first of the sorted others at or after its start lies
    within it, or none does. So the cost grows with boundary pixels, not with pixels times classes.
    """
    near = torch.zeros_like(keys, dtype=torch.bool)
    others = torch.cat((others, others.new_tensor([torch.iinfo(torch.int64).max])))
    left = torch.arange(len(keys), device=keys.device)
    for dy in sorted(range(-math.isqrt(reach2), math.isqrt(reach2) + 1), key=abs):  # most are found in the first runs
        half = math.isqrt(reach2 - dy * dy)
        start = keys[left] + (dy * stride - half)
        found = others[torch.searchsorted(others, start)] <= start + 2 * half
        near[left[found]] = True
        left = left[~found]
    return near
