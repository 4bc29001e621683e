"""A small report with known figures, and a parser for its page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch

from isanet.evaluation.page import ImageScore, WorstImage
from isanet.evaluation.report import Report
from isanet.labels import generic_palette

WHOLE = "whole image, single scale, no flip"
PUBLISHED = {"dataset": "Roads", "split": "val", "miou": 0.5567, "protocol": WHOLE}
CLASSES = ("road", "car", "sky", "boat")
# road: 6 of 8 found, 2 taken for car; car: 3 of 4, 1 taken for road; sky is predicted only; boat is nowhere
CONFUSION = [[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
IOU = {"road": 6 / 9, "car": 3 / 6}
SKY_CONFUSION = [[6, 2, 2, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
"""Sky is predicted where there is road, and never true."""


def make(confusion: Any = CONFUSION, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Report:
    values = {
        "confusion": torch.tensor(confusion),
        "classes": classes,
        "palette": generic_palette(len(classes)),
        "dataset": "Roads",
        "split": "val",
        "num_images": 3,
        "dataset_size": 3,
        "label_space": "roads",
        "model": "tiny",
        "protocol": "whole",
        "protocol_text": WHOLE,
        "precision": "float32",
        "device": "cpu",
        "seconds": 1.5,
        "ignored_pixels": 7,
    }
    return Report(**(values | changes))


def random_confusion(count: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    return generator.integers(0, 50, (count, count)) + np.diag(generator.integers(100, 5000, count))


def worst_image(key: str = "a", height: int = 40, width: int = 60) -> WorstImage:
    """Ground truth: left road, right car, top four rows ignored; prediction: car everywhere. The image is white."""
    ground_truth = np.zeros((height, width), np.uint8)
    ground_truth[:, width // 2 :] = 1
    ground_truth[: height // 10] = 255
    image = np.full((height, width, 3), 255, np.uint8)
    return WorstImage(ImageScore(key, 0.25, 0.5), image, np.ones_like(ground_truth), ground_truth)


class Page(HTMLParser):
    """Reads a page, and refuses tags that do not balance."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        source = (folder / "index.html").read_text(encoding="utf-8")
        self.feed(source)
        self.close()
        assert self.open == []
        assert source.startswith("<!DOCTYPE html>")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def sources(self) -> list[str]:
        return [unquote(attributes["src"] or "") for tag, attributes in self.tags if tag == "img"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
