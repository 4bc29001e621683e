"""The images in a folder, and what is said of its other files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from isanet._files import VIDEO_SUFFIXES
from isanet._text import plural
from isanet.errors import ImageError
from isanet.images.reading import AVIF_SUFFIXES, HEIC_SUFFIXES, SUFFIXES

log = logging.getLogger("isanet")

_UNREAD = {
    **dict.fromkeys(HEIC_SUFFIXES, "pip install 'isanet[heic]'"),
    **dict.fromkeys(AVIF_SUFFIXES, "this build of Pillow lacks it"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"), "raw: develop it"
    ),
    **dict.fromkeys(VIDEO_SUFFIXES, "video: name it by itself"),
}
"""What to say of files in a folder of images that are no images that can be read."""


def images_in(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The images in a folder, found by suffix and sorted; hidden files are skipped, others said in the log.

    Args:
        folder: Where to look.
        recursive: Look into the folders in it too, but for hidden ones and links.

    Raises:
        ImageError: There are none, or a folder cannot be read.
    """
    try:
        files = [path for each in (_folders(folder) if recursive else [folder]) for path in _files_in(each)]
        below = 0
        if not recursive and not any(path.suffix.lower() in SUFFIXES for path in files):
            below = sum(path.suffix.lower() in SUFFIXES for each in _folders(folder) for path in _files_in(each))
    except OSError as error:
        raise ImageError(f"{folder} cannot be read: {error}; check the path and its permissions") from error
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    unread = Counter(path.suffix.lower() for path in files if path.suffix.lower() not in SUFFIXES)
    known = [f"{number} {suffix} ({_UNREAD[suffix]})" for suffix, number in unread.most_common() if suffix in _UNREAD]
    others = unread.total() - sum(number for suffix, number in unread.items() if suffix in _UNREAD)
    listed = ", ".join(known + [f"{others} of other kinds"] * bool(others))
    if not paths:
        found = f"; it has {listed}" if known else ""
        found += f"; its sub-folders hold {below:,} (--recursive, or name one of them)" if below else ""
        raise ImageError(
            f"no images in the folder {folder}: none of its files ends in {', '.join(sorted(SUFFIXES))}{found}"
        )
    if unread:
        level = logging.WARNING if known else logging.INFO
        log.log(level, "%s: %s not read: %s", folder, plural(unread.total(), "file"), listed)
    return paths


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all in it, sorted, but for hidden ones and links."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for path, names, _ in os.walk(top, onerror=fail):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield Path(path)
