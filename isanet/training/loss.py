"""The training loss: cross entropy of both heads, optionally on hard pixels only (OHEM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet._text import listed
from isanet.labels import IGNORED


@dataclass(frozen=True)
class OHEM:
    """Online hard example mining: pixels that the model already predicts confidently are left out of the loss.

    >>> isanet.Recipe(ohem=isanet.training.OHEM(threshold=0.9)).ohem.min_kept
    100000

    Attributes:
        threshold: Pixels count whose true class has a probability below this, 0..1.
        min_kept: At least this many pixels per image count, averaged over the batch: the least probable ones.

    Raises:
        ValueError: A value is out of range.

    Source: Shrivastava et al., CVPR 2016; for pixels, with these defaults, mmsegmentation's `OHEMPixelSampler`.
    """

    threshold: float = 0.7
    min_kept: int = 100_000

    def __post_init__(self) -> None:
        threshold, min_kept = self.threshold, self.min_kept
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
            raise ValueError(f"ohem.threshold must be a probability above 0, got {threshold!r}")
        if isinstance(min_kept, bool) or not isinstance(min_kept, int) or min_kept < 0:
            raise ValueError(f"ohem.min_kept must be a number of pixels, got {min_kept!r}")


def segmentation_loss(
    logits: Tensor,
    aux: Tensor | None,
    target: Tensor,
    *,
    aux_weight: float = 0.4,
    ignore_index: int = IGNORED,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    ohem: OHEM | None = None,
) -> Tensor:
    """Cross entropy of the main head plus `aux_weight` times that of the auxiliary head, each averaged over pixels.

    Half-precision logits are converted to float32 first. A batch in which every pixel is ignored gives 0, with zero
    gradients.

    >>> loss = isanet.training.segmentation_loss(*model(images, aux=True), masks)
    >>> loss.backward()

    Args:
        logits: (N, K, H, W), floating point, as `model(images, aux=True)` returns them.
        aux: The auxiliary head's logits, of the same shape; None for a loss without it.
        target: (N, H, W), class indices of any integer type, 0..K-1 or `ignore_index`.
        aux_weight: Weight of the auxiliary head's loss.
        ignore_index: Value of pixels that are ignored.
        class_weights: K weights, 0 or more; the mean is then weighted, as in `torch.nn.CrossEntropyLoss`.
        label_smoothing: Share of the target, 0..1, that is spread over all classes.
        ohem: Which pixels count for the main head; None for all. All pixels count for the auxiliary head.

    Returns:
        The loss, a scalar, float32 or float64.

    Raises:
        ValueError: Shapes or types do not match, or the target holds another value.

    Source: upstream's losses; `aux_weight` is the weight of its auxiliary head.
    """
    if logits.ndim != 4 or not logits.is_floating_point() or (aux is not None and aux.shape != logits.shape):
        raise ValueError(
            f"logits must be floating-point (N, K, H, W), both heads' alike; got {_described(logits)}"
            + (f" and {_described(aux)}" if aux is not None else "")
        )
    N, K, H, W = logits.shape
    if target.shape != (N, H, W) or target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise ValueError(f"the target must be integers of shape {(N, H, W)}, like the logits; got {_described(target)}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = _class_weights(class_weights, K, dtype, logits.device)
    target = target.long()  # cross_entropy takes nothing else on every device
    stray = (target != ignore_index) & ((target < 0) | (target >= K))
    if stray.any():  # on a GPU cross_entropy would make CUDA unusable for this process
        raise ValueError(
            f"the target holds {listed(torch.unique(target[stray]).tolist(), 5)}: "
            f"neither one of {K} classes nor ignore_index, {ignore_index}; isanet check-masks says which file has it"
        )

    def mean(logits: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits, target, weights, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
        )
        total = _total_weight(target, weights, ignore_index)
        return losses.sum() / torch.where(total > 0, total, 1)

    logits = logits.to(dtype)
    loss = mean(logits, target if ohem is None else _hard_target(logits, target, ignore_index, ohem))
    return loss if aux is None else loss + aux_weight * mean(aux.to(dtype), target)


def loss_weight(
    target: Tensor, num_classes: int, class_weights: Sequence[float] | Tensor | None = None, ignore_index: int = IGNORED
) -> Tensor:
    """The denominator of `segmentation_loss`: the number of pixels that count, or the sum of their classes' weights.

    Use it to combine the losses of parts of a batch (gradient accumulation, several processes): each part's loss times
    its weight, over the sum of the weights, gives the loss of the whole batch. With OHEM this is approximate, because
    hard pixels are chosen within each part.

    >>> isanet.training.loss_weight(masks, len(model.classes)) == masks.numel()
    tensor(True)

    Args:
        target: (N, H, W), class indices of any integer type, and `ignore_index`.
        num_classes: K.
        class_weights: See `segmentation_loss`.
        ignore_index: See `segmentation_loss`.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: `class_weights` are not K numbers of 0 or more.
    """
    weights = _class_weights(class_weights, num_classes, torch.float32, target.device)
    return _total_weight(target.long(), weights, ignore_index).float()


def _total_weight(target: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    counted = target != ignore_index
    return counted.sum() if weights is None else (weights[target.clamp(0, len(weights) - 1)] * counted).sum()


def _class_weights(
    values: Sequence[float] | Tensor | None, num_classes: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    if values is None:
        return None
    weights = torch.as_tensor(values, dtype=dtype, device=device)
    if weights.shape != (num_classes,) or not (weights >= 0).all():
        raise ValueError(f"class_weights must be {num_classes} numbers of 0 or more, got {values}")
    return weights


@torch.no_grad()
def _hard_target(logits: Tensor, target: Tensor, ignore_index: int, ohem: OHEM) -> Tensor:
    """The target with pixels ignored that are predicted confidently."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    probability = torch.exp(-losses)
    probability[target == ignore_index] = 2.0  # sorted after all others
    kept = probability < ohem.threshold
    if wanted := min(len(target) * ohem.min_kept, probability.numel()):
        kept |= probability <= probability.flatten().sort().values[wanted - 1]  # kthvalue is not deterministic on CUDA
    return torch.where(kept, target, ignore_index)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
