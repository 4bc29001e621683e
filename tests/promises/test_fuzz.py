"""Real files, changed in ways that nobody thought of: each is read, or refused by a named error, at bounded cost.

The same changes each time, and few of them. `ISANET_FUZZ_EXAMPLES=10000 pytest tests/promises/test_fuzz.py` tries as
many others for each test; hypothesis then shows the smallest change that fails, which belongs into an `@example`.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from torch import Tensor

import isanet
from isanet.errors import CheckpointError, DatasetError, ImageError, ManifestError
from isanet.images import masks, preprocess, reading
from isanet.weights import cache, checkpoint, hub, manifest
from isanet.weights.pickles import MAX_SHARING, File
from isanet.zoo.pretrained import imagenet_preprocessing, load_file
from tests.helpers import hostile, stand_in, tiny_zoo
from tests.helpers.hostile import (
    archive,
    integer,
    integers,
    latin1,
    legacy,
    name,
    numpy_array,
    numpy_dtype,
    safetensors,
    storage,
    tensor,
    text,
)
from tests.helpers.tiny_zoo import saved

ASKED = os.environ.get("ISANET_FUZZ_EXAMPLES")
MEMORY = 128 << 20
"""Bytes that reading may take, beside four times those of the file."""
MAX_PIXELS = 1 << 20
MAX_MESSAGE = 3000
"""Characters of the longest message."""

set_hypothesis_home_dir(tempfile.gettempdir())  # it would make a folder here
fuzz = settings(
    max_examples=int(ASKED or 200),
    derandomize=not ASKED,
    database=None,
    deadline=None,  # CPU time is bounded below, whatever else the machine does
    suppress_health_check=list(HealthCheck),
)


# --- changes ----------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 4096, 65535, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
NUMBERS += ((1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, other: bytes = b"") -> bytes:
    """Bytes with up to four changes: flipped, cut, doubled, filled in, joined to another file's, numbers replaced."""
    for _ in range(draw(st.integers(1, 4))):
        end = len(data)
        place = draw(st.integers(0, end) | st.integers(0, min(end, 300)) | st.integers(max(0, end - 300), end))
        length = draw(st.integers(0, 16) | st.integers(0, max(end - place, 0)))
        match draw(st.sampled_from(["flip", "number", "number", "insert", "cut", "drop", "double", "move", "splice"])):
            case "flip":
                data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
            case "number":
                size = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * size)
                data = (
                    data[:place]
                    + number.to_bytes(size, draw(st.sampled_from(["little", "big"])))
                    + data[place + size :]
                )
            case "insert":
                data = data[:place] + draw(st.binary(max_size=16)) + data[place:]
            case "cut":
                data = data[:place]
            case "drop":
                data = data[:place] + data[place + length :]
            case "double":
                data = data[: place + length] + data[place:]
            case "move":
                piece = data[place : place + length]
                data = data[:place] + data[place + length :]
                goal = draw(st.integers(0, len(data)))
                data = data[:goal] + piece + data[goal:]
            case _:
                data = data[:place] + other[draw(st.integers(0, len(other))) :]
    return data


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "F32", "F64", "\x1b[2J\ud800", "x" * 3000, "../x", [], {}, [[]], 0, 1, -1, 0.5, 1e308),
    *(float("nan"), float("inf"), 1 << 31, 1 << 62, 1 << 64, -(1 << 63), 10**400, [1 << 62] * 3, [0, 1 << 63], ["0"]),
)


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one to three of its values, keys or places changed."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        spot = document
        while True:  # down to some value
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(spot[key], dict | list) and draw(st.booleans() | st.just(True)):
                spot = spot[key]
                continue
            match draw(st.sampled_from(["replace", "replace", "remove", "rename", "nest", "swap"])):
                case "replace":
                    spot[key] = draw(st.sampled_from(ODD_VALUES) | st.integers() | st.text(max_size=8))
                case "remove":
                    del spot[key]
                case "rename" if isinstance(spot, dict):
                    spot[draw(st.text(max_size=8) | st.sampled_from(keys))] = spot.pop(key)
                case "nest":
                    for _ in range(draw(st.sampled_from([1, 50, 400]))):
                        spot[key] = [spot[key]]
                case _:
                    spot[key] = spot[draw(st.sampled_from(keys))]
            break
    return document


def as_json(draw: st.DrawFn, document: Any) -> bytes:
    """A changed document as text, sometimes with broken syntax."""
    data = json.dumps(draw(altered(document))).encode()
    return draw(damaged(data, b'{"a":' * 2000)) if draw(st.integers(0, 3)) == 0 else data


# --- cost -------------------------------------------------------------------------------------------------------


def peak() -> int:
    """Peak memory of this process in bytes since `clear_refs` was last written; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


@contextmanager
def bounded(size: int, *errors: type[Exception], extra: int = 0) -> Iterator[None]:
    """The body raises no other errors, and their messages are fit for a terminal; its cost is bounded."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    before, started = peak(), time.process_time()
    caught: Exception | None = None
    try:
        yield
    except errors as error:
        caught = error
    if caught is not None:
        message = str(caught)
        assert len(message) < MAX_MESSAGE
        assert all(char.isprintable() or char == "\n" for char in message), ascii(message)
        assert not isinstance(caught.__cause__, MemoryError)
    assert peak() - before < MEMORY + extra + 4 * size
    assert time.process_time() - started < 10


# --- checkpoints ------------------------------------------------------------------------------------------------

OURS = isanet.ISANet(**tiny_zoo.ARCHITECTURE, preprocessing=imagenet_preprocessing())
SMALL = {
    "model": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bool), "c": torch.zeros(0, 2)},
    "optimizer": {"state": {0: {"step": torch.tensor(1), "momentum": None}}, "lr": [0.1, (1, "ü")]},
}


def paddle_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        arrays = {name: value.numpy() for name, value in tiny_zoo.upstream_state("paddleseg").items()}
        return stand_in.paddle_file(Path(folder) / "file", arrays).read_bytes()


FILES = {
    "small archive": saved(SMALL),
    "small legacy": saved(SMALL, _use_new_zipfile_serialization=False),
    "small safetensors": checkpoint.serialize({"a": torch.ones(2, 3), "b": torch.ones(2)}, {"note": "ü"}),
    "upstream archive": saved({"epoch": 60, "model": tiny_zoo.upstream_state()}),
    "upstream legacy": saved(tiny_zoo.upstream_state("mmsegmentation"), _use_new_zipfile_serialization=False),
    "small paddle 2": (stand_in.DATA / "paddle_tiny_2021.pdparams").read_bytes(),
    "small paddle 4": (stand_in.DATA / "paddle_tiny_protocol4.pdparams").read_bytes(),
    "upstream paddle": paddle_bytes(),
    "openseg legacy": (stand_in.DATA / "openseg_tiny_2020.pth").read_bytes(),
    "ours": hub.serialized(OURS.state_dict(), OURS.config, OURS.provenance),
}


def check_checkpoint(data: bytes) -> None:
    """It is read in full, as some model, or refused; no tensor reaches beyond its storage."""
    file = File("file.pth", np.frombuffer(bytearray(data), np.uint8), sha256(data).hexdigest())
    with bounded(len(data), CheckpointError):
        contents, _ = checkpoint.read_checkpoint(file)
        shown = 0
        left: list[object] = [contents]
        seen: set[int] = set()
        while left:
            each = left.pop()
            if isinstance(each, Tensor):
                shown += each.nbytes
                assert each.device.type == "cpu"
                each.view(-1)[:1] if each.is_contiguous() else each.clone()
            elif isinstance(each, dict | list | tuple) and id(each) not in seen:
                seen.add(id(each))
                left += each.values() if isinstance(each, dict) else each
            else:
                assert (
                    each is None
                    or isinstance(each, bool | int | float | str | bytes | dict | list | tuple)
                    or (type(each).__name__ in ("Name", "_Storage", "Opaque"))
                )
        assert shown <= MAX_SHARING * len(data)
        load_file(file)


@pytest.mark.parametrize("kind", FILES)
@fuzz
@given(st.data())
def test_a_damaged_checkpoint(kind: str, data: st.DataObject) -> None:
    check_checkpoint(data.draw(damaged(FILES[kind], FILES["small archive"])))


PIECES = (
    *(b"(", b")", b"]", b"}", b"N", b"\x88", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"\x87"),
    *(
        b"R",
        b"b",
        b"Q",
        b"h\x00",
        b"q\x00",
        b"\x94",
        b"\x93",
        b"\x81",
        b"o",
        b".",
        b"P0\n",
        b"I01\n",
        b"F1\n",
        b"L1L\n",
    ),
    *(integer(1 << 62), integer(-1), integer(1 << 200), integers(1 << 31, 1 << 31), text("storage"), text("x" * 300)),
    *(storage(), storage(numel=integer(1 << 62)), tensor(), tensor(stride=integers(0)), tensor(size=integers(1 << 40))),
    *(name("collections.OrderedDict"), name("torch._utils._rebuild_tensor_v2"), name("torch.BoolStorage")),
    *(hostile.SYSTEM, hostile.nested(40), b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"\x95" + b"\xff" * 8),
)


def parts(pickled: bytes) -> list[bytes]:
    """The instructions of a pickle, without its first and its last."""
    places = [place for _, _, place in pickletools.genops(pickled) if place is not None]
    return [pickled[start:stop] for start, stop in pairwise(places[1:])]


def entries_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {each.partition("/")[2]: file.read(each) for each in file.namelist()}


ENTRIES = entries_of(FILES["small archive"])
PICKLE = parts(ENTRIES.pop("data.pkl"))
ENTRIES.pop("version")
PADDLE = {kind: parts(FILES[kind]) for kind in ("small paddle 2", "small paddle 4")}
ARRAYS = (
    *(numpy_array(), numpy_array(shape=integers(1 << 40)), numpy_array(shape=integers(0, 1 << 62)), latin1(b"b")),
    *(numpy_dtype(), name("numpy.ndarray"), name("numpy.dtype"), name("_codecs.encode"), text("latin1"), text("O8")),
    *(name("numpy.core.multiarray._reconstruct"), b"X\0\0\2\0" + b"x" * (1 << 17), b"C\2ab", text("x" * (1 << 17))),
)


def other_instructions(draw: st.DrawFn, pickle: list[bytes], pieces: tuple[bytes, ...]) -> bytes:
    """A pickle of which some instructions are others, or at other places."""
    pickle = list(pickle)
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(pickle)))
        stop = place + draw(st.integers(0, 2) | st.integers(0, 40))
        match draw(st.sampled_from(["insert", "insert", "replace", "drop", "double", "repeat"])):
            case "insert":
                pickle.insert(place, draw(st.sampled_from(pieces)))
            case "replace":
                pickle[place : place + 1] = [draw(st.sampled_from(pieces))]
            case "drop":
                del pickle[place:stop]
            case "double":
                pickle[place:place] = pickle[place:stop]
            case _:
                pickle[place : place + 1] *= draw(st.sampled_from([2, 100, 3000]))
    return b"".join(pickle)


@fuzz
@given(st.data())
def test_a_pickle_of_other_instructions(data: st.DataObject) -> None:
    whole = other_instructions(data.draw, PICKLE, PIECES)
    check_checkpoint(archive(whole, ENTRIES) if data.draw(st.booleans()) else legacy(whole))


@pytest.mark.parametrize("kind", PADDLE)
@fuzz
@given(st.data())
def test_a_paddle_file_of_other_instructions(kind: str, data: st.DataObject) -> None:
    whole = other_instructions(data.draw, PADDLE[kind], (*PIECES, *ARRAYS, *ARRAYS))
    check_checkpoint(FILES[kind][:2] + whole + b".")


FIELDS = {  # of the records of a zip file: where its numbers are, and of how many bytes
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x01\x02": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\x06\x06": ((4, 8), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\x06\x07": ((4, 4), (8, 8), (16, 4)),
}


@fuzz
@given(st.data())
def test_an_archive_whose_records_lie(data: st.DataObject) -> None:
    whole = bytearray(FILES["small archive"])
    records = [place for place in range(len(whole)) if bytes(whole[place : place + 4]) in FIELDS]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(records))
        offset, size = data.draw(st.sampled_from(FIELDS[bytes(whole[place : place + 4])]))
        old = int.from_bytes(whole[place + offset : place + offset + size], "little")
        number = data.draw(st.sampled_from(NUMBERS) | st.sampled_from(records) | st.integers(old - 4, old + 4))
        whole[place + offset : place + offset + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    check_checkpoint(bytes(whole))


@pytest.mark.parametrize("kind", ["small safetensors", "ours"])
@fuzz
@given(st.data())
def test_a_safetensors_header_of_other_values(kind: str, data: st.DataObject) -> None:
    start = 8 + int.from_bytes(FILES[kind][:8], "little")
    header = data.draw(st.composite(as_json)(json.loads(FILES[kind][8:start])))
    check_checkpoint(safetensors(header, FILES[kind][start:]))


# --- texts ------------------------------------------------------------------------------------------------------

MANIFEST = json.loads(manifest.manifest_path().read_text())
SHORT_MANIFEST = {
    **MANIFEST,
    **{part: dict(list(MANIFEST[part].items())[-1:]) for part in ("weights", "backbones")},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@fuzz
@given(content=st.composite(as_json)(SHORT_MANIFEST))
@example(content=json.dumps({"schema": "x" * 4000}).encode())  # once shown in full
def test_a_manifest_of_other_values(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with bounded(len(content), ManifestError):
        manifest.load_manifest(path)
        manifest.load_backbones(path)


@fuzz
@given(content=st.composite(as_json)(OURS.config))
@example(content=json.dumps({**OURS.config, "dropout": float("nan")}).encode())  # once accepted
@example(content=json.dumps({**OURS.config, "\x1b[2J": 1}).encode())  # once shown uncleaned
def test_a_config_of_other_values(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(FILES["ours"])
    (tmp_path / "config.json").write_bytes(content)
    with bounded(len(content) + len(FILES["ours"]), CheckpointError):
        model = isanet.from_pretrained(tmp_path)
        assert model.config == json.loads(json.dumps(model.config))
        if model.preprocessing is not None:  # it can be used
            preprocess.preprocess(np.zeros((1, 1, 3), np.uint8), **{**model.preprocessing, "short_edge": 1})


RECORD = {
    "file": "m-01234567.safetensors",
    "file_sha256": "01" * 32,
    "source": "https://example.org/m.pth",
    "source_sha256": "ab" * 32,
    "source_size": 10,
    "layout": "isanet",
    "converter": 1,
    "date": "2020-01-01T00:00:00+00:00",
}


@fuzz
@given(content=st.composite(as_json)(RECORD))
def test_a_record_of_other_values(home: Path, content: bytes) -> None:
    home.mkdir(exist_ok=True)
    (home / "m.json").write_bytes(content)
    with bounded(len(content)):
        record = cache.read_record("m")
    assert record is None or Path(record.file).name == record.file


# --- images ---------------------------------------------------------------------------------------------------


def drawn(mode: str, kind: str, **options: Any) -> bytes:
    """An image of 24 x 16 pixels."""
    pixels = np.random.RandomState(0).randint(0, 256, (16, 24, 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def heic() -> bytes:
    buffer = io.BytesIO()
    pillow_heif.encode("RGB", (24, 16), Image.open(io.BytesIO(drawn("RGB", "PNG"))).tobytes(), buffer)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    return exif


IMAGES = {
    "jpeg": drawn("RGB", "JPEG", exif=turned()),
    "jpeg progressive": drawn("CMYK", "JPEG", progressive=True),
    "mpo": drawn("RGB", "MPO", save_all=True, append_images=[Image.new("RGB", (24, 16))]),
    "png": drawn("RGBA", "PNG", exif=turned()),
    "png palette": drawn("P", "PNG", transparency=3),
    "png 16 bits": drawn("I;16", "PNG"),
    "bmp": drawn("RGB", "BMP"),
    "bmp palette": drawn("P", "BMP"),
    "gif": drawn("P", "GIF", save_all=True, append_images=[Image.new("P", (24, 16))], loop=0),
    "tiff": drawn("RGB", "TIFF", exif=turned()),
    "tiff lzw": drawn("L", "TIFF", compression="tiff_lzw"),
    "tiff deflate": drawn("I;16", "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": drawn("RGB", "TIFF", compression="jpeg"),
    "webp": drawn("RGB", "WEBP", exif=turned()),
    "webp lossless": drawn("RGBA", "WEBP", lossless=True),
    "ppm": drawn("RGB", "PPM"),
    "pgm": drawn("L", "PPM"),
    "pbm": drawn("1", "PPM"),
    "avif": drawn("RGB", "AVIF", exif=turned()),
    "heic": heic(),
}


def repaired(data: bytes) -> bytes:
    """A PNG with the right checksum after each chunk, without which decoders skip the chunk."""
    place, result = 8, bytearray(data[:8])
    while place + 12 <= len(data):
        length = min(int.from_bytes(data[place : place + 4], "big"), len(data) - place - 12)
        chunk = data[place + 4 : place + 8 + length]
        result += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + length
    return bytes(result)


@pytest.mark.parametrize("kind", IMAGES)
@fuzz
@given(data=st.data())
def test_a_damaged_image(path: Path, kind: str, data: st.DataObject) -> None:
    content = data.draw(damaged(IMAGES[kind], IMAGES["png palette"]))
    if kind.startswith("png") and data.draw(st.booleans()):
        content = repaired(content)
    path.write_bytes(content)
    with bounded(len(content), ImageError, extra=24 * MAX_PIXELS):
        source = content if data.draw(st.booleans()) else path
        pixels = reading.read_image(source, max_pixels=MAX_PIXELS)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert 0 < pixels.size <= 3 * MAX_PIXELS
    with bounded(len(content), DatasetError, extra=24 * MAX_PIXELS):
        values = masks.read_mask(path, max_pixels=MAX_PIXELS)
        assert values.ndim == 2
        assert values.dtype in (np.uint8, np.uint16, np.int32)
