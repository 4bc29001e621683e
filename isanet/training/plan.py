"""The plan of a training run: everything that can be checked and decided before an image is read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from isanet._processes import Processes, checked_workers
from isanet._text import listed
from isanet.datasets.base import SegmentationDataset
from isanet.datasets.wrapped import as_dataset
from isanet.errors import DatasetError
from isanet.evaluation.matching import match_classes
from isanet.evaluation.run import weights_digest
from isanet.inference.fast.optimize import has_bfloat16
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet, unwrapped
from isanet.training.batches import Batches, seed_of
from isanet.training.few import FEW, balanced_weights, few_images_recipe
from isanet.training.loss import loss_weight
from isanet.training.optim import freeze, keep_statistics
from isanet.training.preflight import check_memory, count_classes, free_memory, total_memory
from isanet.training.recipe import Recipe
from isanet.zoo.classes import name_classes
from isanet.zoo.pretrained import from_pretrained

log = logging.getLogger("isanet")


@dataclass(frozen=True)
class Plan:
    """A training run as one of its processes sees it; nothing is written yet.

    Attributes:
        model: The network to train, with the classes of the data; not the caller's.
        origin: Where its weights came from.
        workers: Processes that read and augment for this one.
        progress: Show a bar; None shows it on a terminal.
        batches: This process's share of each step.
        num_shared: Number of images that are in both datasets.
        shares: What `count_classes` gives of the training data, if it was asked already.
        fingerprint: What must be equal for a run to be resumed, and in all processes; plain values. Its precision is
            the one that was asked for, because a run may go on where another one is computed in.
    """

    model: ISANet
    origin: dict[str, str]
    train: SegmentationDataset
    val: SegmentationDataset | None
    recipe: Recipe
    folder: Path
    workers: int
    progress: bool | None
    batches: Batches
    num_shared: int
    shares: Tensor | None
    fingerprint: dict[str, Any]


def plan_training(
    model: ISANet | str | os.PathLike[str],
    train: SegmentationDataset | Dataset[Any],
    val: SegmentationDataset | Dataset[Any] | None,
    recipe: Recipe | Mapping[str, Any] | None,
    folder: Path,
    *,
    workers: int | None,
    progress: bool | None,
    device: torch.device,
    processes: Processes,
) -> Plan:
    """Check the arguments of `isanet.finetune` and decide how to train."""
    train, val = as_dataset(train), None if val is None else as_dataset(val)
    for dataset in (train, val):
        if dataset is not None and not dataset.has_masks:
            raise DatasetError(f"the ground truth of {dataset} is not published, so nothing can be learned from it")
    workers = checked_workers(workers)
    given = None if isinstance(recipe, Recipe) else recipe or {}
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.of(recipe or {})
    asked = recipe.precision
    recipe = replace(recipe, precision=computed_precision(asked, device))
    if recipe.precision != asked:
        log.info("training in float32: %s computes %s by way of it, which is slower", device, asked)
    if given is not None:
        given = {**given, "precision": recipe.precision}
    workers = processes.loader_workers(device) if workers is None else workers
    progress = progress if processes.rank == 0 else False
    torch.manual_seed(seed_of("model", recipe.seed))  # new classifiers are randomly initialized
    network = _start_model(model, train)
    if val is not None:
        match_classes(network, val.label_space, None)
    if not network.preprocessing:
        raise ValueError(
            "the model has no preprocessing; build it with preprocessing={'mean': ..., 'std': ..., 'short_edge': ..., "
            "'long_edge': ...}"
        )
    shares, few = None, given is not None and len(train) < FEW
    if few or recipe.class_weights == "balanced":
        shares = count_classes(train, workers=workers, progress=progress)
        pixels, named = shares[0, : len(network.classes)], isinstance(model, str | os.PathLike)
        recipe = _resolved(recipe, given if few else None, network, pixels, train, device, named=named)
    assert not isinstance(recipe.class_weights, str)
    loss_weight(torch.zeros(1), len(network.classes), recipe.class_weights)  # raises if they are not one for each class
    batches = Batches(len(train), recipe, processes.rank, processes.world_size)
    _freeze(network, recipe)
    # A name would make reports compare the network with the released weights
    origin, network.provenance = dict(network.provenance), {}
    num_shared = 0 if val is None else len(_image_names(train) & _image_names(val))
    if num_shared:
        log.warning(
            "%d images are in both the training and the validation data, so the validation mIoU says little", num_shared
        )
    plan = Plan(
        model=network,
        origin=origin,
        train=train,
        val=val,
        recipe=recipe,
        folder=folder,
        workers=workers,
        progress=progress,
        shares=shares,
        batches=batches,
        num_shared=num_shared,
        fingerprint=_fingerprint(network, train, val, replace(recipe, precision=asked)),
    )
    _check_batch(plan, device, processes.world_size)
    return plan


def computed_precision(asked: str, device: torch.device) -> str:
    """The precision in which a device trains when it is asked for this one: float32 where bfloat16 is emulated."""
    return "float32" if asked == "bfloat16" and not has_bfloat16(device) else asked


def _resolved(
    recipe: Recipe,
    given: Mapping[str, Any] | None,
    model: ISANet,
    pixels: Tensor,
    train: SegmentationDataset,
    device: torch.device,
    *,
    named: bool,
) -> Recipe:
    """The recipe without what depends on the data: chosen for few images around the `given` fields, and balanced."""
    if given is not None:
        memory, image = total_memory(device), train.pair(0)[0] if named else None
        recipe = few_images_recipe(model, len(train), pixels, image, device=device, memory=memory, given=given)
    return recipe if recipe.class_weights != "balanced" else replace(recipe, class_weights=balanced_weights(pixels))


def _start_model(model: ISANet | str | os.PathLike[str], train: SegmentationDataset) -> ISANet:
    """A copy to train, with the classes of the data."""
    if not isinstance(model, str | os.PathLike):
        given: ISANet = unwrapped(model)
        match_classes(given, train.label_space, None)
        network = deepcopy(given).float()
        for module in list(network.modules()):
            for name, part in module.named_children():
                setattr(module, name, getattr(part, "_orig_mod", part))  # a compiled part: names are as in any file
        return network
    network = from_pretrained(model)
    origin = network.provenance.get("name") or (Path(model).name if Path(model).exists() else os.fspath(model))
    if network.classes != train.classes:
        kept, before = [name for name in train.classes if name in network.classes], network.classifier.weight
        network = name_classes(network, train.classes)
        if network.classifier.weight.data_ptr() != before.data_ptr():
            log.info(
                "%s has other classes: its classifiers are randomly initialized%s",
                os.fspath(model),
                f", except for {listed(kept)}" if kept else "",
            )
    network.palette = train.palette
    known = LABEL_SPACES.get(train.label_space.name)
    network.label_space = known.name if known and known.classes == train.classes else None
    network.config |= {"palette": [list(color) for color in train.palette], "label_space": network.label_space}
    for assumed in ("classes", "preprocessing"):  # from now on it is what it is trained with
        network.provenance.pop(assumed, None)
    network.provenance["started_from"] = origin
    return network


def _freeze(model: ISANet, recipe: Recipe) -> None:
    if recipe.freeze_backbone:
        freeze(model, "backbone")
    if recipe.freeze_batch_norm:
        keep_statistics(model)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)


def _check_batch(plan: Plan, device: torch.device, world_size: int) -> None:
    """Warn of batches of a single image for batch norm, and check that a step fits into memory."""
    recipe, batches = plan.recipe, plan.batches
    smallest = batches.total // batches.steps // world_size // recipe.accumulate
    if smallest == 1 and not recipe.freeze_batch_norm and not (recipe.sync_batch_norm and world_size > 1):
        log.warning(
            "batch norm will see a single image at a time, which often trains badly; use a larger batch_size, "
            "less gradient accumulation (accumulate), or freeze_batch_norm=True"
        )
    free = free_memory(device)
    if free is not None and plan.train.transforms is None:  # the size of a dataset's own samples is not known yet
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) if device.type == "cpu" else 1
        images = -(-batches.total // batches.steps // world_size)
        check_memory(plan.model, recipe, max(images, recipe.accumulate), free // sharing)


def _fingerprint(
    model: ISANet, train: SegmentationDataset, val: SegmentationDataset | None, recipe: Recipe
) -> dict[str, Any]:
    values = {
        "recipe": json.loads(recipe.to_json()),
        "model": model.config,
        "weights": weights_digest(model),
        "train": train.fingerprint(range(len(train))),
        "val": None if val is None else val.fingerprint(range(len(val))),
    }
    result: dict[str, Any] = json.loads(json.dumps(values))  # as it is read from a file
    return result


def _image_names(dataset: SegmentationDataset) -> set[str]:
    """The paths of the images, or where they have no files their keys and what they are read from."""
    try:
        return {str(dataset.image_path(index).resolve()) for index in range(len(dataset))}
    except DatasetError:
        return {f"{id(getattr(dataset, 'source', None))} {key}" for key in dataset.keys}
