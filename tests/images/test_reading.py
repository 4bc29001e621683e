"""Every kind of image becomes 8-bit RGB by a documented rule, or is refused with the reason."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isanet.errors import ImageError
from isanet.images.folder import images_in
from isanet.images.preprocess import preprocess, target_size
from isanet.images.reading import MAX_TAG_BYTES, read_image
from tests.helpers.processes import output, python
from tests.images.test_preprocess import VOC, noise

# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "fix"),
    [
        (noise(4, 5)[..., 0], r"np\.stack"),
        (noise(4, 5).transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
        (noise(4, 5, 4), r"\.\.\., :3"),
        (noise(4, 5, 1), r"np\.repeat"),
        (noise(4, 5)[None], r"list\(array\)"),
        (noise(4, 5) / np.float32(255), r"value_range=\(0, 1\)"),
        (noise(4, 5).astype(np.int64), r"value_range=\(0, 255\)"),
        (noise(4, 5).astype(np.uint16) * 16, r"value_range=\(0, 4095\)"),
        (noise(4, 5).astype(bool), r"value_range=\(0, 1\)"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros(3, np.uint8), r"shape \(3,\)"),
    ],
)
def test_wrong_arrays_are_refused_with_the_fix(array: np.ndarray, fix: str) -> None:
    with pytest.raises(ImageError, match=fix):
        read_image(array)
    with pytest.raises(ImageError, match=fix):
        preprocess(array, **VOC)


def test_tensors_and_other_objects_are_refused_with_the_fix() -> None:
    with pytest.raises(ImageError, match=r"permute\(1, 2, 0\)\.cpu\(\)\.numpy\(\), .* value_range"):
        read_image(torch.zeros(3, 4, 5))  # type: ignore[arg-type]
    for wrong in (None, 7, [noise(2, 2)]):
        with pytest.raises(ImageError, match=type(wrong).__qualname__):
            read_image(wrong)  # type: ignore[arg-type]


def test_array_is_copied_in_c_order() -> None:
    array = noise(6, 8)
    flipped = array[:, ::-1]
    got = read_image(flipped)
    np.testing.assert_array_equal(got, flipped)
    assert got.flags.c_contiguous
    got = read_image(array)
    assert not np.shares_memory(got, array)


# --- modes and formats ------------------------------------------------------------------------------------------------


def mode_cases() -> list[Any]:
    rgb = noise(6, 8)
    gray = rgb[..., 0]
    gray3 = np.stack([gray] * 3, axis=-1)
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1365  # 0..64155
    deep3 = np.stack([(deep // 256).astype(np.uint8)] * 3, axis=-1)
    palette = Image.fromarray(gray % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    palette3 = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]], np.uint8)[gray % 4]
    transparent = palette.copy()
    transparent.info["transparency"] = bytes([0, 128, 255, 7])
    one_bit = Image.fromarray(gray).convert("1", dither=Image.Dither.NONE)
    one_bit3 = np.stack([np.where(gray >= 128, 255, 0).astype(np.uint8)] * 3, axis=-1)
    alpha = np.dstack([rgb, noise(6, 8, 1, seed=1)])
    gray_alpha = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(noise(6, 8, 1, seed=1)[..., 0])])
    return [
        pytest.param(Image.fromarray(rgb), "png", rgb, id="RGB"),
        pytest.param(Image.fromarray(rgb), "bmp", rgb, id="BMP"),
        pytest.param(Image.fromarray(rgb), "tif", rgb, id="TIFF"),
        pytest.param(Image.fromarray(rgb), "ppm", rgb, id="PPM"),
        pytest.param(Image.fromarray(gray), "png", gray3, id="L"),
        pytest.param(gray_alpha, "png", gray3, id="LA"),
        pytest.param(palette, "png", palette3, id="P"),
        pytest.param(palette, "gif", palette3, id="GIF"),
        pytest.param(transparent, "png", palette3, id="P with transparency"),
        pytest.param(Image.fromarray(alpha), "png", rgb, id="RGBA, transparent pixels too"),
        pytest.param(one_bit, "png", one_bit3, id="1"),
        pytest.param(Image.fromarray(deep), "png", deep3, id="I;16"),
        pytest.param(Image.fromarray(deep), "tif", deep3, id="I;16 TIFF"),
        pytest.param(Image.fromarray(deep.astype(np.int32)), "tif", deep3, id="I"),
    ]


@pytest.mark.parametrize(("image", "suffix", "expected"), mode_cases())
def test_modes_convert_by_the_documented_rule(
    tmp_path: Path, image: Image.Image, suffix: str, expected: np.ndarray
) -> None:
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    for source in (path, str(path), image):
        got = read_image(source)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        assert got.flags.writeable
    assert (image.mode, image.size, image.tobytes(), dict(image.info)) == before  # left as it was


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA"])
def test_rarer_modes_keep_the_colors(mode: str) -> None:
    gray = Image.new("L", (3, 2), 100)
    if mode == "LAB":
        image = Image.merge("LAB", [gray, Image.new("L", (3, 2), 128), Image.new("L", (3, 2), 128)])
        expected = 92  # L* = 100 / 255 * 100 = 39.2
    elif mode in ("La", "PA"):
        image, expected = gray.convert("LA").convert(mode), 100
    elif mode == "RGBa":
        image, expected = gray.convert("RGBA").convert(mode), 100
    else:
        image, expected = gray.convert("RGB").convert(mode), 100
    assert image.mode == mode
    got = read_image(image).astype(int)
    assert got.shape == (2, 3, 3)
    assert np.abs(got - expected).max() <= 2


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(path, quality=100)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() <= 3


def test_sixteen_bit_rgb_and_gray_agree(tmp_path: Path) -> None:
    """Both keep the high byte: 0x80ff is 128, which a division by 257 would make 128.5."""
    (tmp_path / "rgb.ppm").write_bytes(b"P6 1 1 65535\n" + b"\x80\xff" * 3)
    Image.fromarray(np.full((1, 1), 0x80FF, np.uint16)).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png").tolist() == [[[128, 128, 128]]]
    assert np.abs(read_image(tmp_path / "rgb.ppm").astype(int) - 128).max() <= 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 3), 0.5, np.float32), r"floating-point values from 0.5 to 0.5.*value_range=\(0, 1\)"),
        (np.array([[70000, -3]], np.int32), r"32-bit integers from -3 to 70000.*value_range=\(-3, 70000\)"),
    ],
)
def test_modes_without_a_range_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.tif"
    Image.fromarray(array).save(path)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_value_range_says_what_is_black_and_white(tmp_path: Path, bits: int) -> None:
    white = 2**bits - 1
    deep = (np.arange(48).reshape(6, 8) * white / 47).astype(np.uint16)
    expected = np.repeat((deep.astype(np.float64) * 255 / white).round()[..., None], 3, axis=-1)
    for name, values in (("a.png", deep), ("b.tif", deep), ("c.tif", deep.astype(np.int32)), ("d.tif", deep / 4)):
        Image.fromarray(values.astype(np.float32) if name == "d.tif" else values).save(tmp_path / name)
        top = white / 4 if name == "d.tif" else white
        for source in (tmp_path / name, Image.open(tmp_path / name)):
            np.testing.assert_array_equal(read_image(source, value_range=(0, top)), expected)
    colors = np.repeat(deep[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(colors, value_range=(0, white)), expected)
    np.testing.assert_array_equal(read_image(colors / white, value_range=(0, 1)), expected)
    assert read_image(colors, value_range=(white, 2 * white)).max() == 0  # others are clipped
    eight = noise(6, 8)
    np.testing.assert_array_equal(read_image(eight, value_range=(0, white)), eight)  # 8-bit images are as they are


def test_values_that_are_no_number_are_black() -> None:
    values = np.full((1, 2, 3), np.nan)
    values[0, 1] = np.inf
    assert read_image(values, value_range=(0, 1)).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (0,), 4095, "ab", (0, 1, 2)])
def test_wrong_ranges_are_refused(value_range: Any) -> None:
    with pytest.raises(ValueError, match=r"^value_range must be two numbers, black and white"):
        read_image(noise(2, 2), value_range=value_range)


@pytest.mark.parametrize(("brightest", "white"), [(200, 255), (1000, 1023), (4095, 4095), (12_000, 16383)])
def test_images_that_come_out_nearly_black_are_warned_of_once(
    tmp_path: Path, brightest: int, white: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isanet.images.reading._warned", set())
    for name in ("a.png", "b.png"):
        Image.fromarray(np.array([[0, brightest]], np.uint16)).save(tmp_path / name)
        read_image(tmp_path / name)
    (line,) = caplog.messages
    assert "a.png" in line
    assert f"value_range=(0, {white}) (--value-range 0,{white})" in line


def test_images_of_16_bits_and_black_ones_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for brightest in (0, 16384, 65535):
        read_image(Image.fromarray(np.array([[0, brightest]], np.uint16)))
    assert caplog.messages == []


def test_an_image_whose_file_is_closed_is_said_to_be_that(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 50)).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as closed:
        pass
    with (tmp_path / "image.png").open("rb") as file:
        also = Image.open(file)
    for image in (closed, also):
        with pytest.raises(ImageError, match=r"^the PIL image was not read before its file was closed; pass its path"):
            read_image(image)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_of_several_frames_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (read_image(path) == [255, 0, 0]).all()


# Where EXIF says that row 0 and column 0 of the stored image are seen (EXIF 2.32, 4.6.4 A), undone by hand.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),  # shown turned clockwise, so stored turned the other way
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = [250, 5, 5]  # red top left, blue bottom left: no two orientations look alike
    upright[16:, :16] = [5, 5, 250]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    options = {"quality": 100} if suffix in ("jpg", "webp") else {}
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, **options)
    got = read_image(path)
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < 8
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image), got)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow may say so, and reads on
@pytest.mark.parametrize("block", [b"garbage!", b"II*\0\xff\xff\xff\xff", b"", b"MM\0*\0\0\0\x08\0\x05\x01\x12"])
def test_damaged_exif_counts_as_none(tmp_path: Path, block: bytes) -> None:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (9, 8), "red").save(path, exif=b"Exif\0\0" + block)
    assert read_image(path).shape == (8, 9, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    image = noise(*size)
    Image.fromarray(image).save(tmp_path / "thin.png")
    np.testing.assert_array_equal(read_image(tmp_path / "thin.png"), image)
    assert preprocess(image, **VOC).shape[1:] == target_size(*size, short_edge=512, long_edge=2048)


# --- not an image ----------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int = 60_000, height: int = 60_000) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", r"0 bytes"),
        (b"hello, I am no image at all", "text"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"%PDF-1.7 ............", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "EPS"),
        (bytes(range(128, 200)), "unknown data"),
        (b"\x89PNG\r\n\x1a\n", "PNG, but its header"),
        (b"BM", "BMP, but its header"),
        (b"\xff\xd8\xff", "JPEG, but its header"),
    ],
)
def test_other_files_are_refused_saying_what_they_look_like(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=found) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_eps_never_reaches_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    path = tmp_path / "drawing.eps"
    Image.new("RGB", (8, 8)).save(path)

    def forbidden(*_: Any, **__: Any) -> None:
        pytest.fail("Ghostscript would have been started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", forbidden)
    with pytest.raises(ImageError, match="EPS"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp", "ppm"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("strict", [True, False])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, kept: float, strict: bool) -> None:
    path = tmp_path / f"cut.{suffix}"
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.fromarray(noise(64, 64)).save(path, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")  # the outcome does not hang on the caller's filters
        with pytest.raises(ImageError) as caught:
            read_image(path)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)  # the next step


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp", "ppm"])
def test_bytes_and_open_files_are_read_as_the_file_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(9, 7)).save(path)
    expected, data = read_image(path), path.read_bytes()
    with path.open("rb") as file, tempfile.SpooledTemporaryFile() as spooled, zipfile.ZipFile(tmp_path / "z", "w") as z:
        file.seek(5)
        spooled.write(data)  # its position is the end
        z.writestr("image", data)
        with z.open("image") as member:
            for source in (data, io.BytesIO(data), file, spooled, member):
                np.testing.assert_array_equal(read_image(source), expected)
                np.testing.assert_array_equal(read_image(source), expected)  # it was left open
    with pytest.raises(ImageError, match=r"the image data .*: (cut|fetch|.*damaged)"):
        read_image(data[: len(data) // 2])
    with pytest.raises(ImageError, match="the image data is 7x9, 63 pixels, more than the limit"):
        read_image(data, max_pixels=62)


def test_bytes_are_no_path_of_a_file_to_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored = io.BytesIO()
    Image.fromarray(noise(9, 7)).save(stored, "BMP")
    Path("the image data").write_bytes(bytes(len(stored.getvalue())))  # Pillow maps files of this format
    np.testing.assert_array_equal(read_image(stored), noise(9, 7))


def test_open_files_that_cannot_be_read_are_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(noise(3, 3)).save(path)
    with (
        path.open(encoding="latin-1") as text,
        pytest.raises(ImageError, match="opened as text; open it with mode 'rb'"),
    ):
        read_image(text)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"cannot be read: .*closed file"):
        read_image(text)  # type: ignore[arg-type]
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with pytest.raises(ImageError, match=r"cannot be read: .*; pass an open file that can seek, or its bytes"):
            read_image(process.stdout)  # type: ignore[arg-type]
    for data, found in ((b"", r"the image data is empty \(0 bytes\)"), (b"<html>", "looks like .*; convert it to one")):
        with pytest.raises(ImageError, match=found):
            read_image(data)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png does not exist"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be used: it has a null character"):
        read_image("a\0b.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):  # and does not wait for a writer
        read_image(tmp_path / "pipe.png")


def test_huge_declared_size_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"60000x60000.*3,600,000,000 pixels.*178,956,970"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"", order: str = "<", big: bool = False) -> bytes:
    """A TIFF of one directory; a tag is (number, type, count, value), an offset of -1 is that of `data`."""
    width = 8 if big else 4
    start = 2 * width + (8 if big else 2) + (4 + 2 * width) * len(tags) + width
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *([43, 8, 0, 16] if big else [42, 8])
    )
    head += struct.pack(order + ("Q" if big else "H"), len(tags))
    for number, kind, count, value in sorted(tags):
        value = start if value == -1 else value
        if count == 1 and kind == 3 and order == ">":
            value <<= 8 * (width - 2)  # short values stand at the left
        head += struct.pack(order + ("HHQQ" if big else "HHII"), number, kind, count, value)
    return head + bytes(width) + data


def tiled(side: int, data: bytes, **options: Any) -> bytes:
    """A gray TIFF of 16x16 pixels in one tile, compressed with zlib."""
    compressed = zlib.compress(data)
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, -1), (325, 4, 1, len(compressed))]
    return tiff(tags + options.pop("more", []), compressed, **options)


def overlapping(count: int, size: int) -> list[tuple[int, int, int, int]]:
    """Tags that are all the same bytes of the file."""
    return [(number, 7, size, 8) for number in range(40_000, 40_000 + count)]


def jpeg_with(segments: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    rest = buffer.getvalue()[2:]
    return b"\xff\xd8" + b"".join(b"\xff\xe1" + struct.pack(">H", len(one) + 2) + one for one in segments) + rest


def png_with(chunks: bytes) -> bytes:
    return (small := huge_png(1, 1))[:33] + chunks + small[33:]


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tiles_of_a_tiff_are_bounded_by_its_image(tmp_path: Path, order: str, big: bool) -> None:
    path = tmp_path / "tiles.tif"
    path.write_bytes(tiled(64, bytes([7]) * 64 * 64, order=order, big=big))
    assert (read_image(path) == 7).all()
    path.write_bytes(tiled(45_056, bytes(1 << 20), order=order, big=big))  # took 1.9 GB
    with pytest.raises(ImageError, match="16x16 pixels in tiles of 45056x45056"):
        read_image(path)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tags_of_a_tiff_are_bounded_by_its_file(tmp_path: Path, order: str, big: bool) -> None:
    path = tmp_path / "tags.tif"
    path.write_bytes(tiled(16, bytes(256), order=order, big=big, more=overlapping(1, 1 << 20)) + bytes(1 << 20))
    assert read_image(path).shape == (16, 16, 3)
    path.write_bytes(tiled(16, bytes(256), order=order, big=big, more=overlapping(4000, 1 << 20)) + bytes(1 << 20))
    with pytest.raises(ImageError, match="its tags take more memory"):  # 4.2 GB, and 26 s
        read_image(path)
    path.write_bytes(tiled(16, bytes(256), order=order, big=big, more=[(40_000, 3, 1 << 21, 8)]) + bytes(1 << 22))
    with pytest.raises(ImageError, match="its tags take more memory"):  # as numbers of Python
        read_image(path)


def test_tags_are_counted_in_the_directory_that_is_read(tmp_path: Path) -> None:
    path, count = tmp_path / "tags.tif", 3 << 20
    strips = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 0),
        (278, 4, 1, 8),
    ]
    data = tiff([*strips, (279, 4, 1, 64), (282, 3, count, 0)], bytes(2 * count), order=">")
    # Pillow takes BigTIFF of this byte order for a classic one, whose directory is where the next number says
    path.write_bytes(b"MM\0+" + struct.pack(">IQ", 16, 1 << 30) + data[8:])
    with pytest.raises(ImageError, match="its tags take more memory"):
        read_image(path)


def test_a_file_larger_than_the_largest_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    Image.new("RGB", (8, 8)).save(path)
    with path.open("r+b") as file:
        file.truncate(8 * 64 + MAX_TAG_BYTES)
    assert read_image(path, max_pixels=64).shape == (8, 8, 3)
    with path.open("r+b") as file:
        file.truncate(8 * 64 + MAX_TAG_BYTES + 1)
    with pytest.raises(ImageError, match=r"has 67,109,377 bytes, more than .* an image of 64 pixels"):
        read_image(path, max_pixels=64)


EXIF = tiff(overlapping(20_000, 1 << 18), bytes(1 << 18))
TEXT = zlib.compress(bytes(1 << 20), 9)
GIF_FRAME = b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0;"
BOMBS = {
    "EXIF.png": png_with(chunk(b"eXIf", EXIF)),
    "EXIF as text.png": png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 5\n" + EXIF[:400_000].hex().encode()))
    ),
    "EXIF.jpg": jpeg_with([b"Exif\0\0" + EXIF[at : at + 65_000] for at in range(0, len(EXIF), 65_000)]),
    "MPO.jpg": jpeg_with([b"MPF\0" + tiff(overlapping(2700, 30_000), bytes(30_000))]),
    "texts.png": png_with(b"".join(chunk(b"zTXt", b"%d\0\0" % i + TEXT) for i in range(100))),
    "texts in Unicode.png": png_with(b"".join(chunk(b"iTXt", b"%d\0\1\0\0\0" % i + TEXT) for i in range(100))),
    "profile.png": png_with(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100 << 20), 9))),
    "comment.gif": b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0" + GIF_FRAME,
    "frame.gif": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;",
    "canvas.webp": (
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\xff\x7f\0\xff\x7f\0"
    ),
}  # fmt: skip
"""Small files that other readers, or Pillow before 13, take gigabytes or minutes for."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path: Path, name: str) -> None:
    """In a process of its own: the most that this one ever took may be more."""
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    script = f"""
import contextlib, resource, warnings
warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF
from isanet.images.reading import read_image
from isanet.errors import ImageError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with contextlib.suppress(ImageError):
    read_image({str(path)!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert 1024 * int(output(python(script))) < 4 * len(BOMBS[name]) + 100e6


def test_pillows_own_limit_does_not_leak(tmp_path: Path) -> None:
    """Between its limit and twice that Pillow warns: our limit alone decides, and no warning is seen."""
    path = tmp_path / "large.png"
    path.write_bytes(huge_png(10_000, 10_000))
    with pytest.raises(ImageError, match="limit of 5,000"):
        read_image(path, max_pixels=5_000)
    with pytest.raises(ImageError, match="cut short or damaged"):  # within the limit: decoding starts
        read_image(path)


def test_max_pixels_holds_for_every_source(tmp_path: Path) -> None:
    image = noise(10, 10)
    Image.fromarray(image).save(tmp_path / "a.png")
    for source in (image, Image.fromarray(image), tmp_path / "a.png"):
        assert read_image(source, max_pixels=100).shape == (10, 10, 3)
        with pytest.raises(ImageError, match="10x10, 100 pixels, more than the limit of 99"):
            read_image(source, max_pixels=99)


def test_reads_from_memory_backed_pil_images() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(5, 7)).save(buffer, "PNG")
    with Image.open(buffer) as image:
        np.testing.assert_array_equal(read_image(image), noise(5, 7))


def test_images_of_a_folder_are_found_by_suffix(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images_in(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(ImageError, match="no images in the folder"):
        images_in(tmp_path / "folder.png")
    with pytest.raises(ImageError, match="absent cannot be read"):
        images_in(tmp_path / "absent")
