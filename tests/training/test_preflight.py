"""Masks and memory are checked before the first step."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet.datasets import Folder
from isanet.errors import DatasetError
from isanet.labels import IGNORED
from isanet.training import freeze, preflight
from tests.helpers.training import RECIPE, tiny, train


def test_a_wrong_mask_is_an_error_before_the_first_step(data: Path, tmp_path: Path) -> None:
    path = data / "masks" / "train" / "5.png"
    mask = np.array(Image.open(path))
    mask[3, 4] = 77
    Image.fromarray(mask).save(path)
    with pytest.raises(DatasetError, match=r"5\.png.*77"):
        train(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run", workers=1)
    assert not (tmp_path / "run").exists()


def test_masks_with_only_ignored_pixels_are_an_error(data: Path, tmp_path: Path) -> None:
    for path in (data / "masks" / "train").iterdir():
        Image.new("L", (48, 40), IGNORED).save(path)
    with pytest.raises(DatasetError, match=r"all pixels .* are ignored"):
        train(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_class_is_refused_before_the_first_step_unless_allowed(data: Path, tmp_path: Path, split: str) -> None:
    for path in (data / "masks" / split).iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 0, IGNORED, 0).astype(np.uint8)).save(path)
    sets = Folder(data, "train"), Folder(data, "val")
    with pytest.raises(DatasetError, match=rf"only one of 3 classes occurs in the masks of data {split} .*: grass"):
        train(tiny(), sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = train(tiny(), sets, tmp_path / "run", allow_absent=True)
    assert run.report.num_images == 3
    assert train(tiny(), sets, tmp_path / "run").best == run.best, "a resumed run is not checked again"


def test_class_shares_are_logged_and_absent_classes_are_a_warning(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = np.zeros(3)
    for path in (data / "masks" / "train").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 2] = 0
        Image.fromarray(mask).save(path)
        expected += [(mask == index).mean() for index in range(3)]
    with caplog.at_level(logging.INFO, "isanet"):
        train(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run")
    lines = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if line.split()[-1].isdigit()}
    assert float(lines["grass"][0]) == pytest.approx(100 * expected[0] / 7, abs=0.006)
    assert "no training mask has sea" in caplog.text


@pytest.mark.parametrize("frozen", [False, True])
def test_the_memory_of_a_step_is_estimated(frozen: bool) -> None:
    """Compared with what autograd actually saves on the CPU."""
    model = tiny().train()
    if frozen:
        freeze(model, "backbone")
    recipe = replace(RECIPE, crop=(96, 128))
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, masks = torch.randn(3, 3, 96, 128), torch.randint(0, 3, (3, 96, 128))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        isanet.training.segmentation_loss(*model(images, aux=True), masks)
    real = sum(kept.values())
    foreseen = preflight.step_memory(model, recipe, 3)
    states = 12 * sum(parameter.numel() for parameter in model.parameters())
    assert 0.7 * real < foreseen < 1.4 * (real + states)
