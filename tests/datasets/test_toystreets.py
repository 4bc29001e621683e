"""ToyStreets as a dataset: it has what other datasets have, and its splits and seeds never overlap."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from isanet import datasets
from isanet.datasets import SegmentationDataset, ToyStreets
from isanet.errors import DatasetError
from isanet.evaluation.evaluate import evaluate
from isanet.toystreets import SPACE, SPLITS, scene_seed
from tests.helpers.color_model import ColorModel

SMALL = (64, 128)


def test_toystreets_is_a_dataset_like_others() -> None:
    dataset = ToyStreets(3, size=SMALL, split="val")
    assert isinstance(dataset, SegmentationDataset)
    assert (dataset.name, dataset.split, len(dataset)) == ("ToyStreets", "val", 3)
    assert (dataset.has_masks, dataset.official_size, dataset.root) == (True, None, Path())
    assert (dataset.label_space, dataset.classes, dataset.palette) == (SPACE, SPACE.classes, SPACE.palette)
    assert len(set(dataset.keys)) == 3
    assert repr(dataset) == "ToyStreets(val, 3 images, 11 classes: road, sidewalk, building, …)"
    image, mask = dataset[1]
    assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (128, 64), "L", (128, 64))
    pixels, labels = dataset.read(1)
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(np.asarray(image), pixels)
    np.testing.assert_array_equal(np.asarray(mask), labels)
    np.testing.assert_array_equal(dataset.read(-2)[1], labels)
    with pytest.raises(IndexError):
        dataset.read(3)
    with pytest.raises(DatasetError, match="no files"):
        dataset.image_path(0)
    with pytest.raises(DatasetError, match="no files"):
        dataset.mask_path(0)


def test_transforms_are_those_of_torchvision() -> None:
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToDtype({tv_tensors.Image: torch.float32, "others": None})])

    def augment(image: object, mask: object) -> object:
        return flip(tv_tensors.Image(image), tv_tensors.Mask(mask))

    image, mask = ToyStreets(1, size=SMALL, transforms=augment)[0]
    plain, labels = ToyStreets(1, size=SMALL).read(0)
    np.testing.assert_array_equal(mask.squeeze().numpy(), labels[:, ::-1])
    np.testing.assert_array_equal(image.numpy(), plain[:, ::-1].transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 2**32 + 1}, {"seed": -1}, {"size": (31, 64)}, {"split": "training"}]
)
def test_invalid_arguments_of_toystreets_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DatasetError, match="ToyStreets"):
        ToyStreets(**wrong)  # type: ignore[arg-type]


def test_splits_and_seeds_never_overlap_whatever_the_count() -> None:
    ranges = sorted(
        (scene_seed(seed, split, 0), scene_seed(seed, split, 2**32 - 1)) for seed in range(9) for split in SPLITS
    )
    assert ranges[0][0] == 0
    assert all(last < start for (_, last), (start, _) in pairwise(ranges))
    firsts = [ToyStreets(1, seed, SMALL, split).read(0)[1].tobytes() for seed in (0, 1) for split in SPLITS]
    assert len(set(firsts)) == 6
    keys = {
        ToyStreets(1, seed, size, split).keys[0] for seed in (0, 1) for size in (SMALL, (32, 32)) for split in SPLITS
    }
    assert len(keys) == 12


def test_the_count_does_not_change_the_scenes() -> None:
    few, many = ToyStreets(2, size=SMALL), ToyStreets(500, size=SMALL)
    np.testing.assert_array_equal(few.read(1)[0], many.read(1)[0])
    assert few.keys == many.keys[:2]


def test_workers_and_pickled_copies_draw_the_same_scenes() -> None:
    dataset = ToyStreets(4, size=SMALL, transforms=_tensors)
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy.keys, copy.label_space) == (dataset.keys, dataset.label_space)
    loader = DataLoader(copy, batch_size=2, num_workers=2)
    found = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    wanted = [torch.stack(parts) for parts in zip(*(dataset[i] for i in range(4)), strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def _tensors(image: object, mask: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(mask))


def test_it_is_evaluated_like_any_dataset(tmp_path: Path) -> None:
    model: Any = ColorModel(SPACE, short_edge=64)
    options: dict[str, Any] = {"workers": 0, "device": "cpu", "progress": False}
    report = evaluate(model, datasets.ToyStreets(3, size=(64, 128), split="val"), output=tmp_path, **options)
    assert (report.dataset, report.split, report.num_images, report.ignored_pixels) == ("ToyStreets", "val", 3, 0)
    assert report.confusion.sum() == 3 * 64 * 128
    prints = [
        datasets.ToyStreets(3, seed, (64, width), split).fingerprint(range(3))
        for seed, width, split in ((0, 128, "val"), (1, 128, "val"), (0, 64, "val"), (0, 128, "test"))
    ]
    assert len(set(prints)) == 4
