"""The demonstration: an unseen street, drawn, segmented and scored; without a network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image

from isanet.datasets import ToyStreets
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.viz.sheet import Preview, draw_sheet

MODEL = "isanet_nano_toystreets"
"""The packaged model."""


class Demo(NamedTuple):
    """One scene and the model's result.

    Attributes:
        result: The labels that the model gave.
        matrix: Confusion matrix of labels vs ground truth.
        overview: The scene, its ground truth, the labels, and a legend with the IoU of each class.
    """

    result: Segmentation
    matrix: ConfusionMatrix
    overview: Image.Image


def demo(seed: int, *, size: tuple[int, int] = (256, 512), device: str = "auto") -> Demo:
    """Draws a scene of `isanet.datasets.ToyStreets` and segments it with the packaged model.

    Args:
        seed: Which scene; the model was trained on none of them.
        size: (height, width) in pixels; the model was trained at the default.
        device: As for `isanet.Segmenter`.

    Raises:
        DatasetError: The seed is negative or the size is too small.
    """
    dataset = ToyStreets(count=1, seed=seed, size=size, split="test")
    image, ground_truth = dataset.read(0)
    result = Segmenter(MODEL, device=device)(image)
    matrix = ConfusionMatrix(len(result.classes))
    matrix.update(torch.from_numpy(result.labels), torch.from_numpy(ground_truth))
    texts = {
        name: f"IoU {iou:.0%}" if iou == iou else ""  # NaN: a class that is in neither
        for name, iou in zip(result.classes, matrix.iou().tolist(), strict=True)
    }
    overview = draw_sheet(
        [Preview(f"seed {seed}", image, result.labels, ground_truth)], result.classes, result.palette, texts
    )
    return Demo(result, matrix, overview)
