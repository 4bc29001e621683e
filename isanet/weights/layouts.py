"""What each codebase that published ISANets calls its tensors, and what its files do not say: data, and nothing else.

A table maps a prefix of upstream's names, or a whole name, to ours, or to None for tensors that are dropped on purpose.
"""

from __future__ import annotations

from typing import Any

from isanet.config import BACKBONES

_ATTENTIONS = {"global_relation": "long_range", "local_relation": "short_range"}
_PROJECTIONS = ("query_project.0", "query_project.1", "key_project.0", "key_project.1", "output_project")
_PARTS = ((0, "conv"), (1, "bn"))

SSSEGMENTATION: dict[str, str] = {
    "backbone_net": "backbone",
    **{f"in_conv.{i}": f"reduce.{part}" for i, part in _PARTS},
    **{f"{t}.{p}.{i}": f"{o}.{p}.{part}" for t, o in _ATTENTIONS.items() for p in _PROJECTIONS for i, part in _PARTS},
    **{f"{theirs}.value_project": f"{ours}.value_project" for theirs, ours in _ATTENTIONS.items()},
    **{f"out_conv.{i}": f"fuse.{part}" for i, part in _PARTS},
    "decoder.1": "classifier",
    **{f"auxiliary_decoder.{i}": f"aux_reduce.{part}" for i, part in _PARTS},
    "auxiliary_decoder.4": "aux_classifier",
}

MMSEGMENTATION: dict[str, str] = {
    "backbone": "backbone",
    "decode_head.in_conv": "reduce",
    **{f"decode_head.{theirs}": ours for theirs, ours in _ATTENTIONS.items()},
    "decode_head.out_conv": "fuse",
    "decode_head.conv_seg": "classifier",
    "auxiliary_head.convs.0": "aux_reduce",
    "auxiliary_head.conv_seg": "aux_classifier",
}


def _paddle_layer(theirs: str, conv: str, norm: str) -> dict[str, str]:
    """Paddle's convolution with batch norm, whose statistics have names of their own."""
    statistics = {"_mean": "running_mean", "_variance": "running_var"}
    return {
        f"{theirs}._conv": conv,
        f"{theirs}._batch_norm": norm,
        **{f"{theirs}._batch_norm.{name}": f"{norm}.{ours}" for name, ours in statistics.items()},
    }


_PADDLE_LAYERS = {
    **{f"backbone.conv1_{i + 1}": (f"backbone.stem.{3 * i}", f"backbone.stem.{3 * i + 1}") for i in range(3)},
    **{
        f"backbone.bb_{stage}_{block}.conv{i}": tuple(
            f"backbone.layer{stage + 1}.{block}.{part}{i + 1}" for part in ("conv", "bn")
        )
        for stage, count in enumerate(BACKBONES["resnet101"].counts)
        for block in range(count)
        for i in range(3)
    },
    **{
        f"backbone.bb_{stage}_0.short": tuple(f"backbone.layer{stage + 1}.0.downsample.{i}" for i in (0, 1))
        for stage in range(4)
    },
    **{
        f"head.{theirs}": (f"{ours}.conv", f"{ours}.bn")
        for theirs, ours in {
            "in_conv": "reduce",
            **{f"{t}.{p}": f"{o}.{p}" for t, o in _ATTENTIONS.items() for p in _PROJECTIONS},
            "out_conv": "fuse",
            "aux.0": "aux_reduce",
        }.items()
    },
}

PADDLESEG: dict[str, str] = {
    **{name: ours for theirs, layer in _PADDLE_LAYERS.items() for name, ours in _paddle_layer(theirs, *layer).items()},
    **{f"head.{theirs}.value_project": f"{ours}.value_project" for theirs, ours in _ATTENTIONS.items()},
    "head.cls.1": "classifier",
    "head.aux.2": "aux_classifier",
}

OPENSEG: dict[str, str] = {
    **{
        f"backbone.resinit.{part}{i + 1}": f"backbone.stem.{3 * i + j}"
        for i in range(3)
        for j, part in enumerate(("conv", "bn"))
    },
    **{f"backbone.layer{i}": f"backbone.layer{i}" for i in (1, 2, 3, 4)},
    **{f"isa_head.{i}": f"reduce.{part}" for i, part in _PARTS},
    **{
        f"isa_head.2.stages.0.{attention}_sa.{theirs}": f"{attention}.{ours}"
        for attention in _ATTENTIONS.values()
        for theirs, ours in {
            **{
                f"f_{p}.{2 * n + i}": f"{p}_project.{n}.{part}"
                for p in ("query", "key")
                for n in (0, 1)
                for i, part in _PARTS
            },
            "f_value": "value_project",
            **{f"W.{i}": f"output_project.{part}" for i, part in _PARTS},
        }.items()
    },
    **{f"isa_head.2.conv_bn.{i}": f"fuse.{part}" for i, part in _PARTS},
    "cls_head": "classifier",
    **{f"dsn_head.{i}": f"aux_reduce.{part}" for i, part in _PARTS},
    "dsn_head.3": "aux_classifier",
}
"""With InPlaceABN: batch norm and activation are one module."""

OPENSEG_TORCH = {f"{theirs}.0" if ours.endswith(".bn") else theirs: ours for theirs, ours in OPENSEG.items()}
"""With torch's batch norm, which the heads have in one module with its activation."""

LAYOUTS: dict[str, dict[str, str]] = {
    "sssegmentation": SSSEGMENTATION,
    "mmsegmentation": MMSEGMENTATION,
    "paddleseg": PADDLESEG,
    "openseg": OPENSEG,
    "openseg_torch": OPENSEG_TORCH,
}

BACKBONE_LAYOUTS: dict[str, dict[str, str | None]] = {
    # mmcv's ResNetV1c, as OpenMMLab published it; our backbone has its names. `fc` is ImageNet's classifier
    "mmcv_v1c": {"stem": "stem", **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}, "fc": None}
}

LANDMARKS = {
    "sssegmentation": ("global_relation.query_project.0.0.weight",),
    "mmsegmentation": ("decode_head.global_relation.query_project.0.conv.weight",),
    "paddleseg": ("head.global_relation.query_project.0._conv.weight",),
    "openseg": ("isa_head.1.weight",),
    "openseg_torch": ("isa_head.1.0.weight",),
    "isanet": ("long_range.value_project.weight", "short_range.value_project.weight"),
}
"""Names of tensors, by one of which each layout is recognized; none of them ends as another does."""

_OPENSEG: dict[str, Any] = {
    "maxpool_ceil": True,
    "residual_first": True,
    "logits_resize": "corners",
    "dropout": 0.05,
    "preprocessing": {"channels": "BGR", "mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0]},
}

NOT_SHOWN: dict[str, dict[str, Any]] = {
    "mmsegmentation": {"protocol": "mmseg-whole"},
    "paddleseg": {
        "full_dilation": True,
        "average_pool_shortcut": True,
        "logits_resize": "asymmetric",
        "preprocessing": {"mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5]},
    },
    "openseg": {**_OPENSEG, "leaky_slope": 0.01},
    "openseg_torch": _OPENSEG,
}
"""Arguments of `isanet.ISANet` that all of a codebase's ISANets have by its defaults, and that no shape shows."""
