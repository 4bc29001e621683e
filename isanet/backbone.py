"""The dilated ResNet with a deep stem ("ResNet-V1c"), the backbone of every published ISANet.

Stride 8: the third and fourth stage trade their stride for dilation 2 and 4. Parameter names are
those of torchvision's ResNet, with the stem of mmcv's V1c (three 3x3 convolutions for one 7x7).
PaddleSeg's and openseg.pytorch's differ from it in the points that `isanet.config.ISANetConfig` lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.utils.checkpoint import checkpoint

from isanet.config import BACKBONES, ISANetConfig


class Block(nn.Module):
    """The shortcut of both kinds of block, and their ReLU.

    Where the shape changes, the shortcut is a 1x1 convolution, which has the stride; or with `average_pool` a pooling
    has the stride, and the convolution after it none. In ceil mode: at the edges it averages over what exists.
    """

    def add_shortcut(self, in_channels: int, out_channels: int, *, stride: int, average_pool: bool) -> None:
        """Called last, so that the parameters are in torchvision's order."""
        self.relu = nn.ReLU(inplace=True)
        self.pool: nn.AvgPool2d | None = None
        self.downsample: nn.Module | None = None
        if average_pool and stride != 1:
            self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride if self.pool is None else 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def shortcut(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        pooled = x_NCHW if self.pool is None else pool(self.pool, x_NCHW)
        return pooled if self.downsample is None else self.downsample(pooled)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 with a shortcut; the 3x3 carries both stride and dilation."""

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int, average_pool: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.add_shortcut(in_channels, 4 * width, stride=stride, average_pool=average_pool)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x_NCHW))  # type: ignore[no-any-return]


class BasicBlock(Block):
    """3x3, 3x3 with a shortcut; the first carries both stride and dilation, the second neither."""

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int, average_pool: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.add_shortcut(in_channels, width, stride=stride, average_pool=average_pool)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x_NCHW)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x_NCHW))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stride-8 ResNet-V1c; returns the feature maps of its third and fourth stage.

    Args:
        config: Its `backbone`, `width`, `stem_channels`, `maxpool_ceil`, `full_dilation` and `average_pool_shortcut`
            apply.
    """

    def __init__(self, config: ISANetConfig) -> None:
        super().__init__()
        first, second, third = config.stem_channels
        stem: list[nn.Module] = []
        for in_channels, out_channels, stride in ((3, first, 2), (first, second, 1), (second, third, 1)):
            stem += [
                nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        self.stem = nn.Sequential(*stem)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=config.maxpool_ceil)
        self.gradient_checkpointing = False
        expansion, width = BACKBONES[config.backbone].expansion, config.width
        self.layer1 = self._stage(config, 1, third, stride=1, dilation=1)
        self.layer2 = self._stage(config, 2, expansion * width, stride=2, dilation=1)
        self.layer3 = self._stage(config, 3, expansion * 2 * width, stride=1, dilation=2)
        self.layer4 = self._stage(config, 4, expansion * 4 * width, stride=1, dilation=4)

    @staticmethod
    def _stage(config: ISANetConfig, number: int, in_channels: int, *, stride: int, dilation: int) -> nn.Sequential:
        expansion, counts = BACKBONES[config.backbone]
        kind = Bottleneck if expansion == 4 else BasicBlock
        width = config.width * 2 ** (number - 1)
        # The first block of a dilated stage still sees the finer grid of the stage before, so it has half the dilation,
        # except in PaddleSeg's.
        first = dilation if config.full_dilation else max(dilation // 2, 1)
        average_pool = config.average_pool_shortcut
        blocks = [kind(in_channels, width, stride=stride, dilation=first, average_pool=average_pool)]
        blocks += [kind(expansion * width, width, stride=1, dilation=dilation) for _ in range(counts[number - 1] - 1)]
        return nn.Sequential(*blocks)

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> stage 3 and stage 4, (N, C, H/8, W/8), rounded up; C is `expansion` * 4 and 8 * width."""
        x = pool(self.maxpool, self.stem(images_NCHW))
        stage3 = self._run(self.layer3, self._run(self.layer2, self._run(self.layer1, x)))
        return stage3, self._run(self.layer4, stage3)

    def stages(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> the maps of all four stages; the first is (N, `expansion` * width, H/4, W/4)."""
        stage1 = self._run(self.layer1, pool(self.maxpool, self.stem(images_NCHW)))
        stage2 = self._run(self.layer2, stage1)
        stage3 = self._run(self.layer3, stage2)
        return stage1, stage2, stage3, self._run(self.layer4, stage3)

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            x = checkpointed(block, x) if self.gradient_checkpointing and self.training else block(x)
        return x


def pool(layer: nn.MaxPool2d | nn.AvgPool2d, x_NCHW: Tensor) -> Tensor:
    """`layer(x_NCHW)`.

    Of ceil mode, torch.export cannot prove which size it gives. There, the last row and column are repeated, which
    changes neither a maximum nor an average, and floor mode gives the same.
    """
    if not (layer.ceil_mode and is_exporting()):
        return layer(x_NCHW)  # type: ignore[no-any-return]
    x = F.pad(x_NCHW, (0, 1, 0, 1), mode="replicate")
    function = F.max_pool2d if isinstance(layer, nn.MaxPool2d) else F.avg_pool2d
    return function(x, layer.kernel_size, layer.stride, layer.padding)


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, keeping only `x` for the backward pass and computing the rest again there.

    The recomputation must not update batch norm's running statistics, or each step would count twice. A compiler takes
    all changes of buffers out of the graph, and then neither needs nor allows a context manager.
    """
    options: dict[str, Any] = {}
    if not is_compiling():
        options["context_fn"] = lambda: (nullcontext(), _frozen_statistics(module))
    result: Tensor = checkpoint(module, x, use_reentrant=False, **options)
    return result


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:  # a copy to increment, because synchronized batch norm needs one
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
