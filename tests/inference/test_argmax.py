"""Labels that are made without most of the logits are the argmax of all logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from isanet.config import LogitsResize
from isanet.inference import argmax as argmax_module
from isanet.inference.logits import LogitsMap, averaged, cropped, mirrored, resized, resized_bands, stored
from isanet.inference.predict import label_map
from tests.inference.test_logits import KINDS, rounding

SIZES = [((8, 12), (64, 96)), ((13, 15), (101, 117)), ((16, 21), (250, 38)), ((32, 32), (10, 11)), ((1, 1), (9, 5)),
         ((1, 32), (1, 500)), ((32, 1), (500, 1)), ((5, 7), (1, 1)), ((5, 7), (5, 7)), ((5, 7), (5, 20))]  # fmt: skip


def regions(K: int, h: int, w: int, seed: int = 0) -> Tensor:
    """(K, h, w) float64 logits of a few regions, with noise that decides between classes here and there."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(K, h, w, dtype=torch.float64, generator=generator)
    own = torch.randint(K, (h // 5 + 1, w // 5 + 1), generator=generator)
    own = own.repeat_interleave(5, dim=0).repeat_interleave(5, dim=1)[:h, :w]
    return logits.scatter_add_(0, own[None], torch.full((1, h, w), 3.0, dtype=torch.float64))


def all_logits(
    maps: Sequence[LogitsMap], size: tuple[int, int], how: LogitsResize, *, average_probabilities: bool = False
) -> Tensor:
    bands = resized_bands(maps, size, how, average_probabilities=average_probabilities)
    return torch.cat([band for _, band in bands], dim=1)


def short_of_the_highest(labels: Tensor, logits_KHW: Tensor) -> float:
    return float((logits_KHW.amax(dim=0) - logits_KHW.gather(0, labels.long()[None])[0]).max())


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize(("coarse", "size"), SIZES)
def test_labels_are_those_of_all_logits(coarse: tuple[int, int], size: tuple[int, int], how: LogitsResize) -> None:
    """A label's own logit, in float64, is below the highest by rounding at most.

    Of two logits that are each off by at most the error of a resize, the wrong one is taken only if they are closer
    than twice that. `rounding` bounds the difference of two resizes, and so the error of one. In float32 the
    reference is of the same float32 numbers.
    """
    for logits in (regions(7, *coarse), torch.randn(7, *coarse, generator=torch.Generator().manual_seed(1)) * 10):
        for dtype in (torch.float64, torch.float32):
            given = logits.to(dtype)
            labels, _ = label_map([stored(given)], size, how)
            assert labels.shape == size
            assert labels.dtype == torch.uint8
            reference = all_logits([stored(given.double())], size, how)
            assert short_of_the_highest(labels, reference) <= 2 * rounding(given)
            if dtype == torch.float64:
                assert torch.equal(labels, reference.argmax(dim=0).to(torch.uint8))


def test_exact_ties_go_to_the_first_class() -> None:
    """Small integers, and positions that are multiples of a sixteenth: nothing is rounded, and ties are everywhere."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for highest in (1, 2, 4):
            logits = torch.randint(highest, (6, 20, 30), generator=generator).to(dtype)
            labels, _ = label_map([stored(logits)], (160, 240), "half_pixel")
            expected = all_logits([stored(logits)], (160, 240), "half_pixel")
            first = (expected == expected.amax(dim=0)).int().argmax(dim=0)
            assert torch.equal(labels.long(), first)


@pytest.mark.parametrize("average_probabilities", [False, True])
@pytest.mark.parametrize("how", KINDS)
def test_labels_of_maps_that_are_resized_twice_cropped_mirrored_and_averaged(
    how: LogitsResize, average_probabilities: bool
) -> None:
    """The steps of every protocol; in float64, where logits that are drawn have no ties."""
    views = [
        cropped(resized(stored(regions(7, 12, 15)), (91, 118), how), (80, 110)),
        mirrored(resized(stored(regions(7, 12, 15).flip(2)), (91, 118), how)),
        mirrored(cropped(resized(resized(stored(regions(7, 9, 11)), (91, 118), how), (100, 140), how), (60, 77))),
    ]
    for size in ((150, 201), (80, 110), (33, 20)):
        for maps in ([views[0]], [views[1]], [views[2]], views):
            labels, _ = label_map(maps, size, "half_pixel", average_probabilities=average_probabilities)
            expected = all_logits(maps, size, "half_pixel", average_probabilities=average_probabilities)
            assert torch.equal(labels.long(), expected.argmax(dim=0))


@pytest.mark.parametrize("K", [1, 2, 255, 256, 257])
def test_every_class_can_be_the_label(K: int) -> None:
    logits = torch.zeros(K, 1, K, dtype=torch.float64)
    logits[range(K), 0, range(K)] = 1 + torch.arange(K, dtype=torch.float64) / K  # no ties between neighbors
    dtype = torch.uint8 if K <= 256 else torch.int32
    labels, _ = label_map([stored(logits)], (3, 4 * K), "half_pixel")
    expected = all_logits([stored(logits)], (3, 4 * K), "half_pixel").argmax(dim=0)
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), expected)
    assert set(labels.flatten().tolist()) == {*range(K)}
    keep = torch.arange(1000, 1000 + K, dtype=torch.int32)
    labels, _ = label_map([stored(logits)], (3, 4 * K), "half_pixel", keep=keep)
    assert labels.dtype == torch.int32
    assert torch.equal(labels.long(), expected + 1000)


def test_confidence_and_windows_change_no_label() -> None:
    logits = regions(7, 12, 20)
    labels, _ = label_map([stored(logits)], (96, 160), "half_pixel")
    again, confidence = label_map([stored(logits)], (96, 160), "half_pixel", confidence=True)
    assert torch.equal(again, labels)
    assert confidence is not None
    full = resized(stored(logits), (96, 160), "half_pixel")
    parts = [(0, left, stored(full.rows(0, 96)[:, :, left : left + 100])) for left in (0, 60)]
    assert torch.equal(label_map([averaged(parts, (96, 160))], (96, 160), "half_pixel")[0], labels)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All logits of pixels that are made."""
    result: list[Tensor] = []
    original = argmax_module._logits

    def spied(*arguments: Any) -> Tensor:
        result.append(original(*arguments))
        return result[-1]

    monkeypatch.setattr(argmax_module, "_logits", spied)
    return result


def test_only_pixels_between_coarse_positions_that_disagree_have_logits(made: list[Tensor]) -> None:
    logits = torch.zeros(5, 40, 60)
    logits[3] = 1
    logits[2, :, 30:] = 2
    labels, _ = label_map([stored(logits)], (320, 480), "half_pixel")
    assert sum(map(len, made)) == 320 * 8
    assert labels.unique(dim=0).shape == (1, 480)
    assert labels[0, 0] == 3
    assert labels[0, -1] == 2


def test_logits_are_made_a_few_at_a_time(made: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all coarse positions disagree: 65 MB of logits."""
    monkeypatch.setattr(argmax_module, "_BLOCK_PIXELS", 300 * 520)
    logits = torch.randn(60, 65, 64, generator=torch.Generator().manual_seed(0))
    labels, _ = label_map([stored(logits)], (520, 520), "half_pixel")
    assert sum(map(len, made)) > 0.9 * 520 * 520
    assert max(one.nbytes for one in made) <= 4 << 20
    reference = all_logits([stored(logits.double())], (520, 520), "half_pixel")
    assert short_of_the_highest(labels, reference) <= 2 * rounding(logits)
