"""Masks that are read by the wrong arguments: those in which only one class occurs, and those that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isanet._text import percent, shortened
from isanet.datasets.base import SegmentationDataset
from isanet.datasets.exported import Exported
from isanet.datasets.folder import Folder
from isanet.datasets.mask_check import mask_finding
from isanet.datasets.mask_findings import TWO_CLASSES, Finding
from isanet.errors import DatasetError, IsanetError
from isanet.labels import IGNORED

LOG_AFTER = 1000
"""Masks of one class after which the log says why nothing happens yet."""

log = logging.getLogger("isanet")


def read_until_two_classes(dataset: SegmentationDataset, indices: Iterable[int]) -> None:
    """Read masks until a second class occurs, which nearly always the first mask has.

    A mask that cannot be read ends it: whoever reads all masks reports it.

    Raises:
        DatasetError: See `require_two_classes`.
    """
    pixels = np.zeros(IGNORED + 1, np.int64)
    for number, index in enumerate(indices):
        if number == LOG_AFTER:
            log.info("the first %d masks of %s have only one class; looking through all of them", number, dataset)
        try:
            _, mask = dataset.read(index)
        except IsanetError:
            return
        assert mask is not None
        pixels += np.bincount(mask.ravel(), minlength=IGNORED + 1)
        if np.count_nonzero(pixels[:IGNORED]) >= min(2, len(dataset.classes)):
            return
    require_two_classes(dataset, pixels)


def require_two_classes(dataset: SegmentationDataset, pixels: Sequence[int] | NDArray[Any]) -> None:
    """Check that more than one class occurs in all masks of a dataset; if it has a single class, that it does.

    Args:
        dataset: For the message.
        pixels: The number of pixels of each class, and as the last that of ignored ones.

    Raises:
        DatasetError: Only one does, or all pixels are ignored; the message names the arguments that read the masks.
    """
    occurring, ignored = np.flatnonzero(pixels[:-1]), int(pixels[-1])
    if len(occurring) >= min(2, len(dataset.classes)):
        return
    if len(occurring):
        name = shortened(dataset.classes[occurring[0]])
        text = f"only one of {len(dataset.classes)} classes occurs in the masks of {dataset}: {name}"
        if ignored:
            text += f"; {percent(ignored / int(np.sum(pixels)))} of the pixels are ignored"
    else:
        text = f"all pixels in the masks of {dataset} are ignored, so nothing can be learned or measured"
    if _takes_arguments(dataset):
        found = _finding(dataset)
        if found and found.kind in TWO_CLASSES:
            text += f". {found.text}" + (f" {found.fix} ({found.option})." if found.fix else "")
        else:
            text += "; isanet check-masks lists what the files hold."
    else:
        text += f"; if {IGNORED} is meant to be a class, give it that class's index." if ignored else "."
    if len(occurring):
        text += " If the other classes are absent on purpose: allow_absent=True (--allow-absent)"
    raise DatasetError(text)


def with_finding(dataset: SegmentationDataset, error: DatasetError) -> DatasetError:
    """An error of a mask, with the arguments that read all of them if `check_masks` finds some."""
    found = _finding(dataset) if _takes_arguments(dataset) else None
    if found is None or not found.fix:
        return error
    return DatasetError(f"{error}. What all masks hold: {found.text} {found.fix} ({found.option})")


def _takes_arguments(dataset: SegmentationDataset) -> bool:
    """Whether it is a folder of one's own, unlike others, which do not take ids, ignore and colors."""
    return isinstance(dataset, Folder) and not isinstance(dataset, Exported)


def _finding(dataset: SegmentationDataset) -> Finding | None:
    return mask_finding(filter(None, map(dataset.mask_path, range(len(dataset)))), dataset.label_space)
