"""From an RGB image to the network's input, as upstream's test pipelines do it: resize like OpenCV, normalize, pad."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isanet.images.reading import RGBImage, check_array

log = logging.getLogger("isanet")

_told = set[tuple[int, ...]]()  # the sizes to which images were padded and that some did not fit, in this process

_EDGES = ("short_edge", "long_edge")


def target_size(height: int, width: int, *, short_edge: int, long_edge: int) -> tuple[int, int]:
    """The size to which upstream's test pipeline resizes an image.

    The largest scale at which the shorter side is at most `short_edge` and the longer at most `long_edge`, with the
    rounding of mmcv's `rescale_size` (`int(x + 0.5)`), which upstream uses.

    Args:
        height: Of the image, in pixels, >= 1.
        width: Of the image, in pixels, >= 1.
        short_edge: 512 for VOC and ADE20K, 1024 for Cityscapes.
        long_edge: 2048.

    Returns:
        (height, width), each at least 1: for extreme aspects, where the rule itself would give 0.

    Raises:
        ValueError: A size is below 1.
    """
    if min(height, width, short_edge, long_edge) < 1:
        raise ValueError(f"sizes must be at least 1, got {height}x{width} with edges {short_edge} and {long_edge}")
    scale = min(long_edge / max(height, width), short_edge / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def content_size(height: int, width: int, preprocessing: Mapping[str, Any]) -> tuple[int, int]:
    """The size of an image in the tensor that `preprocess` makes of it; what is right of it and below is padding.

    >>> content_size(375, 500, {"pad_to": (512, 512)}), content_size(1200, 1600, {"pad_to": (512, 512)})
    ((375, 500), (384, 512))

    Args:
        height: Of the image, in pixels, >= 1.
        width: Of the image, in pixels, >= 1.
        preprocessing: Arguments of `preprocess`.

    Returns:
        (height, width): by `target_size` if there are edges, and no larger than `pad_to`.

    Raises:
        ValueError: A size is below 1, or one edge is given without the other.
    """
    short_edge, long_edge, pad_to = map(preprocessing.get, (*_EDGES, "pad_to"))
    if (short_edge is None) != (long_edge is None):
        raise ValueError(f"short_edge and long_edge go together, got {short_edge} and {long_edge}")
    if short_edge is not None and long_edge is not None:
        height, width = target_size(height, width, short_edge=short_edge, long_edge=long_edge)
    if pad_to is not None and min(pad_to) < 1:
        raise ValueError(f"sizes must be at least 1, got pad_to {pad_to}")
    if pad_to is not None and (height > pad_to[0] or width > pad_to[1]):
        scale = min(pad_to[0] / height, pad_to[1] / width)
        height, width = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    return height, width


def scaled(preprocessing: Mapping[str, Any], scale: float, size: tuple[int, int]) -> dict[str, Any]:
    """The preprocessing by which an image of this size, and its padding, become `scale` times as large.

    >>> scaled({"short_edge": 512, "long_edge": 2048}, 0.75, (375, 500)), scaled({}, 0.75, (375, 500))
    ({'short_edge': 384, 'long_edge': 1536}, {'short_edge': 281, 'long_edge': 375})

    Args:
        preprocessing: Arguments of `preprocess`.
        scale: Above 0; sides are rounded down, as in mmsegmentation, but not to 0.
        size: (height, width) of the image; without edges, it is resized by its own.
    """
    if scale == 1:
        return dict(preprocessing)
    content = content_size(*size, preprocessing)
    edges = [preprocessing.get(name) or side for name, side in zip(_EDGES, sorted(content), strict=True)]
    sides: dict[str, Any] = {name: max(1, int(edge * scale)) for name, edge in zip(_EDGES, edges, strict=True)}
    if pad_to := preprocessing.get("pad_to"):
        sides["pad_to"] = [max(1, int(side * scale)) for side in pad_to]
    return {**preprocessing, **sides}


def preprocess(
    image: RGBImage,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    short_edge: int | None = None,
    long_edge: int | None = None,
    pad_to: Sequence[int] | None = None,
    pad_color: Sequence[float] | None = None,
    channels: str = "RGB",
) -> torch.Tensor:
    """Turn an image into network input as upstream's test pipelines do.

    Args:
        image: (H, W, 3) uint8 RGB.
        mean: Of the three `channels`, on the scale 0..255.
        std: The same, positive.
        short_edge: See `target_size`; without edges, the image keeps its size.
        long_edge: The same.
        pad_to: (height, width) of the tensor: the image is padded on the right and below. What is larger is resized to
            fit, both sides by the same factor.
        pad_color: Of the padding, of the three `channels`, on the scale 0..255.
        channels: "RGB" or "BGR": their order in the tensor.

    Returns:
        (3, h, w) float32, C-contiguous, `(resized - mean) / std`, with (h, w) = `pad_to`, or else `content_size`.

    Raises:
        ImageError: `image` is not a uint8 array (H, W, 3).
        ValueError: `mean`, `std` or `pad_color` is not three values, `std` not positive, a size below 1, `channels`
            unknown, or one of two arguments that go together is missing.
    """
    check_array(image, None)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or len(pad_color or mean) != 3:
        raise ValueError(
            f"mean, std and pad_color must be three values each, std positive; got {mean}, {std} and {pad_color}"
        )
    if (pad_to is None) != (pad_color is None) or channels not in ("RGB", "BGR"):
        raise ValueError(
            f"pad_to and pad_color go together, and channels are RGB or BGR; got {pad_to}, {pad_color} and {channels!r}"
        )
    edges, size = {"short_edge": short_edge, "long_edge": long_edge}, (image.shape[0], image.shape[1])
    height, width = content_size(*size, {**edges, "pad_to": pad_to})
    if pad_to is not None and (height, width) != content_size(*size, edges):
        _tell_fitted(pad_to)
    pixels = _resize(image, height, width)[..., :: 1 if channels == "RGB" else -1]
    result = np.empty((3, *(pad_to or (height, width))), np.float32)
    # There are only 256 levels: one table per channel, rounded in upstream's order (mmcv.imnormalize subtracts, keeps
    # float32, then multiplies by the float64 reciprocal).
    levels = np.arange(256, dtype=np.float32)
    for channel in range(3):
        if pad_color is not None:
            result[channel] = (pad_color[channel] - mean[channel]) / std[channel]
        table = ((levels - np.float32(mean[channel])).astype(np.float64) * (1 / std[channel])).astype(np.float32)
        # Clipping changes nothing, but without it numpy takes into a buffer first
        np.take(table, pixels[..., channel], out=result[channel, :height, :width], mode="clip")
    return torch.from_numpy(result)


def _tell_fitted(pad_to: Sequence[int]) -> None:
    if tuple(pad_to) not in _told:
        _told.add(tuple(pad_to))
        log.info(
            "images larger than %d x %d pixels, to which this model's images are padded, are resized to fit",
            *pad_to[::-1],
        )


def _resize(image: RGBImage, height: int, width: int) -> RGBImage:
    """`cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`, bit-exactly, without OpenCV.

    Bilinear without antialiasing, half-pixel centers. OpenCV computes uint8 in fixed point
    (modules/imgproc/src/resize.cpp, HResizeLinear and VResizeLinear): weights of 11 bits, and products whose lowest
    bits are dropped. `torch.nn.functional.interpolate`, rounded, and builds of OpenCV with another vendor's kernel
    differ by one level in some pixels (torch: about one of eight).
    """
    if image.shape[:2] == (height, width):
        return image
    top, bottom, weight_top, weight_bottom = _taps(image.shape[0], height)
    left, right, weight_left, weight_right = _taps(image.shape[1], width)
    # At the border OpenCV gives one pixel all the weight horizontally; vertically it reads that row twice.
    weight_right[(left == right) | (right == 0)] = 0
    weight_left = np.where(weight_right == 0, 2048, weight_left)[:, None]
    weight_right = weight_right[:, None]

    def rows(y: NDArray[np.int64], weight: NDArray[np.int32]) -> NDArray[np.int32]:
        picked = image[y]  # only the rows needed: memory grows with the result, not with the image
        row = (picked[:, left] * weight_left + picked[:, right] * weight_right) >> 4
        row *= weight[:, None, None]
        row >>= 16
        return row

    return ((rows(top, weight_top) + rows(bottom, weight_bottom) + 2) >> 2).astype(np.uint8)


def _taps(size: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """For each of `target` positions: the two source positions and their weights, which sum to 2048."""
    position = ((np.arange(target) + 0.5) * (size / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    weights = [np.rint(part * np.float32(2048)).astype(np.int32) for part in (np.float32(1) - share, share)]
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), weights[0], weights[1]
