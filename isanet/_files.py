"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isanet.errors import OutputError


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


def keep_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace an output unless asked to.

    Raises:
        OutputError: Something is at `path`, if only a dangling link, and `overwrite` is not set.
    """
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists and was kept; --force (overwrite=True) replaces it")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Around writing what the user asked for: an OSError becomes an OutputError that names `path`.

    Raises:
        OutputError: Instead of any OSError of the body.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def write_output(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file that the user asked for, atomically; its folder exists.

    Args:
        path: Replaced if it exists.
        content: Text is encoded as UTF-8, lone surrogates of file names as escapes.

    Raises:
        OutputError: It cannot be written; an earlier file is unchanged.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with output_errors(path), atomic_write(path) as temporary:
        temporary.write_bytes(content)
