from __future__ import annotations

import json
import math
import pickle
from dataclasses import fields
from typing import Any

import pytest
import torch

from isanet.training import (
    OHEM,
    Recipe,
)
from isanet.weights.manifest import list_models, model_info


def test_the_defaults_are_the_published_recipe() -> None:
    assert Recipe.published("isanet_r50_voc") == Recipe()
    assert Recipe.published("isanet_r101_ade20k") == Recipe(epochs=130)
    assert Recipe.published("isanet_r50_cityscapes") == Recipe(epochs=220, batch_size=8, crop=(512, 1024))
    for name in list_models():
        if model_info(name).family == "sssegmentation":
            assert isinstance(Recipe.published(name), Recipe)
        else:  # which count iterations, or are of another kind
            with pytest.raises(ValueError, match="cannot follow"):
                Recipe.published(name)
    with pytest.raises(ValueError, match="cannot follow the recipe of isanet_nano_toystreets: it needs an optimizer"):
        Recipe.published("isanet_nano_toystreets")
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
def test_wrong_json_is_an_error(text: str, message: str) -> None:
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
    "accumulate": [0, 3],  # 3 does not divide 16
    "crop": [512, (512,), (0, 512), (512, 512.0)],
    "scale_range": [1.0, (2.0, 0.5), (0, 1)],
    "flip": [1.1, -0.1],
    "photometric": [2, None],
    "max_class_share": [0, 1.01],
    "aux_weight": [-0.4],
    "class_weights": [(), (-1.0, 1.0), (0.0, 0.0), 1.0, "equal"],
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
