"""Report: what `isanet.evaluate` measured; as text, as JSON, as two pictures and as a page.

All figures are fractions in 0..1, in memory and in report.json; only text, pictures and page show percent.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from isanet.files import written_whole
from isanet.legend import shortened
from isanet.metrics import ConfusionMatrix
from isanet.preprocess import RGBImage

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 1
"""Version of the layout of report.json."""

PICTURE_SIDE = 640
"""Longer side, in pixels, of the pictures on the page."""

Labels = NDArray[np.integer[Any]]
Palette = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Sample:
    """The figures of one picture.

    Attributes:
        key: What the data set calls it.
        miou: Mean IoU over the classes that occur in it, a fraction; NaN if no pixel counted.
        pixel_accuracy: Share of the counted pixels that are right, a fraction; NaN if no pixel counted.
    """

    key: str
    miou: float
    pixel_accuracy: float


WorstPicture = tuple[Sample, RGBImage, Labels, Labels]
"""A sample, its picture (H, W, 3), the predicted labels and the true ones, (H, W); no class of the report: ignored."""


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The result of an evaluation. All figures are fractions in 0..1; NaN where there is nothing to measure.

    `str(report)` is the report for a terminal, in percent.

    Attributes:
        confusion: (K, K) int64 on the CPU, numbers of pixels: rows truth, columns prediction.
        classes: The K names.
        palette: K colours, (red, green, blue) of 0..255.
        dataset: Name of the data set.
        split: The part of it.
        samples: Number of pictures evaluated.
        total: Number of pictures in the split.
        label_space: Name of the space of the classes.
        model: How the model is called.
        protocol: Name of the inference protocol, such as "whole".
        protocol_text: The same in words, such as "whole image, single scale, no flip".
        precision: Number format of the computation, such as "float32".
        device: Where it ran.
        seconds: Wall time.
        ignored: Number of pixels of the truth that were ignored.
        worst: Pictures with the lowest mIoU, lowest first.
        published: `dataset`, `split`, `miou` (a fraction) and `protocol` of the model's published figure, or None.
        incomparable: Why the published figure and the measured one cannot be compared; empty when they can.
        notes: Sentences for the reader.
        boundary: Boundary F-score by class, fractions, NaN for absent ones; None if not asked for.
    """

    confusion: Tensor
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    dataset: str
    split: str
    samples: int
    total: int
    label_space: str
    model: str
    protocol: str
    protocol_text: str
    precision: str
    device: str
    seconds: float
    ignored: int
    worst: tuple[Sample, ...] = ()
    published: Mapping[str, Any] | None = None
    incomparable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    boundary: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        count = len(self.classes)
        if self.confusion.shape != (count, count) or len(self.palette) != count:
            raise ValueError(
                f"{count} classes need a confusion matrix of {count}x{count} and as many colours, got "
                f"{'x'.join(map(str, self.confusion.shape))} and {len(self.palette)}"
            )

    @cached_property
    def _matrix(self) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.matrix += self.confusion
        return matrix

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are not absent, a fraction."""
        return float(self._matrix.miou())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right, a fraction."""
        return float(self._matrix.pixel_accuracy())

    @property
    def mean_accuracy(self) -> float:
        """Mean of the recalls of the classes that the truth has, a fraction."""
        return float(self._matrix.mean_accuracy())

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of the classes' IoU, weighted by their shares of the truth; a fraction."""
        return float(self._matrix.frequency_weighted_iou())

    @property
    def mean_boundary(self) -> float | None:
        """Mean boundary F-score over the classes that are not absent, a fraction; None if not measured."""
        if self.boundary is None:
            return None
        known = [score for score in self.boundary.values() if not math.isnan(score)]
        return sum(known) / len(known) if known else math.nan

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class, fractions; NaN where a class is in neither truth nor prediction."""
        return self._by_class(self._matrix.iou())

    @property
    def precision_by_class(self) -> dict[str, float]:
        """Share of the pixels predicted as a class that are it, fractions; NaN where it is never predicted."""
        return self._by_class(self._matrix.precision())

    @property
    def recall_by_class(self) -> dict[str, float]:
        """Share of a class's pixels that were found, fractions; NaN where the truth has none."""
        return self._by_class(self._matrix.recall())

    @property
    def share_by_class(self) -> dict[str, float]:
        """Share of the truth's counted pixels that each class has, fractions; NaN if none counted."""
        return self._by_class(self.confusion.sum(dim=1).double() / self.confusion.sum())

    def __str__(self) -> str:
        """The report for a terminal, in percent."""
        facts = [(name, _clean(value)) for name, value in self._facts()]
        width = max(len(name) for name, _ in facts)
        columns = self._columns()
        rows = [[heading for heading, _ in columns]]
        rows += [[_percent(values[name]) for _, values in columns] for name in self.classes]
        names = ["class", *(shortened(_clean(name)) for name in self.classes)]
        name_width = max(map(_terminal_width, names))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            name + " " * (name_width - _terminal_width(name))
            + "".join("  " + cell.rjust(size) for cell, size in zip(row, widths, strict=True))
            for name, row in zip(names, rows, strict=True)
        ]  # fmt: skip
        means = [(name, _percent(value)) for name, value in self._means()]
        mean_width = max(len(name) for name, _ in means)
        compared = [f"mIoU {name:<10}  {figure:>6}  {_clean(text)}".rstrip() for name, figure, text in self._compared()]
        blocks = [
            [f"{name:<{width}}  {value}" for name, value in facts],
            table,
            [f"{name:<{mean_width}}  {value:>6}" for name, value in means],
            compared + [_clean(reason) for reason in self._why_not()],
        ]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def __repr__(self) -> str:
        return f"Report({_title(self)}: mIoU {_percent(self.miou)} %, {self._pictures()})"

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dumps`: figures as fractions, NaN as None; what is derived is there too."""
        document = {
            "schema": SCHEMA,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "confusion": self.confusion.tolist(),
            "worst": [asdict(sample) for sample in self.worst],
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "mean_boundary": self.mean_boundary,
            "iou": self.iou,
            "precision_by_class": self.precision_by_class,
            "recall_by_class": self.recall_by_class,
            "share_by_class": self.share_by_class,
        }
        result: dict[str, Any] = _plain(document)
        return result

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Report:
        """The report that `to_json` gave.

        Raises:
            ValueError: It is not one; the message says what is wrong.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {document.get('schema')!r}; a newer isanet may read it")
        try:
            values = {field.name: document[field.name] for field in fields(cls)}
            boundary = values["boundary"]
            return cls(
                **values
                | {
                    "confusion": torch.tensor(values["confusion"], dtype=torch.int64),
                    "classes": tuple(values["classes"]),
                    "palette": tuple((int(r), int(g), int(b)) for r, g, b in values["palette"]),
                    "worst": tuple(
                        Sample(sample["key"], _number(sample["miou"]), _number(sample["pixel_accuracy"]))
                        for sample in values["worst"]
                    ),
                    "incomparable": tuple(values["incomparable"]),
                    "notes": tuple(values["notes"]),
                    "boundary": None if boundary is None else {name: _number(boundary[name]) for name in boundary},
                }
            )
        except KeyError as error:
            raise ValueError(f"missing field {error}") from error
        except TypeError as error:
            raise ValueError(f"a field has an unexpected value: {error}") from error

    def save(self, folder: str | os.PathLike[str], worst_pictures: Iterable[WorstPicture] = ()) -> None:
        """Write report.json, confusion.png, classes.png, index.html and, when given, the worst pictures.

        Each file appears whole, report.json as the last. Those of an earlier report are replaced, other files stay.

        Args:
            folder: Made if there is none.
            worst_pictures: What the page shows after the figures, in its order; taken one at a time, so that a
                generator needs the memory of one.

        Raises:
            OSError: A file cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_figure(folder / "confusion.png", _confusion_figure(self))
        _write_figure(folder / "classes.png", _classes_figure(self))
        sections, names = [], set()
        for number, worst in enumerate(worst_pictures, 1):
            section, written = _save_worst(self, folder / "worst", number, worst)
            sections.append(section)
            names |= written
        _write(folder / "index.html", _page(self, sections))
        for path in (folder / "worst").glob("*.jpg"):
            if path.name not in names and re.fullmatch(r"\d{2,}_.*_(picture|prediction|truth|errors)\.jpg", path.name):
                path.unlink()  # of an earlier report, whose worst pictures were others
        _write(folder / "report.json", _json_text(self.to_json()))  # last: where it is, everything is

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Report:
        """Read the report.json that `save` wrote.

        Raises:
            FileNotFoundError: There is none in the folder.
            ValueError: It is not a report.
        """
        path = Path(folder) / "report.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict):
                raise ValueError(f"expected an object, got {type(document).__name__}")
            return cls.from_json(document)
        except ValueError as error:
            raise ValueError(f"{path} is not a report of an evaluation: {error}") from error

    def _by_class(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.classes, values.tolist(), strict=True))

    def _pictures(self) -> str:
        count = f"{self.samples} of {self.total}" if self.samples != self.total else f"{self.samples}"
        return f"{count} picture{'' if self.total == 1 else 's'}"

    def _facts(self) -> list[tuple[str, str]]:
        """(name, text) of what was evaluated, and how."""
        counted = int(self.confusion.sum())
        speed = f", {self.samples / self.seconds:.2f} pictures/s" if self.samples and self.seconds > 0 else ""
        pixels = f"{counted:,} counted, {self.ignored:,} ignored"
        if not counted:
            pixels += ": nothing was measured"
        return [
            ("model", self.model),
            ("data set", f"{self.dataset} {self.split}, {self._pictures()}"),
            ("classes", f"{len(self.classes)} of {self.label_space}"),
            ("protocol", f"{self.protocol}: {self.protocol_text}"),
            ("computed", f"on {self.device} in {self.precision}, {_duration(self.seconds)}{speed}"),
            ("pixels", pixels),
            *(("note", note) for note in self.notes),
        ]

    def _means(self) -> list[tuple[str, float]]:
        boundary = self.mean_boundary
        return [
            ("mIoU", self.miou),
            ("pixel accuracy", self.pixel_accuracy),
            ("mean accuracy", self.mean_accuracy),
            ("frequency-weighted IoU", self.frequency_weighted_iou),
            *([] if boundary is None else [("boundary F-score", boundary)]),
        ]

    def _columns(self) -> list[tuple[str, Mapping[str, float]]]:
        """(heading, fraction by class) of the table."""
        return [
            ("IoU", self.iou),
            ("precision", self.precision_by_class),
            ("recall", self.recall_by_class),
            ("share", self.share_by_class),
            *([] if self.boundary is None else [("boundary F", self.boundary)]),
        ]

    def _compared(self) -> list[tuple[str, str, str]]:
        """(whose, percent, of what) of the measured mIoU and the published one; empty if nothing is published."""
        if self.published is None:
            return []
        published = self.published
        rows = [
            ("measured", _percent(self.miou), f"{self.dataset} {self.split}, {self.protocol_text}"),
            (
                "published",
                _percent(published["miou"]),
                f"{published['dataset']} {published['split']}, {published['protocol']}",
            ),
        ]
        if not self.incomparable and not math.isnan(self.miou):
            # Of the figures as shown, so that the three lines add up
            difference = round(100 * self.miou, 2) - round(100 * published["miou"], 2)
            rows.append(("difference", f"{round(difference, 2) + 0.0:+.2f}", ""))
        return rows

    def _why_not(self) -> list[str]:
        if self.published is None:
            return ["no figure is published for this model"]
        return [f"not comparable: {'; '.join(self.incomparable)}"] if self.incomparable else []

    def _confused_with(self) -> list[str]:
        """For each class the other one that it is most often taken for, with the share; empty if none."""
        result = []
        for index, row in enumerate(self.confusion):
            wrong, total = row.clone(), int(row.sum())
            wrong[index] = 0
            other = int(wrong.argmax())
            share = int(wrong[other]) / total if total else 0
            result.append(f"{shortened(_clean(self.classes[other]))} {_short_percent(share)}" if share else "")
        return result


# --- text and numbers


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _short_percent(value: float) -> str:
    return "0 %" if value == 0 else "<0.1 %" if value < 0.0005 else f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _clean(text: str) -> str:
    """One line without control characters and halves of surrogates, which class names and keys may have."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def _terminal_width(text: str) -> int:
    """Columns that a text takes: wide characters of East Asian scripts two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _plain(value: Any) -> Any:
    """What JSON has: tuples as lists, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inside) for inside in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _json_text(document: Mapping[str, Any]) -> str:
    """JSON with a line for each row of the matrix and each class; `indent` would take one for each number."""

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def field(value: Any) -> str:
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(map(text, value)) + "\n ]"
        if isinstance(value, dict) and value:
            return "{\n  " + ",\n  ".join(f"{text(key)}: {text(inside)}" for key, inside in value.items()) + "\n }"
        return text(value)

    return "{\n " + ",\n ".join(f"{text(key)}: {field(value)}" for key, value in document.items()) + "\n}\n"


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        # Halves of surrogates, from file names that are no text, become escapes, which JSON has too
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


# --- figures

_INK, _PAPER = "#222222", "#ffffff"

# Tried in turn for what the first has no glyphs for, where they are installed
_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [name for name in _FONTS if name in installed]


def _text_style(size: float) -> dict[str, Any]:
    """Arguments of every text in a figure: what a user's matplotlibrc says does not matter, and "$" is a dollar."""
    return {"fontsize": size, "fontfamily": _fonts(), "color": _INK, "parse_math": False, "usetex": False}


def _axis_name(report: Report, index: int) -> str:
    return f"{shortened(_clean(report.classes[index]))}  {index}"


def _title(report: Report) -> str:
    return f"{_clean(report.model)} on {_clean(report.dataset)} {_clean(report.split)}"


def _short_title(report: Report) -> str:
    title = _title(report)  # a model may be called by its path
    return title if len(title) <= 60 else f"…{title[-59:]}"


def _confusion_figure(report: Report) -> Figure:
    """The confusion matrix, each row divided by its sum; rows that the truth has not are hatched."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(report.classes)
    cell = 0.42 if count <= 25 else 0.26 if count <= 40 else 0.16
    side = min(max(cell * count, 2.8), 32.0)  # inches
    cell = side / count
    matrix = report.confusion.double().numpy()
    sums = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)

    # The axes fill the figure; what is beside them is added when it is saved
    figure = Figure(figsize=(side, side), facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1), facecolor=_PAPER)
    # The square root: confusions of a few percent are what one looks for
    norm = PowerNorm(0.5, 0, 1)
    edges = np.arange(count + 1) - 0.5
    cells = axes.pcolormesh(edges, edges, shares, cmap="magma_r", norm=norm)  # several times faster than imshow
    axes.set_ylim(count - 0.5, -0.5)
    for row in np.flatnonzero(sums[:, 0] == 0):
        axes.add_patch(Rectangle((-0.5, row - 0.5), count, 1, facecolor="#e4e4e4", edgecolor="#b0b0b0", hatch="////"))
    if count <= 25:
        digits = 1 if count <= 10 else 0
        style = _text_style(min(12, 20 * cell))
        for row, column in np.argwhere(shares >= 0.5 * 10.0 ** (-2 - digits)):
            share = float(shares[row, column])
            colour = _PAPER if norm(share) > 0.42 else _INK
            text = f"{100 * share:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", **style | {"color": colour})

    ticks = list(range(0, count, math.ceil(count / 200)))
    names = [_axis_name(report, index) for index in ticks]
    style = _text_style(min(9, max(40 * cell, 7)))
    axes.set_xticks(ticks, names, rotation=90, **style)
    axes.set_yticks(ticks, names, **style)
    axes.tick_params(length=2, color=_INK, top=count > 40, labeltop=count > 40)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    large = _text_style(12 if count <= 40 else 22)
    axes.set_xlabel("prediction", labelpad=10, **large)
    axes.set_ylabel("truth", labelpad=10, **large)
    axes.set_title(_short_title(report), pad=12, **large)

    height = min(1.0, 6 / side)
    bar = figure.colorbar(cells, cax=figure.add_axes((1 + 0.3 / side, 1 - height, 0.2 / side, height)))
    steps = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
    bar.set_ticks(list(steps))
    bar.ax.set_yticklabels([f"{100 * step:.0f} %" for step in steps], **_text_style(9))
    bar.set_label("share of the true class's pixels", **_text_style(10))
    return figure


def _classes_figure(report: Report) -> Figure:
    """IoU of the classes, highest first, in as many columns as keep it on a screen."""
    from matplotlib.figure import Figure

    iou = list(report.iou.values())
    order = sorted((index for index, value in enumerate(iou) if not math.isnan(value)), key=lambda i: -iou[i])
    absent = [index for index, value in enumerate(iou) if math.isnan(value)]
    columns = min(max(1, math.ceil(len(order) / 50)), 4)
    rows = max(1, math.ceil(len(order) / columns))
    # Inches; no taller than the renderer can draw
    width, line = 5.0 if columns == 1 else 3.6, min(0.24 if rows <= 30 else 0.2, 400 / rows)
    gap = 0.5 + 0.075 * max((len(_axis_name(report, index)) for index in order), default=0)
    height = rows * line + 0.1
    total = columns * width + (columns - 1) * gap
    figure = Figure(figsize=(total, height), facecolor=_PAPER)
    for column in range(columns):
        here = order[column * rows : (column + 1) * rows]
        axes = figure.add_axes((column * (width + gap) / total, 0, width / total, 1), facecolor=_PAPER)
        _bars(axes, report, here, [iou[index] for index in here], rows)
    figure.text(0.5, 1 + 0.35 / height, f"IoU, {_short_title(report)}", ha="center", va="bottom", **_text_style(12))
    if not order:
        figure.text(0.5, 0.5, "nothing was measured", ha="center", va="center", **_text_style(11))
    if absent:
        names = ", ".join(_axis_name(report, index).replace("  ", "\u00a0") for index in absent)
        text = textwrap.fill(f"absent from truth and prediction: {names}", max(40, round(13 * (total + gap))))
        figure.text(-gap / total, -0.45 / height, text, ha="left", va="top", **_text_style(8.5))
    return figure


def _bars(axes: Axes, report: Report, indices: Sequence[int], values: Sequence[float], rows: int) -> None:
    """One column of bars."""
    colours = [tuple(part / 255 for part in report.palette[index]) for index in indices]
    positions = range(len(indices))
    axes.barh(positions, values, height=0.72, color=colours, edgecolor="#555555", linewidth=0.6)
    if not math.isnan(report.miou):
        axes.axvline(report.miou, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
        axes.annotate(
            f"mIoU {100 * report.miou:.1f}", (report.miou, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", **_text_style(8),
        )  # fmt: skip
    behind = {"facecolor": _PAPER, "edgecolor": "none", "pad": 0.8}
    for position, value in zip(positions, values, strict=True):
        axes.annotate(
            f"{100 * value:.1f}", (value, position), xytext=(4, 0), textcoords="offset points", va="center",
            bbox=behind, **_text_style(8),
        )  # fmt: skip
    axes.set_yticks(list(positions), [_axis_name(report, index) for index in indices], **_text_style(8.5))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"], **_text_style(8.5))
    axes.set_xlim(0, 1.1)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.tick_params(length=2, color=_INK)
    axes.tick_params(axis="y", length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#888888")


def _write_figure(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with written_whole(path) as temporary, warnings.catch_warnings():
        # A script that no installed font has: the names are boxes then, the indices beside them remain
        warnings.filterwarnings("ignore", message=r"(?s).*[Gg]lyph .*missing", category=UserWarning)
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.2, facecolor=_PAPER)


# --- the worst pictures


def _save_worst(report: Report, folder: Path, number: int, worst: WorstPicture) -> tuple[str, set[str]]:
    """Write the pictures of one sample; gives its section of the page, and the names of the files."""
    sample, picture, predicted, true = worst
    counts = _counted(len(report.classes), predicted, true)
    stem = f"{number:02}_{_safe(sample.key)}"
    folder.mkdir(exist_ok=True)
    written = {}
    for kind, image in _panels(report.palette, picture, predicted, true).items():
        written[kind] = f"{stem}_{kind}.jpg"
        with written_whole(folder / written[kind]) as temporary:
            image.save(temporary, format="JPEG", quality=88, subsampling=0)  # all of the colours at edges of classes
    return _worst_section(report, number, sample, written, counts), set(written.values())


def _safe(key: str) -> str:
    """The end of a key, which tells pictures apart, in characters that every file system has."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", key)[-60:].strip("._-") or "sample"


def _counted(count: int, predicted: Labels, true: Labels) -> NDArray[np.int64]:
    """(K, K) pixels of one picture, by truth and prediction."""
    matrix = ConfusionMatrix(count, ignore_index=-1)
    known = _is_class(predicted, count) & _is_class(true, count)
    matrix.update(predicted, np.where(known, true.astype(np.int32), -1))
    counts: NDArray[np.int64] = matrix.matrix.numpy()
    return counts


def _is_class(labels: Labels, count: int) -> NDArray[np.bool_]:
    return np.asarray((labels >= 0) & (labels < count))


def _panels(palette: Palette, picture: RGBImage, predicted: Labels, true: Labels) -> dict[str, Image.Image]:
    """What the page shows of one sample, by kind."""
    shown = Image.fromarray(picture)
    shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    ours, truth = (
        np.asarray(Image.fromarray(labels.astype(np.int32)).resize(shown.size, Image.Resampling.NEAREST))
        for labels in (predicted, true)
    )
    base = np.asarray(shown).astype(np.float32)
    colours = np.array(palette, np.float32)

    def coloured(labels: Labels) -> Image.Image:
        known = _is_class(labels, len(palette))
        blend = (base + colours[np.where(known, labels, 0)]) / 2
        return Image.fromarray(np.where(known[..., None], blend, base).round().astype(np.uint8))

    counted = _is_class(truth, len(palette))
    errors = np.repeat(base.mean(axis=2, keepdims=True), 3, axis=2) * 0.35 + 165  # lighter than what is ignored
    wrong = counted & (ours != truth)
    errors[wrong] = errors[wrong] * 0.3 + np.array((216, 24, 24)) * 0.7
    errors[~counted] = 120
    return {
        "picture": shown,
        "prediction": coloured(ours),
        "truth": coloured(truth),
        "errors": Image.fromarray(errors.round().astype(np.uint8)),
    }


# --- the page

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1d2129; --faint: #667085; --paper: #ffffff; --line: #dde1e7; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --faint: #9aa3b2; --paper: #14171c; --line: #323844; --card: #1d2129; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.faint { color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; margin: 1.5rem 0; list-style: none; }
.figures li { flex: 1 1 9rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .9rem; }
.figures b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
th.name, td.name { text-align: left; }
table.classes { width: 100%; }
.swatch { display: inline-block; width: .9em; height: .9em; border: 1px solid #808080; border-radius: .15em;
  vertical-align: -.08em; margin-right: .45em; }
.bar { display: inline-block; width: 9rem; height: .8em; margin-right: .6em; background: var(--line);
  border-radius: .15em; vertical-align: -.05em; overflow: hidden; text-align: left; }
.bar span { display: block; height: 100%; background: #3b7dd8; }
.value { display: inline-block; min-width: 3.2em; }
.wide { margin-top: 1.25rem; }
.wide img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: .5rem; }
.sample { border-top: 1px solid var(--line); padding: 1.25rem 0; }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
@media (max-width: 40rem) { .pictures { grid-template-columns: 1fr; } }
figure { margin: 0; }
figcaption { color: var(--faint); font-size: .9rem; }
.pictures img { width: 100%; height: auto; display: block; border-radius: .3rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .75rem 0 0; list-style: none;
  font-size: .9rem; }
"""

_CAPTIONS = {
    "picture": "picture",
    "prediction": "prediction",
    "truth": "truth (ignored pixels uncoloured)",
    "errors": "wrong pixels red, ignored ones grey",
}


def _html(text: str) -> str:
    return escape(_clean(text))


def _swatch(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _page(report: Report, sections: Sequence[str]) -> str:
    """The whole page; `sections` are those of the worst pictures."""
    facts = "".join(f"<dt>{_html(name)}</dt><dd>{_html(text)}</dd>\n" for name, text in report._facts())
    means = "".join(f"<li><b>{_percent(value)}</b>{_html(name)}</li>\n" for name, value in report._means())
    compared = "".join(
        f'<tr><td class="name">{_html(whose)}</td><td>{_html(figure)}</td><td class="name">{_html(text)}</td></tr>\n'
        for whose, figure, text in report._compared()
    )
    if compared:
        compared = f"""<div class="scroll"><table>
<tr><th class="name"></th><th>mIoU</th><th class="name"></th></tr>
{compared}</table></div>
"""
    why_not = "".join(f"<p>{_html(text[0].upper() + text[1:])}.</p>\n" for text in report._why_not())
    worst = "".join(sections)
    if not sections and report.worst:
        rows = "".join(
            f'<tr><td class="name">{_html(sample.key)}</td><td>{_percent(sample.miou)}</td>'
            f"<td>{_percent(sample.pixel_accuracy)}</td></tr>\n"
            for sample in report.worst
        )
        worst = f"""<div class="scroll"><table>
<tr><th class="name">picture</th><th>mIoU</th><th>pixel accuracy</th></tr>
{rows}</table></div>
"""
    if worst:
        worst = f"<h2>Pictures with the lowest mIoU</h2>\n{worst}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(_title(report))}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(_title(report))}</h1>
<dl>
{facts}</dl>
<ul class="figures">
{means}</ul>
<p class="faint">All figures are in percent; "-" where there is nothing to measure.</p>
<h2>Measured and published</h2>
{compared}{why_not}<h2>Classes</h2>
{_class_table(report)}<p class="wide"><a href="classes.png"><img src="classes.png" loading="lazy" \
alt="IoU of each class as bars, highest first"></a></p>
<h2>Confusions</h2>
<p class="faint">Each row: of the pixels of one true class, how many were predicted as what. Hatched rows: the truth \
has none. Colours grow with the square root, to show small confusions.</p>
<p class="wide"><a href="confusion.png"><img src="confusion.png" loading="lazy" \
alt="Confusion matrix, divided by the sums of its rows"></a></p>
{worst}</body>
</html>
"""


def _class_table(report: Report) -> str:
    columns = report._columns()
    headings = "".join(f"<th>{_html(heading)}</th>" for heading, _ in columns)
    rows = []
    taken = report._confused_with()
    for index, name in enumerate(report.classes):
        iou, *others = (values[name] for _, values in columns)
        width = 0 if math.isnan(iou) else 100 * iou
        cells = "".join(f"<td>{_percent(value)}</td>" for value in others)
        rows.append(
            f'<tr><td>{index}</td><td class="name">{_swatch(report.palette[index])}{_html(name)}</td>'
            f'<td><span class="bar"><span style="width:{width:.1f}%"></span></span>'
            f'<span class="value">{_percent(iou)}</span></td>{cells}<td class="name">{escape(taken[index])}</td></tr>\n'
        )
    return f"""<div class="scroll"><table class="classes">
<tr><th></th><th class="name">class</th>{headings}<th class="name">most taken for</th></tr>
{"".join(rows)}</table></div>
"""


def _worst_section(
    report: Report, number: int, sample: Sample, names: Mapping[str, str], counts: NDArray[np.int64]
) -> str:
    """The section of one sample: figures, biggest confusions, pictures, and a legend of the classes present."""
    total = max(1, int(counts.sum()))
    classes = [_html(shortened(name)) for name in report.classes]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    largest = [divmod(int(place), len(classes)) for place in np.argsort(-wrong, axis=None, kind="stable")[:4]]
    confusions = ", ".join(
        f"{classes[true]} taken for {classes[ours]} {_short_percent(wrong[true, ours] / total)}"
        for true, ours in largest
        if wrong[true, ours]
    )
    if confusions:
        said = f"Of the counted pixels: {confusions}"
    else:
        said = "No pixel is wrong" if counts.any() else "No pixel counted"
    truth, prediction = counts.sum(axis=1) / total, counts.sum(axis=0) / total
    legend = "".join(
        f"<li>{_swatch(report.palette[index])}{classes[index]} "
        f'<span class="faint">{_short_percent(truth[index])} true, '
        f"{_short_percent(prediction[index])} predicted</span></li>\n"
        for index in np.argsort(-np.maximum(truth, prediction), kind="stable")
        if truth[index] + prediction[index]
    )
    pictures = "".join(
        f'<figure><img src="worst/{quote(name)}" loading="lazy" alt="{_html(sample.key)}: {_CAPTIONS[kind]}">'
        f"<figcaption>{_CAPTIONS[kind]}</figcaption></figure>\n"
        for kind, name in names.items()
    )
    return f"""<section class="sample">
<h3>{number}. {_html(sample.key)}</h3>
<p>mIoU {_percent(sample.miou)}, pixel accuracy {_percent(sample.pixel_accuracy)}<br>
{said}</p>
<div class="pictures">
{pictures}</div>
<ul class="legend">
{legend}</ul>
</section>
"""
