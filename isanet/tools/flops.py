"""What a forward pass costs, counted from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from isanet.images.reading import MAX_PIXELS
from isanet.zoo.networks import meta_model


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
