"""Checks before the first step of a training run, so that no problem shows up hours later: masks, memory, loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from isanet._text import aligned, clean, percent
from isanet.datasets.base import SegmentationDataset
from isanet.errors import DatasetError, IsanetError
from isanet.labels import IGNORED
from isanet.model import ISANet
from isanet.training.loss import segmentation_loss
from isanet.training.recipe import Recipe

log = logging.getLogger("isanet")


# --- masks


@dataclass(frozen=True)
class ClassCounts:
    """Class statistics of a dataset's masks.

    Attributes:
        pixels: Number of pixels of each class.
        images: Number of images in which each class occurs.
        ignored: Number of ignored pixels.
    """

    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int


class _Counts(Dataset[Any]):
    """(256,) pixels of each mask value; an error is returned, because raised in a worker it would lose its message."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tensor | IsanetError:
        try:
            mask = self.dataset.read(index)[1]
        except IsanetError as error:
            return error
        if mask is None:
            return DatasetError(f"{self.dataset} has no masks to train or validate with")
        counts = torch.from_numpy(np.bincount(mask.ravel(), minlength=IGNORED + 1))
        if not counts[:IGNORED].any():
            log.debug("%s: all pixels are ignored", self.dataset.keys[index])
        return counts


def count_classes(dataset: SegmentationDataset, *, workers: int = 0, progress: bool | None = None) -> ClassCounts:
    """Read every image and mask, as training will, and count the pixels of each class.

    Args:
        dataset: With masks.
        workers: Number of processes that read; 0 for none but this one.
        progress: Show a progress bar; None shows it on a terminal.

    Raises:
        DatasetError: A mask cannot be used, the message names the file; or all pixels of the dataset are ignored.
        ImageError: An image cannot be used; the message names the file.
    """
    pixels, images = torch.zeros(2, IGNORED + 1, dtype=torch.int64)
    loader: Any = DataLoader(_Counts(dataset), batch_size=None, sampler=range(len(dataset)), num_workers=workers)
    disable = None if progress is None else not progress
    for counts in tqdm(loader, total=len(dataset), desc="masks", unit="image", disable=disable):
        if isinstance(counts, IsanetError):
            raise counts
        pixels += counts
        images += counts > 0
    number = len(dataset.classes)
    if not pixels[:number].any():
        raise DatasetError(f"all pixels in the masks of {dataset} are ignored, so nothing can be learned")
    return ClassCounts(tuple(pixels[:number].tolist()), tuple(images[:number].tolist()), int(pixels[IGNORED]))


def class_table(classes: Sequence[str], datasets: Mapping[str, ClassCounts]) -> str:
    """A text table: for each class its share of the pixels, and the number of images with it, in several datasets."""
    rows = [["CLASS", *(heading for name in datasets for heading in (name.upper(), "IMAGES"))]]
    for index, name in enumerate([*classes, "(ignored)"]):
        row = [clean(name)]
        for counts in datasets.values():
            total = sum(counts.pixels) + counts.ignored
            if index == len(classes):
                row += [percent(counts.ignored / total), ""]
            else:
                row += [percent(counts.pixels[index] / total), f"{counts.images[index]:,}"]
        rows.append(row)
    return "\n".join(aligned(rows))


# --- memory


def step_memory(model: ISANet, recipe: Recipe, batch_size: int) -> int:
    """Estimate the peak memory of a training step in bytes.

    Counted are the activations saved for the backward pass (on the meta device, nothing is computed), weights,
    gradients, the optimizer's state and the moving average. Scratch memory of single operations is left out, and
    half-precision activations are taken as half as large.

    Args:
        model: On any device.
        recipe: Its crop, precision, optimizer and ema.
        batch_size: Number of images that go through the network at once in one process.
    """
    copy = deepcopy(model).to("meta").train()
    saved: dict[int, int] = {}
    alive = []  # so that no two storages have the same address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        saved[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty((batch_size, 3, *recipe.crop), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, _ = copy(images, aux=True)
    weight_storages = {p.untyped_storage()._cdata for p in copy.state_dict(keep_vars=True).values()}
    activations = sum(size for storage, size in saved.items() if storage not in weight_storages)
    # Cross entropy saves the log probabilities; gradients of the logits come on top, for one head
    activations += 3 * logits.numel() * 4 + 8 * batch_size * recipe.crop[0] * recipe.crop[1]
    if recipe.precision != "float32":
        activations //= 2
    weights = sum(p.numel() * 4 for p in copy.parameters())
    trained = sum(p.numel() * 4 for p in copy.parameters() if p.requires_grad)
    states = 2 if recipe.optimizer == "adamw" else 1
    return int(activations + weights * (2 if recipe.ema is not None else 1) + trained * (1 + states))


def check_memory(model: ISANet, recipe: Recipe, images: int, free: int) -> None:
    """Check that a step fits into memory, and say what to do if it does not.

    Args:
        model: See `step_memory`.
        recipe: See `step_memory`.
        images: Number of images per step in this process, over all gradient accumulation steps.
        free: Free memory in bytes.

    Raises:
        ValueError: The step needs much more than is free (over 1.2 times); a little more is logged as a warning.
    """
    part = -(-images // recipe.accumulate)
    needed = step_memory(model, recipe, part)
    log.info("a step needs about %s of %s of free memory", _size(needed), _size(free))
    if needed <= free or model.gradient_checkpointing:  # with it less is saved than was estimated
        return
    advice = "a smaller crop, or model.gradient_checkpointing = True"
    for parts in range(recipe.accumulate + 1, images + 1):
        if recipe.batch_size % parts == 0 and step_memory(model, recipe, -(-images // parts)) <= free:
            advice = f"accumulate={parts}, which computes the same step in parts, or {advice}"
            break
    text = (
        f"a step of {part} images of {recipe.crop[0]}x{recipe.crop[1]} needs about {_size(needed)} of memory, and "
        f"{_size(free)} are free; try {advice}"
    )
    if needed > 1.2 * free:
        raise ValueError(text)
    log.warning("%s", text)


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes, or None where it is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    import psutil  # type: ignore[import-untyped]  # accelerate depends on it

    return int(psutil.virtual_memory().available)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def check_loss(model: ISANet, recipe: Recipe) -> None:
    """Raise what the loss would raise about the recipe's arguments.

    Raises:
        ValueError: See `segmentation_loss`.
    """
    logits = torch.zeros(1, len(model.classes), 1, 1)
    segmentation_loss(logits, None, torch.zeros(1, 1, 1, dtype=torch.long), class_weights=recipe.class_weights)
