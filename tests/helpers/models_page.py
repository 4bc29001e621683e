"""Makes docs/models.md's tables and picture and the README's table from the manifest: `make models`.

Between `<!-- NAME: ... -->` and `<!-- end of NAME -->`, a page is made; the rest is written by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import isanet
from isanet._text import markdown_table
from isanet.config import BACKBONES
from isanet.weights.choosing import by_dataset, by_hand, dataset_name
from isanet.weights.manifest import Weights, load_manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
PAGE, PICTURE, README = ROOT / "docs" / "models.md", ROOT / "docs" / "models.png", ROOT / "README.md"

COLORS = {
    "sssegmentation": "#0072b2",
    "mmsegmentation": "#e69f00",
    "paddleseg": "#009e73",
    "openseg": "#cc79a7",
    "bpkd": "#d55e00",
}
HEAD = (
    *("name", "family", "backbone", "mIoU", "flip", "multi-scale, flip", "protocol", "parameters", "GMACs"),
    "license",
)
MARKERS = {"resnet18": "^", "resnet50": "o", "resnet101": "s"}


def percent(miou: float | None) -> str:
    return "" if miou is None else f"{100 * miou:.2f}"


def dataset_of(weights: Weights) -> str:
    return f"{weights.metrics['dataset']} {weights.metrics['split']}"


def overview() -> str:
    """The README's table: a row for each dataset."""
    rows = [("dataset", "models", "mIoU", "parameters", "best")]
    for group in by_dataset(load_manifest().values()).values():
        spans = []
        for values in ([100 * each.metrics["miou"] for each in group], [each.parameters / 1e6 for each in group]):
            digits = 1 + (not spans)
            spans.append(" to ".join(dict.fromkeys(f"{end(values):.{digits}f}" for end in (min, max))))
        best = isanet.recommend(group[0].metrics["dataset"], count=1)[0].name
        rows.append((dataset_of(group[0]), str(len(group)), spans[0], f"{spans[1]} M", f"`{best}`"))
    return markdown_table(rows)


def tables() -> str:
    """All models, a table for each dataset, without columns that would be empty."""
    parts = []
    for group in by_dataset(load_manifest().values()).values():
        columns = [column for column in zip(HEAD, *map(row, group), strict=True) if any(column[1:])]
        parts.append(f"## {dataset_of(group[0])}\n\n{markdown_table(list(zip(*columns, strict=True)))}")
    return "\n" + "\n".join(parts) + "\n"


def row(weights: Weights) -> tuple[str, ...]:
    others = weights.metrics.get("others", {})
    several = next((miou for name, miou in others.items() if name.endswith("multiscale-flip")), None)
    return (
        f"`{weights.name}`" + (" (by hand)" if by_hand(weights) else ""),
        weights.family,
        weights.architecture["backbone"],
        percent(weights.metrics["miou"]),
        percent(others.get("flip")),
        percent(several),
        f"`{weights.metrics['protocol']}`",
        f"{weights.parameters / 1e6:.1f} M",
        f"{weights.gmacs:,.1f}",
        re.split(r";| \(", weights.license)[0] if weights.commercial else "academic use",
    )


def with_made(text: str, name: str, made: str) -> str:
    """A page with what is made put between its marks."""
    pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
    text, count = re.subn(pattern, lambda match: match[1] + made + match[2], text, flags=re.S)
    assert count == 1, f"no place for {name}"
    return text


# --- the picture


def points() -> dict[str, list[Weights]]:
    """The models that are drawn, by dataset: those of datasets with more than one."""
    groups = by_dataset(load_manifest().values())
    return {dataset: group for dataset, group in groups.items() if len(group) > 1}


def digest() -> str:
    """Of everything that the picture shows; inside the picture, it says whether that is stale."""
    shown = [
        [dataset, each.name, each.family, each.architecture["backbone"], each.gmacs, each.metrics["miou"]]
        for dataset, group in points().items()
        for each in group
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def draw(path: Path) -> None:
    """mIoU over multiply-adds, a panel for each dataset; what `isanet.recommend` names is joined and named."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8, 7.2), facecolor="white", layout="constrained")
    for axes, group in zip(figure.subplots(2, 2).flat, points().values(), strict=True):
        panel(axes, group)
    style = {"linestyle": "none", "markeredgecolor": "white", "markersize": 8}
    backbones = sorted(MARKERS, key=list(BACKBONES).index)
    legend = [Line2D([], [], color=color, marker="o", label=family, **style) for family, color in COLORS.items()]
    legend += [Line2D([], [], color="#555555", marker=MARKERS[each], label=each, **style) for each in backbones]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    figure.savefig(path, dpi=160, metadata={"Description": digest(), "Software": None})


def panel(axes: Axes, group: list[Weights]) -> None:
    names = [choice.name for choice in isanet.recommend(group[0].metrics["dataset"], count=99)]
    chosen = [load_manifest()[name] for name in names]
    for weights in [*(each for each in group if each.name not in names), *chosen]:
        axes.plot(
            weights.gmacs, 100 * weights.metrics["miou"], color=COLORS[weights.family],
            marker=MARKERS[weights.architecture["backbone"]], markersize=8,
            markeredgecolor="black" if weights in chosen else "white", zorder=3,
        )  # fmt: skip
    axes.plot(
        [each.gmacs for each in chosen], [100 * each.metrics["miou"] for each in chosen], color="#999999", linewidth=1
    )
    for number, weights in enumerate(chosen):  # above and to the left of these there are no others
        dataset = dataset_name(weights)
        short = weights.name.removeprefix("isanet_").replace(f"_{dataset}", "")
        axes.annotate(
            short, (weights.gmacs, 100 * weights.metrics["miou"]), xytext=(-6, 5) if number else (8, 18),
            textcoords="offset points", ha="right", fontsize=9,
        )  # fmt: skip
    low, high = min(each.gmacs for each in group) / 3.2, max(each.gmacs for each in group) * 1.4
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.15 * (top - bottom))
    ticks = [value for value in (20, 30, 50, 100, 200, 300, 500, 1000, 2000, 4000) if low < value < high]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(dataset_of(group[0]), fontsize=12)
    axes.set_xlabel("multiply-adds of an image, in billions", fontsize=10)
    axes.set_ylabel("mIoU in %", fontsize=10)


def main() -> None:
    PAGE.write_text(with_made(PAGE.read_text(encoding="utf-8"), "tables", tables()), encoding="utf-8")
    README.write_text(with_made(README.read_text(encoding="utf-8"), "models", overview()), encoding="utf-8")
    draw(PICTURE)


if __name__ == "__main__":
    main()
