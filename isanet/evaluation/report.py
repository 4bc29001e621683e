"""Report: what `isanet.evaluate` measured; as text, as JSON, and as a folder with charts and a page.

All figures are fractions in 0..1, in memory and in report.json; only text, charts and page show percent.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet._files import output_errors, write_output
from isanet._text import (
    aligned,
    clean,
    csv_line,
    duration,
    latex_text,
    markdown_table,
    markdown_text,
    percent_number,
    plural,
    shortened,
)
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.evaluation.page import ImageScore, ReportContent, WorstImage, save_page
from isanet.viz import charts

REPORT_FILES = ("index.html", "confusion.png", "classes.png", "report.json", "worst")
"""What `Report.save` writes; the last is a folder."""

SCHEMA = 1
"""Version of the layout of report.json."""

_DERIVED = (
    "miou", "measured_classes", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "mean_boundary",
    "iou", "precision_by_class", "recall_by_class", "share_by_class",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The result of an evaluation. All figures are fractions in 0..1; NaN where there is nothing to measure.

    `str(report)` is the report for a terminal, in percent.

    >>> report = isanet.evaluate(model, dataset, progress=False)
    >>> report.num_images, 0 < report.miou < 1, report.iou["car"] > report.miou
    (4, True, True)

    Attributes:
        confusion: (K, K) int64 on the CPU, numbers of pixels: rows ground truth, columns prediction.
        classes: The K names.
        palette: K colors, (red, green, blue) of 0..255.
        dataset: Name of the dataset.
        split: Name of the split; empty if there is none.
        num_images: Number of images evaluated.
        dataset_size: Number of images in the dataset's split.
        label_space: Name of the label space of the classes.
        model: Name of the model.
        protocol: Name of the inference protocol, such as "whole".
        protocol_text: The protocol in words, such as "whole image, single scale, no flip".
        protocol_reason: Why it was taken: "the model's own" or "as asked"; empty if it is not known.
        precision: Number format of the computation, such as "float32".
        device: Where it ran.
        seconds: Wall time.
        ignored_pixels: Number of ground-truth pixels that were ignored.
        worst: Images with the lowest mIoU, lowest first.
        published: `dataset`, `split`, `miou` (a fraction) and `protocol` of the model's published figure, or None.
        incomparable: Why the published figure and the measured one cannot be compared; empty when they can.
        notes: Sentences for the reader.
        boundary: Boundary F-score by class, fractions, NaN for absent classes; None if not measured.

    Raises:
        ValueError: Confusion matrix, classes and palette have different sizes.
    """

    confusion: Tensor
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    dataset: str
    split: str
    num_images: int
    dataset_size: int
    label_space: str
    model: str
    protocol: str
    protocol_text: str
    precision: str
    device: str
    seconds: float
    ignored_pixels: int
    worst: tuple[ImageScore, ...] = ()
    published: Mapping[str, Any] | None = None
    incomparable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    boundary: Mapping[str, float] | None = None
    protocol_reason: str = ""

    def __post_init__(self) -> None:
        count = len(self.classes)
        if self.confusion.shape != (count, count) or len(self.palette) != count:
            raise ValueError(
                f"{count} classes need a confusion matrix of {count}x{count} and as many colors, got "
                f"{'x'.join(map(str, self.confusion.shape))} and {len(self.palette)}"
            )

    # --- figures

    @cached_property
    def _matrix(self) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.matrix += self.confusion
        return matrix

    def _by_class(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.classes, values.tolist(), strict=True))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are not absent, a fraction."""
        return self._matrix.miou()

    @property
    def measured_classes(self) -> int:
        """Number of classes that are not absent, of which `miou` is the mean."""
        return int((~self._matrix.iou().isnan()).sum())

    @property
    def absent_classes_note(self) -> str:
        """`", 1 of 2 classes measured"`, for behind the mIoU; empty if all are."""
        measured, count = self.measured_classes, len(self.classes)
        return "" if measured == count else f", {measured} of {count} classes measured"

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are correct, a fraction."""
        return self._matrix.pixel_accuracy()

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over the classes in the ground truth, a fraction."""
        return self._matrix.mean_accuracy()

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by the classes' ground-truth pixels, a fraction."""
        return self._matrix.frequency_weighted_iou()

    @property
    def mean_boundary(self) -> float | None:
        """Mean boundary F-score over the classes that are not absent, a fraction; None if not measured."""
        if self.boundary is None:
            return None
        return float(torch.tensor(list(self.boundary.values()), dtype=torch.float64).nanmean())

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class, fractions; NaN where a class is in neither ground truth nor prediction."""
        return self._by_class(self._matrix.iou())

    @property
    def precision_by_class(self) -> dict[str, float]:
        """Correct share of each class's predicted pixels, fractions; NaN where it is never predicted."""
        return self._by_class(self._matrix.precision())

    @property
    def recall_by_class(self) -> dict[str, float]:
        """Correct share of each class's ground-truth pixels, fractions; NaN where there are none."""
        return self._by_class(self._matrix.recall())

    @property
    def share_by_class(self) -> dict[str, float]:
        """Share of each class in the counted ground truth, fractions; NaN if no pixel was counted."""
        return self._by_class(self.confusion.sum(dim=1).double() / self.confusion.sum())

    # --- text

    def __str__(self) -> str:
        """The report for a terminal, in percent."""
        content = self._content()
        rows = [[shortened(name), *figures] for name, *figures in self._table()[:-1]]
        comparison = [
            f"mIoU {whose:<10}  {figure:>6}  {clean(text)}".rstrip() for whose, figure, text in content.comparison
        ]
        blocks = [
            aligned([(name, clean(text)) for name, text in content.facts], left=2),
            aligned(rows),
            aligned([(name, f"{percent_number(value):>6}") for name, value in content.means]),
            comparison + [clean(remark) for remark in content.remarks],
        ]
        return "\n\n".join("\n".join(block) for block in blocks)

    def __repr__(self) -> str:
        miou = f"mIoU {percent_number(self.miou)} %{self.absent_classes_note}"
        return f"Report({self._title()}: {miou}, {self._images()})"

    def to_csv(self) -> str:
        """The figures of each class as CSV: fractions, and an empty field where there is nothing to measure.

        >>> report.to_csv().splitlines()[0]
        'class,IoU,precision,recall,share'
        """
        columns = self._content().columns
        lines = [csv_line(["class", *(heading for heading, _ in columns)])]
        for name in self.classes:
            figures = (values[name] for _, values in columns)
            lines.append(csv_line([name, *("" if math.isnan(figure) else figure for figure in figures)]))
        return "".join(lines)

    def to_markdown(self) -> str:
        """The figures of each class and their means as a table of Markdown, in percent.

        >>> print(report.to_markdown())
        | class...
        """
        return markdown_table([[markdown_text(cell) for cell in row] for row in self._table()])

    def to_latex(self) -> str:
        """The figures of each class and their means as a `tabular` of LaTeX, in percent; needs no package.

        >>> table = report.to_latex()
        >>> "tabular" in table.splitlines()[0]
        True
        """
        head, *rows, means = (" & ".join(map(latex_text, row)) + " \\\\" for row in self._table())
        columns = "l" + "r" * len(self._content().columns)
        lines = [f"\\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *rows, r"\hline", means, r"\hline"]
        return "\n".join([*lines, "\\end{tabular}\n"])

    def _table(self) -> list[list[str]]:
        """A head, a row for each class and one of means, in percent; names are as they are."""
        columns = self._content().columns
        means = {"IoU": self.miou, "recall": self.mean_accuracy, "boundary F": self.mean_boundary}
        rows = [["class", *(heading for heading, _ in columns)]]
        rows += [[name, *(percent_number(values[name]) for _, values in columns)] for name in self.classes]
        shown = ["" if (mean := means.get(heading)) is None else percent_number(mean) for heading, _ in columns]
        return [*rows, [f"mean{self.absent_classes_note}", *shown]]

    def _title(self) -> str:
        return clean(f"{self.model} on {self.dataset} {self.split}")

    def _images(self) -> str:
        evaluated = f"{self.num_images} of " if self.num_images != self.dataset_size else ""
        return evaluated + plural(self.dataset_size, "image")

    def _content(self) -> ReportContent:
        counted = int(self.confusion.sum())
        speed = f", {self.num_images / self.seconds:.2f} images/s" if self.num_images and self.seconds > 0 else ""
        nothing = "" if counted else ": nothing was measured"
        where = f"{self.dataset} {self.split}".rstrip()
        reason = f" ({self.protocol_reason})" if self.protocol_reason else ""
        mean_boundary = self.mean_boundary
        comparison, remarks = self._compared(where)
        return ReportContent(
            title=self._title(),
            facts=[
                ("model", self.model),
                ("dataset", f"{where}, {self._images()}"),
                ("classes", f"{len(self.classes)} of {self.label_space}"),
                ("protocol", f"{self.protocol}: {self.protocol_text}{reason}"),
                ("computed", f"on {self.device} in {self.precision}, {duration(self.seconds)}{speed}"),
                ("pixels", f"{counted:,} counted, {self.ignored_pixels:,} ignored{nothing}"),
                *(("note", note) for note in self.notes),
            ],
            means=[
                (f"mIoU{self.absent_classes_note}", self.miou),
                ("pixel accuracy", self.pixel_accuracy),
                ("mean accuracy", self.mean_accuracy),
                ("frequency-weighted IoU", self.frequency_weighted_iou),
                *([] if mean_boundary is None else [("boundary F-score", mean_boundary)]),
            ],
            comparison=comparison,
            remarks=remarks,
            classes=self.classes,
            palette=self.palette,
            columns=[
                ("IoU", self.iou),
                ("precision", self.precision_by_class),
                ("recall", self.recall_by_class),
                ("share", self.share_by_class),
                *([] if self.boundary is None else [("boundary F", self.boundary)]),
            ],
            confusion=self.confusion.numpy(),
            worst=self.worst,
        )

    def _compared(self, where: str) -> tuple[list[tuple[str, str, str]], list[str]]:
        """The comparison with the published figure, and the remarks on it; see `ReportContent`."""
        published = self.published
        if published is None:
            return [], ["no figure is published for this model"]
        published_on = f"{published['dataset']} {published['split']}, {published['protocol']}"
        rows = [
            ("measured", percent_number(self.miou), f"{where}, {self.protocol_text}"),
            ("published", percent_number(published["miou"]), published_on),
        ]
        if self.incomparable:
            return rows, [f"not comparable: {'; '.join(self.incomparable)}"]
        if not math.isnan(self.miou):
            # Of the figures as shown, so that the three lines add up
            difference = round(100 * self.miou, 2) - round(100 * published["miou"], 2)
            rows.append(("difference", f"{round(difference, 2) + 0.0:+.2f}", ""))
        return rows, []

    # --- JSON and files

    def to_json(self) -> dict[str, Any]:
        """Everything, including derived figures, ready for `json.dumps`: figures as fractions, NaN as None.

        >>> report.to_json()["miou"] == report.miou
        True
        """
        document = {
            "schema": SCHEMA,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "confusion": self.confusion.tolist(),
            "worst": [asdict(score) for score in self.worst],
            **{name: getattr(self, name) for name in _DERIVED},
        }
        result: dict[str, Any] = _json_value(document)
        return result

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Report:
        """The report whose `to_json` this is.

        >>> isanet.Report.from_json(report.to_json()).miou == report.miou
        True

        Raises:
            ValueError: It is not one; the message says what is wrong.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {document.get('schema')!r}; a newer isanet may read it")
        try:
            document = {"protocol_reason": "", **document}  # earlier versions did not write it
            values = {field.name: document[field.name] for field in fields(cls)}
            values |= {name: tuple(values[name]) for name in ("classes", "incomparable", "notes")}
            values["confusion"] = torch.tensor(values["confusion"], dtype=torch.int64)
            values["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in values["palette"])
            values["worst"] = tuple(
                ImageScore(score["key"], _float(score["miou"]), _float(score["pixel_accuracy"]))
                for score in values["worst"]
            )
            boundary = values["boundary"]
            values["boundary"] = None if boundary is None else {name: _float(boundary[name]) for name in boundary}
            return cls(**values)
        except KeyError as error:
            raise ValueError(f"missing field {error}") from error
        except TypeError as error:
            raise ValueError(f"a field has an unexpected value: {error}") from error

    def save(self, folder: str | os.PathLike[str], worst_images: Iterable[WorstImage] = ()) -> None:
        """Write report.json, confusion.png, classes.png, index.html and, if given, the worst images.

        Each file is written atomically, report.json last. Those of an earlier report are replaced, other files kept.

        >>> report.save("evaluated")
        >>> "index.html" in os.listdir("evaluated")
        True

        Args:
            folder: Created if it does not exist.
            worst_images: Shown on the page, in this order; taken one at a time, so that a generator needs the memory
                of one.

        Raises:
            ValueError: The prediction of a worst image has another size than its ground truth, or no classes.
            OutputError: A file cannot be written.
        """
        folder = Path(folder)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        content = self._content()
        confusion = charts.confusion_chart(content.confusion, self.classes, content.title)
        write_output(folder / "confusion.png", charts.to_png(confusion))
        bars = charts.iou_chart(list(self.iou.values()), self.classes, self.palette, "IoU by class", content.title)
        write_output(folder / "classes.png", charts.to_png(bars))
        save_page(content, folder, worst_images)
        write_output(folder / "report.json", _json_text(self.to_json()))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Report:
        """Read the report.json that `save` wrote.

        >>> report.save("evaluated")
        >>> isanet.Report.load("evaluated").miou == report.miou
        True

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


def _json_value(value: Any) -> Any:
    """The value in JSON types: tuples as lists, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _float(value: float | None) -> float:
    """The reverse of `_json_value` for a figure."""
    return math.nan if value is None else float(value)


def _json_text(document: Mapping[str, Any]) -> str:
    """JSON with one line for each field; `indent` would take one for each number of the matrix."""
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    return "{\n " + ",\n ".join(f"{dumps(key)}: {dumps(value)}" for key, value in document.items()) + "\n}\n"
