"""The directory of an archive is the one that others read, or none."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import pytest
import torch

from isanet.errors import CheckpointFormatError
from isanet.weights.zipreader import Entry, read_directory


def entries(data: bytes, *, exact: bool) -> dict[str, Entry]:
    return read_directory(lambda start, size: data[start : start + size], len(data), max_bytes=1 << 20, exact=exact)


def stored() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("first", b"1234"), ("empty", b""), ("last", bytes(1000))):
            archive.writestr(name, data)
    return buffer.getvalue()


def by_torch() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(4), "b": torch.zeros(1000)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("data", "exact"), [(stored(), True), (stored(), False), (by_torch(), False)])
def test_the_directory_is_the_one_that_zipfile_reads(data: bytes, exact: bool) -> None:
    found = entries(data, exact=exact)
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        assert list(found) == other.namelist()
        for name, place in found.items():
            content = data[place.start : place.start + place.size]
            assert content == other.read(name)
            assert zlib.crc32(content) == place.crc
        assert {info.compress_type for info in other.infolist()} == {zipfile.ZIP_STORED}


def test_what_torch_adds_is_refused_where_every_byte_counts() -> None:
    with pytest.raises(CheckpointFormatError):
        entries(by_torch(), exact=True)


def local(place: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrite a field of the first local header, which others read and we did not."""
    return lambda data: data[:place] + value + data[place + len(value) :]


def with_gap(data: bytes, *, before: bytes) -> bytes:
    """Bytes that belong to no entry before the one whose header starts with `before`; all offsets follow."""
    place, gap = data.index(before), b"gap!"
    result = bytearray(data[:place] + gap + data[place:])
    position = result.index(b"PK\x01\x02")
    end = len(result) - 22
    struct.pack_into("<I", result, end + 16, position)
    while position < end:
        (offset,) = struct.unpack_from("<I", result, position + 42)
        struct.pack_into("<I", result, position + 42, offset + (len(gap) if offset >= place else 0))
        position += 46 + sum(struct.unpack_from("<3H", result, position + 28))
    return bytes(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (local(6, b"\x01"), "otherwise"),  # encrypted
        (local(8, b"\x08"), "otherwise"),  # deflated
        (local(14, b"\0"), "otherwise"),  # CRC
        (local(18, b"\x03"), "otherwise"),  # size, packed
        (local(22, b"\x05"), "otherwise"),  # size
        (local(18, b"\xff" * 8), "otherwise"),  # sizes in a 64-bit form that is not there
        (local(26, b"\x06"), "another name"),
        (lambda data: with_gap(data, before=b"PK\x03\x04" + data[4:26] + b"\x05"), "something else before"),
        (lambda data: with_gap(data, before=data[data.rindex(b"PK\x03\x04") :][:30]), "belong to no entry"),
        (lambda data: with_gap(data, before=b"PK\x01\x02"), "belong to no entry"),
    ],
)
def test_a_local_header_that_lies_is_refused(change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(CheckpointFormatError, match=message):
        entries(change(stored()), exact=False)


@pytest.mark.parametrize("place", range(16))
def test_a_descriptor_that_lies_is_refused(place: int) -> None:
    data = bytearray(by_torch())
    data[data.index(b"PK\x07\x08") + place] ^= 1
    with pytest.raises(CheckpointFormatError, match="after its data otherwise"):
        entries(bytes(data), exact=False)


VERSIONS = range(-86, -82)  # in the 64-bit end; nothing depends on them


@pytest.mark.parametrize("place", [place for place in range(-98, -22) if place not in VERSIONS])
def test_both_ends_of_a_directory_agree(place: int) -> None:
    """Torch writes the end of the directory twice, and other readers believe one or the other."""
    data = bytearray(by_torch())
    data[place] ^= 0x41
    with pytest.raises(CheckpointFormatError, match="directory"):
        entries(bytes(data), exact=False)
