"""What Pillow before version 13 does not bound: tags of EXIF and TIFF that overlap, comments of a GIF.

A file of half a megabyte can ask for gigabytes, or minutes, so these blocks are measured before Pillow reads them.
"""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import ExifTags, Image

MAX_TAG_BYTES = 1 << 26
"""Memory that tags may take beyond the size of the file or block; tags that overlap count several times."""

MAX_COMMENT = 1 << 20
"""Bytes that the comments of a GIF may have before its first frame: Pillow's time goes with their square."""

_NUMBERS = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by the type of its tag; those of text and opaque types have one."""


def check_tags(stream: BinaryIO, size: int) -> None:
    """Raise a ValueError if the first directory of a TIFF, a BigTIFF or an EXIF block claims too much memory.

    A number becomes one of Python's, of 40 bytes.
    """
    stream.seek(0)
    head = stream.read(16)

    def number(data: bytes) -> int:
        return int.from_bytes(data, "little" if head.startswith(b"I") else "big")

    width, offset = (8, head[8:]) if head[2:3] == b"+" else (4, head[4:8])  # as Pillow tells them apart
    stream.seek(number(offset))
    length = 4 + 2 * width  # tag and type, count, value or offset
    entries = stream.read(length * min(number(stream.read(8 if width == 8 else 2)), 2**16))
    total = 0
    for start in range(0, len(entries), length):
        kind, count = number(entries[start + 2 : start + 4]), number(entries[start + 4 : start + 4 + width])
        if count * _NUMBERS.get(kind, 1) > width:  # else it is in the entry itself
            total += count * (40 if kind in _NUMBERS else 1)
    if total > size + MAX_TAG_BYTES:
        raise ValueError("its tags take more memory than the whole file has bytes")


def check_jpeg(stream: BinaryIO) -> None:
    """Raise a ValueError if the EXIF block of a JPEG, which Pillow reads when it opens one, claims too much memory."""
    stream.seek(2)
    block = b""
    while (marker := stream.read(4))[:1] == b"\xff" and len(marker) == 4 and marker[1] not in (0xD9, 0xDA):
        data = stream.read(max(int.from_bytes(marker[2:], "big") - 2, 0))
        if marker[1] == 0xE1 and data.startswith(b"Exif\0\0"):
            block += data[6:]
    check_tags(io.BytesIO(block), len(block))


def check_gif(stream: BinaryIO) -> None:
    """Raise a ValueError if a GIF begins with too long comments."""
    stream.seek(10)
    flags = stream.read(3)[:1]
    stream.seek(13 + (3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0))
    comments = 0
    while stream.read(1) == b"!":
        is_comment = stream.read(1) == b"\xfe"
        while length := int.from_bytes(stream.read(1)):
            stream.seek(length, io.SEEK_CUR)
            comments += length * is_comment
            if comments > MAX_COMMENT:
                raise ValueError(f"its comments have more than {MAX_COMMENT:,} bytes")


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 2 to 8 if the image is stored turned or mirrored; 1 also for a damaged block."""
    try:
        block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        if not block and (text := image.info.get("Raw profile type exif")):  # as ImageMagick writes it into PNGs
            block = bytes.fromhex("".join(text.split("\n")[3:])).removeprefix(b"Exif\0\0")
        if block:
            check_tags(io.BytesIO(block), len(block))
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # OpenCV ignores it too
        return 1
    return orientation
