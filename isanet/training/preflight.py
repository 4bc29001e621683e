"""What is looked at before the first step of a training, so that nothing is found wrong hours later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from isanet._text import clean, percent
from isanet.datasets.base import SegmentationDataset
from isanet.errors import DatasetError, IsanetError
from isanet.labels import IGNORED
from isanet.model import ISANet
from isanet.training.recipe import Recipe, segmentation_loss

log = logging.getLogger("isanet")


# --- masks


@dataclass(frozen=True)
class Shares:
    """What the masks of a dataset hold.

    Attributes:
        pixels: Number of pixels of each class.
        images: Number of images in which each class occurs.
        ignored: Number of pixels that do not count.
    """

    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int


class _Counts(Dataset[Any]):
    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> NDArray[np.int64] | IsanetError:
        try:
            mask = self.dataset.read(index)[1]
        except IsanetError as error:
            return error
        if mask is None:
            return DatasetError(f"{self.dataset} has no masks to train or validate with")
        counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)
        if not counts[:IGNORED].any():
            log.debug("%s: no pixel counts", self.dataset.keys[index])
        return counts


def count_classes(dataset: SegmentationDataset, *, workers: int = 0, progress: bool | None = None) -> Shares:
    """Reads every image and mask, as training will, and counts the pixels of each class.

    Args:
        dataset: With masks.
        workers: Processes that read.
        progress: Show a bar; None shows it on a terminal.

    Raises:
        DatasetError: A mask cannot be used, or no pixel of any counts; the message names the file.
        ImageError: The same, of an image.
    """
    pixels, images = np.zeros(IGNORED + 1, np.int64), np.zeros(IGNORED + 1, np.int64)
    loader: Any = DataLoader(_Counts(dataset), batch_size=None, sampler=range(len(dataset)), num_workers=workers,
                             collate_fn=_as_it_is)  # fmt: skip
    for counts in tqdm(
        loader, total=len(dataset), desc="masks", unit="image", disable=None if progress is None else not progress
    ):
        if isinstance(counts, IsanetError):
            raise counts
        pixels += counts
        images += counts > 0
    number = len(dataset.classes)
    if not pixels[:number].any():
        raise DatasetError(f"no pixel in the masks of {dataset} counts: all are ignored, so nothing can be learned")
    return Shares(tuple(pixels[:number].tolist()), tuple(images[:number].tolist()), int(pixels[IGNORED]))


def _as_it_is(sample: Any) -> Any:
    return sample


def table(classes: Sequence[str], shares: Sequence[tuple[str, Shares]]) -> str:
    """The shares of the classes of several datasets, one class a line."""
    rows = [["CLASS", *(head for name, _ in shares for head in (name.upper(), "IMAGES"))]]
    for index, name in enumerate([*classes, "(ignored)"]):
        row = [clean(name)]
        for _, of in shares:
            total = sum(of.pixels) + of.ignored
            if index == len(classes):
                row += [percent(of.ignored / total), ""]
            else:
                row += [percent(of.pixels[index] / total), f"{of.images[index]:,}"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


# --- memory


def step_memory(model: ISANet, recipe: Recipe, batch_size: int) -> int:
    """Bytes that a step of training needs at its peak, as far as they can be foreseen.

    That is what the backward pass needs of the forward pass, counted without computing anything, and weights,
    gradients, the optimizer's state and the average. Scratch memory of single operations is not in it; in half
    precision what is kept is taken for half as large.

    Args:
        model: On any device.
        recipe: Its crop, precision, optimizer and ema.
        batch_size: Number of images that go through the network together in one process.
    """
    copy = deepcopy(model).to("meta").train()
    kept: dict[int, int] = {}
    alive = []  # so that no two storages have one address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        kept[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty((batch_size, 3, *recipe.crop), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, _ = copy(images, aux=True)
    own = {p.untyped_storage()._cdata for p in copy.state_dict(keep_vars=True).values()}
    activations = sum(size for storage, size in kept.items() if storage not in own)
    # Cross entropy keeps the logarithms of the probabilities; gradients of the logits come on top, for one head
    activations += 3 * logits.numel() * 4 + 8 * batch_size * recipe.crop[0] * recipe.crop[1]
    if recipe.precision != "float32":
        activations //= 2
    weights = sum(p.numel() * 4 for p in copy.parameters())
    trained = sum(p.numel() * 4 for p in copy.parameters() if p.requires_grad)
    states = 2 if recipe.optimizer == "adamw" else 1
    return int(activations + weights * (2 if recipe.ema is not None else 1) + trained * (1 + states))


def check_memory(model: ISANet, recipe: Recipe, images: int, free: int) -> None:
    """Says what to do about a step that cannot fit into memory.

    Args:
        model: See `step_memory`.
        recipe: See `step_memory`.
        images: Number of images in a step in this process, over all parts.
        free: Bytes that are free.

    Raises:
        ValueError: The step needs clearly more than is free; a little more is logged as a warning.
    """
    part = -(-images // recipe.accumulate)
    needed = step_memory(model, recipe, part)
    log.info("a step will need about %s of %s that are free", _size(needed), _size(free))
    if needed <= free or model.gradient_checkpointing:  # then less is kept than can be foreseen
        return
    advice = "a smaller crop, or model.gradient_checkpointing = True"
    for parts in range(recipe.accumulate + 1, images + 1):
        if recipe.batch_size % parts == 0 and step_memory(model, recipe, -(-images // parts)) <= free:
            advice = f"accumulate={parts}, which takes the same step in parts, or {advice}"
            break
    text = (
        f"a step of {part} images of {recipe.crop[0]}x{recipe.crop[1]} needs about {_size(needed)} of memory, and "
        f"{_size(free)} are free; try {advice}"
    )
    if needed > 1.2 * free:
        raise ValueError(text)
    log.warning("%s", text)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, or None where that is not known."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # got, but not in use
        return torch.cuda.mem_get_info(device)[0] + own
    if device.type != "cpu":
        return None
    import psutil  # type: ignore[import-untyped]  # accelerate depends on it

    return int(psutil.virtual_memory().available)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def check_loss(model: ISANet, recipe: Recipe) -> None:
    """Raises what the loss would raise about its arguments, on an image of a few pixels."""
    logits = torch.zeros(1, len(model.classes), 1, 1)
    segmentation_loss(logits, None, torch.zeros(1, 1, 1, dtype=torch.long), class_weights=recipe.class_weights)
