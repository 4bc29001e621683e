"""The directory of an archive is the one that others read, or none."""

from __future__ import annotations

import io
import zipfile
import zlib

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


VERSIONS = range(-86, -82)  # in the 64-bit end; nothing depends on them


@pytest.mark.parametrize("place", [place for place in range(-98, -22) if place not in VERSIONS])
def test_both_ends_of_a_directory_agree(place: int) -> None:
    """Torch writes the end of the directory twice, and other readers believe one or the other."""
    data = bytearray(by_torch())
    data[place] ^= 0x41
    with pytest.raises(CheckpointFormatError, match="directory"):
        entries(bytes(data), exact=False)
