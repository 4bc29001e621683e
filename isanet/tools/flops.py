"""What a forward pass costs, counted from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from isanet.images.preprocess import content_size
from isanet.images.reading import MAX_PIXELS
from isanet.inference.predict import window_starts
from isanet.protocols import PROTOCOLS
from isanet.zoo.networks import meta_model

IMAGE_SIZES = {
    "voc21": (375, 500),
    "ade20k150": (512, 683),
    "cityscapes19": (1024, 2048),
    "context59": (375, 500),
    "toystreets": (256, 512),
}
"""(height, width) of a typical image of the dataset of each label space."""


class Cost(NamedTuple):
    """What a part of a network costs.

    Attributes:
        multiply_adds: Of one forward pass of one image; an operation count in FLOPs is twice that.
        parameters: Weights and biases, without batch norm's running statistics.
    """

    multiply_adds: int
    parameters: int


def forward_cost(config: Mapping[str, Any], height: int, width: int) -> dict[str, Cost]:
    """Count multiply-adds and parameters of each part of a network; nothing is computed and no weights are needed.

    Multiply-adds are those of convolutions and of attention's two matrix products, as by `torch.utils.flop_counter`.
    Normalization, ReLU, softmax and resizing, a few operations for each value, are not counted. The auxiliary head has
    parameters and, as only training uses it, no multiply-adds.

    Args:
        config: The arguments of `isanet.ISANet`, such as `model.config`.
        height: Of the network's input, in pixels.
        width: The same.

    Returns:
        Parts in the order of the network, and "total".

    Raises:
        ValueError: The input has no pixels, or more than an image may have.
    """
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"an input has from 1 to {MAX_PIXELS:,} pixels, got {height} x {width}")
    model = meta_model(config).eval()
    # On the meta device, attention is made of its products: some versions of torch do not count their fused kernel
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.empty(1, 3, height, width, device="meta"))
    counts = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    parts = {
        name: Cost(counts.get(f"ISANet.{name}", 0), sum(parameter.numel() for parameter in part.parameters()))
        for name, part in model.named_children()
    }
    total = Cost(counts["Global"], sum(cost.parameters for cost in parts.values()))
    return {name: cost for name, cost in parts.items() if any(cost)} | {"total": total}


def image_gmacs(config: Mapping[str, Any]) -> float:
    """Billions of multiply-adds of a model for one typical image of the dataset that it was trained on.

    The image is prepared as the model wants it and goes through the network by the model's own protocol, in which
    overlapping windows count each.

    Args:
        config: The arguments of `isanet.ISANet`, with a label space of `IMAGE_SIZES` and a preprocessing.
    """
    size, protocol = IMAGE_SIZES[config["label_space"]], PROTOCOLS[config.get("protocol", "whole")]
    height, width = config["preprocessing"].get("pad_to") or content_size(*size, config["preprocessing"])
    windows = 1
    if protocol.window and protocol.stride:
        (high, wide), (down, right) = protocol.window, protocol.stride
        windows = len(window_starts(height, high, down)) * len(window_starts(width, wide, right))
        height, width = min(height, high), min(width, wide)
    return windows * forward_cost(config, height, width)["total"].multiply_adds / 1e9
