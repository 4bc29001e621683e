"""The files of paddle.save, read without running them.

A .pdparams file is one pickle, nothing before or after it: a dictionary from names to numpy's arrays, whose bytes are
in the pickle itself. PaddlePaddle 2.0 wrote protocol 2, where bytes are a text, each character one of them, encoded as
UTF-8: half of them take two bytes. Later versions write protocol 4.

The pickle is read, not run: see `isanet.weights.pickles`. The names that numpy needs have their meaning here, and make
nothing but arrays of plain numbers that have exactly the bytes that they claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isanet._text import clean
from isanet.errors import CheckpointFormatError
from isanet.weights.pickles import File, Name, Opaque, PickleReader, expect, typed, unsafe

DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
}
"""numpy's names of types."""

RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
"""What makes an array without elements, before and since numpy 2."""

STATE_OF_DTYPE = (None, None, None, -1, -1, 0)
"""The state of a type of plain numbers, after its version and its order of bytes."""

MIN_LARGE = 1 << 16
"""Smallest text, or bytes, that can only be those of a tensor."""

INTERNAL_NAMES, PARTS = "StructuredToParameterName@@", "UnpackBigParamInfor@@"
"""Keys that are no tensors: Paddle's own names, which are not needed, and how tensors of over 1 GB were split."""


@dataclass(eq=False)
class _Array:
    """An array, which a pickle makes first and fills later."""

    tensor: Tensor | None = None


class _PaddlePickle(PickleReader):
    """Adds numpy's arrays."""

    allowed = frozenset({"numpy.ndarray", "numpy.dtype", "_codecs.encode", *RECONSTRUCT})

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        if name == "_codecs.encode":
            text, encoding = arguments
            if expect(encoding, str) != "latin1":
                raise CheckpointFormatError(f"it has bytes in the encoding {clean(encoding)[:80]!r}, not latin1")
            return text if type(text) is np.ndarray else expect(text, str).encode("latin1")
        if name == "numpy.dtype":
            code = expect(arguments[0], str)
            if code not in DTYPES or len(arguments) != 3:
                what = "bfloat16, which numpy does not know" if code == "u2" else repr(clean(code)[:80])
                raise CheckpointFormatError(f"it has an array of {what}; those read are {', '.join(DTYPES)}")
            return DTYPES[code]
        if name in RECONSTRUCT:
            kind, shape, code = arguments
            if expect(kind, Name).text != "numpy.ndarray" or shape != (0,) or expect(code, bytes) != b"b":
                raise CheckpointFormatError("it makes an array otherwise than numpy does")
            return _Array()
        return super().call(name, arguments)

    def build(self, target: Any, state: Any) -> None:
        if type(target) is torch.dtype:
            if expect(state, tuple) != (3, "|" if target.itemsize == 1 else "<", *STATE_OF_DTYPE):
                raise CheckpointFormatError(f"it has an array of {target} that is not little-endian and plain")
        elif type(target) is not _Array:
            super().build(target, state)
        elif target.tensor is not None:
            raise CheckpointFormatError("it fills an array twice")
        else:
            target.tensor = self.count(_filled(*expect(state, tuple)))

    def piece(self, value: str | bytes, start: int, end: int) -> object:
        """The bytes of a large tensor at once: the memo would keep the text, which takes as much memory again."""
        if len(value) < MIN_LARGE:
            return value
        self.large += end - start
        if isinstance(value, str):
            return np.frombuffer(bytearray(value, "latin1"), np.uint8)
        return self.file.data[end - len(value) : end]


def _filled(version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> Tensor:
    """The array of one state, if it has exactly the bytes that its shape and type need."""
    sizes = [expect(size, int) for size in expect(shape, tuple)]
    if expect(version, int) != 1 or len(sizes) > 8 or min(sizes, default=0) < 0:
        raise CheckpointFormatError(f"it has an array of an impossible shape: {sizes[:9]}")
    if expect(fortran, bool):
        raise CheckpointFormatError(f"it has an array of shape {sizes} in Fortran's order; PaddlePaddle writes C's")
    needed = math.prod(sizes) * expect(dtype, torch.dtype).itemsize
    if type(data) is not np.ndarray:
        data = np.frombuffer(bytearray(expect(data, bytes)), np.uint8)
    if len(data) != needed:
        raise CheckpointFormatError(f"an array of shape {sizes} should have {needed:,} bytes, but has {len(data):,}")
    return typed(data, dtype).view(sizes)


def read_paddle(file: File) -> dict[str, Tensor]:
    """The tensors of a .pdparams file, without Paddle's own names of them.

    Raises:
        CheckpointFormatError: It is broken, or not a flat dictionary of whole arrays of plain numbers.
        UnsafeCheckpointError: It names something else in the place of an array.
    """
    reader = _PaddlePickle(file)
    contents, length = reader.load(file.data)
    if length != len(file.data):
        raise CheckpointFormatError(f"it has {len(file.data) - length:,} bytes after its end")
    if PARTS in expect(contents, dict):
        raise CheckpointFormatError(f"its tensors are split ({PARTS!r}); save them again with protocol=4")
    contents.pop(INTERNAL_NAMES, None)
    tensors: dict[str, Tensor] = {}
    for name, value in contents.items():
        if type(name) is not str or type(value) is not _Array or value.tensor is None:
            where = f"the tensor {name[:80]!r}" if type(name) is str else "a tensor"
            if type(value) is Opaque:
                raise unsafe(f"names {value.name!r} in the place of {where}")
            what = "an array without values" if type(value) is _Array else f"a {type(value).__name__}"
            raise CheckpointFormatError(
                f"it has {what} in the place of {where}; what is read is a dictionary of arrays alone, as "
                "paddle.save(model.state_dict(), file) writes"
            )
        tensors[name] = value.tensor
    reader.log_opaque()
    return tensors
