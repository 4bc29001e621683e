"""The layout of a folder is recognized, or the message says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from isanet.datasets import ADE20K, Folder, open_dataset, open_train_and_val
from isanet.errors import DatasetError
from tests.datasets.test_base import LAYOUTS, augment
from tests.helpers import replicas
from tests.helpers.training import write_data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognized_or_given(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    make(tmp_path)
    assert type(open_dataset(tmp_path)) is kind
    assert type(open_dataset(tmp_path, layout=layout)) is kind
    other = "voc" if layout != "voc" else "ade20k"
    with pytest.raises(DatasetError, match="does not hold"):
        open_dataset(tmp_path, layout=other)


def test_options_go_to_the_class_or_are_refused(tmp_path: Path) -> None:
    expected = replicas.sbd(tmp_path, replicas.voc(tmp_path))
    dataset = open_dataset(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE", transforms=augment)
    assert dataset.keys == list(expected)
    assert dataset.transforms is augment
    with pytest.raises(DatasetError, match=r"read as VOC2012 \(layout='voc'\), which has no argument ids="):
        open_dataset(tmp_path, ids=[1])


def test_no_layout_and_several_layouts_are_errors(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match=r"no known layout.*VOC2012: .*ADE20K: .*Cityscapes: .*Folder: .* images$"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"'yolo'.*auto, voc, ade20k, cityscapes, context59, folder, cvat"):
        open_dataset(tmp_path, layout="yolo")
    replicas.voc(tmp_path)
    replicas.ade20k(tmp_path)
    with pytest.raises(DatasetError, match=r"several datasets \(voc, ade20k\)"):
        open_dataset(tmp_path)
    assert type(open_dataset(tmp_path, layout="ade20k")) is ADE20K


def test_a_folder_with_classes_txt_is_never_an_official_dataset(tmp_path: Path) -> None:
    replicas.folder(tmp_path, splits=("validation",))
    (tmp_path / "masks").rename(tmp_path / "annotations")
    with pytest.raises(
        DatasetError, match=r"has a classes\.txt.* images= and masks=.* layout=; .* holds: annotations, "
    ):
        open_dataset(tmp_path)
    assert type(open_dataset(tmp_path, masks="annotations")) is Folder
    replicas.ade20k(tmp_path / "set")
    (tmp_path / "set" / "classes.txt").write_text("a")
    with pytest.raises(DatasetError, match=r"has a classes\.txt"):
        open_dataset(tmp_path / "set")
    assert type(open_dataset(tmp_path / "set", layout="ade20k")) is ADE20K


def test_a_folder_with_test_images_and_masks_is_not_ade20k(tmp_path: Path) -> None:
    replica = replicas.folder(tmp_path, splits=("testing",))["testing"]
    (tmp_path / "classes.txt").unlink()
    dataset = open_dataset(tmp_path, "testing", classes=replica.space.classes)
    assert (type(dataset), dataset.keys) == (Folder, replica.keys)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = replicas.folder(tmp_path / "set", splits=("train", "val"))
    monkeypatch.setenv("HOME", str(tmp_path))
    train, val = open_train_and_val("~/set")
    assert (train.split, val.split) == ("train", "val")
    assert [len(train), len(val)] == [len(splits["train"].keys), len(splits["val"].keys)]
    _, val = open_train_and_val("~/set", "~/set", split="train")
    assert val.split == "val"


def test_a_split_without_masks_is_ignored(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "images" / "test").mkdir()
    Image.new("RGB", (48, 40)).save(data / "images" / "test" / "a.png")
    train, val = open_train_and_val(data)
    assert (len(train), train.split, len(val), val.split) == (7, "train", 3, "val")
