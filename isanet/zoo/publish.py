"""For maintainers: hashes into the manifest, and a small model into the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from isanet._files import atomic_write_all, output_errors, write_output
from isanet.config import config_json
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.weights import checkpoint
from isanet.weights.cache import Record
from isanet.weights.manifest import Weights, load_manifest, manifest_path, packaged_path, parse_manifest
from isanet.zoo.networks import meta_model

MAX_PACKAGED_BYTES = 3_000_000
"""Largest file of a model that travels inside the package: everybody who installs it downloads them all."""

NOT_ARCHITECTURE = {"classes", "palette", "label_space", "preprocessing", "gradient_checkpointing", "protocol"}
"""Arguments of `isanet.ISANet` that an entry of the manifest keeps elsewhere, or not at all."""


def pin(records: Mapping[str, Record], manifest: Path, hub: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write what is known of released models and backbones, by name, into a manifest.

    Args:
        records: Their records, which have the hashes and sizes of the released files.
        manifest: The weights.json to change.
        hub: Where their converted files are on the Hugging Face Hub, as of `Weights.hub`; those of others stay.

    Raises:
        ManifestError: The manifest is malformed; it is unchanged.
        ValueError: It has no such model.
        OutputError: It cannot be written.
    """
    load_manifest(manifest)  # an error in it is named
    document = json.loads(manifest.read_text(encoding="utf-8"))
    for name, record in records.items():
        entry = document["weights"].get(name) or document["backbones"].get(name)
        if entry is None:
            raise ValueError(f"{manifest} has no model {name!r}")
        entry.update(sha256=record.source_sha256, size=record.source_size)
        if hub and name in hub:
            entry.update(hub=dict(hub[name]))
    write_output(manifest, _manifest_text(document, manifest))


def package_model(
    model: ISANet, name: str, *, gmacs: float, metrics: Mapping[str, Any], recipe: Mapping[str, Any], license: str
) -> Weights:
    """Put a small model into the package: its file, in float16, and its manifest entry, which is returned.

    The numbers in `metrics` should be those of the file: measure `model.half().float()`, which rounds to the same.

    Args:
        model: With the classes and colors of a label space of `isanet.labels.LABEL_SPACES`, and its preprocessing.
        name: Its name in the zoo; an entry and a file of the same name are replaced.
        gmacs: By `isanet.tools.flops.image_gmacs`.
        metrics: As of `isanet.Weights`, and so `recipe` and `license`.
        recipe: How it was trained.
        license: Of the weights and the training data.

    Raises:
        ValueError: The file would be larger than `MAX_PACKAGED_BYTES`, or the model has other classes.
        CheckpointMismatchError: A value is not finite, or too large for float16.
        ManifestError: The entry is not what the manifest takes; manifest and package are unchanged.
        OutputError: The package cannot be written.
    """
    space = LABEL_SPACES.get(model.label_space or "")
    if space is None or (model.classes, model.palette) != (space.classes, space.palette):
        raise ValueError(f"{name} must have the classes and colors of a label space: {', '.join(LABEL_SPACES)}")
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    checkpoint.fit_state_dict(state, meta_model(model.config).state_dict())
    data = checkpoint.serialize(state, {**model.provenance, "config": config_json(model.config)})
    if len(data) > MAX_PACKAGED_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes; a packaged model has at most {MAX_PACKAGED_BYTES:,}")
    manifest = manifest_path()
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["weights"][name] = {
        "family": "isanet",
        "architecture": {key: value for key, value in model.config.items() if key not in NOT_ARCHITECTURE},
        "label_space": space.name,
        "preprocessing": model.preprocessing,
        "layout": "isanet",
        "packaged": True,
        "urls": [],
        "file_name": None,
        "pages": [],
        "log_urls": [],
        "sha256_prefix": None,
        "sha256": sha256(data).hexdigest(),
        "size": len(data),
        "hub": None,
        "tensors": len(state),
        "payload": sum(value.nbytes for value in state.values()),
        "parameters": sum(value.numel() for value in model.parameters()),
        "gmacs": round(gmacs, 1),
        "metrics": dict(metrics),
        "recipe": dict(recipe),
        "license": license,
        "commercial": True,
        "notes": "",
        "paper": "https://arxiv.org/abs/1907.12273",
    }
    path, text = packaged_path(name), _manifest_text(document, manifest)
    with output_errors(path):
        atomic_write_all([(path, data), (manifest, text)])
    return load_manifest()[name]


def _manifest_text(document: Mapping[str, Any], manifest: Path) -> bytes:
    """The bytes of a manifest, if it is well-formed."""
    text = (json.dumps(document, indent=1) + "\n").encode()
    parse_manifest(text, manifest)
    return text
