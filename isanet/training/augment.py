"""Training augmentation: scale, crop, flip, color changes, normalization, padding, in upstream's order.

Geometry and hue are torchvision's (`transforms.v2.functional`). Contrast and saturation are written here, because
torchvision blends with a gray image, where upstream multiplies pixel values, or the saturation in HSV.
All random numbers come from torch: from a generator, or from the global one, which `DataLoader` seeds in each worker.

Source: sssegmentation, `ssseg/modules/datasets/pipelines/transforms.py`. Values stay floating point between two color
changes here, where upstream rounds them to 8 bits each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]  # noqa: N812

from isanet.images.preprocess import content_size, scaled
from isanet.labels import IGNORED
from isanet.training.recipe import Recipe

CROP_TRIES = 10
"""Maximum number of random crops drawn to find one in which no class has too large a share."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18 / 180
"""Largest change of brightness (of 255), ranges of the two factors, largest hue rotation (of a full circle)."""


def augmentation(
    recipe: Recipe, preprocessing: Mapping[str, Any]
) -> Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor]]:
    """`augment` for a recipe and a model's preprocessing, as `transforms=` of the datasets; it can be pickled."""
    return partial(augment, recipe=recipe, preprocessing=dict(preprocessing))


def augment(
    image: Image.Image,
    mask: Image.Image,
    recipe: Recipe,
    preprocessing: Mapping[str, Any],
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A random training sample.

    Args:
        image: RGB.
        mask: Of the same size, mode L or P: class indices, or `isanet.labels.IGNORED`.
        recipe: Its crop, scale_range, flip, photometric and max_class_share. An image that is smaller than the crop is
            padded on all sides: with the mean, which is 0 after normalization, and its mask with IGNORED.
        preprocessing: The model's: arguments of `isanet.images.preprocess.preprocess`. Only crops are padded.
        generator: Source of random numbers; torch's global generator by default.

    Returns:
        The image, (3, *crop) float32, normalized and in the order of channels as by
        `isanet.images.preprocess.preprocess`, and the mask, (*crop) uint8.

    Raises:
        ValueError: Image and mask differ in size, or have another mode.
    """
    if image.size != mask.size or image.mode != "RGB" or mask.mode not in ("L", "P"):
        raise ValueError(
            "expected an RGB image and a mask (mode L or P) of one size, got "
            f"{image.mode} {image.width}x{image.height} and {mask.mode} {mask.width}x{mask.height}"
        )
    crop, scale = recipe.crop, _uniform(*recipe.scale_range, generator)
    own = image.height, image.width
    size = content_size(*own, scaled(preprocessing, scale, own))
    # No antialiasing, as in inference. Masks are resized by NEAREST_EXACT, which samples at pixel centers like the
    # image's interpolation; OpenCV, and plain NEAREST, sample at corners, which is off by up to half a pixel.
    pixels_3HW = F.resize(F.pil_to_tensor(image), list(size), InterpolationMode.BILINEAR, antialias=False)
    mask_1HW = F.resize(F.pil_to_tensor(mask), list(size), InterpolationMode.NEAREST_EXACT)

    top, left, height, width = random_crop(mask_1HW[0], crop, recipe.max_class_share, generator)
    pixels_3HW = F.crop(pixels_3HW, top, left, height, width)
    mask_1HW = F.crop(mask_1HW, top, left, height, width)
    if _happens(recipe.flip, generator):
        pixels_3HW, mask_1HW = F.horizontal_flip(pixels_3HW), F.horizontal_flip(mask_1HW)

    colored_3HW = change_colors(pixels_3HW.float(), recipe.photometric, generator)
    if preprocessing.get("channels") == "BGR":
        colored_3HW = colored_3HW.flip(0)
    image_3HW = F.normalize(colored_3HW, preprocessing["mean"], preprocessing["std"])
    above, before = (crop[0] - height) // 2, (crop[1] - width) // 2
    padding = [before, above, crop[1] - width - before, crop[0] - height - above]
    image_3HW = F.pad(image_3HW, padding, fill=0.0)
    mask_1HW = F.pad(mask_1HW, padding, fill=IGNORED)
    return image_3HW.contiguous(), mask_1HW[0].contiguous()  # not views that keep the whole image in memory


def random_crop(
    mask_HW: Tensor, crop: tuple[int, int], max_class_share: float, generator: Generator | None = None
) -> tuple[int, int, int, int]:
    """A random crop in which every class has less than `max_class_share` of the pixels that are not ignored.

    If none of `CROP_TRIES` tries finds one, it is the last one tried. A side of the mask that is shorter than the
    crop's is taken in full.

    Returns:
        (top, left, height, width).
    """
    H, W = mask_HW.shape
    height, width = min(crop[0], H), min(crop[1], W)
    tries = CROP_TRIES if max_class_share < 1 and (height, width) != (H, W) else 1
    for _ in range(tries):
        top, left = _random_int(H - height + 1, generator), _random_int(W - width + 1, generator)
        counts = torch.bincount(mask_HW[top : top + height, left : left + width].flatten(), minlength=IGNORED + 1)
        counts = counts[:IGNORED]
        if counts.max() < max_class_share * counts.sum():
            break
    return top, left, height, width


def change_colors(pixels_3HW: Tensor, probability: float, generator: Generator | None = None) -> Tensor:
    """Upstream's photometric distortion: brightness, contrast, saturation and hue, each with the same probability.

    Brightness is added, contrast multiplied, saturation multiplied in HSV, hue rotated in HSV. Contrast is changed
    second or last, at random. Pixels are (3, H, W), floating point, red, green, blue in 0..255, and not changed.
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
    """Multiply the saturation in HSV, up to 1: hue and value stay, distances to the largest channel are scaled."""
    largest = x_3HW.amax(dim=0)
    distance = largest - x_3HW
    # Saturation is 1 where the smallest channel becomes 0
    max_factor = largest / distance.amax(dim=0).clamp(min=1e-6)
    return largest - distance * max_factor.clamp(max=factor)


def _uniform(low: float, high: float, generator: Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _happens(probability: float, generator: Generator | None) -> bool:
    return torch.rand((), generator=generator, dtype=torch.float64).item() < probability


def _random_int(below: int, generator: Generator | None) -> int:
    return int(torch.randint(below, (), generator=generator))
