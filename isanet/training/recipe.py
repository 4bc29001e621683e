"""Recipe: how a model is trained, as plain values that are checked and survive JSON.

The defaults are those with which upstream (sssegmentation) trained the released PASCAL VOC models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from isanet.labels import IGNORED
from isanet.training.loss import OHEM
from isanet.weights.manifest import model_info


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are upstream's for PASCAL VOC.

    `Recipe.published(name)` is the recipe of a released model; `dataclasses.replace(recipe, lr=0.001)` changes a field.

    Attributes:
        optimizer: "sgd" or "adamw".
        lr: Learning rate of the first step (after the warm-up, if there is one).
        momentum: SGD's momentum; AdamW's first beta.
        weight_decay: Weight decay of all parameters.
        power: Exponent of the polynomial decay, see `poly_sgd`.
        lr_floor: Final learning rate as a share of `lr`.
        warmup: Number of warm-up steps.
        head_lr_multiple: Learning rate of everything but the backbone, as a multiple of the backbone's.
        epochs: How often each image is seen.
        batch_size: Images per optimizer step, over all processes and gradient accumulation steps.
        accumulate: Gradient accumulation steps: parts in which a batch is computed when it does not fit into memory.
        crop: (height, width) of training crops in pixels.
        scale_range: Smallest and largest random scale, as multiples of the inference size.
        flip: Probability of a horizontal flip.
        photometric: Probability of each color change: brightness, contrast, saturation, hue; 0 for none.
        max_class_share: A crop is drawn again, up to 10 times in all, until every class has less than this share of the
            pixels that are not ignored; 1 accepts any crop.
        aux_weight: See `segmentation_loss`.
        class_weights: See `segmentation_loss`.
        label_smoothing: See `segmentation_loss`.
        ohem: See `segmentation_loss`.
        freeze_backbone: Freeze the backbone, including the statistics of its batch norms.
        freeze_batch_norm: Freeze all batch norms: statistics, weights and biases.
        sync_batch_norm: Share batch norm statistics among processes.
        ema: Decay (per step) of the moving average of the weights, which is then validated and kept; None for none.
        clip_grad_norm: Maximum norm of the gradient; None for no clipping.
        precision: "float32", or "bfloat16" or "float16" by autocast.
        seed: Seed of everything random.
        validate_every: Epochs between validations.

    Raises:
        ValueError: A field has a wrong value; the message names it.
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
        """The recipe with which a released model was trained.

        What the manifest says about its data, network and hardware is not part of a recipe.

        Args:
            name: A name from `isanet.list_models`.

        Raises:
            ValueError: There is no such model, or isanet cannot follow its recipe.
        """
        values: dict[str, Any] = dict(model_info(name).recipe)
        ignore_index = values.get("ignore_index", IGNORED)
        if values.get("schedule") != "poly" or ignore_index != IGNORED or "optimizer" not in values:
            raise ValueError(f"isanet cannot follow the recipe of {name}: {values}")
        values["optimizer"] = values["optimizer"].lower()
        if "sync_batch_norm" in values:
            values["sync_batch_norm"] = bool(values["sync_batch_norm"])  # the number of processes in the manifest
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote; missing fields have their defaults.

        Raises:
            ValueError: It is not a JSON object, or a field is unknown or has a wrong value.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a recipe must be a JSON object, got {values!r}")
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            near = get_close_matches(unknown[0], names, n=1)
            raise ValueError(
                f"a recipe has no field {unknown[0]!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}")
            )
        if isinstance(values.get("ohem"), dict):
            known = {field.name for field in fields(OHEM)}
            if unknown := sorted(set(values["ohem"]) - known):
                raise ValueError(f"ohem has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
            values["ohem"] = OHEM(**values["ohem"])
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (lambda v: _is_int(v) and v >= 1, "an integer of 1 or more")
_POSITIVE: _Check = (lambda v: _is_number(v) and v > 0, "a number above 0")
_NOT_NEGATIVE: _Check = (lambda v: _is_number(v) and v >= 0, "a number of 0 or more")
_BELOW_ONE: _Check = (lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
_PROBABILITY: _Check = (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
_FLAG: _Check = (lambda v: isinstance(v, bool), "True or False")
_FROM_ZERO: _Check = (lambda v: _is_int(v) and v >= 0, "an integer of 0 or more")

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
    "seed": (lambda v: _is_int(v) and 0 <= v < 2**63, "an integer from 0 to below 2 ** 63"),
    "validate_every": _COUNT,
}
"""For each field of a recipe: a check, and how a message describes valid values."""
