"""Archives of models for machines without a network: packed from one cache, installed into another.

An archive is a zip file of stored entries: for each model its converted file, `<name>.safetensors`, and one index
with the records. It is an untrusted file, so it is installed in layers:

1. The directory is read by `isanet.weights.zipreader`, exactly: there is only one reading of the file.
2. Entries have exactly the names that the index implies, and the index has only names of this isanet's manifest. No
   name in the archive becomes a path.
3. An entry is as large as the index says, and no larger than the manifest allows; only then is it read.
4. Its sha256 is that of its record, its tensors are exactly the network's, all values are finite, and its metadata
   agrees with the record on where the model came from.
5. What is recorded here already wins: another hash for the same model is refused.

Only when all models have passed is the first byte written, and what is written is hashed again.

This cannot show that a converted file was made from the released file that it names: for that, whoever made the archive
is trusted.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from blake3 import blake3

from isanet._files import atomic_write, atomic_write_all, given_path, keep_existing, output_errors
from isanet._text import clean
from isanet.errors import CheckpointFormatError, CheckpointMismatchError, IntegrityError, OutputError
from isanet.weights import cache, checkpoint
from isanet.weights.cache import Record
from isanet.weights.manifest import Released, load_released, model_info
from isanet.weights.pickles import MAX_DESCRIPTION_BYTES, File
from isanet.weights.zipreader import Entry, check_crc, read_directory
from isanet.zoo import released

SCHEMA = 1
"""Version of the archive's layout."""

INDEX = "isanet-models.json"

MAX_INDEX_BYTES = 1 << 20
"""Largest index and largest directory; a dozen models need 10 kB."""

log = logging.getLogger("isanet")


class Packed(NamedTuple):
    """An archive that was written: its models, its hash and its size in bytes."""

    names: list[str]
    sha256: str
    size: int


def pack(names: Iterable[str], target: str | os.PathLike[str], *, overwrite: bool = False) -> Packed:
    """Write an archive of released models, for `install` on a machine without a network.

    Models that are not cached are fetched. Packaged models are left out, because every isanet has them. The same cache
    gives the same bytes.

    Args:
        names: Models, or backbones such as "resnet50_v1c".
        target: The archive to write.
        overwrite: Replace an existing file.

    Raises:
        ValueError: A name is unknown, there is nothing to pack or too much, or `target` is in the cache folder.
        OutputError: `target` exists or cannot be written.
        DownloadError: A model cannot be fetched; each subclass is one reason.
        IntegrityError: The only address of a model sent other bytes, or a cached file was changed meanwhile.
        CheckpointError: A released file cannot be converted.
        CacheError: The cache cannot be used.
    """
    path = given_path(target, OutputError)
    chosen: list[Released] = []
    for weights in (load_released().get(name) or model_info(name) for name in dict.fromkeys(names)):
        if weights.packaged:
            log.warning("%s is left out: it is packaged, every isanet has it", weights.name)
        else:
            chosen.append(weights)
    if not chosen:
        raise ValueError("there is nothing to put into the archive; `isanet list` shows the models")
    if path.resolve().parent == cache.home().resolve():
        raise ValueError(f"{path} is in the cache folder, among the files that are packed; write the archive elsewhere")
    keep_existing(path, overwrite=overwrite)
    for weights in chosen:
        released.load(weights)
    needed = sum(cached.stat().st_size for each in chosen if (cached := cache.cached_file(each.name)))
    if needed > zipfile.ZIP64_LIMIT - (64 << 10) * len(chosen):
        raise ValueError(f"an archive holds at most 2 GiB, these models have {needed:,} bytes; pack fewer into one")
    records, sizes = dict[str, Record](), dict[str, int]()
    with output_errors(path), atomic_write(path) as output:
        with zipfile.ZipFile(output, "w", allowZip64=False) as archive:
            for weights in chosen:
                records[weights.name], file = released.read_verified(weights)
                _add_entry(archive, f"{weights.name}.safetensors", file.data.data)
                sizes[weights.name] = len(file.data)
            models = {name: {"size": sizes[name], "record": asdict(record)} for name, record in records.items()}
            _add_entry(archive, INDEX, json.dumps({"schema": SCHEMA, "models": models}, indent=1).encode())
        output.seek(0)  # what was written is hashed, not what may lie at the path later
        packed = Packed(list(records), file_digest(output, "sha256").hexdigest(), output.tell())  # type: ignore[arg-type]
    return packed


def _add_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980, so that the same models give the same archive
    entry.create_system = 3  # the same on every system
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, data)


def install(archive: str | os.PathLike[str], *, force: bool = False) -> dict[str, bool]:
    """Put the models of an archive that `pack` wrote into the cache, after all of them have been checked.

    Args:
        archive: An untrusted file; the head of this module says what is checked.
        force: Replace models whose recorded hashes differ.

    Returns:
        For each model in the archive whether it was installed; False: the same one was there already, and was kept.

    Raises:
        CheckpointFormatError: It cannot be read, is not such an archive, or is of another version.
        IntegrityError: A hash differs from the index, from the manifest, or from what is recorded here.
        CheckpointMismatchError: Tensors do not fit their model.
        CacheError: The cache cannot be written.
    """
    path = given_path(archive, CheckpointFormatError)
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise CheckpointFormatError(f"{path} is no file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as stream:
            try:
                return _install(stream, path, force=force)
            except (CheckpointFormatError, CheckpointMismatchError, IntegrityError) as error:
                raise type(error)(f"{path}: {error}; nothing was installed") from error
    except OSError as error:
        raise CheckpointFormatError(f"cannot read {path}: {error.strerror}; nothing was installed") from error


def _install(stream: BinaryIO, path: Path, *, force: bool) -> dict[str, bool]:
    size = stream.seek(0, os.SEEK_END)
    entries = read_directory(partial(_read_at, stream), size, max_bytes=MAX_INDEX_BYTES, exact=True)
    known = load_released()
    records = _read_index(stream, entries, known)
    files = {name: entries[f"{name}.safetensors"] for name in records}
    new = {
        name: _check_model(known[name], record, _read_model(stream, name, files[name]), path)
        for name, record in records.items()
    }
    folder = cache.home()
    with ExitStack() as locks:
        for name in sorted(new):  # always in this order, so that two that install at once do not deadlock
            locks.enter_context(cache.lock(name))
        if not force:
            new = {name: record for name, record in new.items() if not _is_installed(known[name], record)}
        try:
            atomic_write_all(_new_files(stream, files, new))
            for name, record in new.items():
                cache.remove_unrecorded(name, record)
                released.warn_of_license(known[name])
        except OSError as error:
            raise cache.write_error(folder, error, sum(files[name].size for name in new)) from error
    return {name: name in new for name in records}


def _new_files(
    stream: BinaryIO, files: Mapping[str, Entry], new: Mapping[str, Record]
) -> Iterator[tuple[Path, bytes | memoryview]]:
    """Paths and contents: the converted files first, because a record makes its file the model's file."""
    for name, record in new.items():
        file = _read_model(stream, name, files[name])
        if file.sha256 != record.file_sha256:
            raise IntegrityError("it changed while it was read; try again when nothing writes to it")
        yield cache.home() / record.file, file.data.data
    for name, record in new.items():
        yield cache.record_path(name), cache.serialized(record)


def _read_index(stream: BinaryIO, entries: dict[str, Entry], known: dict[str, Released]) -> dict[str, Record]:
    """The records in the index, if the entries are exactly those that it implies and every size is possible."""
    entry = entries.get(INDEX)
    if entry is None or entry.size > MAX_INDEX_BYTES:
        raise CheckpointFormatError(f"it has no index {INDEX}, or one that is too large: not an archive of isanet")
    data = _read_at(stream, entry.start, entry.size)
    check_crc(INDEX, entry, data)
    try:
        index = json.loads(data.decode(), object_pairs_hook=checkpoint.unique_keys)
        if type(schema := index["schema"]) is not int or schema != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {str(schema)[:20]!r}; a newer isanet may read it")
        if set(index) != {"schema", "models"} or not index["models"]:
            raise ValueError("expected exactly the keys 'schema' and 'models', and a model")
        records = {}
        for name, model in index["models"].items():
            if name not in known or known[name].packaged:
                raise ValueError(f"{name[:100]!r} is no model that this isanet fetches; `isanet list` shows them")
            if set(model) != {"size", "record"}:
                raise ValueError(f"{name}: expected exactly the keys 'size' and 'record'")
            records[name] = _check_record(known[name], cache.parse_record(name, model["record"]))
            entry = entries.get(f"{name}.safetensors")
            if entry is None or type(model["size"]) is not int or entry.size != model["size"]:
                raise ValueError(f"{name}: there is no file of the size that the index says")
            # Twice: a released file in half precision is converted to float32
            if entry.size > (most := 2 * known[name].payload + MAX_DESCRIPTION_BYTES):
                raise ValueError(f"{name} has {entry.size:,} bytes; the manifest allows at most {most:,}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointFormatError(f"its index {INDEX} is not usable: {clean(str(error))[:500]}") from error
    if unexpected := sorted(set(entries) - {INDEX} - {f"{name}.safetensors" for name in records}):
        raise CheckpointFormatError(f"its entry {clean(unexpected[0])[:200]!r} is not in the index")
    return records


def _check_record(weights: Released, record: Record) -> Record:
    """The record, if its values are possible for the model."""
    for text in (record.source, record.layout, record.date):
        if not text.isprintable() or len(text) > released.MAX_TEXT:
            raise ValueError(f"{weights.name}: a text in its record is too long, or not printable")
    datetime.fromisoformat(record.date)
    if record.converter != cache.CONVERTER_VERSION:
        raise ValueError(
            f"{weights.name} was converted by version {record.converter} of the converter, and this isanet has "
            f"version {cache.CONVERTER_VERSION}; pack it again with the same isanet as here"
        )
    if record.layout != weights.layout or record.source_size < 1 or weights.size not in (None, record.source_size):
        raise ValueError(f"{weights.name}: layout or size of the released file differ from the manifest")
    return record


def _check_model(weights: Released, record: Record, file: File, path: Path) -> Record:
    """The record for the cache, if the file passes; it says that the model came by this archive."""
    source, name = released.load_foreign(weights, record, file).provenance["source"], weights.name
    if record.source != source and not record.source.startswith(f"{source} (by "):  # which an earlier archive added
        raise IntegrityError(f"the metadata of {file.name} names another origin than its record")
    file_name = cache.converted_name(name, record.file_sha256)
    source = f"{source} (by {clean(path.name)})"
    return replace(record, file=file_name, file_blake3=blake3(file.data.data).hexdigest(), source=source)


def _is_installed(weights: Released, record: Record) -> bool:
    """Whether the cache has the same model, intact; IntegrityError if another one is recorded."""
    recorded, path = cache.read_record(weights.name), cache.record_path(weights.name)
    if recorded is None and path.exists():
        raise IntegrityError(
            f"the record {path} of {weights.name} cannot be read, so nothing can be compared with it; --force "
            "(force=True) replaces it"
        )
    if recorded is None:
        return False
    what, here, there = "released file", recorded.source_sha256, record.source_sha256
    if here == there:
        if recorded.converter != record.converter:
            return False  # an older conversion, of no use to this isanet
        if released.read_cached(weights) is not None:
            return True
        if recorded.file_sha256 == record.file_sha256:
            return False
        what, here, there = "converted file", recorded.file_sha256, record.file_sha256
    raise IntegrityError(
        f"the {what} of {weights.name} had sha256 {here} when it was recorded here on {recorded.date}, and the archive "
        f"has {there}; find out which is right, and if it is the archive's, --force (force=True) replaces what is here"
    )


def _read_model(stream: BinaryIO, name: str, entry: Entry) -> File:
    data = np.empty(entry.size, dtype=np.uint8)
    try:
        stream.seek(entry.start)
        count = stream.readinto(data)  # type: ignore[attr-defined]
    except OSError as error:
        raise CheckpointFormatError(f"it cannot be read: {error.strerror}; copy it again") from error
    if count != entry.size:
        raise CheckpointFormatError("it became shorter while it was read; try again when nothing writes to it")
    return File(f"the file of {name} in it", data, sha256(data.data).hexdigest())


def _read_at(stream: BinaryIO, start: int, length: int) -> bytes:
    stream.seek(start)
    return stream.read(length)
