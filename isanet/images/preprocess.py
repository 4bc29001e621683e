"""From an RGB image to the network's input, as upstream's test pipeline does it: resize like OpenCV, then normalize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from isanet.images.reading import RGBImage, check_array


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


def preprocess(
    image: RGBImage, *, short_edge: int, long_edge: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Turn an image into network input as upstream's test pipeline does (`Resize`, `Normalize`).

    Args:
        image: (H, W, 3) uint8 RGB.
        short_edge: See `target_size`.
        long_edge: See `target_size`.
        mean: Of red, green, blue, on the scale 0..255.
        std: The same, positive.

    Returns:
        (3, h, w) float32, C-contiguous, `(resized - mean) / std`, with (h, w) = `target_size(H, W, ...)`.

    Raises:
        ImageError: `image` is not a uint8 array (H, W, 3).
        ValueError: `mean` or `std` is not three values, or `std` not positive, or an edge is below 1.
    """
    check_array(image, None)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three values each, std positive; got {mean} and {std}")
    height, width = target_size(*image.shape[:2], short_edge=short_edge, long_edge=long_edge)
    pixels = _resize(image, height, width)
    # There are only 256 levels: one table per channel, rounded in upstream's order (mmcv.imnormalize subtracts, keeps
    # float32, then multiplies by the float64 reciprocal).
    levels = np.arange(256, dtype=np.float32)
    result = np.empty((3, height, width), np.float32)
    for channel in range(3):
        table = ((levels - np.float32(mean[channel])).astype(np.float64) * (1 / std[channel])).astype(np.float32)
        result[channel] = table[pixels[..., channel]]
    return torch.from_numpy(result)


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
