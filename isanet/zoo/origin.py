"""Where a file on the disk came from: what its metadata claims, and what that can be compared with here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from isanet._text import clean, listed, plural, shortened
from isanet.config import ISANetConfig
from isanet.errors import IntegrityError
from isanet.model import ISANet
from isanet.weights import cache, checkpoint
from isanet.weights.manifest import load_manifest, load_released
from isanet.zoo import released
from isanet.zoo.networks import model_config
from isanet.zoo.pretrained import load_file, read_file

MAX_SHOWN = 200
"""Characters shown of a claim, which may be of any length."""


class Origin(NamedTuple):
    """Where a file came from.

    Attributes:
        sha256: Its hash.
        size: Its size in bytes.
        claims: What its metadata says about its origin, cleaned; anybody can write that.
        findings: What comparing it with the manifest, the cache and the package has shown.
    """

    sha256: str
    size: int
    claims: dict[str, str]
    findings: list[str]


def origin(path: Path) -> Origin:
    """Explain where a model folder or file came from. It is read in full and must be a model that loads.

    Raises:
        CheckpointError: It cannot be read, or is not a model.
        IntegrityError: It claims to come from a released file whose known hash is another.
    """
    file = read_file(path / "model.safetensors" if path.is_dir() else path)
    claims = released.recorded_provenance(checkpoint.read_checkpoint(file)[1])
    findings = _same_file(file.sha256)
    if path.is_dir() or not findings:  # else the file is known, and may be a backbone, which is no model by itself
        model = load_file(file, path / "config.json" if path.is_dir() else None)
        findings = findings or _same_source(file.name, claims) + _same_tensors(claims, model)
        findings += _other_config(claims, model)
    shown = {shortened(key, MAX_SHOWN): shortened(value, MAX_SHOWN) for key, value in claims.items()}
    return Origin(file.sha256, len(file.data), shown, findings)


def _same_file(sha256: str) -> list[str]:
    """What a file is byte for byte, if its hash is known."""
    found = []
    for weights in load_released().values():
        record = cache.read_record(weights.name)
        if weights.sha256 == sha256:
            where = "in the package" if weights.packaged else "as the manifest says"
            found.append(f"it is byte for byte the released file of {weights.name} ({where})")
        elif record is not None and sha256 == record.source_sha256:
            found.append(f"it is byte for byte the released file of {weights.name} that was recorded on {record.date}")
        elif record is not None and sha256 == record.file_sha256:
            found.append(f"it is byte for byte the cached file of {weights.name}, from {record.source}")
    return found


def _same_source(place: str, claims: Mapping[str, str]) -> list[str]:
    """Whether the released file that it claims to be made from is the known one."""
    name, claimed = claims.get("name", ""), claims.get("source_sha256")
    weights = load_released().get(name)
    if weights is None or claimed is None:
        return []
    record = cache.read_record(weights.name)
    known, where = (weights.sha256, "the manifest says") if weights.sha256 else (None, "")
    if known is None and record is not None:
        known, where = record.source_sha256, f"was recorded here on {record.date}"
    if known is None:
        return [f"no hash of the released file of {name} is recorded here, so there is nothing to compare with"]
    if claimed != known:
        raise IntegrityError(
            f"{place} claims to be made from a file of {name} with sha256 {clean(claimed)[:64]}; {known} {where}"
        )
    return [f"the sha256 that it gives for the released file of {name} is the one that {where}"]


def _same_tensors(claims: Mapping[str, str], model: ISANet) -> list[str]:
    """Whether its tensors are those of the model that it claims to be, where that is cached or in the package."""
    weights = load_manifest().get(claims.get("name", ""))
    cached = None if weights is None else released.read_cached(weights)
    if weights is None or cached is None:
        return []
    ours, theirs = model.state_dict(), cached.network.state_dict()
    other = sorted(ours.keys() ^ theirs.keys())
    other += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    if not other:
        return [f"all its tensors are those of {weights.name} as verified here"]
    return [
        f"{plural(len(other), 'tensor')} of {len(ours):,} are not those of {weights.name}: {listed(other, 3)}; it was "
        "trained further, has other classes, or was changed"
    ]


def _other_config(claims: Mapping[str, str], model: ISANet) -> list[str]:
    """How its configuration, which tensors do not show, differs from that of the model that it claims to be."""
    weights = load_manifest().get(claims.get("name", ""))
    if weights is None:
        return []
    expected = ISANetConfig(**model_config(weights)).to_dict()
    keys = (expected.keys() | model.config.keys()) - {"gradient_checkpointing"}  # which is of training alone
    other = sorted(key for key in keys if model.config.get(key) != expected.get(key))
    return [f"its configuration is not that of {weights.name}: {', '.join(other)}"] if other else []
