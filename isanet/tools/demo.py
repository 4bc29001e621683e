"""The demonstration: a street that nobody has seen, drawn, segmented, measured, and shown; without a network."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from isanet._files import atomic_write
from isanet.datasets import ToyStreets
from isanet.errors import CacheError
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.viz.sheet import Preview, draw_sheet

MODEL = "isanet_nano_toystreets"
"""The model that the package carries."""


class Demo(NamedTuple):
    """One scene and what the model made of it.

    Attributes:
        result: The labels that the model gave.
        matrix: They against the truth.
        overview: The scene, its truth, the labels, and a legend with the IoU of each class.
    """

    result: Segmentation
    matrix: ConfusionMatrix
    overview: Image.Image


def demo(seed: int, *, size: tuple[int, int] = (256, 512), device: str = "auto") -> Demo:
    """Draws a scene of `isanet.datasets.ToyStreets` and segments it with the model in the package.

    Args:
        seed: Another one gives another scene, none of which the model was trained on.
        size: (height, width) in pixels; the model was trained at the default.
        device: As for `isanet.Segmenter`.

    Raises:
        DatasetError: The seed or the size is too small.
    """
    dataset = ToyStreets(count=1, seed=seed, size=size, split="test")
    image, truth = dataset.read(0)
    result = Segmenter(MODEL, device=device)(image)
    matrix = ConfusionMatrix(len(result.classes))
    matrix.update(torch.from_numpy(result.labels), torch.from_numpy(truth))
    texts = {
        name: f"IoU {iou:.0%}" if iou == iou else ""  # NaN: a class that is in neither
        for name, iou in zip(result.classes, matrix.iou().tolist(), strict=True)
    }
    overview = draw_sheet([Preview(f"seed {seed}", image, result.labels, truth)], result.classes, result.palette, texts)
    return Demo(result, matrix, overview)


def write_demo(shown: Demo, path: str | os.PathLike[str]) -> None:
    """Writes the image as a PNG; an existing file is replaced.

    Raises:
        CacheError: It cannot be written.
    """
    stream = io.BytesIO()
    shown.overview.save(stream, format="PNG")
    try:
        with atomic_write(Path(path)) as file:
            file.write(stream.getbuffer())
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror}") from error
