"""Charts, drawn with matplotlib: a confusion matrix, bars of IoU per class or of shares, training curves.

Each takes arrays, names and the lines of a title and returns a figure; `to_png` renders it. pyplot is not used, and
text does not depend on the user's matplotlibrc.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isanet._text import clean, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _PAPER = "#222222", "#ffffff"

# Fallbacks, in this order and if installed, for characters that the first has no glyph for
_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip


class Bar(NamedTuple):
    """One bar of a chart.

    Attributes:
        label: Shown left of the bar.
        value: Length of the bar.
        text: Shown right of the bar.
        color: (red, green, blue) of 0..255, or a color name of matplotlib.
        hatch: Hatch pattern of matplotlib.
        ink: Color of label, edge and hatch.
    """

    label: str
    value: float
    text: str
    color: tuple[int, int, int] | str
    hatch: str = ""
    ink: str = _INK


# --- text


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [name for name in _FONTS if name in installed]


def _style(size: float, color: str = _INK) -> dict[str, Any]:
    """Arguments of every text in a figure; "$" is a dollar sign, not the start of a formula."""
    return {"fontsize": size, "fontfamily": _fonts(), "color": color, "parse_math": False, "usetex": False}


def _heading(lines: Sequence[str]) -> str:
    """Lines of at most 60 characters; of long ones the end is kept, which says more of a path."""
    return "\n".join(line if len(line) <= 60 else f"…{line[-59:]}" for line in map(clean, lines))


def _numbered(names: Sequence[str]) -> list[str]:
    """Names with their indices, which stay readable where no font has the script."""
    return [f"{shortened(name)}  {index}" for index, name in enumerate(names)]


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Render a figure, including what reaches beyond its edges, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that no installed font has become boxes
        warnings.filterwarnings("ignore", message=r"(?s).*[Gg]lyph .*missing", category=UserWarning)
        figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.2, facecolor=_PAPER)
    return stream.getvalue()


# --- charts


def confusion_chart(confusion: NDArray[Any], names: Sequence[str], *title: str) -> Figure:
    """Draw a confusion matrix, (K, K) pixels, rows ground truth, columns prediction.

    Rows are normalized; those of classes absent from the ground truth are hatched.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(names)
    cell = 0.42 if count <= 25 else 0.26 if count <= 40 else 0.16
    side = min(max(cell * count, 2.8), 32.0)  # inches
    cell = side / count
    sums = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, sums, out=np.zeros((count, count)), where=sums > 0)

    # The axes fill the figure; labels and color bar lie outside, and saving extends the image to them
    figure = Figure(figsize=(side, side), facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1), facecolor=_PAPER)
    norm = PowerNorm(0.5, 0, 1)  # square root, so that confusions of a few percent are visible
    edges = np.arange(count + 1) - 0.5
    cells = axes.pcolormesh(edges, edges, shares, cmap="magma_r", norm=norm)  # several times faster than imshow
    axes.set_ylim(count - 0.5, -0.5)
    for row in np.flatnonzero(sums[:, 0] == 0):
        axes.add_patch(Rectangle((-0.5, row - 0.5), count, 1, facecolor="#e4e4e4", edgecolor="#b0b0b0", hatch="////"))
    if count <= 25:
        digits = 1 if count <= 10 else 0
        for row, column in np.argwhere(shares >= 0.5 * 10.0 ** (-2 - digits)):
            share = float(shares[row, column])
            style = _style(min(12, 20 * cell), _PAPER if norm(share) > 0.42 else _INK)
            axes.text(column, row, f"{100 * share:.{digits}f}", ha="center", va="center", **style)

    step = math.ceil(count / 200)
    style = _style(min(9, max(40 * cell, 7)))
    axes.set_xticks(range(0, count, step), _numbered(names)[::step], rotation=90, **style)
    axes.set_yticks(range(0, count, step), _numbered(names)[::step], **style)
    axes.tick_params(length=2, color=_INK, top=count > 40, labeltop=count > 40)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    large = _style(12 if count <= 40 else 22)
    axes.set_xlabel("prediction", labelpad=10, **large)
    axes.set_ylabel("ground truth", labelpad=10, **large)
    axes.set_title(_heading(title), pad=12, **large)

    height = min(1.0, 6 / side)
    bar = figure.colorbar(cells, cax=figure.add_axes((1 + 0.3 / side, 1 - height, 0.2 / side, height)))
    steps = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
    bar.set_ticks(list(steps), labels=[f"{100 * step:.0f} %" for step in steps], **_style(9))
    bar.set_label("share of the class's ground-truth pixels", **_style(10))
    return figure


def iou_chart(
    iou: Sequence[float], names: Sequence[str], palette: Sequence[tuple[int, int, int]], *title: str
) -> Figure:
    """Draw the IoU of each class (fractions), highest first, and the mean as a line; NaN: named below the chart."""
    labels = _numbered(names)
    known = sorted((index for index, value in enumerate(iou) if not math.isnan(value)), key=lambda i: -iou[i])
    bars = [Bar(labels[index], iou[index], f"{100 * iou[index]:.1f}", palette[index]) for index in known]
    figure = _bar_chart(bars, title, (0, 1.1), (0, 0.25, 0.5, 0.75, 1))
    _, height = figure.get_size_inches()
    mean = sum(bar.value for bar in bars) / len(bars) if bars else math.nan
    for axes in figure.axes if bars else ():
        axes.axvline(mean, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
        axes.annotate(
            f"mIoU {100 * mean:.1f}", (mean, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", **_style(8),
        )  # fmt: skip
    absent = [labels[index].replace("  ", "\u00a0") for index, value in enumerate(iou) if math.isnan(value)]
    if absent:
        names_absent = ", ".join(absent[:200]) + (", …" if len(absent) > 200 else "")
        text = textwrap.fill(f"absent from ground truth and prediction: {names_absent}", 80 * len(figure.axes))
        figure.text(0, -0.45 / height, text, ha="left", va="top", **_style(8.5))
    return figure


def share_chart(bars: Sequence[Bar], *title: str) -> Figure:
    """Draw fractions as bars in the given order, on a logarithmic scale if they differ by more than 1000x."""
    from matplotlib.ticker import MaxNLocator

    least, most = min(bar.value for bar in bars), max(bar.value for bar in bars)
    if most > 1000 * least:
        powers = range(math.floor(math.log10(least)), 1)
        return _bar_chart(bars, title, (least / 3, most * 8), [10.0**power for power in powers], logarithmic=True)
    return _bar_chart(bars, title, (0, most * 1.2), MaxNLocator(4).tick_values(0, most))


def _bar_chart(
    bars: Sequence[Bar],
    title: Sequence[str],
    limits: tuple[float, float],
    ticks: Sequence[float],
    *,
    logarithmic: bool = False,
) -> Figure:
    """Horizontal bars of fractions on one scale, in columns of at most 50 where possible."""
    from matplotlib.figure import Figure

    columns = min(max(1, math.ceil(len(bars) / 50)), 4)
    rows = max(1, math.ceil(len(bars) / columns))
    # Inches; bounded by the tallest image that the renderer can draw
    width, line = 5.0 if columns == 1 else 3.6, min(0.24 if rows <= 30 else 0.2, 400 / rows)
    gap = 0.5 + 0.075 * max((len(bar.label) for bar in bars), default=0)
    height = rows * line + 0.1
    total = columns * width + (columns - 1) * gap
    figure = Figure(figsize=(total, height), facecolor=_PAPER)
    figure.text(0.5, 1 + 0.35 / height, _heading(title), ha="center", va="bottom", **_style(12))
    if not bars:
        figure.text(0.5, 0.5, "nothing was measured", ha="center", va="center", **_style(11))
    ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    for column in range(columns):
        here = bars[column * rows : (column + 1) * rows]
        axes = figure.add_axes((column * (width + gap) / total, 0, width / total, 1), facecolor=_PAPER)
        axes.set_xscale("log" if logarithmic else "linear")
        axes.set_xlim(limits)
        axes.set_ylim(rows - 0.4, -0.6)
        for row, bar in enumerate(here):
            color = bar.color if isinstance(bar.color, str) else tuple(part / 255 for part in bar.color)
            axes.barh(
                row, bar.value - limits[0], 0.72, limits[0], color=color, hatch=bar.hatch,
                edgecolor=bar.ink if bar.hatch else "#555555", linewidth=0.6,
            )  # fmt: skip
            axes.annotate(
                bar.text, (bar.value, row), xytext=(4, 0), textcoords="offset points", va="center",
                bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.8}, **_style(8),
            )  # fmt: skip
        axes.set_yticks(range(len(here)), [bar.label for bar in here], **_style(8.5))
        for label, bar in zip(axes.get_yticklabels(), here, strict=True):
            label.set_color(bar.ink)
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks], **_style(8.5))
        axes.tick_params(length=2, color=_INK, which="both")
        axes.tick_params(axis="y", length=0)
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color("#888888")
    return figure


def training_chart(history: Sequence[Sequence[float]], *title: str) -> Figure:
    """Draw training curves: loss and learning rate over epochs, and the validation mIoU below.

    Rows of the history are step, epoch, loss, learning rate, images per second and mIoU (a fraction; NaN: not
    validated).
    """
    from matplotlib.figure import Figure

    rows = np.array(history, np.float64).reshape(-1, 6)
    epochs, losses, rates, miou = rows[:, 1], rows[:, 2], rows[:, 3], 100 * rows[:, 5]
    validated = np.isfinite(miou)
    figure = Figure(figsize=(8, 6.4 if validated.any() else 3.6))
    panels = figure.subplots(2 if validated.any() else 1, 1, sharex=True, squeeze=False)[:, 0]
    top_panel = panels[0]
    top_panel.set_title(_heading(title), pad=10, **_style(11))
    top_panel.plot(epochs, losses, color="#9bbbd9", linewidth=0.8)
    width = len(losses) // 50
    if width > 1:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        top_panel.plot(epochs[width - 1 :], smooth, color="#1f5f99", linewidth=1.8)
    limit = np.nanquantile(losses, 0.98) * 1.15 if np.isfinite(losses).any() else 0
    top_panel.set_ylim(0, limit if limit > 0 else 1.0)
    top_panel.set_ylabel("loss", **_style(10, "#1f5f99"))
    right_axis = top_panel.twinx()
    right_axis.plot(epochs, rates, color="#c97b2c", linewidth=1, linestyle="--")
    right_axis.set_ylim(bottom=0)
    right_axis.set_ylabel("learning rate", **_style(10, "#c97b2c"))

    if validated.any():
        panels[1].plot(epochs[validated], miou[validated], color="#2c8a4b", linewidth=1.6, marker="o", markersize=3)
        best = int(np.nanargmax(miou))
        panels[1].plot(epochs[best], miou[best], color="#2c8a4b", marker="o", markersize=8, fillstyle="none")
        panels[1].set_title(f"best {miou[best]:.2f} at epoch {epochs[best]:.4g}", loc="right", **_style(9))
        panels[1].set_ylabel("mIoU in %, validation", **_style(10))
    panels[-1].set_xlabel("epochs", **_style(10))
    for panel in (*panels, right_axis):
        panel.tick_params(labelsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(panel is right_axis and side == "right")
    for panel in panels:
        panel.grid(color="#e4e4e4", linewidth=0.6)
    return figure
