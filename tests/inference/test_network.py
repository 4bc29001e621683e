"""What inference needs of a network; changes of a model's weights are noticed, cheaply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from isanet.inference.fast.optimize import optimize
from isanet.inference.network import EagerNetwork, ModelState, Network
from isanet.model import ISANet


def tiny() -> ISANet:
    torch.manual_seed(0)
    sizes = {"width": 2, "head_channels": 4, "key_channels": 2, "aux_channels": 2}
    return ISANet(num_classes=2, backbone="resnet14", **sizes).eval()


@pytest.mark.parametrize("make", [EagerNetwork, optimize])
def test_loaded_and_optimized_networks_offer_the_same(make: Callable[[ISANet], Network]) -> None:
    for dtype in (torch.float32, torch.float64):
        model = tiny().to(dtype)
        network: Network = make(model)
        assert (network.classes, network.logits_resize) == (model.classes, "half_pixel")
        assert network.device == torch.device("cpu")
        assert network.fits((1, 3, 64, 64))
        with torch.inference_mode():
            logits = network.coarse_logits(torch.zeros(1, 3, 65, 80))
        assert (logits.shape, logits.dtype) == ((1, 2, 9, 10), dtype)


def step(model: ISANet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, 64, 64)).mean().backward()
    optimizer.step()


def train(model: ISANet) -> None:
    """Running statistics of batch norm alone change."""
    with torch.no_grad():
        model.train()(torch.ones(2, 3, 64, 64))
    model.eval()


def in_place(model: ISANet) -> None:
    with torch.no_grad():
        model.classifier.weight.mul_(2)


def data(model: ISANet) -> None:
    model.classifier.weight.data = model.classifier.weight.data.clone()


def parameter(model: ISANet) -> None:
    model.fuse.conv.weight = nn.Parameter(model.fuse.conv.weight.detach().clone())


def module(model: ISANet) -> None:
    model.classifier = nn.Conv2d(4, 2, 1)


def no_bias(model: ISANet) -> None:
    model.classifier.bias = None


def load(model: ISANet) -> None:
    model.load_state_dict(tiny().state_dict())


def assign(model: ISANet) -> None:
    model.load_state_dict(tiny().state_dict(), assign=True)


@pytest.mark.parametrize("change", [step, train, in_place, data, parameter, module, no_bias, load, assign])
def test_changes_are_noticed(change: Callable[[ISANet], None]) -> None:
    model = tiny()
    state = ModelState(model)
    assert not state.changed()
    change(model)
    assert state.changed()
    assert not ModelState(model).changed()


def test_use_is_no_change_and_the_modules_are_not_walked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    state = ModelState(model)
    with torch.inference_mode():
        model(torch.ones(1, 3, 64, 64))

    def walked(*_: Any, **__: Any) -> Any:
        raise AssertionError

    for name in ("modules", "named_modules", "parameters", "buffers", "named_parameters", "named_buffers"):
        monkeypatch.setattr(nn.Module, name, walked)
    assert not state.changed()
