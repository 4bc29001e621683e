"""Multiply-adds and parameters, by part of a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isanet.labels import LABEL_SPACES
from isanet.tools.flops import IMAGE_SIZES, forward_cost, image_gmacs
from isanet.weights.manifest import load_manifest, model_info
from isanet.zoo.networks import label_arguments, model_config


def test_multiply_adds_are_those_of_a_count_by_hand() -> None:
    config = {"num_classes": 5, "backbone": "resnet14", "width": 8, "head_channels": 16, "key_channels": 8}
    costs = forward_cost({**config, "aux_channels": 8, "fusion_kernel": 1}, 101, 117)
    h, w = 13, 15  # an eighth, rounded up; attention pads both to 16, four blocks of 8x8
    L, C, D = 16 * 16, 16, 8
    assert costs["classifier"] == (h * w * C * 5, C * 5 + 5)
    assert costs["reduce"] == (h * w * 9 * 256 * C, 9 * 256 * C + 2 * C)
    assert costs["fuse"].multiply_adds == h * w * 2 * C * C
    projections = 2 * (C * D + D * D) + 2 * C * C  # queries and keys twice; values and output
    assert costs["long_range"].multiply_adds == L * projections + L * 4 * (D + C)  # one partner in each of four blocks
    assert costs["short_range"].multiply_adds == L * projections + L * 64 * (D + C)
    assert costs["aux_classifier"] == (0, 8 * 5 + 5)
    stem = 51 * 59 * 9 * (3 * 4 + 4 * 4 + 4 * 8)  # at half the size, rounded up; three 3x3 convolutions
    assert costs["backbone"].multiply_adds > stem
    assert costs["total"] == tuple(
        map(sum, zip(*(cost for part, cost in costs.items() if part != "total"), strict=True))
    )


def test_parameters_are_those_of_the_manifest() -> None:
    for name, weights in load_manifest().items():
        assert forward_cost(model_config(weights), 64, 64)["total"].parameters == weights.parameters, name


MMSEG = {"value_bias": True, "fusion_kernel": 1}
SMALL_HEAD = {"head_channels": 128, "aux_channels": 64}


@pytest.mark.parametrize(
    ("parameters", "config"),
    [
        (44_267_402, {"num_classes": 21}),  # sssegmentation, R50, VOC
        (63_257_478, {"num_classes": 19, "backbone": "resnet101"}),  # sssegmentation, R101, Cityscapes
        (
            37_707_398,
            {"num_classes": 19, "aux_channels": 256, **MMSEG},
        ),  # mmsegmentation and PaddleSeg, R50, Cityscapes
        (56_701_066, {"num_classes": 21, "backbone": "resnet101", "aux_channels": 256, **MMSEG}),  # the same, R101, VOC
        (12_433_734, {"num_classes": 19, "backbone": "resnet18", **SMALL_HEAD, **MMSEG}),  # BPKD, Cityscapes
        (12_459_148, {"num_classes": 150, "backbone": "resnet18", **SMALL_HEAD, **MMSEG}),  # BPKD, ADE20K
        (
            59_167_718,  # openseg.pytorch
            {"num_classes": 19, "backbone": "resnet101", "fusion_kernel": 1, "stem_channels": [64, 64, 128]},
        ),
    ],
)
def test_parameters_are_those_of_the_published_files(parameters: int, config: dict[str, Any]) -> None:
    assert forward_cost(config, 64, 64)["total"].parameters == parameters
    same = {"full_dilation": True, "average_pool_shortcut": True, "maxpool_ceil": True, "leaky_slope": 0.01}
    assert forward_cost({**config, **same}, 64, 64)["total"].parameters == parameters  # they have none


def test_multiply_adds_of_basic_blocks_are_those_of_a_count_by_hand() -> None:
    sizes = {"num_classes": 2, "backbone": "resnet18", "width": 8, "head_channels": 8, "key_channels": 16}
    for changes, h, w in (({}, 13, 15), ({"maxpool_ceil": True}, 13, 16)):
        stem = 51 * 60 * 9 * (3 * 4 + 4 * 4 + 4 * 8)
        H, W = (26, 30) if not changes else (26, 31)
        stage1 = H * W * 4 * 9 * 8 * 8
        rest = h * w * (9 * (8 * 16 + 3 * 16 * 16) + 8 * 16)
        rest += h * w * sum(9 * (c * 2 * c + 3 * 4 * c * c) + 2 * c * c for c in (16, 32))
        costs = forward_cost({**sizes, "aux_channels": 4, **changes}, 101, 119)
        assert costs["backbone"].multiply_adds == stem + stage1 + rest


def test_agrees_with_a_published_figure() -> None:
    # PaddleSeg gives "474.13 GFLOPs" for this network without a size: multiply-adds at 512 x 1024, with both heads
    config = model_config(model_info("isanet_r101_cityscapes"))
    config |= {"aux_channels": 256, "value_bias": True, "fusion_kernel": 1}
    costs = forward_cost(config, 512, 1024)
    auxiliary = sum(costs[part].parameters for part in ("aux_reduce", "aux_classifier")) * 64 * 128
    assert (costs["total"].multiply_adds + auxiliary) / 1e9 == pytest.approx(474.13, rel=0.001)


@pytest.mark.parametrize("order", [["long_range"], ["short_range"]])
def test_a_range_that_is_left_out_costs_nothing(order: list[str]) -> None:
    costs = forward_cost({"num_classes": 2, "attention_order": order}, 64, 64)
    assert {"long_range", "short_range"} & costs.keys() == {*order}


def test_nothing_is_allocated_or_drawn_at_random() -> None:
    state = torch.get_rng_state()
    assert forward_cost({"num_classes": 2}, 10_000, 10_000)["total"].multiply_adds > 5e13  # its maps would take 400 GB
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(0, 5), (10**9, 10**9)])
def test_sizes_that_no_image_has_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="an input has from 1 to"):
        forward_cost({"num_classes": 2}, *size)


# --- of an image


SAMPLES = (
    *("isanet_r50_voc", "isanet_r101_voc.paddleseg", "isanet_r18_ade20k.bpkd_bpkd", "isanet_nano_toystreets"),
    *("isanet_r50_cityscapes.mmseg_769x769_80k", "isanet_r50_cityscapes.paddleseg", "isanet_r101_cityscapes.openseg"),
    *("isanet_r18_context59.bpkd_plain", "isanet_r101_context59.bpkd"),
)
"""Each family, network and way of preparing an image."""


@pytest.mark.parametrize("name", SAMPLES)
def test_the_multiply_adds_of_the_manifest_are_those_of_the_network(name: str) -> None:
    weights = model_info(name)
    assert weights.gmacs == round(image_gmacs(model_config(weights)), 1)


def test_models_that_differ_in_weights_alone_have_one_cost() -> None:
    costs: dict[str, set[float]] = {}
    for weights in load_manifest().values():
        config = model_config(weights)
        costs.setdefault(str(sorted(config.items())), set()).add(weights.gmacs)
    assert all(len(each) == 1 for each in costs.values())
    assert len(costs) < len(load_manifest()) / 1.5
    assert {weights.label_space for weights in load_manifest().values()} <= {*IMAGE_SIZES} <= {*LABEL_SPACES}


@pytest.mark.parametrize(
    ("label_space", "preprocessing", "protocol", "height", "width", "windows"),
    [
        ("voc21", {}, "whole", 375, 500, 1),  # as it is
        ("voc21", {"short_edge": 96, "long_edge": 2048}, "whole", 96, 128, 1),
        ("voc21", {"pad_to": [64, 72], "pad_color": [0, 0, 0]}, "whole", 64, 72, 1),
        ("voc21", {}, "slide-512", 375, 500, 1),  # one window, as small as the image
        ("cityscapes19", {}, "slide-512", 512, 512, 3 * 6),  # from 0, 341, 512; and 0, 341, ..., 1364, 1536
    ],
)
def test_an_image_is_prepared_and_cut_into_windows(
    label_space: str, preprocessing: dict[str, Any], protocol: str, height: int, width: int, windows: int
) -> None:
    prepared = label_arguments(label_space, {"mean": [0, 0, 0], "std": [1, 1, 1], **preprocessing})
    config = {"backbone": "resnet14", "width": 8, "head_channels": 16, "key_channels": 8, "protocol": protocol}
    one = forward_cost(config | prepared, height, width)["total"].multiply_adds
    assert image_gmacs(config | prepared) == windows * one / 1e9
