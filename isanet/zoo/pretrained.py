"""From a name, a file, a folder or a repository to a model."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet._files import write_output
from isanet._text import clean
from isanet.config import MAX_CLASSES, numbered_classes
from isanet.errors import CheckpointFormatError, IntegrityError
from isanet.labels import LABEL_SPACES, generic_palette, label_space_for
from isanet.model import ISANet
from isanet.weights import checkpoint, convert, hub
from isanet.weights.manifest import CHECKS, load_backbones, load_manifest, model_info, unknown_model
from isanet.weights.torchfile import MAX_DESCRIPTION_BYTES, File
from isanet.zoo.released import load_cached, meta_model, provenance_in

HEADS = ("classifier", "aux_classifier")
"""The layers that know the classes; everything else is kept when the classes change."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""What a repository on the Hugging Face Hub looks like: `org/name`."""

log = logging.getLogger("isanet")


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: bool | None = None,
) -> ISANet:
    """A model with trained weights, in evaluation mode, on the CPU, in float32.

    Args:
        source: One of

            * a name in the zoo, such as "isanet_r50_voc" (see `isanet.list_models`): fetched if it is not cached,
              verified either way;
            * "org/name", a repository on the Hugging Face Hub;
            * a folder with config.json and model.safetensors, as `save_pretrained` writes it;
            * a .safetensors file;
            * an upstream checkpoint (.pth) of sssegmentation or mmsegmentation; its keys tell its layout and its shapes
              its architecture. 21, 150 and 19 classes are taken for VOC, ADE20K and Cityscapes.

            A `pathlib.Path` is always a file or a folder; a text is a name in the zoo first, then a path, then a
            repository.
        num_classes: Start anew with this many classes: both classifiers are drawn at random, all else is kept.
        classes: The same with names; the rows of classes that the source knows by the same name are kept.
            Where the source's classes have only numbers ("class 0", ...) and are as many, these are their names.
        revision: Branch, tag or commit of a repository on the Hub.
        token: Token for a private repository; else what huggingface_hub finds.
        progress: Show a progress bar; None shows it on a terminal and in a notebook.

    Returns:
        The model; `model.classes`, `model.palette` and `model.preprocessing` say how to use it.

    Raises:
        ValueError: The name is unknown, or arguments contradict each other.
        DownloadError: It could not be fetched; each subclass is one reason.
        CacheError: The cache cannot be used.
        CheckpointError: The file is no checkpoint, is unsafe, or does not fit; nothing of it was run or kept.
    """
    new = new_names(num_classes, classes)
    kind, place = _resolve(source)
    if kind != "repository" and (revision is not None or token is not None):
        raise ValueError(f"revision and token are for repositories on the Hugging Face Hub; {place!r} is a {kind}")
    match kind:
        case "name":
            network, provenance = load_cached(model_info(place), progress=progress)
            assert isinstance(network, ISANet)
            model, model.provenance = network, provenance
        case "repository":
            model = _load_repository(place, revision=revision, token=token)
        case "folder":
            model = load_file(_read(Path(place, "model.safetensors")), Path(place, "config.json"))
        case _:
            model = load_file(_read(Path(place)))
    if new is None:
        return model
    if classes is not None and _are_numbers(model) and len(new) == len(model.classes):
        return build(class_config(model.config, new), model.state_dict(), model.provenance)
    return new_classes(model, new)


def build(config: Mapping[str, Any], state: Mapping[str, Tensor], provenance: dict[str, str]) -> ISANet:
    """The model, in evaluation mode; nothing is drawn at random first, and the tensors are taken over, not copied."""
    model = meta_model(config)
    model.load_state_dict(checkpoint.fit_state_dict(state, model.state_dict()), assign=True)
    model.provenance = provenance
    return model.eval()


def from_backbone(
    backbone: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    label_space: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    **architecture: Any,
) -> ISANet:
    """A new model, to be trained, on the backbone trained on ImageNet that upstream's training started from.

    The file, OpenMMLab's ResNet-V1c, is fetched if it is not cached, and verified either way. Of its sha256 only 8
    digits are published, in its name, which tell damage and no more: the first copy's whole hash is recorded, and
    any later copy must match. Upstream's configurations name these files (`resnet50_v1c-2cccc1ad.pth`,
    `resnet101_v1c-e67eebb6.pth`), which take RGB images with ImageNet's mean and standard deviation.

    Args:
        backbone: "resnet50" or "resnet101".
        num_classes: K, the number of classes; may be left out where `classes` or `label_space` is given.
        classes: Names of the classes; "class 0", "class 1", ... if left out.
        palette: One (red, green, blue) of 0..255 for each class; those of `isanet.labels.generic_palette` if left
            out.
        label_space: A key of `isanet.labels.LABEL_SPACES`, instead of `classes` and `palette`.
        preprocessing: Keyword arguments of `isanet.images.preprocess.preprocess`. If left out, ImageNet's `mean` and `std`
            (of values 0..255), a `short_edge` of 512 pixels and a `long_edge` of at most 2048.
        progress: Show a progress bar; None shows it on a terminal and in a notebook.
        **architecture: Further arguments of `ISANet`, such as `aux_channels`; `width` is that of the file, 64.

    Returns:
        The model, in training mode, on the CPU; all beside the backbone is drawn at random as by `ISANet`.
        `provenance` says where the backbone came from, under keys that start with "backbone_".

    Raises:
        ValueError: There is no such trained backbone, or arguments contradict each other; nothing was fetched.
        TypeError: There is no such argument.
        DownloadError: It could not be fetched; each subclass is one reason.
        CacheError: The cache cannot be used.
        CheckpointError: The file is no checkpoint, is unsafe, or is not that backbone; nothing of it was run or
            kept.
    """
    released = next((each for each in load_backbones().values() if each.backbone == backbone), None)
    if released is None:
        known = ", ".join(each.backbone for each in load_backbones().values())
        raise ValueError(f"there is no trained backbone {backbone!r}; there are {known}")
    if architecture.get("width", 64) != 64:
        raise ValueError(f"the trained {backbone} has a width of 64, got {architecture['width']!r}")
    if label_space is not None:
        if label_space not in LABEL_SPACES:
            raise ValueError(f"unknown label space {label_space!r}; the known ones are: {', '.join(LABEL_SPACES)}")
        if classes is not None or palette is not None:
            raise ValueError(f"the label space {label_space!r} has classes and a palette; leave out those arguments")
        classes, palette = LABEL_SPACES[label_space].classes, LABEL_SPACES[label_space].palette
    elif palette is None:
        palette = generic_palette(len(new_names(num_classes, classes) or ()))
    model = ISANet(
        backbone=backbone,
        num_classes=num_classes,
        classes=classes,
        palette=palette,
        label_space=label_space,
        preprocessing=preprocessing or imagenet_preprocessing(),
        **architecture,
    )
    trained, provenance = load_cached(released, progress=progress)
    model.backbone.load_state_dict(trained.state_dict())
    model.provenance = {f"backbone_{key}": value for key, value in provenance.items()}
    return model


def imagenet_preprocessing() -> dict[str, Any]:
    """ImageNet's mean and deviation, by which all backbones were trained; sizes as of the models for VOC and ADE20K."""
    return {"short_edge": 512, "long_edge": 2048, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


# --- new classes --------------------------------------------------------------------------------------------


def new_names(num_classes: int | None, classes: Sequence[str] | None) -> list[str] | None:
    """Names for the arguments that ask for other classes, or None if neither does."""
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names, not the single text {classes!r}")
    if num_classes is not None and (type(num_classes) is not int or not 1 <= num_classes <= MAX_CLASSES):
        raise ValueError(f"num_classes must be a whole number from 1 to {MAX_CLASSES}, got {num_classes!r}")
    if num_classes is not None and classes is not None and num_classes != len(classes):
        raise ValueError(f"num_classes={num_classes} contradicts the {len(classes)} names in classes")
    if classes is not None:
        return list(classes)
    return None if num_classes is None else numbered_classes(num_classes)


def _are_numbers(model: ISANet) -> bool:
    return list(model.classes) == numbered_classes(len(model.classes))


def class_config(config: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The same arguments for other classes; classes of the same name keep their colors."""
    known = dict(zip(config["classes"], config["palette"], strict=True))
    taken = {tuple(known[name]) for name in names if name in known}
    fresh = (list(color) for color in generic_palette(2 * len(names) + 256) if color not in taken)
    palette = [list(known[name]) if name in known else next(fresh) for name in names]
    return {**config, "num_classes": len(names), "classes": names, "palette": palette, "label_space": None}


def new_classes(model: ISANet, names: list[str]) -> ISANet:
    """Other classes: both classifiers are drawn anew, and rows of classes of the same name are copied into them."""
    config = class_config(model.config, names)
    meta_model(config)  # raises for names that no model can have
    old = [] if _are_numbers(model) else list(model.classes)  # a number means nothing elsewhere
    kept = [name for name in names if name in old]
    targets, sources = [config["classes"].index(name) for name in kept], [old.index(name) for name in kept]
    state = model.state_dict()
    made = []
    for head in HEADS:
        weight, bias = state[f"{head}.weight"], state[f"{head}.bias"]
        # Said in full, because torch's defaults for both may be others
        new_weight = torch.empty(config["num_classes"], *weight.shape[1:], dtype=torch.float32, device="cpu")
        new_weight.normal_(std=0.01)
        new_bias = torch.zeros(config["num_classes"], dtype=torch.float32, device="cpu")
        new_weight[targets], new_bias[targets] = weight[sources].float(), bias[sources].float()
        state[f"{head}.weight"], state[f"{head}.bias"] = new_weight, new_bias
        made += [f"{head}.weight", f"{head}.bias"]
    log.warning(  # as transformers does: a head drawn at random must be trained before it is of use
        "%d new classes: made %s; rows kept: %s", config["num_classes"], ", ".join(made), ", ".join(kept) or "none"
    )
    return build(config, state, model.provenance)


# --- files, folders, repositories ---------------------------------------------------------------------------


def _resolve(source: str | os.PathLike[str]) -> tuple[str, str]:
    """What a source is ("name", "folder", "file", "repository"), and its text."""
    place = os.fspath(source)
    if isinstance(source, str) and place in load_manifest():
        return "name", place
    if not place:
        raise ValueError("the name of the model is empty; `isanet list` shows the zoo")
    place = str(Path(place).expanduser()) if place.startswith("~") else place
    path = Path(place)
    if path.is_dir():
        return "folder", place
    if path.exists() or not isinstance(source, str):
        return "file", place
    if REPOSITORY.fullmatch(place) and path.suffix not in (".pth", ".pt", ".safetensors"):
        return "repository", place
    if path.suffix or len(path.parts) > 1:
        raise ValueError(f"there is no file or folder {place!r}")
    raise ValueError(unknown_model(place))


def _read(path: Path) -> File:
    try:
        return checkpoint.read_file(path)
    except OSError as error:
        raise CheckpointFormatError(
            f"cannot read {path}: {error.strerror}; a model folder has config.json and model.safetensors"
        ) from error


def load_file(file: File, config_file: Path | None = None) -> ISANet:
    """A model from any file, with its config beside it, inside it, or told from its shapes."""
    raw, metadata = checkpoint.read_checkpoint(file)
    with checkpoint.errors_mention(file):
        state = convert.unwrap(raw)
        layout = convert.detect_layout(state)
        state = convert.convert(state, layout)
        if config_file is not None:
            config = _parse_config(str(config_file), _read(config_file).data.tobytes())
        elif "config" in metadata:
            config = _parse_config(f"the metadata of {file.name}", metadata["config"])
        else:
            config = _guess_config(state, raw)
        said = {"source": Path(file.name).name, "source_sha256": file.sha256, "layout": layout}
        made = provenance_in(metadata) or {**said, "converter_version": str(convert.CONVERTER_VERSION)}
        return build(config, checkpoint.release_file_buffer(state, file), made)


def _guess_config(state: Mapping[str, Tensor], raw: object) -> dict[str, Any]:
    """The constructor's arguments for a bare file, from its shapes and, of mmsegmentation's files, its notes."""
    config = convert.infer_architecture(state)
    if convert.notes_align_corners(raw):
        config["align_corners"] = True
    space = label_space_for(config["num_classes"])
    config["preprocessing"] = imagenet_preprocessing()
    if space is not None:
        released = [weights for weights in load_manifest().values() if weights.label_space == space.name]
        config["preprocessing"] = dict(released[0].preprocessing)
        config["classes"], config["label_space"] = list(space.classes), space.name
        config["palette"] = [list(color) for color in space.palette]
    else:
        config["palette"] = [list(color) for color in generic_palette(config["num_classes"])]
    log.info(
        "a bare file: took it for %s with %d classes (%s), align_corners=%s, images resized to a short edge of %d",
        config["backbone"],
        config["num_classes"],
        space.name if space is not None else "unknown, so they are numbered; name them with classes=",
        config.get("align_corners", False),
        config["preprocessing"]["short_edge"],
    )
    return config


def _parse_config(place: str, text: str | bytes) -> dict[str, Any]:
    try:
        if len(text) > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"it has {len(text):,} bytes; none has over {MAX_DESCRIPTION_BYTES:,}")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("expected an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{place} is not the configuration of a model: {error}") from error
    try:
        config = meta_model(config).config
        fits, wanted = CHECKS["preprocessing"]
        if config["preprocessing"] is not None and not fits(config["preprocessing"]):
            raise ValueError(f"preprocessing: expected {wanted}")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        # What it says may be shown on a terminal, where a stranger's text could do harm
        said = clean(str(error))[:500]
        raise CheckpointFormatError(f"{place} is not the configuration of an ISANet: {said}") from error
    return config


def _load_repository(repo_id: str, *, revision: str | None, token: str | bool | None) -> ISANet:
    """A model from the Hugging Face Hub, or from huggingface_hub's cache of it."""
    file_path, config_path = hub.fetch_model(repo_id, revision=revision, token=token)
    file = _read(file_path)
    # huggingface_hub stores a large file under its hash, and never looks at it again
    stored = file_path.resolve()
    if re.fullmatch("[0-9a-f]{64}", stored.name) and file.sha256 != stored.name:
        raise IntegrityError(f"{stored} has sha256 {file.sha256}: it was damaged; delete it and try again")
    model = load_file(file, config_path)
    model.provenance["source"] = f"hf://{repo_id}@{revision or 'main'}"
    return model


def convert_file(source: Path, target: Path) -> ISANet:
    """Convert any checkpoint that `from_pretrained` reads to a model folder, or to one .safetensors file.

    Raises:
        CheckpointError: The source cannot be used.
        OutputError: The target cannot be written.
    """
    model = from_pretrained(source)
    if target.suffix != ".safetensors":
        model.save_pretrained(target)
    else:
        write_output(target, hub.serialized(model.state_dict(), model.config, model.provenance))
    return model
