"""The manifest, weights.json: every released model, and every pretrained backbone to start from.

A manifest may be another's or damaged, so all of it is checked; each content is checked once per process. Standard
library only, so that `isanet list` answers at once.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from isanet.config import check_preprocessing
from isanet.errors import ManifestError
from isanet.protocols import PROTOCOLS
from isanet.weights.url import file_name

SCHEMA = 2
"""Version of weights.json's schema that this code reads."""

PACKAGE = Path(__file__).parents[1]
"""The folder of the package; packaged models are under assets/."""


@dataclass(frozen=True, kw_only=True)
class ReleasedFile:
    """A file that somebody has published, and the tensors in it.

    Attributes:
        name: Its name in the manifest and in the cache.
        layout: Layout of the tensors' names in the file: a key of `isanet.weights.convert.LAYOUTS` or
            `BACKBONE_LAYOUTS`; "isanet" for our own.
        urls: Its addresses, in the order in which they are tried.
        sha256_prefix: First 8 hexadecimal digits of its sha256, or None if they have not been published. They reveal
            damage; 32 bits are too few against forgery.
        sha256: Its hash, or None if none has been published.
        size: Its size in bytes, or None.
        tensors: Number of tensors that are kept of it, batch norm's counters included.
        payload: Bytes of those tensors. The file is a little larger, or about twice as large with the optimizer's
            state.
        license: License of the weights, and of the training data.
    """

    name: str
    layout: str
    urls: tuple[str, ...]
    sha256_prefix: str | None
    sha256: str | None
    size: int | None
    tensors: int
    payload: int
    license: str

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names by which the file is known in the cache folder and on a mirror; kept under the first."""
        return tuple(dict.fromkeys(map(file_name, self.urls)))

    @property
    def known_digits(self) -> str:
        """The published leading hexadecimal digits of the file's sha256: all 64, 8 or none."""
        return self.sha256 or self.sha256_prefix or ""


@dataclass(frozen=True, kw_only=True)
class Weights(ReleasedFile):
    """One released model, as weights.json describes it: a released file, and what is known of the model in it.

    >>> weights = isanet.model_info("isanet_r101_cityscapes")
    >>> weights.label_space, weights.metrics["miou"]
    ('cityscapes19', 0.8058)

    Attributes:
        family: Who published it: "sssegmentation", "mmsegmentation", "paddleseg", "openseg" or "bpkd"; "isanet" for our
            own.
        architecture: Arguments of `isanet.ISANet` that shape the network; those that are left out have their default.
        label_space: Its classes: a key of `isanet.labels.LABEL_SPACES`.
        preprocessing: Arguments of `isanet.images.preprocess.preprocess`.
        packaged: Whether its file is in the package: `assets/<name>.safetensors`, in our own layout. Then there are no
            `urls`, `sha256` and `size` are known, and floating-point tensors may be float16.
        file_name: The name by which the file is known here, where the names in its addresses are those of other files
            too, or where it has no addresses; None elsewhere.
        pages: Addresses that only a person can open, each with a `note` on what is there; the first page is that of
            the file where there are no `urls`.
        log_urls: Addresses of the training log; some only open in a browser.
        hub: Where the converted file, in our own layout, is on the Hugging Face Hub: `repo`, `revision` (the commit),
            and the `sha256` and `size` of its model.safetensors. The hash of the released file is then known too. None
            if it was not published there.
        parameters: Number of parameters, auxiliary head included.
        gmacs: Billions of multiply-adds for one typical image of its dataset, by `isanet.tools.flops.image_gmacs`.
        metrics: `dataset`, `split`, `miou` (0..1) and the `protocol` by which it was measured, a key of
            `isanet.protocols.PROTOCOLS`; perhaps `macc`, the mean accuracy; `others`, published mIoUs by the names of
            their protocols; and `subsets`, the mIoU of parts of the split by name.
        recipe: How it was trained.
        commercial: Whether the license of the weights themselves allows commercial use; that of the data may not.
        notes: What else is to be known of it; may be empty.
        paper: Address of the paper.
    """

    family: str
    architecture: Mapping[str, Any]
    label_space: str
    preprocessing: Mapping[str, Any]
    packaged: bool
    file_name: str | None
    pages: tuple[Mapping[str, str], ...]
    log_urls: tuple[str, ...]
    hub: Mapping[str, Any] | None
    parameters: int
    gmacs: float
    metrics: Mapping[str, Any]
    recipe: Mapping[str, Any]
    commercial: bool
    notes: str
    paper: str

    @property
    def file_names(self) -> tuple[str, ...]:  # noqa: D102  inherited
        return (self.file_name,) if self.file_name else super().file_names


@dataclass(frozen=True, kw_only=True)
class Backbone(ReleasedFile):
    """A backbone pretrained on ImageNet, as weights.json describes it; its file also has ImageNet's classifier.

    Attributes:
        backbone: The network: a key of `isanet.config.BACKBONES`, of width 64.
    """

    backbone: str
    packaged: ClassVar[bool] = False
    pages: ClassVar[tuple[Mapping[str, str], ...]] = ()
    hub: ClassVar[None] = None


Released = Weights | Backbone
"""A model or a backbone: what is fetched, verified, converted and cached."""


def manifest_path() -> Path:
    """The path of weights.json: inside an installed package, or at the top of a checkout."""
    installed = PACKAGE / "weights.json"
    return installed if installed.exists() else PACKAGE.parent / "weights.json"


def packaged_path(name: str) -> Path:
    """The path of a packaged model's file."""
    return PACKAGE / "assets" / f"{name}.safetensors"


def load_manifest(path: Path | None = None) -> dict[str, Weights]:
    """All released models by name.

    Args:
        path: A manifest other than the package's own.

    Raises:
        ManifestError: The file is missing or malformed; the message names the place.
    """
    return _load(path)[0]


def load_backbones(path: Path | None = None) -> dict[str, Backbone]:
    """All pretrained backbones by name; arguments and errors as of `load_manifest`."""
    return _load(path)[1]


def load_released() -> dict[str, Released]:
    """The models of the zoo and the pretrained backbones, by name."""
    weights, backbones = _load(None)
    return {**weights, **backbones}


def _load(path: Path | None) -> tuple[dict[str, Weights], dict[str, Backbone]]:
    path = manifest_path() if path is None else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror}; install isanet again") from error
    return copy.deepcopy(parse_manifest(text, path))  # its dictionaries can be changed


@lru_cache(maxsize=4)
def parse_manifest(text: bytes, path: Path) -> tuple[dict[str, Weights], dict[str, Backbone]]:
    """The models and the backbones in a manifest, checked; parsed once for each text, so don't change them.

    Args:
        text: The content of the file.
        path: The file, for messages.

    Raises:
        ManifestError: It is malformed; the message names the place.
    """
    try:
        return _parse(json.loads(text.decode(), object_pairs_hook=_no_duplicates))
    except ManifestError as error:
        raise ManifestError(f"{path}: {str(error)[:1000]}") from error  # a value may be of any length
    except RecursionError as error:
        raise ManifestError(f"{path} is nested too deeply") from error
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ManifestError(f"{path} is not JSON: {error}") from error


def list_models(pattern: str = "*") -> list[str]:
    """Names of the released models.

    >>> isanet.list_models("*_voc")
    ['isanet_r50_voc', 'isanet_r101_voc']

    Args:
        pattern: Filter by glob pattern: `*`, `?` and `[...]`.
    """
    return [name for name in load_manifest() if fnmatchcase(name, pattern)]


def model_info(name: str) -> Weights:
    """The manifest's entry of one released model.

    >>> isanet.model_info("isanet_r50_voc").label_space
    'voc21'

    Raises:
        ValueError: There is no model of that name; the message lists the nearest names.
    """
    manifest = load_manifest()
    if name not in manifest:
        raise ValueError(unknown_model(name))
    return manifest[name]


def unknown_model(name: str) -> str:
    """The message for a name that is not in the zoo."""
    near = get_close_matches(name, load_manifest(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`isanet list` shows all"
    return f"no model {name!r} in the zoo; {hint}"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ManifestError(f"the key {key!r} appears twice in one object")
        result[key] = value
    return result


def _parse(document: Any) -> tuple[dict[str, Weights], dict[str, Backbone]]:
    if not isinstance(document, dict) or "schema" not in document:
        raise ManifestError("expected an object with the keys 'schema', 'weights' and 'backbones'")
    schema = document["schema"]  # first of all, because a newer one may have other keys
    if type(schema) is not int or schema != SCHEMA:
        raise ManifestError(f"schema: expected {SCHEMA}, got {schema!r}; another version of isanet may read it")
    if set(document) != {"schema", "weights", "backbones"}:
        raise ManifestError(f"expected exactly the keys 'schema', 'weights' and 'backbones', got {sorted(document)}")
    if wrong := [key for key in ("weights", "backbones") if not isinstance(document[key], dict)]:
        raise ManifestError(f"{wrong[0]}: expected an object of entries by name")
    weights = {name: Weights(**_entry(name, entry, Weights)) for name, entry in document["weights"].items()}
    backbones = {name: Backbone(**_entry(name, entry, Backbone)) for name, entry in document["backbones"].items()}
    if both := sorted(set(weights) & set(backbones)):  # they share the cache
        raise ManifestError(f"{both[0]!r} is the name of a model and of a backbone")
    _check_files(weights, backbones)
    return weights, backbones


def _check_files(weights: Mapping[str, Weights], backbones: Mapping[str, Backbone]) -> None:
    """Check what several fields say together of the released files."""
    for model in weights.values():
        if model.packaged and (model.urls or None in (model.sha256, model.size) or model.layout != "isanet"):
            raise ManifestError(f"{model.name}.packaged: expected no urls, a sha256, a size and the layout 'isanet'")
        if not (model.packaged or model.urls or (model.pages and model.file_name)):
            raise ManifestError(f"{model.name}.urls: expected one, or a page and a file_name; it is not packaged")
        if model.hub and (model.packaged or None in (model.sha256, model.size)):
            raise ManifestError(f"{model.name}.hub: expected a sha256 and a size too, and that it is not packaged")
    for name, backbone in backbones.items():
        digits = backbone.sha256_prefix
        if digits is None:
            raise ManifestError(f"{name}.sha256_prefix: expected 8 lower-case hexadecimal digits")
        if not backbone.urls or not all(file.endswith(f"-{digits}.pth") for file in backbone.file_names):
            raise ManifestError(f"{name}.urls: expected at least one, of files whose names end in -{digits}.pth")
    owners: dict[str, str] = {}
    for released in (*weights.values(), *backbones.values()):
        if not released.known_digits.startswith(released.sha256_prefix or ""):
            raise ManifestError(f"{released.name}.sha256: expected one that starts with {released.sha256_prefix}")
        for file in released.file_names:  # all lie in one folder
            if (owner := owners.setdefault(file, released.name)) != released.name:
                raise ManifestError(f"{released.name}.file_name: expected one that is not {owner}'s too: {file!r}")


def _entry(name: str, entry: Any, kind: type[ReleasedFile]) -> dict[str, Any]:
    """The checked values of an entry."""
    if len(name) > 100 or not re.fullmatch(r"[a-z0-9][a-z0-9_]*(\.[a-z][a-z0-9_]*)?", name):
        raise ManifestError(f"a name has lower-case letters, digits and '_', and one '.' at most, got {name!r}")
    expected = {field.name for field in fields(kind)} - {"name"}
    if not isinstance(entry, dict):
        raise ManifestError(f"{name}: expected an object, got {entry!r}")
    if unknown := sorted(set(entry) - expected):
        raise ManifestError(f"{name}: unknown field {unknown[0]!r}")
    if missing := sorted(expected - set(entry)):
        raise ManifestError(f"{name}: missing field {missing[0]!r}")
    for field, value in entry.items():
        is_valid, description = CHECKS[field]
        if not (_is_finite(value) and is_valid(value)):
            raise ManifestError(f"{name}.{field}: expected {description}, got {value!r}")
    return {"name": name, **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}}


# --- what each field must be


def _is_finite(value: Any) -> bool:
    """Whether it has no NaN and no infinity, which Python's JSON allows and the standard does not."""
    if isinstance(value, float):
        return math.isfinite(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(_is_finite, inside))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _matches(value: Any, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?"


def _is_url(value: Any) -> bool:
    return _matches(value, rf"https://{_HOST}/([A-Za-z0-9._~%+-]+/)*[A-Za-z0-9_][A-Za-z0-9._-]*")


def _is_page_url(value: Any) -> bool:
    return _matches(value, rf"https://{_HOST}/[A-Za-z0-9._~%+/-]*(\?[A-Za-z0-9._~%+/=&-]*)?")


def _are(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_page(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"url", "note"}
        and _is_page_url(value["url"])
        and _is_text(value["note"])
    )


def _is_hub(value: Any) -> bool:
    word = "[A-Za-z0-9][A-Za-z0-9._-]*"
    return (
        isinstance(value, dict)
        and set(value) == {"repo", "revision", "sha256", "size"}
        and _matches(value["repo"], f"{word}/{word}")
        and _matches(value["revision"], "[0-9a-f]{40}")
        and _matches(value["sha256"], "[0-9a-f]{64}")
        and _is_positive(value["size"])
    )


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_metrics(value: Any) -> bool:
    required, optional = {"dataset", "split", "miou", "protocol"}, {"macc", "others", "subsets"}
    if not isinstance(value, dict) or not required <= set(value) <= required | optional:
        return False
    groups = [value.get("others", {}), value.get("subsets", {})]
    if not all(isinstance(group, dict) for group in groups):
        return False
    texts, shares = (value["dataset"], value["split"]), [value["miou"], value.get("macc", 0.0)]
    shares += [share for group in groups for share in group.values()]
    named = all(isinstance(name, str) and name in PROTOCOLS for name in (value["protocol"], *groups[0]))
    return named and all(map(_is_text, texts)) and all(isinstance(x, float) and 0 <= x <= 1 for x in shares)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architecture": (
        lambda v: isinstance(v, dict) and _is_positive(v.get("num_classes")) and _is_text(v.get("backbone")),
        "an object with at least 'backbone' and 'num_classes'",
    ),
    "label_space": (_is_text, "the name of a label space"),
    "preprocessing": (
        lambda v: not check_preprocessing(v),
        "arguments of isanet.images.preprocess.preprocess, as isanet.config.check_preprocessing takes them",
    ),
    "family": (lambda v: _matches(v, "[a-z0-9]+"), "a word in lower-case letters"),
    "layout": (_is_text, "the name of a layout"),
    "packaged": (lambda v: isinstance(v, bool), "true or false"),
    "backbone": (_is_text, "the name of a network"),
    "urls": (_are(_is_url), "a list of https addresses, without user, query, fragment or odd file names"),
    "file_name": (
        lambda v: v is None or _matches(v, r"[A-Za-z0-9_][A-Za-z0-9._-]*\.(pth|pdparams)"),
        "a name that ends in .pth or .pdparams, or null",
    ),
    "pages": (_are(_is_page), "a list of objects with 'url', an https address, and 'note', a text"),
    "log_urls": (_are(_is_page_url), "a list of https addresses"),
    "sha256_prefix": (
        lambda v: v is None or _matches(v, "[0-9a-f]{8}"),
        "8 lower-case hexadecimal digits, or null",
    ),
    "sha256": (lambda v: v is None or _matches(v, "[0-9a-f]{64}"), "64 lower-case hexadecimal digits, or null"),
    "size": (lambda v: v is None or _is_positive(v), "a number of bytes, or null"),
    "hub": (
        lambda v: v is None or _is_hub(v),
        "an object with 'repo' (org/name), 'revision' (40 hexadecimal digits), 'sha256' and 'size', or null",
    ),
    "tensors": (_is_positive, "a positive whole number"),
    "payload": (_is_positive, "a number of bytes"),
    "parameters": (_is_positive, "a positive whole number"),
    "gmacs": (lambda v: isinstance(v, float) and v > 0, "a positive number with a decimal point"),
    "metrics": (
        _is_metrics,
        "texts 'dataset' and 'split', the name of a 'protocol', and 'miou' from 0 to 1; perhaps 'macc', and mIoUs: "
        "'others' by protocol, 'subsets' by name",
    ),
    "recipe": (lambda v: isinstance(v, dict), "an object of finite values"),
    "license": (_is_text, "a text"),
    "commercial": (lambda v: isinstance(v, bool), "true or false"),
    "notes": (lambda v: isinstance(v, str), "a text, which may be empty"),
    "paper": (_is_url, "an https address"),
}
"""What each field of an entry must be: a predicate, and its description for messages."""
