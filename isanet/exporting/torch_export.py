"""The network for `torch.export`: batch norm folded, without the auxiliary head."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from isanet.errors import IsanetError
from isanet.inference.fast.layers import folded
from isanet.model import ISANet


def write(model: ISANet, path: Path, metadata: dict[str, str]) -> None:
    """Write a program from normalized images (N, 3, H, W) to logits (N, K, H, W), of any sizes from one pixel up.

    Args:
        model: In evaluation mode; it is not changed.
        path: A new file.
        metadata: Each text becomes a file of its name in the archive, see `torch.export.load(extra_files=...)`.

    Raises:
        IsanetError: torch is too old to export sizes from one up.
    """
    try:
        from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec
    except ImportError as error:
        raise IsanetError(f"a .pt2 file needs torch 2.14 or newer, and this is {torch.__version__}") from error
    network = folded_copy(model).float().cpu()
    images = network.classifier.weight.new_zeros(2, 3, 101, 130)
    shape = TensorSpec([ShapeVar("batch", min=1), 3, ShapeVar("height", min=1), ShapeVar("width", min=1)])
    spec = ShapesSpec(params=ParamsSpec({"images": shape}))
    program = torch.export.export(network, (images,), dynamic_shapes=spec, strict=False)
    torch.export.save(program, path, extra_files=dict(metadata))


def folded_copy(model: ISANet) -> ISANet:
    """A copy in which every batch norm is part of the convolution before it, without the auxiliary head."""
    network = copy.deepcopy(model)
    network.aux_reduce = network.aux_classifier = nn.Identity()  # type: ignore[assignment]
    for parent in list(network.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv.weight, conv.bias = map(nn.Parameter, folded(conv, norm))
                setattr(parent, name, nn.Identity())
    return network.requires_grad_(False)
