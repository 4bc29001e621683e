"""The cache of converted models on this machine, and what is recorded of them.

For each model there is one record, `<name>.json`, and the file that the record names,
`<name>-<8 digits>.safetensors`. Writing the record is the commit point: a process killed before it leaves the old
pair, one killed after it leaves the new pair.

Each version of the converter has its own pair, from the second on as `<name>.<version>.json` and so on: two versions of
the package that share a cache neither replace each other's files nor fetch in turns. A name may have a dot too, but a
letter follows it, so no model is taken for another one's version.

A record outlives its file, because any later download of that model, by whatever version, must match the hash in it.
Standard library only, except for filelock.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from isanet._files import atomic_write_all, given_path
from isanet._text import clean
from isanet.errors import CacheError

CONVERTER_VERSION = 1
"""Increased whenever the same file would be converted to other tensors; recorded in every converted file."""

LOCK_TIMEOUT = 3600.0
"""Seconds to wait for another process that fetches the same model."""

_VERSION, _CONVERTED = r"(?:\.[0-9]+)?", r"-[0-9a-f]{8}\.safetensors"

NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What the operating system says where files cannot be locked."""

log = logging.getLogger("isanet")


@dataclass(frozen=True)
class Record:
    """What is known of a cached model.

    Attributes:
        file: Name of the converted file in the cache.
        file_sha256: Hash of the converted file.
        source: Address that the released file came from.
        source_sha256: Hash of the released file; any later copy must have the same.
        source_size: Its size in bytes.
        layout: Layout of its tensors' names, a key of `isanet.weights.convert.LAYOUTS` or `BACKBONE_LAYOUTS`.
        converter: Version of the converter.
        date: When it was converted, ISO 8601, UTC.
        file_blake3: Another hash of the converted file, compared at every load because it is fast; "" in records of
            earlier versions, with which file_sha256 is compared.
    """

    file: str
    file_sha256: str
    source: str
    source_sha256: str
    source_size: int
    layout: str
    converter: int
    date: str
    file_blake3: str = ""


def home() -> Path:
    """The cache folder, which may not exist yet: `ISANET_HOME`, else `isanet` in the folder that torch.hub uses."""
    if chosen := os.environ.get("ISANET_HOME"):
        path = os.path.expanduser(chosen)  # noqa: PTH111  Path's raises for "~somebody" who does not exist
        if path.startswith("~"):
            raise CacheError(f"there is no home folder for ISANET_HOME={chosen}; set it to another folder")
        return given_path(path, CacheError)
    if hub := sys.modules.get("torch.hub"):
        return Path(hub.get_dir()) / "isanet"
    # What torch.hub.get_dir() computes, without importing torch
    base = os.environ.get("TORCH_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    return Path(os.path.expanduser(base), "hub", "isanet")  # noqa: PTH111  Path's raises where there is no home


def _stem(name: str) -> str:
    """What the names of a model's files start with that are this version's."""
    return name if CONVERTER_VERSION == 1 else f"{name}.{CONVERTER_VERSION}"


def record_path(name: str) -> Path:
    """The path of a model's record."""
    return home() / f"{_stem(name)}.json"


def converted_name(name: str, sha256: str) -> str:
    """The name of a model's converted file with this hash."""
    return f"{_stem(name)}-{sha256[:8]}.safetensors"


def read_record(name: str) -> Record | None:
    """The record of a model; None if it was never cached, or if the record is damaged, which is logged.

    If only other versions of the converter have recorded it, the record of one of them: its hash binds every version.
    """
    paths = dict.fromkeys([record_path(name), *sorted(_files(name, r"\.json"))])
    return next((record for path in paths if (record := _read_record(name, path)) is not None), None)


def _read_record(name: str, path: Path) -> Record | None:
    try:
        return parse_record(name, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning(
            "ignoring the damaged record %s (%s); the model counts as not cached", path, clean(str(error))[:200]
        )
        return None


def parse_record(name: str, values: Any) -> Record:
    """A record from parsed JSON.

    Raises:
        ValueError: A value is malformed; KeyError or TypeError if it is not an object with all fields.
    """
    given = {"file_blake3": "", **values}
    record = Record(**{field.name: given[field.name] for field in fields(Record)})
    for field in fields(Record):
        if type(getattr(record, field.name)).__name__ != field.type:
            raise ValueError(f"{field.name} is not {field.type}")
    for digest in (record.file_sha256, record.source_sha256):
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{digest[:100]!r} is not a SHA-256 digest")
    if not re.fullmatch("([0-9a-f]{64})?", record.file_blake3):
        raise ValueError(f"{record.file_blake3[:100]!r} is not a BLAKE3 digest")
    if not re.fullmatch(re.escape(name) + _VERSION + _CONVERTED, record.file):
        raise ValueError(f"{record.file[:100]!r} is not a file name that isanet writes")
    return record


def cached_file(name: str) -> Path | None:
    """The path of a model's converted file, not verified; None if it is not cached."""
    record = read_record(name)
    if record is None or record.converter != CONVERTER_VERSION or not (home() / record.file).is_file():
        return None
    return home() / record.file


def write_record(name: str, record: Record) -> None:
    """Make `record` the record of a model, and remove its converted files that no record names any more."""
    atomic_write_all([(record_path(name), serialized(record))])
    remove_unrecorded(name, record)


def serialized(record: Record) -> bytes:
    """The bytes of a record's file."""
    return (json.dumps(asdict(record), indent=1) + "\n").encode()


def remove_unrecorded(name: str, record: Record) -> None:
    """Remove the converted files of a model that its record does not name."""
    for path in _files(_stem(name), _CONVERTED, version=""):
        if path.name != record.file:
            with suppress(OSError):  # the record is in force already: what stays only wastes space
                path.unlink()


def selftest_path(name: str) -> Path:
    """The path of a model's recorded answer, with which `isanet.tools.selftest` compares."""
    return home() / f"{name}.selftest"


def clear(name: str, *, forget: bool = False) -> int:
    """Delete the converted files of a model, those of other versions too.

    Args:
        name: Its name.
        forget: Delete the record and the self-test's answer too, so that the next download may have another hash.

    Returns:
        Bytes freed.

    Raises:
        CacheError: The cache cannot be written, or another process held the lock for over an hour.
    """
    freed = 0
    with lock(name):
        try:
            for path in _files(name, _CONVERTED):
                freed += path.lstat().st_size
                path.unlink()
            if forget:
                for path in _files(name, r"\.json"):
                    path.unlink(missing_ok=True)
                selftest_path(name).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(home(), error) from error
    return freed


def sweep() -> None:
    """Delete temporary files of killed processes: those untouched for an hour by the file system's own clock."""
    with suppress(OSError), tempfile.TemporaryFile(dir=home()) as fresh:  # clocks of machines that share it may differ
        now = os.fstat(fresh.fileno()).st_mtime
        for path in home().glob(".isanet-*.part"):
            with suppress(OSError):
                if now - path.lstat().st_mtime > 3600:
                    path.unlink()


def _files(name: str, ending: str, version: str = _VERSION) -> list[Path]:
    """The model's files in the cache whose names end like that, a regular expression; links and folders too."""
    pattern = re.compile(re.escape(name) + version + ending)
    return [path for path in home().glob(f"{name}*") if pattern.fullmatch(path.name)]


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process at a time change what is cached of a model.

    The operating system releases the lock when its process ends, so there are no stale locks. On a file system without
    locks, as some of NFS, it goes on without one.

    Raises:
        CacheError: The folder cannot be written, or another process held the lock for over an hour.
    """
    import filelock

    folder = home()
    try:
        create_shared_folder(folder)
        mode = 0o600 | folder.stat().st_mode & 0o666  # who may write to the folder may lock in it
        held = filelock.FileLock(folder / f"{name}.lock", timeout=LOCK_TIMEOUT, mode=mode)
        held.acquire()
    except filelock.Timeout as error:
        raise CacheError(
            f"another process has held {folder / name}.lock for {LOCK_TIMEOUT:.0f} s; check whether it is still running"
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise write_error(folder, error) from error
        # Files still appear whole, each under a name made from its content, and the last record wins
        log.warning("%s cannot be locked (%s); what two processes fetch at once is fetched twice", folder, error)
    try:
        yield
    finally:
        held.release()


def create_shared_folder(folder: Path) -> None:
    """Create a folder and those above it; in a folder that a group shares (setgid, group-writable) they are its too."""
    if not folder.is_dir():
        create_shared_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        if (mode := stat.S_IMODE(folder.parent.stat().st_mode)) & 0o2020 == 0o2020:
            with suppress(PermissionError):  # another process was first, of another user
                folder.chmod(mode)


def write_error(folder: Path, error: OSError | None, needed: int | str = 0, partial: int = 0) -> CacheError:
    """The error for a cache folder that cannot be written.

    Args:
        folder: The cache folder.
        error: What the operating system said; None if its disk has too little room.
        needed: Bytes that were to be written, which the message compares with the free space.
        partial: Bytes on it that are about to be deleted, counted as free.
    """
    cause = str(error.strerror or error) if error else "not enough space"
    if needed:
        cause += f"; {needed} bytes needed, {shutil.disk_usage(folder).free + partial} free"
    return CacheError(
        f"cannot write to the cache folder {folder}: {cause}; nothing was changed. "
        "Free some space, or set ISANET_HOME to a folder that can be written"
    )
