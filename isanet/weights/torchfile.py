"""The files of torch.save, read without running them.

A .pth file is a pickle with tensors beside it. It is read in layers, none of which has a fallback:

1. The first bytes must be those of a zip archive or of torch's older format; otherwise the message says what it is.
2. The archive must be as torch.save writes it: see `isanet.weights.zipreader`.
3. The pickle is read, not run: see `isanet.weights.pickles`. Only `OrderedDict` and the functions that rebuild a tensor
   have a meaning here.
4. A tensor is a view of the bytes already in memory, and only if it lies inside its storage, and the storage inside
   the file. Views of the same bytes are bounded too. No size that a file claims is allocated, and weights need no copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isanet._text import clean
from isanet.errors import CheckpointFormatError
from isanet.weights.pickles import (
    MAX_DESCRIPTION_BYTES,
    Bytes,
    File,
    Name,
    Opaque,
    PickleReader,
    expect,
    insert,
    typed,
    unsafe,
)
from isanet.weights.zipreader import check_crc, read_directory

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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "storage.UntypedStorage": torch.uint8,
}
"""Names of typed storages in a pickle; the last is that of types without one, such as float8 beside the weights."""

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The first pickle of the format before torch 1.6: a constant."""

PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")

ALLOWED = frozenset(
    {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", *PARAMETERS} | {f"torch.{name}" for name in STORAGES}
)
"""All names that mean something here."""


@dataclass(frozen=True)
class _Storage:
    values: Tensor | None
    """None in the first pass over the older format, whose bytes come after the pickle."""


class _TorchPickle(PickleReader):
    """Adds tensors that are views of storages.

    Args:
        file: The file that the pickle is in.
        storages: The bytes of each storage by its key; None if they are not known yet.
    """

    allowed = ALLOWED

    def __init__(self, file: File, storages: Mapping[str, Bytes] | None) -> None:
        super().__init__(file)
        self.storages = storages
        self.requested: dict[str, tuple[torch.dtype, int]] = {}
        self.typed: dict[str, _Storage] = {}

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        if name == "collections.OrderedDict":
            pairs = [expect(pair, list) for pair in expect(arguments[0], list)] if arguments else []
            return insert({}, pairs)
        if name == "torch._utils._rebuild_tensor_v2":
            tensor = self.count(_view(*arguments[:4]))
            for extra in arguments[4:]:  # not used, but part of it: whether it needs a gradient, its hooks
                for value in extra.values() if type(extra) is dict else (extra,):
                    if type(value) is Opaque:
                        raise unsafe(f"names {value.name!r} in the place of a tensor's hooks")
            return tensor
        if name in PARAMETERS:
            return expect(arguments[0], Tensor)
        return super().call(name, arguments)

    def persistent(self, reference: Any) -> object:
        if type(reference) is tuple and reference[:1] == ("module",) and type(reference[1]) is Opaque:
            return reference[1]  # the older format refers so to the class of a network that was pickled whole
        if type(reference) is not tuple or len(reference) < 5 or reference[0] != "storage":
            raise CheckpointFormatError("it refers to something that is not a storage")
        kind, key, numel = expect(reference[1], Name).text, expect(reference[2], str), expect(reference[4], int)
        dtype, shown = STORAGES.get(kind.removeprefix("torch.")), f"the storage {key[:80]!r}"
        if dtype is None or numel < 0:
            raise CheckpointFormatError(f"it describes {shown} wrongly: {numel} elements of {kind}")
        if len(reference) > 5 and reference[5] is not None:
            raise CheckpointFormatError(f"{shown} is a view of another, as only torch before 0.4 wrote")
        if self.requested.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise CheckpointFormatError(f"it describes {shown} twice, differently")
        if self.storages is None:
            return _Storage(None)
        if key not in self.typed:
            data = self.storages.get(key)
            if data is None or len(data) != numel * dtype.itemsize:
                found = "is missing" if data is None else f"has {len(data):,}"
                raise CheckpointFormatError(f"{shown} should have {numel * dtype.itemsize:,} bytes, but {found}")
            self.typed[key] = _Storage(typed(data, dtype))  # once: it may have to be copied
        return self.typed[key]


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    values = expect(storage, _Storage).values
    if values is None:
        return torch.empty(0)
    if len(expect(size, tuple)) != len(expect(stride, tuple)) or len(size) > 8:
        raise CheckpointFormatError(f"a tensor of {len(size)} dimensions has {len(stride)} strides")
    if min([expect(n, int) for n in (offset, *size, *stride)]) < 0:
        raise CheckpointFormatError(f"a tensor has an impossible shape: {offset}, {size}, {stride}")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else offset - 1
    if last >= len(values) or numel > len(values):
        raise CheckpointFormatError(f"a tensor of shape {size} reaches beyond its storage of {len(values):,} elements")
    if numel == 0:
        return torch.empty(size, dtype=values.dtype)
    return torch.as_strided(values, size, stride, offset)


def read_archive(file: File) -> object:
    """The contents of a file in the format since torch 1.6: a zip archive of one pickle and its storages."""
    memory = file.data.data
    entries = read_directory(
        lambda start, size: memory[start : start + size].tobytes(), len(memory), max_bytes=MAX_DESCRIPTION_BYTES
    )
    folder = next((name.partition("/")[0] for name in entries), "") + "/"
    if f"{folder}data.pkl" not in entries:
        raise CheckpointFormatError("it is a zip archive, but not one that torch.save wrote: no data.pkl in its folder")
    records: dict[str, Bytes] = {}
    checked = any(entry.crc for entry in entries.values())  # torch.serialization.set_crc32_options(False) writes zeros
    for name, entry in entries.items():
        if not name.startswith(folder):
            raise CheckpointFormatError(
                f"its entry {clean(name)[:200]!r} is not in {clean(folder)[:200]!r}, the folder of data.pkl"
            )
        records[name.removeprefix(folder)] = data = file.data[entry.start : entry.start + entry.size]
        if checked:
            check_crc(name, entry, data)
    if "byteorder" in records and records["byteorder"].tobytes() != b"little":
        raise CheckpointFormatError("it was written on a big-endian machine")
    storages = {name.removeprefix("data/"): data for name, data in records.items() if name.startswith("data/")}
    return _unpickle(file, records["data.pkl"], storages)[0]


def read_legacy(file: File) -> object:
    """The contents of a file in the format before torch 1.6: five pickles, then each storage after its length."""
    position = len(LEGACY_MAGIC)
    _, _, length = _unpickle(file, file.data[position:], {})  # a version, a constant
    position += length
    system, _, length = _unpickle(file, file.data[position:], {})
    if expect(system, dict).get("little_endian") is not True:
        raise CheckpointFormatError("it was not written on a little-endian machine")
    tensors = file.data[position + length :]
    _, requested, length = _unpickle(file, tensors, None)  # finds the storages, whose bytes come later
    keys, _, skipped = _unpickle(file, tensors[length:], {})
    if any(type(key) is not str for key in expect(keys, list)) or sorted(keys) != sorted(requested):
        raise CheckpointFormatError("its list of storages does not match its tensors")
    rest = tensors[length + skipped :]
    storages: dict[str, Bytes] = {}
    for key in keys:
        dtype, numel = requested[key]
        end = 8 + numel * dtype.itemsize
        if end > len(rest) or int.from_bytes(rest[:8].tobytes(), "little") != numel:
            raise CheckpointFormatError(f"it is truncated, or lies about the storage {key[:80]!r}; fetch it again")
        storages[key], rest = rest[8:end], rest[end:]
    return _unpickle(file, tensors, storages)[0]


def _unpickle(
    file: File, data: Bytes, storages: Mapping[str, Bytes] | None
) -> tuple[Any, dict[str, tuple[torch.dtype, int]], int]:
    """The contents of the pickle at the start of `data`, the storages that it requests, and its length."""
    reader = _TorchPickle(file, storages)
    contents, length = reader.load(data)
    if storages is not None:
        reader.log_opaque()
    return contents, reader.requested, length
