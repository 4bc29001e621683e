"""Inference: prepared images through a network by a protocol, and labels from what it says.

The one place for it: the segmenter and the evaluation differ only in what they do with labels.

Shape legend: N images, K classes, h and w of coarse logits (an eighth of the network's input, rounded up), H and W of
a map of logits that is to be resized.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet import protocols
from isanet.errors import IsanetError
from isanet.images.preprocess import preprocess
from isanet.images.reading import RGBImage
from isanet.protocols import Protocol

if TYPE_CHECKING:
    from isanet.inference.fast.optimize import FastISANet
    from isanet.model import ISANet

Prediction = tuple[Tensor, Tensor | None]
"""(H, W) labels, uint8 (int32 for more than 256 classes), and float32 probabilities of them, or None."""

log = logging.getLogger("isanet")

# Bytes of full-size logits made at a time. On a processor what fits its cache is several times faster than all at once;
# on an accelerator fewer, larger steps are.
_BAND_BYTES = {"cpu": 8 << 20}
_BAND_BYTES_ELSEWHERE = 256 << 20


# --- from images to labels


def prepare(
    image: RGBImage, preprocessing: Mapping[str, Any], protocol: str | Protocol = "whole"
) -> tuple[Tensor, ...]:
    """Image -> network inputs; for loader threads and processes.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocessing: Arguments of `isanet.images.preprocess.preprocess`.
        protocol: How the image will be put through the network.

    Returns:
        Tensors (3, h, w), float32, on the CPU: one for each scale where the protocol prepares images anew
        (mmsegmentation's arithmetic, both edges times the scale, rounded down), else a single one.

    Raises:
        ImageError: `image` is not a uint8 array (H, W, 3).
        ValueError: An unknown protocol, or what `preprocess` raises, say for an edge that a scale makes zero.
    """
    protocol = protocols.protocol(protocol)
    scales = protocol.scales if protocol.framework == "mmsegmentation" else (1,)
    edges = [{edge: int(preprocessing[edge] * scale) for edge in ("short_edge", "long_edge")} for scale in scales]
    return tuple(preprocess(image, **{**preprocessing, **scaled}) for scaled in edges)


@torch.no_grad()  # not inference_mode: labels may be worked on in place
def predict(
    model: ISANet | FastISANet,
    prepared: Sequence[tuple[Tensor, ...]],
    sizes: Sequence[tuple[int, int]],
    protocol: str | Protocol = "whole",
    *,
    precision: torch.dtype = torch.float32,
    keep: Sequence[int] | None = None,
    confidence: bool = False,
    batch_size: int | None = None,
) -> list[Prediction | None]:
    """Labels of images, at their own sizes.

    Images whose tensors have equal shapes go through the network together, others by themselves.

    Args:
        model: In evaluation mode, or what `isanet.inference.fast.optimize.optimize` made of one; the computation takes place on its
            device. An image that does not fit the latter's `max_memory` goes through in windows as large as fit, which
            overlap by a quarter and fade into each other.
        prepared: For each image what `prepare` made of it, by the same protocol.
        sizes: For each image its own (height, width), which its labels will have.
        protocol: A name in `isanet.protocols.PROTOCOLS`, or a `Protocol` of one's own.
        precision: float32, or bfloat16 or float16 by `torch.autocast`; an optimized network has its own. Labels are
            always made from float32 logits (float64 for a double model).
        keep: Only these classes can be predicted, as if the network had no others; labels are indices into the full
            list all the same. None: all.
        confidence: Also give the softmax probability of each label, among the classes kept.
        batch_size: At most so many tensors (whole images or windows) go through the network at once; as many as there
            are images if left out. Labels do not depend on it, but for rounding.

    Returns:
        For each image, in order, labels and probabilities on the model's device, or None where the network gave
        values that are not finite (see `not_finite`).

    Raises:
        ValueError: An unknown protocol, `keep` empty, repeated or out of range, `batch_size` below 1, or another number
            of tensors than the protocol has.
    """
    protocol = protocols.protocol(protocol)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    kept = None if keep is None else _kept(keep, len(model.classes)).to(_device(model))
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for index, tensors in enumerate(prepared):
        groups.setdefault(tuple(tensor.shape for tensor in tensors), []).append(index)
    results: list[Prediction | None] = [None] * len(prepared)
    for indices in groups.values():
        together = [prepared[index] for index in indices]
        seen = views(model, together, protocol, precision=precision, keep=kept, batch_size=batch_size)
        for index, maps in zip(indices, seen, strict=True):
            if maps is not None:
                results[index] = label_map(
                    maps,
                    sizes[index],
                    align_corners=model.align_corners,
                    average_probabilities=protocol.framework == "mmsegmentation",
                    keep=kept,
                    confidence=confidence,
                )
    return results


def not_finite(name: object, precision: str) -> IsanetError:
    """The error for an image of which `predict` gave None."""
    advice = (
        "its weights are damaged or not trained (isanet verify)"
        if precision == "float32"
        else "use precision='float32'"
    )
    return IsanetError(
        f"the network gave values that are not finite for {name}, computing in {precision}; no labels were made: "
        f"{advice}"
    )


def _kept(keep: Sequence[int], num_classes: int) -> Tensor:
    """The classes to keep, in the type that labels have."""
    if not keep or len(set(keep)) != len(keep) or not all(0 <= index < num_classes for index in keep):
        raise ValueError(
            f"keep must be different class indices of 0..{num_classes - 1}, at least one, got {list(keep)}"
        )
    return torch.tensor(list(keep), dtype=_label_type(num_classes))


def _label_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int32


def _device(model: ISANet | FastISANet) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


# --- what the network says of an image


class LogitsMap(NamedTuple):
    """Logits of every class at every pixel, made a few rows at a time.

    At full size they may be far larger than the image (150 classes at 4000x3000: 7 GB), and there may be a dozen such
    maps to average. What is kept of each is what the network gave, a small part of it.

    Attributes:
        shape: (K, H, W).
        like: An empty tensor of the type and on the device of the logits.
        values_per_row: Values of each class that come into being for one row, at the most crowded step.
        rows: `rows(start, stop)` makes rows `start` to `stop - 1`: (K, stop - start, W).
    """

    shape: tuple[int, int, int]
    like: Tensor
    values_per_row: int
    rows: Callable[[int, int], Tensor]


def stored(logits_KHW: Tensor) -> LogitsMap:
    """A map that is in memory whole."""
    K, H, W = logits_KHW.shape
    return LogitsMap((K, H, W), logits_KHW.new_empty(0), 0, lambda start, stop: logits_KHW[:, start:stop])


def resized(source: LogitsMap, size: tuple[int, int], *, align_corners: bool) -> LogitsMap:
    """`F.interpolate(source, size, mode="bilinear", align_corners=...)`, equal to it but for the last bits.

    Args:
        source: (K, H, W).
        size: (height, width) of the result.
        align_corners: As in `torch.nn.functional.interpolate`.
    """
    K, H, _ = source.shape
    height, width = size
    # Positions as torch computes them (aten/src/ATen/native/UpSample.h), in the logits' precision too: columns are left
    # to F.interpolate, rows are blended here.
    y = torch.arange(height, dtype=source.like.dtype)
    y = y * ((H - 1) / max(height - 1, 1)) if align_corners else ((y + 0.5) * (H / height) - 0.5).clamp(min=0)
    above = y.long().clamp(max=H - 1)
    share = (y - above).to(source.like.device)[:, None]
    first_of: list[int] = above.tolist()  # of the two source rows that a row is blended from

    def rows(start: int, stop: int) -> Tensor:
        first, last = first_of[start], min(first_of[stop - 1] + 1, H - 1)
        wide = F.interpolate(
            source.rows(first, last + 1)[None],
            size=(last + 1 - first, width),
            mode="bilinear",
            align_corners=align_corners,
        )[0]
        band = wide.new_empty(K, stop - start, width)
        row = start
        while row < stop:  # rows of the same two together: three times faster than gathering both for each
            end = min(stop, bisect_right(first_of, first_of[row]))
            upper, lower = first_of[row] - first, min(first_of[row] + 1, H - 1) - first
            torch.lerp(
                wide[:, upper, None], wide[:, lower, None], share[row:end], out=band[:, row - start : end - start]
            )
            row = end
        return band

    values_per_row = max(width, math.ceil(source.values_per_row * H / height))
    return LogitsMap((K, height, width), source.like, values_per_row, rows)


def averaged(
    windows: Sequence[tuple[int, int, LogitsMap]], size: tuple[int, int], *, fade: tuple[int, int] = (0, 0)
) -> LogitsMap:
    """The average of overlapping windows, at each pixel over those that cover it.

    Args:
        windows: (top, left, map) of each; together they cover everything.
        size: (height, width) of the result.
        fade: Over so many pixels from its edges, down and across, a window counts for less than in its middle, so that
            no seam shows where it ends; zero: all pixels count the same.
    """
    (K, _, _), like = windows[0][2].shape, windows[0][2].like

    def weight(length: int, over: int) -> Tensor:
        places = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
        return torch.minimum(places, places.flip(0)).div_(over + 1).clamp_(max=1)

    def rows(start: int, stop: int) -> Tensor:
        total = like.new_zeros(K, stop - start, size[1])
        count = like.new_zeros(stop - start, size[1])
        for top, left, window in windows:
            first, last = max(start, top), min(stop, top + window.shape[1])
            if first < last:
                here = (slice(first - start, last - start), slice(left, left + window.shape[2]))
                if fade == (0, 0):
                    total[:, *here] += window.rows(first - top, last - top)
                    count[here] += 1
                else:
                    down = weight(window.shape[1], fade[0])[first - top : last - top, None]
                    share = down * weight(window.shape[2], fade[1])
                    total[:, *here] += window.rows(first - top, last - top) * share
                    count[here] += share
        return total.div_(count)

    return LogitsMap((K, *size), like, size[1], rows)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every `stride` pixels, the last one shifted back inside.

    An image smaller than a window is a single, smaller one. Both frameworks count in this way.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride + window, size) - window, 0) for index in range(count)]


@torch.no_grad()
def views(
    model: ISANet | FastISANet,
    prepared: Sequence[tuple[Tensor, ...]],
    protocol: Protocol,
    *,
    precision: torch.dtype = torch.float32,
    keep: Tensor | None = None,
    batch_size: int | None = None,
) -> list[list[LogitsMap] | None]:
    """What the network says of images: a map for each scale, and for each mirrored one, turned back.

    Args:
        model: In evaluation mode.
        prepared: Of each image, as from `prepare`; shapes are the same for all images.
        protocol: Its windows, scales and flip apply.
        precision: See `predict`.
        keep: Indices of the only classes that maps will have.
        batch_size: See `predict`.

    Returns:
        For each image its maps, or None where the network gave values that are not finite. A map may have any size:
        coarse, or that of the prepared image. It is to be resized to the image's own.

    Raises:
        ValueError: Another number of tensors than the protocol has.
    """
    anew = protocol.framework == "mmsegmentation"
    if any(len(tensors) != (len(protocol.scales) if anew else 1) for tensors in prepared):
        raise ValueError(f"the images were not prepared for the protocol {protocol.name!r}; pass it to prepare() too")
    result: list[list[LogitsMap | None]] = [[] for _ in prepared]
    for step, scale in enumerate(protocol.scales):
        images = torch.stack([tensors[step if anew else 0] for tensors in prepared]).to(_device(model))
        if not anew and scale != 1:
            # By factor, not by size: where the size is rounded down, the two sample at different positions. A side that
            # would vanish stays as it is.
            factors = [float(scale) if int(side * scale) else 1.0 for side in images.shape[2:]]
            images = F.interpolate(images, scale_factor=factors, mode="bilinear", align_corners=model.align_corners)
        for flipped in (False, True) if protocol.flip else (False,):
            seen = _view(model, images, protocol, flipped, precision, keep, batch_size)
            for maps, one in zip(result, seen, strict=True):
                maps.append(one)
    return [None if None in maps else [one for one in maps if one is not None] for maps in result]


def _view(
    model: ISANet | FastISANet,
    images_N3HW: Tensor,
    protocol: Protocol,
    flipped: bool,
    precision: torch.dtype,
    keep: Tensor | None,
    batch_size: int | None,
) -> list[LogitsMap | None]:
    """A map of each image at one scale, seen mirrored or not; None where the network's values are not finite."""
    N, _, height, width = images_N3HW.shape
    window, (down, right), fade = (height, width), protocol.stride or (height, width), (0, 0)
    if protocol.window is not None:
        window = min(protocol.window[0], height), min(protocol.window[1], width)
    elif not _fits(model, 1, height, width):
        window = _largest_window(model, height, width)
        fade = window[0] // 4, window[1] // 4
        down, right = window[0] - fade[0], window[1] - fade[1]
        log.info(
            "an image of %d x %d takes more than max_memory: %d x %d pixels at a time", width, height, *window[::-1]
        )
    corners = [
        (top, left) for top in window_starts(height, window[0], down) for left in window_starts(width, window[1], right)
    ]
    images_N3HW = images_N3HW.flip(3) if flipped else images_N3HW
    windows: list[list[tuple[int, int, LogitsMap]]] = [[] for _ in range(N)]
    finite: list[list[Tensor]] = [[] for _ in range(N)]
    for (index, top, left), coarse_KHW in _coarse_logits(model, images_N3HW, corners, window, precision, batch_size):
        finite[index].append(torch.isfinite(coarse_KHW).all())
        if keep is not None:
            coarse_KHW = coarse_KHW.index_select(0, keep.long())
        if flipped:  # turned back while they are small: resizing and mirroring commute
            coarse_KHW, left = coarse_KHW.flip(2), width - left - window[1]
        windows[index].append((top, left, stored(coarse_KHW)))
    result: list[LogitsMap | None] = []
    for own, flags in zip(windows, finite, strict=True):
        if not bool(torch.stack(flags).all()):
            result.append(None)
        elif len(own) == 1 and protocol.window is None and protocol.framework == "sssegmentation":
            result.append(own[0][2])  # coarse, to be resized once
        else:
            full = [(top, left, resized(one, window, align_corners=model.align_corners)) for top, left, one in own]
            result.append(averaged(full, (height, width), fade=fade))
    return result


def _coarse_logits(
    model: ISANet | FastISANet,
    images_N3HW: Tensor,
    corners: Sequence[tuple[int, int]],
    window: tuple[int, int],
    precision: torch.dtype,
    batch_size: int | None,
) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
    """((image, top, left), (K, h, w) logits) of every window of every image, float32 (or float64)."""
    N = images_N3HW.shape[0]
    height, width = window
    crops = [(index, top, left) for top, left in corners for index in range(N)]
    # A model may have been made half or double, and a stand-in may have no weights at all
    dtype = next((parameter.dtype for parameter in model.parameters()), images_N3HW.dtype)
    step = batch_size or N
    while step > 1 and not _fits(model, step, height, width):
        step = (step + 1) // 2
    for start in range(0, len(crops), step):
        some = crops[start : start + step]
        batch = images_N3HW[start : start + step]  # whole images are taken as they lie, windows are copied together
        if window != images_N3HW.shape[2:]:
            batch = torch.stack([images_N3HW[i, :, top : top + height, left : left + width] for i, top, left in some])
        with torch.autocast(batch.device.type, dtype=precision, enabled=precision != torch.float32):
            coarse_NKHW = model.coarse_logits(batch.to(dtype))
        yield from zip(some, coarse_NKHW if coarse_NKHW.dtype == torch.float64 else coarse_NKHW.float(), strict=True)


def _fits(model: ISANet | FastISANet, N: int, height: int, width: int) -> bool:
    """Whether so many tensors of that size can go through together; of a network that cannot tell, yes."""
    from isanet.inference.fast.optimize import FastISANet

    return not isinstance(model, FastISANet) or model.fits((N, 3, height, width))


def _largest_window(model: ISANet | FastISANet, height: int, width: int) -> tuple[int, int]:
    """The largest part of the image, of its shape, that fits; in whole blocks of attention."""
    window = height, width
    while not _fits(model, 1, *window) and max(window) > 64:
        window = max(64, window[0] * 7 // 8 // 64 * 64), max(64, window[1] * 7 // 8 // 64 * 64)
    if not _fits(model, 1, *window):
        raise ValueError("max_memory is too small for even 64 x 64 pixels; it is in bytes, and a gigabyte is 2**30")
    return min(window[0], height), min(window[1], width)


# --- labels


def label_map(
    maps: Sequence[LogitsMap],
    size: tuple[int, int],
    *,
    align_corners: bool,
    average_probabilities: bool = False,
    keep: Tensor | None = None,
    confidence: bool = False,
    band_bytes: int = 0,
) -> Prediction:
    """Maps of logits -> label of every pixel: each resized to `size`, averaged, argmax; a band of rows at a time.

    Args:
        maps: One or more, finite, of K classes each.
        size: (height, width) of the image.
        align_corners: As in `torch.nn.functional.interpolate`.
        average_probabilities: Average the softmax of each map, not the logits.
        keep: (K,) what the labels 0, 1, ... are called in the result, which has its type; None: the same.
        confidence: Also give the softmax probability of the label.
        band_bytes: Size of a band of logits; 0: what suits the device.

    Returns:
        (height, width) labels on the device of the maps, uint8 (int32 for K > 256), and the same of float32
        probabilities, or None.
    """
    K, like = maps[0].shape[0], maps[0].like
    dtype = _label_type(K) if keep is None else keep.dtype
    labels = torch.empty(size, dtype=dtype, device=like.device)
    probabilities = torch.empty(size, device=like.device) if confidence else None
    for rows, band_KHW in resized_bands(
        maps, size, align_corners=align_corners, average_probabilities=average_probabilities, band_bytes=band_bytes
    ):
        highest, label = band_KHW.max(dim=0)
        labels[rows] = label.to(dtype) if keep is None else keep[label]
        if probabilities is not None:
            share = highest if average_probabilities else (highest - band_KHW.logsumexp(dim=0)).exp()
            probabilities[rows] = share.clamp(max=1)
    return labels, probabilities


def resized_bands(
    maps: Sequence[LogitsMap],
    size: tuple[int, int],
    *,
    align_corners: bool,
    average_probabilities: bool = False,
    band_bytes: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """The average of maps, each resized to `size`, a band of rows at a time; arguments as in `label_map`.

    Yields:
        The rows, and (K, rows, width) of averaged logits (or probabilities), of about `band_bytes`.
    """
    full = [resized(source, size, align_corners=align_corners) for source in maps]
    (K, height, _), like = full[0].shape, full[0].like
    band_bytes = band_bytes or _BAND_BYTES.get(like.device.type, _BAND_BYTES_ELSEWHERE)
    step = max(1, band_bytes // (like.element_size() * K * max(source.values_per_row for source in full)))
    for start in range(0, height, step):
        stop = min(start + step, height)
        parts = (source.rows(start, stop) for source in full)
        if average_probabilities:
            parts = (part.softmax(dim=0) for part in parts)
        band_KHW = next(parts)
        for part in parts:
            band_KHW += part
        yield slice(start, stop), band_KHW if len(full) == 1 else band_KHW.div_(len(full))
