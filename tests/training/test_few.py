"""Few images: what is chosen for them, said of it, and found afterwards."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from isanet.datasets import Folder
from isanet.errors import OutputError
from isanet.evaluation.report import Report
from isanet.inference.segmenter import Segmenter
from isanet.labels import custom_space
from isanet.training import Recipe, few, plan
from isanet.training.few import balanced_weights, few_images_recipe, findings
from isanet.training.finetune import finetune
from isanet.training.outputs import training_accuracy
from isanet.training.state import HistoryRow
from tests.helpers.color_model import ColorModel
from tests.helpers.reports import make
from tests.helpers.training import CLASSES, COLORS, tiny, train, write_data

CPU = torch.device("cpu")
PIXELS = torch.tensor([9000, 900, 100])


def chosen(count: int = 20, image: Image.Image | None = None, memory: int | None = None, **given: Any) -> Recipe:
    return few_images_recipe(tiny(), count, PIXELS, image, device=CPU, memory=memory, given=given)


def test_each_choice_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "isanet"):
        recipe = chosen(memory=8 << 30)
    first, *lines = [record.getMessage() for record in caplog.records]
    assert "20 training images" in first
    assert "--recipe" in first
    settings = [setting for line in lines for setting in line.strip().partition(": ")[0].split()]
    changed = {name for name, value in asdict(recipe).items() if value != asdict(Recipe())[name]}
    assert changed <= {setting.partition("=")[0] for setting in settings}
    assert all(line.partition(": ")[2] for line in lines)
    assert any("sea has 1.00 % of the pixels" in line for line in lines)


def test_what_is_given_is_neither_chosen_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "isanet"):
        recipe = chosen(epochs=7, crop=(32, 48), class_weights=None, batch_size=5)
    assert (recipe.epochs, recipe.crop, recipe.class_weights, recipe.batch_size) == (7, (32, 48), None, 5)
    assert recipe.warmup == 2  # of 28 steps
    assert "crop=" not in caplog.text
    assert "class_weights=" not in caplog.text


def test_steps_depend_little_on_the_number_of_images() -> None:
    for count in (2, 20, 150):
        recipe = chosen(count)
        assert recipe.epochs * count / recipe.batch_size == pytest.approx(few.STEPS, rel=0.05)
    assert chosen(299).epochs == 20


def test_statistics_are_kept_where_there_are_some() -> None:
    assert not chosen().freeze_batch_norm  # those of a new network are 0
    model = tiny().train()
    for _ in range(2):
        model(torch.randn(2, 3, 32, 32), aux=True)
    recipe = few_images_recipe(model, 20, PIXELS, None, device=CPU, memory=None, given={})
    assert recipe.freeze_batch_norm


def test_a_batch_is_computed_in_parts_where_memory_is_short() -> None:
    crop = (256, 256)
    assert chosen(memory=1 << 40, crop=crop).accumulate == 1
    needed = few.step_memory(tiny(), chosen(crop=crop), few.BATCH)
    assert chosen(memory=int(1.2 * needed), crop=crop).accumulate == 2
    assert chosen(memory=1, crop=crop).accumulate == few.BATCH
    assert chosen(memory=1, crop=crop, epochs=1, batch_size=15).accumulate == 5  # two steps, of ten images


def test_small_inputs_grow_to_the_images_of_the_data() -> None:
    for size, edge in (((640, 480), 480), ((20, 30), 32), ((4000, 3000), few.LARGEST)):
        model = tiny()
        recipe = few_images_recipe(model, 20, PIXELS, Image.new("RGB", size), device=CPU, memory=None, given={})
        assert model.preprocessing is not None
        assert model.preprocessing["short_edge"] == model.config["preprocessing"]["short_edge"] == edge
        assert model.preprocessing["long_edge"] == 512 * edge // 32
        assert recipe.crop == (min(edge, 320),) * 2


def test_a_crop_is_as_large_as_images_that_are_not_resized() -> None:
    def crop(image: tuple[int, int] | None, **preprocessing: Any) -> tuple[int, int]:
        model = tiny()
        model.preprocessing = {"mean": [0] * 3, "std": [1] * 3, **preprocessing}
        before = dict(model.preprocessing)
        shown = None if image is None else Image.new("RGB", image)
        recipe = few_images_recipe(model, 20, PIXELS, shown, device=CPU, memory=None, given={})
        assert model.preprocessing == before
        return recipe.crop

    assert crop((300, 200)) == (200, 200)
    assert crop((2000, 1000)) == crop(None) == (320, 320)
    padding = {"pad_to": [256, 512], "pad_color": [0] * 3}
    assert crop((2000, 1000), **padding) == crop(None, **padding) == (256, 256)
    assert crop((300, 200), **padding) == (200, 200)


def test_balanced_weights_are_one_over_the_root_of_the_share() -> None:
    weights = torch.tensor(balanced_weights(torch.tensor([9000, 900, 0, 100])), dtype=torch.float64)
    assert weights[2] == 0
    assert (weights[3] / weights[0]).item() == pytest.approx(90**0.5, rel=1e-12)
    assert (weights @ torch.tensor([0.9, 0.09, 0, 0.01], dtype=torch.float64)).item() == pytest.approx(1, rel=1e-12)


def test_few_images_are_trained_by_the_chosen_recipe(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(few, "STEPS", 4)
    given = {"crop": [32, 32], "epochs": 3, "class_weights": "balanced"}
    with caplog.at_level(logging.INFO, "isanet"):
        run = train(tiny(), splits, tmp_path / "run", given)
    recipe = Recipe.from_json((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe.optimizer, recipe.crop, recipe.epochs) == ("adamw", (32, 32), 3)
    assert len(recipe.class_weights or ()) == len(CLASSES)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert len(lines) == 3  # each is validated, and there is no bar
    assert "epoch 3 of 3, step 3 of 3: loss" in lines[-1]
    assert train(tiny(), splits, tmp_path / "run", given).history == run.history  # resumed with the same choices
    with pytest.raises(OutputError, match="another recipe"):
        train(tiny(), splits, tmp_path / "run", given | {"lr": 0.5})
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        train(tiny(), splits, tmp_path / "other", {"epoch": 3})


def test_many_images_keep_the_default_recipe(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FEW", 7)
    given = {"crop": (32, 32), "epochs": 1}
    train(tiny(), splits, tmp_path / "run", given)
    assert Recipe.from_json((tmp_path / "run" / "recipe.json").read_text()) == replace(Recipe(), **given)


def test_the_time_is_told_after_three_steps(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("isanet.training.progress.WORTH_TELLING", 0)
    with caplog.at_level(logging.INFO, "isanet"):
        finetune(tiny(), *splits, {"crop": (32, 32), "epochs": 9}, tmp_path / "run", device="cpu", workers=0)
    (line,) = [line for line in caplog.messages if " s a step, " in line]
    assert "for the other 5, and the validations" in line
    assert "epochs=" in line


# --- findings


def steps(*miou: float) -> list[HistoryRow]:
    """Ten validations in a hundred steps."""
    return [
        HistoryRow(step, step / 10, 0.5, 0.01, 1.0, miou[step // 10 - 1] if step % 10 == 0 else float("nan"))
        for step in range(1, 101)
    ]


def square(confusion: list[list[int]]) -> Report:
    """A report on classes a, b, c."""
    count = len(confusion)
    return make(confusion, ("a", "b", "c")[:count], palette=((0, 0, 0),) * count)


FLAT = steps(*[0.5] * 10)


def test_a_class_that_is_never_predicted_is_found() -> None:
    report = square([[90, 7, 0], [2, 60, 0], [1, 3, 0]])
    (found,) = findings(report, FLAT, Recipe(), {})
    assert found.startswith(f"{report.classes[2]} is never predicted: 2.45 % of the pixels; try class_weights=balanced")
    (found,) = findings(report, FLAT, Recipe(class_weights=(1.0, 1.0, 9.0)), {})
    assert "class_weights" not in found


def test_a_class_that_is_taken_for_another_is_found() -> None:
    report = square([[90, 0, 0], [0, 60, 0], [0, 40, 60]])
    (found,) = findings(report, FLAT, Recipe(), {})
    assert found.startswith(f"{report.classes[2]} is taken for {report.classes[1]} in 40 % of its pixels")
    assert findings(square([[90, 0, 0], [0, 60, 0], [0, 20, 80]]), FLAT, Recipe(), {}) == ()


def test_a_single_class_is_taken_for_no_other() -> None:
    assert findings(square([[50]]), FLAT, Recipe(), {}) == ()


def test_a_validation_that_still_rises_is_found() -> None:
    report = square([[90, 0], [0, 60]])
    rising = steps(*[0.3 + 0.03 * number for number in range(10)])
    (found,) = findings(report, rising, Recipe(epochs=10), {})
    assert found == "the validation mIoU still rises (51.0 to 57.0 in the last fifth): try more epochs, epochs=20"
    assert findings(report, FLAT, Recipe(), {}) == ()


def test_masks_that_disagree_with_all_others_are_found() -> None:
    accuracy = {f"{number}": 0.9 + 0.001 * number for number in range(20)}
    assert findings(None, FLAT, Recipe(), accuracy) == ()
    (found,) = findings(None, FLAT, Recipe(), accuracy | {"7": 0.4, "11": 0.6})
    assert found.startswith("the masks of 11, 7 disagree")


def test_a_wrong_mask_is_found_among_the_training_masks(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", count=12)
    wrong = root / "masks" / "train" / "5.png"
    Image.open(wrong).point([2, 0, 1] + [255] * 253).save(wrong)
    model: Any = ColorModel(custom_space(CLASSES, COLORS))
    accuracy = training_accuracy(Segmenter(model, device="cpu"), Folder(root, "train"))
    (found,) = findings(None, FLAT, Recipe(), accuracy)
    assert found == "the mask of 5 disagrees with what the model learned from all others: look at it"
