"""Optimizers with the polynomial ("poly") learning rate schedule, moving averages, and freezing parts of a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from isanet.training.recipe import Recipe


def poly_sgd(
    model: nn.Module,
    *,
    lr: float,
    steps: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    power: float = 0.9,
    lr_floor: float = 0.01,
    head_lr_multiple: float = 1.0,
    warmup: int = 0,
) -> tuple[SGD, LambdaLR]:
    """SGD whose learning rate decays polynomially to a hundredth of its initial value, step by step.

    Step i = 0, 1, ... has the learning rate `lr * (lr_floor + (1 - lr_floor) * (1 - i / steps) ** power)`.
    Call `schedule.step()` after each `optimizer.step()`.

    >>> optimizer, schedule = isanet.training.poly_sgd(model, lr=0.01, steps=1000)
    >>> [group["name"] for group in optimizer.param_groups]
    ['backbone', 'head']

    Args:
        model: Frozen parameters are left out. The group "backbone" has the parameters of `model.backbone`, the group
            "head" all others (key "name" in `optimizer.param_groups`); an empty group is left out.
        lr: Learning rate of the first step.
        steps: Total number of steps.
        momentum: Momentum.
        weight_decay: Weight decay of all parameters, biases and batch norm included, as upstream.
        power: Exponent of the schedule.
        lr_floor: Final learning rate as a share of `lr`, 0..1. Upstream's default `min_lr` is 0.01 of `lr`.
        head_lr_multiple: Learning rate of the head as a multiple of the backbone's.
        warmup: Number of warm-up steps, whose rate is also multiplied by 1 / (warmup + 1), 2 / (warmup + 1), ...

    Returns:
        (optimizer, schedule). To resume, save both `state_dict()`s.

    Raises:
        ValueError: All parameters are frozen, or a value is out of range.
    """
    optimizer = SGD(_parameter_groups(model, lr, head_lr_multiple), lr=lr, momentum=momentum, weight_decay=weight_decay)
    return optimizer, poly_schedule(optimizer, steps=steps, power=power, lr_floor=lr_floor, warmup=warmup)


def poly_schedule(
    optimizer: Optimizer, *, steps: int, power: float = 0.9, lr_floor: float = 0.01, warmup: int = 0
) -> LambdaLR:
    """The learning rate schedule of `poly_sgd` for any optimizer.

    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    >>> schedule = isanet.training.poly_schedule(optimizer, steps=1000)

    Raises:
        ValueError: A value is out of range.
    """
    if steps < 1 or not 0 <= warmup < steps or not power >= 0 or not 0 <= lr_floor <= 1:
        raise ValueError(
            "expected steps >= 1, 0 <= warmup < steps, power >= 0, 0 <= lr_floor <= 1; "
            f"got {steps}, {warmup}, {power}, {lr_floor}"
        )
    # Not a lambda, so that it can be pickled
    return LambdaLR(optimizer, partial(_poly, steps=steps, power=power, lr_floor=lr_floor, warmup=warmup))


def optimizer_and_schedule(model: nn.Module, recipe: Recipe, *, steps: int) -> tuple[Optimizer, LambdaLR]:
    """A recipe's optimizer and schedule: `poly_sgd`, or AdamW with the same parameter groups and schedule.

    >>> recipe = isanet.Recipe(optimizer="adamw", lr=1e-4)
    >>> optimizer, schedule = isanet.training.optimizer_and_schedule(model, recipe, steps=1000)

    Args:
        model: See `poly_sgd`.
        recipe: Its optimizer, learning rate, weight decay, momentum (AdamW's first beta) and schedule.
        steps: Total number of optimizer steps.

    Raises:
        ValueError: See `poly_sgd`.
    """
    groups = _parameter_groups(model, recipe.lr, recipe.head_lr_multiple)
    optimizer: Optimizer
    if recipe.optimizer == "sgd":
        optimizer = SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    else:
        optimizer = AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay)
    return optimizer, poly_schedule(
        optimizer, steps=steps, power=recipe.power, lr_floor=recipe.lr_floor, warmup=recipe.warmup
    )


def _parameter_groups(model: nn.Module, lr: float, head_lr_multiple: float) -> list[dict[str, Any]]:
    backbone: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else head).append(parameter)
    if not backbone and not head:
        raise ValueError("all parameters of the model are frozen: there is nothing to train")
    rates = (("backbone", backbone, lr), ("head", head, lr * head_lr_multiple))
    return [{"name": name, "params": params, "lr": rate} for name, params, rate in rates if params]


def _poly(step: int, *, steps: int, power: float, lr_floor: float, warmup: int) -> float:
    decay: float = max(0.0, 1 - step / steps) ** power
    return (lr_floor + (1 - lr_floor) * decay) * min(1.0, (step + 1) / (warmup + 1))


def freeze(model: nn.Module, part: str = "backbone", statistics: bool = True) -> None:
    """Freeze a part of the model permanently.

    Call it before you create the optimizer. Deep copies and pickles are frozen too.

    >>> isanet.training.freeze(model, "backbone")
    >>> any(parameter.requires_grad for parameter in model.backbone.parameters())
    False

    Args:
        model: Changed in place.
        part: Name of a module in it ("backbone", "backbone.layer1", ...); "" for the whole model.
        statistics: Also freeze the statistics of its batch norms, see `keep_statistics`.

    Raises:
        ValueError: There is no such part.
    """
    module = _part(model, part)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # gradient clipping, for one, would still count it
    if statistics:
        keep_statistics(model, part)


def keep_statistics(model: nn.Module, part: str = "") -> None:
    """Make batch norms use their running statistics, and not update them, in training mode too.

    This survives `model.train()`, deep copies and pickles, and also `SyncBatchNorm.convert_sync_batchnorm` (unless
    `part` is itself a batch norm). Their weights and biases are still trained, unless they are frozen.

    >>> isanet.training.keep_statistics(model)
    >>> model.train().backbone.stem[1].training
    False

    Args:
        model: Changed in place.
        part: Name of a module in it; "" for the whole model.

    Raises:
        ValueError: There is no such part.
    """
    module = _part(model, part)
    # `model.train()` calls each child's `train`, and finds this one instead of the class's method. It is set on the
    # part, not on its batch norms, which may be replaced; and it is no hook of `forward`, which a compiler would trace.
    # A partial, unlike a closure, is copied and pickled together with its module.
    module.train = partial(_train_without_statistics, module)  # type: ignore[method-assign]
    module.train(module.training)


def _train_without_statistics(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    for inner in module.modules():
        if isinstance(inner, nn.modules.batchnorm._BatchNorm):
            inner.training = False
    return module


def _part(model: nn.Module, part: str) -> nn.Module:
    try:
        return model.get_submodule(part)
    except AttributeError as error:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"the model has no part {part!r}; it has {names}, and the parts of those") from error


def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move a moving average of weights and statistics towards a model.

    Early on it moves faster, with the decay `min(decay, (1 + step) / (10 + step))`, so as not to stay near the start.
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)
