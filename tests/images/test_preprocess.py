from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from isanet.images.preprocess import preprocess, target_size
from isanet.images.reading import read_image

DATA = Path(__file__).parents[1] / "data"
VOC: dict[str, Any] = {
    "short_edge": 512,
    "long_edge": 2048,
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
}
LEVEL = 1 / 57  # one gray level after normalization


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


# --- size rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "edges", "expected"),
    [
        ((187, 250), (512, 2048), (512, 684)),  # 684.49...: the + 0.5 makes no 685
        ((512, 683), (512, 2048), (512, 683)),
        ((1024, 2048), (1024, 2048), (1024, 2048)),
        ((1080, 1920), (512, 2048), (512, 910)),
        ((300, 3000), (512, 2048), (205, 2048)),  # the longer side decides; 204.8
        ((3000, 300), (512, 2048), (2048, 205)),
        ((1, 1), (512, 2048), (512, 512)),
        ((1, 500), (512, 2048), (4, 2048)),
        ((1, 100_000), (512, 2048), (1, 2048)),  # 0.02 by the rule
    ],
)
def test_target_size_follows_the_rule(size: tuple[int, int], edges: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(*size, short_edge=edges[0], long_edge=edges[1]) == expected


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_target_size_refuses_empty(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        target_size(*size, short_edge=512, long_edge=2048)


# --- tensor -----------------------------------------------------------------------------------------------------------


def test_equals_upstream() -> None:
    reference = load_file(DATA / "image_187x250.voc_preprocessed.safetensors")
    tensor = preprocess(read_image(DATA / "image_187x250.png"), **VOC)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor.shape == tuple(reference["full_shape"])
    np.testing.assert_array_equal(tensor[:, ::9, ::9].numpy(), reference["pixels"])  # to the last bit
    np.testing.assert_allclose(tensor.mean(dim=(1, 2)).numpy(), reference["mean"], atol=1e-5)
    np.testing.assert_allclose(tensor.std(dim=(1, 2)).numpy(), reference["std"], atol=1e-5)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The definition, in float64: half-pixel centers, borders repeated, no antialiasing."""

    def taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        first = np.floor(position).astype(int)
        return first, np.minimum(first + 1, size - 1), position - first

    top, bottom, v = taps(image.shape[0], height)
    left, right, u = taps(image.shape[1], width)
    values, v, u = image.astype(np.float64), v[:, None, None], u[None, :, None]
    above = values[top][:, left] * (1 - u) + values[top][:, right] * u
    below = values[bottom][:, left] * (1 - u) + values[bottom][:, right] * u
    return above * (1 - v) + below * v


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((37, 53), (74, 106)),  # exact 2x up
        ((64, 96), (32, 48)),  # exact 2x down, which OpenCV computes as means of four
        ((100, 150), (64, 96)),
        ((301, 200), (62, 41)),  # strong reduction: antialiasing would show
        ((40, 60), (64, 96)),
        ((1, 1), (64, 64)),
        ((1, 500), (1, 256)),
        ((500, 1), (256, 1)),
        ((2, 3), (64, 96)),
    ],
)
def test_resize_is_bilinear_to_one_level(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = noise(*size)
    settings = {"short_edge": min(target), "long_edge": max(target)}
    got = preprocess(image, **settings, mean=(0, 0, 0), std=(1, 1, 1)).numpy().transpose(1, 2, 0)
    assert got.shape == (*target, 3)
    np.testing.assert_array_equal(got, got.round())  # uint8 levels, as upstream's resize gives
    difference = np.abs(got - bilinear(image, *target))
    assert difference.max() < 1.5  # half a level of rounding, and less than one of fixed-point arithmetic
    assert difference.mean() < 0.5


def test_same_size_is_not_resampled() -> None:
    image = noise(64, 80)
    got = preprocess(image, short_edge=64, long_edge=2048, mean=(1, 2, 3), std=(4, 5, 8))
    expected = (image.astype(np.float64) - [1, 2, 3]) / [4, 5, 8]
    np.testing.assert_allclose(got.numpy().transpose(1, 2, 0), expected, rtol=1e-6, atol=1e-6)


def test_preprocess_does_not_change_its_input() -> None:
    image = noise(30, 40)
    before = image.copy()
    preprocess(image, **VOC)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("wrong", [{"mean": (1, 2)}, {"std": (1, 2, 3, 4)}, {"std": (1, 0, 1)}])
def test_preprocess_refuses_wrong_statistics(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="three values each"):
        preprocess(noise(4, 4), **(VOC | wrong))
