"""Few images: the recipe that is chosen for them, and what the result says about the data and the next try."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isanet._text import listed, percent, plural, shortened
from isanet.evaluation.report import Report
from isanet.images.preprocess import content_size
from isanet.model import ISANet
from isanet.training.preflight import step_memory
from isanet.training.recipe import Recipe
from isanet.training.state import HistoryRow

FEW = 300
"""With fewer training images, fields of the recipe that are not given are chosen by `few_images_recipe`."""

STEPS, BATCH, LARGEST = 400, 8, 512

log = logging.getLogger("isanet")


def few_images_recipe(
    model: ISANet,
    num_images: int,
    pixels: Tensor,
    image: Image.Image | None,
    *,
    device: torch.device,
    memory: int | None,
    given: Mapping[str, Any],
) -> Recipe:
    """A recipe for few images; logs each choice in one line, with its reason.

    Args:
        model: The network, with the classes of the data; with an `image` its preprocessing may change.
        num_images: Number of training images.
        pixels: (K), pixels of each class in the training masks.
        image: One of the data; the model then sees images as large as it, up to `LARGEST` pixels. None: it keeps its
            input size.
        device: Where it will be trained.
        memory: Bytes of memory that the device has; None: not known.
        given: Fields that are not to be chosen.

    Raises:
        ValueError: A given field does not exist or has a wrong value.
    """
    log.info(
        "%s: what is not given of the recipe is chosen for so few (--recipe NAME: that of a published model)",
        plural(num_images, "training image"),
    )
    assert model.preprocessing is not None
    if image is not None:
        _enlarge_input(model.preprocessing, min(*image.size, LARGEST))
    seen = model.preprocessing.get("pad_to", (LARGEST, LARGEST))
    if image is not None:
        seen = content_size(image.height, image.width, model.preprocessing)
    side = min(model.preprocessing.get("short_edge", min(seen)), 320 if device.type == "cpu" else LARGEST)
    batch = given.get("batch_size", BATCH)
    epochs = given.get("epochs", max(20, -(-STEPS * batch // num_images)))
    steps, every = -(-epochs * num_images // batch), max(1, epochs // 10)
    present = pixels[pixels > 0]
    rarest = int(torch.where(pixels > 0, pixels, pixels.sum()).argmin())
    share = (present.min() / pixels.sum()).item()
    weighted = share < 0.5 / len(present)
    choices: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.01,
          "warmup": min(20, steps // 10)}, "new classes are learned in fewer steps than by SGD"),
        ({"epochs": epochs, "batch_size": batch}, f"{plural(steps, 'step')} of {plural(batch, 'crop')}"),
        ({"crop": (side, side)}, f"as large as the model sees an image, at most {side} on {device.type.upper()}"),
        ({"scale_range": (0.75, 1.5), "max_class_share": 1.0}, "few images show objects at few sizes"),
        ({"class_weights": "balanced" if weighted else None},
         f"{shortened(model.classes[rarest])} has {percent(share)} of the pixels"),
        ({"freeze_batch_norm": _has_statistics(model)}, f"statistics of {batch} crops are poorer than the model's own"),
        ({"validate_every": every}, f"{plural(-(-epochs // every), 'validation')} in all"),
    ]  # fmt: skip
    fields = {name: value for chosen, _ in choices for name, value in chosen.items()} | dict(given)
    recipe = Recipe(**fields)
    if memory is not None and "accumulate" not in given:
        smallest = epochs * num_images // steps  # of the steps, which have nearly as many images each
        parts = [parts for parts in range(1, smallest + 1) if recipe.batch_size % parts == 0]
        fits = (parts for parts in parts if step_memory(model, recipe, recipe.batch_size // parts) <= memory // 2)
        fields["accumulate"] = next(fits, parts[-1])
        choices.append(({"accumulate": fields["accumulate"]}, f"a step takes at most half of {memory / 2**30:.0f} GiB"))
    for chosen, reason in choices:
        if text := " ".join(f"{name}={_setting(value)}" for name, value in chosen.items() if name not in given):
            log.info("  %s: %s", text, reason)
    return Recipe(**fields)


def _enlarge_input(preprocessing: dict[str, Any], edge: int) -> None:
    """Show images at a short edge of at least so many pixels, if they are resized at all."""
    if (factor := edge / preprocessing.get("short_edge", edge)) > 1:
        preprocessing |= {"short_edge": edge, "long_edge": round(factor * preprocessing["long_edge"])}
        log.info("  short edge of the images that the model sees, in pixels: %d, as the first one has", edge)


def _has_statistics(model: ISANet) -> bool:
    """Whether all batch norms have seen data, unlike those of a new head."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return all(norm.running_mean is not None and bool(norm.running_mean.any()) for norm in norms)


def _setting(value: Any) -> str:
    """A value as `--set` takes it."""
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def balanced_weights(pixels: Tensor) -> tuple[float, ...]:
    """Weights of the classes: one over the root of their share, with a mean of 1 over the pixels; 0 for absent ones.

    The root, and not the share itself, because few false positives cost a rare class more IoU than they gain recall.

    Args:
        pixels: (K), pixels of each class in the training masks, not all 0.
    """
    roots = pixels.double().sqrt()
    weights = torch.where(pixels > 0, pixels.sum() / (roots * roots.sum()), 0)
    return tuple(weights.tolist())


def findings(
    report: Report | None, history: Sequence[HistoryRow], recipe: Recipe, accuracy: Mapping[str, float]
) -> tuple[str, ...]:
    """What to try next, one sentence each.

    Args:
        report: Of the validation data; None: there are none.
        history: All steps.
        recipe: Of the run.
        accuracy: For each training image the share of its pixels that the trained model labels as its mask does.
    """
    result = []
    if report is not None:
        confusion = report.confusion.double()
        truth, shares = confusion.sum(dim=1), confusion.sum(dim=1) / confusion.sum()
        for index, name in enumerate(map(shortened, report.classes)):
            if truth[index] == 0:
                continue
            taken = confusion[index] / truth[index]
            right, taken[index] = taken[index].item(), 0
            other = int(taken.argmax())
            if confusion[:, index].sum() == 0:
                weights = "" if recipe.class_weights else "class_weights=balanced, "
                result.append(
                    f"{name} is never predicted: {percent(shares[index].item())} of the pixels; try {weights}"
                    "more epochs, or more images of it"
                )
            elif taken[other] > max(0.25, right / 2):
                result.append(
                    f"{name} is taken for {shortened(report.classes[other])} in {percent(taken[other].item(), 0)} of "
                    "its pixels: compare their masks, and add images that show both"
                )
        validated = [row for row in history if row.miou == row.miou]
        earlier = [row.miou for row in validated if row.step <= 0.8 * len(history)]
        if earlier and validated[-1].miou > max(earlier) + 0.01:
            result.append(
                f"the validation mIoU still rises ({100 * max(earlier):.1f} to {100 * validated[-1].miou:.1f} in the "
                f"last fifth): try more epochs, epochs={2 * recipe.epochs}"
            )
    if accuracy:
        middle = median(accuracy.values())
        spread = median(abs(value - middle) for value in accuracy.values())
        odd = sorted(key for key, value in accuracy.items() if value < middle - max(0.1, 6 * spread))
        if odd:
            result.append(
                f"the mask of {odd[0]} disagrees with what the model learned from all others: look at it"
                if len(odd) == 1
                else f"the masks of {listed(odd, 3)} disagree with what the model learned from the others: look at them"
            )
    return tuple(result)
