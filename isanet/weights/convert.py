"""State dicts of other codebases, converted by data: one table of name prefixes for each upstream layout.

A table maps a prefix of upstream's names to a prefix of ours, or to None for tensors that are dropped on purpose; the
longest matching prefix wins. Every tensor must be named by the table: nothing is dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isanet._text import listed
from isanet.config import BACKBONES, EXPANSION, check_class_count
from isanet.errors import CheckpointFormatError, CheckpointMismatchError

ATTENTIONS = {"global_relation": "long_range", "local_relation": "short_range"}
PROJECTIONS = ("query_project.0", "query_project.1", "key_project.0", "key_project.1", "output_project")

SSSEGMENTATION: dict[str, str] = {
    "backbone_net": "backbone",
    "in_conv.0": "reduce.conv",
    "in_conv.1": "reduce.bn",
    **{
        f"{t}.{p}.{i}": f"{o}.{p}.{n}"
        for t, o in ATTENTIONS.items()
        for p in PROJECTIONS
        for i, n in ((0, "conv"), (1, "bn"))
    },
    **{f"{theirs}.value_project": f"{ours}.value_project" for theirs, ours in ATTENTIONS.items()},
    "out_conv.0": "fuse.conv",
    "out_conv.1": "fuse.bn",
    "decoder.1": "classifier",
    "auxiliary_decoder.0": "aux_reduce.conv",
    "auxiliary_decoder.1": "aux_reduce.bn",
    "auxiliary_decoder.4": "aux_classifier",
}

MMSEGMENTATION: dict[str, str] = {
    "backbone": "backbone",
    "decode_head.in_conv": "reduce",
    **{f"decode_head.{theirs}": ours for theirs, ours in ATTENTIONS.items()},
    "decode_head.out_conv": "fuse",
    "decode_head.conv_seg": "classifier",
    "auxiliary_head.convs.0": "aux_reduce",
    "auxiliary_head.conv_seg": "aux_classifier",
}

LAYOUTS: dict[str, dict[str, str]] = {"sssegmentation": SSSEGMENTATION, "mmsegmentation": MMSEGMENTATION}

BACKBONE_LAYOUTS: dict[str, dict[str, str | None]] = {
    # mmcv's ResNetV1c, as OpenMMLab published it; our backbone has its names. `fc` is ImageNet's classifier
    "mmcv_v1c": {"stem": "stem", **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}, "fc": None}
}

LANDMARKS = {
    "sssegmentation": "global_relation.value_project.weight",
    "mmsegmentation": "decode_head.global_relation.value_project.weight",
    "isanet": "long_range.value_project.weight",
}
"""A tensor's name by which each layout is recognized."""

MAX_NAME = 200
"""Most characters of a tensor's name."""

MAX_CHANNELS = 2**16
"""Most channels that an architecture inferred from shapes may have."""

WRAPPERS = ("model", "state_dict")
"""Keys under which training frameworks keep the weights, beside the optimizer's state, counters and averages."""


def unwrap(checkpoint: object) -> dict[str, Tensor]:
    """The bare state dict in a checkpoint, without wrappers and without `module.` before every name.

    Args:
        checkpoint: As returned by `isanet.weights.checkpoint.read_checkpoint`.

    Raises:
        CheckpointFormatError: There is no state dict in it.
    """
    state = checkpoint
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    expected = f"expected a state dict of named tensors, or one under {' or '.join(WRAPPERS)}; got {_describe(state)}"
    if not isinstance(state, Mapping) or not state:
        raise CheckpointFormatError(expected)
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointFormatError(f"{expected}, of which {repr(name)[:MAX_NAME]} is not a tensor")
    # Names reach terminals and logs, where control characters do harm
    if odd := [name for name in state if len(name) > MAX_NAME or not name.isprintable()]:
        raise CheckpointFormatError(f"{odd[0][:MAX_NAME]!r} cannot be the name of a tensor")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def detect_layout(state: Mapping[str, Any]) -> str:
    """The layout of a bare state dict ("sssegmentation", "mmsegmentation", or "isanet" for our own).

    Raises:
        CheckpointFormatError: It is not an ISANet in any known layout.
    """
    for layout, landmark in LANDMARKS.items():
        if landmark in state:
            return layout
    raise CheckpointFormatError(
        f"these {len(state)} tensors are not an ISANet in a known layout ({', '.join(LANDMARKS)}); "
        f"the first are {', '.join(map(str, list(state)[:3]))}"
    )


def convert(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename every tensor from `layout` to the names of `isanet.ISANet`; the tensors are shared, not copied.

    Raises:
        CheckpointMismatchError: A name is not in the table of that layout, or two names become one.
    """
    if layout == "isanet":
        return dict(state)
    return rename(state, LAYOUTS[layout], layout)


def convert_backbone(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename every tensor from `layout` to the names of `isanet.backbone.ResNet`, without ImageNet's classifier.

    Files from before torch 0.4.1 have no `num_batches_tracked`; if no batch norm has one, all get 0, as in torch.

    Raises:
        CheckpointMismatchError: A name is not in the table of that layout.
    """
    renamed = rename(state, BACKBONE_LAYOUTS[layout], layout, "a ResNet")
    if not any(name.endswith(".num_batches_tracked") for name in renamed):
        norms = [name.removesuffix("running_var") for name in renamed if name.endswith(".running_var")]
        renamed |= {f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.int64, device="cpu") for norm in norms}
    return renamed


def rename(
    state: Mapping[str, Tensor], table: Mapping[str, str | None], layout: str, what: str = "an ISANet"
) -> dict[str, Tensor]:
    """Apply one table of prefixes to every name.

    Args:
        state: Tensors by upstream's names.
        table: Prefixes of upstream's names to ours; None drops.
        layout: Name of the table, for messages.
        what: What the tensors should be, for messages.

    Raises:
        CheckpointMismatchError: A name is not in the table, or two names become one.
    """
    renamed, unknown, dropped = dict[str, Tensor](), list[str](), 0
    prefixes = sorted(table, key=len, reverse=True)
    for name, value in state.items():
        prefix = next((p for p in prefixes if name.startswith(p + ".")), None)
        if prefix is None:
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


def notes_align_corners(checkpoint: object) -> bool:
    """Whether mmsegmentation's config in a checkpoint (`meta.config`, a text) has `align_corners=True`."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    text = meta.get("config") if isinstance(meta, Mapping) else None
    return isinstance(text, str) and re.search(r"align_corners['\"]?\s*[=:]\s*True", text) is not None


def infer_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `isanet.ISANet`, inferred from the shapes of a converted state dict.

    `align_corners`, `residual_first` and `block_size` cannot be inferred.

    Raises:
        CheckpointMismatchError: A tensor is missing or has an impossible shape, or no known backbone fits.
    """
    try:
        value = state["long_range.value_project.weight"].shape
        blocks = tuple(
            len({name.split(".")[2] for name in state if name.startswith(f"backbone.layer{i}.")}) for i in (1, 2, 3, 4)
        )
        backbone = next((name for name, known in BACKBONES.items() if known == blocks), None)
        if backbone is None:
            raise CheckpointMismatchError(f"no known backbone has {blocks} blocks; known are {BACKBONES}")
        check_class_count(num_classes := state["classifier.weight"].shape[0])
        channels = {
            "num_classes": num_classes,
            "width": state["backbone.layer1.0.conv3.weight"].shape[0] // EXPANSION,
            "head_channels": value[0],
            "key_channels": state["long_range.key_project.0.conv.weight"].shape[0],
            "aux_channels": state["aux_classifier.weight"].shape[1],
            "fusion_kernel": state["fuse.conv.weight"].shape[-1],
        }
        # A tensor without elements may claim any shape, and a network is built in these sizes
        if odd := [f"{name} = {count}" for name, count in channels.items() if not 0 < count <= MAX_CHANNELS]:
            raise CheckpointMismatchError(f"no ISANet has these sizes: {', '.join(odd)}")
        return {"backbone": backbone, **channels, "value_bias": "long_range.value_project.bias" in state}
    except (KeyError, IndexError) as error:
        raise CheckpointMismatchError(f"cannot infer the architecture: no usable tensor {error}") from error
    except ValueError as error:
        raise CheckpointMismatchError(str(error)) from error


def _describe(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    return f"a dictionary with {listed((repr(key)[:MAX_NAME] for key in value), 6)}" if value else "an empty dictionary"
