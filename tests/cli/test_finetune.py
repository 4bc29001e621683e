"""finetune and check-masks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isanet
from isanet.cli.finetune import _recipe
from isanet.training import Recipe
from tests.helpers.commands import run
from tests.helpers.training import tiny, write_data


def test_check_masks(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = "voc/VOCdevkit/VOC2012/SegmentationClass"
    images = "voc/VOCdevkit/VOC2012/JPEGImages"
    assert run("check-masks", masks, "--images", images, "--classes", "voc21", "--output", "masks.png") == 0
    out = capsys.readouterr().out
    assert "mode P" in out
    assert "aeroplane" in out
    with Image.open("masks.png") as image:
        assert min(image.size) > 100
    assert run("check-masks", masks, "--output", "masks.png") == 1
    assert "was kept" in capsys.readouterr().err
    assert run("check-masks", masks, "--json", "--classes", "21") == 0
    assert json.loads(capsys.readouterr().out)["files"] == 8
    assert run("check-masks", masks, "--classes", "a,b") == 0
    assert "stray" in capsys.readouterr().out
    assert run("check-masks", "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


def black_and_white(root: Path, suffix: str = "") -> Path:
    """Masks of 0 and 255; with a suffix beside their images."""
    for index in range(4):
        mask = Image.new("L", (48, 40))
        mask.paste(255, (0, 0, 20, 40))
        for kind, name, image in (("images", "", Image.new("RGB", (48, 40))), ("masks", suffix, mask)):
            folder = root if suffix else root / kind
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}{name}.png")
    (root / "classes.txt").write_text("background\ncat")
    return root


NAMED = "--ids 0,255 --ignore none"


def test_check_masks_fails_for_masks_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = black_and_white(tmp_path / "data")
    for call in ([data], [data / "masks"], [data / "masks", "--classes", "2"], [data / "masks", "--json"]):
        assert run("--quiet", "check-masks", *call) == 1
        assert NAMED in capsys.readouterr().out
        assert run("--quiet", "check-masks", *call, "--allow-absent") == 0
        assert NAMED in capsys.readouterr().out
    assert run("--quiet", "check-masks", data / "masks", "--classes", "cat") == 0
    capsys.readouterr()
    beside = black_and_white(tmp_path / "beside", "_mask")
    assert run("--quiet", "check-masks", beside) == 1
    shown = capsys.readouterr()
    assert "(ignored)" in shown.out
    assert NAMED in shown.err
    assert run("--quiet", "check-masks", beside, "--allow-absent") == 0


@pytest.mark.parametrize(("value", "text"), [(0, "is one class"), (3, "is one class"), (255, "pixels are ignored")])
@pytest.mark.parametrize("classes", [[], ["--classes", "a,b,c,d"]])
def test_check_masks_fails_for_masks_of_one_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: int, text: str, classes: list[str]
) -> None:
    for name in "ab":
        Image.new("L", (9, 9), value).save(tmp_path / f"{name}.png")
    assert run("--quiet", "check-masks", tmp_path, *classes) == 1
    assert text in " ".join(capsys.readouterr().out.split())
    assert run("--quiet", "check-masks", tmp_path, *classes, "--allow-absent") == 0


def test_finetune_refuses_masks_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny().save_pretrained(tmp_path / "start")
    call = ("--quiet", "finetune", black_and_white(tmp_path / "data"), "--model", tmp_path / "start")
    call += ("--output", tmp_path / "run", "--device", "cpu", "--set", "epochs=1", "crop=[32,32]", "batch_size=3")
    assert run(*call) == 1
    assert NAMED in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(*call, *NAMED.split()) == 0
    assert "classes measured" not in capsys.readouterr().out
    assert run(*call, "--allow-absent", "--force") == 0
    assert "1 of 2 classes measured" in isanet.from_pretrained(tmp_path / "run").provenance["measured"]


def test_finetune_trains_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data")
    tiny().save_pretrained(tmp_path / "start")
    settings = ["epochs=2", "batch_size=3", "crop=[32,32]", "optimizer=adamw", "lr=0.001"]
    call = ("finetune", data, "--model", tmp_path / "start", "--output", tmp_path / "run", "--device", "cpu")
    assert run("--quiet", *call, "--set", *settings[:2], "--set", *settings[2:]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown
    assert "curves.png" in shown
    recipe = Recipe.from_json((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe.epochs, recipe.batch_size, recipe.crop, recipe.optimizer) == (2, 3, (32, 32), "adamw")
    assert recipe.lr == 0.001
    assert "7 images" in isanet.from_pretrained(tmp_path / "run").provenance["trained_on"]

    assert run("--quiet", *call, "--set", "epochs=3") == 1
    assert "another recipe" in capsys.readouterr().err
    assert run("--quiet", *call, "--recipe", tmp_path / "run" / "recipe.json", "--set", "seed=3", "--force") == 0


def test_finetune_holds_images_out_of_a_folder_without_splits(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", count=10, val=1)
    for kind in ("images", "masks"):
        for path in (root / kind / "train").iterdir():
            path.rename(root / kind / path.name)
        for split in ("train", "val"):
            for path in (root / kind / split).iterdir():
                path.unlink()
            (root / kind / split).rmdir()
    tiny().save_pretrained(tmp_path / "start")
    call = ("finetune", root, "--model", tmp_path / "start", "--output", tmp_path / "run", "--device", "cpu")
    assert run("--quiet", *call, "--set", "epochs=1", "crop=[32,32]", "batch_size=4", "--hold-out", "0.3") == 0
    provenance = isanet.from_pretrained(tmp_path / "run").provenance
    assert "7 images" in provenance["trained_on"]
    assert "3 held out, 3 images" in provenance["measured"]


def test_findings_name_the_options_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ("weed is never predicted: try class_weights=balanced, more epochs", "try more epochs, epochs=4")
    monkeypatch.setattr("isanet.training.loop.findings", lambda *_: found)
    tiny().save_pretrained(tmp_path / "start")
    call = ("finetune", write_data(tmp_path / "data"), "--model", tmp_path / "start", "--output", tmp_path / "run")
    assert run("--quiet", *call, "--device", "cpu", "--set", "epochs=1", "crop=[32,32]") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "* weed is never predicted: try --set class_weights=balanced, more epochs" in lines
    assert "* try more epochs, --set epochs=4" in lines


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("class_weights=None", None), ("class_weights=null", None), ("freeze_backbone=True", True),
        ("freeze_backbone=true", True), ("crop=(64,32)", (64, 32)), ("crop=[64,32]", (64, 32)),
        ("class_weights=balanced", "balanced"), ('optimizer="adamw"', "adamw"), ("lr=1e-3", 0.001),
    ],
)  # fmt: skip
def test_settings_in_the_words_of_json_and_of_python(setting: str, value: Any) -> None:
    recipe = _recipe("isanet_r50_voc", [setting])
    assert isinstance(recipe, Recipe)
    assert getattr(recipe, setting.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--set", "epochs"], "FIELD=VALUE"),
        (["--set", "epochs=0"], "epochs must be"),
        (["--recipe", "isanet_r50_vok"], "did you mean isanet_r50_voc"),
        (["--device", "gpu"], "device must be 'auto' (the GPU, if there is one) or 'cpu', got 'gpu'"),
    ],
)
def test_errors_of_recipe_and_device_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    data = write_data(tmp_path / "data")
    assert run("--quiet", "finetune", data, "--model", tmp_path, "--output", tmp_path / "run", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_published_recipe_is_found_by_name() -> None:
    assert _recipe("isanet_r50_ade20k", ["lr=0.5"]) == replace(Recipe.published("isanet_r50_ade20k"), lr=0.5)


def test_recipe_fields_are_set_as_json(tmp_path: Path) -> None:
    settings = ["ohem=null", "ema=0.9", "freeze_backbone=true", "precision=bfloat16"]
    given = {"ohem": None, "ema": 0.9, "freeze_backbone": True, "precision": "bfloat16"}
    assert _recipe(None, settings) == given  # the rest may be chosen
    assert _recipe("isanet_r50_voc", settings) == Recipe.of(given)
    (tmp_path / "recipe.json").write_text(json.dumps({"lr": 0.5}))
    assert _recipe(str(tmp_path / "recipe.json"), []) == Recipe(lr=0.5)


@pytest.mark.parametrize(
    ("paint", "option"),
    [
        (lambda mask: Image.fromarray(np.array([[250, 0, 0], [0, 250, 0], [0, 9, 250]], np.uint8)[mask]), "--colors"),
        (lambda mask: Image.fromarray(mask + np.uint8(1)), "--ids"),
    ],
)
def test_what_the_check_of_masks_knows_is_in_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], paint: Any, option: str
) -> None:
    data = write_data(tmp_path / "data")
    for path in (data / "masks").rglob("*.png"):
        paint(np.asarray(Image.open(path)) % 255).save(path)
    tiny().save_pretrained(tmp_path / "start")
    call = ("--quiet", "finetune", data, "--model", tmp_path / "start", "--output", tmp_path / "run", "--device", "cpu")
    settings = ("--set", "epochs=1", "crop=[32,32]")
    assert run(*call, *settings) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    arguments = re.search(rf"What all masks hold: .*({option}[\w ,-]*)", error)
    assert arguments is not None, error
    assert run(*call, *arguments[1].split(), *settings) == 0  # they read the masks


def test_check_masks_knows_the_names_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data")
    assert run("check-masks", data) == 0
    assert "Class indices as expected: 0-2, of 3 classes" in capsys.readouterr().out
    assert run("check-masks", data, "--classes", "2") == 0
    assert "Class indices as expected" not in capsys.readouterr().out
