"""Parts of datasets, and datasets of others, train and measure a model as the package's own do."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from isanet.datasets import Folder, Wrapped
from isanet.errors import DatasetError, OutputError
from tests.helpers.evaluating import quick_evaluate
from tests.helpers.training import CLASSES, RECIPE, tiny, train

SHORT = replace(RECIPE, epochs=1)


class Pairs(torch.utils.data.Dataset[Any]):
    """The samples of a dataset and nothing else."""

    classes = CLASSES

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def test_parts_and_other_datasets_are_measured_alike(splits: tuple[Folder, Folder]) -> None:
    whole, model = splits[0], tiny()
    expected = quick_evaluate(model, whole._subset("part", [4, 1]))
    for given in (
        Subset(whole, [4, 1]),
        Subset(Subset(whole, [1, 4]), [1, 0]),
        Subset(Pairs(whole), [4, 1]),
        Wrapped(Subset(whole, [4, 1]), CLASSES),
    ):
        for workers in (0, 1):
            report = quick_evaluate(model, given, workers=workers)  # type: ignore[arg-type]
            np.testing.assert_array_equal(report.confusion, expected.confusion)
            assert report.num_images == report.dataset_size == 2
    assert quick_evaluate(model, Subset(whole, [0, 0])).num_images == 2  # as drawn with replacement


def test_they_train_alike(tmp_path: Path, splits: tuple[Folder, Folder]) -> None:
    whole, model = splits[0], tiny()
    given: dict[str, Any] = {
        "own": (whole._subset("a", [0, 1, 2]), whole._subset("b", [3, 4])),
        "parts": (Subset(whole, [0, 1, 2]), Subset(whole, [3, 4])),
        "pairs": (Subset(Pairs(whole), [0, 1, 2]), Subset(Pairs(whole), [3, 4])),
    }
    states = [train(model, sets, tmp_path / name, SHORT).model.state_dict() for name, sets in given.items()]
    for state in states:
        assert all(torch.equal(state[key], states[0][key]) for key in states[0])


def test_a_run_on_a_part_does_not_resume_on_another(tmp_path: Path, splits: tuple[Folder, Folder]) -> None:
    for name, whole in (("own", splits[0]), ("pairs", Pairs(splits[0]))):
        sets: Any = (Subset(whole, [0, 1]), Subset(whole, [2]))
        train(tiny(), sets, tmp_path / name, SHORT)
        train(tiny(), sets, tmp_path / name, SHORT)  # finished: nothing is left to do
        with pytest.raises(OutputError, match="another train, which was kept"):
            train(tiny(), (Subset(whole, [0, 3]), sets[1]), tmp_path / name, SHORT)
        with pytest.raises(OutputError, match="another val"):
            train(tiny(), (sets[0], Subset(whole, [3])), tmp_path / name, SHORT)
        quick_evaluate(tiny(), sets[0], output=tmp_path / f"{name}_report")


def test_images_in_both_parts_are_noticed(
    tmp_path: Path, splits: tuple[Folder, Folder], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "isanet")
    pairs = Pairs(splits[0])
    train(tiny(), (pairs, Pairs(splits[1])), tmp_path / "a", SHORT)  # type: ignore[arg-type]
    assert "in both the training and the validation data" not in caplog.text
    train(tiny(), (Subset(pairs, [0, 1, 2]), Subset(pairs, [2, 3])), tmp_path / "b", SHORT)  # type: ignore[arg-type]
    assert "1 images are in both the training and the validation data" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_sample_ends_the_run_before_its_first_step(
    tmp_path: Path, splits: tuple[Folder, Folder], workers: int
) -> None:
    class Wrong(Pairs):
        def __getitem__(self, index: int) -> Any:
            image, mask = self.dataset[index]
            return image, mask.convert("RGB") if index == 4 else mask

    with pytest.raises(DatasetError, match=r"^the mask of sample 4 of Wrong is a PIL image of mode RGB; [^\n]*$"):
        train(tiny(), (Wrong(splits[0]), splits[1]), tmp_path / "run", workers=workers)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    with pytest.raises(DatasetError, match=r"^the mask of sample 4 of Wrong"):
        quick_evaluate(tiny(), Wrong(splits[0]), workers=workers)  # type: ignore[arg-type]
