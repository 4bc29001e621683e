"""isanet export."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.commands import run

NANO = "isanet_nano_toystreets"


def test_export_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "street.xml"
    assert run("export", NANO, target) == 0
    size, agreement = capsys.readouterr().out.splitlines()
    assert size == f"{target} and {tmp_path / 'street.bin'}: 4 MB"
    assert agreement.endswith("% of the labels are the model's own, on drawn images")
    assert run("export", NANO, target) == 1
    assert "exists and was kept; --force replaces it" in capsys.readouterr().err
    assert run("export", NANO, target, "--force", "--whole", "--precision", "float16") == 0


def test_export_suggests_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", NANO, tmp_path / "street.ts") == 1
    assert "write a .pt2 file" in capsys.readouterr().err
