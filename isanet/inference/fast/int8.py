"""8-bit convolutions for processors, by torch's own oneDNN kernels.

Weights have a scale for each output channel, maps a single one, from the largest values that a few images gave.
All maps in the network are what a ReLU gave, so a byte is a value from zero to the largest; only the shortcut of a
block that changes its shape has both signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isanet.inference.fast.layers import Block, Conv, channels_last

if TYPE_CHECKING:
    from isanet.inference.fast.optimize import FastISANet


class Int8Conv(nn.Module):
    """A `Conv` of 8-bit maps that are not negative: value = scale x byte.

    Args:
        conv: What to quantize.
        scale: Of the map that it sees. If that is given in floating point, it is quantized first.
        out_scale: Of its result; None for a result in floating point.
        out_zero: The byte that stands for zero in its result.
        shortcut: Scale and zero of the map that is added, in whose memory the result will be.
    """

    def __init__(
        self,
        conv: nn.Module,
        scale: float,
        out_scale: float | None,
        *,
        out_zero: int = 0,
        shortcut: tuple[float, int] = (1.0, 0),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        assert isinstance(conv, Conv)
        self.stride, self.padding, self.dilation, self.span = conv.stride, conv.padding, conv.dilation, conv.span
        self.scale, self.out_scale, self.out_zero, self.shortcut = scale, out_scale or 1.0, out_zero, shortcut
        self.dtype = dtype if out_scale is None else torch.uint8
        self.relu = "relu" if conv.relu else "none"
        weight = torch.cat(list(conv.weights), 1).detach().float()
        if not (weight.isfinite().all() and conv.bias.isfinite().all()):
            raise ValueError("the network has weights that are not finite: they are damaged or not trained")
        self.weight_scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / _largest_weight()
        self.weight_zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = conv.bias.detach().float()
        self.weight = torch.ops.onednn.qconv_prepack(
            (weight / self.weight_scale[:, None, None, None]).round().to(torch.int8),
            *(self.weight_scale, scale, 0, self.stride, self.padding, self.dilation, 1),
            [1, weight.shape[1], 64, 64],  # a usual map: without one, weights are laid out anew at each call
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, padded: bool = False) -> Tensor:
        """As `Conv`; bytes, or floating point where it was made so."""
        if x.is_floating_point():
            x = channels_last((x.float() * (1 / self.scale)).round_().clamp_(0, 255).to(torch.uint8))
        padding = (0, self.padding[1]) if padded else self.padding
        place = (self.stride, padding, self.dilation, 1, self.out_scale, self.out_zero, self.dtype)
        weight = (self.weight, self.weight_scale, self.weight_zero)
        ops = torch.ops.onednn
        if shortcut is None:
            y: Tensor = ops.qconv2d_pointwise(x, self.scale, 0, *weight, self.bias, *place, self.relu, [], "")
            return y
        y = ops.qconv2d_pointwise.binary(
            x, self.scale, 0, *weight, shortcut, self.bias, *place, *self.shortcut, "sum", 1.0, self.relu, [], ""
        )
        return y


def _largest_weight() -> int:
    """127, or 63 where the processor adds products of two bytes in pairs of 16 bits, which more would overflow."""
    can: Mapping[str, Any] = torch.cpu.get_capabilities()
    exact = can.get("avx512_vnni") or can.get("avx_vnni") or can.get("amx_int8") or can.get("architecture") != "x86_64"
    return 127 if exact else 63


def ranges(fast: FastISANet, batches: Iterable[Tensor]) -> dict[nn.Module, float]:
    """The largest value that each convolution sees; of a shortcut's own, which may be negative, of what it gives."""
    highest: dict[nn.Module, float] = {}

    def see(module: nn.Module, value: Tensor) -> None:
        if not value.isfinite().all():
            raise ValueError("the network gives values that are not finite: its weights are damaged or not trained")
        highest[module] = max(highest.get(module, 0.0), float(value.abs().max()))

    shortcuts = {block.downsample for block in fast.modules() if isinstance(block, Block)}
    hooks = [
        conv.register_forward_hook(lambda conv, inputs, result: see(conv, result if conv in shortcuts else inputs[0]))
        for conv in fast.modules()
        if isinstance(conv, Conv)
    ]
    for images in batches:
        fast.coarse_logits(images)
    for hook in hooks:
        hook.remove()
    if not highest:
        raise ValueError("int8 needs a few images like those to come, to tell the range of every map; got none")
    return highest


def quantize(fast: FastISANet, highest: dict[nn.Module, float]) -> None:
    """8-bit convolutions in place of all but those of the stem and the classifier."""

    def scale(conv: nn.Module) -> float:
        return max(highest[conv], 1e-6) / 255

    blocks = [layer for layer in fast.layers if isinstance(layer, Block)]
    reduce, dtype = fast.layers[-1], fast.dtype
    scales = [*(scale(block.conv1) for block in blocks), scale(reduce)]
    for block, (into, out) in zip(blocks, pairwise(scales), strict=True):
        second, third, shortcut = scale(block.conv2), scale(block.conv3), (into, 0)
        if block.downsample is not None:
            shortcut = highest[block.downsample] / 127, 128
            block.downsample = Int8Conv(block.downsample, into, shortcut[0], out_zero=shortcut[1])
        block.conv1, block.conv2 = Int8Conv(block.conv1, into, second), Int8Conv(block.conv2, second, third)
        block.conv3 = Int8Conv(block.conv3, third, out, shortcut=shortcut)
    fast.layers[-1] = Int8Conv(reduce, scales[-1], None, dtype=dtype)
    fast.fuse = Int8Conv(fast.fuse, scale(fast.fuse), None, dtype=dtype)
