"""Training: the recipe, and its pieces for those who write their own loop.

    freeze(model)                                                             # if wanted, before the optimizer
    optimizer, schedule = poly_sgd(model, lr=0.01, steps=1000)
    for images, masks in batches:
        loss = segmentation_loss(*model(images, aux=True), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

Defaults are those by which upstream (sssegmentation) trained the released models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from isanet.labels import IGNORED
from isanet.weights.manifest import model_info


@dataclass(frozen=True)
class OHEM:
    """Online hard example mining: pixels that the model already has right are left out of the loss.

    Attributes:
        threshold: Pixels count whose true class has a probability below this, 0..1.
        min_kept: At least so many pixels an image count, on the average of the batch: the least probable.

    Raises:
        ValueError: A value is out of its range.

    Source: Shrivastava et al., CVPR 2016; for pixels, with these defaults, mmsegmentation's `OHEMPixelSampler`.
    """

    threshold: float = 0.7
    min_kept: int = 100_000

    def __post_init__(self) -> None:
        if not (_is_number(self.threshold) and 0 < self.threshold <= 1):
            raise ValueError(f"ohem.threshold must be a probability above 0, got {self.threshold!r}")
        if not (_is_whole(self.min_kept) and self.min_kept >= 0):
            raise ValueError(f"ohem.min_kept must be a number of pixels, got {self.min_kept!r}")


def segmentation_loss(
    logits: Tensor,
    aux: Tensor | None,
    target: Tensor,
    *,
    aux_weight: float = 0.4,
    ignore_index: int = IGNORED,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    ohem: OHEM | None = None,
) -> Tensor:
    """Cross entropy, and that of the auxiliary head with its weight, each a mean over the pixels that count.

    Half-precision logits are taken to float32 first. A batch in which no pixel counts gives 0, with gradients of 0.

    Args:
        logits: (N, K, H, W), floating point, as `model(images, aux=True)` gives them.
        aux: The auxiliary head's logits, of the same shape; None for a loss without it.
        target: (N, H, W), class indices of any integer type, 0..K-1 or `ignore_index`.
        aux_weight: Of the auxiliary head's part of the loss.
        ignore_index: The value of pixels that do not count.
        class_weights: K weights, 0 or more. The mean is then a weighted one, as in `torch.nn.CrossEntropyLoss`.
        label_smoothing: Share of the target, 0..1, that is spread over all classes.
        ohem: Which pixels count for the main head; all if left out. For the auxiliary head all count.

    Returns:
        The loss, a scalar, float32 or float64.

    Raises:
        ValueError: Shapes or types do not fit, or the target holds another value.
    """
    if logits.ndim != 4 or not logits.is_floating_point() or (aux is not None and aux.shape != logits.shape):
        raise ValueError(
            f"logits must be floating-point (N, K, H, W), both heads' alike; got {_shape(logits)}"
            + (f" and {_shape(aux)}" if aux is not None else "")
        )
    logits, aux = _at_least_float32(logits), None if aux is None else _at_least_float32(aux)
    N, K, H, W = logits.shape
    if target.shape != (N, H, W) or target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise ValueError(f"the target must be integers of shape {(N, H, W)}, as the logits; got {_shape(target)}")
    weights = None
    if class_weights is not None:
        weights = _class_weights(class_weights, K, logits)
    target = target.long()  # cross_entropy takes nothing else on every device
    stray = (target != ignore_index) & ((target < 0) | (target >= K))
    if stray.any():  # on a GPU cross_entropy would end the process's use of it
        found = torch.unique(target[stray])
        raise ValueError(
            f"the target holds {', '.join(map(str, found[:5].tolist()))}{', …' if len(found) > 5 else ''}: "
            f"neither one of {K} classes nor ignore_index, {ignore_index}; isanet check-masks says which file has it"
        )

    def mean(logits: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits,
            target,
            weights,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        total = _loss_weight(target, weights, ignore_index)
        return losses.sum() / torch.where(total > 0, total, 1)

    loss = mean(logits, target if ohem is None else _hard_target(logits, target, ignore_index, ohem))
    return loss if aux is None else loss + aux_weight * mean(aux, target)


def loss_weight(
    target: Tensor, num_classes: int, class_weights: Sequence[float] | Tensor | None = None, ignore_index: int = IGNORED
) -> Tensor:
    """What `segmentation_loss` divides by: the number of pixels that count, or the sum of their classes' weights.

    With it, losses of the parts of a batch, each on its own or in a process of its own, add up to that of the whole:
    each times its weight, over the sum of the weights. With OHEM they do so nearly: each part is mined on its own.

    Args:
        target: (N, H, W), class indices of any integer type, and `ignore_index`.
        num_classes: K.
        class_weights: See `segmentation_loss`.
        ignore_index: See `segmentation_loss`.

    Returns:
        A scalar, float32.
    """
    like = torch.empty(0, device=target.device)
    weights = None if class_weights is None else _class_weights(class_weights, num_classes, like)
    return _loss_weight(target.long(), weights, ignore_index).to(like)


def _loss_weight(target: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    counted = target != ignore_index
    return counted.sum() if weights is None else (weights[target.clamp(0, len(weights) - 1)] * counted).sum()


def _class_weights(values: Sequence[float] | Tensor, num_classes: int, like: Tensor) -> Tensor:
    weights = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if weights.shape != (num_classes,) or not (weights >= 0).all():
        raise ValueError(f"class_weights must be {num_classes} numbers of 0 or more, got {values}")
    return weights


@torch.no_grad()
def _hard_target(logits: Tensor, target: Tensor, ignore_index: int, ohem: OHEM) -> Tensor:
    """The target, ignored also where the model is sure of it."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    probability = torch.exp(-losses)
    probability[target == ignore_index] = 2.0  # after all others
    kept = probability < ohem.threshold
    if wanted := min(len(target) * ohem.min_kept, probability.numel()):
        kept |= probability <= probability.flatten().sort().values[wanted - 1]  # kthvalue is not deterministic on CUDA
    return torch.where(kept, target, ignore_index)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


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
    """Stochastic gradient descent whose rate falls, step by step, by a power to a hundredth.

    Step i = 0, 1, ... is taken at the rate `lr * (lr_floor + (1 - lr_floor) * (1 - i / steps) ** power)`.
    Call `schedule.step()` after each `optimizer.step()`.

    Args:
        model: Parameters that are frozen are left out. There is a group "backbone", of `model.backbone`, and a group
            "head", of all others (key "name" in `optimizer.param_groups`); one without parameters is left out.
        lr: Rate of the first step.
        steps: Number of steps in all.
        momentum: Of the gradient.
        weight_decay: Of all parameters, biases and those of batch norm too, as upstream.
        power: Of the schedule.
        lr_floor: Where the rate ends, as a share of `lr`: upstream's `min_lr`, 0.01 of it unless set; 0..1.
        head_lr_multiple: How many times the rate of the backbone the rate of the head is.
        warmup: In so many first steps the rate is also multiplied by 1 / (warmup + 1), 2 / (warmup + 1), ...

    Returns:
        (optimizer, schedule). The schedule's state, for a resume, is in `schedule.state_dict()`.

    Raises:
        ValueError: All parameters are frozen, or a value is out of its range.
    """
    groups = _parameter_groups(model, lr, head_lr_multiple)
    optimizer = SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return optimizer, poly_schedule(optimizer, steps=steps, power=power, lr_floor=lr_floor, warmup=warmup)


def poly_schedule(
    optimizer: Optimizer, *, steps: int, power: float = 0.9, lr_floor: float = 0.01, warmup: int = 0
) -> LambdaLR:
    """The schedule of `poly_sgd` for any optimizer.

    Raises:
        ValueError: A value is out of its range.
    """
    if steps < 1 or not 0 <= warmup < steps or not power >= 0 or not 0 <= lr_floor <= 1:
        raise ValueError(
            "expected steps >= 1, 0 <= warmup < steps, power >= 0, 0 <= lr_floor <= 1; "
            f"got {steps}, {warmup}, {power}, {lr_floor}"
        )
    # Not a lambda, so that it can be pickled
    return LambdaLR(optimizer, partial(_poly, steps=steps, power=power, lr_floor=lr_floor, warmup=warmup))


def optimizer_and_schedule(model: nn.Module, recipe: Recipe, *, steps: int) -> tuple[Optimizer, LambdaLR]:
    """What a recipe trains by: `poly_sgd`, or AdamW with the same groups and schedule.

    Args:
        model: See `poly_sgd`.
        recipe: Its rate, decay, momentum (AdamW's first beta), schedule and head's multiple.
        steps: Number of steps of the optimizer in all.

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
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("all parameters of the model are frozen: there is nothing to train")
    groups: list[dict[str, Any]] = [
        {"name": "backbone", "params": [p for name, p in trained if name.startswith("backbone.")], "lr": lr},
        {
            "name": "head",
            "params": [p for name, p in trained if not name.startswith("backbone.")],
            "lr": lr * head_lr_multiple,
        },
    ]
    return [group for group in groups if group["params"]]


def _poly(step: int, *, steps: int, power: float, lr_floor: float, warmup: int) -> float:
    falling: float = max(0.0, 1 - step / steps) ** power
    return (lr_floor + (1 - lr_floor) * falling) * min(1.0, (step + 1) / (warmup + 1))


def freeze(model: nn.Module, part: str = "backbone", statistics: bool = True) -> None:
    """Leave a part of the model as it is in training, for good.

    Call it before the optimizer is made. Deep copies and pickles are frozen as well.

    Args:
        model: Changed in place.
        part: Name of a module in it ("backbone", "backbone.layer1", ...); "" for all of it.
        statistics: Also keep the statistics of its batch norms, see `keep_statistics`.

    Raises:
        ValueError: There is no such part.
    """
    module = _part(model, part)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # clipping, for one, would still count it
    if statistics:
        keep_statistics(model, part)


def keep_statistics(model: nn.Module, part: str = "") -> None:
    """Have batch norms use, and not change, the statistics that they have, in training too.

    It survives `model.train()`, deep copies and pickles, and also `SyncBatchNorm.convert_sync_batchnorm` (unless `part`
    is itself a batch norm). Their weights and biases are still trained, unless they are frozen.

    Args:
        model: Changed in place.
        part: Name of a module in it; "" for all of it.

    Raises:
        ValueError: There is no such part.
    """
    module = _part(model, part)
    # `model.train()` asks each child in turn, and so finds this in place of the class's method. It stands at the part,
    # not at its batch norms, which may be replaced; and it is no hook of `forward`, which a compiler would trace.
    # A partial, unlike a closure, is copied and pickled together with the module that it is for.
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


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are upstream's for PASCAL VOC.

    `Recipe.published(name)` is that of a released model; `dataclasses.replace(recipe, lr=0.001)` changes one.

    Attributes:
        optimizer: "sgd" or "adamw".
        lr: Rate of the first step (after the warm-up, if there is one).
        momentum: Of SGD; AdamW's first beta.
        weight_decay: Of all parameters.
        power: By which the rate falls, see `poly_sgd`.
        lr_floor: Where it ends, as a share of `lr`.
        warmup: Number of first steps in which the rate rises.
        head_lr_multiple: How many times the backbone's rate the rate of all else is.
        epochs: How often each image is seen.
        batch_size: Images in one step of the optimizer, over all processes and parts.
        accumulate: Parts that a batch is computed in, one after the other, where it does not fit into memory at once.
        crop: (height, width) of training images in pixels.
        scale_range: Smallest and largest random scale, in multiples of the size for prediction.
        flip: Probability of mirroring left and right.
        photometric: Probability of each change of color: brightness, contrast, saturation, hue; 0 for none.
        max_class_share: A crop is drawn again, up to 10 times in all, until every class has less than this share of the
            pixels that count; 1 for any crop.
        aux_weight: See `segmentation_loss`.
        class_weights: See `segmentation_loss`.
        label_smoothing: See `segmentation_loss`.
        ohem: See `segmentation_loss`.
        freeze_backbone: Whether the backbone stays as it is, statistics of its batch norms too.
        freeze_batch_norm: Whether all batch norms stay as they are: statistics, weights and biases.
        sync_batch_norm: Whether several processes share the statistics of a batch.
        ema: Decay (per step) of the running average of the weights that is kept and validated; None for no average.
        clip_grad_norm: Largest norm of the gradient; None for any.
        precision: "float32", or "bfloat16" or "float16" by autocast.
        seed: Of everything random.
        validate_every: Epochs between validations.

    Raises:
        ValueError: A field is not what it must be; the message names it.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    lr_floor: float = 0.01
    warmup: int = 0
    head_lr_multiple: float = 1.0
    epochs: int = 60
    batch_size: int = 16
    accumulate: int = 1
    crop: tuple[int, int] = (512, 512)
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    photometric: float = 0.5
    max_class_share: float = 0.75
    aux_weight: float = 0.4
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    ohem: OHEM | None = None
    freeze_backbone: bool = False
    freeze_batch_norm: bool = False
    sync_batch_norm: bool = True
    ema: float | None = None
    clip_grad_norm: float | None = None
    precision: str = "float32"
    seed: int = 0
    validate_every: int = 1

    def __post_init__(self) -> None:
        for field in ("crop", "scale_range", "class_weights"):  # JSON has lists
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, (fits, wanted) in _FIELDS.items():
            if not fits(getattr(self, field)):
                raise ValueError(f"{field} must be {wanted}, got {getattr(self, field)!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size, {self.batch_size}, got {self.accumulate}")

    @classmethod
    def published(cls, name: str) -> Recipe:
        """The recipe by which a released model was trained.

        What the manifest says of its data, network and hardware is not part of a recipe.

        Args:
            name: A name of `isanet.list_models`.

        Raises:
            ValueError: There is no such model, or its recipe is of another kind.
        """
        said: dict[str, Any] = dict(model_info(name).recipe)
        if said.get("schedule") != "poly" or said.get("ignore_index", IGNORED) != IGNORED or "optimizer" not in said:
            raise ValueError(f"the recipe of {name} is none that isanet can follow: {said}")
        said["optimizer"] = said["optimizer"].lower()
        if "sync_batch_norm" in said:
            said["sync_batch_norm"] = bool(said["sync_batch_norm"])  # in the manifest the number of processes
        return cls(**{field.name: said[field.name] for field in fields(cls) if field.name in said})

    def to_json(self) -> str:
        """Every field, as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote; fields that are not there have their defaults.

        Raises:
            ValueError: It is not a JSON object, a field is unknown, or is not what it must be.
        """
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError(f"a recipe must be a JSON object, got {said!r}")
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(said) - set(names)):
            near = get_close_matches(unknown[0], names, n=1)
            raise ValueError(
                f"a recipe has no field {unknown[0]!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}")
            )
        if isinstance(said.get("ohem"), dict):
            known = {field.name for field in fields(OHEM)}
            if unknown := sorted(set(said["ohem"]) - known):
                raise ValueError(f"ohem has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
            said["ohem"] = OHEM(**said["ohem"])
        return cls(**said)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (lambda v: _is_whole(v) and v >= 1, "a whole number of 1 or more")
_POSITIVE: _Check = (lambda v: _is_number(v) and v > 0, "a number above 0")
_NOT_NEGATIVE: _Check = (lambda v: _is_number(v) and v >= 0, "a number of 0 or more")
_BELOW_ONE: _Check = (lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
_PROBABILITY: _Check = (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
_FLAG: _Check = (lambda v: isinstance(v, bool), "True or False")
_FROM_ZERO: _Check = (lambda v: _is_whole(v) and v >= 0, "a whole number of 0 or more")

_FIELDS: dict[str, _Check] = {
    "optimizer": (lambda v: v in ("sgd", "adamw"), "'sgd' or 'adamw'"),
    "lr": _POSITIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "power": _NOT_NEGATIVE,
    "lr_floor": _PROBABILITY,
    "warmup": _FROM_ZERO,
    "head_lr_multiple": _POSITIVE,
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "crop": (lambda v: _is_pair(v, _COUNT[0]), "(height, width) in pixels"),
    "scale_range": (
        lambda v: _is_pair(v, _POSITIVE[0]) and v[0] <= v[1],
        "the smallest and the largest scale, both above 0",
    ),
    "flip": _PROBABILITY,
    "photometric": _PROBABILITY,
    "max_class_share": (lambda v: _is_number(v) and 0 < v <= 1, "a share above 0, up to 1"),
    "aux_weight": _NOT_NEGATIVE,
    "class_weights": (
        lambda v: v is None or (isinstance(v, tuple) and len(v) > 0 and all(map(_NOT_NEGATIVE[0], v)) and sum(v) > 0),
        "one number of 0 or more for each class, or None",
    ),
    "label_smoothing": _BELOW_ONE,
    "ohem": (lambda v: v is None or isinstance(v, OHEM), "an OHEM or None"),
    "freeze_backbone": _FLAG,
    "freeze_batch_norm": _FLAG,
    "sync_batch_norm": _FLAG,
    "ema": (lambda v: v is None or _BELOW_ONE[0](v), f"{_BELOW_ONE[1]}, or None"),
    "clip_grad_norm": (lambda v: v is None or _POSITIVE[0](v), f"{_POSITIVE[1]}, or None"),
    "precision": (lambda v: v in ("float32", "bfloat16", "float16"), "'float32', 'bfloat16' or 'float16'"),
    "seed": (lambda v: _is_whole(v) and 0 <= v < 2**63, "a whole number from 0 to below 2 ** 63"),
    "validate_every": _COUNT,
}
"""What each field of a recipe must be: a test, and the words for a message."""
