"""Interlaced attention against dense attention over the whole map: time, memory, operations.

    python -m tests.benchmarks.attention
    python -m tests.benchmarks.attention --image examples/attention.png

"interlaced" is an ISANet's long-range attention followed by its short-range attention, as in the models: 512 channels,
keys of 256, blocks of 8x8. "dense" is one block of the same projections in which every position attends to all others,
as in non-local networks: softmax(Q K^T) V, with the attention map in memory. "fused" is the same with a kernel that
never holds the whole map. All in evaluation mode, in float32, on one CPU thread, with one image. The memory of "dense"
is little more than two maps, scores and their softmax: 8 L^2 bytes.

Sizes are those of feature maps, at an eighth of the image. 128x128 is that of the paper's comparison; 128x256 is a
whole image of Cityscapes, 1024x2048. The largest needs 9 GB of free memory.

Operations, two for each multiply-add, for L positions and projections from C = 512 channels to C and to D = 256:

* projections of one block: 2 L (2 (C D + D D) + 2 C C); interlaced attention has two blocks
* dense attention: 2 L^2 (D + C)
* interlaced attention: 2 L (L / 64 + 64) (D + C), because a position has as many partners in the long range as there
  are blocks of 64 positions, and 64 in the short range: it, too, grows faster than the map, but 64 times later
* fused: 2 L^2 (2 D + C), because PyTorch's kernel needs keys and values of the same width, so that the values are
  split in two halves and Q K^T is computed for each

These are checked against `torch.utils.flop_counter`; like it, they leave out normalization, ReLU and softmax.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.utils.flop_counter import FlopCounterMode

import isanet
from isanet.attention import GroupedAttention
from isanet.viz import charts
from tests.benchmarks.cost import cost

CHANNELS, KEYS, BLOCK = 512, 256, 8
SIZES = ((64, 64), (96, 96), (128, 128), (96, 192), (128, 256))
INK = {"dense": "#b5452c", "fused": "#c97b2c", "interlaced": "#1f5f99"}
NAMES = {"dense": "dense", "fused": "dense, fused", "interlaced": "interlaced"}


class Row(NamedTuple):
    """What one kind of attention costs at one size."""

    kind: str
    height: int
    width: int
    seconds: list[float]
    bytes: int
    projections: int
    attention: int


def with_map(query_NLC: Tensor, key_NLC: Tensor, value_NLC: Tensor) -> Tensor:
    scores_NLL: Tensor = (query_NLC * query_NLC.shape[2] ** -0.5) @ key_NLC.mT
    return scores_NLL.softmax(dim=2) @ value_NLC


def fused(query_NLC: Tensor, key_NLC: Tensor, value_NLC: Tensor) -> Tensor:
    """Without the map: on a CPU, the fused kernel needs keys and values of the same width."""
    N, L, C = value_NLC.shape
    value_N2LD = value_NLC.view(N, L, 2, C // 2).transpose(1, 2)
    query_N2LD, key_N2LD = (x.unsqueeze(1).expand(-1, 2, -1, -1) for x in (query_NLC, key_NLC))
    return F.scaled_dot_product_attention(query_N2LD, key_N2LD, value_N2LD).transpose(1, 2).reshape(N, L, C)


def dense(block: GroupedAttention, attend: Callable[[Tensor, Tensor, Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    """One block of attention over all positions; (N, C, H, W) -> (N, C, H, W)."""
    projections = (block.query_project, block.key_project, block.value_project)
    context_NLC = attend(*(project(x_NCHW).flatten(2).mT.contiguous() for project in projections))
    return block.output_project(context_NLC.mT.reshape(x_NCHW.shape))  # type: ignore[no-any-return]


def head() -> tuple[GroupedAttention, GroupedAttention]:
    torch.manual_seed(0)
    model = isanet.ISANet(num_classes=19).eval()
    assert (model.config["head_channels"], model.config["key_channels"], model.block_size) == (CHANNELS, KEYS, BLOCK)
    return model.long_range, model.short_range


def kinds_of(long_range: GroupedAttention, short_range: GroupedAttention) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "interlaced": nn.Sequential(long_range, short_range),
        "dense": partial(dense, long_range, with_map),
        "fused": partial(dense, long_range, fused),
    }


def check() -> None:
    """Both dense kinds equal the model's own attention with blocks of one position; operations are as documented."""
    long_range, short_range = head()
    kinds = kinds_of(long_range, short_range)
    with torch.inference_mode():
        for height, width in ((16, 24), (32, 32), (64, 64)):
            for kind, run in kinds.items():
                with FlopCounterMode(display=False) as counter:
                    run(feature_map(height, width))
                counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
                convolutions = counts.pop("aten.convolution")
                projections, attention = operations(kind, height, width)
                assert convolutions == projections, (kind, convolutions)
                if counts or kind != "fused":  # some versions of torch do not count the fused kernel
                    assert sum(counts.values()) == attention, (kind, counts)
        x = feature_map(16, 24)
        long_range.block_size = 1
        for kind in ("dense", "fused"):
            torch.testing.assert_close(kinds[kind](x), long_range(x))


def feature_map(height: int, width: int) -> Tensor:
    return torch.randn(1, CHANNELS, height, width, generator=torch.Generator().manual_seed(0)).relu()


def ready(kind: str, height: int, width: int) -> Callable[[], Tensor]:
    run, x = torch.inference_mode()(kinds_of(*head())[kind]), feature_map(height, width)
    run(feature_map(16, 16))
    return partial(run, x)


def operations(kind: str, height: int, width: int) -> tuple[int, int]:
    """Operations of projections and of attention, by the formulas above."""
    L = height * width
    projections = 2 * L * (2 * (CHANNELS * KEYS + KEYS**2) + 2 * CHANNELS**2)
    if kind == "interlaced":
        return 2 * projections, 2 * L * (L // BLOCK**2 + BLOCK**2) * (KEYS + CHANNELS)
    return projections, 2 * L**2 * ((KEYS if kind == "dense" else 2 * KEYS) + CHANNELS)


def measure(rounds: int) -> list[Row]:
    measured: dict[tuple[str, int, int], list[tuple[float, int]]] = {}
    for _ in range(rounds):
        for size in SIZES:
            for kind in INK:
                measured.setdefault((kind, *size), []).append(cost(ready, kind, *size))
    rows = []
    for key, costs in measured.items():
        seconds, peaks = zip(*costs, strict=True)
        rows.append(Row(*key, list(seconds), max(peaks), *operations(*key)))
    return rows


def draw(rows: list[Row]) -> Figure:
    """Time, memory and operations over the size of the map, both axes logarithmic."""
    panels: tuple[tuple[str, Callable[[Row], float], str], ...] = (
        ("Time", lambda row: min(row.seconds), " s"),
        ("Memory", lambda row: row.bytes / 1e9, " GB"),
        ("Operations", lambda row: (row.projections + row.attention) / 1e12, " T"),
    )
    figure = Figure(figsize=(12, 4), layout=ConstrainedLayoutEngine(wspace=0.06), facecolor="white")
    for axes, (title, value, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = []
        for kind, ink in INK.items():
            points = sorted((row.height * row.width, value(row)) for row in rows if row.kind == kind)
            axes.plot(*zip(*points, strict=True), color=ink, marker="o", markersize=4.5, linewidth=2)
            ends.append((points[-1][1], kind))
        low, high = axes.get_ylim()
        heights = [math.log(end / low) / math.log(high / low) for end, _ in sorted(ends)]
        for index in range(len(heights) - 1):  # two labels that would touch move apart
            overlap = max(0, 0.075 - (heights[index + 1] - heights[index]))
            heights[index] -= overlap / 2
            heights[index + 1] += overlap / 2
        for (end, kind), height in zip(sorted(ends), heights, strict=True):
            axes.annotate(
                f"{NAMES[kind]}, {end:.2g}{unit}", (1.0, height), xycoords="axes fraction", va="center", fontsize=11.5,
                color=INK[kind],
            )  # fmt: skip
        named = [size for size in SIZES if size != (96, 192)]  # which lies close to 128x128
        axes.set_xticks([h * w for h, w in named], [f"{h}×{w}" for h, w in named], fontsize=11, rotation=30)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: f"{value:g}{unit}"))
        axes.tick_params(axis="y", labelsize=11)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.set_title(title, loc="left", fontsize=14, color="#222222", pad=10)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.supxlabel("size of the feature map (image: 8 times that on each side)", fontsize=11.5, color="#222222")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", type=Path, help="draw the result into this PNG file")
    arguments = parser.parse_args()
    check()
    print(
        f"torch {torch.__version__}, one thread, {torch.backends.cpu.get_cpu_capability()}; {arguments.rounds} rounds"
    )
    print("memory is that beyond weights and input; G: 10^9 operations; ratios are to interlaced")
    print(
        f"{'map':>8} {'':<11} {'min s':>8} {'median s':>8} {'MB':>6} {'projections G':>13} {'attention G':>11}   ratios"
    )
    rows = measure(arguments.rounds)
    base = {row[1:3]: row for row in rows if row.kind == "interlaced"}
    for row in sorted(rows, key=lambda row: (row.height * row.width, row.kind != "interlaced")):
        one = base[row.height, row.width]
        print(
            f"{f'{row.height}x{row.width}':>8} {row.kind:<11} {min(row.seconds):8.2f} "
            f"{statistics.median(row.seconds):8.2f} {row.bytes / 1e6:6.0f} {row.projections / 1e9:13.1f} "
            f"{row.attention / 1e9:11.1f}   time {min(row.seconds) / min(one.seconds):.2f}, "
            f"memory {row.bytes / one.bytes:.2f}, "
            f"operations {(row.projections + row.attention) / (one.projections + one.attention):.2f}"
        )
    if arguments.image:
        arguments.image.write_bytes(charts.to_png(draw(rows), dpi=100))


if __name__ == "__main__":
    main()
