"""Where a file on the disk came from: what it says of itself, and what that can be compared with here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from isanet._text import clean, plural
from isanet.errors import CheckpointFormatError, IntegrityError
from isanet.model import ISANet
from isanet.weights import cache, checkpoint
from isanet.weights.manifest import load_manifest, load_released
from isanet.zoo import pretrained as zoo
from isanet.zoo import released

LONGEST = 200
"""Characters shown of what a file says: it may say anything."""


class Origin(NamedTuple):
    """What is known of a file.

    Attributes:
        path: The file; `model.safetensors` of a folder.
        sha256: Its hash.
        size: Its size in bytes.
        said: What its metadata says of where it came from, in one printable line each; empty where it says nothing.
            Anybody can write that.
        compared: What was found by comparing with the manifest, the cache and the package; empty where there was
            nothing to compare with.
    """

    path: Path
    sha256: str
    size: int
    said: dict[str, str]
    compared: list[str]


def origin(path: Path) -> Origin:
    """Explain where a model's folder or file came from. It is read in full and must be a model that loads.

    Raises:
        CheckpointError: It cannot be read, or is not a model.
        IntegrityError: It says that it came from a released file whose known hash is another.
    """
    place = path / "model.safetensors" if path.is_dir() else path
    try:
        file = checkpoint.read_file(place)
    except OSError as error:
        raise CheckpointFormatError(f"cannot read {place}: {error.strerror}") from error
    said = released.provenance_in(checkpoint.read_checkpoint(file)[1])
    compared = _same_file(file.sha256)
    if path.is_dir() or not compared:  # else the file is known, and may be a backbone, which is no model by itself
        model = zoo.load_file(file, path / "config.json" if path.is_dir() else None)
        compared = (compared or _same_source(place, said) + _same_tensors(said, model)) + _other_config(said, model)
    shown = {clean(key)[:LONGEST]: clean(value)[:LONGEST] for key, value in said.items()}
    return Origin(place, file.sha256, len(file.data), shown, compared)


def _same_file(sha256: str) -> list[str]:
    """Whether a file is, byte for byte, one that is known by its hash."""
    found = []
    for weights in load_released().values():
        record = cache.read_record(weights.name)
        if weights.sha256 == sha256:
            where = "in the package" if weights.packaged else "as the manifest says"
            found.append(f"it is, byte for byte, the released file of {weights.name} ({where})")
        elif record is not None and sha256 == record.source_sha256:
            found.append(
                f"it is, byte for byte, the released file of {weights.name} that was recorded on {record.date}"
            )
        elif record is not None and sha256 == record.file_sha256:
            found.append(f"it is, byte for byte, the file of {weights.name} in the cache, from {record.source}")
    return found


def _same_source(place: Path, said: Mapping[str, str]) -> list[str]:
    """Whether the released file that a file says it was made from is the known one."""
    name, claimed = said.get("name"), said.get("source_sha256")
    weights = next((each for each in load_released().values() if each.name == name), None)
    if weights is None or claimed is None:
        return []
    record = cache.read_record(weights.name)
    known, where = (weights.sha256, "the manifest says") if weights.sha256 else (None, "")
    if known is None and record is not None:
        known, where = record.source_sha256, f"was recorded here on {record.date}"
    if known is None:
        return [f"nothing is recorded here of the released file of {name}, so its hash cannot be compared"]
    if claimed != known:
        raise IntegrityError(
            f"{place} says that it was made from a file of {name} with sha256 {clean(claimed)[:64]}; {known} {where}"
        )
    return [f"the sha256 of the released file of {name} that it names is the one that {where}"]


def _same_tensors(said: Mapping[str, str], model: ISANet) -> list[str]:
    """Whether its tensors are those of the model that a file says it is, where that is cached or in the package."""
    weights = load_manifest().get(said.get("name", ""))
    cached = None if weights is None else released.read_cached(weights)
    if weights is None or cached is None:
        return []
    ours, theirs = model.state_dict(), cached[0].state_dict()
    other = sorted(ours.keys() ^ theirs.keys())
    other += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    if not other:
        return [f"all its tensors are those of {weights.name} as verified here"]
    shown = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
    return [f"{plural(len(other), 'tensor')} of {len(ours):,} are not those of {weights.name}: {shown}; it was "
            "trained further, has other classes, or was changed"]  # fmt: skip


def _other_config(said: Mapping[str, str], model: ISANet) -> list[str]:
    """In what the configuration of a model is not that of the one that its file says it is: tensors do not show it."""
    weights = load_manifest().get(said.get("name", ""))
    if weights is None:
        return []
    expected = released.model_config(weights)
    other = sorted(key for key, value in expected.items() if model.config[key] != value)
    return [f"its configuration is not that of {weights.name}: {', '.join(other)}"] if other else []
