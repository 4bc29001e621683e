"""Prediction: prepared images through a network by a protocol, and labels from its logits.

The one place for it: the segmenter and the evaluation differ only in what they do with labels.

Shape legend: N images, K classes, h and w of coarse logits (an eighth of the network's input, rounded up).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet import protocols
from isanet.config import LogitsResize
from isanet.errors import IsanetError
from isanet.images.preprocess import content_size, preprocess, scaled
from isanet.images.reading import RGBImage, check_array
from isanet.inference.argmax import argmax
from isanet.inference.logits import LogitsMap, averaged, cropped, mirrored, resized, resized_bands, stored
from isanet.inference.network import Network
from isanet.protocols import Protocol

Prediction = tuple[Tensor, Tensor | None]
"""(H, W) labels, uint8 (int32 for more than 256 classes), and their float32 probabilities, or None."""

log = logging.getLogger("isanet")


# --- from images to labels


class Prepared(NamedTuple):
    """An image, ready for the network.

    Attributes:
        size: Its own (height, width), which its labels will have.
        tensors: (3, h, w) each, float32, on the CPU: one for each scale where the protocol resizes the image itself
            (mmsegmentation's arithmetic, both edges times the scale, rounded down), else a single one.
        contents: For each tensor the (height, width) of its top left part that is the image; empty if images are not
            padded.
    """

    size: tuple[int, int]
    tensors: tuple[Tensor, ...]
    contents: tuple[tuple[int, int], ...]

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of the tensors; images of equal shapes can go through the network together."""
        return tuple(tensor.shape for tensor in self.tensors)


def prepare(image: RGBImage, preprocessing: Mapping[str, Any], protocol: str | Protocol = "whole") -> Prepared:
    """Turn an image into network inputs; cheap to call in loader threads and processes.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocessing: Arguments of `isanet.images.preprocess.preprocess`.
        protocol: The one that `predict` will follow.

    Raises:
        ImageError: `image` is not a uint8 array (H, W, 3).
        ValueError: An unknown protocol, or an argument that `preprocess` refuses.
    """
    protocol = protocols.protocol(protocol)
    check_array(image, None)
    size = image.shape[0], image.shape[1]
    scales = protocol.scales if protocol.framework == "mmsegmentation" else (1,)
    each = [scaled(preprocessing, scale, size) for scale in scales]
    tensors = tuple(preprocess(image, **arguments) for arguments in each)
    padded = preprocessing.get("pad_to") is not None
    return Prepared(size, tensors, tuple(content_size(*size, arguments) for arguments in each if padded))


@torch.no_grad()  # not inference_mode: labels may be worked on in place
def predict(
    network: Network,
    prepared: Sequence[Prepared],
    protocol: str | Protocol = "whole",
    *,
    keep: Sequence[int] | None = None,
    confidence: bool = False,
    batch_size: int | None = None,
) -> list[Prediction | None]:
    """Labels of images, at their own sizes.

    Images whose tensors have equal shapes go through the network together, others by themselves. An image that does
    not fit the network's memory limit goes through in windows as large as fit, which overlap by a quarter and fade
    into each other.

    Args:
        network: In evaluation mode; the computation takes place on its device. Labels are always made from float32
            logits (float64 for a double model), whatever its precision.
        prepared: For each image what `prepare` made of it, by the same protocol.
        protocol: A name in `isanet.protocols.PROTOCOLS`, or your own `Protocol`.
        keep: Only these classes can be predicted, as if the network had no others; labels are still indices into the
            full list. None: all.
        confidence: Also give the softmax probability of each label, among the classes kept.
        batch_size: At most so many tensors (whole images or windows) go through the network at once; as many as there
            are images if left out. Labels do not depend on it, up to rounding.

    Returns:
        For each image, in order, labels and probabilities on the network's device, or None if the network gave logits
        that are not finite (see `not_finite`).

    Raises:
        ValueError: An unknown protocol, `keep` empty, repeated or out of range, `batch_size` below 1, or another number
            of tensors than the protocol has.
    """
    protocol = protocols.protocol(protocol)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    kept = None if keep is None else _kept_classes(keep, len(network.classes)).to(network.device)
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for index, one in enumerate(prepared):
        groups.setdefault(one.shapes, []).append(index)
    results: list[Prediction | None] = [None] * len(prepared)
    for indices in groups.values():
        together = [prepared[index] for index in indices]
        all_maps = logits_maps(network, together, protocol, keep=kept, batch_size=batch_size)
        for index, maps in zip(indices, all_maps, strict=True):
            if maps is not None:
                results[index] = label_map(
                    maps,
                    prepared[index].size,
                    last_resize(network.logits_resize, protocol, padded=bool(prepared[index].contents)),
                    average_probabilities=protocol.framework == "mmsegmentation",
                    keep=kept,
                    confidence=confidence,
                )
    return results


def last_resize(how: LogitsResize, protocol: Protocol, *, padded: bool) -> LogitsResize:
    """How logits become as large as the image itself.

    As the image became as large as the network's input, pixel centers aligned; but networks that align corners do it
    here too, in the frameworks that resize logits in one step or in the same way twice.
    """
    corners = how == "corners" and protocol.framework != "paddleseg" and not padded
    return "corners" if corners else "half_pixel"


def not_finite(name: object, precision: str) -> IsanetError:
    """The error for an image for which `predict` gave None."""
    advice = (
        "its weights are damaged or not trained (isanet verify)"
        if precision == "float32"
        else "use precision='float32'"
    )
    return IsanetError(
        f"the network gave values that are not finite for {name}, computing in {precision}; no labels were made: "
        f"{advice}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or a device has said that there is not enough memory."""
    text = str(error).lower()
    # The last is oneDNN's, which does not say why: in a network that ran before, it is memory
    words = ("out of memory", "not enough memory", "can't allocate", "bad_alloc", "could not create a primitive")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in text for word in words))


def not_enough_memory(name: object) -> IsanetError:
    """The error for an image that takes more memory than there is."""
    return IsanetError(
        f"there is not enough memory for {name}; make it smaller, lower max_memory, or use another device"
    )


def _kept_classes(keep: Sequence[int], num_classes: int) -> Tensor:
    """The classes to keep, in the dtype of labels."""
    if not keep or len(set(keep)) != len(keep) or not all(0 <= index < num_classes for index in keep):
        raise ValueError(
            f"keep must be different class indices of 0..{num_classes - 1}, at least one, got {list(keep)}"
        )
    return torch.tensor(list(keep), dtype=_label_type(num_classes))


def _label_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int32


# --- logits by a protocol


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every `stride` pixels, the last one shifted back inside.

    An image smaller than a window is a single, smaller one. Both frameworks count in this way.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride + window, size) - window, 0) for index in range(count)]


@torch.no_grad()
def logits_maps(
    network: Network,
    prepared: Sequence[Prepared],
    protocol: Protocol,
    *,
    keep: Tensor | None = None,
    batch_size: int | None = None,
) -> list[list[LogitsMap] | None]:
    """Logits of images in every view of a protocol: one map for each scale, and for each mirrored one, turned back.

    Args:
        network: In evaluation mode.
        prepared: Of each image, as from `prepare`; shapes are the same for all images.
        protocol: Its windows, scales and flip apply.
        keep: Indices of the only classes that maps will have.
        batch_size: See `predict`.

    Returns:
        For each image its maps, or None if the network gave logits that are not finite. A map may have any size:
        coarse, or that of the prepared image, without its padding. It is to be resized to the image's own.

    Raises:
        ValueError: Another number of tensors than the protocol has.
    """
    by_scale = protocol.framework == "mmsegmentation"
    if any(len(one.tensors) != (len(protocol.scales) if by_scale else 1) for one in prepared):
        raise ValueError(f"the images were not prepared for the protocol {protocol.name!r}; pass it to prepare() too")
    at_once = protocol.framework == "sssegmentation" and not any(one.contents for one in prepared)
    at_once = at_once and network.logits_resize != "asymmetric"  # which is defined by the size of the input
    result: list[list[LogitsMap | None]] = [[] for _ in prepared]
    for step, scale in enumerate(protocol.scales):
        index = step if by_scale else 0
        tensors = [one.tensors[index] for one in prepared]
        images = (torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]).to(network.device)
        size = images.shape[2], images.shape[3]
        if not by_scale and scale != 1:
            images = _scaled(network, images, scale, protocol)
        for flipped in (False, True) if protocol.flip else (False,):
            views = _view(network, images, protocol, flipped, at_once, keep, batch_size)
            for maps, view, one in zip(result, views, prepared, strict=True):
                if view is not None and not at_once:
                    view = resized(view, size, "half_pixel")
                    view = cropped(view, one.contents[index]) if one.contents else view
                maps.append(view)
    return [None if None in maps else [view for view in maps if view is not None] for maps in result]


def _scaled(network: Network, images_N3HW: Tensor, scale: float, protocol: Protocol) -> Tensor:
    if protocol.framework == "paddleseg":
        sides = [max(1, int(side * scale + 0.5)) for side in images_N3HW.shape[2:]]
        return F.interpolate(images_N3HW, sides, mode="bilinear")
    # By factor, not by size: where the size is rounded down, the two sample at different positions. A side that would
    # vanish stays as it is.
    factors = [float(scale) if int(side * scale) else 1.0 for side in images_N3HW.shape[2:]]
    corners = network.logits_resize == "corners"
    return F.interpolate(images_N3HW, scale_factor=factors, mode="bilinear", align_corners=corners)


def _view(
    network: Network,
    images_N3HW: Tensor,
    protocol: Protocol,
    flipped: bool,
    at_once: bool,
    keep: Tensor | None,
    batch_size: int | None,
) -> list[LogitsMap | None]:
    """A map of each image at one scale, mirrored or not; None where logits are not finite.

    It has the size of the images, or with `at_once` is coarse where an image is not cut into windows.
    """
    N, _, height, width = images_N3HW.shape
    window, (down, right), fade = (height, width), protocol.stride or (height, width), (0, 0)
    if protocol.window is not None:
        window = min(protocol.window[0], height), min(protocol.window[1], width)
    elif not network.fits((1, 3, height, width)):
        window = _largest_window(network, height, width)
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
    for (index, top, left), coarse_KHW in _window_logits(network, images_N3HW, corners, window, batch_size):
        finite[index].append(torch.isfinite(coarse_KHW).all())
        if keep is not None:
            coarse_KHW = coarse_KHW.index_select(0, keep.long())
        windows[index].append((top, left, stored(coarse_KHW)))
    result: list[LogitsMap | None] = []
    for own, flags in zip(windows, finite, strict=True):
        if not bool(torch.stack(flags).all()):
            result.append(None)
            continue
        if at_once and len(own) == 1 and protocol.window is None:
            view = own[0][2]  # coarse, to be resized once
        else:
            full = [(top, left, resized(one, window, network.logits_resize)) for top, left, one in own]
            view = full[0][2] if len(full) == 1 else averaged(full, (height, width), fade=fade)
        result.append(mirrored(view) if flipped else view)
    return result


def _window_logits(
    network: Network,
    images_N3HW: Tensor,
    corners: Sequence[tuple[int, int]],
    window: tuple[int, int],
    batch_size: int | None,
) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
    """((image, top, left), (K, h, w) logits) of every window of every image."""
    N = images_N3HW.shape[0]
    height, width = window
    crops = [(index, top, left) for top, left in corners for index in range(N)]
    step = batch_size or N
    while step > 1 and not network.fits((step, 3, height, width)):
        step = (step + 1) // 2
    for start in range(0, len(crops), step):
        some = crops[start : start + step]
        batch = images_N3HW[start : start + step]  # whole images are taken as they lie, windows are copied together
        if window != images_N3HW.shape[2:]:
            batch = torch.stack([images_N3HW[i, :, top : top + height, left : left + width] for i, top, left in some])
        yield from zip(some, network.coarse_logits(batch), strict=True)


def _largest_window(network: Network, height: int, width: int) -> tuple[int, int]:
    """The largest part of the image, of its shape, that fits; in whole blocks of attention."""
    window = height, width
    while not network.fits((1, 3, *window)):
        if max(window) <= 64:
            raise ValueError("max_memory is too small for even 64 x 64 pixels; it is in bytes, and a gigabyte is 2**30")
        window = max(64, window[0] * 7 // 8 // 64 * 64), max(64, window[1] * 7 // 8 // 64 * 64)
    return min(window[0], height), min(window[1], width)


# --- labels


def label_map(
    maps: Sequence[LogitsMap],
    size: tuple[int, int],
    how: LogitsResize,
    *,
    average_probabilities: bool = False,
    keep: Tensor | None = None,
    confidence: bool = False,
) -> Prediction:
    """Label of every pixel: maps of logits resized to `size`, averaged, argmax; a band of rows at a time.

    On a processor, where labels alone are asked for and no windows are averaged, `isanet.inference.argmax` makes the
    same ones without most of the logits.

    Args:
        maps: One or more, finite, of K classes each.
        size: (height, width) of the image.
        how: See `isanet.model.resize_logits`.
        average_probabilities: Average the softmax of each map, not the logits.
        keep: (K,) the labels that stand for 0, 1, ... in the result, which has its dtype; None: the same.
        confidence: Also give the softmax probability of the label.

    Returns:
        (height, width) labels on the device of the maps, uint8 (int32 for K > 256), and the same of float32
        probabilities, or None.
    """
    K, like = maps[0].shape[0], maps[0].like
    average_probabilities &= confidence or len(maps) > 1  # of a single map, the order is the same
    dtype = _label_type(K) if keep is None else keep.dtype
    labels = torch.empty(size, dtype=dtype, device=like.device)
    probabilities = torch.empty(size, device=like.device) if confidence else None
    blends = [blend for source in maps if (blend := resized(source, size, how).blend) is not None]
    if len(blends) == len(maps) and not confidence and like.device.type == "cpu":
        for rows, label in argmax(blends, average_probabilities=average_probabilities):
            labels[rows] = label if keep is None else keep[label.int()]
        return labels, None
    for rows, band_KHW in resized_bands(maps, size, how, average_probabilities=average_probabilities):
        highest, label = band_KHW.max(dim=0)
        labels[rows] = label.to(dtype) if keep is None else keep[label]
        if probabilities is not None:
            share = highest if average_probabilities else (highest - band_KHW.logsumexp(dim=0)).exp()
            probabilities[rows] = share.clamp(max=1)
    return labels, probabilities
