"""The manifest: what weights.json says of each released model, read strictly.

Standard library only, so that `isanet list` answers at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from isanet.errors import ManifestError
from isanet.protocols import PROTOCOLS

SCHEMA = 1
"""Version of the layout of weights.json that this code reads."""


@dataclass(frozen=True)
class Weights:
    """One released model, as weights.json describes it.

    Attributes:
        name: Its name in the zoo.
        architecture: Arguments of `isanet.ISANet` that shape the network.
        label_space: What its classes are: a key of `isanet.labels.LABEL_SPACES`.
        preprocessing: Arguments of `isanet.preprocess.preprocess`.
        layout: Whose key names the released file has, a key of `isanet.convert.LAYOUTS`.
        urls: Addresses of the released file, in the order in which they are tried.
        log_urls: Addresses of the training log.
        sha256: Hash of the released file, or None where nobody has published one yet.
        size: Its size in bytes, or None.
        tensors: Number of tensors of the model.
        payload: Bytes of those tensors; the file is a little larger, or about twice that with the optimizer's state.
        parameters: Number of trained values, auxiliary head included.
        metrics: `dataset`, `split`, `miou` (a fraction) and the `protocol` by which it was measured, a key of
            `isanet.protocols.PROTOCOLS`.
        recipe: How it was trained.
        licence: Terms of the weights, and of the data behind them.
        paper: Address of the paper.
    """

    name: str
    architecture: Mapping[str, Any]
    label_space: str
    preprocessing: Mapping[str, Any]
    layout: str
    urls: tuple[str, ...]
    log_urls: tuple[str, ...]
    sha256: str | None
    size: int | None
    tensors: int
    payload: int
    parameters: int
    metrics: Mapping[str, Any]
    recipe: Mapping[str, Any]
    licence: str
    paper: str

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names under which the released file is published."""
        return tuple(dict.fromkeys(_file_name(url) for url in self.urls))


def manifest_path() -> Path:
    """Where weights.json is: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "weights.json"
    return installed if installed.exists() else package.parent / "weights.json"


def load_manifest(path: Path | None = None) -> dict[str, Weights]:
    """All released models by name.

    Args:
        path: A manifest other than the package's own.

    Raises:
        ManifestError: The file is missing or malformed; the message names the place.
    """
    path = manifest_path() if path is None else path
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates))
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror}; install isanet again") from error
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ManifestError(f"{path} is nested too deeply") from error
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ManifestError(f"{path} is not JSON: {error}") from error


def list_models(pattern: str = "*") -> list[str]:
    """Names of the released models.

    Args:
        pattern: Only names that fit, with the wildcards `*`, `?` and `[...]`.
    """
    return [name for name in load_manifest() if fnmatchcase(name, pattern)]


def model_info(name: str) -> Weights:
    """What the manifest says of one released model.

    Raises:
        ValueError: There is no model of that name; the message lists the nearest.
    """
    manifest = load_manifest()
    if name not in manifest:
        raise ValueError(unknown_model(name))
    return manifest[name]


def unknown_model(name: str) -> str:
    """A message for a name that is not in the zoo."""
    names = list(load_manifest())
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"no model {name!r} in the zoo; " + (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ManifestError(f"the key {key!r} appears twice in one object")
        result[key] = value
    return result


def _parse(document: Any) -> dict[str, Weights]:
    if not isinstance(document, dict) or "schema" not in document:
        raise ManifestError("expected an object with the keys 'schema' and 'weights'")
    schema = document["schema"]  # first of all, because a newer one may have other keys
    if type(schema) is not int or schema != SCHEMA:
        raise ManifestError(f"schema: expected {SCHEMA}, got {schema!r}; a newer isanet may read it")
    if set(document) != {"schema", "weights"}:
        raise ManifestError(f"expected exactly the keys 'schema' and 'weights', got {sorted(document)}")
    if not isinstance(document["weights"], dict):
        raise ManifestError("weights: expected an object of entries by name")
    return {name: _entry(name, entry) for name, entry in document["weights"].items()}


def _entry(name: str, entry: Any) -> Weights:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,99}", name):
        raise ManifestError(f"weights: a name is lower-case letters, digits and '_', got {name!r}")
    expected = {field.name for field in fields(Weights)} - {"name"}
    if not isinstance(entry, dict):
        raise ManifestError(f"{name}: expected an object, got {entry!r}")
    if unknown := sorted(set(entry) - expected):
        raise ManifestError(f"{name}: unknown field {unknown[0]!r}")
    if missing := sorted(expected - set(entry)):
        raise ManifestError(f"{name}: missing field {missing[0]!r}")
    for field, (fits, wanted) in CHECKS.items():
        if not (_is_finite(entry[field]) and fits(entry[field])):
            raise ManifestError(f"{name}.{field}: expected {wanted}, got {entry[field]!r}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Weights(name=name, **values)


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _is_address(value: Any) -> bool:
    host, folder, file = (
        r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?",
        r"[A-Za-z0-9._~%+-]+",
        r"[A-Za-z0-9_][A-Za-z0-9._-]*",
    )
    return isinstance(value, str) and re.fullmatch(f"https://{host}/({folder}/)*{file}", value) is not None


def _is_finite(value: Any) -> bool:
    """Whether there is no NaN and no infinity in it, which Python's JSON has and others' has not."""
    if isinstance(value, float):
        return math.isfinite(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_is_finite(part) for part in inside)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_metrics(value: Any) -> bool:
    keys = {"dataset", "split", "miou", "protocol"}
    if not isinstance(value, dict) or set(value) != keys:
        return False
    miou = value["miou"]
    texts = all(_is_text(value[key]) for key in keys - {"miou"})
    return texts and value["protocol"] in PROTOCOLS and isinstance(miou, float) and 0 <= miou <= 1


def _is_preprocessing(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"short_edge", "long_edge", "mean", "std"}:
        return False
    triples = all(
        isinstance(value[key], list) and len(value[key]) == 3 and all(type(x) in (int, float) for x in value[key])
        for key in ("mean", "std")
    )
    return triples and _is_positive(value["short_edge"]) and _is_positive(value["long_edge"]) and min(value["std"]) > 0


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architecture": (
        lambda v: isinstance(v, dict) and _is_positive(v.get("num_classes")) and _is_text(v.get("backbone")),
        "an object with at least 'backbone' and 'num_classes'",
    ),
    "label_space": (_is_text, "the name of a label space"),
    "preprocessing": (_is_preprocessing, "'short_edge', 'long_edge', and 'mean' and 'std' of three numbers each"),
    "layout": (_is_text, "the name of a layout"),
    "urls": (
        lambda v: isinstance(v, list) and len(v) > 0 and all(map(_is_address, v)),
        "a list of https addresses, without user, query, fragment or odd file names",
    ),
    "log_urls": (lambda v: isinstance(v, list) and all(map(_is_address, v)), "a list of https addresses"),
    "sha256": (
        lambda v: v is None or (isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None),
        "64 lower-case hexadecimal digits, or null",
    ),
    "size": (lambda v: v is None or _is_positive(v), "a number of bytes, or null"),
    "tensors": (_is_positive, "a positive whole number"),
    "payload": (_is_positive, "a number of bytes"),
    "parameters": (_is_positive, "a positive whole number"),
    "metrics": (_is_metrics, "texts 'dataset' and 'split', the name of a 'protocol', and 'miou' between 0 and 1"),
    "recipe": (lambda v: isinstance(v, dict), "an object of finite values"),
    "licence": (_is_text, "a text"),
    "paper": (_is_address, "an https address"),
}
"""What each field of an entry must be: a test, and the words for a message."""
