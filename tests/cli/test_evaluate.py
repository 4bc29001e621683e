"""evaluate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from tests.helpers import replicas, tiny_zoo, training
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer


def test_evaluate(tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("evaluate", str(voc), "--model", tiny_zoo.NAME, "--workers", "0")
    assert run(*arguments, "--boundary", "--predictions", "maps") == 0
    out = capsys.readouterr().out
    report = isanet.Report.load("evaluated")
    assert f"{100 * report.miou:.2f}" in out
    assert "76.99" in out
    assert "5 images, where the official split has 1449" in out
    assert "whole: whole image, single scale, no flip (the model's own)" in out
    assert out.splitlines()[-1] == "Report with images: evaluated/index.html"
    assert {path.name for path in Path("evaluated").iterdir()} == {
        *("report.json", "index.html", "confusion.png", "classes.png", "worst")
    }
    assert len(list(Path("maps").iterdir())) == 5
    direct = isanet.evaluate(tiny_zoo.NAME, isanet.datasets.VOC2012(voc), workers=0)
    assert torch.equal(direct.confusion, report.confusion)

    assert run(*arguments) == 1
    assert "report.json exists and was kept" in capsys.readouterr().err
    assert run(*arguments, "--force", "--limit", "2", "--split", "train") == 0
    assert (isanet.Report.load("evaluated").num_images, isanet.Report.load("evaluated").split) == (2, "train")


def test_evaluate_your_own_folder(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("cat", "pet dog", "sky")
    replicas.folder(tmp_path / "mine", classes=names, write=lambda path, mask: replicas.save(path, mask * 10 % 251 + 1))
    call = ("evaluate", "mine", "--model", tiny_zoo.NAME, "--workers", "0")
    Path("mine/classes.txt").unlink()
    assert run(*call) == 1
    assert "classes.txt" in capsys.readouterr().err
    call += ("--classes", "cat,pet dog,sky", "--ids", "1,11,21", "--ignore", "rest")
    assert run(*call) == 1
    error = capsys.readouterr().err
    assert "voc21 (21 classes" in error
    assert "mine (3 classes" in error
    Path("map.json").write_text(json.dumps({"pet dog": ["dog"], "sky": None}))
    assert run(*call, "--mapping", "map.json") == 0
    assert isanet.Report.load("evaluated").classes == ("cat", "pet dog")
    assert "left out of the argmax" in capsys.readouterr().out
    for wrong in (
        "[]",
        '{"v": ',
        '{"a": null, "a": null}',
        '{"v": 5}',
        '{"v": [1]}',
        '{"v": ["cat", "cat"]}',
        '{"v": {}}',
    ):
        Path("map.json").write_text(wrong)
        assert run(*call, "--mapping", "map.json", "--force") == 1
        error = capsys.readouterr().err
        assert error.count("\n") <= 2
        assert "map.json is no mapping" in error or "list of names" in error or "listed twice" in error
    Path("map.json").write_text('\ufeff{"pet dog": ["dog"], "sky": null}', encoding="utf-8")
    assert run(*call, "--mapping", "map.json", "--force", "--quiet") == 0


def test_evaluate_refuses_masks_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "data" / kind).mkdir(parents=True)
        image = Image.new(mode, (48, 40))
        image.paste("white", (0, 0, 20, 40))
        image.save(tmp_path / "data" / kind / "a.png")
    isanet.ISANet(**training.TINY, classes=["background", "cat"], preprocessing=training.PREPROCESSING).save_pretrained(
        tmp_path / "model"
    )
    call = ("--quiet", "evaluate", tmp_path / "data", "--classes", "background,cat", "--model", tmp_path / "model")
    call += ("--output", tmp_path / "out", "--workers", "0")
    assert run(*call) == 1
    error = capsys.readouterr().err
    assert "--ids 0,255 --ignore none" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(*call, "--ids", "0,255", "--ignore", "none") == 0
    assert run(*call, "--allow-absent", "--force") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "DATA"),
        (("voc",), 2, "--model"),
        (("voc", "--model", tiny_zoo.NAME, "--ids", "a-b"), 2, "--ids"),
        (("voc", "--model", tiny_zoo.NAME, "--colors", "#ff"), 2, "--colors"),
        (("voc", "--model", tiny_zoo.NAME, "--limit", "0"), 2, "positive"),
        (("nowhere", "--model", tiny_zoo.NAME), 1, "nowhere"),
        (("home", "--model", tiny_zoo.NAME), 1, "home"),
        (("voc", "--model", tiny_zoo.NAME, "--layout", "yolo"), 2, "ade20k"),
        (("voc", "--model", tiny_zoo.NAME, "--ids", "3-1"), 2, "empty range"),
        (("voc", "--model", tiny_zoo.NAME, "--ids", "1-"), 2, "--ids"),
        (("voc", "--model", tiny_zoo.NAME, "--workers", "-1"), 2, "negative"),
        (("voc", "--model", tiny_zoo.NAME, "--precision", "half"), 2, "bfloat16"),
        (("voc", "--model", tiny_zoo.NAME, "--split", "valid"), 1, "trainval"),
        (("voc", "--model", tiny_zoo.NAME, "--split", "test"), 1, "no masks to compare with"),
        (("voc", "--model", tiny_zoo.NAME, "--classes", "a,b"), 1, "classes"),
        (("voc", "--model", tiny_zoo.NAME, "--protocol", "hole"), 2, "did you mean whole?"),
        (("voc", "--model", tiny_zoo.NAME, "--mapping", "none.json"), 1, "none.json"),
        (
            ("voc", "--model", tiny_zoo.NAME, "--split", "test", "--predictions", "m", "--limit", "1"),
            2,
            "without --limit",
        ),
        (("voc", "--model", tiny_zoo.NAME, "--split", "test", "--predictions", "m", "--boundary"), 2, "--boundary"),
    ],
)
def test_wrong_calls_of_evaluate(
    tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            run("evaluate", *arguments)
    else:
        assert run("evaluate", *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("evaluated").exists()


def test_ctrl_c_keeps_what_was_counted(voc: Path, shell: dict[str, str]) -> None:
    replicas.voc(voc, val=120)
    call = [sys.executable, "-m", "isanet.cli", "evaluate", "voc", "--model", "model", "--predictions", "maps"]
    call += ["--workers", "1"]
    process = subprocess.Popen(call, env=shell, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not Path("maps").exists() or len(list(Path("maps").iterdir())) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "the same call resumes" in error
    counted = len(json.loads(Path("evaluated/progress-0.json").read_text())["images"])
    assert 4 <= counted < 120
    done = subprocess.run(call, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{counted} of 120 images are already counted" in done.stderr
    report = isanet.evaluate("model", isanet.datasets.VOC2012(voc), workers=0)
    assert torch.equal(isanet.Report.load("evaluated").confusion, report.confusion)


def test_label_maps_of_a_split_without_masks(tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("evaluate", str(voc), "--model", tiny_zoo.NAME, "--split", "test", "--predictions", "maps")
    assert run(*call) == 0
    assert "is not published" in capsys.readouterr().out
    assert not Path("evaluated").exists()
    dataset = isanet.datasets.VOC2012(voc, "test")
    assert [path.stem for path in sorted(Path("maps").iterdir())] == dataset.keys
    labels = isanet.Segmenter(tiny_zoo.NAME, precision="float32")(dataset.image_path(0)).labels
    with Image.open(f"maps/{dataset.keys[0]}.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
    assert run(*call) == 1
    assert "was kept" in capsys.readouterr().err
    assert run(*call, "--force") == 0


def test_torchrun(voc: Path, shell: dict[str, str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "isanet.cli"]
    call = [*launcher, "evaluate", "voc", "--model", "model", "--device", "cpu", "--workers", "0"]
    done = subprocess.run(call, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("mIoU measured") + done.stdout.count("no figure is published") == 1
    )  # one process reports for all
    report = isanet.evaluate("model", isanet.datasets.VOC2012(voc), workers=0)
    assert torch.equal(isanet.Report.load("evaluated").confusion, report.confusion)


@pytest.mark.parametrize("there", ["maps/{}.png", "evaluated/index.html", "evaluated/confusion.png"])
def test_a_second_call_never_overwrites_what_the_first_refused_to(
    tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    existing = Path(there.format(isanet.datasets.VOC2012(voc).keys[-1]))
    existing.parent.mkdir()
    existing.write_text("somebody else's")
    before = sorted(Path().glob("[em]*/**"))
    for _ in range(2):
        assert run("evaluate", voc, "--model", tiny_zoo.NAME, "--workers", "0", "--predictions", "maps") == 1
        assert f"{existing} exists and was kept" in capsys.readouterr().err
        assert sorted(Path().glob("[em]*/**")) == before, "nothing was made"
    assert existing.read_text() == "somebody else's"
