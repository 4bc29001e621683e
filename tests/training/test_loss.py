from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from isanet.training import (
    OHEM,
    segmentation_loss,
)


def batch(seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K, H, W) logits of two heads, and a target with some ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits, aux = torch.randn(2, 2, classes, 6, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, classes, (2, 6, 7), generator=generator)
    target[:, 0] = 255
    return logits.requires_grad_(), aux.requires_grad_(), target


def test_the_loss_is_the_mean_over_pixels_that_are_not_ignored() -> None:
    logits, aux, target = batch()
    main, other = (F.cross_entropy(x, target, ignore_index=255) for x in (logits, aux))
    torch.testing.assert_close(segmentation_loss(logits, aux, target), main + 0.4 * other)
    torch.testing.assert_close(segmentation_loss(logits, None, target), main)
    torch.testing.assert_close(segmentation_loss(logits, aux, target, aux_weight=1.5), main + 1.5 * other)
    by_hand = [
        -logits[n, :, y, x].log_softmax(0)[target[n, y, x]]
        for n in range(2)
        for y in range(6)
        for x in range(7)
        if target[n, y, x] != 255
    ]
    torch.testing.assert_close(main, torch.stack(by_hand).mean())


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.3, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_and_smoothing_equal_torchs(weights: list[float] | None, smoothing: float) -> None:
    logits, aux, target = batch()
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    main, other = (
        F.cross_entropy(x, target, tensor, ignore_index=255, label_smoothing=smoothing) for x in (logits, aux)
    )
    loss = segmentation_loss(logits, aux, target, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(loss, main + 0.4 * other)


@pytest.mark.parametrize(
    "arguments", [{}, {"class_weights": [1.0] * 5, "label_smoothing": 0.1}, {"ohem": OHEM(0.5, min_kept=4)}]
)
def test_an_ignored_batch_gives_zero_loss_and_zero_gradients(arguments: dict[str, Any]) -> None:
    logits, aux, target = batch()
    loss = segmentation_loss(logits, aux, torch.full_like(target, 255), **arguments)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()  # noqa: PT018
    assert aux.grad is not None and not aux.grad.any()  # noqa: PT018


def test_classes_of_zero_weight_give_zero_loss() -> None:
    logits, _, target = batch()
    loss = segmentation_loss(logits, None, target.clamp(max=0), class_weights=[0.0, 1.0, 1.0, 1.0, 1.0])
    assert loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_targets_may_have_any_integer_type(dtype: torch.dtype) -> None:
    logits, aux, target = batch()
    assert segmentation_loss(logits, aux, target.to(dtype)) == segmentation_loss(logits, aux, target)


def test_other_values_of_ignore_index() -> None:
    logits, aux, target = batch()
    expected = segmentation_loss(logits, aux, target)
    assert segmentation_loss(logits, aux, torch.where(target == 255, -1, target), ignore_index=-1) == expected
    one_of_the_classes = segmentation_loss(logits, None, target.clamp(max=4), ignore_index=4)
    torch.testing.assert_close(one_of_the_classes, F.cross_entropy(logits, target.clamp(max=4), ignore_index=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits, aux, target = batch()
    half, half_aux = logits.detach().to(dtype), aux.detach().to(dtype)
    loss = segmentation_loss(half, half_aux, target)
    assert loss.dtype == torch.float32
    assert loss == segmentation_loss(half.float(), half_aux.float(), target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, aux, target: (logits, aux, target.clamp(max=5)), "holds 5: neither one of 5 classes"),
        (lambda logits, aux, target: (logits, aux, target - 1), "-1, 254"),
        (lambda logits, aux, target: (logits, aux, target.float()), "must be integers"),
        (lambda logits, aux, target: (logits, aux, target > 0), "must be integers"),
        (lambda logits, aux, target: (logits, aux, target[:, 1:]), r"\(2, 6, 7\)"),
        (lambda logits, aux, target: (logits, aux, target[:, None]), r"\(2, 1, 6, 7\)"),
        (lambda logits, aux, target: (logits, aux[:, :4], target), "both heads"),
        (lambda logits, aux, target: (logits[0], None, target), "N, K, H, W"),
        (lambda logits, aux, target: (logits.long(), None, target), "int64"),
    ],
)
def test_wrong_shapes_and_values_are_errors(
    change: Callable[..., tuple[Tensor, Tensor | None, Tensor]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_loss(*change(*batch()))


@pytest.mark.parametrize("weights", [[1.0] * 4, [1.0, 1.0, 1.0, 1.0, -1.0], [math.nan] * 5])
def test_wrong_class_weights_are_errors(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="5 numbers of 0 or more"):
        segmentation_loss(*batch(), class_weights=weights)


def test_ohem_keeps_pixels_below_the_threshold_and_a_minimum() -> None:
    logits, aux, target = batch()
    losses = F.cross_entropy(logits, target, ignore_index=255, reduction="none")[target != 255]
    probability = torch.exp(-losses)
    hard = segmentation_loss(logits, None, target, ohem=OHEM(0.2, min_kept=0))
    assert 0 < (probability < 0.2).sum() < len(losses)
    torch.testing.assert_close(hard, losses[probability < 0.2].mean())
    at_least = segmentation_loss(logits, None, target, ohem=OHEM(1e-9, min_kept=10))  # of each of two images
    torch.testing.assert_close(at_least, losses.sort(descending=True).values[:20].mean())
    everything = segmentation_loss(logits, None, target, ohem=OHEM(1e-9, min_kept=10**6))
    torch.testing.assert_close(everything, losses.mean())
    assert segmentation_loss(logits, None, target, ohem=OHEM(1e-9, min_kept=0)).item() == 0
    both = segmentation_loss(logits, aux, target, ohem=OHEM(0.2, min_kept=0))  # all pixels count for the auxiliary head
    torch.testing.assert_close(both, hard + 0.4 * F.cross_entropy(aux, target, ignore_index=255))


def test_ohem_keeps_the_minimum_where_probabilities_are_equal() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    loss = segmentation_loss(torch.zeros(1, 5, 4, 4), None, target, ohem=OHEM(0.1, min_kept=3))
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))
