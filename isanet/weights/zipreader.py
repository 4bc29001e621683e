"""The directory of an untrusted zip archive, read in one way only.

The module zipfile looks for a directory in several places and follows what it finds. Here it must lie at the very end
of the file, in one piece; entries are stored, not compressed or encrypted, and follow in the directory's order without
gaps; no two have one name, and each is described before its data as in the directory. So there are no two readings of
one file, and a small file cannot become a large one. The checksum of an entry is compared by who reads it.

`torch.save` also writes the directory's end in its 64-bit form, pads entries by extra fields and describes them after
their data too. `isanet pack` writes none of that, so its archives are read with `exact`: every byte belongs to an entry
or to the directory.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from isanet._text import clean
from isanet.errors import CheckpointFormatError


class Entry(NamedTuple):
    """Where the data of an entry are.

    Attributes:
        start: First byte of the data in the archive.
        size: Number of bytes.
        crc: Their CRC-32 as the directory says.
        end: First byte after the data and their descriptor.
    """

    start: int
    size: int
    crc: int
    end: int


Read = Callable[[int, int], bytes]
"""Reads bytes of the archive: from where, and how many."""


def read_directory(read: Read, size: int, *, max_bytes: int, exact: bool = False) -> dict[str, Entry]:
    """The entries of a zip archive by their names, in the order of the file.

    Args:
        read: Reads bytes of the archive.
        size: Its size in bytes.
        max_bytes: Largest directory.
        exact: Refuse whatever `isanet pack` does not write.

    Raises:
        CheckpointFormatError: It is not a zip archive, or it can be read in two ways; the message says what is wrong.
    """
    offset, length, count = _find_directory(read, size, exact=exact)
    if length > max_bytes:
        raise CheckpointFormatError(f"its directory is larger than {max_bytes:,} bytes")
    directory, entries, position, end = read(offset, length), dict[str, Entry](), 0, 0
    while position < length:
        fixed = directory[position : position + 46]
        if len(fixed) < 46 or fixed[:4] != b"PK\x01\x02":
            raise CheckpointFormatError("its directory is broken")
        name_length, extra, comment = struct.unpack("<3H", fixed[28:34])
        raw_name = directory[position + 46 : position + 46 + name_length]
        name = raw_name.decode("utf-8" if fixed[9] & 8 else "cp437", "replace")
        what = f"its entry {clean(name)[:200]!r}"
        if name in entries:
            raise CheckpointFormatError(f"{what} appears twice")
        if exact and (extra or comment):
            raise CheckpointFormatError(f"{what} is not as `isanet pack` writes it")
        entries[name] = entry = _locate(read, fixed, raw_name, end, offset, what, exact=exact)
        position += 46 + name_length + extra + comment
        end = entry.end
    if position != length or len(entries) != count:
        raise CheckpointFormatError("its directory is broken")
    if end != offset:
        raise CheckpointFormatError("it has bytes that belong to no entry")
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
            "its directory does not lie where the file ends, in one piece: it was cut, or has something else before it"
        )
    return offset, length, count


def _locate(read: Read, fixed: bytes, raw_name: bytes, end: int, directory: int, what: str, *, exact: bool) -> Entry:
    """Where the data of an entry of the directory are: after the `end` of the entry before, and before the directory.

    `fixed` are the 46 bytes before its name in the directory; `what` it is called in messages.
    """
    flags, method, crc, packed, size, disk, mode, header_start = struct.unpack("<8x2H4x3I6xH2x2I", fixed)
    if flags & 1:
        raise CheckpointFormatError(f"{what} is encrypted")
    if method != zipfile.ZIP_STORED or packed != size:
        raise CheckpointFormatError(f"{what} is compressed; torch.save and `isanet pack` store")
    if exact and (raw_name.endswith(b"/") or stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG)):
        raise CheckpointFormatError(f"{what} is a folder, a link or a device, not a file")
    if end == 0 and header_start != 0:
        raise CheckpointFormatError(f"{what} is the first, and there is something else before it")
    header = read(header_start, 30).ljust(30, b"\0")
    name_length, extra_length = struct.unpack("<2H", header[26:])
    start = header_start + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or start + size > directory:
        raise CheckpointFormatError(f"{what} lies outside the file; fetch it again")
    if header_start < end or read(header_start + 30, name_length) != raw_name:
        raise CheckpointFormatError(f"{what} lies over another, or has another name before its data")
    if header_start > end:
        raise CheckpointFormatError(f"{what} has bytes before it that belong to no entry")
    # Where its flags say so, CRC and sizes are zeros before the data, and follow after them
    described = flags & 8 and header[14:26] == bytes(12)
    local_sizes = header[18:26]
    if local_sizes == b"\xff" * 8 and read(start - extra_length, 20) == struct.pack("<2H2Q", 1, 16, size, size):
        local_sizes = fixed[20:28]  # they are in their 64-bit form
    if header[6:10] != fixed[8:12] or not (described or header[14:18] + local_sizes == fixed[16:28]):
        raise CheckpointFormatError(
            f"{what} is described before its data otherwise than in the directory (flags, sizes or CRC)"
        )
    if exact and (flags or disk or extra_length or header[4:] != fixed[6:32]):
        raise CheckpointFormatError(f"{what} is not as `isanet pack` writes it")
    end = start + size
    if described:
        end += 16
        if read(start + size, 16) != b"PK\x07\x08" + fixed[16:28]:
            raise CheckpointFormatError(f"{what} is described after its data otherwise than in the directory")
    return Entry(start, size, crc, end)


def check_crc(name: str, entry: Entry, data: Any) -> None:
    """Compare the data of an entry, a buffer, with the checksum that the directory has of them.

    Raises:
        CheckpointFormatError: They differ.
    """
    if (found := zlib.crc32(data)) != entry.crc:
        raise CheckpointFormatError(
            f"its entry {clean(name)[:200]!r} is damaged: its CRC is {found:08x}, and {entry.crc:08x} was written; "
            "fetch or copy the file again"
        )
