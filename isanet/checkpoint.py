"""Reading strangers' files into state dicts, writing safetensors, and fitting tensors to a model.

A file is read into memory once; what was hashed is what is parsed, whatever happens to the file meanwhile.

A .pth file is a pickle, a program that may call anything. It is read in layers, each of which stops what the
one before cannot see, and none of which has a fallback:

1. The first bytes must be those of a zip archive or of torch's older format; anything else is named.
2. The archive must be as torch.save writes it: stored, not compressed; inside the file; no name twice.
3. The pickle's instructions are scanned before they are run: bounded in size and in what they ask to remember.
4. The unpickler knows nothing but an `OrderedDict` and descriptions of tensors. No function of torch, or of
   anyone, is reachable from it; a file that names another is refused with that name.
5. A tensor is a view of the bytes already in memory, and only if it lies inside its storage, and the storage
   inside the file. Nothing is allocated on a file's word.

`torch.load` is not used: with one parser there are no two readings of one file, a file cannot ask for more
memory than it has bytes, and its weights need no copy.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from isanet.errors import CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError

MAX_FILE_BYTES = 4 << 30
"""Largest file that is read: eight times the largest ISANet with its optimizer."""

MAX_PICKLE_BYTES = 32 << 20
"""Largest description of tensors; those of the published files have less than one megabyte."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Names of typed storages in a pickle."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Memory(io.RawIOBase):
    """Memory read as a file, without the copy that io.BytesIO makes."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.memory)}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        chunk = self.memory[self.position : self.position + len(buffer)]
        buffer[: len(chunk)] = chunk
        self.position += len(chunk)
        return len(chunk)


class File(NamedTuple):
    """The bytes of a file in memory, and their hash."""

    name: str
    data: np.ndarray[tuple[int], np.dtype[np.uint8]]
    sha256: str


def read_file(path: Path) -> File:
    """Read a file once, whole, and hash what was read.

    Raises:
        CheckpointFormatError: It is larger than `MAX_FILE_BYTES`, or changed its size while it was read.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size > MAX_FILE_BYTES:
            raise CheckpointFormatError(f"{path} has {size:,} bytes; no ISANet has over {MAX_FILE_BYTES:,}")
        file.seek(0)
        data = np.empty(size, dtype=np.uint8)
        if file.readinto(data) != size:  # type: ignore[arg-type]
            raise CheckpointFormatError(f"{path} became shorter while it was read; try again when nothing writes to it")
    return File(str(path), data, sha256(data.data).hexdigest())


def read_checkpoint(file: File) -> tuple[object, dict[str, str]]:
    """Whatever containers and tensors a torch or safetensors file holds, and the metadata of the latter.

    The tensors share the memory of the file.

    Raises:
        CheckpointFormatError: It is no such file, or broken; the message says what it looks like.
        UnsafeCheckpointError: It names something beyond plain tensors and containers.
    """
    head = file.data[:512].tobytes()
    if head.startswith(b"PK\x03\x04"):
        return _read_archive(file), {}
    if head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."):
        return _read_legacy(file), {}
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < len(file.data):
        return read_safetensors(file)
    raise CheckpointFormatError(f"{file.name} is not a checkpoint: {looks_like(file)}")


def looks_like(file: File) -> str:
    """What a file that is not a checkpoint seems to be, in a few words."""
    head = file.data[:512].tobytes()
    start = head.lstrip().lower()
    if not head:
        return "it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, as a login portal or a parked domain sends"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it first"
    if head[:1] == b"\x80":
        return "it is a pickle, but not one that torch.save wrote"
    if b"ustar" in head:
        return "it is a tar archive; if torch before 0.4 wrote it, save it again with a current one"
    if not head.strip(b"\0"):
        return "it starts with zeros, as an interrupted copy leaves them"
    return f"its {len(file.data):,} bytes start with {head[:8]!r}"


# --- torch.save's files -------------------------------------------------------------------------------------


class _Storage(NamedTuple):
    dtype: torch.dtype
    data: np.ndarray[tuple[int], np.dtype[np.uint8]] | None


class _Inert:
    """What a pickle gets for a name that it may use: something that builds containers or views, and nothing else.

    Made anew for each file, so that no instruction of one file can reach another.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "collections.OrderedDict":
            return OrderedDict(*arguments)
        if self.name == "torch._utils._rebuild_tensor_v2":
            return _view(*arguments[:4])
        if self.name == "torch._utils._rebuild_parameter":
            if not isinstance(arguments[0], Tensor):
                raise CheckpointFormatError("a parameter is not a tensor")
            return arguments[0]
        raise CheckpointFormatError(f"{self.name} is called, which is not a function")


ALLOWED = frozenset(
    {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
    | {f"torch.{name}" for name in STORAGES}
)
"""All that a pickle may name."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, storages: Mapping[str, Any] | None) -> None:
        super().__init__(stream)
        self.storages = storages
        self.asked: dict[str, tuple[torch.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in ALLOWED:
            raise UnsafeCheckpointError(
                f"it names {full!r}, which is neither a plain tensor nor a container; nothing in it was run. "
                "If you trust where it comes from, keep only the weights: "
                "torch.save({'state_dict': weights}, new_file), in the environment that made it"
            )
        return _Inert(full)

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _Inert)):
            raise CheckpointFormatError("it refers to something that is not a storage")
        dtype = STORAGES.get(pid[1].name.removeprefix("torch."))
        key, numel = pid[2], pid[4]
        if dtype is None or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise CheckpointFormatError(f"it describes a storage wrongly: {key!r}, {numel!r} elements")
        if len(pid) > 5 and pid[5] is not None:
            raise CheckpointFormatError(f"its storage {key!r} is a view of another, as only torch before 0.4 wrote")
        if self.storages is None:  # first reading of the older format: the bytes come after the pickle
            if self.asked.setdefault(key, (dtype, numel)) != (dtype, numel):
                raise CheckpointFormatError(f"it describes the storage {key!r} in two ways")
            return _Storage(dtype, None)
        data = self.storages.get(key)
        if data is None or len(data) != numel * dtype.itemsize:
            found = "is missing" if data is None else f"has {len(data):,}"
            raise CheckpointFormatError(
                f"its storage {key!r} should have {numel * dtype.itemsize:,} bytes, but {found}"
            )
        return _Storage(dtype, data)


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise CheckpointFormatError("a tensor has no storage")
    if storage.data is None:
        return torch.empty(0)
    for values in ((offset,), size, stride):
        if not isinstance(values, tuple) or any(type(value) is not int or value < 0 for value in values):
            raise CheckpointFormatError(f"a tensor has an impossible shape: {offset!r}, {size!r}, {stride!r}")
    if len(size) != len(stride) or len(size) > 8:
        raise CheckpointFormatError(f"a tensor's shape {size} and strides {stride} do not fit each other")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else offset - 1
    held = len(storage.data) // storage.dtype.itemsize
    if last >= held or numel > held:
        raise CheckpointFormatError(f"a tensor of shape {size} reaches beyond its storage of {held:,} elements")
    if numel == 0:
        return torch.empty(size, dtype=storage.dtype)
    return torch.as_strided(_typed(storage.data, storage.dtype), size, stride, offset)


def _typed(data: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: torch.dtype) -> Tensor:
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()  # numpy aligns its own memory
    if dtype is torch.bool:
        return torch.from_numpy(data) != 0  # any byte but 0 and 1 is undefined behaviour as a truth value
    return torch.from_numpy(data).view(dtype)


def _read_archive(file: File) -> object:
    raw = file.data.data
    try:
        with zipfile.ZipFile(io.BufferedReader(_Memory(raw))) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise CheckpointFormatError(
            f"{file.name} is a truncated or broken archive ({error}); fetch it again"
        ) from error
    records: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
    total = 0
    for entry in entries:
        # torch.save stores; a compressed entry is how a small file becomes a large one
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise CheckpointFormatError(f"{file.name}: its entry {entry.filename!r} is compressed; torch.save stores")
        # The local header has the same fixed part in every zip file: 30 bytes, and two lengths at 26 and 28
        start = entry.header_offset
        header = raw[start : start + 30].tobytes()
        start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        total += entry.file_size
        if header[:4] != b"PK\x03\x04" or start + entry.file_size > len(raw) or total > len(raw):
            raise CheckpointFormatError(
                f"{file.name}: its entry {entry.filename!r} lies outside the file; fetch it again"
            )
        name = entry.filename.partition("/")[2]
        if name in records:
            raise CheckpointFormatError(f"{file.name}: the entry {name!r} appears twice")
        records[name] = file.data[start : start + entry.file_size]
    if "data.pkl" not in records:
        raise CheckpointFormatError(
            f"{file.name} is a zip archive, but not one that torch.save wrote: no data.pkl in it"
        )
    if records.get("byteorder", np.frombuffer(b"little", np.uint8)).tobytes() != b"little":
        raise CheckpointFormatError(f"{file.name} was written on a big-endian machine")
    storages = {name.removeprefix("data/"): data for name, data in records.items() if name.startswith("data/")}
    return _unpickle(file, io.BytesIO(records["data.pkl"].tobytes()), storages)[0]


def _read_legacy(file: File) -> object:
    """The format before torch 1.6: five pickles, then each storage with its length before it."""
    stream = io.BufferedReader(_Memory(file.data.data))
    for _ in range(2):  # a magic number and a version, both constants
        _unpickle(file, stream, {})
    system, _ = _unpickle(file, stream, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointFormatError(f"{file.name} was not written on a little-endian machine")
    start = stream.tell()
    _, asked = _unpickle(file, stream, None)  # which storages there are; their bytes come later
    keys, _ = _unpickle(file, stream, {})
    if not isinstance(keys, list) or set(map(str, keys)) != set(asked) or len(keys) != len(asked):
        raise CheckpointFormatError(f"{file.name}: its list of storages does not fit its tensors")
    storages: dict[str, Any] = {}
    position = stream.tell()
    for key in keys:
        dtype, numel = asked[str(key)]
        length = int.from_bytes(file.data[position : position + 8].tobytes(), "little")
        end = position + 8 + numel * dtype.itemsize
        if length != numel or end > len(file.data):
            raise CheckpointFormatError(f"{file.name} is truncated, or lies about the storage {key!r}; fetch it again")
        storages[str(key)] = file.data[position + 8 : end]
        position = end
    stream.seek(start)
    return _unpickle(file, stream, storages)[0]


def _unpickle(file: File, stream: BinaryIO, storages: Mapping[str, Any] | None) -> tuple[object, dict[str, Any]]:
    start = stream.tell()
    try:
        _scan(stream)
        stream.seek(start)
        unpickler = _Unpickler(stream, storages)
        return unpickler.load(), unpickler.asked
    except (UnsafeCheckpointError, CheckpointFormatError) as error:
        raise type(error)(f"{file.name}: {error}") from error
    except Exception as error:  # a broken pickle may raise anything at all, and every way is the same news
        raise CheckpointFormatError(
            f"{file.name}: its description of tensors is broken ({error}); fetch it again"
        ) from error


def _scan(stream: BinaryIO) -> None:
    """Read one pickle's instructions without running them."""
    start = stream.tell()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
        if position is not None and position - start > MAX_PICKLE_BYTES:
            raise CheckpointFormatError(f"its description of tensors is larger than {MAX_PICKLE_BYTES:,} bytes")
        # The unpickler makes room for as many values as the largest place named, on the file's word
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            raise CheckpointFormatError(
                f"its description of tensors asks for {argument:,} places after {count:,} steps"
            )


# --- safetensors --------------------------------------------------------------------------------------------


def read_safetensors(file: File) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the tensors share its memory.

    Raises:
        CheckpointFormatError: The header is broken, or the tensors do not cover the data exactly once.
    """
    length = int.from_bytes(file.data[:8].tobytes(), "little")
    if len(file.data) < 8 or length > min(len(file.data) - 8, MAX_PICKLE_BYTES):
        raise CheckpointFormatError(f"{file.name} is no safetensors file, or a truncated one: {looks_like(file)}")
    try:
        header = json.loads(file.data[8 : 8 + length].tobytes(), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise ValueError("metadata is not text")
        entries = sorted(
            (entry["data_offsets"][0], entry["data_offsets"][1], name, entry["dtype"], entry["shape"])
            for name, entry in header.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointFormatError(f"{file.name}: broken safetensors header ({error})") from error
    data = file.data[8 + length :]
    tensors: dict[str, Tensor] = {}
    end = 0
    for start, stop, name, dtype_name, shape in entries:
        dtype = SAFETENSORS_DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
        if (
            dtype is None
            or not isinstance(shape, list)
            or any(type(n) is not int or n < 0 for n in shape)
            or len(shape) > 8
        ):
            raise CheckpointFormatError(
                f"{file.name}: the tensor {name!r} has an unknown dtype or shape: {dtype_name!r}, {shape!r}"
            )
        if (
            type(start) is not int
            or start != end
            or stop != start + math.prod(shape) * dtype.itemsize
            or stop > len(data)
        ):
            raise CheckpointFormatError(
                f"{file.name}: the tensor {name!r} of shape {shape} cannot lie at "
                f"bytes {start} to {stop} of {len(data):,}"
            )
        tensors[name] = _typed(data[start:stop], dtype).view(shape)
        end = stop
    if end != len(data):
        raise CheckpointFormatError(f"{file.name}: {len(data) - end:,} bytes belong to no tensor")
    return tensors, metadata


def serialize(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with these tensors and texts."""
    return save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, {"format": "pt", **metadata}
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


# --- fitting tensors to a model -----------------------------------------------------------------------------


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, values: bool = True) -> dict[str, Tensor]:
    """Tensors that fit a model exactly, floating-point ones as float32.

    Args:
        state: Tensors in the model's own names.
        expected: The model's state dict, which may be on the meta device.
        values: Also look at every value: finite, and variances not negative.

    Raises:
        CheckpointMismatchError: A tensor is missing, extra, wrongly shaped, of another kind, or has a value
            that no training gives; the message shows the first differences.
    """
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is not part of the model" for name in state if name not in expected]
    fitting: dict[str, Tensor] = {}
    for name, wanted in expected.items():
        if name not in state:
            continue
        tensor = state[name]
        if tensor.shape != wanted.shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}")
        elif tensor.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{name} is {tensor.dtype}, expected {wanted.dtype}")
        else:
            fitting[name] = tensor.to(wanted.dtype).contiguous()
    if values and not problems:
        for name, tensor in fitting.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                problems.append(f"{name} has values that are not finite")
            elif name.endswith("running_var") and (tensor < 0).any():
                problems.append(f"{name} has a negative variance")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointMismatchError(
            f"the checkpoint does not fit the model, which was left as it was: {'; '.join(problems[:5])}{more}"
        )
    return fitting
