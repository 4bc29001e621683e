"""Report: what `isanet.evaluate` measured; as text, as JSON, and as a folder with two images and a page.

All figures are fractions in 0..1, in memory and in report.json; only text, images and page show percent.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet._files import atomic_write
from isanet._text import clean, plural, shortened
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.images.reading import RGBImage
from isanet.viz import charts

SCHEMA = 1
"""Version of the layout of report.json."""

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Sample:
    """The figures of one image.

    Attributes:
        key: What the dataset calls it.
        miou: Mean IoU over the classes that occur in it, a fraction; NaN if no pixel counted.
        pixel_accuracy: Share of the counted pixels that are right, a fraction; NaN if no pixel counted.
    """

    key: str
    miou: float
    pixel_accuracy: float


WorstImage = tuple[Sample, RGBImage, Labels, Labels]
"""A sample, its image (H, W, 3), the predicted labels and the true ones, (H, W); no class of the report: ignored."""


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The result of an evaluation. All figures are fractions in 0..1; NaN where there is nothing to measure.

    `str(report)` is the report for a terminal, in percent.

    Attributes:
        confusion: (K, K) int64 on the CPU, numbers of pixels: rows truth, columns prediction.
        classes: The K names.
        palette: K colors, (red, green, blue) of 0..255.
        dataset: Name of the dataset.
        split: The part of it.
        samples: Number of images evaluated.
        total: Number of images in the split.
        label_space: Name of the space of the classes.
        model: How the model is called.
        protocol: Name of the inference protocol, such as "whole".
        protocol_text: The same in words, such as "whole image, single scale, no flip".
        precision: Number format of the computation, such as "float32".
        device: Where it ran.
        seconds: Wall time.
        ignored: Number of pixels of the truth that were ignored.
        worst: Images with the lowest mIoU, lowest first.
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
                f"{count} classes need a confusion matrix of {count}x{count} and as many colors, got "
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
        facts = [(name, clean(value)) for name, value in self._facts()]
        width = max(len(name) for name, _ in facts)
        columns = self._columns()
        rows = [[heading for heading, _ in columns]]
        rows += [[in_percent(values[name]) for _, values in columns] for name in self.classes]
        names = ["class", *(shortened(name) for name in self.classes)]
        name_width = max(map(_terminal_width, names))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            name + " " * (name_width - _terminal_width(name))
            + "".join("  " + cell.rjust(size) for cell, size in zip(row, widths, strict=True))
            for name, row in zip(names, rows, strict=True)
        ]  # fmt: skip
        means = [(name, in_percent(value)) for name, value in self._means()]
        mean_width = max(len(name) for name, _ in means)
        compared = [f"mIoU {name:<10}  {figure:>6}  {clean(text)}".rstrip() for name, figure, text in self._compared()]
        blocks = [
            [f"{name:<{width}}  {value}" for name, value in facts],
            table,
            [f"{name:<{mean_width}}  {value:>6}" for name, value in means],
            compared + [clean(reason) for reason in self._why_not()],
        ]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def __repr__(self) -> str:
        return f"Report({title(self)}: mIoU {in_percent(self.miou)} %, {self._images()})"

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

    def save(self, folder: str | os.PathLike[str], worst_images: Iterable[WorstImage] = ()) -> None:
        """Write report.json, confusion.png, classes.png, index.html and, when given, the worst images.

        Each file appears whole, report.json as the last. Those of an earlier report are replaced, other files stay.

        Args:
            folder: Made if there is none.
            worst_images: What the page shows after the figures, in its order; taken one at a time, so that a
                generator needs the memory of one.

        Raises:
            OSError: A file cannot be written.
        """
        from isanet.evaluation.page import save_page  # which imports this module

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        confusion = charts.confusion_chart(self.confusion.numpy(), self.classes, title(self))
        write(folder / "confusion.png", charts.to_png(confusion))
        classes = charts.iou_chart(list(self.iou.values()), self.classes, self.palette, "IoU by class", title(self))
        write(folder / "classes.png", charts.to_png(classes))
        save_page(self, folder, worst_images)
        write(folder / "report.json", _json_text(self.to_json()))  # last: where it is, everything is

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

    def _where(self) -> str:
        return f"{self.dataset} {self.split}".rstrip()  # a folder has no split

    def _images(self) -> str:
        return (f"{self.samples} of " if self.samples != self.total else "") + plural(self.total, "image")

    def _facts(self) -> list[tuple[str, str]]:
        """(name, text) of what was evaluated, and how."""
        counted = int(self.confusion.sum())
        speed = f", {self.samples / self.seconds:.2f} images/s" if self.samples and self.seconds > 0 else ""
        pixels = f"{counted:,} counted, {self.ignored:,} ignored"
        if not counted:
            pixels += ": nothing was measured"
        return [
            ("model", self.model),
            ("dataset", f"{self._where()}, {self._images()}"),
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
            ("measured", in_percent(self.miou), f"{self._where()}, {self.protocol_text}"),
            (
                "published",
                in_percent(published["miou"]),
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


# --- text and numbers


def in_percent(value: float) -> str:
    """A fraction in percent, without the sign; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


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


def title(report: Report) -> str:
    """What was evaluated on what."""
    return f"{clean(report.model)} on {clean(report.dataset)} {clean(report.split)}"


def write(path: Path, content: bytes | str) -> None:
    """Write a file that appears whole."""
    if isinstance(content, str):
        # Halves of surrogates, from file names that are no text, become escapes, which JSON has too
        content = content.encode("utf-8", "backslashreplace")
    with atomic_write(path) as file:
        file.write(content)
