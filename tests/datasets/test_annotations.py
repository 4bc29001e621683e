"""Exports of labelling tools open as they are: the same samples as the masks that they stand for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.datasets import Folder, import_masks, open_dataset, open_train_and_val
from isanet.labels import IGNORED
from tests.helpers.exports import CLASSES, EXPORTS, SHAPES, image_of, mask_of

NAMES = tuple(EXPORTS)


def masks_in(dataset: Any) -> dict[str, Any]:
    """Masks by the last part of the key; images are compared on the way."""
    masks = {}
    for index, key in enumerate(dataset.keys):
        name = key.rpartition("/")[2]
        image, masks[name] = dataset.read(index)
        np.testing.assert_array_equal(image, image_of(name))
    return masks


def check(dataset: Any, names: str = "abcdef") -> None:
    found = masks_in(dataset)
    assert sorted(found) == sorted(names)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, mask_of(name), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_export_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    write, palette, has_splits = EXPORTS[name]
    write(tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    assert dataset.classes == CLASSES
    assert dataset.palette == palette
    check(dataset)
    check(pickle.loads(pickle.dumps(dataset)))
    train, val = open_train_and_val(tmp_path / "set")
    assert train.classes == val.classes == CLASSES
    if has_splits:
        check(train, "abcd")
        check(val, "ef")
    else:
        assert (len(train), len(val)) == (5, 1)
    assert dataset.fingerprint([0]) == open_dataset(tmp_path / "set").fingerprint([0])


@pytest.mark.parametrize("name", NAMES)
def test_import_masks_writes_a_plain_folder(tmp_path: Path, name: str) -> None:
    write, palette, has_splits = EXPORTS[name]
    write(tmp_path / "set")
    found = import_masks(tmp_path / "set", tmp_path / "new" / "plain")
    dataset = open_dataset(tmp_path / "new" / "plain")
    assert type(dataset) is Folder
    assert (dataset.classes, dataset.palette) == (CLASSES, palette)
    check(dataset)
    train, val = open_train_and_val(tmp_path / "new" / "plain")
    assert (train.split, val.split, len(train) + len(val)) == ("train", "val", 6)
    if has_splits:
        check(train, "abcd")
    masks = [mask_of(each) for each in SHAPES]
    assert found.pixels == tuple(sum(int((mask == i).sum()) for mask in masks) for i in (0, 1, 2, 3, IGNORED))
    assert found.splits == {"train": len(train), "val": len(val)}
    with Image.open(tmp_path / "new" / "plain" / "masks" / "a.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), np.array(palette)[mask_of("a")])
    with Image.open(tmp_path / "new" / "plain" / "overlays.png") as sheet:
        assert sheet.mode == "RGB"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["plain"]
