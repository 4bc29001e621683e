"""Masks are read by the values that are in the file, or not at all."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.errors import DatasetError
from isanet.images.masks import open_mask, read_mask
from isanet.labels import IGNORED


def packed_bits(values: Sequence[int], bits: int) -> bytes:
    text = "".join(format(value, f"0{bits}b") for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def png(values: Sequence[int], bits: int, kind: int = 0) -> bytes:
    """One row; `kind` 0 is gray, 3 a palette, 2 colors."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = len(values) // 3 if kind == 2 else len(values)
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0))
    if kind == 3:
        chunks += chunk(b"PLTE", bytes(range(48)))
    chunks += chunk(b"IDAT", zlib.compress(b"\0" + packed_bits(values, bits))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(values: Sequence[int], bits: int, photometric: int = 1) -> bytes:
    """One row."""
    data = packed_bits(values, bits)
    data += b"\0" * (len(data) % 2)
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + entries + bytes(4)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "mask"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "values", "dtype"),
    [
        (png([0, 1, 0, 1], 1), [0, 1, 0, 1], np.uint8),
        (png([0, 1, 2, 255], 8), [0, 1, 2, 255], np.uint8),
        (png([0, 1, 2, 65535], 16), [0, 1, 2, 65535], np.uint16),
        *[(png([0, 1, 1, 0], bits, 3), [0, 1, 1, 0], np.uint8) for bits in (1, 2, 4, 8)],
        (png([0, 1, 2, 3], 2, 3), [0, 1, 2, 3], np.uint8),
        (png([0, 7, 15, 3], 4, 3), [0, 7, 15, 3], np.uint8),
        (tiff([0, 1, 0, 1], 1), [0, 1, 0, 1], np.uint8),
        (tiff([0, 1, 2, 255], 8), [0, 1, 2, 255], np.uint8),
        (tiff([0, 1, 2, 65535], 16), [0, 1, 2, 65535], np.uint16),
        (b"P5\n4 1\n255\n\0\1\2\xff", [0, 1, 2, 255], np.uint8),
        (b"P2\n4 1\n255\n0 1 2 255\n", [0, 1, 2, 255], np.uint8),
        (b"P5\n2 1\n65535\n\0\1\1\0", [1, 256], np.int32),
        (b"P2\n2 1\n65535\n1 256\n", [1, 256], np.int32),
    ],
)
def test_values_are_read_as_they_are(tmp_path: Path, data: bytes, values: list[int], dtype: type) -> None:
    mask = read_mask(written(tmp_path, data))
    assert (mask.tolist(), mask.dtype.name) == ([values], dtype.__name__)  # in any byte order


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png([0, 1, 2, 3], 2), "holds gray of 2 bits, which readers scale to 0..255; save it as 8-bit PNG"),
        (png([0, 1, 2, 15], 4), "holds gray of 4 bits"),
        (tiff([0, 1, 2, 3], 2), "holds gray of 2 bits"),
        (tiff([0, 1, 2, 15], 4), "holds gray of 4 bits"),
        *[(tiff([0, 1, 0, 1], bits, 0), r"counts its values from white \(MinIsWhite\)") for bits in (1, 2, 4, 8)],
        (b"P1\n4 1\n0 1 0 1\n", r"counts its values from white \(PBM\)"),
        (b"P4\n4 1\n\x10", r"counts its values from white \(PBM\)"),
        (b"P5\n4 1\n20\n\0\1\2\x14", "has the maximum 20"),
        (b"P2\n4 1\n3\n0 1 2 3\n", "has the maximum 3,"),
        (b"P5\n2 1\n1000\n\0\1\0\2", "has the maximum 1000,"),
        (b"P6\n1 1\n20\n\0\1\2", "has the maximum 20,"),
        (b"P6\n1 1\n65535\n\0\1\0\1\0\1", "has the maximum 65535,"),
        (png([1, 2, 3, 4, 5, 6], 16, 2), "has colors of 16 bits"),
    ],
)
def test_values_that_decoders_would_change_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(DatasetError, match=f"the mask {path} {reason}"):
        read_mask(path, colors=[(1, 2, 3)] if "colors" in reason or data[:2] == b"P6" else None)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_mask_with_an_exif_orientation_is_refused(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "mask"
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    image.save(path, kind, exif=exif, lossless=True)
    with pytest.raises(DatasetError, match=rf"EXIF orientation \({orientation}\).* save it upright"):
        open_mask(path)
    exif[0x0112] = 1
    image.save(path, kind, exif=exif, lossless=True)
    assert open_mask(path).size == (4, 4)


def test_a_damaged_exif_block_counts_as_none(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "mask.png", exif=b"Exif\0\0II*\0\xff\xff")
    assert (read_mask(tmp_path / "mask.png") == np.eye(4)).all()


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_jpeg_is_refused_in_both_its_formats(tmp_path: Path, kind: str) -> None:
    images = [Image.new("L", (8, 8), value) for value in (1, 2)]
    images[0].save(
        tmp_path / "a.png", kind, **({"save_all": True, "append_images": images[1:]} if kind == "MPO" else {})
    )
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == kind
    with pytest.raises(DatasetError, match="is a JPEG"):
        open_mask(tmp_path / "a.png")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    stream = os.open(tmp_path / "pipe", os.O_RDWR)  # so that nobody who reads it would wait
    os.write(stream, bytes(64))
    try:
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(DatasetError, match=f"the mask {path} is not a regular file"):
                read_mask(path)
    finally:
        os.close(stream)
    with pytest.raises(DatasetError, match=f"there is no mask {tmp_path}/absent"):
        read_mask(tmp_path / "absent")


def test_masks_over_max_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = written(tmp_path, png([0] * 101, 8)[:60])
    with pytest.raises(DatasetError, match="101 pixels, more than the limit of 100; nothing was decoded"):
        read_mask(path, max_pixels=100)


# --- colors


COLORS = ((10, 20, 30), (0, 0, 0), (200, 100, 50), (10, 20, 30))


def painted(folder: Path, pixels: Any) -> Path:
    Image.fromarray(np.array(pixels, np.uint8)).save(folder / "mask.png")
    return folder / "mask.png"


@pytest.mark.parametrize("alpha", [(), (255,)])
def test_colors_become_positions(tmp_path: Path, alpha: tuple[int, ...]) -> None:
    colors = [(200, 100, 50), (0, 0, 0), (10, 20, 30), (255, 255, 255)]
    path = painted(tmp_path, [[(*color, *alpha) for color in colors]])
    assert read_mask(path, colors=COLORS).tolist() == [[2, 1, 0, IGNORED]]
    assert read_mask(path, colors=np.array(COLORS[::2])).tolist() == [[1, IGNORED, 0, IGNORED]]  # type: ignore[arg-type]
    assert read_mask(path, colors=[*COLORS, (255, 255, 255)]).tolist() == [[2, 1, 0, 4]]


def test_an_unknown_color_is_named(tmp_path: Path) -> None:
    path = painted(tmp_path, [[(10, 20, 30), (10, 20, 31), (10, 20, 31)]])
    with pytest.raises(DatasetError, match=r"#0a141f in 2 pixels, .* known are #0a141e, #000000, #c86432, #0a141e$"):
        read_mask(path, colors=COLORS)


def test_transparency_is_refused(tmp_path: Path) -> None:
    path = painted(tmp_path, [[(10, 20, 30, 255), (10, 20, 30, 254)]])
    with pytest.raises(DatasetError, match="has transparent pixels"):
        read_mask(path, colors=COLORS)
    Image.new("RGB", (2, 2), (0, 0, 0)).save(path, transparency=(0, 0, 0))
    with pytest.raises(DatasetError, match="has transparent pixels"):
        read_mask(path, colors=COLORS)


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        ([(index, 0, 0) for index in range(256)], "no more than 255"),
        ([(0, 0, 256)], r"numbers from 0 to 255, got \(\(0, 0, 256\),\)"),
        ([(0, 0, -1)], "numbers from 0 to 255"),
        ([(1, 2, 3, 4)], r"three whole numbers each .*, got \[\(1, 2, 3, 4\)\]"),
        ([(1, 2)], "three whole numbers each"),
        ([(1, 2, 3.0)], "three whole numbers each"),
        (["#ff0000"], "three whole numbers each"),
        (5, "three whole numbers each"),
    ],
)
def test_invalid_colors_are_refused(tmp_path: Path, colors: Any, message: str) -> None:
    path = painted(tmp_path, [[(1, 2, 3)]])
    with pytest.raises(DatasetError, match=message):
        read_mask(path, colors=colors)
