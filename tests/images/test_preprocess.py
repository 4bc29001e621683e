from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from isanet.images import preprocess as preprocess_module
from isanet.images.preprocess import content_size, preprocess, scaled, target_size
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


PADDLESEG: dict[str, Any] = {"mean": [127.5] * 3, "std": [127.5] * 3, "pad_to": [512, 512], "pad_color": [127.5] * 3}
OPENSEG: dict[str, Any] = {"mean": [102.9801, 115.9465, 122.7717], "std": [1.0] * 3, "channels": "BGR"}


@pytest.mark.parametrize(
    ("name", "preprocessing", "step"), [("paddleseg_voc", PADDLESEG, 1 / 127.5), ("openseg_cityscapes", OPENSEG, 1.0)]
)
def test_padded_and_bgr_inputs_equal_those_of_paddleseg_and_openseg(
    name: str, preprocessing: dict[str, Any], step: float
) -> None:
    reference = load_file(DATA / f"image_187x250.{name}.safetensors")
    tensor = preprocess(read_image(DATA / "image_187x250.png"), **preprocessing)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor.shape == tuple(reference["full_shape"])
    # A gray level is `step`; they round in another order than mmcv, so that only the last bits differ
    np.testing.assert_allclose(tensor[:, ::9, ::9].numpy(), reference["pixels"], rtol=0, atol=1e-5 * step)
    pixels = tensor.numpy()
    if name == "paddleseg_voc":  # its channels came last in memory, in which order numpy's float32 sums lose 3 digits
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels.mean((1, 2)), reference["mean"], rtol=0, atol=1e-4 * step)
    np.testing.assert_allclose(pixels.std((1, 2)), reference["std"], rtol=0, atol=1e-4 * step)


# --- padding and channels ---------------------------------------------------------------------------------------------


def test_an_image_keeps_its_size_without_edges_and_is_padded_right_and_below() -> None:
    image = noise(5, 7)
    plain = preprocess(image, mean=(1, 2, 3), std=(4, 5, 8))
    assert plain.shape == (3, 5, 7)
    padded = preprocess(image, mean=(1, 2, 3), std=(4, 5, 8), pad_to=(8, 9), pad_color=(255, 127.5, 0))
    assert padded.shape == (3, 8, 9)
    assert torch.equal(padded[:, :5, :7], plain)
    color = [(255 - 1) / 4, (127.5 - 2) / 5, (0 - 3) / 8]
    for part in (padded[:, 5:], padded[:, :, 7:]):
        np.testing.assert_allclose(part.amin(dim=(1, 2)), color, rtol=1e-6)
        np.testing.assert_allclose(part.amax(dim=(1, 2)), color, rtol=1e-6)


def test_mean_deviation_and_color_are_in_the_order_of_the_channels() -> None:
    image = noise(5, 7)
    bgr = preprocess(image, mean=(3, 2, 1), std=(8, 5, 4), pad_to=(8, 9), pad_color=(0, 9, 255), channels="BGR")
    rgb = preprocess(image, mean=(1, 2, 3), std=(4, 5, 8), pad_to=(8, 9), pad_color=(255, 9, 0))
    assert torch.equal(bgr, rgb.flip(0))
    assert bgr.is_contiguous()


@pytest.mark.parametrize(
    ("size", "preprocessing", "expected"),
    [
        ((187, 250), {}, (187, 250)),
        ((187, 250), {"pad_to": (512, 512)}, (187, 250)),
        ((512, 512), {"pad_to": (512, 512)}, (512, 512)),
        ((375, 513), {"pad_to": (512, 512)}, (374, 512)),  # 374.3
        ((1024, 512), {"pad_to": [512, 512]}, (512, 256)),
        ((1, 5000), {"pad_to": [512, 512]}, (1, 512)),  # 0.1 by the rule
        ((1024, 2048), {"short_edge": 1025, "long_edge": 2049}, (1025, 2049)),  # mmsegmentation's 769x769 models
        ((187, 250), {"short_edge": 512, "long_edge": 2048, "pad_to": [300, 300]}, (225, 300)),  # from 512x684
    ],
)
def test_content_size(size: tuple[int, int], preprocessing: dict[str, Any], expected: tuple[int, int]) -> None:
    assert content_size(*size, preprocessing) == expected
    padding = {"pad_color": (1, 2, 3)} if "pad_to" in preprocessing else {}
    tensor = preprocess(np.zeros((*size, 3), np.uint8), mean=[0] * 3, std=[1] * 3, **preprocessing, **padding)
    assert tensor.shape[1:] == tuple(preprocessing.get("pad_to", expected))
    assert (int((tensor[0] == 0).any(1).sum()), int((tensor[0] == 0).any(0).sum())) == expected


def test_what_is_larger_than_the_padded_size_is_resized_once_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_module, "_told", set())
    given = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    image = noise(100, 60)
    with caplog.at_level(logging.INFO, logger="isanet"):
        preprocess(image, **given, pad_to=(100, 60), pad_color=(0, 0, 0))
        assert not caplog.messages
        for _ in range(2):
            tensor = preprocess(image, **given, short_edge=120, long_edge=200, pad_to=(50, 64), pad_color=(0, 0, 0))
    assert caplog.messages == [
        "images larger than 64 x 50 pixels, to which this model's images are padded, are resized to fit"
    ]
    # From the image itself: not first to the edges, and then again
    assert torch.equal(tensor[:, :, :30], preprocess(image, **given, short_edge=30, long_edge=50))


def test_everything_grows_with_the_scale() -> None:
    edges = {"short_edge": 512, "long_edge": 2048, "mean": (1, 2, 3)}
    assert scaled(edges, 1, (187, 250)) == edges
    assert scaled(edges, 0.75, (187, 250)) == {**edges, "short_edge": 384, "long_edge": 1536}
    assert scaled({}, 1, (187, 250)) == {}
    assert scaled({}, 0.75, (187, 250)) == scaled({}, 0.75, (250, 187)) == {"short_edge": 140, "long_edge": 187}
    assert scaled({"pad_to": (64, 96)}, 0.5, (90, 140)) == {"short_edge": 31, "long_edge": 48, "pad_to": [32, 48]}
    assert scaled({}, 0.001, (5, 7)) == {"short_edge": 1, "long_edge": 1}  # not 0


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"short_edge": None}, "go together, got None and 2048"),
        ({"long_edge": None}, "go together, got 512 and None"),
        ({"pad_to": (5, 5)}, "pad_to and pad_color go together"),
        ({"pad_color": (5, 5, 5)}, "pad_to and pad_color go together"),
        ({"channels": "GBR"}, "RGB or BGR"),
        ({"pad_to": (0, 5), "pad_color": (5, 5, 5)}, "at least 1"),
    ],
)
def test_preprocess_refuses_what_does_not_go_together(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(noise(4, 4), **(VOC | wrong))


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (1, 2)}, {"std": (1, 2, 3, 4)}, {"std": (1, 0, 1)}, {"pad_to": (9, 9), "pad_color": (1, 2)}],
)
def test_preprocess_refuses_wrong_statistics(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="three values each"):
        preprocess(noise(4, 4), **(VOC | wrong))
