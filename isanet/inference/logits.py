"""Maps of logits that are made a few rows at a time: resized, averaged over windows and views.

At full size logits may be far larger than the image (150 classes at 4000x3000: 7 GB), and there may be a dozen such
maps to average. What is kept of each map is what the network gave, a small part of it; rows are made when they are
needed, a band at a time, and become labels at once.

Shape legend: K classes, h and w of coarse logits (an eighth of the network's input, rounded up), H and W of a map of
logits that is to be resized.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isanet.config import LogitsResize
from isanet.model import resize_logits

# Bytes of full-size logits made at a time. On a processor what fits its cache is several times faster than all at once;
# on an accelerator fewer, larger steps are.
_BAND_BYTES = {"cpu": 8 << 20}
_BAND_BYTES_ELSEWHERE = 256 << 20


class Axis(NamedTuple):
    """Each position of an axis as a weighted average of `taps` coarse ones.

    Attributes:
        indices: (length, taps) int64, of coarse positions.
        weights: (length, taps), at least 0, of sum 1.
    """

    indices: Tensor
    weights: Tensor

    def at(self, positions: Tensor | slice) -> Axis:
        """The axis that has only these of the positions, in their order."""
        return Axis(self.indices[positions], self.weights[positions])


class Blend(NamedTuple):
    """A map that only resizes: each pixel is a weighted average of a few coarse logits.

    Attributes:
        coarse: (K, h, w).
        y: (H, taps), the coarse rows of each row.
        x: (W, taps), the coarse columns of each column.
    """

    coarse: Tensor
    y: Axis
    x: Axis


class LogitsMap(NamedTuple):
    """Logits of every class at every pixel, made a few rows at a time.

    Attributes:
        shape: (K, H, W).
        like: An empty tensor of the dtype and on the device of the logits.
        values_per_row: Values of each class that are computed for one row, at the step that needs most.
        rows: `rows(start, stop)` makes rows `start` to `stop - 1`: (K, stop - start, W).
        blend: The same map for single pixels; None if it averages windows.
    """

    shape: tuple[int, int, int]
    like: Tensor
    values_per_row: int
    rows: Callable[[int, int], Tensor]
    blend: Blend | None = None


def stored(logits_KHW: Tensor) -> LogitsMap:
    """A map that is in memory already."""
    K, H, W = logits_KHW.shape
    y, x = (Axis(torch.arange(size)[:, None], torch.ones(size, 1, dtype=logits_KHW.dtype)) for size in (H, W))
    blend = Blend(logits_KHW, y, x)
    return LogitsMap((K, H, W), logits_KHW.new_empty(0), 0, lambda start, stop: logits_KHW[:, start:stop], blend)


def resized(source: LogitsMap, size: tuple[int, int], how: LogitsResize) -> LogitsMap:
    """`isanet.model.resize_logits` of a map, up to rounding.

    Args:
        source: (K, H, W).
        size: (height, width) of the result.
        how: See `resize_logits`.
    """
    K, H, W = source.shape
    height, width = size
    if size == (H, W):
        return source
    # Columns are resized by `resize_logits`, rows are blended here
    above, shares = _positions(H, height, how, source.like.dtype)
    share = shares.to(source.like.device)[:, None]
    first_of: list[int] = above.tolist()  # the upper of the two source rows that a row is blended from

    def rows(start: int, stop: int) -> Tensor:
        first, last = first_of[start], min(first_of[stop - 1] + 1, H - 1)
        wide = resize_logits(source.rows(first, last + 1)[None], (last + 1 - first, width), how)[0]
        band = wide.new_empty(K, stop - start, width)
        row = start
        while row < stop:  # rows between the same two together: three times faster than gathering both for each
            end = min(stop, bisect_right(first_of, first_of[row]))
            upper, lower = first_of[row] - first, min(first_of[row] + 1, H - 1) - first
            torch.lerp(
                wide[:, upper, None], wide[:, lower, None], share[row:end], out=band[:, row - start : end - start]
            )
            row = end
        return band

    values_per_row = max(width, math.ceil(source.values_per_row * H / height))
    blend = source.blend and source.blend._replace(
        y=_resized_axis(source.blend.y, height, how), x=_resized_axis(source.blend.x, width, how)
    )
    return LogitsMap((K, height, width), source.like, values_per_row, rows, blend)


def _positions(length: int, target: int, how: LogitsResize, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each of `target` positions the nearest of `length` at or before it, and the share of the next one.

    As torch computes them (aten/src/ATen/native/UpSample.h), in the logits' precision too.
    """
    position = torch.arange(target, dtype=dtype)
    if how == "corners":
        position = position * ((length - 1) / max(target - 1, 1))
    elif how == "asymmetric":
        position = position * (length / target)
    else:
        position = ((position + 0.5) * (length / target) - 0.5).clamp(min=0)
    before = position.long().clamp(max=length - 1)
    return before, position - before


def _resized_axis(axis: Axis, target: int, how: LogitsResize) -> Axis:
    length = len(axis.indices)
    if target == length:
        return axis
    before, share = _positions(length, target, how, axis.weights.dtype)
    first, second, share = axis.at(before), axis.at((before + 1).clamp(max=length - 1)), share[:, None]
    return Axis(
        torch.cat([first.indices, second.indices], dim=1),
        torch.cat([first.weights * (1 - share), second.weights * share], dim=1),
    )


def cropped(source: LogitsMap, size: tuple[int, int]) -> LogitsMap:
    """The part of a map, (height, width), that begins at its top left."""
    K, H, W = source.shape
    if size == (H, W):
        return source
    y, x = (slice(length) for length in size)
    return LogitsMap(
        (K, *size),
        source.like,
        max(W, source.values_per_row),
        lambda start, stop: source.rows(start, stop)[..., x],
        source.blend and source.blend._replace(y=source.blend.y.at(y), x=source.blend.x.at(x)),
    )


def mirrored(source: LogitsMap) -> LogitsMap:
    """A map with left and right exchanged."""
    backward = torch.arange(source.shape[2]).flip(0)
    return source._replace(
        rows=lambda start, stop: source.rows(start, stop).flip(2),
        blend=source.blend and source.blend._replace(x=source.blend.x.at(backward)),
    )


def averaged(
    windows: Sequence[tuple[int, int, LogitsMap]], size: tuple[int, int], *, fade: tuple[int, int] = (0, 0)
) -> LogitsMap:
    """The average of overlapping windows, at each pixel over those that cover it.

    Args:
        windows: (top, left, map) of each; together they cover everything.
        size: (height, width) of the result.
        fade: Over so many pixels from its edges, (down, across), a window has less weight than in its middle, so that
            no seam shows where it ends; zero: all pixels have the same weight.
    """
    (K, _, _), like = windows[0][2].shape, windows[0][2].like

    def weight(length: int, over: int) -> Tensor:
        distances = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
        return torch.minimum(distances, distances.flip(0)).div_(over + 1).clamp_(max=1)

    def rows(start: int, stop: int) -> Tensor:
        total = like.new_zeros(K, stop - start, size[1])
        count = like.new_zeros(stop - start, size[1])
        for top, left, window in windows:
            first, last = max(start, top), min(stop, top + window.shape[1])
            if first < last:
                here = (slice(first - start, last - start), slice(left, left + window.shape[2]))
                down = weight(window.shape[1], fade[0])[first - top : last - top, None]
                share = down * weight(window.shape[2], fade[1])
                total[:, *here].addcmul_(window.rows(first - top, last - top), share)
                count[here] += share
        return total.div_(count)

    return LogitsMap((K, *size), like, size[1], rows)


def resized_bands(
    maps: Sequence[LogitsMap],
    size: tuple[int, int],
    how: LogitsResize,
    *,
    average_probabilities: bool = False,
    band_bytes: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """The average of maps, each resized to `size`, a band of rows at a time.

    Args:
        maps: One or more, of K classes each.
        size: (height, width) of the result.
        how: See `resized`.
        average_probabilities: Average the softmax of each map, not the logits.
        band_bytes: Size of a band; 0: what suits the device.

    Yields:
        The rows, and (K, rows, width) of averaged logits (or probabilities), of about `band_bytes`.
    """
    full = [resized(source, size, how) for source in maps]
    (K, height, _), like = full[0].shape, full[0].like
    band_bytes = band_bytes or _BAND_BYTES.get(like.device.type, _BAND_BYTES_ELSEWHERE)
    step = max(1, band_bytes // (like.element_size() * K * max(size[1], *(source.values_per_row for source in full))))
    for start in range(0, height, step):
        stop = min(start + step, height)
        parts = (source.rows(start, stop) for source in full)
        if average_probabilities:
            parts = (part.softmax(dim=0) for part in parts)
        band_KHW = next(parts)
        for part in parts:
            band_KHW = band_KHW + part  # not in place: it may be a part of a map in memory
        yield slice(start, stop), band_KHW if len(full) == 1 else band_KHW.div_(len(full))
