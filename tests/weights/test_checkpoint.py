"""What files are read, which are refused, and that nothing in a refused one has any effect."""

import copyreg
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from isanet.errors import CheckpointError, CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError
from isanet.weights import checkpoint, convert
from isanet.weights.checkpoint import fit_state_dict, read_checkpoint, read_file, serialize
from isanet.weights.pickles import MAX_PICKLE_BYTES, Opaque
from tests.helpers import hostile
from tests.helpers.hostile import (
    FOUR_FLOATS,
    archive,
    call,
    integer,
    integers,
    legacy,
    name,
    storage,
    tensor,
    text,
    tuple_of,
)
from tests.helpers.tiny_zoo import saved


def read(folder: Path, data: bytes) -> Any:
    return read_checkpoint(read_file(hostile.file(folder, data)))[0]


@contextmanager
def bounded(seconds: float = 5, memory: int = 200 << 20) -> Iterator[None]:
    """The body takes little of the processor's time, whatever else the machine does, and little memory."""
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < seconds


def assert_same(ours: object, theirs: object) -> None:
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor)
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


# --- what is read ---------------------------------------------------------------------------------------------


def of_every_dtype() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, generator=generator) * 50
    return {str(dtype): values.to(dtype) for dtype in checkpoint.SAFETENSORS_DTYPES.values()}


def good_contents() -> dict[str, object]:
    base = torch.arange(60.0).view(3, 4, 5)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return {
        "every dtype": of_every_dtype(),
        "not contiguous": {"transposed": base.transpose(0, 2), "part": base[1:, ::2, 3], "scalar": base[1, 2, 3]},
        "shared storages": {"all": base, "again": base, "flat": base.view(-1), "row": base[2]},
        "empty tensors": {"none": torch.empty(0), "no rows": torch.empty(0, 7, dtype=torch.int64)},
        "parameters": dict(network.named_parameters()),
        "a state dict with its _metadata": network.state_dict(),
        "containers": {
            "a": [1, -(2**40), 2**64, 0.5, True, None, "ü"],
            7: (),
            "t": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        },
    }


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("case", good_contents())
def test_what_torch_saved_is_read_as_torch_reads_it(tmp_path: Path, case: str, options: dict[str, Any]) -> None:
    contents = good_contents()[case]
    data = saved(contents, **options)
    ours = read(tmp_path, data)
    if case == "parameters":  # torch.load gives nn.Parameter; the bare tensors are meant here
        contents = {key: value.detach() for key, value in contents.items()}  # type: ignore[attr-defined]
        assert_same(ours, contents)
    elif "pickle_protocol" in options:  # torch's own safe reader knows protocol 2 alone
        assert_same(ours, contents)
    else:
        assert_same(ours, torch.load(io.BytesIO(data), weights_only=True))


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    pairs = b"](](U\x01aK\x01e](U\x01bK\x02ee"  # OrderedDict([["a", 1], ["b", 2]]), its texts as bytes
    assert read(tmp_path, archive(call("collections.OrderedDict", pairs))) == {"a": 1, "b": 2}


def test_handmade_files_are_good_before_they_are_made_to_lie(tmp_path: Path) -> None:
    one = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    for contents in (archive(tensor()), legacy(tensor(of=storage(view=b"N")))):
        assert torch.equal(read(tmp_path, contents), torch.ones(4))
        assert torch.equal(torch.load(io.BytesIO(contents), weights_only=True), torch.ones(4))
    assert torch.equal(read(tmp_path, hostile.safetensors(one, FOUR_FLOATS))["a"], torch.ones(4))


def test_views_of_one_storage_share_their_memory_as_in_torch(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    for zipped in (True, False):
        contents = read(tmp_path, saved({"a": base, "b": base[2:]}, _use_new_zipfile_serialization=zipped))
        contents["a"][2] = 9
        assert contents["b"][0] == 9


def test_a_zip64_archive_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path, data in {"a/data.pkl": b"\x80\x02" + tensor() + b".", "a/data/0": FOUR_FLOATS}.items():
            with file.open(zipfile.ZipInfo(path), "w", force_zip64=True) as entry:
                entry.write(data)
    assert torch.equal(read(tmp_path, buffer.getvalue()), torch.ones(4))


def test_weights_are_not_copied(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0), "b": torch.arange(4)}
    for data in (saved(state), serialize(state, {})):
        file = read_file(hostile.file(tmp_path, data))
        start = file.data.ctypes.data
        tensors = read_checkpoint(file)[0]
        assert isinstance(tensors, dict)
        assert all(start <= tensors[key].data_ptr() < start + len(data) for key in state)


@pytest.mark.parametrize("shift", range(8))
def test_safetensors_are_read_as_safetensors_reads_them_at_any_alignment(tmp_path: Path, shift: int) -> None:
    state = {**of_every_dtype(), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 5)}
    data = safetensors.torch.save(state, {"format": "pt", "note": "ü"})
    length = int.from_bytes(data[:8], "little")
    data = (length + shift).to_bytes(8, "little") + data[8 : 8 + length] + b" " * shift + data[8 + length :]
    path = hostile.file(tmp_path, data)
    tensors, metadata = read_checkpoint(read_file(path))
    assert metadata == {"format": "pt", "note": "ü"}
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == state.keys()
    assert_same(tensors, {key: theirs[key] for key in tensors})  # type: ignore[attr-defined]
    assert all(value.data_ptr() % value.itemsize == 0 for value in tensors.values())  # type: ignore[attr-defined]


def test_serialize_is_read_back_with_its_texts(tmp_path: Path) -> None:
    state = {"w": nn.Parameter(torch.randn(2, 3).t()), "n": torch.tensor(4)}
    path = hostile.file(tmp_path, serialize(state, {"source": "here"}))
    tensors, metadata = read_checkpoint(read_file(path))
    assert metadata == {"format": "pt", "source": "here"}
    assert torch.equal(tensors["w"], state["w"])  # type: ignore[index]
    assert tensors["n"].shape == ()  # type: ignore[index]


def test_serialize_gives_what_safetensors_gives_and_takes_its_memory_once() -> None:
    state = {f"{i}.weight": torch.full((256, 1024), float(i)) for i in range(8)}
    every = {**of_every_dtype(), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 5), "t": torch.eye(2, 3).t()}
    read_back = safetensors.torch.load(serialize(every, {}))
    assert read_back.keys() == every.keys()
    assert all(torch.equal(value, every[name]) for name, value in read_back.items())
    for each in (state, {"b": torch.ones(3), "a": torch.tensor(4), "c": torch.ones(2, 2)}):
        assert serialize(each, {}) == safetensors.torch.save(each, {"format": "pt"})
    tracemalloc.start()
    try:
        data = serialize(state, {})
        assert tracemalloc.get_traced_memory()[1] < 1.1 * len(data)
    finally:
        tracemalloc.stop()


# --- the file itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["overwritten", "truncated", "removed"])
def test_the_bytes_hashed_are_the_bytes_parsed(tmp_path: Path, change: str) -> None:
    data = saved({"a": torch.arange(1000.0)})
    path = hostile.file(tmp_path, data)
    file = read_file(path)
    match change:
        case "overwritten":
            path.write_bytes(saved({"a": torch.zeros(1000)}))
        case "truncated":
            os.truncate(path, 10)
        case "removed":
            path.unlink()
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert torch.equal(read_checkpoint(file)[0]["a"], torch.arange(1000.0))  # type: ignore[index]


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile.file(tmp_path, bytes(100_000))
    empty = np.empty

    def shrink(size: int, dtype: Any) -> Any:
        os.truncate(path, 10)
        return empty(size, dtype)

    monkeypatch.setattr("isanet.weights.checkpoint.np.empty", shrink)
    with pytest.raises(CheckpointFormatError, match="changed while it was read"):
        read_file(path)


def test_a_file_larger_than_any_isanet_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(checkpoint.MAX_FILE_BYTES + 1)  # takes no space on disk
    with bounded(), pytest.raises(CheckpointFormatError, match="are read"):
        read_file(path)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def plain_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for each in names:
            file.writestr(each, "text")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"\(0 bytes\).* looks like an empty file"),
        (b"\n <!DOCTYPE html><title>Log in</title>", "web page"),
        (b"<HTML>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (gzip.compress(bytes(100), mtime=0), "gzip"),
        (random.Random(0).randbytes(5000), r"\(5,000 bytes\).* looks like unknown data \(cd "),
        (bytes(5000), "zeros"),
        (tar(), "tar archive"),
        (pickle.dumps([1]), "not one that torch.save or paddle.save wrote"),
        (plain_zip("readme.txt", "notes.txt"), "no data.pkl"),
        (plain_zip("archive/readme.txt"), "no data.pkl"),
        (b"PK\x03\x04", "truncated or broken archive"),
        (b"7 bytes", r"\(7 bytes\).* looks like text"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointFormatError, match=message):
        read(tmp_path, data)


# --- pickles that would do something --------------------------------------------------------------------------

SET_STATE = (  # gives an OrderedDict a method, then has the unpickler call it
    call("collections.OrderedDict")
    + b"}" + text("__setstate__") + name("os.system") + b"sb"
    + text(hostile.COMMAND) + b"b"
)  # fmt: skip

LIVE = {
    "GLOBAL and REDUCE": hostile.SYSTEM,
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + tuple_of(text(hostile.COMMAND)) + b"R",
    "INST": b"(" + text(hostile.COMMAND) + b"ios\nsystem\n",
    "OBJ": b"(" + name("os.system") + text(hostile.COMMAND) + b"o",
    "BUILD": SET_STATE,
    "eval": call("builtins.eval", text(f"__import__('os').system({hostile.COMMAND!r})")),
    "import": name("imported_by_a_pickle.value"),
    "EXT1": b"\x82\xf0" + tuple_of(text(hostile.COMMAND)) + b"R",
}
"""Pickles that leave a file behind when the standard library loads them."""

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "archive": archive,
    "archive, inside": lambda piece: archive(b"}" + text("model") + piece + b"s"),
    "legacy system": lambda piece: legacy(tensor(), system=piece),
    "legacy tensors": legacy,
    "legacy keys": lambda piece: legacy(tensor(), keys=piece),
}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a live pickle leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / hostile.MARKER
    (tmp_path / "imported_by_a_pickle.py").write_text(f"open({str(path)!r}, 'w').close()\nvalue = 1\n")
    copyreg.add_extension("os", "system", 0xF0)
    yield path
    copyreg.remove_extension("os", "system", 0xF0)
    copyreg.clear_extension_cache()
    import sys

    sys.modules.pop("imported_by_a_pickle", None)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", LIVE)
def test_no_pickle_runs_anything(tmp_path: Path, marker: Path, case: str, place: str) -> None:
    if case == "BUILD":  # what sets the method on a dictionary is dropped, and the dictionary is empty
        with pytest.raises(
            CheckpointFormatError, match=r"empty dictionary|little-endian|in the place of a list|not match"
        ):
            convert.unwrap(read(tmp_path, PLACES[place](LIVE[case])))
    else:
        with pytest.raises(UnsafeCheckpointError, match=r"nothing in it was run.*torch\.save\({'state_dict'"):
            convert.unwrap(read(tmp_path, PLACES[place](LIVE[case])))
    assert not marker.exists()


INSIDE: dict[str, Callable[[bytes], bytes]] = {
    "beside": lambda piece: text("args") + piece,
    "as a key": lambda piece: piece + b"N",
    "in a state": lambda piece: text("args") + call("a.B") + b"}" + text("x") + piece + b"sb",
    "set on it": lambda piece: text("args") + call("a.B") + text("x") + piece + b"s",
    "appended to it": lambda piece: text("args") + call("a.B") + piece + b"a",
    "an argument of it": lambda piece: text("args") + call("a.B", piece),
    "its own class": lambda piece: text("args") + piece + b")\x81",
    "called": lambda piece: text("args") + piece + b")R",
    "built": lambda piece: text("args") + piece + b"}" + text("__setstate__") + name("os.system") + b"sb" + b"}b",
    "remembered": lambda piece: text("args") + piece + b"q\x00h\x00\x86",
}
"""Places beside the weights, where nothing of a pickle is used."""


@pytest.mark.parametrize("place", INSIDE)
@pytest.mark.parametrize("case", ["GLOBAL and REDUCE", "STACK_GLOBAL", "eval", "import"])
@pytest.mark.parametrize("container", [archive, legacy])
def test_no_pickle_beside_the_weights_runs_anything(
    tmp_path: Path, marker: Path, case: str, place: str, container: Callable[[bytes], bytes]
) -> None:
    data = container(b"}" + text("model") + b"}" + text("a") + tensor() + b"ss" + INSIDE[place](LIVE[case]) + b"s")
    state = convert.unwrap(read(tmp_path, data))
    assert state.keys() == {"a"}
    assert not marker.exists()


OS = name("os.system")


@pytest.mark.parametrize(
    "piece",
    [
        tensor(of=call("os.system", text(hostile.COMMAND))),
        tensor(of=OS),
        tensor(offset=OS),
        tensor(size=OS),
        tensor(stride=OS),
        tensor(size=tuple_of(OS)),
        tensor(of=storage(key=OS)),
        tensor(of=storage(numel=OS)),
        tensor(of=storage(kind="os.system")),
        tensor(of=storage(kind="torch.QUInt4x2Storage")),
        call("torch._utils._rebuild_parameter", OS, b"\x88", b"}"),
        call("collections.OrderedDict", OS),
        name("collections.OrderedDict") + OS + b"R",
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_part_of_a_tensor_is_refused_by_name(tmp_path: Path, marker: Path, piece: bytes, beside: bool) -> None:
    data = archive(b"}" + text("args" if beside else "model") + piece + b"s")
    with pytest.raises(UnsafeCheckpointError, match=r"names '(os\.system|torch\.QUInt4x2Storage)' in the place of"):
        read(tmp_path, data)
    assert not marker.exists()


def test_what_is_left_out_is_bounded_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "isanet")
    depth = 20_000
    deep = b"".join(name(f"a{i}.B") for i in range(depth)) + b"b" * (depth - 1)
    with bounded():
        contents = read(tmp_path, archive(deep))
        assert repr(contents) == "Opaque(name='a0.B')"
        with pytest.raises(UnsafeCheckpointError, match=r"'a0\.B'"):
            convert.unwrap(contents)
        del contents
        assert "a0.B" in caplog.text
        assert len(caplog.text) < 1000
        itself = read(tmp_path, archive(call("a.B") + b"q\x00h\x00b"))
        with pytest.raises(UnsafeCheckpointError, match=r"'a\.B'"):
            convert.unwrap(itself)
        (long,) = read(tmp_path, archive(b"]" + name("a." + "b" * 2_000_000) + b"a"))
        assert len(long.name) == 200
        for step in (2**61 - 1, 2**40, 1):  # integers of one hash, or of hashes that end alike
            pairs = b"".join(integer(step * i) + b"N" for i in range(20_000))
            for kind in (b"}", call("a.Dictionary")):
                contents = read(tmp_path, archive(kind + b"(" + pairs + b"u"))
                keys = contents.state if isinstance(contents, Opaque) else contents
                assert len(keys) == 20_000
                assert sum(type(key) is int for key in keys) <= 4096
        many = read(tmp_path, archive(b"}" + (hostile.nested(60) + b"Ns") + (hostile.nested(60) + b"Ns")))
        assert len(many) == 2


@pytest.mark.parametrize("case", LIVE)
def test_the_same_pickles_do_run_where_they_are_let(marker: Path, case: str) -> None:
    pickle.loads(b"\x80\x04" + LIVE[case] + b".")
    assert marker.exists()


def test_no_setting_of_torch_makes_a_pickle_run(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    data = archive(hostile.SYSTEM)
    with torch.serialization.safe_globals([os.system]):
        with pytest.raises(UnsafeCheckpointError, match=r"os\.system"):
            convert.unwrap(read(tmp_path, data))
        assert not marker.exists()
        with pytest.warns(UserWarning, match="forcing weights_only=False"):
            torch.load(io.BytesIO(data))  # these settings do open that door
        assert marker.exists()


@pytest.mark.parametrize(
    "full",
    [
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_tensor_v2 ",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "torch._utils._rebuild_parameter_with_states",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utilsx._rebuild_tensor_v2",
        "torch.FloatStorage.from_file",
        "torch.storage._load_from_bytes",
        "torch.load",
        "torch.QUInt4x2Storage",
        "collections.OrderedDict.fromkeys",
        "Collections.OrderedDict",
        "collections.defaultdict",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "builtins.getattr",
        "isanet.weights.pickles.Name",
    ],
)
def test_a_name_that_only_resembles_an_allowed_one_is_refused_and_shown(tmp_path: Path, full: str) -> None:
    for data in (archive(name(full)), archive(text(full) + text("x") + b"\x93"), legacy(name(full))):
        with pytest.raises(UnsafeCheckpointError) as caught:
            convert.unwrap(read(tmp_path, data))
        assert full in str(caught.value)


ORDERED = name("collections.OrderedDict")
EMPTY = tensor(size=integers(0))


@pytest.mark.parametrize(
    ("instruction", "piece"),
    [
        ("NEWOBJ", ORDERED + b")\x81"),
        ("NEWOBJ_EX", ORDERED + b")}\x92"),
        ("OBJ", b"(" + ORDERED + b"o"),
        ("INST", b"(icollections\nOrderedDict\n"),
        ("EXT2", b"\x83\x01\x01"),
        ("EXT4", b"\x84\x01\x01\x01\x01"),
        ("PERSID", b"P0\n"),
        ("NEXT_BUFFER", b"\x97"),
        ("DUP", b"K\x012"),
    ],
)
def test_instructions_that_no_state_dict_needs_are_refused_and_shown(
    tmp_path: Path, instruction: str, piece: bytes
) -> None:
    with pytest.raises(UnsafeCheckpointError, match=rf"instruction {instruction}\b"):
        read(tmp_path, archive(piece))


@pytest.mark.parametrize("attribute", ["get", "items", "keys", "__class__", "_metadata"])
def test_a_state_given_to_a_dictionary_sets_no_attribute(tmp_path: Path, attribute: str) -> None:
    for state in (b"}" + text(attribute) + ORDERED + b"s", b"N}" + text(attribute) + ORDERED + b"s\x86"):
        contents = read(tmp_path, archive(call("collections.OrderedDict") + state + b"b"))
        assert type(contents) is dict
        assert list(contents.items()) == []


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        # BUILD on what is no dictionary: Tensor.__setstate__ would resize an empty tensor on the file's word
        (EMPTY + tuple_of(EMPTY, integer(0), integers(1 << 40), integers(1)) + b"b", "Tensor in the place of a dict"),
        (ORDERED + b"N}" + text("name") + text("os.system") + b"s\x86b", "Name in the place of a dict"),
        (storage() + b"}b", "_Storage in the place of a dict"),
        # REDUCE of what is no function, or with what are no arguments
        (tensor() + b")R", "Tensor in the place of a Name"),
        (text("os.system") + b")R", "str in the place of a Name"),
        (ORDERED + b"]R", "list in the place of a tuple"),
        (name("torch.FloatStorage") + b")R", "not a function"),
        (call("torch._utils._rebuild_tensor_v2"), "broken"),
        (call("torch._utils._rebuild_parameter", text("x"), b"\x88", b"}"), "str in the place of a Tensor"),
        # containers
        (b"}(Nu", "broken"),
        (b"](ea", "broken"),
        (b"K\x01K\x02a", "int in the place of a list"),
        (b"K\x01\x86", "broken"),
        (b"e", "broken"),
        (b"", "broken"),
        # places to remember, numbers and lengths on the file's word
        (b"Nr\xff\xff\xff\x7f", "memo slots after"),
        (b"Nq\xff", "255 memo slots after"),
        (b"h\x07", "broken"),
        (integer(1 << 129), "128 bits"),
        (integer(1 << (8 << 20)), "128 bits"),
        (b"\x8b\xff\xff\xff\xff", "broken"),
        (b"\x8b\xff\xff\xff\x7f", "broken"),
        (b"B\xff\xff\xff\xff", "broken"),
        (b"X\xff\xff\xff\xff", "broken"),
        (b"\x8d" + b"\xff" * 8, "broken"),
        (b"\x8d" + (1 << 50).to_bytes(8, "little"), "broken"),
        (b"\x8e" + (1 << 62).to_bytes(8, "little"), "broken"),
        (b"\x96" + (1 << 62).to_bytes(8, "little"), "broken"),
        (b"\x95" + b"\xff" * 8, "broken"),
        (b"I" + b"9" * 100_000 + b"\n", "broken"),
        (text("x" * MAX_PICKLE_BYTES), "over 33,554,432 bytes"),
        # references to storages
        (text("storage") + b"Q", "not a storage"),
        (tuple_of(*[text("storage")] * 4) + b"Q", "not a storage"),
        (tuple_of(text("module"), ORDERED, text("0"), text("cpu"), integer(4)) + b"Q", "not a storage"),
        (storage(kind="collections.OrderedDict"), "wrongly"),
        (tuple_of(text("storage"), *[text("0")] * 3, integer(4)) + b"Q", "str in the place of a Name"),
        (storage(key=integer(0)), "int in the place of a str"),
        (storage(key=hostile.nested(60)), "tuple in the place of a str"),
        (storage(numel=hostile.nested(60)), "tuple in the place of a int"),
        (storage(numel=b"\x88"), "bool in the place of a int"),
        (storage(numel=integer(-1)), "wrongly"),
        (storage(numel=integer(5)), "should have 20 bytes, but has 16"),
        (storage(numel=integer(3)), "should have 12 bytes, but has 16"),
        (storage(numel=integer(1 << 100)), "but has 16"),
        (storage(kind="torch.DoubleStorage"), "should have 32 bytes"),
        (storage(key=text("1")), "is missing"),
        (storage(key=text("../data.pkl")), "is missing"),
        (tuple_of(storage(), storage(numel=integer(8), kind="torch.HalfStorage")), "twice, differently"),
        (storage(view=b")"), "before 0.4"),
        # tensors that are not inside their storage
        (tensor(of=b"N"), "NoneType in the place of a _Storage"),
        (tensor(of=tuple_of(b"N", b"N")), "tuple in the place of a _Storage"),
        (tensor(size=integers(5)), "beyond its storage"),
        (tensor(offset=integer(1)), "beyond its storage"),
        (tensor(offset=integer(1 << 62)), "beyond its storage"),
        (tensor(stride=integers(2)), "beyond its storage"),
        (tensor(size=integers(2, 2), stride=integers(1 << 62, 1)), "beyond its storage"),
        (tensor(size=integers(1 << 40), stride=integers(0)), "beyond its storage"),
        (tensor(size=integers(1 << 62, 1 << 62), stride=integers(0, 0)), "beyond its storage"),
        (tensor(size=integers(1), stride=integers(1 << 100)), "broken"),
        (tensor(size=integers(0), offset=integer(1 << 40)), "beyond its storage"),
        (tensor(size=integers(0, 1 << 62, 1 << 62), stride=integers(0, 0, 0)), "broken"),
        (tensor(offset=integer(-1)), "impossible shape"),
        (tensor(size=integers(-4)), "impossible shape"),
        (tensor(stride=integers(-1)), "impossible shape"),
        (tensor(size=tuple_of(b"\x88")), "bool in the place of a int"),
        (tensor(size=b"](K\x04e"), "list in the place of a tuple"),
        (tensor(offset=integer(-1), size=tuple_of(hostile.nested(60))), "tuple in the place of a int"),
        (tensor(stride=integers()), "1 dimensions has 0 strides"),
        (tensor(size=integers(*[1] * 9), stride=integers(*[1] * 9)), "9 dimensions"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("container", [archive, legacy])
def test_a_lying_pickle_is_named_at_little_cost(
    tmp_path: Path, piece: bytes, message: str, container: Callable[[bytes], bytes]
) -> None:
    # The older format's list of storages is looked at before its tensors are made
    allowed = f"{message}|does not match its tensors|lies about the storage" if container is legacy else message
    data = container(piece)
    with bounded(), pytest.raises(CheckpointFormatError, match=allowed):
        read(tmp_path, data)


def test_a_pickle_of_endless_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isanet.weights.pickles.MAX_STEPS", 1000)
    assert read(tmp_path, archive(b"(" + b"]" * 900 + b"t"))
    with pytest.raises(CheckpointFormatError, match="more than 1,000 steps"):
        read(tmp_path, archive(b"(" + b"]" * 1000 + b"t"))


def test_deep_nesting_and_self_reference_are_read_and_harmless(tmp_path: Path) -> None:
    depth = 50_000
    with bounded():
        contents = read(tmp_path, archive(b"]" * depth + b"a" * (depth - 1)))
        assert len(contents) == 1
        del contents
        itself = read(tmp_path, archive(b"}q\x00" + text("model") + b"h\x00s"))
        assert itself["model"] is itself


@pytest.mark.parametrize("container", [archive, legacy])
def test_many_views_of_the_same_bytes_are_no_way_to_much_memory(
    tmp_path: Path, container: Callable[..., bytes]
) -> None:
    numel = 1 << 18
    data = bytes(numel)
    # One storage of one megabyte, shown often: of truth values, or at odd places, it is copied, but once
    for kind, size in (("torch.BoolStorage", 1), ("torch.CharStorage", 1), ("torch.FloatStorage", 4)):
        reference = storage(numel=integer(numel // size), kind=kind)
        for shown, views in ((1, 1000), (numel // size, 4)):
            piece = tuple_of(*[tensor(size=integers(shown), of=reference)] * views)
            whole = (
                archive(piece, {"data/0": data})
                if container is archive
                else legacy(piece, numel=numel // size, data=data)
            )
            with bounded(memory=20 << 20):
                tensors = read(tmp_path, whole)
            assert len({each.untyped_storage().data_ptr() for each in tensors}) == 1
    piece = tuple_of(*[tensor(size=integers(numel), of=storage(numel=integer(numel), kind="torch.CharStorage"))] * 1000)
    whole = archive(piece, {"data/0": data}) if container is archive else legacy(piece, numel=numel, data=data)
    with bounded(), pytest.raises(CheckpointFormatError, match="more than 4 times"):
        read(tmp_path, whole)


# --- archives and older files that lie ------------------------------------------------------------------------


def test_a_flipped_bit_is_noticed_by_the_checksum(tmp_path: Path) -> None:
    """One bit of one mantissa gives another finite number, which only the checksum shows."""
    data = bytearray(saved({"a": torch.full((1000,), 1.5)}))
    place = data.index(struct.pack("<f", 1.5) * 1000)
    data[place + 2000] ^= 1
    with pytest.raises(CheckpointFormatError, match=r"'.*/data/0' is damaged: its CRC is .*fetch or copy"):
        read(tmp_path, bytes(data))


def test_a_file_that_torch_saved_without_checksums_is_read(tmp_path: Path) -> None:
    contents = {"a": torch.arange(10.0)}
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(contents)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read(tmp_path, data), contents)


@pytest.mark.parametrize("folder", ["other", "archive/data", ""])
def test_what_lies_in_another_folder_than_the_pickle_is_refused(tmp_path: Path, folder: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + tensor() + b".")
        file.writestr(f"{folder}/data/0".removeprefix("/"), FOUR_FLOATS)
    message = "is missing|should have" if folder.startswith("archive/") else r"is not in 'archive/', the folder of data"
    with pytest.raises(CheckpointFormatError, match=message):
        read(tmp_path, buffer.getvalue())


def replaced(data: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in data
    return data.replace(old, new, count)


def directory(data: bytes, entry: int, offset: int, value: bytes) -> bytes:
    """An archive with other bytes at `offset` in the central directory's record of one entry."""
    place = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"][entry] + offset
    return data[:place] + value + data[place + len(value) :]


def at(data: bytes, place: int, value: bytes) -> bytes:
    place %= len(data)
    return data[:place] + value + data[place + len(value) :]


GOOD = archive(tensor())
LAST = GOOD.rindex(b"PK\x03\x04")  # the local header of its last entry, the storage
BIG_ENDIAN = b"}" + text("little_endian") + b"\x89s"
LARGE_DIRECTORY = (
    b"PK\x03\x04" + b"PK\x01\x02".ljust(46, b"\0") * 200_000
    + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 0, 0, 46 * 200_000, 4, 0)
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(archive(tensor(), compression=zipfile.ZIP_DEFLATED), "compressed", id="deflate"),
        pytest.param(archive(tensor(), {"data/0": bytes(1 << 24)}, zipfile.ZIP_LZMA), "compressed", id="lzma"),
        pytest.param(directory(GOOD, -1, 24, b"\0\0\1\0"), "compressed", id="other size unpacked"),
        pytest.param(directory(GOOD, -1, 8, b"\1"), "encrypted", id="encrypted"),
        pytest.param(directory(GOOD, -1, 20, b"\xff\xff\xff\x7f" * 2), "outside the file", id="entry too long"),
        pytest.param(directory(GOOD, -1, 20, b"\x11\0\0\0" * 2), "outside the file", id="entry one byte longer"),
        pytest.param(directory(GOOD, -1, 42, b"\xf0\xff\xff\x7f"), "outside the file", id="entry beyond the file"),
        pytest.param(directory(GOOD, -1, 42, b"\1"), "outside the file", id="entry at no header"),
        pytest.param(directory(GOOD, 0, 42, b"\1"), "something else before it", id="first entry not first"),
        pytest.param(at(GOOD, LAST, b"pk"), "outside the file", id="no local header"),
        pytest.param(at(GOOD, LAST + 26, b"\xff\xff"), "outside the file", id="local name too long"),
        pytest.param(at(GOOD, LAST + 28, b"\xff\xff"), "outside the file", id="local extra too long"),
        pytest.param(at(GOOD, -6, b"\xff\xff\0\0"), "does not lie where", id="directory elsewhere"),
        pytest.param(at(GOOD, -10, b"\xff\xff\xff\x7f"), "does not lie where", id="directory too large"),
        pytest.param(LARGE_DIRECTORY, "directory is larger than", id="a directory of 200,000 entries"),
        pytest.param(
            replaced(archive(tensor(), {"data/0": FOUR_FLOATS, "data/1": FOUR_FLOATS}), b"data/1", b"data/0"),
            "appears twice", id="name twice",
        ),
        pytest.param(
            replaced(archive(tensor(), {"data/0": FOUR_FLOATS, "data.pkk": b"."}), b"data.pkk", b"data.pkl"),
            "appears twice", id="pickle twice",
        ),
        pytest.param(GOOD + GOOD, "something else before it", id="two archives"),
        pytest.param(b"PK\x03\x04" + GOOD, "something else before it", id="prefix"),
        pytest.param(archive(tensor(), {"data/0": FOUR_FLOATS, "byteorder": b"big"}), "big-endian", id="big-endian"),
        pytest.param(archive(tensor(), {}), "is missing", id="storage missing"),
        pytest.param(archive(tensor(), {"data/0": FOUR_FLOATS[:-1]}), "has 15", id="storage too short"),
        pytest.param(archive(tensor(), {"data/0": FOUR_FLOATS * 2}), "has 32", id="storage too long"),
        pytest.param(replaced(GOOD, b"data.pkl", b"data.pkx"), "no data.pkl", id="no pickle"),
        pytest.param(GOOD[:-1], "truncated or broken", id="one byte short"),
        pytest.param(legacy(tensor(), system=b"}"), "little-endian", id="legacy system unknown"),
        pytest.param(legacy(tensor(), system=b"]"), "list in the place of a dict", id="legacy system no dictionary"),
        pytest.param(legacy(tensor(), system=BIG_ENDIAN), "little-endian", id="legacy big-endian"),
        pytest.param(legacy(tensor(), keys=b"]"), "does not match", id="legacy storage not listed"),
        pytest.param(legacy(tensor(), keys=b"N"), "in the place of a list", id="legacy no list"),
        pytest.param(legacy(tensor(), keys=b"]K\0a"), "does not match", id="legacy key a number"),
        pytest.param(legacy(tensor(), keys=b"]" + hostile.nested(60) + b"a"), "does not match", id="legacy key nested"),
        pytest.param(legacy(tensor(), keys=b"](" + text("0") * 2 + b"e"), "does not match", id="legacy key twice"),
        pytest.param(legacy(tensor(), numel=5), "lies about", id="legacy longer"),
        pytest.param(legacy(tensor(), numel=3), "lies about", id="legacy shorter"),
        pytest.param(legacy(tensor(), numel=-1), "lies about", id="legacy negative"),
        pytest.param(legacy(tensor(of=storage(numel=integer(1 << 62))), numel=1 << 62), "lies about", id="legacy huge"),
        pytest.param(legacy(tensor(), data=FOUR_FLOATS[:-1]), "truncated", id="legacy one byte short"),
    ],
)  # fmt: skip
def test_a_lying_archive_or_older_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with bounded(), pytest.raises(CheckpointFormatError, match=message):
        read(tmp_path, data)


WHOLE = {
    "archive": GOOD,
    "legacy": legacy(tensor()),
    "torch": saved({"a": torch.ones(4), "b": torch.ones(2, dtype=torch.bool)}),
    "torch legacy": saved({"a": torch.ones(4)}, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save({"a": torch.ones(4), "b": torch.ones(2, dtype=torch.bool)}, {"format": "pt"}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    file = read_file(hostile.file(tmp_path, WHOLE[kind]))
    for length in range(len(WHOLE[kind])):
        with pytest.raises(CheckpointFormatError):
            read_checkpoint(file._replace(data=file.data[:length]))


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_changed_at_random_is_read_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    file = read_file(hostile.file(tmp_path, WHOLE[kind]))
    numbers = np.random.RandomState(0)
    refused = 0
    for _ in range(800):
        damaged = hostile.changed(file, numbers, b"(.)}]RbQctuhq\x82\x93")
        try:
            read_checkpoint(damaged)
        except CheckpointError:
            refused += 1
    assert refused > 100


# --- safetensors ----------------------------------------------------------------------------------------------


def entry(start: Any = 0, stop: Any = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


ENTRY = b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


@pytest.mark.parametrize(
    ("header", "message"),
    [
        pytest.param({"a": entry(), "b": entry()}, "cannot lie", id="overlapping"),
        pytest.param({"a": entry(0, 8, [2]), "b": entry(4, 16, [3])}, "cannot lie", id="overlapping in part"),
        pytest.param({"a": entry(0, 8, [2])}, "8 bytes belong to no tensor", id="rest"),
        pytest.param({"a": entry(4, 16, [3])}, "cannot lie", id="gap before"),
        pytest.param({"a": entry(0, 4, [1]), "b": entry(8, 16, [2])}, "cannot lie", id="gap between"),
        pytest.param({}, "16 bytes belong to no tensor", id="nothing"),
        pytest.param({"a": entry(0, 32, [8])}, "cannot lie", id="beyond the file"),
        pytest.param({"a": entry(shape=[3])}, "cannot lie", id="shape too small"),
        pytest.param({"a": entry(shape=[1 << 62] * 8)}, "cannot lie", id="shape huge"),
        pytest.param({"a": entry(shape=[1 << 64, 0]), "b": entry()}, "cannot lie", id="shape huge and empty"),
        pytest.param({"a": entry(0, 0, [1 << 64, 0]), "b": entry()}, "broken", id="shape beyond 64 bits"),
        pytest.param({"a": entry(shape=[1] * 8 + [4])}, "impossible", id="nine dimensions"),
        pytest.param({"a": entry(shape=[-2, -2])}, "impossible", id="negative shape"),
        pytest.param({"a": entry(shape=[True, 4])}, "impossible", id="bool in shape"),
        pytest.param({"a": entry(shape=[4.0])}, "impossible", id="float in shape"),
        pytest.param({"a": entry(shape="4")}, "impossible", id="shape a text"),
        pytest.param({"a": entry(shape={})}, "impossible", id="shape a dictionary"),
        pytest.param({"a": entry(-16, 0)}, "impossible", id="negative offset"),
        pytest.param({"a": entry(False, 16)}, "impossible", id="bool offset"),
        pytest.param({"a": entry(0, True, [1], "U8")}, "impossible", id="bool end"),
        pytest.param({"a": entry(0, 16.0)}, "impossible", id="float end"),
        pytest.param({"a": entry(float("nan"), 16)}, "impossible", id="NaN offset"),
        pytest.param({"a": entry(0, float("inf"))}, "impossible", id="infinite end"),
        pytest.param({"a": entry("0", "16")}, "impossible", id="offsets of text"),
        pytest.param({"a": {**entry(), "data_offsets": [0, 16, 32]}}, "broken", id="three offsets"),
        pytest.param({"a": {**entry(), "data_offsets": [0]}}, "broken", id="one offset"),
        pytest.param({"a": {**entry(), "data_offsets": 16}}, "broken", id="no offsets"),
        pytest.param({"a": {"dtype": "F32", "shape": [4]}}, "data_offsets", id="offsets missing"),
        pytest.param({"a": entry(dtype="F128")}, "F128", id="unknown dtype"),
        pytest.param({"a": entry(dtype=["F32"])}, "broken", id="dtype a list"),
        pytest.param({"a": 1}, "broken", id="entry a number"),
        pytest.param({"a": entry(), "__metadata__": {"n": 1}}, "metadata", id="metadata not text"),
        pytest.param({"a": entry(), "__metadata__": ["n"]}, "broken", id="metadata a list"),
        pytest.param({"a": entry(), "__metadata__": None}, "broken", id="metadata null"),
        pytest.param(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", "twice", id="name twice"),
        pytest.param(b'{"a":' + ENTRY[:-1] + b',"shape":[4]}}', "twice", id="field twice"),
        pytest.param(b'{"a":' + b"[" * 100_000, "broken", id="deep nesting"),
        pytest.param(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "broken", id="nesting"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "broken", id="endless number"),
        pytest.param(json.dumps({"a": entry()}).encode("utf-16-le"), "broken", id="UTF-16"),
        pytest.param(b'{"\xff":1}', "broken", id="not UTF-8"),
        pytest.param(b"{", "broken", id="cut"),
    ],
)
def test_a_lying_safetensors_header_is_named(tmp_path: Path, header: object, message: str) -> None:
    with bounded(), pytest.raises(CheckpointFormatError, match=message):
        read(tmp_path, hostile.safetensors(header, FOUR_FLOATS))


@pytest.mark.parametrize("length", [0, 1 << 63, (1 << 64) - 1, 70, 60])
def test_a_safetensors_header_of_another_length_is_named(tmp_path: Path, length: int) -> None:
    with bounded(), pytest.raises(CheckpointFormatError):
        read(tmp_path, hostile.safetensors({"a": entry()}, FOUR_FLOATS, length))


def test_a_safetensors_header_larger_than_any_is_refused(tmp_path: Path) -> None:
    header = b"{" + b" " * checkpoint.MAX_DESCRIPTION_BYTES + b"}"
    with bounded(memory=20 << 20), pytest.raises(CheckpointFormatError, match="not a safetensors file"):
        read(tmp_path, hostile.safetensors(header))


def test_a_truth_value_is_zero_or_one_whatever_its_byte(tmp_path: Path) -> None:
    data = bytes([0, 1, 2, 255])
    kinds = storage(kind="torch.BoolStorage")
    for contents in (
        archive(b"}" + text("a") + tensor(of=kinds) + b"s", {"data/0": data}),
        hostile.safetensors({"a": entry(0, 4, [4], "BOOL")}, data),
    ):
        values = read(tmp_path, contents)["a"]
        assert values.view(torch.uint8).tolist() == [0, 1, 1, 1]


# --- fitting to a model ---------------------------------------------------------------------------------------


def good_state() -> dict[str, Tensor]:
    return {
        "conv.weight": torch.ones(2, 3),
        "bn.bias": torch.ones(2),
        "bn.running_var": torch.ones(2),
        "bn.num_batches_tracked": torch.tensor(1),
    }


EXPECTED = {key: value.to("meta") for key, value in good_state().items()}


def test_a_state_that_fits_is_given_back_without_a_copy() -> None:
    state = good_state()
    fitting = fit_state_dict(state, EXPECTED)
    assert list(fitting) == list(EXPECTED)
    assert all(fitting[key].data_ptr() == value.data_ptr() for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn.bias": None}, "bn.bias is missing"),
        ({"bn.scale": torch.ones(1)}, "bn.scale is not part of the model"),
        ({"conv.weight": torch.ones(3, 2)}, r"conv.weight has shape \(3, 2\), expected \(2, 3\)"),
        ({"bn.bias": torch.ones(2, dtype=torch.int64)}, "bn.bias is torch.int64, expected torch.float32"),
        ({"bn.bias": torch.ones(2, dtype=torch.bool)}, "bn.bias is torch.bool"),
        ({"bn.num_batches_tracked": torch.ones(2)}, r"shape \(2,\), expected \(\)"),
        ({"bn.bias": torch.tensor([1, torch.nan])}, "bn.bias has values that are not finite"),
        ({"conv.weight": torch.full((2, 3), -torch.inf)}, "conv.weight has values that are not finite"),
        ({"conv.weight": torch.full((2, 3), 1e300, dtype=torch.float64)}, "conv.weight has values that are not finite"),
        ({"bn.running_var": torch.tensor([1, -1e-9])}, "bn.running_var has a negative variance"),
        ({"bn.bias": None, "x": torch.ones(1)}, "bn.bias is missing; x is not part of the model$"),
        ({f"x{i}": torch.ones(1) for i in range(8)}, "x0 is .*; x4 is not part of the model, and 3 more$"),
        (dict.fromkeys(EXPECTED), "conv.weight is missing; .*num_batches_tracked is missing$"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named_and_left_as_it_was(change: dict[str, Tensor | None], message: str) -> None:
    state = {key: value for key, value in {**good_state(), **change}.items() if value is not None}
    before = {key: value.clone() for key, value in state.items()}
    with pytest.raises(CheckpointMismatchError, match=message):
        fit_state_dict(state, EXPECTED)
    assert state.keys() == before.keys()
    for key, value in before.items():
        assert state[key].dtype == value.dtype
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_the_given_state_keeps_its_own(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in good_state().items()}
    fitting = fit_state_dict(state, EXPECTED)
    assert {key: value.dtype for key, value in fitting.items()} == {key: v.dtype for key, v in EXPECTED.items()}
    assert all(torch.equal(fitting[key], value) for key, value in good_state().items())
    assert state["conv.weight"].dtype == dtype


@pytest.mark.parametrize(("count", "expected"), [(1.0, 1), (torch.inf, 0), (torch.nan, 0)])
def test_a_count_that_a_script_has_halved_is_a_count(count: float, expected: int) -> None:
    """`{name: value.half() for name, value in state.items()}`: counts from 65,520 on are infinite then."""
    halved = {**good_state(), "bn.num_batches_tracked": torch.tensor(count).half()}
    fitting = fit_state_dict(halved, EXPECTED)["bn.num_batches_tracked"]
    assert (fitting.dtype, fitting.item()) == (torch.int64, expected)


def test_values_are_looked_at_only_when_asked() -> None:
    state = {**good_state(), "bn.bias": torch.tensor([1, torch.nan])}
    assert fit_state_dict(state, EXPECTED, values=False)["bn.bias"].isnan().any()


def test_tensors_that_share_memory_come_apart(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    state = {**good_state(), "bn.bias": one[:2], "bn.running_var": one[1:3], "conv.weight": one.view(3, 2).t()}
    fitting = fit_state_dict(read(tmp_path, saved(OrderedDict(state))), EXPECTED)
    assert all(torch.equal(fitting[key], value) and fitting[key].is_contiguous() for key, value in state.items())
    fitting["bn.bias"].fill_(7)
    assert fitting["bn.running_var"].tolist() == [1, 2]
    path = hostile.file(tmp_path, serialize(fitting, {}))
    assert read_checkpoint(read_file(path))[0].keys() == state.keys()  # type: ignore[attr-defined]
