"""Maps of logits that are made a band of rows at a time equal those that are made at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isanet.config import LogitsResize
from isanet.inference.logits import LogitsMap, averaged, cropped, mirrored, resized, resized_bands, stored
from isanet.model import resize_logits

KINDS: list[LogitsResize] = ["half_pixel", "corners", "asymmetric"]


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize(
    ("coarse", "size"),
    [((8, 12), (64, 96)), ((64, 86), (1000, 150)), ((13, 15), (101, 117)), ((64, 64), (20, 20)), ((1, 1), (9, 5)),
     ((1, 32), (1, 500)), ((32, 1), (500, 1)), ((5, 7), (1, 1)), ((128, 3), (9001, 5))],
)  # fmt: skip
def test_bands_equal_the_whole(coarse: tuple[int, int], size: tuple[int, int], how: LogitsResize) -> None:
    logits = torch.randn(6, *coarse, generator=torch.Generator().manual_seed(0)) * 10
    for dtype, heights in ((torch.float32, (1, 7, 10**6)), (torch.float64, (10**6,))):
        logits = logits.to(dtype)
        bound = rounding(logits)
        whole = resize_logits(logits[None], size, how)[0]
        for rows_per_band in heights:
            band_bytes = logits.element_size() * 6 * size[1] * rows_per_band
            bands = list(resized_bands([stored(logits)], size, how, band_bytes=band_bytes))
            assert [row for rows, _ in bands for row in range(size[0])[rows]] == list(range(size[0]))
            together = torch.cat([band for _, band in bands], dim=1)
            assert (together - whole).abs().max() <= bound


def rounding(logits_KHW: Tensor) -> float:
    """How much two bilinear resizings of the same logits may differ by rounding alone, in their precision.

    A position in the source is (i + 0.5) * scale - 0.5, which rounds twice, or once by fused multiply-add. With these
    three roundings of half the spacing of numbers each, two ways differ by at most 1.5 spacings at the largest
    position. So far apart, values differ by as much of the largest difference between neighbors.

    Blending, in half epsilons of the largest value M: `(1 - w) a + w b` errs by 2.5 at most. `1 - w` is exact where w
    is above a half, and off by half of one elsewhere; products and sum each add one. `F.interpolate` blends twice: 5.
    Ours blends once so, and once by `lerp`, which is `a + w (b - a)` from the nearer end, so that w is at most a half:
    the difference (at most 2 M) and its product add one each, the sum one: 3, together 5.5. The two ways thus differ
    by at most 10.5 half epsilons, and by products of roundings, for which another half is allowed: 5.5 epsilons.
    """
    eps, bound = torch.finfo(logits_KHW.dtype).eps, 0.0
    for dim in (1, 2):
        last = logits_KHW.shape[dim] - 1
        if last:
            spacing = eps * 2.0 ** math.floor(math.log2(last))
            bound += 1.5 * spacing * float(logits_KHW.diff(dim=dim).abs().max())
    return bound + 5.5 * eps * float(logits_KHW.abs().max())


def test_bands_bound_the_memory() -> None:
    """60 classes at 1500x1500 are 540 MB of logits; what one band takes is a small part of that."""
    bands = resized_bands([stored(torch.randn(60, 8, 8))], (1500, 1500), "half_pixel")
    assert max(band.nbytes for _, band in bands) <= 8 << 20


def test_bands_bound_the_memory_of_the_steps_between_too() -> None:
    """A thumbnail that is prepared at a much larger size."""
    taken: list[int] = []

    def spied(source: LogitsMap) -> LogitsMap:
        def rows(start: int, stop: int) -> Tensor:
            result = source.rows(start, stop)
            taken.append(result.nbytes)
            return result

        return source._replace(rows=rows)

    prepared = resized(stored(torch.randn(10, 60, 60)), (480, 480), "half_pixel")
    for between in (prepared, averaged([(0, 0, prepared)], (480, 480))):
        taken.clear()
        bands = resized_bands([spied(between)], (24, 24), "half_pixel", band_bytes=10 * 4 * 480 * 60)
        assert len(list(bands)) == len(taken) == 8  # 3 rows, made of 60
        assert max(taken) <= 10 * 4 * 480 * 62


def test_a_map_is_mirrored_and_cropped_where_it_is_asked_to_be() -> None:
    logits = torch.randn(3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for how in KINDS:
        whole = resize_logits(logits[None], (31, 50), how)[0]
        part = cropped(mirrored(resized(stored(logits), (31, 50), how)), (20, 41))
        assert part.shape == (3, 20, 41)
        assert part.values_per_row >= 50  # of the step that makes a row, not of what is left of it
        torch.testing.assert_close(part.rows(3, 18), whole.flip(2)[:, 3:18, :41], rtol=0, atol=1e-13)


def test_maps_in_memory_are_not_changed_by_an_average() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    ((_, band),) = resized_bands([stored(one) for one in logits], (4, 5), "half_pixel")
    torch.testing.assert_close(band, before.mean(dim=0))
    assert torch.equal(logits, before)


def test_fading_windows_of_one_map_give_the_map() -> None:
    logits = torch.randn(3, 20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pieces = [
        (top, left, stored(logits[:, top : top + 12, left : left + 16])) for top in (0, 8) for left in (0, 10, 14)
    ]
    given = averaged(pieces, (20, 30), fade=(4, 5)).rows(0, 20)
    torch.testing.assert_close(given, logits, rtol=1e-12, atol=1e-12)
