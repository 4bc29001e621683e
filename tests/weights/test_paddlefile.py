"""Files of paddle.save: what is read, and what is refused by name."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from isanet.errors import CheckpointError, CheckpointFormatError, UnsafeCheckpointError
from isanet.weights import paddlefile, pickles
from isanet.weights.checkpoint import read_checkpoint, read_file, release_file_buffer
from tests.helpers import hostile, stand_in
from tests.helpers.hostile import integer, integers, latin1, name, numpy_array, numpy_dtype, paddle, text, tuple_of

REAL = [stand_in.DATA / f"paddle_tiny_{kind}.pdparams" for kind in ("2021", "protocol2", "protocol4")]
"""Real files of paddle.save; the first with the names that numpy wrote in 2021."""


def read(path: Path) -> Any:
    return read_checkpoint(read_file(path))[0]


def read_bytes(folder: Path, data: bytes) -> Any:
    return read(hostile.file(folder, data))


def assert_same(tensors: dict[str, Tensor], arrays: dict[str, Any]) -> None:
    assert list(tensors) == list(arrays)
    for key, values in arrays.items():
        assert np.array_equal(tensors[key].numpy(), values)
        assert (tensors[key].numpy().dtype, tensors[key].shape) == (values.dtype, values.shape)


# --- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_files_give_their_values(path: Path) -> None:
    assert_same(read(path), stand_in.arrays("paddle_tiny"))


def test_the_stand_ins_file_is_paddles_byte_for_byte(tmp_path: Path) -> None:
    written = stand_in.paddle_file(tmp_path / "tiny.pdparams", stand_in.arrays("paddle_tiny"))
    assert written.read_bytes() == REAL[0].read_bytes()


def values() -> dict[str, Any]:
    """Large and small arrays of every type."""
    random = np.random.RandomState(0)
    made: dict[str, Any] = {"large.weight": random.standard_normal((7, 11, 30, 30)).astype("f4")}
    for code in paddlefile.DTYPES:
        made[f"{code}.weight"] = (random.standard_normal((3, 5)) * 100).astype(code)
        made[f"{code}.bias"] = (random.standard_normal(40_000) * 100).astype(code)
    return made | {"scalar.weight": np.asarray(1.5, "f4")}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_type_and_size_is_read_by_every_protocol(tmp_path: Path, protocol: int) -> None:
    tensors = read(stand_in.paddle_file(tmp_path / "file", values(), protocol))
    assert_same(tensors, values())
    for tensor in tensors.values():
        tensor += 1  # it is in memory that may be written, and no other tensor's
    assert_same(tensors, {key: value + np.ones_like(value) for key, value in values().items()})


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_todays_numpy_writes_is_read(tmp_path: Path, protocol: int) -> None:
    assert_same(read_bytes(tmp_path, pickle.dumps(values(), protocol)), values())


def test_two_names_of_one_array_are_one_tensor(tmp_path: Path) -> None:
    one = np.arange(100_000, dtype="f4")
    for protocol in (2, 4):
        tensors = read_bytes(tmp_path, pickle.dumps({"a": one, "b": one}, protocol))
        assert tensors["a"] is tensors["b"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_reading_takes_less_than_three_times_the_file(tmp_path: Path, protocol: int) -> None:
    arrays = {f"{i}.weight": np.random.RandomState(i).standard_normal((512, 512, 3, 3)).astype("f4") for i in range(4)}
    path = stand_in.paddle_file(tmp_path / "file", arrays, protocol)
    del arrays
    tracemalloc.start()
    try:
        file = read_file(path)
        tensors = release_file_buffer(read_checkpoint(file)[0], file)  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 2.5 * path.stat().st_size
        payload = sum(tensor.nbytes for tensor in tensors.values())
        del file
        assert tracemalloc.get_traced_memory()[0] < payload + (1 << 20)  # nothing keeps the file, nor its texts
    finally:
        tracemalloc.stop()


# --- what is refused ------------------------------------------------------------------------------------------

SPLIT = {"UnpackBigParamInfor@@": b"}" + text("a") + b"}s"}
OBJECTS = tuple_of(integer(3), text("|"), b"NNN", integer(-1), integer(-1), integer(63))
BIG_ENDIAN = tuple_of(integer(3), text(">"), b"NNN", integer(-1), integer(-1), integer(0))
FIELDS = tuple_of(integer(3), text("<"), b"N", tuple_of(text("x")), b"}", integer(-1), integer(-1), integer(0))
NDARRAY, RECONSTRUCT = name("numpy.ndarray"), "numpy.core.multiarray._reconstruct"
MADE = hostile.call(RECONSTRUCT, NDARRAY, integers(0), latin1(b"b"))
FILLED = MADE + tuple_of(integer(1), integers(0), numpy_dtype(), b"\x89", latin1(b"")) + b"b"
LARGE = text("x" * (1 << 17))


def test_handmade_files_are_good_before_they_are_made_to_lie(tmp_path: Path) -> None:
    data = paddle(a=numpy_array())
    assert_same(read_bytes(tmp_path, data), {"a": np.ones(4, "f4")})
    assert np.array_equal(pickle.loads(data)["a"], np.ones(4, "f4"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # no flat dictionary of arrays
        (paddle(a=b"}" + text("weight") + numpy_array() + b"s"), "a dict in the place of the tensor 'a'.*paddle.save"),
        (paddle(a=tuple_of(text("a"), numpy_array())), "a tuple in the place of the tensor 'a'"),
        (paddle(a=b"](" + numpy_array() + b"e"), "a list in the place of the tensor 'a'"),
        (paddle(a=integer(1)), "a int in the place of the tensor 'a'"),
        (paddle(a=MADE), "an array without values in the place of the tensor 'a'"),
        (paddle(a=numpy_dtype()), "a dtype in the place of the tensor 'a'"),
        (paddle(a=LARGE), "a ndarray in the place of the tensor 'a'"),
        (b"\x80\x02}K\x01" + numpy_array() + b"s.", "in the place of a tensor"),
        (b"\x80\x02}" + hostile.nested(60) + numpy_array() + b"s.", "in the place of a tensor"),
        (b"\x80\x02}0" + numpy_array() + b".", "instruction POP"),
        (b"\x80\x02}](" + b"e.", "a list in the place of a dict"),
        (paddle(a=numpy_array(), **SPLIT), "split .'UnpackBigParamInfor@@'.*protocol=4"),
        (paddle(a=numpy_array()) + b"x", "1 bytes after its end"),
        # shapes and bytes that do not agree
        (paddle(a=numpy_array(shape=integers(5))), r"shape \[5\] should have 20 bytes, but has 16"),
        (paddle(a=numpy_array(shape=integers(3))), "should have 12 bytes, but has 16"),
        (paddle(a=numpy_array(shape=integers(1 << 40))), "should have 4,398,046,511,104 bytes, but has 16"),
        (paddle(a=numpy_array(shape=integers(*[1 << 120] * 8))), "but has 16"),
        (paddle(a=numpy_array(shape=integers(*[1 << 62] * 3, 0), data=latin1(b""))), "broken"),
        (paddle(a=numpy_array(shape=integers(-4))), r"impossible shape: \[-4\]"),
        (paddle(a=numpy_array(shape=integers(-2, -2))), "impossible shape"),
        (paddle(a=numpy_array(shape=integers(*[1] * 8, 4))), "impossible shape"),
        (paddle(a=numpy_array(shape=tuple_of(b"\x88", integer(4)))), "bool in the place of a int"),
        (paddle(a=numpy_array(shape=b"](K\x04e")), "list in the place of a tuple"),
        (paddle(a=numpy_array(shape=integers(2, 2), fortran=b"\x88")), r"shape \[2, 2\] in Fortran's order"),
        (paddle(a=numpy_array(fortran=integer(0))), "int in the place of a bool"),
        (paddle(a=numpy_array(version=integer(2))), "impossible"),
        (paddle(a=numpy_array(data=b"](NNNNe")), "list in the place of a bytes"),
        (paddle(a=numpy_array(data=text("x" * 16))), "str in the place of a bytes"),
        (paddle(a=numpy_array(data=latin1(b"")), b=numpy_array()), "should have 16 bytes, but has 0"),
        (paddle(a=numpy_array(data=integers(0) * 4 + b"N")), "broken"),
        # types
        (paddle(a=numpy_array(dtype=numpy_dtype(text("O8"), OBJECTS))), "array of 'O8'; those read are f2, f4"),
        (paddle(a=numpy_array(dtype=numpy_dtype(text("u2")))), "array of bfloat16"),
        (paddle(a=numpy_array(dtype=numpy_dtype(text("c8")))), "array of 'c8'"),
        (paddle(a=numpy_array(dtype=numpy_dtype(text("V16")))), "array of 'V16'"),
        (paddle(a=numpy_array(dtype=numpy_dtype(text("f4\x1b[2J")))), r"array of 'f4"),
        (paddle(a=numpy_array(dtype=numpy_dtype(integer(4)))), "int in the place of a str"),
        (paddle(a=numpy_array(dtype=numpy_dtype(state=BIG_ENDIAN))), "not little-endian and plain"),
        (paddle(a=numpy_array(dtype=numpy_dtype(state=FIELDS))), "not little-endian and plain"),
        (paddle(a=numpy_array(dtype=numpy_dtype(text("f8")))), "should have 32 bytes, but has 16"),
        (paddle(a=numpy_array(dtype=b"N")), "NoneType in the place of a dtype"),
        (paddle(a=numpy_array(dtype=name("numpy.dtype"))), "Name in the place of a dtype"),
        # what makes them, otherwise than numpy does
        (paddle(a=numpy_array(made=FILLED)), "fills an array twice"),
        (paddle(a=hostile.call(RECONSTRUCT, NDARRAY, integers(1 << 40), latin1(b"b"))), "otherwise than numpy does"),
        (paddle(a=hostile.call(RECONSTRUCT, name("numpy.dtype"), integers(0), latin1(b"b"))), "otherwise than numpy"),
        (paddle(a=hostile.call(RECONSTRUCT, NDARRAY, integers(0), latin1(b"O"))), "otherwise than numpy does"),
        (paddle(a=hostile.call("numpy.ndarray", integers(1 << 40))), "numpy.ndarray is called"),
        (paddle(a=hostile.call("_codecs.encode", text("a"))), "broken"),
        (paddle(a=latin1(b"a", "rot13")), "bytes in the encoding 'rot13', not latin1"),
        (paddle(a=latin1(b"a", "utf-8")), "bytes in the encoding 'utf-8'"),
        (paddle(a=hostile.call("_codecs.encode", text("ā"), text("latin1"))), "broken"),
        (paddle(a=text("ā" * (1 << 17))), "broken"),
        (paddle(a=numpy_array() + b"}b"), "dict in the place of a tuple|fills an array twice"),
        # lengths and numbers on the file's word
        (b"\x80\x02}X\xff\xff\xff\xff", "broken"),
        (b"\x80\x04\x95" + bytes(8) + b"}B\xff\xff\xff\xff", "broken"),
        (b"\x80\x04\x95" + bytes(8) + b"}\x8e" + b"\xff" * 8, "broken"),
        (b"\x80\x02}" + hostile.SYSTEM[:-1], "broken"),
        (paddle(a=b"r\xff\xff\xff\x7f"), "memo slots|broken"),
        (b"\x80\x02}c" + b"x" * (1 << 17), "broken"),
    ],
    ids=lambda value: value[:50].replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_what_lies_is_named_at_little_cost(tmp_path: Path, data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointFormatError if "POP" not in message else UnsafeCheckpointError, match=message):
            read_bytes(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < (1 << 20) + 8 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "piece",
    [
        hostile.SYSTEM,
        hostile.call("builtins.eval", text("1")),
        hostile.call("numpy.core.multiarray.scalar", numpy_dtype(), latin1(bytes(4))),
        hostile.call("numpy.core.multiarray.fromstring", latin1(bytes(4))),
        numpy_array(made=hostile.call("os.system", text(hostile.COMMAND))),
        numpy_array(dtype=name("os.system")),
        numpy_array(shape=name("os.system")),
        numpy_array(data=name("os.system")),
        numpy_array(data=hostile.call("_codecs.decode", text("a"), text("latin1"))),
        numpy_dtype(name("os.system")),
        hostile.tensor(),
        hostile.call("collections.OrderedDict"),
        name("os.system") + b")\x81",
        b"(" + text(hostile.COMMAND) + b"ios\nsystem\n",
    ],
)
def test_what_would_have_to_be_run_is_refused_by_name(
    tmp_path: Path, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeCheckpointError, match=r"(names|instruction|refers).*nothing in it was run"):
        read_bytes(tmp_path, paddle(a=piece))
    assert not (tmp_path / hostile.MARKER).exists()


def test_bytes_that_are_shared_are_no_way_to_much_memory(tmp_path: Path) -> None:
    """One text, of which many arrays are made: by the memo, each costs a few bytes."""
    for size, count in ((1 << 20, 1000), (1 << 12, 10_000)):
        shared = latin1(bytes(size)) + b"r\0\0\0\0"
        again = [numpy_array(shape=integers(size // 4), data=b"j\0\0\0\0") for _ in range(count)]
        items = {
            "0": numpy_array(shape=integers(size // 4), data=shared),
            **{str(i + 1): a for i, a in enumerate(again)},
        }
        data = paddle(**items)
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointFormatError, match="have its bytes more than 4 times"):
                read_bytes(tmp_path, data)
            assert tracemalloc.get_traced_memory()[1] < (8 << 20) + 8 * len(data)
        finally:
            tracemalloc.stop()


def test_many_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_TENSORS", 3)
    items = {str(i): numpy_array() for i in range(4)}
    with pytest.raises(CheckpointFormatError, match="more than 3 tensors"):
        read_bytes(tmp_path, paddle(**items))
    del items["3"]
    assert len(read_bytes(tmp_path, paddle(**items))) == 3


def test_what_it_describes_is_bounded_and_not_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 10_000)
    large = {f"{i}.weight": np.zeros((64, 64, 4, 4), "f4") for i in range(4)}
    for protocol in (2, 4):
        assert len(read(stand_in.paddle_file(tmp_path / "file", large, protocol))) == 4
        small = {f"{'x' * 100}{i}.weight": np.zeros(1, "f4") for i in range(100)}
        with pytest.raises(CheckpointFormatError, match="over 10,000 bytes beside its tensors"):
            read(stand_in.paddle_file(tmp_path / "file", small, protocol))
    monkeypatch.setattr(pickles, "MAX_PIECE_BYTES", 200_000)
    with pytest.raises(CheckpointFormatError, match=r"a text of 262,144 bytes; none has over 200,000"):
        read(stand_in.paddle_file(tmp_path / "file", large))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    file = read_file(path)
    for length in range(len(file.data)):
        with pytest.raises(CheckpointFormatError):
            read_checkpoint(file._replace(data=file.data[:length]))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_file_changed_at_random_is_read_or_refused_by_name(path: Path) -> None:
    file = read_file(path)
    numbers = np.random.RandomState(0)
    refused = 0
    for _ in range(500):
        damaged = hostile.changed(file, numbers, b"(.)}]RbctuhqXK\x82\x93")
        try:
            tensors = read_checkpoint(damaged)[0]
            assert all(type(tensor) is Tensor for tensor in tensors.values())  # type: ignore[attr-defined]
        except CheckpointError:
            refused += 1
    assert refused > 50
