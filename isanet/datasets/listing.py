"""What lies in a dataset's folder: files by key, lists of keys, and pairs of an image and a mask.

A key is the path of a file in its folder without the ending, in the Unicode form NFC. Hidden files (`._name.png` of
macOS) are skipped. Links to folders are followed: large datasets often lie on another disk.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from isanet._files import given_path
from isanet._text import listed
from isanet.errors import DatasetError
from isanet.images.reading import SUFFIXES

PathLike = str | os.PathLike[str]


class FoundFiles(NamedTuple):
    """The files of one split.

    Attributes:
        images: Images by key.
        masks: Masks by key; None if the ground truth is not published.
        keys: Keys of the samples; None: all images, and every mask has one.
        name: From a key to the name of the sample.
        advice: For messages: what to do about a missing mask.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path] | None
    keys: Sequence[str] | None = None
    name: Callable[[str], str] = str
    advice: str = ""


class SampleFiles(NamedTuple):
    """The files of one sample."""

    name: str
    image: Path
    mask: Path | None


def existing_folder(path: PathLike) -> Path:
    """The path, "~" expanded, if it is a folder.

    Raises:
        DatasetError: It is not.
    """
    try:
        folder = given_path(path, DatasetError).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:  # a folder above may not be read; "~somebody" has no home
        raise DatasetError(f"{path} cannot be found: {error}") from error
    if not is_folder:
        reason = "is a file, not a folder: if it is an archive, unpack it" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {reason} (working folder: {Path.cwd()})")
    return folder


def has_folders(folder: Path, alternatives: Iterable[Iterable[str]]) -> bool:
    """Whether all folders of one alternative exist, and those with a leading "!" do not."""
    return any(
        all((folder / name.lstrip("!")).is_dir() != name.startswith("!") for name in names) for names in alternatives
    )


def contents(folder: Path) -> str:
    """For messages: what a folder holds."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be read: {error}"
    return f"{folder} holds: {listed(names)}" if names else "It is empty"


def files_by_key(folder: Path, *endings: str) -> dict[str, Path]:
    """The files below a folder whose names have one of the endings, sorted by key.

    Args:
        folder: Searched with its sub-folders, except hidden ones.
        endings: Compared without regard to case.

    Raises:
        DatasetError: The folder is missing or cannot be read, links lead to one folder twice, or two files have the
            same key.
    """
    if not folder.is_dir():
        above = next(parent for parent in folder.parents if parent.is_dir())
        raise DatasetError(f"there is no folder {folder}; {contents(above)}")
    found: dict[str, Path] = {}
    seen: dict[Path, Path] = {}  # links that lead to one folder twice, and again from there, would double the walk
    lower = tuple(ending.lower() for ending in endings)
    for place, _, names in walk(folder):
        below = place.relative_to(folder)
        if (earlier := seen.setdefault(place.resolve(), place)) is not place:
            raise DatasetError(f"{place} is the same folder as {earlier}, by a link; remove one of them")
        for name in names:
            ending = next((ending for ending in lower if name.lower().endswith(ending)), None)
            if ending is None:
                continue
            path = place / name
            key = unicodedata.normalize("NFC", (below / name).as_posix()[: -len(ending)])
            if key in found:
                raise DatasetError(
                    f"{found[key]} and {path} differ in nothing but the suffix or the encoding of accents; remove one "
                    "of them"
                )
            found[key] = path
    return dict(sorted(found.items()))


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` that follows links and skips hidden files and folders.

    Raises:
        DatasetError: The folder or one in it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(f"{folder} cannot be read: {error}") from error

    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield Path(place), folders, [name for name in names if not name.startswith(".")]


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the lines of a list, stripped, without a byte order mark and blank lines.

    Raises:
        DatasetError: The list is missing, not UTF-8 text, or empty.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise DatasetError(f"the list {path} is not a regular file")
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"there is no list {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the list {path} cannot be read ({error}); save it as UTF-8 text") from error
    texts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise DatasetError(f"the list {path} is empty")
    return texts


def read_keys(path: Path, *, columns: bool = False) -> list[str]:
    """The keys in a list.

    Args:
        path: See `read_lines`.
        columns: Allow a second column of -1, 0 or 1, as in VOC's lists of one class. It is ignored.

    Raises:
        DatasetError: As for `read_lines`; or a line has other columns, leads out of the dataset, or is repeated.
    """
    seen: dict[str, int] = {}
    for number, text in read_lines(path):
        entry = text
        if columns:
            entry, *rest = text.split()
            if rest and rest not in (["-1"], ["0"], ["1"]):
                raise DatasetError(f"line {number} of {path} is {text!r}; expected one name, without a path")
        entry = unicodedata.normalize("NFC", entry.replace("\\", "/"))  # lists made on Windows
        if PureWindowsPath(entry).anchor or ".." in entry.split("/"):  # a leading "/" is an anchor there too
            raise DatasetError(f"line {number} of {path} leads out of the dataset: {entry!r}")
        if entry in seen:
            raise DatasetError(f"line {number} of {path} repeats {entry!r} of line {seen[entry]}; remove one")
        seen[entry] = number
    return list(seen)


def pair_files(files: FoundFiles, dataset: str) -> list[SampleFiles]:
    """Pair images with their masks, in the order of the keys.

    Raises:
        DatasetError: There is no sample, one has no partner, or two have the same name.
    """
    images, masks = files.images, files.masks
    keys = images if files.keys is None else files.keys
    if not keys and not masks:
        raise DatasetError(f"{dataset} has no sample")
    _check_partners(dataset, keys, images, "image")
    if masks is not None:
        _check_partners(dataset, keys, masks, "mask", files.advice)
        if files.keys is None:
            _check_partners(dataset, masks, images, "image")
    samples: dict[str, SampleFiles] = {}
    for key in keys:
        sample = SampleFiles(files.name(key), images[key], None if masks is None else masks[key])
        if sample.name in samples:
            other = samples[sample.name].image
            raise DatasetError(f"{dataset} has {sample.name!r} twice: {other} and {sample.image}; remove one")
        samples[sample.name] = sample
    return list(samples.values())


def _check_partners(
    dataset: str, keys: Iterable[str], partners: Mapping[str, Path], kind: str, advice: str = ""
) -> None:
    missing = [key for key in keys if key not in partners]
    if missing:
        if PurePosixPath(missing[0]).suffix.lower() in SUFFIXES:
            advice = "names are without suffix here"
        raise DatasetError(
            f"{len(missing):,} of the samples of {dataset} have no {kind}: {listed(map(repr, missing), 3)}"
            f"{'; ' if advice else ''}{advice}"
        )
