"""Training augmentation: scale, crop, mirror, change colors, normalize, pad, in upstream's order.

Geometry and hue are torchvision's (`transforms.v2.functional`). Upstream's contrast and saturation are not: torchvision
blends with a gray image, where upstream multiplies pixel values, or the saturation of HSV; so they are written here.
All that is random is drawn by torch, from a generator or the global one, which `DataLoader` seeds in each worker.

Source: sssegmentation, `ssseg/modules/datasets/pipelines/transforms.py`. Here values stay floating point between two
changes, where upstream cuts them off to 8 bits each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]  # noqa: N812

from isanet.images.preprocess import target_size
from isanet.labels import IGNORED

if TYPE_CHECKING:
    from isanet.training.recipe import Recipe

CROP_TRIES = 10
"""How often a crop is drawn at most, until no class has too large a share of it."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18 / 180
"""Largest change of brightness (of 255), ranges of the two factors, largest turn of the hue (of a full circle)."""


def augmentation(
    recipe: Recipe, preprocessing: Mapping[str, Any]
) -> Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor]]:
    """What turns an image and its mask into a training sample: `transforms=` of the datasets.

    Args:
        recipe: Its crop, scale_range, flip, photometric and max_class_share.
        preprocessing: The model's (`model.preprocessing`): short_edge, long_edge, mean and std.

    Returns:
        `augment` with these arguments; it can be pickled.
    """
    return partial(
        augment,
        crop=recipe.crop,
        scale_range=recipe.scale_range,
        flip=recipe.flip,
        photometric=recipe.photometric,
        max_class_share=recipe.max_class_share,
        **preprocessing,
    )


def augment(
    image: Image.Image,
    mask: Image.Image,
    *,
    crop: tuple[int, int],
    scale_range: tuple[float, float],
    flip: float,
    photometric: float,
    max_class_share: float,
    short_edge: int,
    long_edge: int,
    mean: list[float],
    std: list[float],
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One training sample, at random.

    Args:
        image: RGB.
        mask: Of the same size, mode L or P: class indices, `isanet.labels.IGNORED` where a pixel does not count.
        crop: (height, width) of the result in pixels. A smaller image is padded all around: with `mean`, which is 0
            after normalizing, and a mask of IGNORED.
        scale_range: Smallest and largest scale, in multiples of the size for prediction (`target_size`).
        flip: Probability of mirroring.
        photometric: Probability of each change of color, see `change_colors`.
        max_class_share: See `random_crop`.
        short_edge: See `isanet.images.preprocess.target_size`.
        long_edge: See `isanet.images.preprocess.target_size`.
        mean: Of red, green, blue, on the scale 0..255.
        std: Of red, green, blue, on the scale 0..255.
        generator: What random numbers come from; torch's global one if left out.

    Returns:
        The image, (3, *crop) float32, normalized as by `isanet.images.preprocess.preprocess`, and the mask, (*crop) uint8.

    Raises:
        ValueError: Image and mask are not of one size, or not of these modes.
    """
    if image.size != mask.size or image.mode != "RGB" or mask.mode not in ("L", "P"):
        raise ValueError(
            "expected an RGB image and a mask (mode L or P) of one size, got "
            f"{image.mode} {image.width}x{image.height} and {mask.mode} {mask.width}x{mask.height}"
        )
    scale = _uniform(*scale_range, generator)
    size = target_size(
        image.height,
        image.width,
        short_edge=max(1, int(short_edge * scale)),
        long_edge=max(1, int(long_edge * scale)),
    )
    # As for prediction: no antialiasing. A mask has the values of the pixels that lie nearest to the middles of its
    # new ones, as middles are what the image's interpolation goes by (OpenCV goes by corners there: up to half a
    # pixel beside it).
    pixels_3HW = F.resize(F.pil_to_tensor(image), list(size), InterpolationMode.BILINEAR, antialias=False)
    mask_1HW = F.resize(F.pil_to_tensor(mask), list(size), InterpolationMode.NEAREST_EXACT)

    top, left, height, width = random_crop(mask_1HW[0], crop, max_class_share, generator)
    pixels_3HW = F.crop(pixels_3HW, top, left, height, width)
    mask_1HW = F.crop(mask_1HW, top, left, height, width)
    if _happens(flip, generator):
        pixels_3HW, mask_1HW = F.horizontal_flip(pixels_3HW), F.horizontal_flip(mask_1HW)

    image_3HW = F.normalize(change_colors(pixels_3HW.float(), photometric, generator), mean, std)
    above, before = (crop[0] - height) // 2, (crop[1] - width) // 2
    padding = [before, above, crop[1] - width - before, crop[0] - height - above]
    image_3HW = F.pad(image_3HW, padding, fill=0.0)
    mask_1HW = F.pad(mask_1HW, padding, fill=IGNORED)
    return image_3HW.contiguous(), mask_1HW[0].contiguous()  # of their own memory, not of the whole image's


def random_crop(
    mask_HW: Tensor, crop: tuple[int, int], max_class_share: float, generator: Generator | None = None
) -> tuple[int, int, int, int]:
    """Where to crop: at random, so that no single class fills it, as far as `CROP_TRIES` tries find such a place.

    Args:
        mask_HW: (H, W) uint8, class indices and IGNORED.
        crop: (height, width) in pixels; along a side that is shorter the whole is taken.
        max_class_share: Every class must have less than this share of the pixels that count; 1 for any crop. If
            no try is such, the last one is taken.
        generator: See `augment`.

    Returns:
        (top, left, height, width).
    """
    H, W = mask_HW.shape
    height, width = min(crop[0], H), min(crop[1], W)
    tries = CROP_TRIES if max_class_share < 1 and (height, width) != (H, W) else 1
    for _ in range(tries):
        top, left = _whole(H - height + 1, generator), _whole(W - width + 1, generator)
        counts = torch.bincount(mask_HW[top : top + height, left : left + width].flatten(), minlength=IGNORED + 1)
        counts = counts[:IGNORED]
        if counts.max() < max_class_share * counts.sum():
            break
    return top, left, height, width


def change_colors(pixels_3HW: Tensor, probability: float, generator: Generator | None = None) -> Tensor:
    """Upstream's photometric distortion: brightness, contrast, saturation and hue, each with one probability.

    Brightness is added, contrast multiplied, saturation multiplied in HSV, hue turned in HSV. Contrast comes second or
    last, at random.

    Args:
        pixels_3HW: (3, H, W), floating point, red, green, blue of 0..255; left as it is.
        probability: Of each of the four, 0..1.
        generator: See `augment`.

    Returns:
        The same shape, 0..255.
    """

    def contrast(x: Tensor) -> Tensor:
        return (x * _uniform(*CONTRAST, generator)).clamp(0, 255) if _happens(probability, generator) else x

    x = pixels_3HW
    if _happens(probability, generator):
        x = (x + _uniform(-BRIGHTNESS, BRIGHTNESS, generator)).clamp(0, 255)
    contrast_first = _happens(0.5, generator)
    if contrast_first:
        x = contrast(x)
    if _happens(probability, generator):
        x = _saturated(x, _uniform(*SATURATION, generator))
    if _happens(probability, generator):
        x = F.adjust_hue(x / 255, _uniform(-HUE, HUE, generator)) * 255
    return x if contrast_first else contrast(x)


def _saturated(x_3HW: Tensor, factor: float) -> Tensor:
    """Saturation of HSV, times a factor, at most 1: hue and value stay, distances to the largest channel are scaled."""
    largest = x_3HW.amax(dim=0)
    distance = largest - x_3HW
    # Saturation 1 is reached where the smallest channel becomes 0
    most = largest / distance.amax(dim=0).clamp(min=1e-6)
    return largest - distance * most.clamp(max=factor)


def _uniform(low: float, high: float, generator: Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _happens(probability: float, generator: Generator | None) -> bool:
    return torch.rand((), generator=generator, dtype=torch.float64).item() < probability


def _whole(below: int, generator: Generator | None) -> int:
    return int(torch.randint(below, (), generator=generator))
