"""Recipe: how a model is trained, as plain values that are checked and survive JSON.

The defaults are those with which upstream (sssegmentation) trained the released PASCAL VOC models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
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

    >>> recipe = isanet.Recipe(epochs=20, optimizer="adamw", lr=1e-4)
    >>> recipe.crop
    (512, 512)

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
        class_weights: See `segmentation_loss`; "balanced": one over the root of each class's share of the pixels.
        label_smoothing: See `segmentation_loss`.
        ohem: See `segmentation_loss`.
        freeze_backbone: Freeze the backbone, including the statistics of its batch norms.
        freeze_batch_norm: Freeze all batch norms: statistics, weights and biases.
        sync_batch_norm: Share batch norm statistics among processes.
        ema: Decay (per step) of the moving average of the weights, which is then validated and kept; None for none.
        clip_grad_norm: Maximum norm of the gradient; None for no clipping.
        precision: "float32", or "bfloat16" or "float16" by autocast. Where a device only emulates bfloat16, float32 is
            faster, and is taken instead; the log says so.
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
    class_weights: tuple[float, ...] | str | None = None
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
        for names, wanted, fits in _CHECKS:
            for field in names.split():
                if not fits(getattr(self, field)):
                    raise ValueError(f"{field} must be {wanted}, got {getattr(self, field)!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size, {self.batch_size}, got {self.accumulate}")

    @classmethod
    def published(cls, name: str) -> Recipe:
        """The recipe with which a released model was trained.

        What the manifest says about its data, network and hardware is not part of a recipe.

        >>> isanet.Recipe.published("isanet_r101_cityscapes").crop
        (512, 1024)

        Args:
            name: A name from `isanet.list_models`.

        Raises:
            ValueError: There is no such model, or isanet cannot follow its recipe.
        """
        values: dict[str, Any] = dict(model_info(name).recipe)
        ignore_index = values.get("ignore_index", IGNORED)
        known = "optimizer" in values and "iterations" not in values  # a recipe counts epochs
        if values.get("schedule") != "poly" or ignore_index != IGNORED or not known:
            raise ValueError(
                f"isanet cannot follow the recipe of {name}: it needs an optimizer, a poly schedule, and epochs, not "
                f"iterations; got {values}"
            )
        values["optimizer"] = values["optimizer"].lower()
        if "sync_batch_norm" in values:
            values["sync_batch_norm"] = bool(values["sync_batch_norm"])  # the number of processes in the manifest
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_json(self) -> str:
        """All fields as a JSON object.

        >>> print(isanet.Recipe(epochs=20).to_json())
        {
          "optimizer": "sgd",
          ...
        """
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote; missing fields have their defaults.

        >>> isanet.Recipe.from_json('{"epochs": 20, "crop": [256, 256]}').crop
        (256, 256)

        Raises:
            ValueError: It is not a JSON object, or a field is unknown or has a wrong value.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a recipe must be a JSON object, got {values!r}")
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these fields; missing ones have their defaults.

        >>> isanet.Recipe.of({"epochs": 20}).epochs
        20

        Raises:
            ValueError: A field is unknown or has a wrong value.
        """
        values = dict(values)
        _check_names(values, cls, "a recipe")
        if isinstance(values.get("ohem"), dict):
            _check_names(values["ohem"], OHEM, "ohem")
            values["ohem"] = OHEM(**values["ohem"])
        return cls(**values)


def _check_names(values: dict[str, Any], kind: type[Recipe | OHEM], what: str) -> None:
    names = [field.name for field in fields(kind)]
    for name in values:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise ValueError(f"{what} has no field {name!r}; {hint}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


def _are_class_weights(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_number(v) and v >= 0 for v in value) and sum(value) > 0


_CHECKS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("epochs batch_size accumulate validate_every", "an integer of 1 or more", lambda v: _is_int(v) and v >= 1),
    ("warmup", "an integer of 0 or more", lambda v: _is_int(v) and v >= 0),
    ("seed", "an integer from 0 to below 2 ** 63", lambda v: _is_int(v) and 0 <= v < 2**63),
    ("lr head_lr_multiple", "a number above 0", lambda v: _is_number(v) and v > 0),
    ("clip_grad_norm", "a number above 0, or None", lambda v: v is None or (_is_number(v) and v > 0)),
    ("weight_decay power aux_weight", "a number of 0 or more", lambda v: _is_number(v) and v >= 0),
    ("momentum label_smoothing", "a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1),
    ("ema", "a number from 0 to below 1, or None", lambda v: v is None or (_is_number(v) and 0 <= v < 1)),
    ("lr_floor flip photometric", "a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
    ("max_class_share", "a share above 0, up to 1", lambda v: _is_number(v) and 0 < v <= 1),
    ("freeze_backbone freeze_batch_norm sync_batch_norm", "True or False", lambda v: isinstance(v, bool)),
    ("optimizer", "'sgd' or 'adamw'", lambda v: v in ("sgd", "adamw")),
    ("precision", "'float32', 'bfloat16' or 'float16'", lambda v: v in ("float32", "bfloat16", "float16")),
    ("crop", "(height, width) in pixels", lambda v: _is_pair(v, lambda side: _is_int(side) and side >= 1)),
    (
        "scale_range",
        "the smallest and the largest scale, both above 0",
        lambda v: _is_pair(v, _is_number) and 0 < v[0] <= v[1],
    ),
    (
        "class_weights",
        "one number of 0 or more for each class, 'balanced' or None",
        lambda v: v in (None, "balanced") or _are_class_weights(v),
    ),
    ("ohem", "an OHEM or None", lambda v: v is None or isinstance(v, OHEM)),
)
"""Fields of a recipe, how a message describes their valid values, and the check."""
