"""Masks of one class beside ignored pixels: refused, by a message whose arguments read them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet import datasets
from isanet.datasets import Folder, wrong_arguments
from isanet.datasets.mask_check import check_masks
from isanet.datasets.wrapped import Wrapped
from isanet.datasets.wrong_arguments import read_until_two_classes
from isanet.errors import DatasetError

PAIR = ("background", "cat")


def write(root: Path, *masks: Any, classes: tuple[str, ...] = PAIR, suffix: str = "") -> Path:
    """A folder of black images with these masks, values or RGB."""
    for number, mask in enumerate(masks):
        pixels = np.asarray(mask)
        for kind, image in (("images", np.zeros((*pixels.shape[:2], 3), np.uint8)), ("masks", pixels)):
            path = root / kind / f"{number:02}{suffix if kind == 'masks' else ''}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (root / "classes.txt").write_text("\n".join(classes))
    return root


def halves(low: int, high: int, dtype: type = np.uint8) -> Any:
    mask = np.full((8, 8), low, dtype)
    mask[:4] = high
    return mask


def refused(dataset: datasets.SegmentationDataset) -> str:
    with pytest.raises(DatasetError) as caught:
        read_until_two_classes(dataset, range(len(dataset)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "arguments"),
    [
        (0, 255, np.uint8, {}),
        (1, 255, np.uint8, {}),
        (0, 65535, np.uint16, {"ignore": (65535,)}),
        (0, 255, np.uint8, {"ignore": "rest"}),
        (0, 128, np.uint8, {"ignore": "rest"}),
    ],
)
def test_the_arguments_that_are_named_read_the_masks(
    tmp_path: Path, low: int, high: int, dtype: type, arguments: dict[str, Any]
) -> None:
    root, mask = write(tmp_path, *2 * [halves(low, high, dtype)]), halves(low, high, dtype)
    message = refused(Folder(root, **arguments))
    assert f"ids=({low}, {high}), ignore=() (--ids {low},{high} --ignore none)" in message
    assert "only one of 2 classes occurs" in message
    assert "50.00 % of the pixels are ignored" in message
    assert "allow_absent=True (--allow-absent)" in message
    right = Folder(root, ids=(low, high), ignore=())
    read_until_two_classes(right, range(2))
    assert (np.asarray(right[0][1]) == (mask == high)).all()


def test_the_text_is_that_of_the_check(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 255))
    (found,) = check_masks(root / "masks", classes=2, progress=False).findings
    assert f"{found.text} {found.fix} ({found.option})" in refused(Folder(root))


def test_black_and_white_in_rgb_is_read_by_colors(tmp_path: Path) -> None:
    root = write(tmp_path, np.repeat(halves(0, 255)[..., None], 3, axis=2))
    message = refused(Folder(root, colors=((0, 0, 0), (200, 0, 0))))
    assert "colors=((0, 0, 0), (255, 255, 255)) (--colors 000000,ffffff)" in message
    read_until_two_classes(Folder(root, colors=((0, 0, 0), (255, 255, 255))), [0])


def test_masks_of_a_split_in_one_folder_with_their_images(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 255), suffix="_mask")
    for path in (root / "masks").iterdir():
        path.rename(root / "images" / path.name)
    assert "--ids 0,255 --ignore none" in refused(Folder(root, masks="images", mask_suffix="_mask"))


@pytest.mark.parametrize("values", [(0, 0), (3, 3), (3, 255), (0, 255)])
def test_any_list_of_classes_of_which_one_occurs(tmp_path: Path, values: tuple[int, int]) -> None:
    classes = tuple("abcde")
    message = refused(Folder(write(tmp_path, halves(*values), halves(values[0], values[0]), classes=classes)))
    assert (
        f"only one of 5 classes occurs in the masks of {tmp_path.name} in {tmp_path}: {classes[values[0]]}" in message
    )
    assert "ids=" not in message  # five classes are not two


def test_a_second_class_ends_the_reading(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 0), halves(0, 1), halves(0, 0))
    (root / "masks/02.png").write_bytes(b"never read")
    read_until_two_classes(Folder(root), range(3))


def test_a_mask_that_cannot_be_read_is_left_to_its_turn(tmp_path: Path) -> None:
    root = write(tmp_path, halves(0, 255), halves(0, 255))
    (root / "masks/01.png").write_bytes(b"<html>")
    read_until_two_classes(Folder(root), range(2))


@pytest.mark.parametrize("classes", [("a",), PAIR])
def test_masks_that_are_all_ignored_have_a_message_of_their_own(tmp_path: Path, classes: tuple[str, ...]) -> None:
    message = refused(Folder(write(tmp_path, halves(255, 255), classes=classes)))
    assert re.search(r"all pixels in the masks of .* are ignored, so nothing can be learned or measured", message)
    assert "--allow-absent" not in message


def test_one_class_is_enough_where_there_is_one(tmp_path: Path) -> None:
    read_until_two_classes(Folder(write(tmp_path, halves(0, 255), classes=("cat",))), [0])


def test_other_kinds_of_datasets_are_not_told_arguments_that_they_do_not_take() -> None:
    class Pairs(list[Any]):
        classes = PAIR

    pair = (Image.new("RGB", (8, 8)), Image.fromarray(halves(0, 255)))
    message = refused(Wrapped(Pairs([pair, pair])))
    assert "if 255 is meant to be a class, give it that class's index" in message
    assert "--ids" not in message


def test_a_long_reading_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wrong_arguments, "LOG_AFTER", 2)
    root = write(tmp_path, *3 * [halves(0, 0)], halves(0, 1))
    with caplog.at_level(logging.INFO, "isanet"):
        read_until_two_classes(Folder(root), range(4))
    assert "the first 2 masks" in caplog.text
