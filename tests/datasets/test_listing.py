"""Files, lists and pairs: what is harmless is read, what is wrong is named."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isanet.datasets import ADE20K, VOC2012, Cityscapes, Folder, listing, mask_check
from isanet.datasets.mask_check import check_masks
from isanet.errors import DatasetError
from isanet.inference.outputs import find_images
from tests.datasets.test_base import check
from tests.helpers import replicas


def test_nested_folders_links_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    replica = replicas.folder(root, nested=True)[None]
    assert replica.keys == ["a/pic 0.0", "a/pic 2.0", "b/pic 1.0", "b/pic 3.0"]
    check(Folder(root), replica)
    (root / "images" / "a" / "._pic 0.0.png").write_bytes(b"of macOS")
    (root / "images" / ".ipynb_checkpoints").mkdir()
    (root / "images" / ".ipynb_checkpoints" / "x.png").write_bytes(b"")
    (root / "images" / "Thumbs.db").write_bytes(b"")
    for kind in ("images", "masks"):
        (root / kind / "b").rename(tmp_path / f"{kind} elsewhere")
        (root / kind / "b").symlink_to(tmp_path / f"{kind} elsewhere", target_is_directory=True)
    check(Folder(root), replica)
    (root / "images" / "b" / "round").symlink_to(root / "images", target_is_directory=True)
    with pytest.raises(DatasetError, match=r"round is the same folder as"):
        Folder(root)


@pytest.mark.parametrize(
    "trap", ["CRLF", "byte order mark", "blank lines", "no newline at the end", "spaces", "second column"]
)
def test_harmless_lists_are_read(tmp_path: Path, trap: str) -> None:
    replica = replicas.voc(tmp_path, traps=[trap])["val"]
    check(VOC2012(tmp_path), replica)


def test_the_order_of_samples_is_that_of_the_list(tmp_path: Path) -> None:
    replica = replicas.voc(tmp_path)["val"]
    assert replica.list_file is not None
    replica.list_file.write_text("\n".join(reversed(replica.keys)))
    assert VOC2012(tmp_path).keys == replica.keys[::-1]


def test_many_missing_partners_are_counted_and_three_are_named(tmp_path: Path) -> None:
    replica = replicas.ade20k(tmp_path, val=6)["val"]
    for key in replica.keys[1:]:
        replica.mask_files[key].unlink()
    with pytest.raises(
        DatasetError, match=r"5 of the samples .*: 'ADE_val_00000002', 'ADE_val_00000003', [^,]*04', …$"
    ):
        ADE20K(tmp_path)


def test_two_files_with_the_same_key_are_an_error(tmp_path: Path) -> None:
    replicas.folder(tmp_path)
    replicas.save(tmp_path / "images" / "pic 0.0.jpg", np.zeros((37, 53, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"pic 0\.0\.(png|jpg) and .*pic 0\.0\.(png|jpg) differ in nothing but"):
        Folder(tmp_path)


def test_two_samples_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    replica = replicas.cityscapes(tmp_path)["val"]
    for path in (replica.image_files[replica.first], replica.mask_files[replica.first]):
        (path.parent.parent / "lindau" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match=f"'{replica.first}' twice: .*frankfurt/.*lindau/"):
        Cityscapes(tmp_path)
    replicas.folder(tmp_path / "own")
    (tmp_path / "own" / "list.txt").write_text("pic 0.0\npic 0.0.png")
    with pytest.raises(DatasetError, match=r"'pic 0\.0' twice"):
        Folder(tmp_path / "own", "list")


def test_a_user_that_does_not_exist_is_named() -> None:
    with pytest.raises(DatasetError, match="~nobody of this name/set cannot be found"):
        Folder("~nobody of this name/set")


def test_odd_lines_of_a_list_are_shown_as_they_are(tmp_path: Path) -> None:
    replica = replicas.voc(tmp_path)["val"]
    assert replica.list_file is not None
    replica.list_file.write_text("2007_000033\n\x1a\n")
    with pytest.raises(DatasetError, match=r"no image: '\\x1a'$"):
        VOC2012(tmp_path)
    replica.list_file.write_text("2007_000033.jpg\n")
    with pytest.raises(DatasetError, match=r"no image: '2007_000033\.jpg'; names are without suffix here"):
        VOC2012(tmp_path)


def test_unicode_forms_of_a_name_are_one_name(tmp_path: Path) -> None:
    replica = replicas.folder(tmp_path, count=1)[None]
    composed, apart = (unicodedata.normalize(form, "Straße ü") for form in ("NFC", "NFD"))
    for path, name in ((replica.image_files[replica.first], composed), (replica.mask_files[replica.first], apart)):
        path.rename(path.with_name(f"{name}.png"))
    assert Folder(tmp_path).keys == [composed]
    (tmp_path / "list.txt").write_text(f"{apart}.png", "utf-8")
    assert Folder(tmp_path, "list").keys == [composed]


def refuse_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes folders of this name unreadable; permissions do not stop root."""
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas.folder(tmp_path, nested=True)
    refuse_folder("b", monkeypatch)
    with pytest.raises(DatasetError, match=r"images cannot be read: .*Permission denied: .*images/b"):
        Folder(tmp_path)


def test_a_folder_below_one_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def refusing(path: Path, **options: Any) -> Any:
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refusing)
    with pytest.raises(DatasetError, match=r"/a/b cannot be found: .*Permission denied"):
        Folder(tmp_path / "a" / "b")
    with pytest.raises(DatasetError, match=r"/a/b cannot be read: .*Permission denied"):
        check_masks(tmp_path / "a" / "b")


def test_chained_links_are_not_followed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):  # 2**40 paths lead to the last one
        (tmp_path / f"{i}").mkdir()
        for name in "ab":
            (tmp_path / f"{i}" / name).symlink_to(tmp_path / f"{i + 1}")
    (tmp_path / "40").mkdir()
    with pytest.raises(DatasetError, match="is the same folder as"):
        listing.files_by_key(tmp_path / "0", ".png")
    for name in "ab":
        (tmp_path / "40" / name).symlink_to(".")
    (tmp_path / "40" / "mask.png").touch()
    assert len(mask_check._find(tmp_path / "0", "masks", None)) == 1
    monkeypatch.chdir(tmp_path)
    assert list(find_images(["40/**/*.png"])) == [Path("40/mask.png")]


def test_a_pipe_is_no_list(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.txt")
    with pytest.raises(DatasetError, match="not a regular file"):
        listing.read_keys(tmp_path / "train.txt")


def test_patterns_find_files_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b/c.png", "b/d/e.png", ".hidden/f.png", "b/.g.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_images(["**/*.png"])] == ["a.png", "b/c.png", "b/d/e.png"]
    assert [str(path) for path in find_images(["b/**"])] == ["b/c.png", "b/d/e.png"]
    assert list(find_images([f"{tmp_path}/**/d/*.png"])) == [tmp_path / "b/d/e.png"]
    assert list(find_images(["*.png"])) == [Path("a.png")]
