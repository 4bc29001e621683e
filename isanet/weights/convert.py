"""State dicts of other codebases, converted by data: one table of names for each upstream layout, in `layouts`.

The longest matching prefix wins. Every tensor must be named by the table: nothing is dropped silently.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isanet._text import clean, listed
from isanet.config import ATTENTIONS, BACKBONES, ISANetConfig, check_class_count
from isanet.errors import CheckpointFormatError, CheckpointMismatchError
from isanet.weights.layouts import BACKBONE_LAYOUTS, LANDMARKS, LAYOUTS
from isanet.weights.pickles import Opaque, unsafe

INPLACE_ABN_EPS = 1e-5
"""What InPlaceABN adds to its scales."""

MAX_NAME = 200
"""Most characters of a tensor's name."""

MAX_CONTAINERS = 16
"""Most containers, one in another, around a state dict."""

MAX_CHANNELS = 2**16
"""Most channels that an architecture inferred from shapes may have."""

AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_model", "ema_state_dict")
"""Keys under which training frameworks keep an average of the weights over the steps of training."""

CONTAINERS = (
    *("state_dict", "model", "model_state", "model_state_dict", "net", "network", "weights", "params", "module"),
    *("student", "teacher"),
)
"""Keys under which training frameworks keep the weights, beside the optimizer's state, counters and averages."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that DataParallel, torch.compile and torch's other wrappers add to names, at any place in them."""

ARGUMENTS = {field.name for field in fields(ISANetConfig)} | {"align_corners"}
"""What the `config` of an `isanet.ISANet` has, or had before `logits_resize`."""

COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Last parts of names under which profilers (thop) and torch's AveragedModel leave their counts in a network."""

log = logging.getLogger("isanet")


class _Found(NamedTuple):
    """A dictionary in which the names of a network's tensors, after one prefix, are found."""

    place: str
    average: bool
    state: Mapping[Any, Any]
    prefix: str


def unwrap(checkpoint: object, weights: str | None = None) -> dict[str, Tensor]:
    """The bare state dict in a checkpoint, without wrappers and without what they put before every name.

    Beside one common prefix, such as Lightning's `model.` or MMRazor's `architecture.model.`, other entries (a loss, a
    metric) are left out and named in the log. Of a teacher and a student, the student is taken. Within the network's
    own names only counters of profilers and copies of mmcv's averages are left out.

    Args:
        checkpoint: As returned by `isanet.weights.checkpoint.read_checkpoint`.
        weights: "ema" takes the average of the weights over the steps of training, where both are in the checkpoint.

    Raises:
        CheckpointFormatError: There is no state dict in it, or more than one.
        UnsafeCheckpointError: Something else than a tensor is in the place of one.
        ValueError: `weights` is neither None nor "ema", or there is no average.
    """
    if weights not in (None, "ema"):
        raise ValueError(f"weights is 'ema' or None, got {weights!r}")
    found = _networks(checkpoint)
    wanted = [each for each in found if each.average] if weights else [each for each in found if not each.average]
    if weights and not wanted:
        raise ValueError(f"there is no average of the weights in it (under {', '.join(AVERAGES)}); leave out weights")
    if not (wanted := wanted or found):
        return _bare(_outermost(checkpoint), "")
    students = [each for each in wanted if not {"teacher", "teachers"} & set(re.split(r"[._/]", each.place))]
    if distilled := len(students) == 1 < len(wanted):
        wanted = students
    if len(wanted) > 1:
        places = ", ".join(each.place for each in wanted)
        raise CheckpointFormatError(f"it has {len(wanted)} networks ({places}); save the state dict of one by itself")
    chosen = wanted[0]
    if len(found) > 1 or chosen.average:
        level = logging.WARNING if chosen.average and not weights else logging.INFO
        others = ", ".join(each.place for each in found if each is not chosen)
        what = "the student" if distilled else "the weights"
        if chosen.average:
            what = "an average of the weights"
        elif any(each.average for each in found):
            what += "; weights='ema' (`isanet convert --weights ema`) takes the average"
        log.log(level, "took %s, %s%s", chosen.place, what, f"; left out {others}" if others else "")
    inside = [each.prefix for each in found if each.state is chosen.state and each is not chosen]
    return _bare(chosen.state, chosen.prefix, tuple(p for p in inside if p.startswith(chosen.prefix)))


def _networks(checkpoint: object) -> list[_Found]:
    """Every ISANet in a checkpoint, in whatever containers, under whatever prefix."""
    found, seen = list[_Found](), set[int]()
    waiting: list[tuple[object, str, bool, int]] = [(checkpoint, "", False, 0)]
    while waiting:
        value, place, average, depth = waiting.pop(0)
        state = _module_state(value)
        if not isinstance(state, Mapping) or id(value) in seen or depth > MAX_CONTAINERS:
            continue
        seen.add(id(value))
        names = {_without_wrappers(name) for name in state if isinstance(name, str)}
        prefixes = {
            name.removesuffix(mark) for mark in chain(*LANDMARKS.values()) for name in names if _ends(name, mark)
        }
        for prefix in sorted(prefixes):
            shown = (
                clean("/".join(part for part in (place, prefix.rstrip(".")) if part))[:MAX_NAME] or "the file itself"
            )
            found.append(_Found(shown, average or "ema" in re.split(r"[._]", prefix), state, prefix))
        if not prefixes:
            for key in (*CONTAINERS, *AVERAGES):
                inner = f"{place}/{key}".lstrip("/")
                waiting.append((state.get(key), inner, average or key in AVERAGES, depth + 1))
    return found


def _ends(name: str, mark: str) -> bool:
    return name == mark or name.endswith("." + mark)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) if len(name) <= MAX_NAME else name


def _outermost(checkpoint: object) -> object:
    """What should be a state dict, of a network that is no ISANet (a backbone), or for the message."""
    state = _module_state(checkpoint)
    for _ in range(MAX_CONTAINERS):
        inner = [state[key] for key in CONTAINERS if key in state] if isinstance(state, Mapping) else []
        inner = [_module_state(each) for each in inner if isinstance(each, Mapping | Opaque)]
        if not inner:
            break
        state = inner[0]
    return state


def _bare(state: object, prefix: str, others: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a state dict under a prefix and not under the `others`, by their names without it."""
    expected = f"expected a state dict of named tensors, or one under {listed(CONTAINERS)}; got {_describe(state)}"
    if isinstance(state, Opaque):
        raise unsafe(f"names {state.name!r} in the place of its weights")
    if not isinstance(state, Mapping) or not state:
        raise CheckpointFormatError(expected)
    bare, foreign, dropped = dict[str, Tensor](), list[object](), list[str]()
    for given, value in state.items():
        name = _without_wrappers(given) if isinstance(given, str) else given
        known = isinstance(name, str) and name.startswith(prefix) and not name.startswith(others)
        if not known and (prefix or isinstance(name, str)):
            foreign.append(given)
            continue
        if isinstance(value, Opaque):
            raise unsafe(f"names {value.name!r} in the place of the tensor {str(given)[:MAX_NAME]!r}")
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointFormatError(f"{expected}, of which {repr(given)[:MAX_NAME]} is not a tensor")
        # Names reach terminals and logs, where control characters do harm
        if len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointFormatError(f"{given[:MAX_NAME]!r} cannot be the name of a tensor")
        name = name.removeprefix(prefix)
        if name.rpartition(".")[2] in COUNTERS or (name.startswith("ema_") and "." not in name):
            dropped.append(name)
        elif name in bare:
            raise CheckpointFormatError(f"two of its tensors are {name!r}, once without the prefixes of wrappers")
        else:
            bare[name] = value
    if foreign:
        log.info("left out, beside the network's tensors: %s", listed(foreign, 20))
    if dropped:
        log.info("left out, counters of profilers and copies of averages: %s", listed(dropped, 20))
    return bare


def _module_state(value: object) -> object:
    """The state dict of a network that was pickled whole (`torch.save(model)`); what else was pickled, as a mapping."""
    if not (isinstance(value, Opaque) and isinstance(value.state, Mapping)):
        return value
    if "_modules" not in value.state:
        return value.state  # a Segmenter has its network under `model`
    state, seen = dict[str, object](), set[int]()
    waiting: list[tuple[object, str]] = [(value, "")]
    while waiting:
        module, prefix = waiting.pop()
        if not (isinstance(module, Opaque) and isinstance(module.state, Mapping)) or len(prefix) > MAX_NAME:
            continue
        if id(module) in seen:  # a file may say that a module is a part of itself
            continue
        seen.add(id(module))
        parts = {kind: module.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")}
        for kind, members in parts.items():
            for name, member in members.items() if isinstance(members, Mapping) else ():
                if kind == "_modules":
                    waiting.append((member, f"{prefix}{str(name)[:MAX_NAME]}."))
                elif member is not None:
                    state[f"{prefix}{name}"] = member
    return state


def noted_network(checkpoint: object, state: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
    """What says `config` of an `isanet.ISANet` and, perhaps, its `provenance`; None where a checkpoint does not.

    It is the checkpoint itself (`{"config": model.config, "state_dict": ...}`), or in it the attributes of the network
    that was pickled whole and has these tensors.
    """
    waiting, seen = [checkpoint], set[int]()
    while waiting:
        value = waiting.pop()
        notes = value.state if isinstance(value, Opaque) else value
        if id(value) in seen or not isinstance(notes, Mapping):
            continue
        seen.add(id(value))
        config = notes.get("config")
        weight: Any = notes
        if isinstance(config, Mapping) and {"classes", "preprocessing"} <= config.keys() <= ARGUMENTS:
            for part in ("_modules", "classifier", "_parameters", "weight"):
                weight = weight.state if isinstance(weight, Opaque) else weight
                weight = weight.get(part) if isinstance(weight, Mapping) else None
            if value is checkpoint or weight is state.get("classifier.weight"):
                return notes
        waiting += notes.values()
    return None


def detect_layout(state: Mapping[str, Any]) -> str:
    """The layout of a bare state dict: a key of `LAYOUTS`, or "isanet" for our own.

    Raises:
        CheckpointFormatError: It is not an ISANet in any known layout.
    """
    for layout, landmarks in LANDMARKS.items():
        if any(landmark in state for landmark in landmarks):
            return layout
    raise CheckpointFormatError(
        f"these {len(state)} tensors are not an ISANet in a known layout ({', '.join(LANDMARKS)}); "
        f"the first are {', '.join(map(str, list(state)[:3]))}"
    )


def convert(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename every tensor from `layout` to the names of `isanet.ISANet`; the tensors are shared, not copied.

    Files from PaddlePaddle and from before torch 0.4.1 have no `num_batches_tracked`; if no batch norm has one, all get
    0, as in torch. The scales of InPlaceABN become those of torch's batch norm, which computes the same by them.

    Raises:
        CheckpointMismatchError: A name is not in the table of that layout, or two names become one.
    """
    converted = dict(state) if layout == "isanet" else rename(state, LAYOUTS[layout], layout)
    if layout == "openseg":
        for norm in _norms(converted):  # its kernels scale by |weight| + eps, not by weight
            if (scale := converted.get(f"{norm}weight")) is not None:
                converted[f"{norm}weight"] = (scale.double().abs() + INPLACE_ABN_EPS).float()
    return _with_counters(converted)


def convert_backbone(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """As `convert`, but to the names of `isanet.backbone.ResNet`, and without ImageNet's classifier."""
    return _with_counters(rename(state, BACKBONE_LAYOUTS[layout], layout, "a ResNet"))


def _norms(state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of all batch norms."""
    return [name.removesuffix("running_var") for name in state if name.endswith(".running_var")]


def _with_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(name.endswith(".num_batches_tracked") for name in state):
        return state
    counters = (f"{norm}num_batches_tracked" for norm in _norms(state))
    return state | {name: torch.zeros((), dtype=torch.int64, device="cpu") for name in counters}


def rename(
    state: Mapping[str, Tensor], table: Mapping[str, str | None], layout: str, what: str = "an ISANet"
) -> dict[str, Tensor]:
    """Apply one table of prefixes, or whole names, to every name.

    Args:
        state: Tensors by upstream's names.
        table: Prefixes of upstream's names to ours; None drops.
        layout: Name of the table, for messages.
        what: What the tensors should be, for messages.

    Raises:
        CheckpointMismatchError: A name is not in the table, or two names become one.
    """
    renamed, unknown, dropped = dict[str, Tensor](), list[str](), 0
    for name, value in state.items():
        prefix = name
        while prefix and prefix not in table:
            prefix = prefix.rpartition(".")[0]
        if not prefix:
            unknown.append(name)
        elif (ours := table[prefix]) is None:
            dropped += 1
        else:
            renamed[ours + name[len(prefix) :]] = value
    if unknown:
        raise CheckpointMismatchError(
            f"{len(unknown)} tensors are not part of {what} in {layout}'s layout: {', '.join(unknown[:5])}"
        )
    if same := len(state) - dropped - len(renamed):
        raise CheckpointMismatchError(f"{same} tensors of this {layout} checkpoint have the same name as another one")
    return renamed


def notes_classes(checkpoint: object, count: int) -> tuple[list[str], list[list[int]] | None] | None:
    """Names and colors of `count` classes that mmsegmentation noted in a checkpoint; None where it has no such names.

    0.x notes `meta.CLASSES` and `meta.PALETTE`, 1.x `meta.dataset_meta`.
    """
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta")
    notes = dataset if isinstance(dataset, Mapping) else {}
    names, palette = notes.get("classes", meta.get("CLASSES")), notes.get("palette", meta.get("PALETTE"))
    if not isinstance(names, list | tuple) or len(names) != count:
        return None
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names) or len(set(names)) != count:
        return None
    colors = [list(color) for color in _items(palette) if isinstance(color, list | tuple) and len(color) == 3]
    fits = len(colors) == count and all(type(v) is int and 0 <= v <= 255 for color in colors for v in color)
    return list(names), colors if fits else None


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def notes_align_corners(checkpoint: object) -> bool:
    """Whether mmsegmentation's config in a checkpoint (`meta.config`, a text) has `align_corners=True`."""
    return _noted_config(checkpoint, r"align_corners['\"]?\s*[=:]\s*True")


def notes_windows(checkpoint: object) -> bool:
    """Whether mmsegmentation's config in a checkpoint says that test images are seen in sliding windows."""
    return _noted_config(checkpoint, r"mode['\"]?\s*[=:]\s*['\"]slide['\"]")


def _noted_config(checkpoint: object, pattern: str) -> bool:
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    text = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    return isinstance(text, str) and re.search(pattern, text) is not None


def infer_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `isanet.ISANet`, inferred from the shapes of a converted state dict.

    What changes no shape cannot be inferred: `isanet.weights.layouts.NOT_SHOWN`, `block_size`, the order of attentions.

    Raises:
        CheckpointMismatchError: A tensor is missing or has an impossible shape, or no known backbone fits.
    """
    try:
        both = list(ATTENTIONS)
        ranges = [name for name in both if f"{name}.value_project.weight" in state] or both
        value = state[f"{ranges[0]}.value_project.weight"].shape
        blocks = tuple(
            len({name.split(".")[2] for name in state if name.startswith(f"backbone.layer{i}.")}) for i in (1, 2, 3, 4)
        )
        kind = 4 if "backbone.layer1.0.conv3.weight" in state else 1, blocks
        backbone = next((name for name, known in BACKBONES.items() if known == kind), None)
        if backbone is None:
            what = "bottlenecks" if kind[0] == 4 else "basic blocks"
            raise CheckpointMismatchError(f"no known backbone has {blocks} {what}; known are {', '.join(BACKBONES)}")
        check_class_count(num_classes := state["classifier.weight"].shape[0])
        channels = {
            "num_classes": num_classes,
            "width": state["backbone.layer1.0.conv1.weight"].shape[0],
            "head_channels": value[0],
            "key_channels": state[f"{ranges[0]}.key_project.0.conv.weight"].shape[0],
            "fusion_kernel": state["fuse.conv.weight"].shape[-1],
        }
        if "aux_classifier.weight" in state:
            channels["aux_channels"] = state["aux_classifier.weight"].shape[1]
        stem = [state[f"backbone.stem.{i}.weight"].shape[0] for i in (0, 3, 6)]
        sizes = [*channels.items(), *(("stem_channels", count) for count in stem)]
        # A tensor without elements may claim any shape, and a network is built in these sizes
        if odd := [f"{name} = {count}" for name, count in sizes if not 0 < count <= MAX_CHANNELS]:
            raise CheckpointMismatchError(f"no ISANet has these sizes: {', '.join(odd)}")
        rare: dict[str, Any] = {} if ranges == both else {"attention_order": ranges}
        if stem != [channels["width"] // 2, channels["width"] // 2, channels["width"]]:
            rare["stem_channels"] = stem
        return {"backbone": backbone, **channels, "value_bias": f"{ranges[0]}.value_project.bias" in state, **rare}
    except (KeyError, IndexError) as error:
        raise CheckpointMismatchError(f"cannot infer the architecture: no usable tensor {error}") from error
    except ValueError as error:
        raise CheckpointMismatchError(str(error)) from error


def _describe(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    return f"a dictionary with {listed((repr(key)[:MAX_NAME] for key in value), 6)}" if value else "an empty dictionary"
