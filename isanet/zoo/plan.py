"""What is to be done for a released model: from what is known and what lies in the cache folder, to steps."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from isanet.weights import cache
from isanet.weights.cache import Record
from isanet.weights.manifest import Released
from isanet.weights.url import hub_url


@dataclass(frozen=True)
class LoadPackaged:
    """Load the file inside the package."""


@dataclass(frozen=True)
class LoadCached:
    """Load the converted file in the cache."""

    record: Record


@dataclass(frozen=True)
class ConvertFile:
    """Convert a released file in the cache folder: put there by hand, or kept from an earlier download."""

    name: str
    expected: str | None


@dataclass(frozen=True)
class Fetch:
    """Fetch the file from the first of these addresses that has it, and convert it; on the Hub it is converted."""

    urls: tuple[str, ...]
    expected: str | None


Step = LoadPackaged | LoadCached | ConvertFile | Fetch


def plan(
    weights: Released, record: Record | None, present: Container[str], *, force: bool = False, keep: bool = False
) -> list[Step]:
    """What is to be done for a network: the steps in order, until one succeeds. Reads, fetches and writes nothing.

    Args:
        weights: The model or backbone.
        record: What the cache has recorded of it.
        present: Names of the files in the cache folder.
        force: Fetch it even if it is there.
        keep: The released file itself is wanted, which is not on the Hub.
    """
    if weights.packaged:
        return [LoadPackaged()]
    expected = weights.sha256 or (record.source_sha256 if record is not None else None)
    steps: list[Step] = []
    if not force and record is not None and record.converter == cache.CONVERTER_VERSION and record.file in present:
        steps.append(LoadCached(record))
    if not (force and weights.urls):  # what only a person can fetch is converted again
        steps += [ConvertFile(name, expected) for name in weights.file_names if name in present]
    # The Hub first: what comes from there is smaller, and needs no conversion
    converted = (hub_address(weights),) if weights.hub and not keep else ()
    return [*steps, Fetch((*converted, *weights.urls), expected)]


def hub_address(weights: Released) -> str:
    """The address of the converted file on the Hugging Face Hub; empty if it was not published there."""
    return hub_url(weights.hub["repo"], weights.hub["revision"]) if weights.hub else ""
