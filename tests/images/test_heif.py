"""HEIC and AVIF, XMP orientation, and what a folder does not read."""

from __future__ import annotations

import io
import logging
import re
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from isanet.datasets import Folder
from isanet.errors import ImageError
from isanet.images import folder, reading
from isanet.images.folder import images_in
from isanet.images.reading import read_image

QUARTERS = np.zeros((40, 64, 3), np.uint8)  # no two orientations look alike
QUARTERS[:20, :32], QUARTERS[20:, 32:], QUARTERS[20:, :32] = (250, 5, 5), (5, 5, 250), (5, 250, 5)


def encoded(kind: str, image: np.ndarray = QUARTERS, **options: object) -> bytes:
    stored = io.BytesIO()
    if kind == "AVIF":
        Image.fromarray(image).save(stored, kind, quality=100, subsampling="4:4:4", **options)
    else:
        size = image.shape[1::-1]
        pillow_heif.encode("RGB", size, image.tobytes(), stored, quality=-1, chroma=444, **options)
    return stored.getvalue()


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_heic_and_avif_are_read(tmp_path: Path, kind: str) -> None:
    path, data = tmp_path / f"a.{kind.lower()}", encoded(kind)
    path.write_bytes(data)
    for source in (path, data):
        assert np.abs(read_image(source).astype(int) - QUARTERS).max() <= 8
    assert images_in(tmp_path) == [path]
    with pytest.raises(ImageError, match="64x40, 2,560 pixels, more than the limit"):
        read_image(path, max_pixels=2000)
    with pytest.raises(ImageError, match=f"starts like {kind}|cannot be decoded"):
        read_image(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_sizes_that_heic_and_avif_declare_are_bounded(kind: str) -> None:
    data = bytearray(encoded(kind))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", 16000, 16000)
    with pytest.raises(ImageError, match=r"more than the limit|cannot be"):
        read_image(bytes(data), max_pixels=10_000)


def test_heic_of_ten_bits_becomes_eight() -> None:
    deep = (np.arange(40 * 64 * 3).reshape(40, 64, 3) * (65535 / (40 * 64 * 3))).astype(np.uint16)
    stored = io.BytesIO()
    pillow_heif.from_bytes(mode="RGB;16", size=(64, 40), data=deep.tobytes()).save(stored, quality=-1, chroma=444)
    assert np.abs(read_image(stored).astype(int) - deep / 257).max() <= 2


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = Image.fromarray(QUARTERS)
    if orientation in reading._UPRIGHT:
        expected = expected.transpose(reading._UPRIGHT[orientation])
    image = read_image(encoded(kind, exif=exif.tobytes()))
    assert np.abs(image.astype(int) - np.asarray(expected)).max() <= 8


def test_without_their_readers_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {kind: encoded(kind) for kind in ("HEIC", "AVIF")}
    monkeypatch.setattr(reading, "find_spec", lambda _: None)
    monkeypatch.setattr(reading.features, "check", lambda _: False)
    with pytest.raises(ImageError, match=re.escape("is HEIC, which cannot be read here: pip install 'isanet[heic]'")):
        read_image(data["HEIC"])
    with pytest.raises(ImageError, match="is AVIF, which cannot be read here: install a wheel of Pillow"):
        read_image(data["AVIF"])


def test_xmp_orientation_is_the_same_everywhere(tmp_path: Path) -> None:
    xmp = b"<x:xmpmeta><rdf:Description tiff:Orientation='6' tiff:Orientation=\"6\"/></x:xmpmeta>"
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    path = tmp_path / "images" / "a.jpg"
    Image.fromarray(QUARTERS).save(path, xmp=xmp, quality=100, subsampling=0)
    Image.fromarray(np.zeros((64, 40), np.uint8)).save(tmp_path / "masks" / "a.png")  # of the upright image
    turned = read_image(path)
    assert np.abs(turned.astype(int) - np.rot90(QUARTERS, -1)).max() <= 12
    np.testing.assert_array_equal(Folder(tmp_path, classes=["a", "b"]).read(0)[0], turned)


def test_a_folder_says_what_it_does_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SUFFIXES", folder.SUFFIXES - folder.HEIC_SUFFIXES)
    caplog.set_level(logging.INFO, "isanet")
    for name in ("a.HEIC", "b.heic", "c.mp4", "d.CR2", "e.txt", "f", ".g.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(ImageError, match=r"no images in .*; it has 2 \.heic \(pip install 'isanet\[heic\]'\), 1"):
        images_in(tmp_path)
    (tmp_path / "x.png").touch()
    assert images_in(tmp_path) == [tmp_path / "x.png"]
    assert caplog.messages == [
        f"{tmp_path}: 6 files not read: 2 .heic (pip install 'isanet[heic]'), 1 .mp4 (video: name it by itself), "
        "1 .cr2 (raw: develop it), 2 of other kinds"
    ]
