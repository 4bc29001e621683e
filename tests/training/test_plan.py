"""What is checked and decided before an image is read."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isanet.datasets import Folder
from isanet.model import ISANet
from isanet.training import plan, preflight
from isanet.training.finetune import finetune
from tests.helpers.training import CLASSES, PREPROCESSING, RECIPE, TINY, tiny, train


def test_a_model_given_as_a_path_gets_the_classes_of_the_data(
    splits: tuple[Folder, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    other = ISANet(**TINY, classes=["sea", "snow"], preprocessing=PREPROCESSING)
    other.save_pretrained(tmp_path / "other")
    with caplog.at_level(logging.INFO, "isanet"):
        run = train(str(tmp_path / "other"), splits, tmp_path / "run", replace(RECIPE, lr=1e-12))
    assert run.model.classes == CLASSES
    assert run.model.palette == splits[0].palette
    assert "randomly initialized, except for sea" in caplog.text
    row = run.model.classifier.weight[CLASSES.index("sea")]
    torch.testing.assert_close(row, other.classifier.weight[0], atol=1e-8, rtol=0)  # the learning rate is nearly 0
    assert run.model.provenance["started_from"] == "other"
    start = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert run.model.provenance["started_from_sha256"] == hashlib.sha256(start).hexdigest()


def test_other_classes_are_an_error(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    other = ISANet(**TINY, classes=["sea", "snow", "sand"], preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match="snow"):
        train(other, splits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_in_both_datasets_are_a_warning(
    splits: tuple[Folder, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(tiny(), (splits[0], splits[0]), tmp_path / "run", replace(RECIPE, epochs=1))
    assert "7 images are in both the training and the validation data" in caplog.text
    assert "of which 7 are in the training data too" in run.model.provenance["measured"]


def test_a_batch_that_does_not_fit_into_memory_is_an_error(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, batch_size=8, epochs=8, crop=(256, 256))
    needed = preflight.step_memory(tiny(), recipe, 8)
    monkeypatch.setattr(plan, "free_memory", lambda device: needed * 2 // 3)
    with pytest.raises(ValueError, match=r"needs about .*accumulate=2"):
        train(tiny(), splits, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_batch_norm_with_a_batch_of_one_is_a_warning(
    splits: tuple[Folder, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny(), splits, tmp_path / "run", replace(RECIPE, batch_size=1, epochs=1))
    assert "a single image at a time" in caplog.text
    caplog.clear()
    train(tiny(), splits, tmp_path / "frozen", replace(RECIPE, batch_size=1, epochs=1, freeze_batch_norm=True))
    assert "a single image at a time" not in caplog.text


def test_steps_with_fewer_images_than_accumulation_steps_are_an_error(
    splits: tuple[Folder, Folder], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        train(tiny(), splits, tmp_path / "run", replace(RECIPE, batch_size=8, accumulate=8, epochs=1))


@pytest.mark.filterwarnings("ignore:.*no supported trackers:UserWarning")  # accelerate warns before our error
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda:1"}, "device must be"),
        ({"workers": -1}, "workers must be"),
        ({"recipe": replace(RECIPE, precision="float16")}, "float16 needs a GPU"),
        ({"trackers": ["nonsense"]}, "nonsense"),
        ({"trackers": ["comet_ml"]}, "comet_ml is not installed"),
        ({"recipe": replace(RECIPE, class_weights=(1.0, 2.0))}, "class_weights must be 3 numbers"),
    ],
)
def test_wrong_calls_are_errors(
    splits: tuple[Folder, Folder], tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny(), splits, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_only_datasets_of_the_package_are_accepted(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"isanet\.datasets"):
        finetune(tiny(), list(splits[0]), splits[1], RECIPE, tmp_path / "run")  # type: ignore[arg-type]
