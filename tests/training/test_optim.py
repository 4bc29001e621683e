from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isanet.model import ISANet
from isanet.training import (
    Recipe,
    freeze,
    keep_statistics,
    optimizer_and_schedule,
    poly_schedule,
    poly_sgd,
    segmentation_loss,
)
from isanet.training.optim import update_average
from isanet.weights import convert
from tests.helpers import stand_in
from tests.helpers.training import TINY


def network() -> ISANet:
    torch.manual_seed(0)
    return ISANet(**TINY, num_classes=5)


def take_steps(model: nn.Module, steps: int = 2, **arguments: Any) -> None:
    optimizer, schedule = poly_sgd(model, lr=0.05, steps=steps, **arguments)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model.train()
        images = torch.randn(2, 3, 40, 48, generator=generator)
        target = torch.randint(0, 5, (2, 40, 48), generator=generator)
        loss = segmentation_loss(*model(images, aux=True), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def contents(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


def test_four_steps_equal_upstreams() -> None:
    trace = json.loads((stand_in.DATA / "training_trace_r50_voc.json").read_text())
    state = stand_in.state_dict(trace["listing"].removesuffix(".keys.json"))
    converted = convert.convert(state, "sssegmentation")
    model = ISANet(**convert.infer_architecture(converted), dropout=0.0).double()
    model.load_state_dict(converted)
    model.train()
    optimizer, schedule = poly_sgd(
        model,
        lr=trace["base_lr"],
        steps=trace["max_iters"],
        momentum=trace["momentum"],
        weight_decay=trace["weight_decay"],
        power=trace["power"],
    )
    random = np.random.RandomState(trace["seed"])
    N, H, W = trace["batch"], trace["height"], trace["width"]
    for step in trace["steps"]:
        images = torch.from_numpy(random.standard_normal((N, 3, H, W)))
        target = torch.from_numpy(random.randint(0, len(model.classes), (N, H // 8, W // 8)).repeat(8, 1).repeat(8, 2))
        target[:, : trace["ignored_rows"]] = 255
        logits, aux = model(images, aux=True)
        loss = segmentation_loss(logits, aux, target)
        optimizer.zero_grad()
        loss.backward()
        # Measured: 1e-15; the bound allows for another order of summation.
        assert loss.item() == pytest.approx(step["loss_total"], rel=1e-6)
        assert segmentation_loss(logits, None, target).item() == pytest.approx(step["loss_cls"], rel=1e-6)
        assert 0.4 * segmentation_loss(aux, None, target).item() == pytest.approx(step["loss_aux"], rel=1e-6)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([step["lr"]] * 2, rel=1e-12)
        optimizer.step()
        schedule.step()
    trained = model.state_dict()
    for name, norm in trace["final_l2_norms"].items():
        (ours,) = convert.rename({name: state[name]}, convert.LAYOUTS["sssegmentation"], "sssegmentation")
        assert trained[ours].norm().item() == pytest.approx(norm, rel=1e-6), name


def rates(schedule: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_the_learning_rate_decays_polynomially_after_a_linear_warmup() -> None:
    model = network()
    _, schedule = poly_sgd(model, lr=0.1, steps=10)
    expected = [0.1 * (0.01 + 0.99 * (1 - i / 10) ** 0.9) for i in range(10)] + [0.001, 0.001]
    assert rates(schedule, 12) == pytest.approx(expected)
    _, schedule = poly_sgd(model, lr=0.1, steps=10, power=2.0, lr_floor=0.0, warmup=3)
    expected = [0.1 * (1 - i / 10) ** 2 * min(1, (i + 1) / 4) for i in range(10)]
    assert rates(schedule, 10) == pytest.approx(expected)
    assert expected[3] == pytest.approx(0.1 * 0.7**2)


def test_parameter_groups_have_names_rates_and_no_frozen_parameters() -> None:
    model = network()
    freeze(model, "backbone.layer1")
    optimizer, schedule = poly_sgd(model, lr=0.1, steps=10, head_lr_multiple=10.0)
    backbone, head = optimizer.param_groups
    assert (backbone["name"], head["name"]) == ("backbone", "head")
    assert schedule.get_last_lr() == pytest.approx([0.1, 1.0])
    trained = {id(p) for p in model.backbone.parameters()} - {id(p) for p in model.backbone.layer1.parameters()}
    assert {id(p) for p in backbone["params"]} == trained
    assert {id(p) for p in head["params"]} == {
        id(p) for n, p in model.named_parameters() if not n.startswith("backbone")
    }
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}
    freeze(model)
    assert [group["name"] for group in poly_sgd(model, lr=0.1, steps=10)[0].param_groups] == ["head"]
    freeze(model, "")
    with pytest.raises(ValueError, match="frozen"):
        poly_sgd(model, lr=0.1, steps=10)


@pytest.mark.parametrize(
    "arguments", [{"steps": 0}, {"steps": 5, "warmup": 5}, {"steps": 5, "power": -1.0}, {"steps": 5, "lr_floor": 2.0}]
)
def test_wrong_schedules_are_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        poly_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), **arguments)


def test_a_schedule_resumes_from_its_state_and_can_be_pickled() -> None:
    _, straight = poly_sgd(network(), lr=0.1, steps=10, warmup=2)
    expected = rates(straight, 10)
    optimizer, schedule = poly_sgd(network(), lr=0.1, steps=10, warmup=2)
    rates(schedule, 4)
    saved = pickle.dumps((optimizer.state_dict(), schedule.state_dict()))
    again, resumed = poly_sgd(network(), lr=0.1, steps=10, warmup=2)
    for part, state in zip((again, resumed), pickle.loads(saved), strict=True):
        part.load_state_dict(state)
    assert rates(resumed, 6) == expected[4:]
    assert rates(pickle.loads(pickle.dumps(schedule)), 6) == expected[4:]


def test_a_recipe_gives_either_optimizer() -> None:
    recipe = Recipe(lr=0.2, momentum=0.8, weight_decay=0.01, power=1.0, lr_floor=0.2, warmup=1, head_lr_multiple=2.0)
    optimizer, schedule = optimizer_and_schedule(network(), recipe, steps=10)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.8
    for_adamw, schedule_too = optimizer_and_schedule(network(), replace(recipe, optimizer="adamw"), steps=10)
    assert isinstance(for_adamw, torch.optim.AdamW)
    assert for_adamw.defaults["betas"] == (0.8, 0.999)
    for made in (optimizer, for_adamw):
        assert [(g["name"], g["weight_decay"]) for g in made.param_groups] == [("backbone", 0.01), ("head", 0.01)]
    assert schedule.get_last_lr() == schedule_too.get_last_lr() == pytest.approx([0.1, 0.2])
    assert rates(schedule, 10)[5] == pytest.approx(0.2 * (0.2 + 0.8 * 0.5))


def same(model: nn.Module) -> nn.Module:
    return model


def pickled(model: nn.Module) -> nn.Module:
    again: nn.Module = pickle.loads(pickle.dumps(model))
    return again


def with_synchronized_batch_norm(model: nn.Module) -> nn.Module:
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


@pytest.mark.parametrize("path", [same, copy.deepcopy, pickled])
def test_a_frozen_backbone_is_bit_exactly_unchanged(path: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    freeze(model)
    model = path(model)
    before, whole = contents(model.backbone), contents(model)
    take_steps(model)
    model.eval()
    model.train()
    assert contents(model.backbone) == before
    after = contents(model)
    changed = {name.split(".")[0] for name in whole if after[name] != whole[name]}
    assert changed == {name.split(".")[0] for name in whole} - {"backbone"}


def test_without_freezing_the_backbone_does_change() -> None:
    model = network()
    before = contents(model.backbone)
    take_steps(model)
    after = contents(model.backbone)
    assert all(after[name] != before[name] for name in before)
    model = network()
    freeze(model, statistics=False)
    take_steps(model)
    after = contents(model.backbone)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all((after[name] != before[name]) == name.endswith(statistics) for name in before)


@pytest.mark.parametrize("path", [same, copy.deepcopy, pickled, with_synchronized_batch_norm])
def test_a_copy_keeps_its_own_statistics(path: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    freeze(model)
    other = path(model)
    if other is not model:
        other.eval()
        model.train()
        assert (
            not other.backbone.training
        )  # the copy's method would otherwise have changed the model it was copied from
        assert model.backbone.training
        assert model.reduce.training
    other.train()
    norms = {n: m.training for n, m in other.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert norms == {name: not name.startswith("backbone.") for name in norms}
    assert len(norms) > 10


def test_batch_norm_statistics_can_be_kept_and_the_rest_trained() -> None:
    model = network()
    keep_statistics(model)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    take_steps(model)
    assert model.dropout.training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    # Attention is nearly uniform at first, so its gradients vanish in rounding
    trained = [name for name, value in model.named_parameters() if not torch.equal(value, parameters[name])]
    assert {f"{name}.{kind}" for name in ("backbone.stem.1", "fuse.bn") for kind in ("weight", "bias")} <= set(trained)
    assert len(trained) > 0.9 * len(parameters)


def test_freezing_keeps_names_and_clears_gradients() -> None:
    model = network()
    segmentation_loss(*model(torch.randn(2, 3, 40, 48), aux=True), torch.zeros(2, 40, 48, dtype=torch.long)).backward()
    freeze(model)
    assert list(model.state_dict()) == list(network().state_dict())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.classifier.weight.grad is not None


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match="no part 'spine'; it has backbone, reduce"):
        freeze(network(), "spine")


def test_the_average_moves_by_its_decay() -> None:
    average, model = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(2.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    update_average(average, model, decay=0.9, step=10_000)
    assert average.weight.item() == pytest.approx(1.2)
    assert average.running_mean.item() == pytest.approx(0.2)  # type: ignore[union-attr]
    assert average.num_batches_tracked.item() == 7  # type: ignore[union-attr]
    fast = nn.BatchNorm2d(1)
    update_average(fast, model, decay=0.9, step=1)  # (1 + 1) / (10 + 1) of the old value
    assert fast.weight.item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
