from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from isanet.model import ISANet
from isanet.training import (
    OHEM,
    Recipe,
    freeze,
    keep_statistics,
    optimizer_and_schedule,
    poly_schedule,
    poly_sgd,
    segmentation_loss,
)
from isanet.weights import convert
from isanet.weights.manifest import list_models
from tests.helpers import stand_in

TINY: dict[str, Any] = {"backbone": "resnet14", "width": 8, "head_channels": 16, "key_channels": 8, "aux_channels": 8}


def tiny() -> ISANet:
    torch.manual_seed(0)
    return ISANet(**TINY, num_classes=5)


def batch(seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K, H, W) logits of two heads, and a target in which some pixels do not count."""
    generator = torch.Generator().manual_seed(seed)
    logits, aux = torch.randn(2, 2, classes, 6, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, classes, (2, 6, 7), generator=generator)
    target[:, 0] = 255
    return logits.requires_grad_(), aux.requires_grad_(), target


def train(model: nn.Module, steps: int = 2, **arguments: Any) -> None:
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


def test_four_steps_are_upstreams() -> None:
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
        # Measured: 1e-15. The bound leaves room for other orders of summation.
        assert loss.item() == pytest.approx(step["loss_total"], rel=1e-6)
        assert segmentation_loss(logits, None, target).item() == pytest.approx(step["loss_cls"], rel=1e-6)
        assert 0.4 * segmentation_loss(aux, None, target).item() == pytest.approx(step["loss_aux"], rel=1e-6)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([step["lr"]] * 2, rel=1e-12)
        optimizer.step()
        schedule.step()
    trained = model.state_dict()
    for name, norm in trace["final_l2_norms"].items():
        (ours,) = convert.convert({name: state[name]}, "sssegmentation")
        assert trained[ours].norm().item() == pytest.approx(norm, rel=1e-6), name


def test_the_loss_is_the_mean_over_the_pixels_that_count() -> None:
    logits, aux, target = batch()
    main, other = (F.cross_entropy(x, target, ignore_index=255) for x in (logits, aux))
    torch.testing.assert_close(segmentation_loss(logits, aux, target), main + 0.4 * other)
    torch.testing.assert_close(segmentation_loss(logits, None, target), main)
    torch.testing.assert_close(segmentation_loss(logits, aux, target, aux_weight=1.5), main + 1.5 * other)
    by_hand = [
        -logits[n, :, y, x].log_softmax(0)[target[n, y, x]]
        for n in range(2)
        for y in range(6)
        for x in range(7)
        if target[n, y, x] != 255
    ]
    torch.testing.assert_close(main, torch.stack(by_hand).mean())


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.3, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_and_smoothing_are_those_of_torch(weights: list[float] | None, smoothing: float) -> None:
    logits, aux, target = batch()
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    main, other = (
        F.cross_entropy(x, target, tensor, ignore_index=255, label_smoothing=smoothing) for x in (logits, aux)
    )
    loss = segmentation_loss(logits, aux, target, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(loss, main + 0.4 * other)


@pytest.mark.parametrize(
    "arguments", [{}, {"class_weights": [1.0] * 5, "label_smoothing": 0.1}, {"ohem": OHEM(0.5, min_kept=4)}]
)
def test_a_batch_in_which_nothing_counts_gives_zero_and_zero_gradients(arguments: dict[str, Any]) -> None:
    logits, aux, target = batch()
    loss = segmentation_loss(logits, aux, torch.full_like(target, 255), **arguments)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()  # noqa: PT018
    assert aux.grad is not None and not aux.grad.any()  # noqa: PT018


def test_classes_that_weigh_nothing_give_zero_and_no_nan() -> None:
    logits, _, target = batch()
    loss = segmentation_loss(logits, None, target.clamp(max=0), class_weights=[0.0, 1.0, 1.0, 1.0, 1.0])
    assert loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_targets_of_every_integer_type(dtype: torch.dtype) -> None:
    logits, aux, target = batch()
    assert segmentation_loss(logits, aux, target.to(dtype)) == segmentation_loss(logits, aux, target)


def test_other_ignored_values() -> None:
    logits, aux, target = batch()
    expected = segmentation_loss(logits, aux, target)
    assert segmentation_loss(logits, aux, torch.where(target == 255, -1, target), ignore_index=-1) == expected
    one_of_the_classes = segmentation_loss(logits, None, target.clamp(max=4), ignore_index=4)
    torch.testing.assert_close(one_of_the_classes, F.cross_entropy(logits, target.clamp(max=4), ignore_index=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits, aux, target = batch()
    half, half_aux = logits.detach().to(dtype), aux.detach().to(dtype)
    loss = segmentation_loss(half, half_aux, target)
    assert loss.dtype == torch.float32
    assert loss == segmentation_loss(half.float(), half_aux.float(), target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, aux, target: (logits, aux, target.clamp(max=5)), "holds 5: neither one of 5 classes"),
        (lambda logits, aux, target: (logits, aux, target - 1), "-1, 254"),
        (lambda logits, aux, target: (logits, aux, target.float()), "must be integers"),
        (lambda logits, aux, target: (logits, aux, target > 0), "must be integers"),
        (lambda logits, aux, target: (logits, aux, target[:, 1:]), r"\(2, 6, 7\)"),
        (lambda logits, aux, target: (logits, aux, target[:, None]), r"\(2, 1, 6, 7\)"),
        (lambda logits, aux, target: (logits, aux[:, :4], target), "both heads"),
        (lambda logits, aux, target: (logits[0], None, target), "N, K, H, W"),
        (lambda logits, aux, target: (logits.long(), None, target), "int64"),
    ],
)
def test_what_does_not_fit_is_said(change: Callable[..., tuple[Tensor, Tensor | None, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_loss(*change(*batch()))


@pytest.mark.parametrize("weights", [[1.0] * 4, [1.0, 1.0, 1.0, 1.0, -1.0], [math.nan] * 5])
def test_class_weights_that_do_not_fit(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="5 numbers of 0 or more"):
        segmentation_loss(*batch(), class_weights=weights)


def test_ohem_keeps_the_pixels_below_the_threshold_and_at_least_so_many() -> None:
    logits, aux, target = batch()
    losses = F.cross_entropy(logits, target, ignore_index=255, reduction="none")[target != 255]
    probability = torch.exp(-losses)
    hard = segmentation_loss(logits, None, target, ohem=OHEM(0.2, min_kept=0))
    assert 0 < (probability < 0.2).sum() < len(losses)
    torch.testing.assert_close(hard, losses[probability < 0.2].mean())
    at_least = segmentation_loss(logits, None, target, ohem=OHEM(1e-9, min_kept=10))  # in each of two images
    torch.testing.assert_close(at_least, losses.sort(descending=True).values[:20].mean())
    everything = segmentation_loss(logits, None, target, ohem=OHEM(1e-9, min_kept=10**6))
    torch.testing.assert_close(everything, losses.mean())
    assert segmentation_loss(logits, None, target, ohem=OHEM(1e-9, min_kept=0)).item() == 0
    both = segmentation_loss(logits, aux, target, ohem=OHEM(0.2, min_kept=0))  # all pixels count for the other head
    torch.testing.assert_close(both, hard + 0.4 * F.cross_entropy(aux, target, ignore_index=255))


def test_ohem_keeps_no_fewer_where_probabilities_are_equal() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    loss = segmentation_loss(torch.zeros(1, 5, 4, 4), None, target, ohem=OHEM(0.1, min_kept=3))
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))


def rates(schedule: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_the_rate_falls_by_a_power_after_a_linear_warm_up() -> None:
    model = tiny()
    _, schedule = poly_sgd(model, lr=0.1, steps=10)
    expected = [0.1 * (0.01 + 0.99 * (1 - i / 10) ** 0.9) for i in range(10)] + [0.001, 0.001]
    assert rates(schedule, 12) == pytest.approx(expected)
    _, schedule = poly_sgd(model, lr=0.1, steps=10, power=2.0, lr_floor=0.0, warmup=3)
    expected = [0.1 * (1 - i / 10) ** 2 * min(1, (i + 1) / 4) for i in range(10)]
    assert rates(schedule, 10) == pytest.approx(expected)
    assert expected[3] == pytest.approx(0.1 * 0.7**2)


def test_groups_have_names_rates_of_their_own_and_nothing_frozen() -> None:
    model = tiny()
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
def test_schedules_that_cannot_be(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        poly_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), **arguments)


def test_a_schedule_goes_on_from_its_state_and_can_be_pickled() -> None:
    _, straight = poly_sgd(tiny(), lr=0.1, steps=10, warmup=2)
    expected = rates(straight, 10)
    optimizer, schedule = poly_sgd(tiny(), lr=0.1, steps=10, warmup=2)
    rates(schedule, 4)
    saved = pickle.dumps((optimizer.state_dict(), schedule.state_dict()))
    again, resumed = poly_sgd(tiny(), lr=0.1, steps=10, warmup=2)
    for part, state in zip((again, resumed), pickle.loads(saved), strict=True):
        part.load_state_dict(state)
    assert rates(resumed, 6) == expected[4:]
    assert rates(pickle.loads(pickle.dumps(schedule)), 6) == expected[4:]


def test_a_recipe_makes_either_optimizer() -> None:
    recipe = Recipe(lr=0.2, momentum=0.8, weight_decay=0.01, power=1.0, lr_floor=0.2, warmup=1, head_lr_multiple=2.0)
    optimizer, schedule = optimizer_and_schedule(tiny(), recipe, steps=10)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.8
    for_adamw, schedule_too = optimizer_and_schedule(tiny(), replace(recipe, optimizer="adamw"), steps=10)
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
def test_a_frozen_backbone_does_not_change_by_a_byte(path: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny()
    freeze(model)
    model = path(model)
    before, whole = contents(model.backbone), contents(model)
    train(model)
    model.eval()
    model.train()
    assert contents(model.backbone) == before
    after = contents(model)
    changed = {name.split(".")[0] for name in whole if after[name] != whole[name]}
    assert changed == {name.split(".")[0] for name in whole} - {"backbone"}


def test_without_freezing_the_backbone_does_change() -> None:
    model = tiny()
    before = contents(model.backbone)
    train(model)
    after = contents(model.backbone)
    assert all(after[name] != before[name] for name in before)
    model = tiny()
    freeze(model, statistics=False)
    train(model)
    after = contents(model.backbone)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all((after[name] != before[name]) == name.endswith(statistics) for name in before)


@pytest.mark.parametrize("path", [same, copy.deepcopy, pickled, with_synchronized_batch_norm])
def test_a_copy_keeps_its_own_statistics(path: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny()
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


def test_batch_norms_can_be_kept_and_the_rest_trained() -> None:
    model = tiny()
    keep_statistics(model)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    train(model)
    assert model.dropout.training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    # (attention is so even at first that its gradients are lost in rounding)
    trained = [name for name, value in model.named_parameters() if not torch.equal(value, parameters[name])]
    assert {f"{name}.{kind}" for name in ("backbone.stem.1", "fuse.bn") for kind in ("weight", "bias")} <= set(trained)
    assert len(trained) > 0.9 * len(parameters)


def test_a_frozen_model_has_the_same_names_and_gradients_are_gone() -> None:
    model = tiny()
    segmentation_loss(*model(torch.randn(2, 3, 40, 48), aux=True), torch.zeros(2, 40, 48, dtype=torch.long)).backward()
    freeze(model)
    assert list(model.state_dict()) == list(tiny().state_dict())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.classifier.weight.grad is not None


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match="no part 'spine'; it has backbone, reduce"):
        freeze(tiny(), "spine")


def test_the_defaults_are_the_published_recipe() -> None:
    assert Recipe.published("isanet_r50_voc") == Recipe()
    assert Recipe.published("isanet_r101_ade20k") == Recipe(epochs=130)
    assert Recipe.published("isanet_r50_cityscapes") == Recipe(epochs=220, batch_size=8, crop=(512, 1024))
    for name in list_models():
        assert isinstance(Recipe.published(name), Recipe)
    with pytest.raises(ValueError, match="did you mean isanet_r50_voc"):
        Recipe.published("isanet_r50_vok")


def test_recipes_survive_json() -> None:
    recipe = Recipe(optimizer="adamw", crop=(96, 64), class_weights=(1.0, 0.5), ohem=OHEM(0.6, 100), ema=0.999, seed=3)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json())["ohem"] == {"threshold": 0.6, "min_kept": 100}
    assert Recipe.from_json('{"epochs": 5}') == Recipe(epochs=5)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(Recipe.from_json(recipe.to_json())) == hash(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "JSON object"),
        ("{", "Expecting"),
        ('{"epoch": 3}', "'epoch'; did you mean 'epochs'"),
        ('{"lr": NaN}', "lr must be"),
        ('{"ohem": {"min_keep": 3}}', "'min_keep'"),
        ('{"ohem": {"threshold": 3}}', "ohem.threshold"),
    ],
)
def test_json_that_is_no_recipe(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(text)


WRONG: dict[str, list[Any]] = {
    "optimizer": ["adam", None],
    "lr": [0, -1.0, math.nan, math.inf, "0.1", True],
    "momentum": [1.0, -0.1],
    "weight_decay": [-1e-4],
    "power": [-1],
    "lr_floor": [1.5, -0.1],
    "warmup": [-1, 0.5],
    "head_lr_multiple": [0],
    "epochs": [0, 1.5, True],
    "batch_size": [0],
    "accumulate": [0, 3],  # 3 is no part of 16
    "crop": [512, (512,), (0, 512), (512, 512.0)],
    "scale_range": [1.0, (2.0, 0.5), (0, 1)],
    "flip": [1.1, -0.1],
    "photometric": [2, None],
    "max_class_share": [0, 1.01],
    "aux_weight": [-0.4],
    "class_weights": [(), (-1.0, 1.0), (0.0, 0.0), 1.0, "balanced"],
    "label_smoothing": [1.0],
    "ohem": [0.7, (0.7, 100)],
    "freeze_backbone": [1],
    "freeze_batch_norm": ["yes"],
    "sync_batch_norm": [8],
    "ema": [1.0, -1],
    "clip_grad_norm": [0.0],
    "precision": ["auto", torch.float16],
    "seed": [-1, 2**63, 0.5],
    "validate_every": [0],
}


def test_every_field_of_a_recipe_is_checked_and_named() -> None:
    assert set(WRONG) == {field.name for field in fields(Recipe)}
    for field, values in WRONG.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{field} must "):
                Recipe(**{field: value})
