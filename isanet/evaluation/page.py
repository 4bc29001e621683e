"""The HTML page of a report: facts, tables, charts, and the images with the lowest mIoU.

The page is `page.html`, filled in. It runs nothing and loads nothing from elsewhere. Names, keys and notes come from
untrusted files: each is cleaned and escaped here.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet._files import output_errors, write_output
from isanet._text import MAX_LINE, percent, percent_number, shortened
from isanet.images.masks import Color
from isanet.images.reading import RGBImage

IMAGE_SIDE = 640
"""Longer side, in pixels, of the images on the page."""

LabelMap = NDArray[np.integer[Any]]

_CAPTIONS = {
    "image": "image",
    "prediction": "prediction",
    "ground_truth": "ground truth (ignored pixels uncolored)",
    "errors": "wrong pixels red, ignored ones gray",
}


@dataclass(frozen=True)
class ImageScore:
    """The figures of one image.

    Attributes:
        key: Its key in the dataset.
        miou: Mean IoU over the classes that occur in it, a fraction; NaN if all pixels are ignored.
        pixel_accuracy: Share of the counted pixels that are correct, a fraction; NaN if all pixels are ignored.
    """

    key: str
    miou: float
    pixel_accuracy: float


class WorstImage(NamedTuple):
    """An image to be shown on the page.

    Attributes:
        score: Its figures.
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) class indices.
        ground_truth: (H, W) class indices; what is no class of the report is ignored.
    """

    score: ImageScore
    image: RGBImage
    prediction: LabelMap
    ground_truth: LabelMap


@dataclass(frozen=True)
class ReportContent:
    """What is shown of a report, on the page and in a terminal; texts are neither cleaned nor escaped."""

    title: str
    facts: Sequence[tuple[str, str]]  # (name, text) of what was evaluated, and how
    means: Sequence[tuple[str, float]]  # (name, fraction) of the metrics over all classes
    comparison: Sequence[tuple[str, str, str]]  # (whose mIoU, percent, of what); empty if no figure is published
    remarks: Sequence[str]  # why there is no comparison
    classes: Sequence[str]
    palette: Sequence[Color]
    columns: Sequence[tuple[str, Mapping[str, float]]]  # (heading, fraction by class), IoU first
    confusion: NDArray[np.int64]  # (K, K) pixels, rows ground truth, columns prediction
    worst: Sequence[ImageScore]  # lowest mIoU first


def save_page(content: ReportContent, folder: Path, worst_images: Iterable[WorstImage]) -> None:
    """Write index.html, and below worst/ the images that it shows; those of an earlier report are removed.

    `worst_images`, in the order of `content.worst`, are taken one at a time. Without any, their scores are listed.

    Raises:
        ValueError: The prediction of a worst image has another size than its ground truth, or a value that is no class.
        OutputError: A file cannot be written.
    """
    sections, names = [], set()
    for number, worst in enumerate(worst_images, 1):
        if (
            worst.prediction.shape != worst.ground_truth.shape
            or not _is_class(worst.prediction, len(content.classes)).all()
        ):
            raise ValueError(
                f"the prediction of {shortened(worst.score.key)} must be of the size of its ground truth and hold "
                f"classes, 0 to {len(content.classes) - 1}"
            )
        written = _save_panels(content.palette, folder / "worst", number, worst)
        sections.append(_worst_section(content, number, worst, written))
        names |= set(written.values())
    write_output(folder / "index.html", _page(content, sections))
    with output_errors(folder / "worst"):
        for path in (folder / "worst").glob("*.jpg"):
            if path.name not in names and re.fullmatch(rf"\d{{2,}}_.*_({'|'.join(_CAPTIONS)})\.jpg", path.name):
                path.unlink()


# --- the page


def _page(content: ReportContent, worst_sections: Sequence[str]) -> str:
    comparison = (
        f'<td class="name">{_html(whose)}</td><td>{_html(figure)}</td><td class="name">{_html(text)}</td>'
        for whose, figure, text in content.comparison
    )
    scores = (
        f'<td class="name">{_html(score.key)}</td><td>{percent_number(score.miou)}</td>'
        f"<td>{percent_number(score.pixel_accuracy)}</td>"
        for score in (() if worst_sections else content.worst)
    )
    worst = "".join(worst_sections) + _table('<th class="name">image</th><th>mIoU</th><th>pixel accuracy</th>', scores)
    template = Template((files(__package__) / "page.html").read_text("utf-8"))
    return template.substitute(
        title=_html(content.title),
        facts="".join(f"<dt>{_html(name)}</dt><dd>{_html(text)}</dd>\n" for name, text in content.facts),
        means="".join(f"<li><b>{percent_number(value)}</b>{_html(name)}</li>\n" for name, value in content.means),
        comparison=_table('<th class="name"></th><th>mIoU</th><th class="name"></th>', comparison)
        + "".join(f"<p>{_html(text[0].upper() + text[1:])}.</p>\n" for text in content.remarks),
        classes=_class_table(content),
        worst=f"<h2>Images with the lowest mIoU</h2>\n{worst}" if worst else "",
    )


def _html(text: str) -> str:
    return escape(shortened(text, MAX_LINE))


def _table(headings: str, rows: Iterable[str]) -> str:
    """A table with a row of headings; nothing without rows."""
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{headings}</tr>\n{body}</table></div>\n' if body else ""


def _swatch(color: Color) -> str:
    red, green, blue = color
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _class_table(content: ReportContent) -> str:
    headings = "".join(f"<th>{_html(heading)}</th>" for heading, _ in content.columns)
    confused = _most_confused(content)
    rows = []
    for index, name in enumerate(content.classes):
        iou, *others = (values[name] for _, values in content.columns)
        width = 0 if math.isnan(iou) else 100 * iou
        cells = "".join(f"<td>{percent_number(value)}</td>" for value in others)
        rows.append(
            f'<td>{index}</td><td class="name">{_swatch(content.palette[index])}{_html(shortened(name, 100))}</td>'
            f'<td><span class="bar"><span style="width:{width:.1f}%"></span></span>'
            f'<span class="value">{percent_number(iou)}</span></td>{cells}'
            f'<td class="name">{escape(confused[index])}</td>'
        )
    return _table(f'<th></th><th class="name">class</th>{headings}<th class="name">most confused with</th>', rows)


def _most_confused(content: ReportContent) -> list[str]:
    """For each class the other one that it is most often predicted as, with the share; empty if none."""
    wrong, totals = _off_diagonal(content.confusion), content.confusion.sum(axis=1)
    return [
        f"{shortened(content.classes[other])} {percent(row[other] / total, 1)}" if row[other] else ""
        for row, other, total in zip(wrong, wrong.argmax(axis=1), totals, strict=True)
    ]


def _worst_section(content: ReportContent, number: int, worst: WorstImage, written: Mapping[str, str]) -> str:
    """The section of one image: figures, largest confusions, panels, and a legend of the classes present."""
    score, classes = worst.score, [_html(shortened(name)) for name in content.classes]
    counts = _counts(len(classes), worst)
    total = max(1, int(counts.sum()))
    wrong = _off_diagonal(counts)
    largest = [divmod(int(index), len(classes)) for index in np.argsort(-wrong, axis=None, kind="stable")[:4]]
    confusions = ", ".join(
        f"{classes[true]} predicted as {classes[predicted]} {percent(wrong[true, predicted] / total, 1)}"
        for true, predicted in largest
        if wrong[true, predicted]
    )
    if confusions:
        summary = f"Of the counted pixels: {confusions}"
    else:
        summary = "No pixel is wrong" if counts.any() else "No pixel counted"
    true_shares, predicted_shares = counts.sum(axis=1) / total, counts.sum(axis=0) / total
    legend = "".join(
        f"<li>{_swatch(content.palette[index])}{classes[index]} "
        f'<span class="faint">{percent(true_shares[index], 1)} of the ground truth, '
        f"{percent(predicted_shares[index], 1)} of the prediction</span></li>\n"
        for index in np.argsort(-np.maximum(true_shares, predicted_shares), kind="stable")
        if true_shares[index] + predicted_shares[index]
    )
    panels = "".join(
        f'<figure><img src="worst/{quote(name)}" loading="lazy" alt="{_html(score.key)}: {_CAPTIONS[kind]}">'
        f"<figcaption>{_CAPTIONS[kind]}</figcaption></figure>\n"
        for kind, name in written.items()
    )
    return f"""<section class="sample">
<h3>{number}. {_html(score.key)}</h3>
<p>mIoU {percent_number(score.miou)}, pixel accuracy {percent_number(score.pixel_accuracy)}<br>
{summary}</p>
<div class="images">
{panels}</div>
<ul class="legend">
{legend}</ul>
</section>
"""


def _counts(num_classes: int, worst: WorstImage) -> NDArray[np.int64]:
    """(K, K) pixels of one image by ground truth and prediction."""
    counted = _is_class(worst.ground_truth, num_classes)
    pairs = worst.ground_truth[counted].astype(np.int64) * num_classes + worst.prediction[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _off_diagonal(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return counts - np.diag(counts.diagonal())


def _is_class(labels: LabelMap, num_classes: int) -> NDArray[np.bool_]:
    return np.asarray((labels >= 0) & (labels < num_classes))


# --- the panels of an image


def _save_panels(palette: Sequence[Color], folder: Path, number: int, worst: WorstImage) -> dict[str, str]:
    """Write the panels of one image; returns the names of the files by kind."""
    # The end of a key tells images apart; only characters that every file system has
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", worst.score.key)[-60:].strip("._-") or "image"
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    written = {}
    for kind, panel in _panels(palette, worst).items():
        written[kind] = f"{number:02}_{stem}_{kind}.jpg"
        # Not into the file itself: Pillow's JPEG encoder does not notice when a full disk takes only a part of a write
        stream = io.BytesIO()
        panel.save(stream, format="JPEG", quality=88, subsampling=0)  # chroma would blur at the edges of classes
        write_output(folder / written[kind], stream.getbuffer())
    return written


def _panels(palette: Sequence[Color], worst: WorstImage) -> dict[str, Image.Image]:
    """The panels of one image by kind, at most `IMAGE_SIDE` pixels wide and high."""
    small = Image.fromarray(worst.image)
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    prediction, ground_truth = (
        np.asarray(Image.fromarray(labels.astype(np.int32)).resize(small.size, Image.Resampling.NEAREST))
        for labels in (worst.prediction, worst.ground_truth)
    )
    base = np.asarray(small).astype(np.float32)
    colors = np.array(palette, np.float32)

    def colored(labels: LabelMap) -> Image.Image:
        known = _is_class(labels, len(palette))
        blend = (base + colors[np.where(known, labels, 0)]) / 2
        return Image.fromarray(np.where(known[..., None], blend, base).round().astype(np.uint8))

    counted = _is_class(ground_truth, len(palette))
    errors = np.repeat(base.mean(axis=2, keepdims=True), 3, axis=2) * 0.35 + 165  # lighter than ignored pixels
    wrong = counted & (prediction != ground_truth)
    errors[wrong] = errors[wrong] * 0.3 + np.array((216, 24, 24)) * 0.7
    errors[~counted] = 120
    return {
        "image": small,
        "prediction": colored(prediction),
        "ground_truth": colored(ground_truth),
        "errors": Image.fromarray(errors.round().astype(np.uint8)),
    }
