"""The same labels, faster: a loaded network made over for inference, and run in bands of rows where memory is short.

What `optimize` does, and why the labels stay:

* Batch norm is a scaling and a shift of what the convolution before it gives, so it becomes part of its weights.
* The auxiliary head, which only training needs, is left out.
* The first projections of queries, keys and values see the same map: one matrix product makes all three.
* Output after value projection is one matrix: attention's weights sum to one, so a value's bias passes through it.
* Maps lie in memory with channels last, as matrix products want them.
* bfloat16 and float16 halve what is computed and moved. The stem stays in float32: it sees the image itself, costs
  little, and its rounding would be felt everywhere behind it.
* int8 does the convolutions in 8 bits, on processors, by torch's own oneDNN kernels: weights with a scale for each
  output channel, maps with one scale, from the largest values that a few images gave. Stem, attention and classifier
  are not quantized.

Shape legend as in `isanet.model`. A cell is a position of the map that has an eighth of the image's resolution.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.backbone import Bottleneck
from isanet.inference.fast.int8 import quantize, ranges
from isanet.inference.fast.layers import (
    PART_BYTES,
    Attention,
    Block,
    Conv,
    MaxPool,
    block_rows,
    channels_last,
    conv_bn_relu,
    conv_rows,
    folded,
    pair,
)
from isanet.model import ISANet, block_padding, check_images

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
"""Names of precisions, and the type that most of the computation is done in."""

STRIDE = 8
"""Pixels of a cell along each axis."""


def optimize(
    model: ISANet,
    precision: str = "float32",
    *,
    images: Iterable[Tensor] = (),
    compile: bool = False,
    max_memory: int = 4 << 30,
) -> FastISANet:
    """A network that computes the same labels as a model in evaluation mode, faster. The model is left as it is.

    Args:
        model: An ISANet as it was built, on the device that it will run on. Its weights are taken as they are now.
        precision: "float32" (the model's own, if that is float64), "bfloat16", "float16", or "int8" (on the CPU).
        images: For int8, a few network inputs (N, 3, H, W), such as `isanet.inference.predict.prepare` makes, like those to
            come: they tell the range of every map. Not used otherwise.
        compile: Compile with `torch.compile` what goes through at once, not in bands: the first image, and the first
            of another size, then take a minute.
        max_memory: Bytes for maps, beyond weights, input and result. An image that would need more goes through the
            network in bands of rows, with the same labels but for rounding. See `FastISANet.fits`.

    Raises:
        ValueError: Not an ISANet as it was built; an unknown precision, or one that the device does not have; int8
            without images.
    """
    if reason := why_not_optimizable(model):
        raise ValueError(f"this network cannot be optimized: {reason}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; valid are {', '.join(PRECISIONS)}")
    device = model.classifier.weight.device
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"int8 is for the CPU, not for {device}; there, use 'bfloat16' or 'float16'")
    if precision == "int8" and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise ValueError("int8 needs oneDNN, which this build of torch does not have; use 'float32'")
    own = model.classifier.weight.dtype
    with torch.no_grad():
        fast = FastISANet(model, own, max_memory)
        if precision == "int8":
            highest = ranges(fast, images)
            fast.to_half(torch.bfloat16 if has_bfloat16(device) else torch.float32)
            quantize(fast, highest)
        elif precision != "float32":
            fast.to_half(PRECISIONS[precision])
    fast.eval().requires_grad_(False)
    if compile:
        fast._at_once = torch.compile(fast._at_once)  # type: ignore[method-assign]
    return fast


def why_not_optimizable(model: nn.Module) -> str:
    """Why a network cannot be optimized; empty if it can."""
    if type(model) is not ISANet:
        return f"it is a {type(model).__name__}, not an ISANet"
    with torch.device("meta"):
        plain = ISANet(**model.config)
    ours, theirs = dict(plain.named_modules()), dict(model.named_modules())
    for name in ours | theirs:
        here, there = ours.get(name), theirs.get(name)
        if here is None or there is None or type(here) is not type(there):
            return f"its part {name!r} is {type(there).__name__}, not {type(here).__name__}"
        if here.extra_repr() != there.extra_repr():
            return f"its part {name!r} has {there.extra_repr()}, not {here.extra_repr()}"
        if there._forward_hooks or there._forward_pre_hooks or "forward" in vars(there):
            return f"its part {name!r} has hooks"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if not dtypes <= {torch.float32} and not dtypes <= {torch.float64}:
        return f"its weights are {', '.join(sorted(map(str, dtypes)))}"
    return ""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself, rather than by way of float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


class FastISANet(nn.Module):
    """An ISANet for inference alone, made by `optimize`; it does what `isanet.inference` asks of a network.

    It stays on its device. In int8 it cannot be copied or saved: make it anew.

    Attributes:
        config: That of the model, as `classes` and `align_corners`.
        max_memory: As given to `optimize`; may be set at any time.
    """

    def __init__(self, model: ISANet, dtype: torch.dtype, max_memory: int) -> None:
        super().__init__()
        self.config, self.classes, self.align_corners = model.config, model.classes, model.align_corners
        self.block_size, self.residual_first, self.max_memory = model.block_size, model.residual_first, max_memory
        backbone = model.backbone
        convs, norms = [m for m in backbone.stem if isinstance(m, nn.Conv2d)], backbone.stem[1::3]
        stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        self.layers = nn.ModuleList(
            [
                *(Conv(*folded(conv, norm), conv, relu=True) for conv, norm in zip(convs, norms, strict=True)),
                MaxPool(),
                *(Block(block) for stage in stages for block in stage if isinstance(block, Bottleneck)),
                conv_bn_relu(model.reduce),
            ]
        )
        self.long_range, self.short_range = Attention(model.long_range), Attention(model.short_range)
        self.fuse: nn.Module = conv_bn_relu(model.fuse)
        classifier = copy.deepcopy(model.classifier)
        assert classifier.bias is not None
        self.classifier = Conv(classifier.weight.detach(), classifier.bias.detach(), classifier, relu=False)
        self.dtype, self._elements = dtype, _elements(model)

    def to_half(self, dtype: torch.dtype) -> None:
        """All but the stem in another type."""
        for part in (*self.layers[4:], self.long_range, self.short_range, self.fuse, self.classifier):
            part.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """(N, 3, H, W) normalized -> (N, K, *size) logits, the input's size if left out; float32 (or float64)."""
        return F.interpolate(
            self.coarse_logits(images), size or images.shape[2:], mode="bilinear", align_corners=self.align_corners
        )

    def coarse_logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), normalized, in the type of the first weights -> (N, K, H/8, W/8), rounded up; the same type."""
        check_images(images)
        N, _, H, W = images.shape
        h, w = -(-H // STRIDE), -(-W // STRIDE)
        if self._whole(N, h, w) <= self.max_memory:
            return self._at_once(images)
        band = self._band(N, w)
        left, _, top, _ = self._padding(h, w)
        padded_NHWC = self._features(images, band, h, w)
        context_NHWC = self.short_range(self.long_range(padded_NHWC), in_place=True)
        residual, context = (
            x[:, top : top + h, left : left + w].permute(0, 3, 1, 2) for x in (padded_NHWC, context_NHWC)
        )
        both = (residual, context) if self.residual_first else (context, residual)
        pairs = (torch.cat([x[:, :, start : start + band] for x in both], 1) for start in range(0, h, band))
        parts = conv_rows(self.fuse, pairs)
        return torch.cat([self.classifier(part).to(images.dtype) for part in parts], 2)

    def _at_once(self, images: Tensor) -> Tensor:
        x = channels_last(images)
        for layer in self.layers:
            x = layer(x)
        h, w = x.shape[2:]
        left, _, top, _ = padding = self._padding(h, w)
        x_NHWC = x.permute(0, 2, 3, 1)
        context_NHWC = F.pad(x_NHWC, (0, 0, *padding)) if any(padding) else x_NHWC
        context_NHWC = self.short_range(self.long_range(context_NHWC))
        context = context_NHWC[:, top : top + h, left : left + w].permute(0, 3, 1, 2)
        logits: Tensor = self.classifier(self.fuse(torch.cat((x, context) if self.residual_first else (context, x), 1)))
        return logits.to(images.dtype)

    def _padding(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Cells to the left, right, top and bottom that make whole blocks."""
        return *block_padding(w, self.block_size)[:2], *block_padding(h, self.block_size)[:2]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether inputs (N, 3, H, W) can go through within `max_memory`, at once or in bands.

        In bands two maps of the head's channels must be whole, because long-range attention sees all of them: about 70
        bytes for each pixel of the input in float32 for published models, half of it in half precision. What is worked
        on at a time comes to about half a gigabyte more.
        """
        N, _, H, W = shape
        h, w = -(-H // STRIDE), -(-W // STRIDE)
        return min(self._whole(N, h, w), self._banded(N, h, w)) <= self.max_memory

    def _whole(self, N: int, h: int, w: int) -> int:
        return int(N * h * w * self._elements * self.dtype.itemsize) + self._head(N, h, w)

    def _banded(self, N: int, h: int, w: int) -> int:
        rows = 4 * (self._band(N, w) + 8)  # all layers keep some for the next band
        return int(N * rows * w * self._elements * self.dtype.itemsize) + self._head(N, h, w)

    def _head(self, N: int, h: int, w: int) -> int:
        C, D = self.config["head_channels"], self.config["key_channels"]
        cells = N * h * w * self.dtype.itemsize
        part = cells // self.block_size**2 * (6 * D + 4 * C)  # the least that long-range attention takes at a time
        return int(2.2 * cells * C + max(part, min(cells * (4 * D + 3 * C), 8 * PART_BYTES)))

    def _band(self, N: int, w: int) -> int:
        """Rows of cells that go through together: few, but enough for the matrix products to be large."""
        return max(4, min(32, (64 << 20) // (N * w * self._elements * self.dtype.itemsize)))

    def _features(self, images: Tensor, band: int, h: int, w: int) -> Tensor:
        """(N, 3, H, W) -> (N, h, w, C), what attention starts from, padded with zeros to whole blocks."""
        height = band * STRIDE
        rows: Iterator[Tensor] = (images[:, :, top : top + height] for top in range(0, images.shape[2], height))
        rows = (channels_last(part) for part in rows)
        for layer in self.layers:
            rows = block_rows(layer, rows) if isinstance(layer, Block) else conv_rows(layer, rows)
        left, right, top, bottom = self._padding(h, w)
        shape = (len(images), h + top + bottom, w + left + right, self.config["head_channels"])
        whole = torch.zeros(shape, dtype=self.dtype, device=images.device)
        for part in rows:
            whole[:, top : top + part.shape[2], left : left + w] = part.permute(0, 2, 3, 1)
            top += part.shape[2]
        return whole


def _elements(model: ISANet) -> int:
    """Values that there are for each cell at the most crowded block: input, shortcut, output, and two in between."""
    most, places = 0, (STRIDE // 4) ** 2  # the first block sees a map of a quarter of the resolution
    for block in model.backbone.modules():
        if isinstance(block, Bottleneck):
            before, places = places, places // pair(block.conv2.stride)[0] ** 2
            copies = 1 if block.downsample is None else 2
            own = copies * block.conv3.out_channels + 2 * block.conv2.out_channels
            most = max(most, before * block.conv1.in_channels + places * own)
    return most
