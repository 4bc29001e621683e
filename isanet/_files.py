"""Files that appear whole or not at all, and what files of the wrong kind look like.

A temporary file is created beside the target, exclusively, written and brought to the disk through its one
descriptor, and renamed. So a crash leaves the old file or the new one, and a link planted under either name, before or
meanwhile, is never followed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from isanet._text import shortened
from isanet.errors import IsanetError, OutputError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """An open temporary file, which replaces `path` once the body has ended without an error.

    Raises:
        OSError: From creating, writing or renaming; the temporary file is gone then, and `path` as it was.
    """
    with temporary_file(path.parent) as file:
        yield file
        sync_and_close(file)
        Path(file.name).replace(path)


def atomic_write_all(files: Iterable[tuple[Path, bytes | memoryview]]) -> None:
    """Write several files: when all are on the disk, each replaces what is at its path, in this order.

    Raises:
        OSError: From creating, writing or renaming; the temporary files are gone then. If a renaming failed, the
            paths before it have their new files.
    """
    with ExitStack() as stack:
        written = []
        for path, data in files:
            file = stack.enter_context(temporary_file(path.parent))
            file.write(data)
            sync_and_close(file)
            written.append((Path(file.name), path))
        for temporary, path in written:
            temporary.replace(path)


@contextmanager
def temporary_file(folder: Path) -> Iterator[BinaryIO]:
    """A new file under the user's umask, unlike those of the module tempfile; removed, if it was not renamed."""
    path = folder / f".isanet-{secrets.token_hex(8)}.part"
    file = path.open("x+b")
    try:
        yield file
    finally:
        with suppress(OSError):  # closing writes what the disk has just refused
            file.close()
        path.unlink(missing_ok=True)


def sync_and_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    if not os.path.samestat(os.fstat(file.fileno()), os.lstat(file.name)):  # others may write to the folder too
        raise OSError(errno.ESTALE, f"something else was put in the place of {file.name}")
    file.close()  # Windows renames no open file


def given_path(path: str | os.PathLike[str], error: type[IsanetError]) -> Path:
    """The path, if the operating system can look it up; whether something is there is not asked.

    Raises:
        IsanetError: `error`, because the path is too long, goes in circles or has a null character, for which each of
            its uses would raise something else.
    """
    try:
        os.lstat(path)
    except (OSError, ValueError) as cause:
        number = getattr(cause, "errno", None)
        if number not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            reason = os.strerror(number) if number else "it has a null character"
            raise error(f"{shortened(os.fspath(path), 80)} cannot be used: {reason}; check the path") from cause
    return Path(path)


# --- what the user asked to be written


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
    given_path(path, OutputError)
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
    with output_errors(path), atomic_write(path) as file:
        file.write(content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, which becomes the one that the user asked for once the body has ended without an error.

    Raises:
        OutputError: `path` exists and is not an empty folder, or it cannot be written; nothing is left of it then.
    """
    with output_errors(path):
        if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} exists and was kept; give a folder that does not exist, or an empty one")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".isanet-", dir=path.parent) as temporary:
            folder = Path(temporary) / "folder"
            folder.mkdir()
            yield folder
            folder.replace(path)


@contextmanager
def output_stream(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes the next bytes of a file that the user asked for; atomic as `write_output`.

    Errors of the body are left as they are; after one, an earlier file is unchanged.

    Raises:
        OutputError: The file cannot be written.
    """
    with ExitStack() as stack:
        with output_errors(path):
            file = stack.enter_context(atomic_write(path))

        def write(content: bytes) -> None:
            with output_errors(path):
                file.write(content)

        yield write
        with output_errors(path):
            stack.close()


# --- what a file looks like


_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!--|\?xml|(?:!doctype|html|head|body|script|title|meta)\b)", re.IGNORECASE
)
_SIGNATURES = {
    b"version https://": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a file compressed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive",
    b"%!PS": "PostScript (EPS)",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS)",
    b"%PDF": "PDF",
}
_FILE_STORES = {
    b"Google Drive": "Google Drive's warning page",
    b"accounts.google.com": "Google's page for signing in",
    "\u767e\u5ea6\u7f51\u76d8".encode(): "Baidu's page",  # the name of its file store
    b"pan.baidu.com": "Baidu's page",
}
"""What is in the first bytes of the pages that file stores send instead of a file."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts", ".3gp", ".flv", ".ogv"}
)
"""Lower-case suffixes of videos, see `isanet.inference.video`."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


def is_web_page(start: bytes) -> bool:
    """Whether a file that starts with these bytes is an HTML page."""
    return _WEB_PAGE.match(start) is not None


def looks_like(start: bytes) -> str:
    """What a file of an unknown format seems to be, in a few words.

    Args:
        start: Its first bytes: at least 512, or all if it is shorter.
    """
    if not start:
        return "an empty file"
    if is_web_page(start):
        store = next((store for mark, store in _FILE_STORES.items() if mark in start), None)
        if store:
            return f"{store}, not the file behind it; open it in a browser and download the file from there"
        return "a web page (HTML or XML), as a login portal or a parked domain sends"
    for signature, description in _SIGNATURES.items():
        if start.startswith(signature):
            return description
    if re.match(b"\x80[\x02-\x05]", start):
        return "a pickle, but not one that torch.save or paddle.save wrote"
    if start[4:8] == b"ftyp":
        return "HEIC or AVIF" if start[8:12] in HEIF_BRANDS else "a video (MP4)"
    if b"ustar" in start[:512]:
        return "a tar archive; if torch before 0.4 wrote it, save it again with a current one"
    if not start.strip(b"\0"):
        return "zeros, as an interrupted copy leaves them"
    if start.lstrip().startswith(b"<"):
        return "HTML, SVG or XML"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start[:16]):
        return f"text ({start[:16].decode('ascii')!r})"
    return f"unknown data ({start[:8].hex(' ')})"
