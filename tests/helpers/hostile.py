"""Files as torch.save and safetensors write them, built by hand so that any part of them can lie."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from isanet.weights.checkpoint import LEGACY_MAGIC
from isanet.weights.pickles import File

MARKER = "was_run"
COMMAND = f"echo run > {MARKER}"


# --- pieces of pickles, without PROTO before and STOP after them ----------------------------------------------


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def integer(value: int) -> bytes:
    length = value.bit_length() // 8 + 1
    head = b"\x8a%c" % length if length < 256 else b"\x8b" + length.to_bytes(4, "little")
    return head + value.to_bytes(length, "little", signed=True)


def tuple_of(*pieces: bytes) -> bytes:
    return b"(" + b"".join(pieces) + b"t"


def integers(*values: int) -> bytes:
    return tuple_of(*map(integer, values))


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_of(*arguments) + b"R"


def storage(
    key: bytes = text("0"), numel: bytes = integer(4), kind: str = "torch.FloatStorage", view: bytes = b""
) -> bytes:
    return tuple_of(text("storage"), name(kind), key, text("cpu"), numel, view) + b"Q"


def tensor(
    offset: bytes = integer(0),
    size: bytes = integers(4),
    stride: bytes = integers(1),
    of: bytes = storage(),
) -> bytes:
    return call("torch._utils._rebuild_tensor_v2", of, offset, size, stride, b"\x89", call("collections.OrderedDict"))


def latin1(data: bytes, encoding: str = "latin1") -> bytes:
    """Bytes in protocol 2."""
    return call("_codecs.encode", text(data.decode("latin1")), text(encoding))


def numpy_dtype(code: bytes = text("f4"), state: bytes = b"") -> bytes:
    made = call("numpy.dtype", code, b"\x89", b"\x88")
    return made + (state or tuple_of(integer(3), text("<"), b"NNN", integer(-1), integer(-1), integer(0))) + b"b"


def numpy_array(
    shape: bytes = integers(4),
    dtype: bytes = numpy_dtype(),
    fortran: bytes = b"\x89",
    data: bytes = latin1(b"\0\0\x80\x3f" * 4),
    version: bytes = integer(1),
    made: bytes = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), integers(0), latin1(b"b")),
) -> bytes:
    return made + tuple_of(version, shape, dtype, fortran, data) + b"b"


def nested(levels: int) -> bytes:
    """A tuple of two tuples of two tuples of ...: short to write, endless to print, hash or compare."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))


SYSTEM = call("os.system", text(COMMAND))


# --- whole files ----------------------------------------------------------------------------------------------

FOUR_FLOATS = b"\0\0\x80\x3f" * 4


def archive(pickle: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file as torch.save writes it; `entries` beside data.pkl, by default one storage of four ones."""
    entries = {"data/0": FOUR_FLOATS} if entries is None else entries
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for path, data in {"data.pkl": b"\x80\x02" + pickle + b".", "version": b"3\n", **entries}.items():
            file.writestr(f"archive/{path}", data)
    return buffer.getvalue()


def legacy(
    pickle: bytes,
    *,
    system: bytes = b"}" + text("little_endian") + b"\x88s",
    keys: bytes = b"]" + text("0") + b"a",
    numel: int = 4,
    data: bytes = FOUR_FLOATS,
) -> bytes:
    """A file as torch wrote it before 1.6."""
    pickles = [integer(1001), system, pickle, keys]
    body = b"".join(b"\x80\x02" + each + b"." for each in pickles)
    return LEGACY_MAGIC + body + (numel % 2**64).to_bytes(8, "little") + data


def paddle(**values: bytes) -> bytes:
    """A file as paddle.save writes it."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in values.items()) + b"u."


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `header` may be raw bytes or anything for JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def changed(valid: File, numbers: np.random.RandomState, likely: bytes) -> File:
    """A file with one to three bytes changed, mostly to the `likely` ones or to extremes."""
    data = valid.data.copy()
    places = numbers.randint(len(data), size=numbers.randint(1, 4))
    data[places] = numbers.choice([0, 1, 0x7F, 0xFF, *likely, numbers.randint(256)], len(places))
    return valid._replace(data=data)


def file(folder: Path, data: bytes) -> Path:
    path = folder / "file.pth"
    path.write_bytes(data)
    return path
