"""Layers of the inference-optimized network, and how each processes an image in bands of rows.

Shape legend as in `isanet.model`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.attention import ConvBNReLU, GroupedAttention
from isanet.backbone import BasicBlock, Bottleneck

PART_BYTES = 64 << 20
"""Bytes of attention's maps that are computed at a time."""


class Conv(nn.Module):
    """Convolution with bias, then ReLU, leaky with a `slope` below zero; None: neither. A shortcut is added in between.

    oneDNN, torch's library for CPUs, slows down by up to a half for 3x3 kernels over more than 512 channels:
    those are computed 512 channels at a time and added up.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def __init__(self, weight: Tensor, bias: Tensor, like: nn.Conv2d, *, slope: float | None) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = pair(like.stride), pair(like.padding), pair(like.dilation)
        rows = (like.kernel_size[0] - 1) * self.dilation[0] + 1
        self.span, self.ceil = max(rows, self.stride[0]), rows < self.stride[0]
        self.slope = slope
        self.step = 512 if weight.device.type == "cpu" and rows > 1 else weight.shape[1]
        self.weights = nn.ParameterList(channels_last(part) for part in torch.split(weight, self.step, 1))
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, padded: bool = False) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); `padded`: rows of zeros are already there."""
        padding = (0, self.padding[1]) if padded else self.padding
        bias: Tensor | None = self.bias
        y: Tensor | None = None
        for part, weight in zip(torch.split(x.to(self.bias.dtype), self.step, 1), self.weights, strict=True):
            z = F.conv2d(part, weight, bias, self.stride, padding, self.dilation)
            y, bias = z if y is None else y.add_(z), None
        assert y is not None
        if shortcut is not None:
            y += shortcut
        return y if self.slope is None else relu(y, self.slope, inplace=True)


class MaxPool(nn.Module):
    """That of the stem. Its input is not negative, so it may be padded with zeros."""

    stride, padding, span = (2, 2), (1, 1), 3

    def __init__(self, ceil: bool) -> None:
        super().__init__()
        self.ceil = ceil

    def forward(self, x: Tensor, *, padded: bool = False) -> Tensor:
        """As `Conv`."""
        return F.max_pool2d(x, 3, 2, (0, 1) if padded else 1, ceil_mode=self.ceil)


class AveragePool(nn.Module):
    """That of a shortcut. At the end of an odd number of rows or columns it averages over what exists."""

    stride, padding, span, ceil = (2, 2), (0, 0), 2, True

    def forward(self, x: Tensor, *, padded: bool = False) -> Tensor:
        """As `Conv`."""
        return F.avg_pool2d(x, 2, ceil_mode=True)


class Block(nn.Module):
    """A block of `isanet.backbone`, of either kind, with batch norm folded in.

    Attributes:
        convs: Its convolutions; the shortcut is added to the last.
        shortcut: What the shortcut goes through: nothing, a 1x1 convolution, or a pooling before it.
    """

    def __init__(self, block: Bottleneck | BasicBlock) -> None:
        super().__init__()
        layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            layers.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(Conv(*folded(conv, norm), conv, slope=0.0) for conv, norm in layers)
        self.stride: tuple[int, int] = max(conv.stride for conv in self.convs if isinstance(conv, Conv))
        self.shortcut = nn.ModuleList()
        if block.pool is not None:
            self.shortcut.append(AveragePool())
        if isinstance(block.downsample, nn.Sequential):
            conv, norm = block.downsample
            assert isinstance(conv, nn.Conv2d)
            self.shortcut.append(Conv(*folded(conv, norm), conv, slope=None))

    def forward(self, x: Tensor) -> Tensor:
        """As the block that it was; `x` may be overwritten."""
        shortcut = x
        for layer in self.shortcut:
            shortcut = layer(shortcut)
        for conv in self.convs[:-1]:
            x = conv(x)
        y: Tensor = self.convs[-1](x, shortcut)
        return y


class Attention(nn.Module):
    """`isanet.attention.GroupedAttention` on a map with channels last."""

    def __init__(self, attention: GroupedAttention) -> None:
        super().__init__()
        self.block_size, self.slope = attention.block_size, slope_of(attention.output_project)
        self.long_range = attention.order[1:3] == (3, 5)
        # Where the dimensions of x_NPRQSC go: N, the two that make G, the two that make L, C
        self.order = (0, 2, 4, 1, 3, 5) if self.long_range else (0, 1, 3, 2, 4, 5)
        first, second = (
            [folded(part.conv, part.bn) for part in parts if isinstance(part, ConvBNReLU)]
            for parts in zip(attention.query_project, attention.key_project, strict=True)
        )
        output, output_bias = folded(attention.output_project.conv, attention.output_project.bn)
        value, value_bias = attention.value_project.weight.detach().double(), attention.value_project.bias
        merged = output.double().flatten(1) @ value.flatten(1)
        if value_bias is not None:
            output_bias = output_bias + (output.double().flatten(1) @ value_bias.detach().double()).to(output.dtype)
        self.first = nn.Parameter(torch.cat([*(weight.flatten(1) for weight, _ in first), merged.to(output.dtype)]))
        self.first_bias = nn.Parameter(torch.cat([*(bias for _, bias in first), torch.zeros_like(output_bias)]))
        (query, query_bias), (key, key_bias) = second
        self.query, self.query_bias = nn.Parameter(query.flatten(1)), nn.Parameter(query_bias)
        self.key, self.key_bias = nn.Parameter(key.flatten(1)), nn.Parameter(key_bias)
        self.bias = nn.Parameter(output_bias)

    def forward(self, x_NHWC: Tensor, *, in_place: bool = False) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C), H and W multiples of the block size; `in_place`: it may overwrite the input."""
        N, H, W, C = x_NHWC.shape
        b = self.block_size
        per_row = N * W * (self.first.shape[0] + 2 * C) * self.first.element_size()
        if H * per_row <= PART_BYTES:
            return self._attend(x_NHWC, b, b)
        result = x_NHWC if in_place else torch.empty_like(x_NHWC)
        if self.long_range:  # rows at one position in their blocks: the same problem with blocks one row high
            columns = 1 if H * per_row <= b * PART_BYTES else b
            for row in range(b):
                for column in range(columns):
                    part = x_NHWC[:, row::b, column::columns]
                    result[:, row::b, column::columns] = self._attend(part, 1, b // columns)
        else:
            step = max(1, PART_BYTES // (b * per_row)) * b
            for top in range(0, H, step):
                result[:, top : top + step] = self._attend(x_NHWC[:, top : top + step], b, b)
        return result

    def _attend(self, x_NHWC: Tensor, R: int, S: int) -> Tensor:
        N, H, W, C = x_NHWC.shape
        x = x_NHWC.reshape(N, H // R, R, W // S, S, C).permute(self.order)
        sizes = x.shape
        x_NGLC = x.reshape(N, sizes[1] * sizes[2], sizes[3] * sizes[4], C)
        projected = F.linear(x_NGLC, self.first, self.first_bias)
        query, key, value = torch.split(projected, [self.query.shape[1], self.key.shape[1], C], -1)
        query, key = relu(query, self.slope), relu(key, self.slope)
        query_NGLD = relu(F.linear(query, self.query, self.query_bias), self.slope, inplace=True)
        key_NGLD = relu(F.linear(key, self.key, self.key_bias), self.slope, inplace=True)
        context_NGLC = relu(_attention(query_NGLD, key_NGLD, value).add_(self.bias), self.slope, inplace=True)
        back = [self.order.index(dim) for dim in range(6)]
        return context_NGLC.reshape(sizes).permute(back).reshape(N, H, W, C)


def _attention(query_NGLD: Tensor, key_NGLD: Tensor, value_NGLC: Tensor) -> Tensor:
    """Attention inside groups, of a few queries at a time where its weights would take more than `PART_BYTES`."""
    N, G, L, _ = query_NGLD.shape
    if N * G * L * L * 4 <= PART_BYTES:
        return F.scaled_dot_product_attention(query_NGLD, key_NGLD, value_NGLC)
    result = torch.empty_like(value_NGLC, memory_format=torch.contiguous_format)
    step = max(1, PART_BYTES // (N * L * 4))
    for group in range(G):
        key, value = key_NGLD[:, group], value_NGLC[:, group]
        for start in range(0, L, step):
            some = query_NGLD[:, group, start : start + step]
            result[:, group, start : start + step] = F.scaled_dot_product_attention(some, key, value)
    return result


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals this one and the batch norm after it."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = conv.weight.detach()
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.detach().double() - norm.running_mean.double() * scale
    return (weight.double() * scale[:, None, None, None]).to(weight.dtype), bias.to(weight.dtype)


def conv_bn_relu(part: ConvBNReLU) -> Conv:
    """Convolution, batch norm and ReLU as one layer."""
    return Conv(*folded(part.conv, part.bn), part.conv, slope=slope_of(part))


def slope_of(part: ConvBNReLU) -> float:
    """Slope of its activation below zero; 0 of a plain ReLU."""
    return part.relu.negative_slope if isinstance(part.relu, nn.LeakyReLU) else 0.0


def relu(x: Tensor, slope: float, *, inplace: bool = False) -> Tensor:
    """ReLU, leaky with a slope."""
    return F.leaky_relu(x, slope, inplace) if slope else F.relu(x, inplace)


# --- bands of rows --------------------------------------------------------------------------------------------
#
# A layer that needs a few rows at once can process the image from top to bottom: it keeps the rows that it will need
# again, and nothing is computed twice. Each layer is a generator from chunks of rows to chunks of rows. Before yielding
# a chunk it drops its own reference, by way of a list: otherwise every layer would keep its last chunk in memory.
#
# Of a layer this needs `stride`, `padding`, `span` (the input rows that one output row depends on, or that it skips)
# and `ceil`: whether rows at the end, too few for a span, give an output row too.


def _windows(layer: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Rows, padded with zeros above and below, in pieces that together contain every window of `span` rows once."""
    span, stride, padding = layer.span, layer.stride[0], layer.padding[0]
    waiting: Tensor | None = None
    for rows in chain(chunks, [None]):
        if rows is None:  # the end
            if waiting is not None:
                waiting = F.pad(waiting, (0, 0, 0, padding))
        elif waiting is None:
            waiting = F.pad(rows, (0, 0, padding, 0)) if padding else rows
        else:
            waiting = torch.cat([waiting, rows], 2)
        if waiting is None:
            return
        incomplete = stride - 1 if rows is None and layer.ceil else 0
        count = (waiting.shape[2] - span + incomplete) // stride + 1
        if count > 0:
            ready = [channels_last(waiting[:, :, : (count - 1) * stride + span])]
            waiting, rows = waiting[:, :, count * stride :].clone(), None
            yield ready.pop()


def conv_rows(layer: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Output rows of a convolution or pooling, from input rows."""
    for window in chunks if layer.span == 1 else _windows(layer, chunks):
        ready = [layer(window, padded=True)]
        del window
        yield ready.pop()


def block_rows(block: Block, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Output rows of a block, from input rows; rows of the shortcut wait for those of the convolutions."""
    seen: deque[Tensor] = deque()

    def first() -> Iterator[Tensor]:
        for rows in chunks:
            seen.append(rows)
            del rows
            yield seen[-1]

    def again() -> Iterator[Tensor]:  # the convolutions see all rows that the shortcut needs, so it ends when they have
        while seen:
            yield seen.popleft()

    rows, shortcuts, last = first(), again(), cast(Any, block.convs[-1])
    for layer in block.convs[:-1]:
        rows = conv_rows(layer, rows)
    for layer in block.shortcut:
        shortcuts = conv_rows(layer, shortcuts)
    waiting: list[Tensor] = []
    for window in rows if last.span == 1 else _windows(last, rows):
        count = window.shape[2] - last.span + 1
        while sum(part.shape[2] for part in waiting) < count:
            waiting.append(next(shortcuts))
        shortcut = torch.cat(waiting, 2) if len(waiting) > 1 else waiting[0]
        waiting[:] = [shortcut[:, :, count:].clone()]
        ready = [last(window, channels_last(shortcut[:, :, :count]), padded=True)]
        del window, shortcut
        yield ready.pop()


def channels_last(x: Tensor) -> Tensor:
    """With the channels of each position side by side in memory, as matrix products want them."""
    if x.device.type not in ("cpu", "cuda"):  # elsewhere it has not been measured
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last)


def pair(values: Sequence[int | str]) -> tuple[int, int]:
    """A convolution's setting along both axes."""
    first, second = values
    return int(first), int(second)
