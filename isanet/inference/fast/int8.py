"""8-bit convolutions for CPUs, by torch's own oneDNN kernels.

Weights have a scale for each output channel, maps a single one, from the largest values in a few calibration images.
All maps in the network are outputs of a ReLU, so a byte stands for a value from zero to the largest; only the shortcut
of a block that changes its shape has both signs.

CPUs without VNNI add 8-bit products in pairs of 16 bits, which saturate. Weights of 7 bits would avoid that but kept
as few as 94 % of an image's labels, so int8 is refused there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from isanet.inference.fast.layers import AveragePool, Block, Conv, channels_last
from isanet.inference.fast.network import FastISANet

NOT_SUPPORTED = (
    "int8 needs a CPU that adds 8-bit products exactly (VNNI), which oneDNN does not find here; use "
    "precision='float32', or 'auto'"
)

NOT_POSSIBLE = (
    "int8 is for networks whose maps are outputs of a ReLU, not of a leaky one, and whose shortcuts have no average "
    "pool; use another precision"
)


class Int8Conv(nn.Module):
    """A `Conv` of non-negative 8-bit maps: value = scale x byte.

    Args:
        conv: The `Conv` to quantize.
        scale: Of its input. An input in floating point is quantized first.
        out_scale: Of its result; None for a result in floating point.
        out_zero: The byte that stands for zero in its result.
        shortcut: Scale and zero of the map that is added, whose memory the result takes.
        dtype: Of a result in floating point.
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
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.span, self.ceil = conv.span, conv.ceil
        self.scale, self.out_scale, self.out_zero, self.shortcut = scale, out_scale or 1.0, out_zero, shortcut
        self.dtype = dtype if out_scale is None else torch.uint8
        self.relu = "none" if conv.slope is None else "relu"
        weight = torch.cat(list(conv.weights), 1).detach().float()
        if not (weight.isfinite().all() and conv.bias.isfinite().all()):
            raise ValueError("the network has weights that are not finite: they are damaged or not trained")
        self.weight_scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        self.weight_zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = conv.bias.detach().float()
        self.weight = torch.ops.onednn.qconv_prepack(
            (weight / self.weight_scale[:, None, None, None]).round().to(torch.int8),
            *(self.weight_scale, scale, 0, self.stride, self.padding, self.dilation, 1),
            [1, weight.shape[1], 64, 64],  # a typical input: without one, weights are packed again at each call
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, padded: bool = False) -> Tensor:
        """As `Conv`; bytes, or floating point if `out_scale` is None."""
        x = _as_bytes(x, self.scale)
        padding = (0, self.padding[1]) if padded else self.padding
        geometry = (self.stride, padding, self.dilation, 1, self.out_scale, self.out_zero, self.dtype)
        weight = (self.weight, self.weight_scale, self.weight_zero)
        ops = torch.ops.onednn
        if shortcut is None:
            y: Tensor = ops.qconv2d_pointwise(x, self.scale, 0, *weight, self.bias, *geometry, self.relu, [], "")
            return y
        shortcut = _as_bytes(shortcut, self.shortcut[0])  # the stem's map, of basic blocks
        y = ops.qconv2d_pointwise.binary(
            x, self.scale, 0, *weight, shortcut, self.bias, *geometry, *self.shortcut, "sum", 1.0, self.relu, [], ""
        )
        return y


def _as_bytes(x: Tensor, scale: float) -> Tensor:
    """A map of non-negative values as bytes, if it is not already."""
    if not x.is_floating_point():
        return x
    return channels_last((x.float() * (1 / scale)).round_().clamp_(0, 255).to(torch.uint8))


@cache
def is_supported() -> bool:
    """Whether oneDNN adds 8-bit products exactly on this CPU, found by a convolution of the largest values.

    Asking the CPU for VNNI would not do: `ONEDNN_MAX_CPU_ISA` may keep oneDNN from using it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight = torch.full((8, 64, 3, 3), 127, dtype=torch.int8, device="cpu")
    x = channels_last(torch.full((1, 64, 8, 8), 255, dtype=torch.uint8, device="cpu"))
    scale, zero = torch.ones(8, device="cpu"), torch.zeros(8, dtype=torch.int32, device="cpu")
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    packed = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 0, *geometry, list(x.shape))
    sums = torch.ops.onednn.qconv2d_pointwise(
        *(x, 1.0, 0, packed, scale, zero, None), *geometry, *(1.0, 0, torch.float32, "none", [], "")
    )
    return bool((sums == 255 * 127 * 64 * 9).all())


def calibrate(fast: FastISANet, batches: Iterable[Tensor]) -> dict[nn.Module, float]:
    """The largest input of each convolution; of a shortcut's own, whose output may be negative, its largest output.

    Raises:
        ValueError: There are no images, maps are not finite, or the network cannot be quantized.
    """
    if any(isinstance(part, AveragePool) or getattr(part, "slope", 0.0) for part in fast.modules()):
        raise ValueError(NOT_POSSIBLE)
    largest: dict[nn.Module, float] = {}

    def record(module: nn.Module, value: Tensor) -> None:
        if not value.isfinite().all():
            raise ValueError("the network returned values that are not finite: its weights are damaged or not trained")
        largest[module] = max(largest.get(module, 0.0), float(value.abs().max()))

    shortcuts = {conv for block in fast.modules() if isinstance(block, Block) for conv in block.shortcut}
    hooks = [
        conv.register_forward_hook(lambda conv, args, result: record(conv, result if conv in shortcuts else args[0]))
        for conv in fast.modules()
        if isinstance(conv, Conv)
    ]
    for images in batches:
        fast.coarse_logits(images)
    for hook in hooks:
        hook.remove()
    if not largest:
        raise ValueError("int8 needs a few images like those to come, to calibrate the range of every map; got none")
    return largest


def quantize(fast: FastISANet, largest: dict[nn.Module, float]) -> None:
    """Replace all convolutions but those of the stem and the classifier by 8-bit ones."""

    def scale(conv: nn.Module) -> float:
        return max(largest[conv], 1e-6) / 255

    blocks = [layer for layer in fast.layers if isinstance(layer, Block)]
    reduce, dtype = fast.layers[-1], fast.dtype
    scales = [*(scale(block.convs[0]) for block in blocks), scale(reduce)]
    for block, (into, out) in zip(blocks, pairwise(scales), strict=True):
        shortcut = into, 0
        for number, conv in enumerate(block.shortcut):
            shortcut = largest[conv] / 127, 128
            block.shortcut[number] = Int8Conv(conv, into, shortcut[0], out_zero=shortcut[1])
        ends = [into, *(scale(conv) for conv in block.convs[1:]), out]
        for number, (conv, between) in enumerate(zip(block.convs, pairwise(ends), strict=True)):
            block.convs[number] = Int8Conv(conv, *between, shortcut=shortcut)
    fast.layers[-1] = Int8Conv(reduce, scales[-1], None, dtype=dtype)
    fast.fuse = Int8Conv(fast.fuse, scale(fast.fuse), None, dtype=dtype)
