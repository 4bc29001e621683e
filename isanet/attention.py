"""Interlaced attention: the layers of ISANet's head.

Shape legend as in `isanet.model`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.config import ISANetConfig


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU (leaky with a slope); size-preserving."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, slope: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return self.relu(self.bn(self.conv(x_NCHW)))  # type: ignore[no-any-return]


class GroupedAttention(nn.Module):
    """Self-attention inside groups of positions, long-range or short-range (paper, section 3.2).

    Projections work position by position, and batch norm averages over all positions: both are applied to the map
    before it is regrouped, so that only queries, keys and values are.
    """

    def __init__(self, config: ISANetConfig, grouping: str) -> None:
        super().__init__()
        channels, keys, slope = config.head_channels, config.key_channels, config.leaky_slope
        self.block_size = config.block_size
        # Where the dimensions of x_NCPRQS go: N, the two that make G, the two that make L, C.
        self.order = (0, 3, 5, 2, 4, 1) if grouping == "long_range" else (0, 2, 4, 3, 5, 1)
        self.query_project, self.key_project = (
            nn.Sequential(ConvBNReLU(channels, keys, 1, slope), ConvBNReLU(keys, keys, 1, slope)) for _ in range(2)
        )
        self.value_project = nn.Conv2d(channels, channels, 1, bias=config.value_bias)
        self.output_project = ConvBNReLU(channels, channels, 1, slope)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); H and W are multiples of the block size."""
        query_NGLC = self.group(self.query_project(x_NCHW))
        key_NGLC = self.group(self.key_project(x_NCHW))
        value_NGLC = self.group(self.value_project(x_NCHW))
        context_NGLC = F.scaled_dot_product_attention(query_NGLC, key_NGLC, value_NGLC)  # scale: key_channels ** -0.5
        return self.output_project(self.ungroup(context_NGLC, x_NCHW))  # type: ignore[no-any-return]

    def weights(self, x_NCHW: Tensor, index: int) -> Tensor:
        """(N, C, H, W) -> (N, G, L): how much each group's position number `index` attends to those of its group."""
        query_NGC = self.group(self.query_project(x_NCHW))[:, :, index]
        key_NGLC = self.group(self.key_project(x_NCHW))
        scores_NGL: Tensor = (key_NGLC @ query_NGC[..., None])[..., 0] * query_NGC.shape[-1] ** -0.5
        return scores_NGL.softmax(dim=-1)

    def group(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, G, L, C)."""
        N, C, H, W = x_NCHW.shape
        R = S = self.block_size
        if torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export():
            # The same view. Of a reshape, torch.export cannot prove that it is one, and asks for a divisor of the size
            x_NCPRQS = x_NCHW.unfold(2, R, R).unfold(3, S, S).transpose(3, 4)
        else:
            x_NCPRQS = x_NCHW.reshape(N, C, H // R, R, W // S, S)
        x = x_NCPRQS.permute(self.order)  # N, G's two, L's two, C
        return x.reshape(N, x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], C)

    def ungroup(self, x_NGLC: Tensor, like_NCHW: Tensor) -> Tensor:
        """(N, G, L, C) -> (N, C, H, W), the shape of the map that was grouped."""
        N, C, H, W = like_NCHW.shape
        R = S = self.block_size
        sizes_NCPRQS = (N, C, H // R, R, W // S, S)
        x = x_NGLC.reshape([sizes_NCPRQS[dim] for dim in self.order])
        x_NCPRQS = x.permute([self.order.index(dim) for dim in range(6)])
        return x_NCPRQS.reshape(N, C, H, W)


class AttentionMaps(NamedTuple):
    """What one position attends to; see `ISANet.attention`.

    Each map is (N, height, width) over the feature map padded to whole blocks, and sums to 1: zeros of the padding take
    part in attention. `maps.product[:, *maps.inside]` is the part that lies inside the image.

    Attributes:
        long_range: In the long range: one position of each block, 0 elsewhere; None of a model without long range.
        short_range: In the short range: the position's own block, 0 elsewhere; None of a model without short range.
        product: In both, one after the other: the share of every position in the position's context. Attention matrices
            multiplied, that is; the layers between them are left out.
        inside: (rows, columns) of the feature map in the maps.
        position: (row, column) of the position in the maps.
        block_size: Of the model; blocks begin in the corner of the maps.
    """

    long_range: Tensor | None
    short_range: Tensor | None
    product: Tensor
    inside: tuple[slice, slice]
    position: tuple[int, int]
    block_size: int


def block_padding(size: int, block_size: int) -> tuple[int, int, int]:
    """(before, after, blocks): zeros on each side that make `size` a whole number of blocks; the odd one goes after."""
    blocks = (size + block_size - 1) // block_size
    padding = blocks * block_size - size
    return padding // 2, padding - padding // 2, blocks
