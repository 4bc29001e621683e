"""import-masks, and the exports of labelling tools in the other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import isanet
from isanet.cli.options import EXPORTS as LAYOUTS
from isanet.datasets.annotations import FORMATS
from tests.helpers import exports
from tests.helpers.commands import run
from tests.helpers.training import tiny


def test_the_layouts_of_the_command_line_are_those_of_the_package() -> None:
    assert tuple(FORMATS) == LAYOUTS


def test_import_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.via(tmp_path / "set")
    call = ("import-masks", tmp_path / "set", tmp_path / "plain")
    assert run(*call, "--hold-out", "0.5", "--unlabeled", "ignored") == 0
    out = capsys.readouterr().out
    for part in ("6 images (train 3, val 3)", "CLASS", "SHARE", "(ignored)", "Overlaps: ", "overlays.png"):
        assert part in out
    assert (tmp_path / "plain" / "classes.txt").read_text().split()[::2] == ["car", "person", "road"]
    assert run(*call) == 1
    assert "exists and was kept" in capsys.readouterr().err
    assert run("import-masks", tmp_path / "nowhere", tmp_path / "new") == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("import-masks", tmp_path / "set", tmp_path / "new", "--unlabeled", "void")


def test_check_masks_tells_what_an_export_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.coco(tmp_path)
    assert run("check-masks", tmp_path) == 0
    assert "6 images (train 4, val 2)" in capsys.readouterr().out
    assert run("check-masks", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 4, "val": 2}
    with pytest.raises(SystemExit, match="2"):
        run("check-masks", tmp_path, "--classes", "3")


def test_check_masks_finds_the_masks_of_a_whole_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.other_names(tmp_path / "other")
    assert run("check-masks", tmp_path / "other", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["folder"]) == (6, str(tmp_path / "other" / "labels"))
    exports.suffix_pairs(tmp_path / "pairs")
    assert run("check-masks", tmp_path / "pairs") == 0
    assert "6 images (train 4, val 2)" in capsys.readouterr().out


def test_finetune_and_evaluate_take_an_export_and_keep_its_colors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "set", tmp_path / "run"
    exports.supervisely(data)
    tiny().save_pretrained(tmp_path / "start")
    settings = ("--set", "epochs=1", "batch_size=2", "crop=[32,32]")
    call = ("--quiet", "finetune", data, "--model", tmp_path / "start", "--output", output, "--device", "cpu")
    assert run(*call, *settings) == 0
    model = isanet.from_pretrained(output)
    assert (model.classes, model.palette) == (exports.CLASSES, exports.COLORS)
    report = ("--split", "val", "--output", tmp_path / "report", "--workers", "0")
    assert run("--quiet", "evaluate", data, "--model", output, *report) == 0
    assert "mIoU" in capsys.readouterr().out


def test_folders_of_any_name_are_given_by_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.other_names(tmp_path / "set")
    (tmp_path / "set" / "imgs").rename(tmp_path / "set" / "photos")
    assert run("import-masks", tmp_path / "set", tmp_path / "plain") == 1
    assert "pass the names of its folders as --images and --masks" in capsys.readouterr().err
    assert run("import-masks", tmp_path / "set", tmp_path / "plain", "--images", "photos", "--masks", "labels") == 0
    exports.suffix_pairs(tmp_path / "pairs")
    names = ("--images", ".", "--masks", ".", "--mask-suffix", "_mask")
    assert run("import-masks", tmp_path / "pairs", tmp_path / "other", *names) == 0
    assert capsys.readouterr().out.count("6 images (train 4, val 2)") == 2
