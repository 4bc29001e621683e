"""The files of torch.save, read without running them.

A .pth file is a pickle, a program that may call anything. It is read in layers, none of which has a fallback:

1. The first bytes must be those of a zip archive or of torch's older format; otherwise the message says what it is.
2. The archive must be as torch.save writes it: see `isanet.weights.zipreader`.
3. The pickle is read, not run: only instructions that make plain values and containers are known, in bounded
   number, and none of them calls anything, sets an attribute or hashes more than a plain value.
4. What it names is only compared as text: no function or class can be reached. `OrderedDict` and the functions that
   rebuild a tensor have their meaning here; anything else, and whatever a file makes of it, is an `Opaque`: a name
   that is never imported, built or called. It may lie beside the weights (a date, a path, an optimizer's settings); in
   the place of a tensor, of a state dict or of a tensor's arguments the file is refused with that name.
5. A tensor is a view of the bytes already in memory, and only if it lies inside its storage, and the storage inside
   the file. Views of the same bytes are bounded too. No size that a file claims is allocated.

Neither `torch.load` nor the standard library's unpickler is used: `BUILD` alone reaches `Tensor.__setstate__`, and
through it a tensor of any size. With one parser there is one reading of a file, and its weights need no copy.
"""

from __future__ import annotations

import logging
import math
import pickletools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isanet._text import clean, listed
from isanet.errors import CheckpointFormatError, UnsafeCheckpointError
from isanet.weights.zipreader import check_crc, read_directory

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class File(NamedTuple):
    """The bytes of a file in memory, and their hash."""

    name: str
    data: Bytes
    sha256: str


MAX_DESCRIPTION_BYTES = 4 << 20
"""Largest description (pickle, header, directory, config.json); in the published files they are below 1 MB.

Parsed, it takes up to 25 times its size.
"""

MAX_PICKLE_BYTES = 32 << 20
"""Largest pickle: mmengine keeps each iteration's losses in it as arrays; 160,000 iterations take some 30 MB."""

MAX_STEPS = 1 << 19
"""Most instructions of a pickle; a ResNet-101 with its optimizer's state has 50,000."""

MAX_TENSORS = 1 << 14
"""Most tensors of a file; a ResNet-101 with its optimizer's state has 1,100. Each takes memory even if it is empty."""

MAX_NUMBERED = 1 << 12
"""Most integers that stay keys of a dictionary; an optimizer's state has one for each of 348 parameters."""

MAX_SHARING = 4
"""How many times as large as their file all tensors may be, which may be views of the same bytes."""

MAX_SHOWN = 20
"""Most names of what was left out that the log shows."""

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

COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
"""What torch.compile puts around a module, its first argument."""

PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")

ALLOWED = frozenset(
    {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", *PARAMETERS} | {f"torch.{name}" for name in STORAGES}
)
"""All names that mean something here."""

log = logging.getLogger("isanet")


@dataclass(frozen=True)
class _Name:
    text: str


@dataclass(frozen=True)
class _Storage:
    values: Tensor | None
    """None in the first pass over the older format, whose bytes come after the pickle."""


@dataclass(eq=False, slots=True)
class Opaque:
    """What a file says beside its tensors, read but never made: the name of a class or function, and nothing of it."""

    name: str
    state: object = field(default=None, repr=False)
    """What the file would set on it, as plain as everything else; the parts of a pickled module are found in it.

    Of a class of dictionaries it is the items.
    """


OPERANDS = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "APPEND": 1,
    "SETITEM": 2,
    "STACK_GLOBAL": 2,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "NEWOBJ_EX": 3,
}
"""How many values these instructions take from the stack."""

SINCE_MARK = ("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS", "FROZENSET")
"""Instructions that take everything since the last MARK."""


class _PickleReader:
    """Builds containers and views from a pickle, and nothing else.

    Args:
        storages: The bytes of each storage by its key; None if they are not known yet.
        budget: Bytes that all tensors together may have.
    """

    def __init__(self, storages: Mapping[str, Bytes] | None, budget: int) -> None:
        self.storages = storages
        self.budget = budget
        self.tensors = 0
        self.requested: dict[str, tuple[torch.dtype, int]] = {}
        self.typed: dict[str, _Storage] = {}
        self.opaque: dict[str, None] = {}  # names, in their order

    def load(self, pickled: bytes) -> tuple[object, int]:
        """The contents of one pickle, and its length in bytes."""
        stack: list[Any] = []
        marked: list[list[Any]] = []  # the stack below each MARK
        memo: dict[int, Any] = {}
        argument: Any
        for step, (opcode, argument, position) in enumerate(pickletools.genops(pickled)):
            if step >= MAX_STEPS:
                raise CheckpointFormatError(f"its pickle has more than {MAX_STEPS:,} steps")
            items: list[Any] = []
            if opcode.name in SINCE_MARK:
                items, stack = stack, marked.pop()
            elif count := OPERANDS.get(opcode.name):
                items = [stack.pop() for _ in range(count)][::-1]
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop(), (position or 0) + 1
                case "MARK":
                    marked.append(stack)
                    stack = []
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "INT" | "LONG1" | "LONG4":
                    if argument.bit_length() > 128:  # arithmetic on larger ones is slow
                        raise CheckpointFormatError("it has an integer of more than 128 bits")
                    stack.append(argument)
                case "BINFLOAT" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "SHORT_BINSTRING" | "BINSTRING":
                    stack.append(argument)
                case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                    stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    if argument > step:
                        raise CheckpointFormatError(f"it asks for {argument:,} memo slots after {step:,} steps")
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(items))
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM" | "SETITEMS" if type(stack[-1]) is Opaque:
                    state = {} if stack[-1].state is None else _expect(stack[-1].state, dict)
                    stack[-1].state = _insert(state, zip(items[::2], items[1::2], strict=True))
                case "APPEND" | "APPENDS" | "ADDITEMS" if type(stack[-1]) is Opaque:
                    pass
                case "APPEND" | "APPENDS":
                    _expect(stack[-1], list).extend(items)
                case "SETITEM" | "SETITEMS":
                    _insert(_expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
                case "GLOBAL":
                    stack.append(self.named(argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(self.named(items))
                case "EMPTY_SET" | "FROZENSET":
                    stack.append(self.named(["builtins", "set"]))
                case "BYTEARRAY8":
                    stack.append(self.named(["builtins", "bytearray"]))
                case "BINPERSID":
                    stack.append(self.storage(stack.pop()))
                case "REDUCE":
                    name, arguments = items
                    if type(name) is Opaque:
                        compiled = name.name == COMPILED and type(arguments) is tuple and type(arguments[0]) is Opaque
                        stack.append(arguments[0] if compiled else Opaque(name.name))
                    else:
                        stack.append(self.call(_expect(name, _Name).text, _expect(arguments, tuple)))
                case "NEWOBJ" | "NEWOBJ_EX" if type(items[0]) is Opaque:
                    stack.append(Opaque(items[0].name))
                case "BUILD" if type(stack[-2]) is Opaque:
                    state = stack.pop()
                    if stack[-1].state is None:
                        stack[-1].state = state
                case "BUILD":  # a state dict's `_metadata`, which is not needed
                    stack.pop()
                    _expect(stack[-1], dict)
                case _:
                    what = "" if argument is None else f" for {str(argument)[:200]!r}"
                    raise unsafe(f"uses the instruction {opcode.name}{what}")
        raise CheckpointFormatError("its pickle has no end")

    def named(self, parts: list[Any]) -> _Name | Opaque:
        name = ".".join(_expect(part, str) for part in parts)
        if name in ALLOWED:
            return _Name(name)
        if len(self.opaque) <= MAX_SHOWN:
            self.opaque[name[:200]] = None
        return Opaque(name[:200])

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        if name == "collections.OrderedDict":
            pairs = [_expect(pair, list) for pair in _expect(arguments[0], list)] if arguments else []
            return _insert({}, pairs)
        if name == "torch._utils._rebuild_tensor_v2":
            self.tensors += 1
            if self.tensors > MAX_TENSORS:
                raise CheckpointFormatError(f"it has more than {MAX_TENSORS:,} tensors")
            tensor = _view(*arguments[:4])
            for extra in arguments[4:]:  # not used, but part of it: whether it needs a gradient, its hooks
                for value in extra.values() if type(extra) is dict else (extra,):
                    if type(value) is Opaque:
                        raise unsafe(f"names {value.name!r} in the place of a tensor's hooks")
            self.budget -= tensor.nbytes
            if self.budget < 0:
                raise CheckpointFormatError(f"its tensors have its bytes more than {MAX_SHARING} times")
            return tensor
        if name in PARAMETERS:
            return _expect(arguments[0], Tensor)
        raise CheckpointFormatError(f"{name} is called, which is not a function")

    def storage(self, reference: Any) -> _Storage | Opaque:
        if type(reference) is tuple and reference[:1] == ("module",) and type(reference[1]) is Opaque:
            return reference[1]  # the older format refers so to the class of a network that was pickled whole
        if type(reference) is not tuple or len(reference) < 5 or reference[0] != "storage":
            raise CheckpointFormatError("it refers to something that is not a storage")
        kind, key, numel = _expect(reference[1], _Name).text, _expect(reference[2], str), _expect(reference[4], int)
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


def unsafe(what: str) -> UnsafeCheckpointError:
    """The error for what would have to be run to be used."""
    return UnsafeCheckpointError(
        f"it {what}, which is neither a plain tensor nor a container; nothing in it was run. "
        "If you trust where it comes from, keep only the weights: "
        "torch.save({'state_dict': weights}, new_file), in the environment that made it"
    )


def _expect(value: Any, kind: type) -> Any:
    if type(value) is Opaque:
        raise unsafe(f"names {value.name!r} in the place of a {kind.__name__}")
    if type(value) is not kind:
        raise CheckpointFormatError(f"it has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _insert(target: dict[Any, Any], pairs: Iterable[Sequence[Any]]) -> dict[Any, Any]:
    for key, value in pairs:
        # Hashing nested tuples can take forever, and integers can be chosen to have one hash
        plain = type(key) is str or (type(key) is int and key.bit_length() <= 60 and len(target) < MAX_NUMBERED)
        target[key if plain else Opaque(type(key).__name__)] = value
    return target


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    values = _expect(storage, _Storage).values
    if values is None:
        return torch.empty(0)
    if len(_expect(size, tuple)) != len(_expect(stride, tuple)) or len(size) > 8:
        raise CheckpointFormatError(f"a tensor of {len(size)} dimensions has {len(stride)} strides")
    if min([_expect(n, int) for n in (offset, *size, *stride)]) < 0:
        raise CheckpointFormatError(f"a tensor has an impossible shape: {offset}, {size}, {stride}")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else offset - 1
    if last >= len(values) or numel > len(values):
        raise CheckpointFormatError(f"a tensor of shape {size} reaches beyond its storage of {len(values):,} elements")
    if numel == 0:
        return torch.empty(size, dtype=values.dtype)
    return torch.as_strided(values, size, stride, offset)


def typed(data: Bytes, dtype: torch.dtype) -> Tensor:
    """Bytes as a one-dimensional tensor, in the same memory if that is aligned."""
    if not len(data):
        return torch.empty(0, dtype=dtype)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()  # numpy aligns new memory
    if dtype is torch.bool:
        return torch.from_numpy(data) != 0  # bytes other than 0 and 1 are undefined behavior in a bool tensor
    return torch.from_numpy(data).view(dtype)


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
    if _expect(system, dict).get("little_endian") is not True:
        raise CheckpointFormatError("it was not written on a little-endian machine")
    tensors = file.data[position + length :]
    _, requested, length = _unpickle(file, tensors, None)  # finds the storages, whose bytes come later
    keys, _, skipped = _unpickle(file, tensors[length:], {})
    if any(type(key) is not str for key in _expect(keys, list)) or sorted(keys) != sorted(requested):
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
    reader = _PickleReader(storages, MAX_SHARING * len(file.data))
    try:
        contents, length = reader.load(data[:MAX_PICKLE_BYTES].tobytes())
    except (UnsafeCheckpointError, CheckpointFormatError):
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise CheckpointFormatError(
            f"its pickle is broken, or has over {MAX_PICKLE_BYTES:,} bytes "
            f"({type(error).__name__}: {clean(str(error))[:200]}); fetch it again"
        ) from error
    if isinstance(contents, Opaque) and contents.state is None:
        raise unsafe(f"names {contents.name!r} in the place of its weights")
    if reader.opaque and storages is not None:
        log.info("%s: left out, beside the tensors: %s", clean(file.name), listed(reader.opaque, MAX_SHOWN))
    return contents, reader.requested, length
