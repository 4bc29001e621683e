"""Networks on the meta device, and tensors that fill them.

A network is built without memory for its tensors and then takes over those of a file: nothing is randomly initialized
first, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from isanet.backbone import ResNet
from isanet.config import BACKBONES
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.weights import checkpoint
from isanet.weights.manifest import Backbone, Released, Weights

Network = TypeVar("Network", bound=nn.Module)


def model_config(weights: Weights) -> dict[str, Any]:
    """The arguments of `isanet.ISANet` for one released model."""
    return {**weights.architecture, **label_arguments(weights)}


def label_arguments(weights: Weights) -> dict[str, Any]:
    """Those among them that do not shape the network: its classes, and how images are prepared."""
    space = LABEL_SPACES[weights.label_space]
    return {
        "classes": list(space.classes),
        "palette": [list(color) for color in space.palette],
        "label_space": space.name,
        "preprocessing": dict(weights.preprocessing),
    }


def meta_model(config: Mapping[str, Any]) -> ISANet:
    """An ISANet on the meta device; raises as `isanet.ISANet` does."""
    with torch.device("meta"):
        return ISANet(**config)


def meta_network(released: Released) -> nn.Module:
    """The network, on the meta device, of a released model or backbone."""
    if isinstance(released, Backbone):
        with torch.device("meta"):
            return ResNet(BACKBONES[released.backbone])
    return meta_model(model_config(released))


def fill(network: Network, tensors: Mapping[str, Tensor], *, values: bool = True) -> Network:
    """Let a network take over tensors, if they fit, and put it into evaluation mode.

    Args:
        network: Usually on the meta device; returned.
        tensors: In the network's own names; float32 and contiguous ones are not copied.
        values: Also look at every value: finite, and variances not negative.

    Raises:
        CheckpointMismatchError: They do not fit; the network is unchanged.
    """
    network.load_state_dict(checkpoint.fit_state_dict(tensors, network.state_dict(), values=values), assign=True)
    return network.eval()
