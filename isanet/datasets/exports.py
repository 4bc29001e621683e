"""What the readers of labelling tools' exports share: what they return, how images are found, checked values.

Everything in an export is untrusted: the sizes of files are bounded before they are read, paths stay inside the
folder, and what cannot be used is a `DatasetError` that names file and value.
"""

from __future__ import annotations

import base64
import json
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from isanet._text import listed, shortened
from isanet.datasets.listing import read_lines, walk
from isanet.datasets.shapes import Layer
from isanet.errors import DatasetError
from isanet.images.masks import Color
from isanet.images.reading import SUFFIXES
from isanet.labels import IGNORED

MAX_JSON = 1 << 30
"""Bytes of a JSON file; COCO's largest has less than half as many."""

MAX_BITMAP = 1 << 26
"""Bytes of one bitmap after unpacking, as PNG."""

_HEAD = 1 << 16
"""Bytes at either end of a JSON file by which its format is recognized."""


class Annotated(NamedTuple):
    """One image of an export.

    `size` is (height, width) as the annotations have it, or None; `source` the file that they are in.
    """

    image: Path
    source: Path
    layers: list[Layer]
    split: str | None = None
    size: tuple[int, int] | None = None


@dataclass
class Export:
    """What a reader found.

    Attributes:
        root: The folder.
        classes: Colors of the classes by name, in order; None: the export has no color for it.
        samples: By key, the path of the image below the root without its suffix.
        ignored: Indices of classes that are ignored.
        skipped: Number of shapes without an area, by their kind.
        images: All images, of which those that are not in `samples` are not annotated.
        whole: Masks cover the whole image, so that "background" is a value in them, and not what no shape covers.
    """

    root: Path
    classes: dict[str, Color | None] = field(default_factory=dict)
    samples: dict[str, Annotated] = field(default_factory=dict)
    ignored: set[int] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    images: list[Path] = field(default_factory=list)
    whole: bool = False

    def index(self, name: Any) -> int:
        """The index of a class, which is added if it is new."""
        self.classes.setdefault(class_name(name), None)
        if len(self.classes) > IGNORED:
            raise DatasetError(
                f"{self.root} has more than {IGNORED} classes, which an 8-bit mask cannot hold; merge some"
            )
        return list(self.classes).index(class_name(name))

    def add(self, sample: Annotated) -> None:
        """Adds a sample; an image that is there already is an error."""
        key = sample.image.relative_to(self.root).with_suffix("").as_posix()
        key = unicodedata.normalize("NFC", key)
        if key in self.samples:
            raise DatasetError(
                f"{sample.source} annotates {sample.image}, and so does {self.samples[key].source}; keep one of them"
            )
        self.samples[key] = sample


class Images:
    """The images below a folder, found by the paths and names that an export gives.

    Args:
        root: The folder.
        apart_from: Names of folders in it that are not searched.
    """

    def __init__(self, root: Path, apart_from: Container[str] = ()) -> None:
        self.root = root
        self.by_name: dict[str, list[Path]] = {}
        for path in files_below(root, apart_from):
            if path.suffix.lower() in SUFFIXES:
                self.by_name.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)

    @property
    def all(self) -> list[Path]:
        """All of them, sorted."""
        return sorted(path for paths in self.by_name.values() for path in paths)

    def find(self, name: Any, beside: Path, source: Path) -> Path:
        """The image that `source` calls `name`.

        As a path from `beside` or from the root, else the only one whose path ends so, else the only one of its name.

        Raises:
            DatasetError: There is none, or there are several; or the path leads out of the root.
        """
        if not isinstance(name, str) or not 0 < len(name) <= 4096 or not PureWindowsPath(name).name.strip("."):
            raise DatasetError(f"{source}: {str(name)[:60]!r} is no name of an image")
        parts = [part for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/") if part != "."]
        if PureWindowsPath(name).anchor:  # the disk of whoever labelled it; only the name says something
            parts = parts[-1:]
        named = self.by_name.get(parts[-1], [])
        if ".." in parts and not _inside(os.path.normpath(beside.joinpath(*parts)), self.root):
            raise DatasetError(f"{source}: the image {name[:200]!r} is outside {self.root}; put it into that folder")
        for start in (beside, self.root):
            if (path := Path(os.path.normpath(start.joinpath(*parts)))) in named:
                return path
        found = [path for path in named if path.parts[-len(parts) :] == tuple(parts)] or named
        if len(found) == 1:
            return found[0]
        raise DatasetError(
            f"{source}: the image {name[:200]!r} may be {listed(found, 3)}; keep one, or give its path"
            if found
            else f"{source}: there is no image {parts[-1]!r} below {self.root}; export with the images, or put it there"
        )


def _inside(path: str, root: Path) -> bool:
    return Path(path).is_relative_to(os.path.normpath(root))


# --- checked values


def class_name(name: Any) -> str:
    """The name of a class, on one line.

    Raises:
        ValueError: It is no text, or empty.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{str(name)[:60]!r} is no name of a class")
    return shortened(name, 200)


def hex_color(text: Any) -> Color | None:
    """`#rrggbb`; None if it is nothing of the kind."""
    if isinstance(text, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:], 16)
    return None


def color_of(values: Any) -> Color | None:
    """Three numbers, or `#rrggbb`; None if it is nothing of the kind."""
    if isinstance(values, Sequence) and len(values) == 3 and all(type(v) is int and 0 <= v <= 255 for v in values):
        return values[0], values[1], values[2]
    return hex_color(values)


def split_name(text: str) -> str | None:
    """The split that the name of a file or a folder says: "train", "val" or "test"."""
    word = re.search(r"(?<![a-z])(train|val|test)(id|idation|ing)?(?![a-z])", text.lower())
    return word[1] if word else None


def split_of(path: Path, root: Path) -> str | None:
    """The split that the path of an annotation file names, in its own name or the folders above it."""
    parts = [path.stem, *reversed(path.relative_to(root).parts[:-1])]
    return next((found for part in parts if (found := split_name(part))), None)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DatasetError: It is too large, no JSON, or nested too deeply.
    """
    try:
        if not path.is_file():
            raise DatasetError(f"{path} is not a regular file")
        if (size := path.stat().st_size) > MAX_JSON:
            raise DatasetError(f"{path} has {size:,} bytes, more than the limit of {MAX_JSON:,}; split it")
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DatasetError(f"{path} cannot be read as JSON ({reason}); export it again") from error


@contextmanager
def naming(place: object) -> Iterator[None]:
    """Whatever is of the wrong kind in untrusted JSON becomes a DatasetError that names the place."""
    try:
        yield
    except DatasetError:
        raise
    except KeyError as error:
        raise DatasetError(f"{place}: {error} is missing; export it again") from error
    except (ValueError, TypeError, AttributeError, OverflowError, IndexError, zlib.error) as error:
        raise DatasetError(f"{place}: {error}") from error


def files_below(root: Path, apart_from: Container[str] = ()) -> Iterator[Path]:
    """The files below a folder, except in folders of these names; links that lead to one folder again are skipped."""
    seen: set[Path] = set()
    for folder, folders, names in walk(root):
        if (real := folder.resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in apart_from)
        yield from (folder / name for name in sorted(names))


def json_files(root: Path) -> list[Path]:
    """The JSON files below a folder, sorted."""
    return sorted(path for path in files_below(root) if path.suffix.lower() == ".json")


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width), or None if one is not given."""
    if height is None or width is None:
        return None
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ValueError(f"the size {str(width)[:20]}x{str(height)[:20]} is none")
    return height, width


def marked(root: Path, *marks: bytes) -> list[Path]:
    """The JSON files that have one of these texts near their beginning or end."""
    found = []
    for path in filter(Path.is_file, json_files(root)):  # opening a pipe would wait for its writer
        try:
            with path.open("rb") as file:
                text = file.read(_HEAD)
                file.seek(-min(_HEAD, path.stat().st_size), os.SEEK_END)
                text += file.read(_HEAD)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error}") from error
        if any(mark in text for mark in marks):
            found.append(path)
    return found


def decoded(text: Any) -> bytes:
    """The bytes that a text in base64 stands for."""
    if not isinstance(text, str) or len(text) > MAX_BITMAP:
        raise ValueError("its bitmap is no text, or too long")
    return base64.b64decode(text.encode())


def read_labelmap(path: Path) -> Iterator[tuple[str, Color]]:
    """Names and colors in CVAT's `labelmap.txt`: lines `label:red,green,blue:parts:actions`.

    Raises:
        DatasetError: A line has another form.
    """
    for number, text in read_lines(path):
        if text.startswith("#"):
            continue
        with naming(f"line {number} of {path}"):
            name, colors = text.split(":")[:2] if text.count(":") >= 1 else ("", "")
            color = color_of([int(part) for part in colors.split(",") if part.strip().isdecimal()])
            if color is None:
                raise ValueError(f"{text[:60]!r} is not label:red,green,blue:parts:actions")
            yield class_name(name), color
