"""Pickles, read without running them: the one reader for every format that has one.

A pickle is a program that may call anything. Here it is read, not run:

* Only instructions that make plain values and containers are known, in bounded number, and none of them calls anything,
  sets an attribute or hashes more than a plain value.
* What it names is only compared as text: no function or class can be reached. A format allows a few names, which have
  their meaning in `torchfile` or `paddlefile`; anything else, and whatever a file makes of it, is an `Opaque`: a name
  that is never imported, built or called. It may lie beside the weights (a date, a path, an optimizer's settings); in
  the place of a tensor, of a state dict or of a tensor's arguments the file is refused with that name.
* What it describes is bounded, not its size: PaddlePaddle's pickles have the bytes of all tensors in them.

Neither `torch.load` nor the standard library's unpickler is used: `BUILD` alone reaches `Tensor.__setstate__`, and
through it a tensor of any size. With one parser there is one reading of a file.
"""

from __future__ import annotations

import logging
import pickletools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isanet._text import clean, listed
from isanet.errors import CheckpointFormatError, UnsafeCheckpointError

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class File(NamedTuple):
    """The bytes of a file in memory, and their hash.

    Attributes:
        name: For messages.
        data: The bytes.
        sha256: Their hash; "" if they were hashed by BLAKE3, which is four times as fast.
        blake3: That hash, or "".
    """

    name: str
    data: Bytes
    sha256: str
    blake3: str = ""


MAX_DESCRIPTION_BYTES = 4 << 20
"""Largest description (header, directory, config.json); in the published files they are below 1 MB.

Parsed, it takes up to 25 times its size.
"""

MAX_PICKLE_BYTES = 32 << 20
"""Most bytes of a pickle, without large tensors in it.

mmengine keeps each iteration's losses in it as arrays; 160,000 iterations take some 30 MB.
"""

MAX_PIECE_BYTES = 128 << 20
"""Largest text, or bytes, in a pickle; of the published files, a tensor of 38 MB, which is a text of 57 MB."""

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

COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
"""What torch.compile puts around a module, its first argument."""

log = logging.getLogger("isanet")


@dataclass(frozen=True)
class Name:
    """A name that the format allows."""

    text: str


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


class _Stream:
    """Bytes in memory as the file that pickletools reads; no more is copied than there is, or than one piece."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def read(self, size: int) -> bytes:
        if min(size, len(self.data) - self.position) > MAX_PIECE_BYTES:
            raise CheckpointFormatError(f"it has a text of {size:,} bytes; none has over {MAX_PIECE_BYTES:,}")
        piece = self.data[self.position : self.position + size].tobytes()
        self.position += len(piece)
        return piece

    def readline(self) -> bytes:
        for power in range(8, 28, 4):  # what is copied is in proportion to the line
            if length := self.data[self.position : self.position + (1 << power)].tobytes().find(b"\n") + 1:
                return self.read(length)
        return b""

    def tell(self) -> int:
        return self.position


class PickleReader:
    """Builds containers from a pickle; what else it may build, a format adds.

    Args:
        file: The name and the size of the file that the pickle is in.
    """

    allowed: frozenset[str] = frozenset()
    """All names that mean something to the format."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.budget = MAX_SHARING * len(file.data)
        self.tensors = 0
        self.large = 0
        self.opaque: dict[str, None] = {}  # names, in their order

    # --- what a format adds

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        """What one of the allowed names is to give, called with these arguments."""
        raise CheckpointFormatError(f"{name} is called, which is not a function")

    def build(self, target: Any, state: Any) -> None:
        """Give its state to what was called; a state dict has one too, its `_metadata`, which is not needed."""
        expect(target, dict)

    def persistent(self, reference: Any) -> object:
        """What lies outside the pickle."""
        raise unsafe("refers to something outside of it")

    def piece(self, value: str | bytes, start: int, end: int) -> object:
        """A text, or bytes, by an instruction from `start` to `end`; adds its length to `large` if it is a tensor's."""
        return value

    def count(self, tensor: Tensor) -> Tensor:
        """The tensor, if there are not too many, or too large ones."""
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise CheckpointFormatError(f"it has more than {MAX_TENSORS:,} tensors")
        self.budget -= tensor.nbytes
        if self.budget < 0:
            raise CheckpointFormatError(f"its tensors have its bytes more than {MAX_SHARING} times")
        return tensor

    # --- what all have

    def load(self, data: Bytes) -> tuple[Any, int]:
        """The contents of the pickle at the start of `data`, and its length in bytes.

        Raises:
            CheckpointFormatError: It is broken, or beyond a bound.
            UnsafeCheckpointError: It names something beyond what the format allows in the place of its weights.
        """
        try:
            contents, length = self._read(_Stream(data.data))
        except (UnsafeCheckpointError, CheckpointFormatError):
            raise
        except Exception as error:  # a broken pickle may raise anything
            what = f"{type(error).__name__}: {clean(str(error))[:200]}"
            raise CheckpointFormatError(f"its pickle is broken ({what}); fetch it again") from error
        if isinstance(contents, Opaque) and contents.state is None:
            raise unsafe(f"names {contents.name!r} in the place of its weights")
        return contents, length

    def log_opaque(self) -> None:
        """Say what was left out."""
        if self.opaque:
            what = listed(self.opaque, MAX_SHOWN)
            log.info("%s: left out, beside the tensors: %s", clean(self.file.name), what)

    def _read(self, stream: _Stream) -> tuple[object, int]:
        stack: list[Any] = []
        marked: list[list[Any]] = []  # the stack below each MARK
        memo: dict[int, Any] = {}
        argument: Any
        position: Any
        for step, (opcode, argument, position) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if step >= MAX_STEPS:
                raise CheckpointFormatError(f"its pickle has more than {MAX_STEPS:,} steps")
            if position - self.large > MAX_PICKLE_BYTES:
                raise CheckpointFormatError(f"its pickle has over {MAX_PICKLE_BYTES:,} bytes beside its tensors")
            items: list[Any] = []
            if opcode.name in SINCE_MARK:
                items, stack = stack, marked.pop()
            elif count := OPERANDS.get(opcode.name):
                items = [stack.pop() for _ in range(count)][::-1]
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop(), stream.position
                case "MARK":
                    marked.append(stack)
                    stack = []
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "INT" | "LONG1" | "LONG4":
                    if argument.bit_length() > 128:  # arithmetic on larger ones is slow
                        raise CheckpointFormatError("it has an integer of more than 128 bits")
                    stack.append(argument)
                case "BINFLOAT":
                    stack.append(argument)
                case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "SHORT_BINSTRING" | "BINSTRING":
                    stack.append(self.piece(argument, position, stream.position))
                case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                    stack.append(self.piece(argument, position, stream.position))
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
                    state = {} if stack[-1].state is None else expect(stack[-1].state, dict)
                    stack[-1].state = insert(state, zip(items[::2], items[1::2], strict=True))
                case "APPEND" | "APPENDS" | "ADDITEMS" if type(stack[-1]) is Opaque:
                    pass
                case "APPEND" | "APPENDS":
                    expect(stack[-1], list).extend(items)
                case "SETITEM" | "SETITEMS":
                    insert(expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
                case "GLOBAL":
                    stack.append(self._named(argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(self._named(items))
                case "EMPTY_SET" | "FROZENSET":
                    stack.append(self._named(["builtins", "set"]))
                case "BYTEARRAY8":
                    stack.append(self._named(["builtins", "bytearray"]))
                case "BINPERSID":
                    stack.append(self.persistent(stack.pop()))
                case "REDUCE":
                    name, arguments = items
                    if type(name) is Opaque:
                        compiled = name.name == COMPILED and type(arguments) is tuple and type(arguments[0]) is Opaque
                        stack.append(arguments[0] if compiled else Opaque(name.name))
                    else:
                        stack.append(self.call(expect(name, Name).text, expect(arguments, tuple)))
                case "NEWOBJ" | "NEWOBJ_EX" if type(items[0]) is Opaque:
                    stack.append(Opaque(items[0].name))
                case "BUILD" if type(stack[-2]) is Opaque:
                    state = stack.pop()
                    if stack[-1].state is None:
                        stack[-1].state = state
                case "BUILD":
                    state = stack.pop()
                    self.build(stack[-1], state)
                case _:
                    what = "" if argument is None else f" for {str(argument)[:200]!r}"
                    raise unsafe(f"uses the instruction {opcode.name}{what}")
        raise CheckpointFormatError("its pickle has no end")

    def _named(self, parts: list[Any]) -> Name | Opaque:
        name = ".".join(expect(part, str) for part in parts)
        if name in self.allowed:
            return Name(name)
        if len(self.opaque) <= MAX_SHOWN:
            self.opaque[name[:200]] = None
        return Opaque(name[:200])


def unsafe(what: str) -> UnsafeCheckpointError:
    """The error for what would have to be run to be used."""
    return UnsafeCheckpointError(
        f"it {what}, which is neither a plain tensor nor a container; nothing in it was run. "
        "If you trust where it comes from, keep only the weights: "
        "torch.save({'state_dict': weights}, new_file), in the environment that made it"
    )


def expect(value: Any, kind: type) -> Any:
    """The value, if it is of exactly this type."""
    if type(value) is Opaque:
        raise unsafe(f"names {value.name!r} in the place of a {kind.__name__}")
    if type(value) is not kind:
        raise CheckpointFormatError(f"it has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def insert(target: dict[Any, Any], pairs: Iterable[Sequence[Any]]) -> dict[Any, Any]:
    """The dictionary with more items, whose keys cost little to hash."""
    for key, value in pairs:
        # Hashing nested tuples can take forever, and integers can be chosen to have one hash
        plain = type(key) is str or (type(key) is int and key.bit_length() <= 60 and len(target) < MAX_NUMBERED)
        target[key if plain else Opaque(type(key).__name__)] = value
    return target


def typed(data: Bytes, dtype: torch.dtype) -> Tensor:
    """Bytes as a one-dimensional tensor, in the same memory if that is aligned."""
    if not len(data):
        return torch.empty(0, dtype=dtype)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()  # numpy aligns new memory
    if dtype is torch.bool:
        return torch.from_numpy(data) != 0  # bytes other than 0 and 1 are undefined behavior in a bool tensor
    return torch.from_numpy(data).view(dtype)
