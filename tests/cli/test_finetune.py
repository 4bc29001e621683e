"""check-masks; finetune is in tests/training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.commands import run


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
