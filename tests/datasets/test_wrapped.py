"""Datasets of other libraries, and parts of any, are taken; what they yield is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, random_split
from torchvision.datasets import VOCSegmentation

from isanet.datasets import VOC2012, Folder, ToyStreets, Wrapped
from isanet.datasets.wrapped import as_dataset
from isanet.errors import DatasetError, ImageError
from isanet.labels import LABEL_SPACES
from tests.helpers import replicas

CLASSES = ("ground", "thing")


class Pairs:
    """The least that a map-style dataset is."""

    def __init__(self, *pairs: Any, classes: Any = CLASSES) -> None:
        self.pairs = pairs
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


def image(width: int = 4, height: int = 3, value: int = 9) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def mask(width: int = 4, height: int = 3, value: int = 1) -> Image.Image:
    return Image.new("L", (width, height), value)


def pairs(count: int) -> Pairs:
    return Pairs(*((image(value=index), mask(value=index % 2)) for index in range(count)))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    replicas.folder(tmp_path, count=6)
    return Folder(tmp_path)


# --- parts


def test_a_part_of_a_dataset_is_read_as_the_dataset_reads_it(folder: Folder) -> None:
    part = as_dataset(Subset(Subset(folder, [5, 3, 1, 0]), [2, -1, 0]))
    assert isinstance(part, Folder)
    assert part.keys == [folder.keys[index] for index in (1, 0, 5)]
    for index, whole in enumerate((1, 0, 5)):
        assert part.image_path(index) == folder.image_path(whole)
        for ours, theirs in zip(part.read(index), folder.read(whole), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert (part.split, part.classes) == ("3 of 6", folder.classes)
    assert len(folder) == 6


def test_parts_of_drawn_scenes_are_the_same_scenes() -> None:
    scenes = ToyStreets(4, split="val")
    part = as_dataset(Subset(scenes, [2]))
    assert part.split == "val, 1 of 4"
    np.testing.assert_array_equal(part.read(0)[0], scenes.read(2)[0])
    train, val = scenes.held_out(0.5)
    assert sorted(train.keys + val.keys) == scenes.keys


@pytest.mark.parametrize("kind", ["own", "wrapped"])
def test_the_fingerprint_has_the_indices_of_a_part(folder: Folder, kind: str) -> None:
    whole: Any = folder if kind == "own" else pairs(6)
    prints = []
    for seed in (0, 1, 0):
        for part in random_split(whole, [4, 2], torch.Generator().manual_seed(seed)):
            dataset = as_dataset(part)
            prints.append(dataset.fingerprint(range(len(dataset))))
    assert prints[:2] == prints[4:]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("indices", "says"), [([], "no sample"), ([6], "out of range"), (["a"], "whole indices"), (torch.ones(1), "whole")]
)
def test_wrong_indices_are_said(folder: Folder, indices: Any, says: str) -> None:
    for whole in (folder, pairs(6)):
        with pytest.raises(DatasetError, match=says):
            as_dataset(Subset(whole, indices))  # type: ignore[arg-type]


# --- datasets of others


@pytest.mark.parametrize("given", ["voc21", LABEL_SPACES["voc21"].classes, "attribute"])
def test_voc_of_torchvision_is_that_of_this_package(tmp_path: Path, given: Any) -> None:
    replica = replicas.voc(tmp_path / "VOCdevkit" / "VOC2012", home=".", val=3)["val"]
    theirs = VOCSegmentation(str(tmp_path), "2012", "val")
    if given == "attribute":
        theirs.classes = LABEL_SPACES["voc21"].classes
    dataset = as_dataset(theirs) if given == "attribute" else Wrapped(theirs, given)
    ours = VOC2012(tmp_path / "VOCdevkit", "val")
    assert (dataset.classes, dataset.palette) == (ours.classes, ours.palette)
    assert (len(dataset), dataset.name, dataset.split) == (len(replica.keys), "VOCSegmentation", None)
    for index in range(len(dataset)):
        for one, other in zip(dataset.read(index), ours.read(index), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64, bool])
def test_arrays_and_every_mode_of_values_are_taken(dtype: Any) -> None:
    values = np.array([[0, 1], [1, 0]])
    dataset = as_dataset(Pairs((np.full((2, 2, 3), 7, np.uint8), values.astype(dtype))))
    pixels, labels = dataset.read(0)
    assert pixels.shape == (2, 2, 3)
    assert labels is not None
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, values)
    for mode in ("1", "L", "P", "I"):
        drawn = Image.fromarray(values.astype(np.uint8)).convert(mode) if mode != "P" else Image.new("P", (2, 2), 1)
        assert as_dataset(Pairs((image(2, 2), drawn))).read(0)[1] is not None


def test_classes_are_found_on_any_level() -> None:
    part: Any = Subset(Subset(Pairs((image(), mask()), classes=None), [0]), [0])  # type: ignore[arg-type]
    part.dataset.classes = CLASSES
    assert as_dataset(part).classes == CLASSES
    assert Wrapped(ConcatDataset([pairs(2), pairs(1)]), CLASSES).keys == [  # type: ignore[list-item]
        "000000",
        "000001",
        "000002",
    ]


def test_a_part_that_does_more_than_select_is_asked_for_its_samples() -> None:
    class Bright(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            given, labels = super().__getitem__(index)
            return given.point(lambda value: 255), labels

        def __getitems__(self, indices: Any) -> Any:
            return [self[index] for index in indices]

    part: Any = Bright(pairs(4), [3, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Wrapped\(dataset, classes="):
        as_dataset(part)
    assert Wrapped(part, CLASSES).read(0)[0].min() == 255
    other = Wrapped(Bright(pairs(4), [3, 2]), CLASSES)  # type: ignore[arg-type]
    assert Wrapped(part, CLASSES).fingerprint([0, 1]) != other.fingerprint([0, 1])


def test_the_fingerprint_changes_with_the_content_but_not_with_random_transforms() -> None:
    class Random(Pairs):
        def __getitem__(self, index: int) -> Any:
            return Image.fromarray(np.random.default_rng().integers(0, 256, (3, 4, 3), np.uint8)), mask()

    def of(dataset: Any) -> str:
        return as_dataset(dataset).fingerprint(range(len(dataset)))

    assert of(pairs(20)) == of(pairs(20)) != of(pairs(21))
    assert of(Pairs((image(), mask()))) != of(Pairs((image(value=1), mask())))
    assert of(Random(0, 0)) == of(Random(0, 0))


# --- what is not one


class Stream(IterableDataset[Any]):
    classes = CLASSES

    def __iter__(self) -> Any:
        yield image(), mask()


@pytest.mark.parametrize(
    "given",
    [Stream(), None, 3, DataLoader([0]), Pairs(0, classes=None), [(image(), mask())]],
    ids=lambda given: type(given).__name__,
)
def test_what_cannot_be_taken_is_told_the_ways(given: Any) -> None:
    with pytest.raises(ValueError, match=r"isanet.datasets, got \w+.*isanet.datasets.Wrapped.*held_out"):
        as_dataset(given)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("voc22", "voc22"),
        ((), "different names"),
        (("a", "a"), "different names"),
        ([1, 2], "not names"),
        (3, "classes of Pairs"),
        ([str(index) for index in range(256)], "256 classes"),
    ],
)
def test_wrong_classes_are_said(classes: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        as_dataset(Pairs((image(), mask()), classes=classes))


WRONG = {
    "a tuple of 3": (
        (image(), mask(), 3),
        r"pair \(image, mask\) of sample 1 of Pairs, got a tuple of 3 \(Image, Image, int\)",
    ),
    "a dict": ({"image": image(), "label": mask()}, "got a dict of image, label"),
    "an image alone": (image(), "got a PIL image of mode RGB"),
    "a path": (("a.jpg", mask()), "the image of sample 1 of Pairs is str 'a.jpg'; expected a PIL image"),
    "a tensor": ((torch.zeros(3, 3, 4), mask()), r"Tensor of torch.float32 of shape \(3, 3, 4\).*transforms"),
    "another size": ((image(), mask(5, 3)), "image of sample 1 of Pairs is 4x3, and its mask .* is 5x3"),
    "a turned mask": ((image(), mask(3, 4)), "EXIF orientation"),
    "an RGB mask": ((image(), image()), "mask of sample 1 of Pairs is a PIL image of mode RGB; expected class indices"),
    "a float mask": ((image(), np.zeros((3, 4))), r"ndarray of float64 of shape \(3, 4\); expected class indices"),
    "a float PIL mask": ((image(), Image.new("F", (4, 3))), "mode F; expected class indices"),
    "a mask of 3 dimensions": ((image(), np.zeros((3, 4, 1), int)), r"of shape \(3, 4, 1\)"),
    "a tensor as mask": ((image(), torch.zeros(3, 4)), "is Tensor of torch.float32"),
    "no mask": ((image(), None), "is NoneType None; expected class indices"),
    "another class": ((image(), mask(value=2)), r"of sample 1 of Pairs holds 1 value .*: 2 \(12 pixels\); .* 0 to 1"),
    "a negative class": ((image(), np.full((3, 4), -1)), r"-1 \(12 pixels\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_dataset_yields_is_checked(wrong: str) -> None:
    sample, says = WRONG[wrong]
    dataset = as_dataset(Pairs((image(), mask()), sample))
    dataset.read(0)
    with pytest.raises(DatasetError, match=says):
        dataset.read(1)


def test_wrong_arrays_and_too_large_images_are_said_as_of_every_image() -> None:
    with pytest.raises(ImageError, match=r"image of sample 0 of Pairs: expected a uint8 RGB array.*float64"):
        as_dataset(Pairs((np.zeros((3, 4, 3)), mask()))).read(0)
    with pytest.raises(ImageError, match=r"image of sample 0 of Pairs.*limit of 11"):
        Wrapped(Pairs((image(), mask())), max_pixels=11).read(0)


def test_errors_of_a_dataset_name_the_sample() -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            raise FileNotFoundError("no file x.jpg")

    with pytest.raises(DatasetError, match=r"sample 0 of Broken cannot be read: FileNotFoundError: no file x.jpg"):
        as_dataset(Broken(0)).read(0)
    with pytest.raises(IndexError):
        as_dataset(pairs(1)).read(1)
    with pytest.raises(DatasetError, match="files of Pairs"):
        as_dataset(pairs(1)).image_path(0)


def test_a_path_is_no_dataset_but_opens_one() -> None:
    for path in ("streets", Path("streets")):
        with pytest.raises(ValueError, match=r"pass isanet\.datasets\.open_dataset\('streets'\)"):
            as_dataset(path)
