"""Networks on the meta device, and tensors that fill them.

A network is built without memory for its tensors and then takes over those of a file: nothing is randomly initialized
first, and nothing is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from isanet.backbone import ResNet
from isanet.config import ISANetConfig
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.weights import checkpoint
from isanet.weights.manifest import Backbone, Released, Weights

log = logging.getLogger("isanet")

Network = TypeVar("Network", bound=nn.Module)


def model_config(weights: Weights) -> dict[str, Any]:
    """The arguments of `isanet.ISANet` for one released model."""
    labels = label_arguments(weights.label_space, weights.preprocessing)
    return {**weights.architecture, **labels, "protocol": weights.metrics["protocol"]}


def label_arguments(label_space: str, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Those among them that do not shape the network: its classes, and how images are prepared."""
    space = LABEL_SPACES[label_space]
    return {
        "classes": list(space.classes),
        "palette": [list(color) for color in space.palette],
        "label_space": space.name,
        "preprocessing": dict(preprocessing),
    }


def meta_model(config: Mapping[str, Any]) -> ISANet:
    """An ISANet on the meta device; raises as `isanet.ISANet` does."""
    with torch.device("meta"):
        return ISANet(**config)


def meta_network(released: Released) -> nn.Module:
    """The network, on the meta device, of a released model or backbone."""
    if isinstance(released, Backbone):
        with torch.device("meta"):
            return ResNet(ISANetConfig(num_classes=1, backbone=released.backbone))
    return meta_model(model_config(released))


def with_auxiliary(network: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of an ISANet, with a randomly initialized auxiliary head if they have none of it.

    The head is used in training alone, so that a file without it gives the same labels.
    """
    wanted = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("aux_")}
    if any(name.startswith("aux_") for name in tensors):
        return tensors
    log.warning("the file has no auxiliary head: it is randomly initialized, and only matters in training")
    new: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        new[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
        if tensor.dim() == 4:
            new[name].normal_(std=0.01)
        elif name.endswith(("bn.weight", "running_var")):
            new[name].fill_(1)
    return {**tensors, **new}


def fill(network: Network, tensors: Mapping[str, Tensor], *, values: bool = True) -> Network:
    """Let a network take over tensors, if they fit, and put it into evaluation mode.

    Args:
        network: Usually on the meta device; returned.
        tensors: In the network's own names; float32 and contiguous ones are not copied.
        values: Also look at every value: finite, and variances not negative.

    Raises:
        CheckpointMismatchError: They do not fit; the network is unchanged.
    """
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    for name, tensor in checkpoint.fit_state_dict(tensors, network.state_dict(), values=values).items():
        place, _, own = name.rpartition(".")  # as load_state_dict(assign=True) does it in three times the time
        setattr(modules[place], own, nn.Parameter(tensor) if name in parameters else tensor)
    return network.eval()
