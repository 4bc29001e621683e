"""Other classes for a model: their names and colors, and the layers that know them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from isanet._text import listed
from isanet.config import ISANetConfig, are_numbered, check_preprocessing
from isanet.labels import LABEL_SPACES, LabelSpace, generic_palette
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

    Where those of `model` have only numbers, were assumed, or were noted by a bare file, and are as many, these are
    their names, and everything is kept; but a name that the file notes for another class is not moved.
    Otherwise as `replace_classes`.
    """
    known = model.provenance.get("classes")
    moved = known == "noted" and any(
        name in model.classes and model.classes.index(name) != i for i, name in enumerate(names)
    )
    if moved or len(names) != len(model.classes) or not (known or are_numbered(model.classes)):
        return replace_classes(model, names)
    same = list(names) == list(model.classes)
    return _without_note(_rebuilt(model, model.config if same else with_classes(model.config, names), {}), "classes")


def model_space(name: str) -> LabelSpace:
    """The label space of a name in `LABEL_SPACES`, which a model may have.

    Raises:
        ValueError: There is none; the message lists the known names.
    """
    if name not in LABEL_SPACES:
        raise ValueError(f"unknown label space {name!r}; the known ones are: {', '.join(LABEL_SPACES)}")
    return LABEL_SPACES[name]


def with_label_space(model: ISANet, name: str) -> ISANet:
    """A model whose classes already have the names of a known label space, with its colors."""
    palette = [list(color) for color in LABEL_SPACES[name].palette]
    return _rebuilt(model, {**model.config, "palette": palette, "label_space": name}, {})


def with_preprocessing(model: ISANet, preprocessing: Mapping[str, Any]) -> ISANet:
    """A model that says that its images are prepared so.

    Raises:
        ValueError: These are no arguments of `isanet.images.preprocess.preprocess`.
    """
    if wanted := check_preprocessing(preprocessing):
        raise ValueError(f"preprocessing must have {wanted}, got {preprocessing!r}")
    rebuilt = _rebuilt(model, {**model.config, "preprocessing": dict(preprocessing)}, {})
    return _without_note(rebuilt, "preprocessing")


def warn_of_assumptions(model: ISANet) -> None:
    """Warn of what a bare file did not say, and how to say it."""
    if model.provenance.get("classes") == "assumed":
        log.warning(
            "the file does not name its %d classes: assumed the names of %s (%s)%s; if they are your own, "
            "from_pretrained(..., classes=[...]) or `isanet convert --classes` names them",
            len(model.classes),
            model.label_space,
            listed(model.classes, 3),
            ", not the older order (aeroplane, bicycle, bird, …)" if model.label_space == "context59" else "",
        )
    if model.provenance.get("preprocessing") == "assumed" and model.preprocessing:
        log.warning(
            "the file does not say how images are prepared: assumed %s; labels are wrong if it was trained otherwise: "
            "say it by from_pretrained(..., preprocessing=...) or `isanet convert --preprocessing`, or load what "
            "save_pretrained wrote",
            preprocessing_text(model.preprocessing),
        )


def preprocessing_text(preprocessing: Mapping[str, Any]) -> str:
    """Arguments of `isanet.images.preprocess.preprocess` in words."""
    parts = ["no resize"]
    if "short_edge" in preprocessing:
        parts = ["a short edge of {short_edge} (at most {long_edge} for the long one)".format(**preprocessing)]
    if "pad_to" in preprocessing:
        parts.append("padded to {}x{} with the color {}".format(*preprocessing["pad_to"], preprocessing["pad_color"]))
    parts += ["BGR"] if preprocessing.get("channels") == "BGR" else []
    return ", ".join(parts) + ", mean {mean} and std {std}".format(**preprocessing)


def _without_note(model: ISANet, key: str) -> ISANet:
    model.provenance = {name: text for name, text in model.provenance.items() if name != key}
    return model


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
    return _without_note(_rebuilt(model, config, new), "classes")


def _rebuilt(model: ISANet, config: Mapping[str, Any], changed: Mapping[str, torch.Tensor]) -> ISANet:
    rebuilt = fill(meta_model(config), {**model.state_dict(), **changed}, values=False)
    rebuilt.provenance = model.provenance
    return rebuilt
