"""Models on their way to a machine without a network: packed into one archive here, installed from it there.

The archive is a zip file of stored entries: for each model its converted file, `<name>.safetensors`, and one index
with the records. Whoever hands it over is a stranger, so installing works in layers:

1. The directory is read by `isanet.weights.zipreader`, exactly: there is one reading of the file only.
2. Entries have exactly the names that the index implies, and the index only names of this isanet's manifest. No name
   in the archive becomes a path.
3. An entry is as large as the index says, and no larger than the manifest allows; only then is it read.
4. Its sha256 is that of its record, its tensors are exactly the network's, all values are finite, and its metadata
   tells the same origin as the record.
5. What is recorded here already wins: another hash for the same model is refused.

Only when all models have passed is the first byte written, and what is written is hashed again.

What this cannot show is that a converted file was made from the released file that it names: whoever made the archive
is trusted for that.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from isanet._files import atomic_write, atomic_write_all
from isanet._text import clean
from isanet.errors import CacheError, CheckpointFormatError, CheckpointMismatchError, IntegrityError, IsanetError
from isanet.weights import cache, checkpoint, convert
from isanet.weights.cache import Record
from isanet.weights.manifest import Released, load_released, model_info
from isanet.weights.torchfile import MAX_DESCRIPTION_BYTES, File
from isanet.weights.zipreader import Entry, read_directory
from isanet.zoo import released

SCHEMA = 1
"""Version of the archive's layout."""

INDEX = "isanet-models.json"

MAX_INDEX_BYTES = 1 << 20
"""Largest index and largest directory; a dozen models take 10 kB."""

MAX_TEXT = 1000
"""Longest text of a record."""

log = logging.getLogger("isanet")


def pack(names: Iterable[str], target: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Record]:
    """Write an archive of cached models, to be installed by `install` on a machine without a network.

    What is not cached is fetched. Models inside the package are left out, because every isanet has them. The same
    cache gives the same bytes.

    Args:
        names: Models, or backbones such as "resnet50_v1c".
        target: The archive; appears whole.
        overwrite: Replace an existing file.

    Returns:
        The records of what was packed, by name.

    Raises:
        ValueError: An unknown name, nothing to pack, too much for one archive, or `target` is in the cache folder.
        CacheError: `target` exists or cannot be written.
        DownloadError: A model could not be fetched, or its cached file is not what was recorded.
        CheckpointError: Its tensors do not fit the model.
    """
    path = Path(target)
    chosen = [load_released().get(name) or model_info(name) for name in dict.fromkeys(names)]
    for weights in chosen:
        if weights.packaged:
            log.warning("%s is left out: it is inside the package, wherever isanet is installed", weights.name)
    chosen = [weights for weights in chosen if not weights.packaged]
    if not chosen:
        raise ValueError("there is nothing to put into the archive; `isanet list` shows the models")
    if path.resolve().parent == cache.home().resolve():
        raise ValueError(f"{path} is in the cache folder, among the files that are packed; write the archive elsewhere")
    if os.path.lexists(path) and not overwrite:
        raise CacheError(f"{path} exists and was kept; --force (overwrite=True) replaces it")
    for weights in chosen:
        released.load(weights)
    needed = sum(place.stat().st_size for each in chosen if (place := cache.cached_file(each.name)))
    if needed > zipfile.ZIP64_LIMIT - (64 << 10) * len(chosen):
        raise ValueError(f"an archive holds at most 2 GiB, these models have {needed:,} bytes; pack fewer into one")
    models: dict[str, dict[str, Any]] = {}
    records: dict[str, Record] = {}
    try:
        with atomic_write(path) as output, zipfile.ZipFile(output, "w", allowZip64=False) as archive:
            for weights in chosen:
                record, file = _cached(weights)
                _add(archive, f"{weights.name}.safetensors", file.data.data)
                models[weights.name] = {"size": len(file.data), "record": asdict(record)}
                records[weights.name] = record
            _add(archive, INDEX, json.dumps({"schema": SCHEMA, "models": models}, indent=1).encode())
    except OSError as error:
        raise CacheError(
            f"cannot write {path}, {needed:,} bytes: {error.strerror}; an earlier file is as it was. Name another place"
        ) from error
    return records


def install(archive: str | os.PathLike[str], *, force: bool = False) -> dict[str, bool]:
    """Put the models of an archive that `pack` wrote into the cache, after all of them have been checked.

    Args:
        archive: Treated as hostile; see the head of this module.
        force: Replace models whose recorded hashes are others.

    Returns:
        For each model in the archive whether it was installed; False: the same one is there already, and was kept.

    Raises:
        CheckpointFormatError: It is not such an archive, or of another version; the message says what is wrong.
        IntegrityError: A hash differs from the index, from the manifest, or from what is recorded here.
        CheckpointMismatchError: Tensors do not fit their model.
        CacheError: The archive cannot be read, or the cache cannot be written.
    """
    path = Path(archive)
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise CheckpointFormatError(f"{path} is no file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as stream:
            try:
                return _install(stream, path, force=force)
            except (CheckpointFormatError, CheckpointMismatchError, IntegrityError) as error:
                raise type(error)(f"{path}: {error}; nothing was installed") from error
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}; nothing was installed") from error


def _install(stream: BinaryIO, path: Path, *, force: bool) -> dict[str, bool]:
    size = stream.seek(0, os.SEEK_END)
    read = partial(_bytes, stream)
    entries = read_directory(read, size, max_bytes=MAX_INDEX_BYTES, exact=True)
    known = load_released()
    records = _read_index(stream, entries, known)
    files = {name: entries[f"{name}.safetensors"] for name in records}
    new = {
        name: _as_installed(known[name], record, _read(stream, name, files[name]), path)
        for name, record in records.items()
    }
    folder = cache.home()
    with ExitStack() as locks:
        for name in sorted(new):  # always in this order: two that install wait for one another in turn
            locks.enter_context(cache.lock(name))
        if not force:
            new = {name: record for name, record in new.items() if not _is_there(known[name], record)}
        try:
            atomic_write_all(_new_files(stream, files, new))
            for name, record in new.items():
                cache.remove_unrecorded(name, record)
        except OSError as error:
            raise cache.unwritable(folder, error, sum(files[name].size for name in new)) from error
    return {name: name in new for name in records}


def _new_files(
    stream: BinaryIO, files: Mapping[str, Entry], new: Mapping[str, Record]
) -> Iterator[tuple[Path, bytes | memoryview]]:
    """Paths and contents: the converted files first, because a record makes its file the model's file."""
    for name, record in new.items():
        file = _read(stream, name, files[name])
        if file.sha256 != record.file_sha256:
            raise IntegrityError("it changed while it was read; try again when nothing writes to it")
        yield cache.home() / record.file, file.data.data
    for name, record in new.items():
        yield cache.record_path(name), cache.serialized(record)


def _read_index(stream: BinaryIO, entries: dict[str, Entry], known: dict[str, Released]) -> dict[str, Record]:
    """The records of an archive, if its entries are those that they imply and every size is possible."""
    place = entries.get(INDEX)
    if place is None or place.size > MAX_INDEX_BYTES:
        raise CheckpointFormatError(f"it has no index {INDEX}, or one that is too large: not an archive of isanet")
    data = _bytes(stream, place.start, place.size)
    if zlib.crc32(data) != place.crc:
        raise CheckpointFormatError(f"its index {INDEX} is damaged; copy the archive again")
    try:
        index = json.loads(data.decode(), object_pairs_hook=checkpoint.unique_keys)
        schema = index["schema"]
        if type(schema) is not int or schema != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {str(schema)[:20]!r}; a newer isanet may read it")
        if set(index) != {"schema", "models"} or not index["models"]:
            raise ValueError("expected exactly the keys 'schema' and 'models', and a model")
        records = {}
        for name, model in index["models"].items():
            if name not in known or known[name].packaged:
                raise ValueError(f"{name[:100]!r} is no model that this isanet fetches; `isanet list` shows them")
            if set(model) != {"size", "record"}:
                raise ValueError(f"{name}: expected exactly the keys 'size' and 'record'")
            records[name] = _checked(known[name], cache.parse_record(name, model["record"]))
            entry = entries.get(f"{name}.safetensors")
            if entry is None or type(model["size"]) is not int or entry.size != model["size"]:
                raise ValueError(f"{name}: there is no file of the size that the index says")
            # Twice: a released file in half precision is converted to float32
            if entry.size > (most := 2 * known[name].payload + MAX_DESCRIPTION_BYTES):
                raise ValueError(f"{name} has {entry.size:,} bytes; the manifest allows at most {most:,}")
    except IsanetError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointFormatError(f"its index {INDEX} is not usable: {clean(str(error))[:500]}") from error
    if strangers := sorted(set(entries) - {INDEX} - {f"{name}.safetensors" for name in records}):
        raise CheckpointFormatError(f"its entry {clean(strangers[0])[:200]!r} is not in the index")
    return records


def _checked(weights: Released, record: Record) -> Record:
    """A record whose values are possible for the model."""
    for text in (record.source, record.layout, record.date):
        if not text.isprintable() or len(text) > MAX_TEXT:
            raise ValueError(f"{weights.name}: a text of its record is too long, or not printable")
    datetime.fromisoformat(record.date)
    if record.converter != convert.CONVERTER_VERSION:
        raise ValueError(
            f"{weights.name} was converted by version {record.converter} of the conversion, and this isanet has "
            f"version {convert.CONVERTER_VERSION}; make the archive again with the same isanet as here"
        )
    if record.layout != weights.layout or record.source_size < 1 or weights.size not in (None, record.source_size):
        raise ValueError(f"{weights.name}: layout or size of the released file are not those of the manifest")
    return record


def _as_installed(weights: Released, record: Record, file: File, path: Path) -> Record:
    """The record that the cache will have, if the file passes; it says that the model came by an archive."""
    _, provenance = released.load_converted(weights, record, file, values=True)
    name, source = weights.name, provenance.get("source", "")
    told = {"name": name, "source_sha256": record.source_sha256, "layout": record.layout}
    told["converter_version"] = str(record.converter)
    # "(by ...)" is what an earlier archive added
    same = record.source == source or record.source.startswith(f"{source} (by ")
    strange = provenance.keys() - {*told, "source", "isanet_version"}
    texts = all(text.isprintable() and len(text) <= MAX_TEXT for text in provenance.values())
    if strange or not texts:
        raise IntegrityError(f"the metadata of the file of {name} are not as isanet writes them")
    if not source or not same or any(provenance.get(key) != value for key, value in told.items()):
        raise IntegrityError(f"the file of {name} tells another origin in its metadata than its record does")
    return replace(
        record, file=f"{name}-{record.file_sha256[:8]}.safetensors", source=f"{source} (by {clean(path.name)})"
    )


def _is_there(weights: Released, record: Record) -> bool:
    """Whether the cache has the same model; raises IntegrityError where it has, or knows, another one."""
    recorded = cache.read_record(weights.name)
    if recorded is None:
        if (path := cache.record_path(weights.name)).exists():
            raise IntegrityError(
                f"the record {path} of {weights.name} cannot be read, so nothing can be compared with it; --force "
                "(force=True) replaces it"
            )
        return False
    if recorded.source_sha256 == record.source_sha256:
        if recorded.converter != record.converter:
            return False  # an older conversion, of no use to this isanet
        if released.read_cached(weights) is not None:
            return True
        if recorded.file_sha256 == record.file_sha256:
            return False
    what, here, there = "released file", recorded.source_sha256, record.source_sha256
    if here == there:
        what, here, there = "converted file", recorded.file_sha256, record.file_sha256
    raise IntegrityError(
        f"the {what} of {weights.name} had sha256 {here} when it was recorded here on {recorded.date}, and the archive "
        f"has {there}; find out which is right, and if it is the archive's, --force (force=True) replaces what is here"
    )


def _cached(weights: Released) -> tuple[Record, File]:
    """The record and the converted file of a cached model, verified."""
    record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
    if record is None or path is None:
        raise CacheError(f"{weights.name} left the cache while it was packed; try again")
    try:
        file = checkpoint.read_file(path)
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}; try again") from error
    released.load_converted(weights, record, file, values=True)
    return record, file


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name)  # of 1980, so that the same models give the same archive
    entry.create_system = 3  # everywhere the same
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, data)


def _read(stream: BinaryIO, name: str, entry: Entry) -> File:
    data = np.empty(entry.size, dtype=np.uint8)
    try:
        stream.seek(entry.start)
        count = stream.readinto(data)  # type: ignore[attr-defined]
    except OSError as error:
        raise CacheError(f"cannot read the archive: {error.strerror}; copy it again") from error
    if count != entry.size:
        raise CheckpointFormatError("it became shorter while it was read; try again when nothing writes to it")
    return File(f"the file of {name} in it", data, sha256(data.data).hexdigest())


def _bytes(stream: BinaryIO, start: int, length: int) -> bytes:
    stream.seek(start)
    return stream.read(length)
