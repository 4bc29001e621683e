"""From a released checkpoint to a network: manifest entry, cached file or download, verification, conversion.

First `plan` decides what is to be done, from what is known and what lies in the cache folder; here the steps are taken
in turn until one succeeds. Models and the backbones to start from go the same way; a packaged model is read from the
package, and no cache is needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from torch import nn

from isanet._files import atomic_write
from isanet._version import __version__
from isanet.config import config_json
from isanet.errors import (
    CacheError,
    CheckpointFormatError,
    CheckpointMismatchError,
    IntegrityError,
    IsanetError,
    MirrorsExhaustedError,
)
from isanet.model import ISANet
from isanet.weights import cache, checkpoint, convert, download
from isanet.weights.cache import Record
from isanet.weights.manifest import Backbone, Released, Weights, packaged_path
from isanet.weights.pickles import File
from isanet.zoo.networks import fill, meta_network
from isanet.zoo.plan import ConvertFile, Fetch, LoadCached, LoadPackaged, Step, hub_address, plan

MAX_TEXT = 1000
"""Most characters of a text in a record or in metadata."""

log = logging.getLogger("isanet")


class Loaded(NamedTuple):
    """A network with its weights, in evaluation mode, and where they came from."""

    network: nn.Module
    provenance: dict[str, str]


def load(weights: Released, *, progress: bool | None = None, keep: bool = False, force: bool = False) -> Loaded:
    """A released model or backbone, verified: from the package, from the cache, or fetched, converted and cached.

    Args:
        weights: Which one.
        progress: Show a progress bar; None shows it on a terminal and in a notebook.
        keep: Leave the released file in the cache too, under its own name.
        force: Fetch it again even if it is cached.

    Raises:
        DownloadError: It could not be fetched; each subclass is one reason.
        IntegrityError: The bytes of the only address, or of the file in the package, are not the expected ones.
        CacheError: The cache cannot be used.
        CheckpointError: The file is not a checkpoint, is unsafe, or does not fit.
    """
    if (weights.packaged or not force) and (loaded := read_cached(weights)):  # a read-only cache cannot be locked
        return loaded
    with cache.lock(weights.name):
        for step in _plan_now(weights, force=force, keep=keep):  # planned again: another process may have been first
            if loaded := _take(weights, step, progress=progress, keep=keep):
                return loaded
    raise AssertionError("the last step returns a network or raises")


def _plan_now(weights: Released, *, force: bool = False, keep: bool = False) -> list[Step]:
    """The plan for the cache as it is."""
    record, folder = cache.read_record(weights.name), cache.home()
    names = (*weights.file_names, *([record.file] if record is not None else []))
    return plan(weights, record, {name for name in names if (folder / name).is_file()}, force=force, keep=keep)


def read_cached(weights: Released) -> Loaded | None:
    """As `load`, but nothing is fetched or written; None if there is no usable cached file.

    Raises:
        CheckpointError: A packaged model's file cannot be read or does not fit.
        IntegrityError: A packaged model's file is not the one that the manifest describes.
    """
    first = _plan_now(weights)[0]
    return _take(weights, first) if isinstance(first, LoadPackaged | LoadCached) else None


def _take(weights: Released, step: Step, *, progress: bool | None = None, keep: bool = False) -> Loaded | None:
    """Take one step; None if it failed and the next one may do better."""
    match step:
        case LoadPackaged():
            return _load_packaged(weights)
        case LoadCached(record):
            try:
                return _load_cached(weights, record)
            except FileNotFoundError:  # replaced since the record was read
                pass
            except (IsanetError, OSError) as error:
                log.warning("the cached %s cannot be used and will be replaced: %s", weights.name, error)
            return None
        case ConvertFile(name, expected):
            path = cache.home() / name
            try:
                file = checkpoint.read_file(path)
                with checkpoint.errors_mention(file):
                    network = _convert(weights, file, expected)
                return _store(weights, network, f"{name}, put into the cache by hand", file, expected)
            except (IsanetError, OSError) as error:
                if download.offline() or not (weights.hub or download.addresses(weights.urls, weights.file_names)):
                    raise
                log.warning("%s cannot be used, so it is fetched: %s", path, error)
            return None
        case Fetch():
            return _fetch(weights, step, progress=progress, keep=keep)


def _load_packaged(weights: Released) -> Loaded:
    path = packaged_path(weights.name)
    try:
        file = checkpoint.read_file(path)
    except OSError as error:
        raise CheckpointFormatError(
            f"cannot read {path}: {error.strerror}; {weights.name} is part of the package: install isanet again"
        ) from error
    try:
        network = _convert(weights, file, weights.sha256)
    except IsanetError as error:
        raise type(error)(f"{error}; it was changed or damaged: install isanet again") from error
    return Loaded(network, _provenance(weights, f"{path.name}, inside the package", file.sha256))


def _load_cached(weights: Released, record: Record) -> Loaded:
    with ThreadPoolExecutor(max_workers=1) as pool:  # while the file is read and hashed
        network = pool.submit(meta_network, weights)
        file = checkpoint.read_file(cache.home() / record.file, by_blake3=bool(record.file_blake3))
    return load_converted(weights, record, file, values=False, network=network.result())


def load_converted(
    weights: Released, record: Record, file: File, *, values: bool, network: nn.Module | None = None
) -> Loaded:
    """What a converted file holds, after comparing it with its record and the manifest.

    Args:
        weights: The model or backbone that it should be.
        record: Its record.
        file: The converted file.
        values: Also look at every value: finite, and variances not negative.
        network: The one to fill, on the meta device; built if left out.

    Raises:
        IntegrityError: The file is not what was recorded, or not what the manifest says.
        CheckpointError: It cannot be read, or its tensors do not fit.
    """
    if not record.source_sha256.startswith(weights.known_digits):
        raise IntegrityError(
            f"{file.name} was made from a file with sha256 {record.source_sha256}; "
            f"the manifest says {weights.known_digits}"
        )
    hashes = [("sha256", file.sha256, record.file_sha256), ("blake3", file.blake3, record.file_blake3)]
    known = [each for each in hashes if all(each)]
    assert known, "the file is hashed in a way that its record has"
    for kind, found, recorded in known:
        if found != recorded:
            raise IntegrityError(
                f"{file.name} has {kind} {found}, but {recorded} was recorded: it was changed or damaged"
            )
    tensors, metadata = checkpoint.read_safetensors(file)
    return Loaded(fill(network or meta_network(weights), tensors, values=values), recorded_provenance(metadata))


def load_foreign(weights: Released, record: Record, file: File) -> Loaded:
    """As `load_converted`, of a file that another machine has converted: its metadata must agree with the record too.

    Raises:
        IntegrityError: The file or its metadata is not what the record says, or not what the manifest says.
        CheckpointError: It cannot be read, or its tensors do not fit.
    """
    loaded = load_converted(weights, record, file, values=True)
    found, expected = loaded.provenance, _provenance(weights, "", record.source_sha256)
    printable = all(text.isprintable() and len(text) <= MAX_TEXT for text in found.values())
    if found.keys() - expected.keys() or not printable:
        raise IntegrityError(f"the metadata of {file.name} is not as isanet writes it")
    if not found.get("source") or any(
        found.get(key) != value for key, value in expected.items() if key not in ("source", "isanet_version")
    ):
        raise IntegrityError(f"the metadata of {file.name} names another origin or converter than its record")
    return loaded


def verify(weights: Released) -> Record | None:
    """Compare a cached file with its record and the manifest, byte by byte and tensor by tensor.

    Returns:
        The record; None for a packaged model, whose file in the package was compared with the manifest.

    Raises:
        CacheError: It is not cached, or its file cannot be read.
        IntegrityError: The file is not what was recorded, or not what the manifest says.
        CheckpointError: Its tensors do not fit the model, or the file of a packaged one cannot be read.
    """
    if weights.packaged:
        _load_packaged(weights)
        return None
    return read_verified(weights)[0]


def read_verified(weights: Released) -> tuple[Record, File]:
    """The record and the converted file of a cached model, compared as by `verify`, with the same errors."""
    record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
    if record is None or path is None:
        raise CacheError(
            f"{weights.name} is not cached in {cache.home()}; fetch it with `isanet download {weights.name}`"
        )
    try:
        file = checkpoint.read_file(path)
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}") from error
    file = file._replace(blake3=blake3(file.data.data).hexdigest())
    load_converted(weights, record, file, values=True)
    return record, file


def _fetch(weights: Released, step: Fetch, *, progress: bool | None, keep: bool) -> Loaded:
    """Get the released file, check and convert it, and cache the result; the caller holds the lock."""
    folder, expected = cache.home(), step.expected
    cache.sweep()
    name = weights.file_names[0]
    failures = download.Failures(weights.name, name, folder, state=_state(weights), pages=weights.pages)
    deadline = download.deadline_from_now()
    for url in download.addresses(step.urls, weights.file_names):
        converted = weights.hub if url == hub_address(weights) else None
        with (
            failures.of(url),
            download.fetch(
                url,
                folder,
                sha256=converted["sha256"] if converted else expected,
                size=converted["size"] if converted else weights.size,
                max_size=3 * weights.payload + (64 << 20),  # with the optimizer's state about twice the payload
                deadline=deadline,
                progress=progress,
            ) as fetched,
        ):
            file = _read_fetched(fetched)
            if converted:
                return _store_converted(weights, fetched.url, file)
            loaded = _store(weights, _convert(weights, file, expected), fetched.url, file, expected)
            if keep:
                _keep(weights, fetched, folder / name)
            return loaded
    failure = failures.error()
    if expected and not weights.sha256 and isinstance(failure, IntegrityError | MirrorsExhaustedError):
        raise type(failure)(
            f"{failure}\nsha256 {expected} was recorded when {weights.name} was first fetched; if upstream has "
            f"published a new file since, `isanet cache clear {weights.name} --forget` makes isanet accept it"
        ) from failure
    raise failure


def _state(weights: Released) -> str:
    """Why a network cannot be loaded from the cache, for the message offline."""
    if cache.cached_file(weights.name):
        return "is cached, but its file is damaged"
    if (record := cache.read_record(weights.name)) and record.converter != cache.CONVERTER_VERSION:
        return f"is cached only as another version of isanet converts it ({record.converter})"
    return "is not cached"


def _keep(weights: Released, fetched: download.Fetched, target: Path) -> None:
    """Leave a released file, of which the model is cached, in the cache folder."""
    try:
        if os.chmod in os.supports_fd:  # it was private so far
            os.chmod(fetched.file.fileno(), cache.record_path(weights.name).stat().st_mode)  # noqa: PTH101
        fetched.file.close()  # Windows renames no open file
        fetched.path.replace(target)
    except OSError as error:
        raise CacheError(
            f"{weights.name} is cached, but its released file cannot be kept as {target}: {error.strerror}"
        ) from error


def _read_fetched(fetched: download.Fetched) -> File:
    try:
        file = checkpoint.read_open_file(fetched.file, fetched.path)
    except OSError as error:
        raise CacheError(f"cannot read {fetched.path}, which has just been fetched: {error.strerror}") from error
    if file.sha256 != fetched.sha256:
        raise IntegrityError(f"{fetched.path} changed since it was fetched; something else writes to that folder")
    return file


def _convert(weights: Released, file: File, expected: str | None) -> nn.Module:
    """The network with the tensors of a released file, if they are exactly those that the manifest promises."""
    if not file.sha256.startswith(digits := expected or weights.known_digits):
        raise IntegrityError(f"{file.name} has sha256 {file.sha256}, expected {digits}{'...' * (len(digits) < 64)}")
    state = convert.unwrap(checkpoint.read_checkpoint(file)[0])
    if isinstance(weights, Backbone):
        counted = converted = convert.convert_backbone(state, weights.layout)
    else:
        layout = convert.detect_layout(state)
        if layout != weights.layout:
            raise CheckpointMismatchError(f"{file.name} has {layout}'s layout, expected {weights.layout}'s")
        counted, converted = state, convert.convert(state, layout)  # which adds batch norms' counters if it has none
    payload = sum(tensor.nbytes for tensor in counted.values())
    network = fill(meta_network(weights), converted)
    if len(counted) != weights.tensors or payload != weights.payload:
        raise IntegrityError(
            f"{file.name} has {len(counted)} tensors of {payload:,} bytes, "
            f"expected {weights.tensors} of {weights.payload:,}"
        )
    return network


def _store(weights: Released, network: nn.Module, source: str, file: File, expected: str | None) -> Loaded:
    """Write the converted file and its record into the cache."""
    provenance, state = _provenance(weights, source, file.sha256), network.state_dict()
    config = {"config": config_json(network.config)} if isinstance(network, ISANet) else {}
    data = checkpoint.serialize(state, {**provenance, **config})
    _cache_converted(weights, _record(weights, sha256(data).hexdigest(), source, file.sha256, len(file.data)), data)
    if expected is None:
        log.warning(
            "first copy of %s: nobody has published its %s, so its sha256, %s, is recorded; later copies must match",
            weights.name,
            "hash beyond 8 digits" if weights.known_digits else "hash",
            file.sha256,
        )
    network.load_state_dict(checkpoint.release_file_buffer(state, file), assign=True)
    return Loaded(network, provenance)


def _store_converted(weights: Released, url: str, file: File) -> Loaded:
    """Write a converted file, as it came from the Hub, and its record into the cache."""
    assert weights.sha256
    assert weights.size  # the manifest has both where it has a place on the Hub
    record = _record(weights, file.sha256, url, weights.sha256, weights.size)
    with checkpoint.errors_mention(file):
        loaded = load_foreign(weights, record, file)
    source = f"{loaded.provenance['source']} (by {url})"
    _cache_converted(weights, replace(record, source=source), file.data.data)
    return loaded


def _record(weights: Released, file_sha256: str, source: str, source_sha256: str, source_size: int) -> Record:
    """The record of a file that is converted as this version of the converter does."""
    return Record(
        file=cache.converted_name(weights.name, file_sha256),
        file_sha256=file_sha256,
        source=source,
        source_sha256=source_sha256,
        source_size=source_size,
        layout=weights.layout,
        converter=cache.CONVERTER_VERSION,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cache_converted(weights: Released, record: Record, data: bytes | memoryview) -> None:
    warn_of_license(weights)
    folder = cache.home()
    try:
        with atomic_write(folder / record.file) as stream:
            stream.write(data)
        cache.write_record(weights.name, replace(record, file_blake3=blake3(data).hexdigest()))
    except OSError as error:
        raise cache.write_error(folder, error, len(data)) from error


def warn_of_license(weights: Released) -> None:
    """Log a warning if a model's license does not allow commercial use."""
    if isinstance(weights, Weights) and not weights.commercial:
        log.warning("the weights of %s are not for commercial use: %s", weights.name, weights.license)


def _provenance(weights: Released, source: str, source_sha256: str) -> dict[str, str]:
    return {
        "name": weights.name,
        "source": source,
        "source_sha256": source_sha256,
        "layout": weights.layout,
        "converter_version": str(cache.CONVERTER_VERSION),
        "isanet_version": __version__,
    }


def recorded_provenance(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a converted file's metadata says of where its tensors came from."""
    return {key: value for key, value in metadata.items() if key not in ("format", "config")}
