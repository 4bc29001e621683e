"""The demonstration: an unseen street, drawn, segmented and scored; and a small dataset to try training on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from isanet._files import new_folder
from isanet.datasets import ToyStreets
from isanet.datasets.folder import write_classes
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.labels import merged
from isanet.viz.sheet import Preview, draw_sheet

MODEL = "isanet_nano_toystreets"
"""The packaged model."""


GROUPS = {
    "ground": ("road", "sidewalk", "terrain"),
    "structure": ("building", "pole", "traffic light", "traffic sign"),
    "traffic": ("person", "car"),
}
"""Classes of the dataset that `write_dataset` makes of those that the packaged model knows."""


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


def demo(seed: int, *, size: tuple[int, int] = (512, 1024), device: str = "auto") -> Demo:
    """Draws a scene of `isanet.datasets.ToyStreets` and segments it with the packaged model.

    Args:
        seed: Which scene; the model was trained on none of them.
        size: (height, width) in pixels; the model resizes what it sees, and is as good at half the default.
        device: As for `isanet.Segmenter`.

    Raises:
        DatasetError: The seed is negative or the size is too small.
    """
    dataset = ToyStreets(count=1, seed=seed, size=size, split="test")
    image, ground_truth = dataset.read(0)
    result = Segmenter(MODEL, device=device)(image)
    matrix = ConfusionMatrix(len(result.classes))
    matrix.update(torch.from_numpy(result.labels), torch.from_numpy(ground_truth))
    scores = dict(zip(result.classes, matrix.iou().tolist(), strict=True))
    title = f"mIoU {matrix.miou():.0%} on a street that {MODEL} has never seen"
    preview = Preview(f"seed {seed}", image, result.labels, ground_truth)
    overview = draw_sheet([preview], result.classes, result.palette, scores, columns=2, title=title)
    return Demo(result, matrix, overview)


def write_dataset(folder: Path, count: int = 20) -> None:
    """Write a folder of drawn images and masks, of other classes than the packaged model has, to try training on.

    Args:
        folder: To be made: `images/`, `masks/` and `classes.txt`.
        count: Number of images, 240x320 pixels each.

    Raises:
        OutputError: The folder exists and is not empty, or cannot be written; nothing is left of it then.
    """
    scenes = ToyStreets(count=count, seed=20, size=(240, 320))
    space, index_of = merged(scenes.label_space, GROUPS)
    lookup = np.array(index_of, np.uint8)
    with new_folder(folder) as made:
        for name in ("images", "masks"):
            (made / name).mkdir()
        for number in range(count):
            image, labels = scenes.read(number)
            Image.fromarray(image).save(made / "images" / f"street_{number + 1:02}.png")
            mask = Image.fromarray(lookup[labels])
            mask.putpalette([value for color in space.palette for value in color])
            mask.save(made / "masks" / f"street_{number + 1:02}.png")
        write_classes(made / "classes.txt", space)
