"""Files of paddle.save: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import stand_in

REAL = stand_in.DATA / "paddle_tiny_2021.pdparams"
"""A real file of paddle.save, with the names that numpy wrote in 2021."""


def test_the_stand_ins_file_is_paddles_byte_for_byte(tmp_path: Path) -> None:
    written = stand_in.paddle_file(tmp_path / "tiny.pdparams", stand_in.arrays("paddle_tiny"))
    assert written.read_bytes() == REAL.read_bytes()
