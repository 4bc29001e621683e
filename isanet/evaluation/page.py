"""The page of a report: figures, tables, and the worst images with prediction and truth."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet._files import atomic_write
from isanet._text import clean, percent, shortened
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.evaluation.report import Labels, Report, Sample, WorstImage, in_percent, title, write
from isanet.images.masks import Color
from isanet.images.reading import RGBImage

IMAGE_SIDE = 640
"""Longer side, in pixels, of the images on the page."""

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
.images { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
@media (max-width: 40rem) { .images { grid-template-columns: 1fr; } }
figure { margin: 0; }
figcaption { color: var(--faint); font-size: .9rem; }
.images img { width: 100%; height: auto; display: block; border-radius: .3rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .75rem 0 0; list-style: none;
  font-size: .9rem; }
"""

_CAPTIONS = {
    "image": "image",
    "prediction": "prediction",
    "truth": "truth (ignored pixels uncolored)",
    "errors": "wrong pixels red, ignored ones gray",
}


def save_page(report: Report, folder: Path, worst_images: Iterable[WorstImage]) -> None:
    """Write index.html, and below worst/ the images that it shows; those of an earlier report are removed."""
    sections, names = [], set()
    for number, worst in enumerate(worst_images, 1):
        section, written = _save_worst(report, folder / "worst", number, worst)
        sections.append(section)
        names |= written
    write(folder / "index.html", _page(report, sections))
    for path in (folder / "worst").glob("*.jpg"):
        if path.name not in names and re.fullmatch(rf"\d{{2,}}_.*_({'|'.join(_CAPTIONS)})\.jpg", path.name):
            path.unlink()


def _html(text: str) -> str:
    return escape(clean(text))


def _swatch(color: Color) -> str:
    red, green, blue = color
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _page(report: Report, sections: Sequence[str]) -> str:
    """The whole page; `sections` are those of the worst images."""
    facts = "".join(f"<dt>{_html(name)}</dt><dd>{_html(text)}</dd>\n" for name, text in report._facts())
    means = "".join(f"<li><b>{in_percent(value)}</b>{_html(name)}</li>\n" for name, value in report._means())
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
            f'<tr><td class="name">{_html(sample.key)}</td><td>{in_percent(sample.miou)}</td>'
            f"<td>{in_percent(sample.pixel_accuracy)}</td></tr>\n"
            for sample in report.worst
        )
        worst = f"""<div class="scroll"><table>
<tr><th class="name">image</th><th>mIoU</th><th>pixel accuracy</th></tr>
{rows}</table></div>
"""
    if worst:
        worst = f"<h2>Images with the lowest mIoU</h2>\n{worst}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(report))}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title(report))}</h1>
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
has none. Colors grow with the square root, to show small confusions.</p>
<p class="wide"><a href="confusion.png"><img src="confusion.png" loading="lazy" \
alt="Confusion matrix, divided by the sums of its rows"></a></p>
{worst}</body>
</html>
"""


def _class_table(report: Report) -> str:
    columns = report._columns()
    headings = "".join(f"<th>{_html(heading)}</th>" for heading, _ in columns)
    rows = []
    taken = _confused_with(report)
    for index, name in enumerate(report.classes):
        iou, *others = (values[name] for _, values in columns)
        width = 0 if math.isnan(iou) else 100 * iou
        cells = "".join(f"<td>{in_percent(value)}</td>" for value in others)
        rows.append(
            f'<tr><td>{index}</td><td class="name">{_swatch(report.palette[index])}{_html(name)}</td>'
            f'<td><span class="bar"><span style="width:{width:.1f}%"></span></span>'
            f'<span class="value">{in_percent(iou)}</span></td>{cells}'
            f'<td class="name">{escape(taken[index])}</td></tr>\n'
        )
    return f"""<div class="scroll"><table class="classes">
<tr><th></th><th class="name">class</th>{headings}<th class="name">most taken for</th></tr>
{"".join(rows)}</table></div>
"""


def _confused_with(report: Report) -> list[str]:
    """For each class the other one that it is most often taken for, with the share; empty if none."""
    wrong = report.confusion.numpy().copy()
    totals = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    return [
        f"{shortened(report.classes[other])} {percent(row[other] / total, 1)}" if row[other] else ""
        for row, other, total in zip(wrong, wrong.argmax(axis=1), totals, strict=True)
    ]


def _worst_section(
    report: Report, number: int, sample: Sample, names: Mapping[str, str], counts: NDArray[np.int64]
) -> str:
    """The section of one sample: figures, biggest confusions, images, and a legend of the classes present."""
    total = max(1, int(counts.sum()))
    classes = [_html(shortened(name)) for name in report.classes]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    largest = [divmod(int(place), len(classes)) for place in np.argsort(-wrong, axis=None, kind="stable")[:4]]
    confusions = ", ".join(
        f"{classes[true]} taken for {classes[ours]} {percent(wrong[true, ours] / total, 1)}"
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
        f'<span class="faint">{percent(truth[index], 1)} true, '
        f"{percent(prediction[index], 1)} predicted</span></li>\n"
        for index in np.argsort(-np.maximum(truth, prediction), kind="stable")
        if truth[index] + prediction[index]
    )
    images = "".join(
        f'<figure><img src="worst/{quote(name)}" loading="lazy" alt="{_html(sample.key)}: {_CAPTIONS[kind]}">'
        f"<figcaption>{_CAPTIONS[kind]}</figcaption></figure>\n"
        for kind, name in names.items()
    )
    return f"""<section class="sample">
<h3>{number}. {_html(sample.key)}</h3>
<p>mIoU {in_percent(sample.miou)}, pixel accuracy {in_percent(sample.pixel_accuracy)}<br>
{said}</p>
<div class="images">
{images}</div>
<ul class="legend">
{legend}</ul>
</section>
"""


# --- the worst images


def _save_worst(report: Report, folder: Path, number: int, worst: WorstImage) -> tuple[str, set[str]]:
    """Write the images of one sample; gives its section of the page, and the names of the files."""
    sample, pixels, predicted, true = worst
    counts = _counted(len(report.classes), predicted, true)
    stem = f"{number:02}_{_safe(sample.key)}"
    folder.mkdir(exist_ok=True)
    written = {}
    for kind, image in _panels(report.palette, pixels, predicted, true).items():
        written[kind] = f"{stem}_{kind}.jpg"
        with atomic_write(folder / written[kind]) as file:
            image.save(file, format="JPEG", quality=88, subsampling=0)  # all of the colors at edges of classes
    return _worst_section(report, number, sample, written, counts), set(written.values())


def _safe(key: str) -> str:
    """The end of a key, which tells images apart, in characters that every file system has."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", key)[-60:].strip("._-") or "sample"


def _counted(count: int, predicted: Labels, true: Labels) -> NDArray[np.int64]:
    """(K, K) pixels of one image, by truth and prediction."""
    matrix = ConfusionMatrix(count, ignore_index=-1)
    known = _is_class(predicted, count) & _is_class(true, count)
    matrix.update(predicted, np.where(known, true.astype(np.int32), -1))
    counts: NDArray[np.int64] = matrix.matrix.numpy()
    return counts


def _is_class(labels: Labels, count: int) -> NDArray[np.bool_]:
    return np.asarray((labels >= 0) & (labels < count))


def _panels(palette: Sequence[Color], image: RGBImage, predicted: Labels, true: Labels) -> dict[str, Image.Image]:
    """What the page shows of one sample, by kind."""
    shown = Image.fromarray(image)
    shown.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    ours, truth = (
        np.asarray(Image.fromarray(labels.astype(np.int32)).resize(shown.size, Image.Resampling.NEAREST))
        for labels in (predicted, true)
    )
    base = np.asarray(shown).astype(np.float32)
    colors = np.array(palette, np.float32)

    def colored(labels: Labels) -> Image.Image:
        known = _is_class(labels, len(palette))
        blend = (base + colors[np.where(known, labels, 0)]) / 2
        return Image.fromarray(np.where(known[..., None], blend, base).round().astype(np.uint8))

    counted = _is_class(truth, len(palette))
    errors = np.repeat(base.mean(axis=2, keepdims=True), 3, axis=2) * 0.35 + 165  # lighter than what is ignored
    wrong = counted & (ours != truth)
    errors[wrong] = errors[wrong] * 0.3 + np.array((216, 24, 24)) * 0.7
    errors[~counted] = 120
    return {
        "image": shown,
        "prediction": colored(ours),
        "truth": colored(truth),
        "errors": Image.fromarray(errors.round().astype(np.uint8)),
    }
