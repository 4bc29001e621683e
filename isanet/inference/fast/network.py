"""The inference-optimized copy of an ISANet; in bands of rows where memory is short.

Shape legend as in `isanet.model`. A cell is a position of the map that has an eighth of the image's resolution.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.attention import block_padding
from isanet.backbone import BasicBlock, Bottleneck
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
)
from isanet.model import STRIDE, ISANet, check_images, resize_logits


class FastISANet(nn.Module):
    """An ISANet for inference alone, as `isanet.inference.fast.optimize.optimize` makes it; a `Network`.

    It stays on its device, and may be used by several threads at once.

    Attributes:
        config, classes, logits_resize: As of the model.
        max_memory: As given to `optimize`; may be set at any time.
        dtype: Of most of the computation.
    """

    def __init__(self, model: ISANet, max_memory: int) -> None:
        super().__init__()
        self.config, self.classes, self.logits_resize = model.config, model.classes, model.logits_resize
        self.block_size, self.residual_first, self.max_memory = model.block_size, model.residual_first, max_memory
        backbone = model.backbone
        convs, norms = [m for m in backbone.stem if isinstance(m, nn.Conv2d)], backbone.stem[1::3]
        stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        self.layers = nn.ModuleList(
            [
                *(Conv(*folded(conv, norm), conv, slope=0.0) for conv, norm in zip(convs, norms, strict=True)),
                MaxPool(backbone.maxpool.ceil_mode),
                *(Block(block) for stage in stages for block in stage if isinstance(block, Bottleneck | BasicBlock)),
                conv_bn_relu(model.reduce),
            ]
        )
        self.attentions = nn.ModuleList(Attention(getattr(model, name)) for name in model.attention_order)
        self.fuse: nn.Module = conv_bn_relu(model.fuse)
        classifier = copy.deepcopy(model.classifier)
        assert classifier.bias is not None
        self.classifier = Conv(classifier.weight.detach(), classifier.bias.detach(), classifier, slope=None)
        self.dtype, self._cell_bytes = model.classifier.weight.dtype, _cell_bytes(self.layers)

    @property
    def device(self) -> torch.device:
        """Where it is, and where images should lie."""
        return self.classifier.bias.device

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert all but the stem to another dtype."""
        for part in (*self.layers[4:], *self.attentions, self.fuse, self.classifier):
            part.to(dtype)
        self.dtype, self._cell_bytes = dtype, _cell_bytes(self.layers)

    def forward(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """(N, 3, H, W) normalized -> (N, K, *size) logits, of the input's size if left out; as `coarse_logits`."""
        height, width = size or images.shape[2:]
        return resize_logits(self.coarse_logits(images), (height, width), self.logits_resize)

    def coarse_logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), normalized -> (N, K, h, w) as the model's; float32 (float64 of a double model)."""
        check_images(images)
        images = images.to(self.layers[0].bias.dtype)  # type: ignore[arg-type]
        N, _, H, W = images.shape
        h, w = self.map_size(H), self.map_size(W)
        if self._bytes_at_once(N, h, w) <= self.max_memory:
            return self._at_once(images)
        band = self._band_rows(N, w)
        left, _, top, _ = self._padding(h, w)
        padded_NHWC = self._features(images, band, h, w)
        context_NHWC = padded_NHWC
        for number, attention in enumerate(self.attentions):
            context_NHWC = attention(context_NHWC, in_place=number > 0)  # the first leaves its input, the residual
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
        for attention in self.attentions:
            context_NHWC = attention(context_NHWC)
        context = context_NHWC[:, top : top + h, left : left + w].permute(0, 3, 1, 2)
        logits: Tensor = self.classifier(self.fuse(torch.cat((x, context) if self.residual_first else (context, x), 1)))
        return logits.to(images.dtype)

    def map_size(self, side: int) -> int:
        """Cells along a side of so many pixels: an eighth, rounded up; in ceil mode one more for 8n and 8n - 1."""
        return (side + 1) // STRIDE + 1 if self.layers[3].ceil else -(-side // STRIDE)

    def _padding(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Cells to the left, right, top and bottom that make whole blocks."""
        return *block_padding(w, self.block_size)[:2], *block_padding(h, self.block_size)[:2]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether inputs (N, 3, H, W) can go through within `max_memory`, at once or in bands.

        In bands, two maps of the head's channels must be in memory whole, because long-range attention sees all of
        them: about 70 bytes for each pixel of the input in float32 for published models, half of it in half precision.
        A band takes about half a gigabyte more.
        """
        N, _, H, W = shape
        h, w = self.map_size(H), self.map_size(W)
        return min(self._bytes_at_once(N, h, w), self._bytes_in_bands(N, h, w)) <= self.max_memory

    def _bytes_at_once(self, N: int, h: int, w: int) -> int:
        return N * h * w * self._cell_bytes + self._head_bytes(N, h, w)

    def _bytes_in_bands(self, N: int, h: int, w: int) -> int:
        rows = 4 * (self._band_rows(N, w) + 8)  # each layer keeps some for the next band
        return N * rows * w * self._cell_bytes + self._head_bytes(N, h, w)

    def _head_bytes(self, N: int, h: int, w: int) -> int:
        C, D = self.config["head_channels"], self.config["key_channels"]
        cells = N * h * w * self.dtype.itemsize
        part = cells // self.block_size**2 * (6 * D + 4 * C)  # the least that long-range attention works on at a time
        return int(2.2 * cells * C + max(part, min(cells * (4 * D + 3 * C), 8 * PART_BYTES)))

    def _band_rows(self, N: int, w: int) -> int:
        """Rows of cells in a band: few, but enough for the matrix products to be large."""
        return max(4, min(32, (64 << 20) // (N * w * self._cell_bytes)))

    def _features(self, images: Tensor, band: int, h: int, w: int) -> Tensor:
        """(N, 3, H, W) -> (N, h, w, C), the input of attention, padded with zeros to whole blocks."""
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


def _cell_bytes(layers: Iterable[nn.Module]) -> int:
    """Bytes of maps for each cell at the layer that needs most: its input, and what it makes of it."""
    largest, channels, positions = 0, 3, STRIDE**2  # of a layer's input: channels, and positions in a cell
    itemsize = 4
    for layer in layers:
        assert isinstance(layer, Conv | MaxPool | Block)
        convs = [part for part in layer.modules() if isinstance(part, Conv)]
        itemsize = convs[0].bias.dtype.itemsize if convs else itemsize
        before, positions = positions * channels * itemsize, positions // layer.stride[0] ** 2
        # A pooling makes indices of 8 bytes too
        made = [len(conv.bias) * itemsize for conv in convs] or [channels * (itemsize + 8)]
        largest, channels = max(largest, before + positions * sum(made)), len(convs[-1].bias) if convs else channels
    return largest
