"""What a dataset holds, and any dataset written as a plain folder of images and masks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isanet._files import given_path, new_folder
from isanet._text import aligned, clean, listed, percent, plural
from isanet.datasets.base import SegmentationDataset
from isanet.datasets.exported import Exported
from isanet.datasets.folder import write_classes
from isanet.datasets.listing import PathLike
from isanet.datasets.opening import open_parts
from isanet.errors import DatasetError, OutputError
from isanet.images.masks import Color
from isanet.labels import IGNORED
from isanet.viz.sheet import Preview, draw_sheet, sheet_png

NUM_PREVIEWS = 8

BORDER = (224, 224, 192)
"""The color of ignored pixels, as in VOC."""


@dataclass(frozen=True)
class Survey:
    """What the masks of a dataset hold; `str()` of it is the report.

    Attributes:
        name: Of the dataset and its folder.
        classes: Of the dataset.
        pixels: Number of pixels of each class, and behind them of ignored ones.
        files: Number of masks that have them.
        splits: Number of samples of each split.
        overlaps: Number of pixels that two classes claim, by sample; the later shape is on top.
        unmatched: Images that are not annotated.
        skipped: Number of shapes without an area, by kind.
    """

    name: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    files: tuple[int, ...]
    splits: Mapping[str, int]
    overlaps: Mapping[str, int]
    unmatched: tuple[str, ...]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        lines = [f"{clean(self.name)}: {plural(sum(self.splits.values()), 'image')} ({parts})", ""]
        total = sum(self.pixels)
        rows = [
            (clean(name), f"{count:,}", percent(count / total), f"{files:,}")
            for name, count, files in zip((*self.classes, "(ignored)"), self.pixels, self.files, strict=True)
        ]
        lines += aligned([("CLASS", "PIXELS", "SHARE", "FILES"), *rows])
        if self.overlaps:
            total = sum(self.overlaps.values())
            named = listed((f"{key} ({count:,})" for key, count in self.overlaps.items()), 5)
            where = plural(len(self.overlaps), "image")
            lines += ["", f"Overlaps: {total:,} pixels in {where}, the later shape on top: {named}"]
        if self.unmatched:
            lines += ["", f"Not annotated, left out: {plural(len(self.unmatched), 'image')}: {listed(self.unmatched)}"]
        if self.skipped:
            named = listed(f"{count:,} {kind}" for kind, count in self.skipped.items())
            lines += ["", f"Shapes without an area, left out: {named}"]
        return "\n".join(lines)


def survey(parts: Mapping[str, SegmentationDataset], folder: Path | None = None) -> Survey:
    """Read every sample of datasets with the same classes; and write images and masks into a folder, if one is given.

    Raises:
        DatasetError: A mask cannot be used.
        ImageError: An image cannot be read.
    """
    first = next(iter(parts.values()))
    pixels, files = np.zeros(IGNORED + 1, np.int64), np.zeros(IGNORED + 1, np.int64)
    overlaps: dict[str, int] = {}
    names = _new_names(parts)
    for split, dataset in parts.items():
        for index, key in enumerate(dataset.keys):
            _, mask = dataset.read(index)
            if mask is None:
                raise DatasetError(f"the ground truth of {dataset} is not published")
            counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)
            pixels += counts
            files += counts > 0
            if isinstance(dataset, Exported) and dataset.overlaps[key]:
                overlaps[key] = dataset.overlaps[key]
            if folder is not None:
                path = dataset.image_path(index)
                shutil.copyfile(path, folder / "images" / (names[split, key] + path.suffix))
                _save_mask(folder / "masks" / f"{names[split, key]}.png", mask, dataset.palette)
        if folder is not None:
            (folder / f"{split}.txt").write_text("".join(f"{names[split, key]}\n" for key in dataset.keys), "utf-8")
    chosen = [*range(len(first.classes)), IGNORED]
    return Survey(
        name=f"{first.name} in {first.root}",
        classes=first.classes,
        pixels=tuple(pixels[chosen].tolist()),
        files=tuple(files[chosen].tolist()),
        splits={split: len(dataset) for split, dataset in parts.items()},
        overlaps=overlaps,
        unmatched=tuple(os.fspath(path) for path in getattr(first, "unmatched", ())),
        skipped=getattr(first, "skipped", {}),
    )


def _new_names(parts: Mapping[str, SegmentationDataset]) -> dict[tuple[str, str], str]:
    """Names without folders, by split and key: the last part of the key, or all of it if that is not unique."""
    keys = [(split, key) for split, part in parts.items() for key in part.keys]
    for names in (
        [key.rpartition("/")[2] for _, key in keys],
        [key.replace("/", "_") for _, key in keys],
        [f"{split}_{key.replace('/', '_')}" for split, key in keys],
    ):
        if len({name.lower() for name in names}) == len(names):  # some file systems do not tell the case
            return dict(zip(keys, names, strict=True))
    raise DatasetError("two samples would get one name, as a/b and a_b do; rename one")


def _save_mask(path: Path, mask: Any, palette: Sequence[Color]) -> None:
    image = Image.fromarray(mask)
    colors = [*palette, *[(0, 0, 0)] * (IGNORED - len(palette)), BORDER]
    image.putpalette([channel for color in colors for channel in color])
    image.save(path)


def import_masks(
    source: PathLike,
    dest: PathLike,
    *,
    hold_out: float = 0.2,
    seed: int = 0,
    **options: Any,
) -> Survey:
    """Write a plain folder, as `Folder` reads it, from any dataset that `open_dataset` opens.

    The folder has `images/` (copies of the files), `masks/` (PNG with the palette), `classes.txt` (names and colors),
    the lists of the splits (`train.txt`, `val.txt`), and `overlays.png`, a sheet of some images. It appears whole.

    >>> print(isanet.datasets.import_masks("boxes", "plain"))
    boxes in boxes: 6 images (train 5, val 1)
    ...
    >>> dataset = isanet.datasets.Folder("plain", "train")

    Args:
        source: The folder to read.
        dest: The folder to write; it must not exist, or be empty.
        hold_out: The share of the images that go into `val.txt`, if the source has no such split.
        seed: Decides which.
        options: See `open_dataset`.

    Returns:
        What the masks hold.

    Raises:
        DatasetError: The source cannot be read.
        OutputError: `dest` exists, or cannot be written.
    """
    dest = given_path(dest, OutputError).expanduser()
    parts = open_parts(source, hold_out=hold_out, seed=seed, **options)
    first = next(iter(parts.values()))
    with new_folder(dest) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        found = survey(parts, folder)
        write_classes(folder / "classes.txt", first.label_space)
        (folder / "overlays.png").write_bytes(sheet_png(_sheet(first)))
    return found


def _sheet(dataset: SegmentationDataset) -> Image.Image:
    """Some images, spread over the dataset, beside their masks."""
    step = max(1, len(dataset) // NUM_PREVIEWS)

    def preview(index: int) -> Preview:
        image, mask = dataset.read(index)
        assert mask is not None  # the survey has read them
        return Preview(dataset.keys[index], image, None, mask)

    return draw_sheet(
        (preview(index) for index in range(0, len(dataset), step)[:NUM_PREVIEWS]),
        dataset.classes,
        dataset.palette,
        columns=2,
    )
