"""The dilated ResNet with a deep stem ("ResNet-V1c"), the backbone of every published ISANet.

Stride 8: the third and fourth stage trade their stride for dilation 2 and 4. Parameter names are
those of torchvision's ResNet, with the stem of mmcv's V1c (three 3x3 convolutions for one 7x7).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from isanet.config import EXPANSION


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the 3x3 carries both stride and dilation."""

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        shortcut = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        y = self.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stride-8 ResNet-V1c; returns the feature maps of its third and fourth stage.

    Args:
        blocks: Bottleneck blocks in each of the four stages, as in `isanet.config.BACKBONES`.
        width: Channels of the stem's output and inner width of the first stage (64 in all published models).
    """

    def __init__(self, blocks: tuple[int, int, int, int], width: int = 64) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        half = width // 2
        for in_channels, out_channels, stride in ((3, half, 2), (half, half, 1), (half, width, 1)):
            stem += [
                nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        self.stem = nn.Sequential(*stem)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.gradient_checkpointing = False
        self.layer1 = self._stage(width, width, blocks[0], stride=1, dilation=1)
        self.layer2 = self._stage(4 * width, 2 * width, blocks[1], stride=2, dilation=1)
        self.layer3 = self._stage(8 * width, 4 * width, blocks[2], stride=1, dilation=2)
        self.layer4 = self._stage(16 * width, 8 * width, blocks[3], stride=1, dilation=4)

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, *, stride: int, dilation: int) -> nn.Sequential:
        # The first block of a dilated stage still sees the finer grid of the stage before, so it has half the dilation.
        first = Bottleneck(in_channels, width, stride=stride, dilation=max(dilation // 2, 1))
        rest = (Bottleneck(EXPANSION * width, width, stride=1, dilation=dilation) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> stage 3 (N, 16 * width, H/8, W/8) and stage 4 (N, 32 * width, H/8, W/8), rounded up."""
        x = self.maxpool(self.stem(images_NCHW))
        stage3 = self._run(self.layer3, self._run(self.layer2, self._run(self.layer1, x)))
        return stage3, self._run(self.layer4, stage3)

    def stages(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> the maps of all four stages; the first is (N, 4 * width, H/4, W/4)."""
        stage1 = self._run(self.layer1, self.maxpool(self.stem(images_NCHW)))
        stage2 = self._run(self.layer2, stage1)
        stage3 = self._run(self.layer3, stage2)
        return stage1, stage2, stage3, self._run(self.layer4, stage3)

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            x = checkpointed(block, x) if self.gradient_checkpointing and self.training else block(x)
        return x


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
