"""Every command that writes: called twice where something is, it refuses twice and keeps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isanet.datasets import mask_check
from tests.helpers import tiny_zoo, training
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer
from tests.helpers.training import write_data


@pytest.mark.parametrize(
    ("there", "call"),
    [
        ("out/all.json", "segment data/images/val/0.png --model model --output new --coco out/all.json"),
        ("out/all.csv", "segment data/images/val/0.png --model model --output new --csv out/all.csv --overlay"),
        ("out/report.json", "evaluate data --split val --model model --workers 0 --output out"),
        ("out/0.png", "evaluate data --split val --model model --workers 0 --output new --predictions out"),
        ("out/notes.txt", "finetune data --model model --workers 0 --output out"),
        ("out/h.png", "check-masks data/masks --output out/h.png"),
        ("out/model.safetensors", "convert model out"),
        ("out/config.json", "convert model out"),
        ("out/one.safetensors", "convert model out/one.safetensors"),
        ("out/a.zip", f"pack {tiny_zoo.NAME} -o out/a.zip"),
        ("out/d.png", "demo --seed 1 --output out/d.png"),
    ],
)
def test_a_second_call_refuses_as_the_first(
    tiny: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: str,
    call: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), count=2, val=1)
    make_model()
    Path("out").mkdir()
    Path(there).write_text("mine")
    for _ in range(2):
        assert run(*call.split(), "--quiet") == 1
        assert "kept" in capsys.readouterr().err
        assert [(path.as_posix(), path.read_text()) for path in Path("out").iterdir()] == [(there, "mine")]
        assert not Path("new").exists()


def make_model() -> None:
    training.tiny().save_pretrained("model")


def test_masks_that_vanish_while_they_are_checked_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "data", count=3, val=1)
    find = mask_check._find

    def find_then_lose(*arguments: object) -> list[str]:
        found = find(*arguments)  # type: ignore[arg-type]
        (tmp_path / "data" / "masks" / found[0]).unlink()
        return found

    monkeypatch.setattr(mask_check, "_find", find_then_lose)
    found = mask_check.check_masks(tmp_path / "data" / "masks", progress=False)
    assert (found.files, sum(found.formats.values()), len(found.unreadable)) == (4, 3, 1)
    assert "4 masks, 1 of them unreadable" in str(found)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_named() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "isanet.cli", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "isanet: error: cannot write to standard output: No space left on device\n"
