"""Read untrusted files into state dicts, write safetensors, and fit tensors to a model.

A file is read into memory once: the bytes that were hashed are the bytes that are parsed, whatever happens to the file
meanwhile. Files of torch.save are read by `isanet.weights.torchfile`, those of paddle.save by `paddlefile`, which run
nothing in them, safetensors here.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from isanet._files import looks_like
from isanet._text import clean
from isanet.errors import CheckpointError, CheckpointFormatError, CheckpointMismatchError
from isanet.weights.paddlefile import read_paddle
from isanet.weights.pickles import MAX_DESCRIPTION_BYTES, MAX_TENSORS, File, typed
from isanet.weights.torchfile import LEGACY_MAGIC, read_archive, read_legacy

MAX_FILE_BYTES = 4 << 30
"""Largest file that is read: eight times the largest ISANet with its optimizer's state."""

PADDLE_START = re.compile(rb"\x80[\x02\x03]}|\x80\x04\x95.{8}}", re.DOTALL)
"""How a pickle of a dictionary starts, which is all that a .pdparams file is; torch's older format starts otherwise."""

_CHUNK_BYTES = 32 << 20
"""Read while the chunk before is hashed; large, because for each, Python's lock is waited for, which others hold."""

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

_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def read_file(path: Path, max_bytes: int = MAX_FILE_BYTES, *, by_blake3: bool = False) -> File:
    """Read a file once, whole, and hash what was read, by SHA-256 or by BLAKE3.

    Raises:
        CheckpointFormatError: It is not a regular file, is larger than `max_bytes`, or changed while it was read.
        OSError: It cannot be read.
    """
    with open(path, "rb", opener=_open_nonblocking) as file:
        return read_open_file(file, path, max_bytes, by_blake3=by_blake3)


def read_open_file(
    file: io.BufferedReader | io.FileIO, path: Path, max_bytes: int = MAX_FILE_BYTES, *, by_blake3: bool = False
) -> File:
    """As `read_file`, but of a file that is open; `path` is its name for messages."""
    before = os.fstat(file.fileno())
    if not stat.S_ISREG(before.st_mode):
        raise CheckpointFormatError(f"{path} is not a regular file; copy its content to one first")
    size = file.seek(0, io.SEEK_END)
    if size > max_bytes:
        raise CheckpointFormatError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read")
    file.seek(0)
    data, digest, read = np.empty(size, dtype=np.uint8), blake3() if by_blake3 else sha256(), 0
    with ThreadPoolExecutor(max_workers=1) as hashing:  # hashes one chunk while the next is read
        for start in range(0, size, _CHUNK_BYTES):
            chunk = data[start : start + _CHUNK_BYTES]
            read += file.readinto(chunk)  # type: ignore[arg-type]
            hashing.submit(digest.update, chunk.data)
    after = os.fstat(file.fileno())
    if read != size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise CheckpointFormatError(f"{path} was changed while it was read; try again when nothing writes to it")
    return File(str(path), data, *(("", digest.hexdigest()) if by_blake3 else (digest.hexdigest(), "")))


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe waits for its writer otherwise


def read_checkpoint(file: File) -> tuple[object, dict[str, str]]:
    """The containers and tensors in a torch, Paddle or safetensors file, and the metadata of the latter.

    The tensors share the memory of the file, but for those of Paddle's protocols 2 and 3, which are encoded in it.

    Raises:
        CheckpointFormatError: It is none of them, or broken; the message says what it looks like.
        UnsafeCheckpointError: It names something beyond plain tensors and containers.
    """
    head = file.data[:512].tobytes()
    with errors_mention(file):
        if head.startswith(b"PK\x03\x04"):
            return read_archive(file), {}
        if head.startswith(LEGACY_MAGIC):
            return read_legacy(file), {}
        if PADDLE_START.match(head):
            return read_paddle(file), {}
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < len(file.data):
        return read_safetensors(file)
    size, what = len(file.data), looks_like(file.data[:4096].tobytes())
    raise CheckpointFormatError(f"{file.name} ({size:,} bytes) is not a checkpoint: it looks like {what}")


# --- safetensors


def read_safetensors(file: File) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the tensors share its memory.

    Raises:
        CheckpointFormatError: The header is broken, or the tensors do not cover the data exactly once.
    """
    length = int.from_bytes(file.data[:8].tobytes(), "little")
    if len(file.data) < 8 or length > min(len(file.data) - 8, MAX_DESCRIPTION_BYTES):
        what = looks_like(file.data[:512].tobytes())
        raise CheckpointFormatError(f"{file.name} is not a safetensors file, or a truncated one: it looks like {what}")
    data = file.data[8 + length :]
    tensors: dict[str, Tensor] = {}
    end = 0
    try:
        header = json.loads(file.data[8 : 8 + length].tobytes().decode(), object_pairs_hook=unique_keys)
        metadata = header.pop("__metadata__", {})
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header):,} tensors; no ISANet has over {MAX_TENSORS:,}")
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise ValueError("metadata is not text")
        places = sorted((*entry["data_offsets"], name) for name, entry in header.items())
        for start, stop, name in places:
            dtype, shape = SAFETENSORS_DTYPES[header[name]["dtype"]], header[name]["shape"]
            numbers = type(shape) is list and all(type(n) is int and n >= 0 for n in (start, stop, *shape))
            if not numbers or len(shape) > 8:
                raise ValueError(f"the tensor {name[:80]!r} has an impossible shape or position")
            if start != end or stop != start + math.prod(shape) * dtype.itemsize or stop > len(data):
                raise ValueError(
                    f"the tensor {name[:80]!r} of shape {shape} cannot lie at bytes {start} to {stop} of {len(data):,}"
                )
            tensors[name] = typed(data[start:stop], dtype).view(shape)
            end = stop
        if end != len(data):
            raise ValueError(f"{len(data) - end:,} bytes belong to no tensor")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointFormatError(f"{file.name}: broken safetensors header ({clean(str(error))[:500]})") from error
    return tensors, metadata


def serialize(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; equal tensors and metadata give equal bytes.

    Args:
        state: Tensors by name, on any device.
        metadata: Texts by name.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **metadata}.items()))}
    parts, end = list[memoryview](), 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # so that all are aligned
        tensor, start = tensors[name], end
        end += tensor.nbytes
        dtype = _SAFETENSORS_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        parts.append(tensor.view(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`, as object_pairs_hook: refuses an object with the same key twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


# --- fitting tensors to a model


def fit_state_dict(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, values: bool = True
) -> dict[str, Tensor]:
    """Check that tensors fit a model exactly, and cast them: floating point to float32, no two in the same memory.

    Args:
        state: Tensors by the model's own names.
        expected: The model's state dict, which may be on the meta device.
        values: Check every value too: finite, and variances not negative.

    Returns:
        The tensors, shared with `state` where nothing had to be cast.

    Raises:
        CheckpointMismatchError: A tensor is missing, extra, of another shape or kind, or has an impossible value; the
            message shows the first differences.
    """
    problems = [f"{name} is missing" for name in expected if name not in state]
    extra = (name[:200] for name in state if name not in expected)
    problems += [f"{name if name.isprintable() else ascii(name)} is not part of the model" for name in extra]
    fitting: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, wanted in expected.items():
        if name not in state:
            continue
        tensor = state[name]
        if name.endswith("num_batches_tracked") and tensor.is_floating_point():  # scripts halve it with all tensors
            tensor = tensor.nan_to_num(0, 0, 0).to(wanted.dtype)
        if tensor.shape != wanted.shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}")
        elif tensor.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{name} is {tensor.dtype}, expected {wanted.dtype}")
        else:
            tensor = tensor.to(torch.float32 if wanted.is_floating_point() else wanted.dtype).contiguous()
            memory = tensor.untyped_storage().data_ptr()
            # Two names for the same memory would be trained as one, and cannot be written as safetensors
            fitting[name] = tensor.clone() if memory in memories else tensor
            memories.add(memory)
    if values and not problems:
        for name, tensor in fitting.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                problems.append(f"{name} has values that are not finite")
            elif name.endswith("running_var") and (tensor < 0).any():
                problems.append(f"{name} has a negative variance")
    if problems:
        first = "; ".join(problems[:5]) + (f", and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointMismatchError(f"the checkpoint does not fit the model, which is unchanged: {first}")
    return fitting


@contextmanager
def errors_mention(file: File) -> Iterator[None]:
    """Errors raised in the body mention the file."""
    try:
        yield
    except CheckpointError as error:
        if file.name in str(error):
            raise
        raise type(error)(f"{file.name}: {error}") from error


def release_file_buffer(state: dict[str, Tensor], file: File) -> dict[str, Tensor]:
    """The same tensors, copied if they are views of the file and much smaller than the memory they would keep alive."""
    start, end = file.data.ctypes.data, file.data.ctypes.data + len(file.data)
    views = {name: tensor for name, tensor in state.items() if start <= tensor.data_ptr() < end}
    if len(file.data) <= 1.2 * sum(tensor.nbytes for tensor in views.values()):
        return state
    return state | {name: tensor.clone() for name, tensor in views.items()}
