"""Paths that the operating system refuses to look up are a named error wherever a path is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import isanet
from isanet import datasets
from isanet._files import given_path, write_output
from isanet.cli.run import main
from isanet.datasets.mask_check import check_masks
from isanet.errors import CacheError, CheckpointError, DatasetError, ImageError, OutputError
from isanet.images.masks import open_mask
from isanet.images.reading import read_image
from isanet.inference.segmentation import Segmentation
from isanet.weights import cache
from isanet.weights.hub import save_pretrained
from isanet.zoo import archive

LABELS = Segmentation(
    np.zeros((2, 2), np.uint8), ("a", "b"), ((0, 0, 0), (9, 9, 9)), image=np.zeros((2, 2, 3), np.uint8)
)
BAD = {"too long": "x" * 300, "a folder too long": "x" * 300 + "/a", "too long in all": "x/" * 3000, "null": "a\0b"}
TAKERS: dict[str, tuple[type[Exception], Callable[[str], object]]] = {
    "checkpoint": (CheckpointError, lambda path: isanet.from_pretrained(Path(path))),
    "install": (CheckpointError, archive.install),
    "pack": (OutputError, lambda path: archive.pack(["resnet50_v1c"], path)),
    "image": (ImageError, read_image),
    "mask": (DatasetError, open_mask),
    "masks": (DatasetError, check_masks),
    "dataset": (DatasetError, lambda path: datasets.Cityscapes(path, "val")),
    "labels": (OutputError, lambda path: LABELS.save(f"{path}.png")),
    "output": (OutputError, lambda path: write_output(Path(path), b"x")),
    "model folder": (OutputError, lambda path: save_pretrained(path, {}, {}, {})),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("taker", TAKERS)
def test_a_path_that_cannot_be_is_a_named_error(taker: str, bad: str) -> None:
    error, take = TAKERS[taker]
    with pytest.raises(error) as caught:
        take(BAD[bad])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", ["~nosuchuser/cache", "x" * 300])
def test_a_cache_folder_that_cannot_be_is_a_named_error(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("ISANET_HOME", bad)
    with pytest.raises(CacheError):
        cache.home()


@pytest.mark.parametrize("source", ["~nosuchuser/model.pth", Path("~nosuchuser/model.pth")])
def test_a_checkpoint_of_a_user_who_does_not_exist_is_a_named_error(source: str | Path) -> None:
    with pytest.raises(ValueError, match=r"~nosuchuser/model\.pth"):
        isanet.from_pretrained(source)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_link_in_circles_may_be_replaced_but_not_walked(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    write_output(tmp_path / "loop", b"x")
    assert (tmp_path / "loop").read_bytes() == b"x"
    (tmp_path / "other").symlink_to("other")
    with pytest.raises(OutputError, match="levels of symbolic links"):
        given_path(tmp_path / "other" / "file", OutputError)


@pytest.mark.parametrize(
    "call",
    [
        ["convert", "LONG", "out"],
        ["convert", "in", "LONG"],
        ["finetune", "LONG", "--model", "isanet_nano_toystreets"],
        ["check-masks", "LONG"],
        ["segment", "LONG", "--model", "isanet_nano_toystreets"],
        ["finetune", "data", "--model", "isanet_nano_toystreets", "--recipe", "LONG"],
    ],
)
def test_the_command_line_names_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("LONG", "x" * 300) for argument in call]) == 1
    error = capsys.readouterr().err
    assert "Errno" not in error
    assert "xxx" in error
