"""Files made to harm their readers: each is refused by name, runs nothing and costs little.

Unlike tests/weights/test_checkpoint.py, which changes one instruction or record at a time, these go through all of
`from_pretrained`, and an audit hook watches that nothing is imported, opened, executed or started.
"""

from __future__ import annotations

import copyreg
import io
import re
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isanet.errors import CheckpointError, CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError
from isanet.weights import checkpoint
from isanet.weights.convert import LANDMARKS
from isanet.weights.pickles import MAX_TENSORS, File
from isanet.zoo.networks import meta_model
from isanet.zoo.pretrained import load_file
from tests.helpers import hostile
from tests.helpers.hostile import (
    FOUR_FLOATS,
    SYSTEM,
    archive,
    call,
    integer,
    integers,
    legacy,
    name,
    safetensors,
    storage,
    tensor,
    text,
    tuple_of,
)

SYSTEM_NAME = text("os") + text("system") + b"\x93"
ORDERED = name("collections.OrderedDict")
REBUILD = name("torch._utils._rebuild_tensor_v2")
RUN = tuple_of(text(hostile.COMMAND)) + b"R"
LONG = text("x" * 2000)

# --- what must not happen ---------------------------------------------------------------------------------------

FORBIDDEN = (
    "os.",
    "subprocess.",
    "exec",
    "compile",
    "import",
    "open",
    "pickle.",
    "socket.",
    "ctypes.",
    "shutil.",
    "code.",
)
seen: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if seen is not None and event.startswith(FORBIDDEN):
        seen.append(f"{event} {arguments!r:.200}")


@pytest.fixture(scope="module", autouse=True)
def watched() -> None:
    """What is imported at first use is imported, and the audit hook, which cannot be removed, is installed."""
    for data in (archive(tensor()), legacy(tensor()), safetensors({"a": entry()}, FOUR_FLOATS)):
        checkpoint.read_checkpoint(File("good.pth", np.frombuffer(data, np.uint8), ""))
    meta_model({"num_classes": 2})
    sys.addaudithook(_hook)


@pytest.fixture
def file_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a payload would leave in the working folder."""
    monkeypatch.chdir(tmp_path)
    for code in (0xF0, 0xF00, 0xF0000):
        copyreg._inverted_registry[code] = ("os", "system")  # type: ignore[attr-defined]
    yield tmp_path / hostile.MARKER
    for code in (0xF0, 0xF00, 0xF0000):
        del copyreg._inverted_registry[code]  # type: ignore[attr-defined]
    copyreg.clear_extension_cache()


def refused(data: bytes) -> CheckpointError:
    """The error that loading a model from these bytes raises; nothing was run, and it took little memory."""
    global seen
    file = File("hostile.pth", np.frombuffer(bytearray(data), np.uint8), "")
    tracemalloc.start()
    seen = []
    try:
        with pytest.raises(CheckpointError) as caught:
            load_file(file)
        happened = seen
    finally:
        seen = None
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert happened == []
    assert used < (128 << 20) + 4 * len(data)
    assert not Path(hostile.MARKER).exists()
    assert len(str(caught.value)) < 3000
    return caught.value


def test_the_hook_sees_what_it_is_for(tmp_path: Path) -> None:
    global seen
    seen = []
    try:
        exec("import os; os.system('true'); open(os.devnull).close()")
        happened = seen
    finally:
        seen = None
    assert {each.split()[0] for each in happened} >= {"exec", "os.system", "open"}


# --- pickles ----------------------------------------------------------------------------------------------------

RUNNING: dict[str, bytes] = {
    "a name put together from remembered texts":
    text("os") + b"q\x00" + text("system") + b"q\x01\x86h\x00h\x01\x93" + RUN,
    "a name of bytes": b"C\x02osC\x06system\x93" + RUN,
    "a name of Python 2's texts": b"U\x02osU\x06system\x93" + RUN,
    "a dotted name below an allowed module": text("collections") + text("sys.modules") + b"\x93",
    "a dotted name below an allowed name": text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
    "a line break in a name": text("os\nsystem") + text("x") + b"\x93",
    "an allowed module, another name": name("torch._utils._import_dotted_name"),
    "torch's own loader": call("torch.storage._load_from_bytes", b"C\x04\x80\x02N."),
    "a tensor's hooks that name": call(
        "torch._utils._rebuild_tensor_v2", storage(), integer(0), integers(4), integers(1), b"\x89",
        call("collections.OrderedDict", b"](](K\x00" + SYSTEM_NAME + b"ee"),
    ),
    "an OrderedDict of calls": call("collections.OrderedDict", b"](](" + text("a") + SYSTEM + b"ee"),
    "a type's constructor with a state": ORDERED + b")\x81}" + text("__reduce__") + SYSTEM_NAME + b"sb",
    "NEWOBJ of a storage of any size": name("torch.FloatStorage") + tuple_of(integer(1 << 40)) + b"\x81",
    "NEWOBJ_EX of a storage": name("torch.FloatStorage") + b")}" + text("wrap_storage") + b"Ns\x92",
    "INST of an allowed name": b"((ltorch\nFloatStorage\n".replace(b"(l", b"i"),
    "OBJ of an allowed name": b"(" + name("torch.FloatStorage") + integer(1 << 40) + b"o",
    "EXT1": b"\x82\xf0" + RUN,
    "EXT2": b"\x83" + struct.pack("<H", 0xF00) + RUN,
    "EXT4": b"\x84" + struct.pack("<i", 0xF0000) + RUN,
    "a persistent name that is a path": b"P../../etc/passwd\n",
    "a persistent module with its source":
    tuple_of(text("module"), name("os.system"), text("x.py"), text("code")) + b"Q",
    "PUT and GET by text": b"Np0\ng0\n",
    "a memory of what was taken away": b"N0q\x00",
    "PUT below zero": b"Np-1\n",
    "an endless LONG by text": b"L" + b"9" * 4000 + b"L\n",
    "a bytearray's buffer": b"\x96" + struct.pack("<Q", 4) + b"abcd",
    "a buffer from outside": b"\x97\x98",
    "a frozen set of tuples": b"(" + hostile.nested(40) + b"\x91",
    "a payload after a good tensor": tensor() + SYSTEM + b"\x86",
    "a payload in a dictionary's key": b"}" + SYSTEM + b"Ns",
    "a payload as an offset": tensor(offset=SYSTEM),
    "a payload as a storage's key": storage(key=SYSTEM),
    "a payload that POP hides": SYSTEM + b"0" + tensor(),
    "a payload that POP_MARK hides": b"(" + SYSTEM + b"1" + tensor(),
    "a payload after two protocols": b"\x80\x02\x80\x05" + SYSTEM,
    "a payload in a frame": b"\x80\x04\x95" + struct.pack("<Q", len(SYSTEM)) + SYSTEM,
}  # fmt: skip
"""Pickles that call, import or make what is no plain value."""

BESIDE = {
    "a name of bytes": "bytes in the place of a str",
    "a payload after a good tensor": "expected a state dict of named tensors.*got a tuple",
    "a payload in a dictionary's key": "of which .* is not a tensor",
}
"""In these the payload is in no tensor's place: it is left out, and what remains is no state dict."""

WITHOUT_STORAGES = ("a payload in a dictionary's key", "an OrderedDict of calls")
"""In the older format, where the list of storages follows, these ask for none of them."""


LAUGHS = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(200))
LYING: dict[str, bytes] = {
    "a persistent path": text("/etc/passwd") + b"Q",
    "a persistent number": integer(7) + b"Q",
    "a persistent list": b"](" + text("storage") + ORDERED + text("0") + text("cpu") + integer(4) + b"eQ",
    "a persistent tuple in a tuple": tuple_of(tuple_of(text("storage"))) + b"Q",
    "a storage's type by text": tuple_of(text("storage"), text("os.system"), text("0"), text("cpu"), integer(4)) + b"Q",
    "a storage that is a path": storage(key=text("../../../etc/passwd")),
    "a storage that is the pickle": storage(key=text("../data.pkl"), numel=integer(1)),
    "an OrderedDict of itself": call("collections.OrderedDict", b"]q\x07h\x07a"),
    "an OrderedDict of a tensor": call("collections.OrderedDict", tensor()),
    "an OrderedDict whose keys are tensors": call("collections.OrderedDict", b"](](" + tensor() + b"Nee"),
    "a tensor of a tensor": tensor(of=tensor()),
    "a tensor of a name": tensor(of=name("torch.FloatStorage")),
    "a tensor with too few arguments": REBUILD + tuple_of(storage()) + b"R",
    "a tensor whose size holds itself": tensor(size=b"]q\x07h\x07a"),
    "a parameter of a list": call("torch._utils._rebuild_parameter", b"]", b"\x88", b"}"),
    "a storage's name that is called": call("torch.FloatStorage", integer(1 << 40)),
    "a tensor given a state": tensor() + tuple_of(storage(), integer(0), integers(1 << 40), integers(1)) + b"b",
    "a storage given a state": storage() + b"}" + text("_size") + integer(1 << 40) + b"sb",
    "a dictionary given a state that is nothing": b"]b",
    "a memory of nothing": b"q\x00",
    "a memory never made": b"h\x09",
    "a mark that is not there": b"t",
    "a dictionary of an odd number": b"}(NNNu",
    "nothing at all": b"",
    "billions of laughs": LAUGHS,
    "a dictionary of laughs": b"}" + text("model") + LAUGHS + b"s",
    "a dictionary in itself": b"}q\x00" + text("model") + b"h\x00s",
    "a list in itself": b"]q\x00h\x00a",
    "tuples in lists in themselves": b"]q\x00h\x00\x85q\x01ah\x01\x85",
    "endless nesting": b"]" * 60_000 + b"a" * 59_999,
    "a number of a million bits": integer(1 << 1_000_000),
    "a LONG4 below zero": b"\x8b\x00\x00\x00\x80",
    "a LONG4 beyond the file": b"\x8b\xff\xff\xff\x7f",
    "a text beyond the file": b"\x8d" + struct.pack("<Q", 1 << 62) + b"x",
    "half a character": b"X\x01\x00\x00\x00\xff",
    "a name that a terminal obeys": b"}" + text("\x1b[2J\x07\n") + tensor() + b"s",
    "a name without end": b"}" + LONG + tensor() + b"s",
    "many empty tensors": REBUILD + b"q\x00" + tuple_of(storage(), integer(0), integers(0), integers(1)) + b"q\x01("
    + b"h\x00h\x01R" * (MAX_TENSORS + 1) + b"t",
    "a view beyond its storage": tensor(size=integers(5)),
    "a view that steps back": tensor(offset=integer(3), stride=integers(-1)),
    "a view from before": tensor(offset=integer(-4)),
    "a view whose steps overflow": tensor(size=integers(3, 3), stride=integers(1 << 63, 1 << 63)),
    "a view whose size overflows": tensor(size=integers(*[1 << 16] * 4), stride=integers(0, 0, 0, 0)),
    "a storage of another type": storage(kind="torch.DoubleStorage"),
    "a storage of two types": tuple_of(tensor(), tensor(of=storage(kind="torch.IntStorage"))),
    "a storage of a thousandfold size": storage(numel=integer(4000)),
}  # fmt: skip
"""Pickles of allowed names alone, with arguments that lie."""


@pytest.mark.parametrize("container", [archive, legacy])
@pytest.mark.parametrize("case", RUNNING)
def test_a_pickle_that_would_run_something(file_left: Path, case: str, container: Any) -> None:
    error = refused(container(RUNNING[case]))
    expected: type[CheckpointError] = UnsafeCheckpointError
    message = "nothing in it was run"
    if case in BESIDE:
        expected, message = CheckpointFormatError, BESIDE[case]
    if container is legacy and case in WITHOUT_STORAGES:
        expected, message = CheckpointFormatError, "list of storages does not match"
    assert type(error) is expected
    assert re.search(message, str(error))


@pytest.mark.parametrize("container", [archive, legacy])
@pytest.mark.parametrize("case", LYING)
def test_a_pickle_that_lies(file_left: Path, case: str, container: Any) -> None:
    assert type(refused(container(LYING[case]))) is CheckpointFormatError


def test_one_storage_under_many_names_does_not_multiply(file_left: Path) -> None:
    piece = b"}(" + b"".join(text(f"a{i}") + tensor() for i in range(1000)) + b"u"
    assert type(refused(archive(piece))) is CheckpointFormatError  # an unknown layout, or a storage used too often
    state = {f"t{i}": torch.ones(4) for i in range(2)}
    file = File("x", np.frombuffer(archive(b"}(" + text("t0") + tensor() + text("t1") + tensor() + b"u"), np.uint8), "")
    fitting = checkpoint.fit_state_dict(checkpoint.read_checkpoint(file)[0], state)  # type: ignore[arg-type]
    assert len({each.untyped_storage().data_ptr() for each in fitting.values()}) == 2


# --- archives ---------------------------------------------------------------------------------------------------


def record(path: str, data: bytes, **changes: int) -> tuple[bytes, bytes]:
    """One entry of a zip file, and its place in the directory without the offset; `local_` changes the first alone."""
    values = {"flags": 0, "method": 0, "packed": len(data), "size": len(data), **changes}
    local = {key: values.get(f"local_{key}", values[key]) for key in ("flags", "method", "packed", "size")}
    called = path.encode()
    rest = (0, 0, zlib.crc32(data))
    head = struct.pack(
        "<4s5H3I2H", b"PK\x03\x04", 20, local["flags"], local["method"], *rest, local["packed"], local["size"],
        len(called), 0,
    )  # fmt: skip
    place = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, values["flags"], values["method"], *rest, values["packed"],
        values["size"], len(called), 0, 0, 0, 0, 0, values.get("offset", 0),
    )  # fmt: skip
    return head + called + data, place + called


def zipped(*records: tuple[bytes, bytes], comment: bytes = b"", before: bytes = b"", between: bytes = b"") -> bytes:
    """An archive of such entries, each at its true offset unless the record has one."""
    body, places = before, b""
    for local, place in records:
        offset = struct.pack("<I", len(body))
        places += place[:42] + (place[42:46] if any(place[42:46]) else offset) + place[46:]
        body += local
    body += between
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(records), len(records), len(places), len(body), len(comment))
    return body + places + end + comment


PICKLE = ("a/data.pkl", b"\x80\x02}" + text("a") + tensor() + b"s.")
ONES = ("a/data/0", FOUR_FLOATS)
GOOD = zipped(record(*PICKLE), record(*ONES))
DEFLATED = zlib.compress(bytes(10 << 20), 9)[2:-4]
PLACE_OF_ONES = len(record(*PICKLE)[0])
END = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 46, 0, 0)


def zip64(**lies: int) -> bytes:
    """A good archive with zip64's end records, some of whose numbers are changed."""
    values = {
        "count": 2,
        "size": len(GOOD) - 22 - GOOD.index(b"PK\x01\x02"),
        "start": GOOD.index(b"PK\x01\x02"),
        **lies,
    }
    values.setdefault("end", len(GOOD) - 22)
    end64 = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, values["count"], values["count"], values["size"], values["start"]
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, values["end"], 1)
    old = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return GOOD[:-22] + end64 + locator + old


ARCHIVES: dict[str, bytes] = {
    "two directories": GOOD + GOOD[GOOD.index(b"PK\x01\x02") :],
    "a directory that nobody asks for": zipped(record(*PICKLE), record(*ONES), between=record("a/x", b"")[1]),
    "a whole archive in the comment": zipped(record(*PICKLE), record(*ONES), comment=GOOD),
    "an end in the comment": zipped(record(*PICKLE), record(*ONES), comment=b"xx" + END),
    "a comment longer than said": GOOD + b"x",
    "called otherwise in the entry": zipped(record(*PICKLE), (record("a/data/1", FOUR_FLOATS)[0], record(*ONES)[1])),
    "another length of name in the entry": zipped(record(*PICKLE), (record("a/d", FOUR_FLOATS)[0], record(*ONES)[1])),
    "the directory's pickle is another entry": zipped((record("a/x.pkl", b"N.")[0], record(*PICKLE)[1]), record(*ONES)),
    "more than stored": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, size=1 << 30)),
    "less than stored": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, size=4)),
    "both sizes lie": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, size=1 << 30, packed=1 << 30)),
    "a deflate bomb": zipped(record(*PICKLE), record("a/data/0", DEFLATED, method=8, size=10 << 20)),
    "a deflate bomb that says stored": zipped(record(*PICKLE), record("a/data/0", DEFLATED, local_method=8)),
    "a deflated pickle": zipped(record("a/data.pkl", DEFLATED, method=8, size=10 << 20), record(*ONES)),
    "an unknown method": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, method=99)),
    "encrypted": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, flags=1)),
    "encrypted with a strong method": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, flags=0x41)),
    "the pickle outside its folder": zipped(record("../../data.pkl", PICKLE[1]), record(*ONES)),
    "the pickle at the root": zipped(record("/etc/data.pkl", PICKLE[1]), record(*ONES)),
    "the storage outside its folder": zipped(record(*PICKLE), record("a/data/../../0", FOUR_FLOATS)),
    "a name with a null character": zipped(record(*PICKLE), record("a/data/0\0.txt", FOUR_FLOATS)),
    "two pickles": zipped(record(*PICKLE), record("b/data.pkl", b"N."), record(*ONES)),
    "a name twice": zipped(record(*PICKLE), record(*ONES), record(*ONES)),
    "two entries of the same bytes": zipped(record(*PICKLE), record(*ONES), record("a/x", b"", offset=PLACE_OF_ONES)),
    "an entry inside another": zipped(
        record("a/x", record(*ONES)[0]), record(*PICKLE), (b"", record("a/data/0", FOUR_FLOATS, offset=33)[1])
    ),
    "something before": zipped(record(*PICKLE), record(*ONES), before=b"PK\x03\x04 a program"),
    "something before, offsets as if not": b"PK\x03\x04 a program" + GOOD,
    "a program before": b"\x7fELF" + GOOD,
    "zip64 of no entries": zip64(count=1 << 40),
    "zip64 with a large directory": zip64(size=1 << 62),
    "zip64 beyond the file": zip64(start=1 << 62),
    "zip64 that ends elsewhere": zip64(end=1 << 62),
    "entries beyond the file": zipped(record(*PICKLE), record("a/data/0", FOUR_FLOATS, offset=1 << 31)),
}


def test_archives_are_good_before_they_lie() -> None:
    for data in (GOOD, zip64()):
        contents, _ = checkpoint.read_checkpoint(File("good.pth", np.frombuffer(data, np.uint8), ""))
        assert torch.equal(contents["a"], torch.ones(4))  # type: ignore[index]
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_lies(file_left: Path, case: str) -> None:
    error = refused(ARCHIVES[case])
    assert type(error) is CheckpointFormatError
    # A tensor called "a" alone is not an ISANet, which is the first thing to be said of a file that was read
    assert "not an ISANet in a known layout" not in str(error)


# --- safetensors ------------------------------------------------------------------------------------------------


def entry(start: int = 0, stop: int = 16, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def with_config(config: str) -> bytes:
    return safetensors({LANDMARKS["isanet"][0]: entry(), "__metadata__": {"config": config}}, FOUR_FLOATS)


SAFETENSORS: dict[str, bytes] = {
    "overlapping": safetensors({"a": entry(0, 12, (3,)), "b": entry(8, 16, (2,))}, FOUR_FLOATS),
    "the same bytes twice": safetensors({"a": entry(), "b": entry()}, FOUR_FLOATS),
    "beyond the file": safetensors({"a": entry(0, 1 << 40, (1 << 38,))}, FOUR_FLOATS),
    "negative": safetensors({"a": entry(-16, 0)}, FOUR_FLOATS),
    "backwards": safetensors({"a": entry(16, 0)}, FOUR_FLOATS),
    "a shape that overflows": safetensors({"a": entry(shape=(1 << 32, 1 << 32))}, FOUR_FLOATS),
    "a shape that overflows to the size": safetensors({"a": entry(shape=((1 << 62) + 1, 4))}, FOUR_FLOATS),
    "a header longer than the file": safetensors({"a": entry()}, FOUR_FLOATS, 1 << 20),
    "a header longer than memory": safetensors({"a": entry()}, FOUR_FLOATS, (1 << 64) - 1),
    "metadata of numbers": safetensors({"a": entry(), "__metadata__": {"x": 1}}, FOUR_FLOATS),
    "metadata of metadata": safetensors({"a": entry(), "__metadata__": {"x": {"y": "z"}}}, FOUR_FLOATS),
    "a name that is a path": safetensors({"../../etc/passwd": entry()}, FOUR_FLOATS),
    "a name that a terminal obeys": safetensors({"\x1b[2J": entry()}, FOUR_FLOATS),
    "half a surrogate": safetensors(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', FOUR_FLOATS),
    "a name without end": safetensors({"x" * 100_000: entry()}, FOUR_FLOATS),
    "a name twice": safetensors(b'{"a":{},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', FOUR_FLOATS),
    "many empty tensors": safetensors({f"{i}": entry(0, 0, (0,)) for i in range(MAX_TENSORS + 1)}),
    "a header of lists": safetensors(b'{"a":[' + b"[]," * 1_300_000 + b"0]}"),
    "a header of dictionaries": safetensors(b'{"a":[' + b"{}," * 1_300_000 + b"0]}"),
    "a config that runs on": with_config("[" * 9999),
    "a config of a huge network": with_config('{"num_classes": 2, "width": 1073741824}'),
    "a config of a class without end": with_config('{"classes": ["' + "x" * 100_000 + '"], "num_classes": 2}'),
    "a config that a terminal obeys": with_config('{"num_classes": 2, "\\u001b[2J": 1}'),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_that_lie(file_left: Path, case: str) -> None:
    error = refused(SAFETENSORS[case])
    assert type(error) in (CheckpointFormatError, CheckpointMismatchError)
    assert all(char.isprintable() for char in str(error)), ascii(str(error))
