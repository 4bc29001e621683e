"""What the tests of the evaluation share: a quick call, a slow and simple reference, an interrupted dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from isanet import datasets
from isanet.evaluation.evaluate import evaluate
from isanet.evaluation.report import Report
from isanet.inference.segmenter import Segmenter

KINDS = {"voc": "voc21", "ade20k": "ade20k150", "cityscapes": "cityscapes19"}


def quick_evaluate(model: Any, dataset: datasets.SegmentationDataset, **options: Any) -> Report:
    counts_reads = isinstance(dataset, InterruptedCityscapes)  # looking for a second class is one more
    defaults = {"workers": 0, "device": "cpu", "progress": False, "allow_absent": counts_reads}
    return evaluate(model, dataset, **{**defaults, **options})


def confusion_by_pixel(
    model: Any, dataset: datasets.SegmentationDataset, indices: list[int] | None = None
) -> np.ndarray:
    """The confusion matrix, one image and one pixel at a time."""
    segmenter = Segmenter(model, device="cpu")
    confusion = np.zeros((len(dataset.classes),) * 2, np.int64)
    for index in range(len(dataset)) if indices is None else indices:
        image, mask = dataset[index]
        labels = segmenter(image).labels
        ground_truth = np.asarray(mask)
        counted = ground_truth != 255
        np.add.at(confusion, (ground_truth[counted], labels[counted]), 1)
    return confusion


class InterruptedCityscapes(datasets.Cityscapes):
    """Records its reads, and fails at the `at`-th."""

    at = -1
    error: BaseException = KeyboardInterrupt()

    def read(self, index: Any) -> Any:
        self.reads = [*getattr(self, "reads", []), index]
        if len(self.reads) == self.at:
            raise self.error
        return super().read(index)
