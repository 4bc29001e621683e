"""What a training run writes beside its state: provenance, history, previews; and what it tells trackers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from isanet._version import __version__
from isanet.datasets.base import SegmentationDataset
from isanet.evaluation.page import LabelMap, WorstImage
from isanet.evaluation.report import Report
from isanet.images.reading import RGBImage
from isanet.inference.segmenter import Segmenter
from isanet.labels import IGNORED
from isanet.training.plan import Plan
from isanet.training.recipe import Recipe
from isanet.training.state import HistoryRow
from isanet.viz.sheet import Preview, draw_sheet, sheet_png

NUM_PREVIEWS = 6
"""Images on the sheet of overlays."""


def provenance(plan: Plan, step: int, report: Report | None) -> dict[str, str]:
    """Where the weights after a step came from, and what was measured of them."""
    origin, result = plan.origin, {"source": "isanet finetune", "isanet_version": __version__}
    names = (origin[key] for key in ("started_from", "name", "source", "backbone_source") if key in origin)
    if started_from := next(names, None):
        result["started_from"] = started_from
    if "source_sha256" in origin:
        result["started_from_sha256"] = origin["source_sha256"]
    name = f"{plan.train.name} {plan.train.split or ''}".rstrip()
    result["trained_on"] = f"{name}, {len(plan.train)} images"
    result["step"] = step_text(plan, step)
    result["recipe"] = plan.recipe.to_json()
    if report is not None:
        where = f"{report.dataset} {report.split}".rstrip()
        text = f"mIoU {100 * report.miou:.2f} % on {where}, {report.num_images} images ({report.protocol_text})"
        text += report.absent_classes_note
        shared = f", of which {plan.num_shared} are in the training data too" if plan.num_shared else ""
        result["measured"] = text + shared
    return result


def step_text(plan: Plan, step: int | None) -> str:
    """A step as the provenance has it."""
    return f"{step} of {plan.batches.steps}"


def history_csv(history: Sequence[HistoryRow]) -> bytes:
    """The history as CSV, with an empty field for no mIoU."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HistoryRow._fields)
    for step, epoch, loss, lr, rate, miou in history:
        shown = "" if math.isnan(miou) else f"{miou:.6f}"
        writer.writerow((int(step), f"{epoch:.4f}", f"{loss:.8g}", f"{lr:.8g}", f"{rate:.2f}", shown))
    return text.getvalue().encode()


def tracker_config(recipe: Recipe) -> dict[str, int | float | str]:
    """Recipe fields as scalars for trackers."""
    return {
        name: value if isinstance(value, int | float | str) else str(value) for name, value in asdict(recipe).items()
    }


def overlays(segmenter: Segmenter, val: SegmentationDataset) -> bytes:
    """A PNG: some images of a dataset, each with its ground truth and its prediction."""
    number = min(NUM_PREVIEWS, len(val))
    indices = [i * len(val) // number for i in range(number)]
    previews = (Preview(val.keys[index], *_predicted(segmenter, val, index)) for index in indices)
    return sheet_png(draw_sheet(previews, segmenter.model.classes, segmenter.model.palette))


def worst_images(segmenter: Segmenter, val: SegmentationDataset, report: Report) -> Iterator[WorstImage]:
    """The images of `report.worst` with their prediction and ground truth, one at a time."""
    for score in report.worst:
        yield WorstImage(score, *_predicted(segmenter, val, val.keys.index(score.key)))


def training_accuracy(segmenter: Segmenter, train: SegmentationDataset) -> dict[str, float]:
    """For each training image the share of its pixels that count which the model labels as its mask does."""
    result = {}
    for index, key in enumerate(train.keys):
        _, labels, mask = _predicted(segmenter, train, index)
        if (counted := mask != IGNORED).any():
            result[key] = float((labels == mask)[counted].mean())
    return result


def _predicted(segmenter: Segmenter, val: SegmentationDataset, index: int) -> tuple[RGBImage, LabelMap, LabelMap]:
    """An image, its prediction and its ground truth."""
    image, mask = val.read(index)
    assert mask is not None
    return image, segmenter(image).labels, mask
