"""Other classes for a model: their names and colors, and the layers that know them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from isanet.config import ISANetConfig, are_numbered
from isanet.labels import generic_palette
from isanet.model import ISANet
from isanet.zoo.networks import fill, meta_model

HEADS = ("classifier", "aux_classifier")
"""The layers that know the classes; everything else is kept when the classes change."""

log = logging.getLogger("isanet")


def requested_classes(num_classes: int | None, classes: Sequence[str] | None) -> list[str] | None:
    """Names for the arguments that ask for classes, numbers as names for `num_classes`; None if neither does.

    Raises:
        ValueError: The names are not a list of different texts, the number is out of range, or they contradict each
            other.
    """
    arguments: dict[str, Any] = {"num_classes": num_classes, "classes": classes}
    given = {key: value for key, value in arguments.items() if value is not None}
    return list(ISANetConfig(**given).classes) if given else None


def with_classes(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The arguments of `isanet.ISANet` for other classes; classes of the same name keep their colors."""
    known = dict(zip(config["classes"], config["palette"], strict=True))
    taken = {tuple(known[name]) for name in names if name in known}
    fresh = (list(color) for color in generic_palette(2 * len(names) + 256) if color not in taken)
    palette = [list(known[name]) if name in known else next(fresh) for name in names]
    return {**config, "num_classes": len(names), "classes": list(names), "palette": palette, "label_space": None}


def name_classes(model: ISANet, names: Sequence[str]) -> ISANet:
    """A model with classes of these names.

    Where the classes of `model` have only numbers and are as many, these are their names, and everything is kept;
    otherwise as `replace_classes`.
    """
    if are_numbered(model.classes) and len(names) == len(model.classes):
        return _rebuilt(model, with_classes(model.config, names), {})
    return replace_classes(model, names)


def replace_classes(model: ISANet, names: Sequence[str]) -> ISANet:
    """A model with other classes, randomly initialized but for the rows of classes that `model` knows by name.

    Args:
        model: The model to start from; the new one shares all tensors but those of `HEADS`.
        names: The new classes.
    """
    config = with_classes(model.config, names)
    old = [] if are_numbered(model.classes) else list(model.classes)  # a number means nothing elsewhere
    kept = [name for name in names if name in old]
    targets, sources = [config["classes"].index(name) for name in kept], [old.index(name) for name in kept]
    state = model.state_dict()
    new: dict[str, torch.Tensor] = {}
    for head in HEADS:
        weight, bias = state[f"{head}.weight"], state[f"{head}.bias"]
        # dtype and device are given, because torch's defaults for both may be others
        new_weight = torch.empty(len(names), *weight.shape[1:], dtype=torch.float32, device="cpu").normal_(std=0.01)
        new_bias = torch.zeros(len(names), dtype=torch.float32, device="cpu")
        new_weight[targets], new_bias[targets] = weight[sources].float(), bias[sources].float()
        new |= {f"{head}.weight": new_weight, f"{head}.bias": new_bias}
    log.warning(  # as transformers does: a randomly initialized head must be trained before it is of use
        "%d new classes: randomly initialized %s; rows kept: %s", len(names), ", ".join(new), ", ".join(kept) or "none"
    )
    return _rebuilt(model, config, new)


def _rebuilt(model: ISANet, config: Mapping[str, Any], changed: Mapping[str, torch.Tensor]) -> ISANet:
    rebuilt = fill(meta_model(config), {**model.state_dict(), **changed}, values=False)
    rebuilt.provenance = model.provenance
    return rebuilt
