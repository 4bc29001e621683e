"""A released checkpoint on its way: manifest entry, cached file or download, verification, conversion, cache.

Models and backbones to start from go the same way; packaged models have their file in the package and need no other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isanet
from isanet._files import atomic_write
from isanet.backbone import ResNet
from isanet.config import BACKBONES
from isanet.errors import (
    CacheError,
    CheckpointFormatError,
    CheckpointMismatchError,
    IntegrityError,
    IsanetError,
    MirrorsExhaustedError,
)
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.weights import cache, checkpoint, convert, download
from isanet.weights.manifest import (
    Backbone,
    Released,
    Weights,
    load_manifest,
    manifest_path,
    packaged_path,
    parse_manifest,
)
from isanet.weights.torchfile import File

MAX_PACKAGED_BYTES = 3_000_000
"""Largest file of a model that travels inside the package: everybody who installs it downloads them all."""

Loaded = tuple[nn.Module, dict[str, str]]
"""The network with its weights, in evaluation mode, and where they came from."""

log = logging.getLogger("isanet")


def load_cached(weights: Released, *, progress: bool | None = None, keep: bool = False, force: bool = False) -> Loaded:
    """What was released: from the cache, verified, or fetched, verified and converted.

    A packaged model is read from the package and verified; no cache is needed or written.

    Args:
        weights: Which model or backbone.
        progress: Show a progress bar; None shows it on a terminal and in a notebook.
        keep: Leave the released file in the cache too, under its own name.
        force: Fetch it again even if it is cached.
    """
    if weights.packaged:
        return _read_packaged(weights)
    cached = None if force else read_cached(weights)
    if cached is None:
        with cache.lock(weights.name):
            cached = None if force else read_cached(weights)  # another process may have been first
            if cached is None:
                cached = _obtain(weights, progress=progress, keep=keep, force=force)
    return cached


def verify(weights: Released) -> cache.Record | None:
    """Compare a cached file with its record and the manifest, byte by byte and tensor by tensor.

    Returns:
        The record; None of a packaged model, whose file in the package was compared with the manifest.

    Raises:
        CacheError: It is not cached.
        IntegrityError: The file is not what was recorded, or not what the manifest says.
        CheckpointError: Its tensors do not fit the model, or the file of a packaged one cannot be read.
    """
    if weights.packaged:
        _read_packaged(weights)
        return None
    record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
    if record is None or path is None:
        raise CacheError(
            f"{weights.name} is not cached in {cache.home()}; fetch it with `isanet download {weights.name}`"
        )
    _verified(weights, record, path, values=True)
    return record


def pin(records: Mapping[str, cache.Record], manifest: Path) -> None:
    """Write the hashes and sizes that were measured into a manifest, for its maintainers to commit.

    Raises:
        ManifestError: The manifest is malformed, or has no such model; it is unchanged then.
    """
    load_manifest(manifest)  # an error in it is named
    document = json.loads(manifest.read_text(encoding="utf-8"))
    for name, record in records.items():
        entry = document["weights"].get(name) or document["backbones"].get(name)
        if entry is None:
            raise ValueError(f"{manifest} has no model {name!r}")
        entry.update(sha256=record.source_sha256, size=record.source_size)
    _write_manifest(document, manifest)


def package_model(
    model: ISANet, name: str, *, metrics: Mapping[str, Any], recipe: Mapping[str, Any], license: str
) -> Weights:
    """Put a small model into the package: its file, in float16, and its entry in the manifest of this checkout.

    The figures in `metrics` should be those of the file: measure `model.half().float()`, which rounds to the same.

    Args:
        model: In the classes of a label space of `isanet.labels.LABEL_SPACES`, with its preprocessing. Unchanged.
        name: Its name in the zoo; an entry and a file of the same name are replaced.
        metrics: As of `isanet.Weights`.
        recipe: As of `isanet.Weights`.
        license: As of `isanet.Weights`.

    Returns:
        The entry.

    Raises:
        ValueError: The file would be larger than `MAX_PACKAGED_BYTES`, or the model has classes of its own.
        CheckpointMismatchError: A value is not finite, or too large for float16.
        ManifestError: The entry is not what the manifest takes; manifest and package are unchanged.
    """
    space = LABEL_SPACES.get(model.label_space or "")
    if space is None or (model.classes, model.palette) != (space.classes, space.palette):
        raise ValueError(f"{name} must have the classes and colors of a label space: {', '.join(LABEL_SPACES)}")
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    checkpoint.fit_state_dict(state, meta_model(model.config).state_dict())
    data = checkpoint.serialize(state, {**model.provenance, "config": json.dumps(model.config)})
    if len(data) > MAX_PACKAGED_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes; a packaged model has at most {MAX_PACKAGED_BYTES:,}")
    of_classes = ("classes", "palette", "label_space", "preprocessing", "gradient_checkpointing")
    manifest = manifest_path()
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["weights"][name] = {
        "architecture": {key: value for key, value in model.config.items() if key not in of_classes},
        "label_space": space.name,
        "preprocessing": model.preprocessing,
        "layout": "isanet",
        "packaged": True,
        "urls": [],
        "log_urls": [],
        "sha256": sha256(data).hexdigest(),
        "size": len(data),
        "tensors": len(state),
        "payload": sum(value.nbytes for value in state.values()),
        "parameters": sum(value.numel() for value in model.parameters()),
        "metrics": dict(metrics),
        "recipe": dict(recipe),
        "license": license,
        "paper": "https://arxiv.org/abs/1907.12273",
    }
    with atomic_write(packaged_path(name)) as file:
        file.write(data)
        _write_manifest(document, manifest)
    return load_manifest()[name]


def _write_manifest(document: Mapping[str, Any], manifest: Path) -> None:
    """Replace a manifest, if the new one is well-formed."""
    text = (json.dumps(document, indent=1) + "\n").encode()
    parse_manifest(text, manifest)
    with atomic_write(manifest) as file:
        file.write(text)


def _read_packaged(weights: Released) -> Loaded:
    """A model inside the package, verified."""
    path = packaged_path(weights.name)
    try:
        file = checkpoint.read_file(path)
    except OSError as error:
        raise CheckpointFormatError(
            f"cannot read {path}: {error.strerror}; {weights.name} travels inside the package: install isanet again"
        ) from error
    try:
        network = _convert(weights, file, weights.sha256)
    except IsanetError as error:
        raise type(error)(f"{error}; it was changed or damaged: install isanet again") from error
    return network, _provenance(weights, f"{path.name}, inside the package", file)


def _verified(weights: Released, record: cache.Record, path: Path, *, values: bool) -> Loaded:
    with ThreadPoolExecutor(max_workers=1) as pool:  # while the file is read and hashed
        network = pool.submit(_network, weights)
        file = checkpoint.read_file(path)
    return verified_file(weights, record, file, values=values, network=network.result())


def verified_file(
    weights: Released, record: cache.Record, file: File, *, values: bool, network: nn.Module | None = None
) -> Loaded:
    """What a converted file holds, compared with its record and the manifest.

    Args:
        weights: What it is said to be.
        record: Its record.
        file: The converted file.
        values: Also look at every value: finite, and variances not negative.
        network: To be filled; built if left out.

    Raises:
        IntegrityError: The file is not what was recorded, or not what the manifest says.
        CheckpointError: It cannot be read, or its tensors do not fit.
    """
    if not record.source_sha256.startswith(weights.known_digits):
        raise IntegrityError(
            f"{file.name} was made from a file with sha256 {record.source_sha256}; "
            f"the manifest says {weights.known_digits}"
        )
    if file.sha256 != record.file_sha256:
        raise IntegrityError(
            f"{file.name} has sha256 {file.sha256}, but {record.file_sha256} was recorded: it was changed or damaged"
        )
    tensors, metadata = checkpoint.read_safetensors(file)
    return _filled(network or _network(weights), tensors, values=values), provenance_in(metadata)


def read_cached(weights: Released) -> Loaded | None:
    """What was released without fetching anything, verified; None where it is not cached or not usable.

    A packaged model is always there; errors are those of `load_cached`.
    """
    if weights.packaged:
        return _read_packaged(weights)
    record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
    if record is None or path is None or record.converter != convert.CONVERTER_VERSION:
        return None
    try:
        return _verified(weights, record, path, values=False)
    except FileNotFoundError:  # replaced since the record was read
        return None
    except (IsanetError, OSError) as error:
        log.warning("the cached %s cannot be used and is made again: %s", weights.name, error)
        return None


def _obtain(weights: Released, *, progress: bool | None, keep: bool, force: bool) -> Loaded:
    """Get the released file, check and convert it, and cache the result; the caller holds the lock."""
    folder = cache.home()
    record = cache.read_record(weights.name)
    expected = weights.sha256 or (record.source_sha256 if record is not None else None)
    for name in () if force else weights.file_names:  # put there by hand, or kept from an earlier download
        path = folder / name
        if not path.is_file():
            continue
        try:
            file = checkpoint.read_file(path)
            with checkpoint.errors_mention(file):
                state = _convert(weights, file, expected)
            return _store(weights, state, f"{name}, put into the cache by hand", file, expected)
        except (IsanetError, OSError) as error:
            if download.offline():
                raise
            log.warning("%s cannot be used, so it is fetched: %s", path, error)
    cache.sweep()
    found: list[tuple[File, nn.Module]] = []

    def check(path: Path) -> None:
        file = checkpoint.read_file(path)
        found[:] = [(file, _convert(weights, file, expected))]

    try:
        fetched = download.fetch(
            weights.urls,
            folder,
            sha256=expected,
            size=weights.size,
            max_size=3 * weights.payload + (64 << 20),  # with the optimizer's state a file has about twice the payload
            check=check,
            progress=progress,
        )
    except (IntegrityError, MirrorsExhaustedError) as error:
        if expected is None or weights.sha256 is not None:
            raise
        raise type(error)(
            f"{error}\nsha256 {expected} was recorded when {weights.name} was first fetched; if upstream has published "
            f"a new file since, `isanet cache clear {weights.name} --forget` trusts it anew"
        ) from error
    try:
        (file, network) = found[0]
        if file.sha256 != fetched.sha256:
            raise IntegrityError(
                f"{fetched.path} changed between download and reading; something else writes to {folder}"
            )
        result = _store(weights, network, fetched.url, file, expected)
        if keep:
            fetched.path.chmod((folder / f"{weights.name}.json").stat().st_mode)  # it was private so far
            fetched.path.replace(folder / weights.file_names[0])
        return result
    finally:
        fetched.path.unlink(missing_ok=True)


def _convert(weights: Released, file: File, expected: str | None) -> nn.Module:
    """The network with the tensors of a released file, if they are exactly those that the manifest promises."""
    if not file.sha256.startswith(digits := expected or weights.known_digits):
        raise IntegrityError(f"{file.name} has sha256 {file.sha256}, expected {digits}{'...' * (len(digits) < 64)}")
    state = convert.unwrap(checkpoint.read_checkpoint(file)[0])
    if isinstance(weights, Backbone):
        converted = convert.convert_backbone(state, weights.layout)
    else:
        layout = convert.detect_layout(state)
        if layout != weights.layout:
            raise CheckpointMismatchError(f"{file.name} has {layout}'s layout, expected {weights.layout}'s")
        converted = convert.convert(state, layout)
    payload = sum(tensor.numel() * tensor.element_size() for tensor in converted.values())
    network = _filled(_network(weights), converted)
    if len(converted) != weights.tensors or payload != weights.payload:
        raise IntegrityError(
            f"{file.name} has {len(converted)} tensors of {payload:,} bytes, "
            f"expected {weights.tensors} of {weights.payload:,}"
        )
    return network


def _provenance(weights: Released, source: str, file: File) -> dict[str, str]:
    return {
        "name": weights.name,
        "source": source,
        "source_sha256": file.sha256,
        "layout": weights.layout,
        "converter_version": str(convert.CONVERTER_VERSION),
        "isanet_version": isanet.__version__,
    }


def _store(weights: Released, network: nn.Module, source: str, file: File, expected: str | None) -> Loaded:
    folder = cache.home()
    provenance, state = _provenance(weights, source, file), network.state_dict()
    config = {"config": json.dumps(network.config)} if isinstance(network, ISANet) else {}
    data = checkpoint.serialize(state, {**provenance, **config})
    digest = sha256(data).hexdigest()
    record = cache.Record(
        file=f"{weights.name}-{digest[:8]}.safetensors",
        file_sha256=digest,
        source=source,
        source_sha256=file.sha256,
        source_size=len(file.data),
        layout=weights.layout,
        converter=convert.CONVERTER_VERSION,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        with atomic_write(folder / record.file) as stream:
            stream.write(data)
        cache.write_record(weights.name, record)
    except OSError as error:
        raise cache.unwritable(folder, error, len(data)) from error
    if expected is None:
        log.warning(
            "first copy of %s: nobody has published its %s, so sha256 %s is recorded; later copies must match",
            weights.name,
            "hash beyond 8 digits" if weights.known_digits else "hash",
            file.sha256,
        )
    network.load_state_dict(checkpoint.release_file_buffer(state, file), assign=True)
    return network, provenance


def _network(weights: Released) -> nn.Module:
    """The network that the tensors are of, without memory for them."""
    if isinstance(weights, Backbone):
        with torch.device("meta"):
            return ResNet(BACKBONES[weights.backbone])
    return meta_model(model_config(weights))


def _filled(network: nn.Module, tensors: Mapping[str, Tensor], *, values: bool = True) -> nn.Module:
    """The network with these tensors, if they fit; nothing is drawn at random first, and they are not copied."""
    network.load_state_dict(checkpoint.fit_state_dict(tensors, network.state_dict(), values=values), assign=True)
    return network.eval()


def model_config(weights: Weights) -> dict[str, Any]:
    """The arguments of `ISANet` for one released model."""
    space = LABEL_SPACES[weights.label_space]
    return {
        **weights.architecture,
        "classes": list(space.classes),
        "palette": [list(color) for color in space.palette],
        "label_space": space.name,
        "preprocessing": dict(weights.preprocessing),
    }


def meta_model(config: Mapping[str, Any]) -> ISANet:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return ISANet(**config)


def provenance_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a converted file's metadata says of where it came from."""
    return {key: value for key, value in metadata.items() if key not in ("format", "config")}
