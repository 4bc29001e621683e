"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written in the body, that takes the place of `path` if no error comes.

    The temporary file is created exclusively and then renamed, so a link planted under either name is replaced,
    never followed. Its data is on the disk before the rename, so a crash leaves the old file or the new one.

    Raises:
        OSError: From creating, writing or renaming; the temporary file is gone then, and `path` as it was.
    """
    temporary = path.parent / f".isanet-{secrets.token_hex(8)}.part"
    temporary.open("xb").close()  # an ordinary file under the user's umask, unlike those of the module tempfile
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
