"""The directory of an untrusted zip archive, read in one way only.

The module zipfile looks for a directory in several places and follows what it finds. Here it must lie at the very end
of the file, in one piece; entries are stored, not compressed or encrypted, no two have one name or one byte, and each
has the same name in the directory and before its data. So there are no two readings of one file, and a small file
cannot become a large one.

`torch.save` also writes the directory's end in its 64-bit form, pads entries by extra fields and may leave
descriptors after them. `isanet pack` writes none of that, so its archives are read with `exact`: every byte belongs to
an entry or to the directory.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from isanet._text import clean
from isanet.errors import CheckpointFormatError


class Entry(NamedTuple):
    """Where the data of an entry are.

    Attributes:
        start: First byte of the data in the archive.
        size: Number of bytes.
        crc: Their CRC-32 as the directory says.
    """

    start: int
    size: int
    crc: int


class _Record(NamedTuple):
    """What the directory says of one entry."""

    name: str
    raw_name: bytes
    header: int  # where its local header starts
    fixed: bytes  # the 46 bytes before the name
    size: int
    crc: int


Read = Callable[[int, int], bytes]
"""Reads bytes of the archive: from where, and how many."""


def read_directory(read: Read, size: int, *, max_bytes: int, exact: bool = False) -> dict[str, Entry]:
    """The entries of a zip archive by their names.

    Args:
        read: Reads bytes of the archive.
        size: Its size in bytes.
        max_bytes: Largest directory.
        exact: Refuse whatever `isanet pack` does not write.

    Raises:
        CheckpointFormatError: It is no zip archive, or it can be read in two ways; the message says what is wrong.
    """
    offset, length, count = _find_directory(read, size, exact=exact)
    if length > max_bytes:
        raise CheckpointFormatError(f"its directory is larger than {max_bytes:,} bytes")
    records = _parse_directory(read(offset, length), exact=exact)
    if len(records) != count:
        raise CheckpointFormatError("its directory is broken")
    entries: dict[str, Entry] = {}
    end = 0
    for record in records if exact else sorted(records, key=lambda record: record.header):
        entry = _locate(read, record, end, offset, exact=exact)
        end = entry.start + entry.size
        entries[record.name] = entry
    if exact and end != offset:
        raise CheckpointFormatError("it holds bytes that belong to no entry")
    return entries


def _find_directory(read: Read, size: int, *, exact: bool) -> tuple[int, int, int]:
    """Where the directory starts, its length, and its number of entries."""
    end = read(max(size - 22, 0), 22)
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise CheckpointFormatError(
            "it is a truncated or broken archive, or none: it does not end as a zip file without a comment does; "
            "fetch it again"
        )
    disk, first_disk, here, count, length, offset = struct.unpack("<4H2I", end[4:20])
    directory_end = size - 22
    locator = b"" if exact or size < 98 else read(size - 42, 20)
    if locator[:4] == b"PK\x06\x07":  # the 64-bit form of the same numbers
        directory_end = size - 98
        large = struct.unpack("<4sQ2H2L4Q", read(directory_end, 56))
        fits = large[:2] == (b"PK\x06\x06", 44) and struct.unpack("<LQL", locator[4:]) == (0, directory_end, 1)
        # A number may be all ones where its 64-bit form counts
        same = count in (large[7], 0xFFFF) and length in (large[8], 0xFFFFFFFF) and offset in (large[9], 0xFFFFFFFF)
        if not (fits and same) or large[4:6] != (0, 0) or large[6] != large[7]:
            raise CheckpointFormatError("the two ends of its directory do not agree")
        count, length, offset = large[7:]
        here = count
    if disk or first_disk or here != count or offset + length != directory_end:
        raise CheckpointFormatError(
            "its directory does not lie where the file ends, in one piece: it was cut, or there is something else "
            "before it"
        )
    return offset, length, count


def _parse_directory(directory: bytes, *, exact: bool) -> list[_Record]:
    records, names, position = [], set(), 0
    while position < len(directory):
        fixed = directory[position : position + 46]
        if len(fixed) < 46 or fixed[:4] != b"PK\x01\x02":
            raise CheckpointFormatError("its directory is broken")
        fields = struct.unpack("<4s6H3I5H2I", fixed)
        flags, method, (crc, packed, plain, name_length, extra, note, disk) = fields[3], fields[4], fields[7:14]
        raw_name = directory[position + 46 : position + 46 + name_length]
        name = raw_name.decode("utf-8" if flags & 0x800 else "cp437", "replace")
        what = _describe(name)
        if flags & 1:
            raise CheckpointFormatError(f"{what} is encrypted")
        if method != zipfile.ZIP_STORED or packed != plain:
            raise CheckpointFormatError(f"{what} is compressed; torch.save and `isanet pack` store")
        if name in names:
            raise CheckpointFormatError(f"{what} appears twice")
        if exact and (name.endswith("/") or stat.S_IFMT(fields[15] >> 16) not in (0, stat.S_IFREG)):
            raise CheckpointFormatError(f"{what} is a folder, a link or a device, not a file")
        if exact and (flags or extra or note or disk):
            raise CheckpointFormatError(f"{what} is not as `isanet pack` writes it")
        names.add(name)
        records.append(_Record(name, raw_name, fields[16], fixed, plain, crc))
        position += 46 + name_length + extra + note
    if position != len(directory):
        raise CheckpointFormatError("its directory is broken")
    return records


def _locate(read: Read, record: _Record, end: int, directory: int, *, exact: bool) -> Entry:
    """Where an entry's data are, which must lie between the `end` of the entry before and the directory."""
    what = _describe(record.name)
    if end == 0 and record.header != 0:
        raise CheckpointFormatError(f"{what} is the first, and there is something else before it")
    header = read(record.header, 30)
    name_length, extra_length = struct.unpack("<2H", header[26:30].ljust(4, b"\0"))
    start = record.header + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or start + record.size > directory:
        raise CheckpointFormatError(f"{what} lies outside the file; fetch it again")
    if record.header < end or read(record.header + 30, name_length) != record.raw_name:
        raise CheckpointFormatError(f"{what} lies over another, or has another name before its data")
    if exact and (record.header != end or extra_length or header[4:] != record.fixed[6:32]):
        raise CheckpointFormatError(f"{what} is not as `isanet pack` writes it")
    return Entry(start, record.size, record.crc)


def _describe(name: str) -> str:
    return f"its entry {clean(name)[:200]!r}"
