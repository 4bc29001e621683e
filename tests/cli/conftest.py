"""Folders that commands run in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import isanet
from tests.helpers import replicas, tiny_zoo
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "chelsea.jpg"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three small images, which is where the command runs."""
    folder = tmp_path / "work"
    (folder / "images").mkdir(parents=True)
    photo = Image.open(PHOTO)
    for i in range(3):
        photo.crop((40 * i, 0, 40 * i + 80, 60)).save(folder / "images" / f"{i}.png")
    (folder / "images" / "notes.txt").write_text("not an image")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    replicas.voc(tmp_path / "voc", val=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "voc"


@pytest.fixture
def shell(tiny: FileServer) -> dict[str, str]:
    """Settings for processes of their own, which find the tiny model in the cache by its converted folder."""
    isanet.from_pretrained(tiny_zoo.NAME).save_pretrained("model")
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
