"""From a name, a file, a folder, a repository or a backbone to a model."""

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

from isanet._files import given_path, write_output
from isanet._text import clean
from isanet.errors import CheckpointFormatError, IntegrityError
from isanet.labels import generic_palette, label_space_for
from isanet.model import ISANet
from isanet.weights import cache, checkpoint, convert, hub
from isanet.weights.layouts import NOT_SHOWN
from isanet.weights.manifest import Weights, load_backbones, load_manifest, unknown_model
from isanet.weights.pickles import MAX_DESCRIPTION_BYTES, File
from isanet.zoo import released
from isanet.zoo.classes import (
    model_space,
    name_classes,
    preprocessing_text,
    replace_classes,
    requested_classes,
    warn_of_assumptions,
    with_label_space,
    with_preprocessing,
)
from isanet.zoo.networks import fill, label_arguments, meta_model, with_auxiliary

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""What a repository on the Hugging Face Hub looks like: `org/name`."""

MAX_VALUES = 1 << 16
"""Most values of a config in a pickle; one of 4,096 classes has 30,000."""

log = logging.getLogger("isanet")


@torch.inference_mode(False)  # what is loaded inside inference_mode could never be trained
def from_pretrained(
    source: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    weights: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: bool | None = None,
) -> ISANet:
    """A model with trained weights, in evaluation mode, on the CPU, in float32.

    >>> model = isanet.from_pretrained("isanet_nano_toystreets")
    >>> own = isanet.from_pretrained("isanet_nano_toystreets", classes=["road", "rest"])
    >>> own.classes  # to be trained: of the last layer, only the rows of "road" are kept
    ('road', 'rest')

    Args:
        source: One of

            * a name in the zoo (see `isanet.list_models`): fetched if it is not cached, verified either way;
            * "org/name", a repository on the Hugging Face Hub;
            * a folder with config.json and model.safetensors, as `save_pretrained` writes it;
            * a .safetensors file;
            * an upstream checkpoint of sssegmentation, mmsegmentation or openseg.pytorch (.pth), or of PaddleSeg
              (.pdparams); its keys tell its layout and its shapes its architecture. Names of classes come from its
              notes (mmsegmentation's `meta`); without notes, 21, 150, 19 and 59 classes are taken for VOC's, ADE20K's,
              Cityscapes' and Pascal Context's, with a warning.

            A `pathlib.Path` is always a file or a folder; a string is a name in the zoo first, then a path, then a
            repository.
        num_classes: Start over with this many classes: both classifiers are randomly initialized, the rest is kept.
        classes: The same with names; the rows of classes that the source knows by the same name are kept.
            Where the source is a bare file, or its classes have only numbers ("class 0", ...), and they are as many,
            these are their names, and the trained classifiers are kept.
        preprocessing: Arguments of `isanet.images.preprocess.preprocess`, where the source does not say them or says
            them wrongly.
        weights: "ema": of a checkpoint that has both, the average of the weights over the steps of training.
        revision: Branch, tag or commit of a repository on the Hub.
        token: Token for a private repository; None takes what huggingface_hub finds.
        progress: Show a progress bar; None shows it on a terminal and in a notebook.

    Returns:
        The model; `model.classes`, `model.palette` and `model.preprocessing` say how to use it.

    Raises:
        ValueError: The name is unknown, or arguments contradict each other.
        DownloadError: It could not be fetched; each subclass is one reason.
        IntegrityError: Its bytes are not the expected ones.
        CacheError: The cache cannot be used.
        CheckpointError: The file is not a checkpoint, is unsafe, or does not fit; nothing of it was run or kept.
    """
    names = requested_classes(num_classes, classes)
    found = _resolve(source)
    if not isinstance(found, str) and (revision is not None or token is not None):
        raise ValueError(
            f"revision and token are for repositories on the Hugging Face Hub, and {os.fspath(source)!r} is not one"
        )
    if weights is not None and not (isinstance(found, Path) and found.is_file()):
        raise ValueError(f"weights is for files of checkpoints with an average, and {os.fspath(source)!r} is none")
    match found:
        case Weights():
            network, provenance = released.load(found, progress=progress)
            assert isinstance(network, ISANet)
            model, model.provenance = network, provenance
        case Path():
            folder = found.is_dir()
            file = read_file(found / "model.safetensors" if folder else found)
            model = load_file(file, found / "config.json" if folder else None, weights)
        case _:
            model = _load_repository(found, revision=revision, token=token)
    if names is not None:
        model = replace_classes(model, names) if classes is None else name_classes(model, names)
    if preprocessing is not None:
        model = with_preprocessing(model, preprocessing)
    warn_of_assumptions(model)
    return model


def _resolve(source: str | os.PathLike[str]) -> Weights | Path | str:
    """What a source is: a model of the zoo, a file or folder, or the id of a repository."""
    text = os.fspath(source)
    if isinstance(source, str) and (weights := load_manifest().get(text)):
        return weights
    if not text:
        raise ValueError("the name of the model is empty; `isanet list` shows the zoo")
    path = Path(os.path.expanduser(text))  # noqa: PTH111  Path's raises for "~somebody" who does not exist
    if os.path.exists(path) or not isinstance(source, str):  # noqa: PTH110  Path's raises for names that are too long
        return given_path(path, CheckpointFormatError)
    is_file = path.suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pdparams")
    if REPOSITORY.fullmatch(text) and not is_file:
        return text
    if is_file or len(path.parts) > 1 or (path.suffix and not text.startswith("isanet_")):  # names have dots too
        raise ValueError(f"there is no file or folder {str(path)!r}")
    raise ValueError(unknown_model(text))


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
    """A new model to be trained, on the ImageNet backbone that upstream's training started from.

    The file, OpenMMLab's ResNet-V1c that upstream's configurations name, is fetched if it is not cached, and verified
    either way. Of its sha256 only 8 digits are published, in its name, which show damage and no more: the whole hash of
    the first copy is recorded, and any later copy must match.

    >>> new = isanet.from_backbone("resnet50", classes=["road", "rest"])
    >>> new.training
    True

    Args:
        backbone: "resnet50" or "resnet101".
        num_classes: K, the number of classes; may be left out where `classes` or `label_space` is given.
        classes: Names of the classes; "class 0", "class 1", ... if left out.
        palette: One (red, green, blue) of 0..255 for each class; `isanet.labels.generic_palette` if left out.
        label_space: A key of `isanet.labels.LABEL_SPACES`, instead of `classes` and `palette`.
        preprocessing: Keyword arguments of `isanet.images.preprocess.preprocess`; `imagenet_preprocessing` if left out.
        progress: Show a progress bar; None shows it on a terminal and in a notebook.
        **architecture: Further arguments of `isanet.ISANet`, such as `aux_channels`; `width` is that of the file, 64.

    Returns:
        The model, in training mode, on the CPU; all beside the backbone is randomly initialized as by `isanet.ISANet`.
        `provenance` says where the backbone came from, under keys that start with "backbone_".

    Raises:
        ValueError: There is no such trained backbone, or arguments contradict each other; nothing was fetched.
        TypeError: There is no such argument.
        DownloadError: It could not be fetched; each subclass is one reason.
        IntegrityError: Its bytes are not the expected ones.
        CacheError: The cache cannot be used.
        CheckpointError: The file is not a checkpoint, is unsafe, or is not that backbone; nothing was run or kept.
    """
    trained = {each.backbone: each for each in load_backbones().values()}
    if backbone not in trained:
        raise ValueError(f"there is no trained backbone {backbone!r}; there are {', '.join(trained)}")
    if architecture.get("width", 64) != 64:
        raise ValueError(f"the trained {backbone} has a width of 64, got {architecture['width']!r}")
    if label_space is not None:
        space = model_space(label_space)
        if classes is not None or palette is not None:
            raise ValueError(f"the label space {label_space!r} has classes and a palette; leave out those arguments")
        classes, palette = space.classes, space.palette
    names = requested_classes(num_classes, classes)
    model = ISANet(
        backbone=backbone,
        classes=names,
        palette=generic_palette(len(names or ())) if palette is None else palette,
        label_space=label_space,
        preprocessing=preprocessing or imagenet_preprocessing(),
        **architecture,
    )
    network, provenance = released.load(trained[backbone], progress=progress)
    model.backbone.load_state_dict(network.state_dict())
    model.provenance = {f"backbone_{key}": value for key, value in provenance.items()}
    return model


def imagenet_preprocessing() -> dict[str, Any]:
    """ImageNet's mean and deviation (of values 0..255), which all backbones were trained with; sizes as for VOC."""
    return {"short_edge": 512, "long_edge": 2048, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


# --- files, folders, repositories ---------------------------------------------------------------------------


def load_file(
    file: File, config_file: Path | None = None, weights: str | None = None, network: ISANet | None = None
) -> ISANet:
    """A model from any checkpoint, with its config beside it, inside it, or inferred from its shapes.

    `network`, on the meta device, is filled instead if the config beside the file was read already.
    What had to be assumed stands in its provenance: `classes` and `preprocessing` are then "assumed".

    Raises:
        CheckpointError: The file is not a checkpoint, is unsafe, or does not fit its config.
    """
    raw, metadata = checkpoint.read_checkpoint(file)
    with checkpoint.errors_mention(file):
        state = convert.unwrap(raw, weights)
        layout = convert.detect_layout(state)
        state = convert.convert(state, layout)
        inferred: dict[str, str] = {}
        if network is not None:
            pass
        elif config_file is not None:
            network = _configured(str(config_file), read_file(config_file).data.tobytes())
        elif "config" in metadata:
            network = _configured(f"the metadata of {file.name}", metadata["config"])
        elif (notes := convert.noted_network(raw, state)) is not None:
            network, metadata = _noted(file.name, notes)
        else:
            config, inferred = _inferred_config(state, layout, raw)
            network = meta_model(config)
        model = fill(network, with_auxiliary(network, checkpoint.release_file_buffer(state, file)))
    model.provenance = released.recorded_provenance(metadata) or {
        "source": Path(file.name).name,
        "source_sha256": file.sha256,
        "layout": layout,
        "converter_version": str(cache.CONVERTER_VERSION),
        **inferred,
    }
    return model


def read_file(path: Path) -> File:
    """Read a file of a model folder, or any checkpoint.

    Raises:
        CheckpointFormatError: It cannot be read.
    """
    try:
        return checkpoint.read_file(path)
    except OSError as error:
        raise CheckpointFormatError(
            f"cannot read {path}: {error.strerror}; a model folder has config.json and model.safetensors; "
            "other checkpoints are passed as files"
        ) from error


def _inferred_config(state: Mapping[str, Tensor], layout: str, raw: object) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of `isanet.ISANet` for a bare file: what its shapes show, its notes say, or its layout implies.

    What else the published models of that layout and label space have is assumed. The second result says where its
    names of classes and its preprocessing come from, for the provenance.
    """
    implied = NOT_SHOWN.get(layout, {})
    config = {"preprocessing": imagenet_preprocessing(), **implied, **convert.infer_architecture(state)}
    if corners := convert.notes_align_corners(raw):
        config["logits_resize"] = "corners"
    if convert.notes_windows(raw):
        config["protocol"] = "mmseg-slide-769"
    noted = convert.notes_classes(raw, config["num_classes"])
    space = label_space_for(config["num_classes"])
    if noted is not None and space is not None and list(space.classes) != noted[0]:
        space = None
    if space is None:
        config["palette"] = generic_palette(config["num_classes"])
    else:
        known = [weights for weights in load_manifest().values() if weights.label_space == space.name]
        same = [weights for weights in known if weights.layout == layout]
        fitting = [weights for weights in same if _resize(weights.architecture) == _resize(config)] or same
        if fitting and not corners:
            config["logits_resize"] = _resize(fitting[0].architecture)
        if not fitting and "preprocessing" not in implied:
            fitting = known
        config |= label_arguments(space.name, fitting[0].preprocessing if fitting else config["preprocessing"])
    if noted is not None:
        config |= {"classes": noted[0], "palette": noted[1] or config["palette"]}
    log.info(
        "a bare file in the layout of %s: assumed %s with %d classes (%s), logits resized by %s, the protocol %s, "
        "images with %s",
        layout,
        config["backbone"],
        config["num_classes"],
        space.name
        if space is not None
        else "as it notes"
        if noted
        else "numbered; from_pretrained(..., classes=[...]) names them",
        _resize(config),
        config.get("protocol", "whole"),
        preprocessing_text(config["preprocessing"]),
    )
    sources = {"preprocessing": "assumed"}
    if noted is not None or space is not None:
        sources["classes"] = "noted" if noted is not None else "assumed"
    return config, sources


def _resize(architecture: Mapping[str, Any]) -> str:
    return str(architecture.get("logits_resize", "half_pixel"))


def _configured(place: str, text: str | bytes) -> ISANet:
    """The network, on the meta device, of an untrusted config; `place` is where it stands."""
    try:
        if len(text) > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"it has {len(text):,} bytes; none has over {MAX_DESCRIPTION_BYTES:,}")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("expected an object")
        if config.pop("align_corners", False) is True:  # its name in config.json before logits_resize
            config["logits_resize"] = "corners"
        network = meta_model(config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # a RecursionError is a RuntimeError
        message = clean(str(error))[:500]  # it may quote the config
        raise CheckpointFormatError(f"{place} is not the configuration of an ISANet: {message}") from error
    return network


def _noted(name: str, notes: Mapping[str, Any]) -> tuple[ISANet, dict[str, str]]:
    """The network, on the meta device, whose config a pickle has, and its provenance."""
    config, provenance = (_plain_text(name, notes.get(key)) for key in ("config", "provenance"))
    texts = json.loads(provenance) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        texts = {}
    return _configured(f"the config in {name}", config), texts


def _plain_text(name: str, value: object) -> str:
    """Part of a pickle as JSON: it may say in a few bytes what has no end when it is written out."""
    parts, size = list[str](), 0
    try:
        for part in json.JSONEncoder().iterencode(value):
            parts.append(part)
            size += len(part)
            if size > MAX_DESCRIPTION_BYTES or len(parts) > MAX_VALUES:
                raise ValueError(f"it has over {MAX_DESCRIPTION_BYTES:,} bytes, or {MAX_VALUES:,} values, as JSON")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"the config in {name} is not plain: {clean(str(error))[:500]}") from error
    return "".join(parts)


def _load_repository(repo_id: str, *, revision: str | None, token: str | bool | None) -> ISANet:
    config_path = hub.fetch(repo_id, "config.json", revision=revision, token=token, max_size=MAX_DESCRIPTION_BYTES)
    network = _configured(str(config_path), read_file(config_path).data.tobytes())
    payload = sum(tensor.nbytes for tensor in network.state_dict().values())
    commit = config_path.parent.name  # both from one commit, even while somebody pushes another
    largest = 2 * payload + MAX_DESCRIPTION_BYTES  # twice: it may be in float64
    file_path = hub.fetch(repo_id, "model.safetensors", revision=commit, token=token, max_size=largest)
    file = read_file(file_path)
    # huggingface_hub stores a large file under its hash, and never looks at it again
    stored = file_path.resolve()
    if re.fullmatch("[0-9a-f]{64}", stored.name) and file.sha256 != stored.name:
        raise IntegrityError(f"{stored} has sha256 {file.sha256}: it was damaged; delete it and try again")
    model = load_file(file, network=network)
    model.provenance["source"] = f"hf://{repo_id}@{revision or 'main'}"
    return model


def convert_file(source: Path, target: Path, *, label_space: str | None = None, **options: Any) -> ISANet:
    """Convert any checkpoint that `from_pretrained` reads to a model folder, or to one .safetensors file.

    Args:
        source: The checkpoint.
        target: The folder, or the file.
        label_space: A key of `isanet.labels.LABEL_SPACES`, whose names and colors are those of the classes.
        **options: Of `from_pretrained`: `classes`, `preprocessing`, `weights`.

    Raises:
        CheckpointError: The source cannot be used.
        OutputError: The target cannot be written.
    """
    if label_space is not None:
        options["classes"] = model_space(label_space).classes
    model = from_pretrained(source, **options)
    if label_space is not None:
        model = with_label_space(model, label_space)
    if target.suffix == ".safetensors":
        write_output(target, hub.serialized(model.state_dict(), model.config, model.provenance))
    else:
        model.save_pretrained(target)
    return model
