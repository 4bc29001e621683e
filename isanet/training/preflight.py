"""Checks before the first step of a training run, so that no problem shows up hours later: masks and memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from PIL import Image
from torch import Tensor

from isanet._processes import read_ahead
from isanet._progress import progress_bar
from isanet._text import aligned, clean, percent
from isanet.datasets.base import SegmentationDataset
from isanet.datasets.wrong_arguments import require_two_classes, with_finding
from isanet.errors import DatasetError, IsanetError
from isanet.labels import IGNORED
from isanet.model import ISANet
from isanet.training.batches import Draw, Samples
from isanet.training.recipe import Recipe

log = logging.getLogger("isanet")


# --- masks


def count_classes(dataset: SegmentationDataset, *, workers: int, progress: bool | None) -> Tensor:
    """Read every image and mask, as training will.

    Returns:
        (2, 256): for each value of the masks its pixels, and the images that have it.

    Raises:
        DatasetError: A mask cannot be used, the message names the file; or all pixels of the dataset are ignored.
        ImageError: An image cannot be used; the message names the file.
    """
    draws = [Draw(0, index) for index in range(len(dataset))]
    samples = Samples(dataset, _pixels_of_values, 0)
    counts = torch.zeros(2, IGNORED + 1, dtype=torch.int64)
    with read_ahead(samples, workers=workers, batch_size=None, sampler=draws) as items:
        for pixels in progress_bar(items, total=len(dataset), desc="masks", unit="image", show=progress):
            if isinstance(pixels, IsanetError):
                raise with_finding(dataset, pixels) if isinstance(pixels, DatasetError) else pixels
            counts += torch.stack([pixels, pixels > 0])
    if not counts[0, :IGNORED].any():
        require_two_classes(dataset, counts[0].numpy())
    return counts


def _pixels_of_values(image: Image.Image, mask: Image.Image) -> Tensor:
    return torch.tensor(mask.histogram())


def class_table(classes: Sequence[str], datasets: Mapping[str, Tensor]) -> str:
    """A text table: for each class its share of the pixels, and the number of images with it, in several datasets."""
    rows = [["CLASS", *(heading for name in datasets for heading in (name.upper(), "IMAGES"))]]
    for value, name in [*enumerate(classes), (IGNORED, "(ignored)")]:
        row = [clean(name)]
        for pixels, images in datasets.values():
            share = pixels[value].item() / pixels.sum().item()
            row += [percent(share), "" if value == IGNORED else f"{images[value]:,}"]
        rows.append(row)
    return "\n".join(aligned(rows))


# --- memory


def step_memory(model: ISANet, recipe: Recipe, batch_size: int) -> int:
    """Estimate the peak memory in bytes of a training step with this many images at once in one process.

    Counted are the activations saved for the backward pass (on the meta device, nothing is computed), weights,
    gradients, the optimizer's state and the moving average. Scratch memory of single operations is left out, and
    half-precision activations are taken as half as large.
    """
    copy = deepcopy(model).to("meta").train()
    saved = {}  # by address; a storage that is kept shares its address with no other

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    images = torch.empty((batch_size, 3, *recipe.crop), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, _ = copy(images, aux=True)
    for weight in copy.state_dict(keep_vars=True).values():
        saved.pop(weight.untyped_storage()._cdata, None)
    activations = sum(storage.nbytes() for storage in saved.values())
    # Cross entropy saves the log probabilities; gradients of the logits come on top, for one head
    activations += 3 * logits.numel() * 4 + 8 * batch_size * recipe.crop[0] * recipe.crop[1]
    if recipe.precision != "float32":
        activations //= 2
    weights = sum(p.numel() * 4 for p in copy.parameters())
    trained = sum(p.numel() * 4 for p in copy.parameters() if p.requires_grad)
    states = 2 if recipe.optimizer == "adamw" else 1
    return int(activations + weights * (2 if recipe.ema is not None else 1) + trained * (1 + states))


def check_memory(model: ISANet, recipe: Recipe, images: int, free: int) -> None:
    """Check that a step of this many images, over all gradient accumulation steps, fits into `free` bytes.

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


def total_memory(device: torch.device) -> int | None:
    """All memory of a device in bytes, or None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    import psutil

    return int(psutil.virtual_memory().total)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
