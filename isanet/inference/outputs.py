"""Which images are segmented into which files, decided before anything is read or loaded; and their writing.

`isanet segment` is, without its progress bar:

    places = find_images(arguments)
    plan = plan_outputs(places, folder, kinds, overwrite=False)
    for result, outputs in zip(segmenter.stream(list(plan.outputs)), plan.outputs.values()):
        write_outputs(result, outputs)

Imports neither torch nor numpy, so that wrong calls are answered at once.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard
from urllib.parse import unquote

from isanet._files import VIDEO_SUFFIXES, atomic_write, given_path, keep_existing, output_stream
from isanet._text import csv_line, without_controls
from isanet.errors import ImageError, OutputError
from isanet.weights.url import file_name, is_address, redacted

if TYPE_CHECKING:
    from isanet.inference.segmentation import Segmentation

SUFFIXES = {"overlay": "_overlay.png", "labels": "_labels.png", "areas": "_areas.json", "ids": ".png"}
"""Kinds of output, and how the names of their files end. The kind `mask:CLASS` is that class in black and white."""

VIDEO_KINDS = {
    "overlay_video": "_overlay.mp4", "labels_video": "_labels.mkv", "labels_pngs": "_labels/000000.png"
}  # fmt: skip
"""Kinds of output of a video; of a folder of PNGs the first, which stands for all."""

MAX_STEM = 240
"""Bytes of a name before that end; file systems take 255."""

MAX_CLASS = 64
"""Bytes of a class's name in that of a file."""


class OutputPlan(NamedTuple):
    """What will be written, decided in advance.

    Attributes:
        outputs: For each image to segment, in order, its output files by kind, without those that exist.
        kept: The images of which all outputs exist.
        failures: For each other image, why it is left out.
    """

    outputs: dict[Path | str, dict[str, Path]]
    kept: list[Path | str]
    failures: dict[Path | str, str]


def find_images(
    arguments: Iterable[str], *, recursive: bool = False, output: Path | None = None
) -> dict[Path | str, Path]:
    """The images that files, folders, glob patterns and addresses (these alone are text) are, each once, in order.

    A file that does not exist is there too: `plan_outputs` reports it, and the others are segmented.

    Args:
        arguments: As on the command line.
        recursive: Take the images of all folders in a folder too, but for hidden ones and links.
        output: The folder of the outputs. What is in it is left out of the folders and patterns that lead into it from
            above, so that a second run does not take the outputs of the first for images.

    Returns:
        For each image the sub-folder of its outputs, which keeps equal names apart: where it is in the folder that was
        given, and with several folders in the innermost one that holds them all.

    Raises:
        ImageError: A pattern matches no file, or a folder has no images.
    """
    from isanet.images.folder import images_in  # imports numpy, which `isanet list` does without

    arguments = list(arguments)
    folders = [Path(os.path.abspath(each)) for each in dict.fromkeys(arguments) if _is_folder(each)]  # noqa: PTH100
    above = Path(os.path.commonpath(folders)) if folders else Path()
    images: dict[Path | str, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if is_address(argument):
            images.setdefault(argument, Path())
        elif _is_folder(argument):
            for image in _without_outputs(images_in(path, recursive=recursive), path, output):
                images.setdefault(image, Path(os.path.relpath(image.parent, above)))
        elif os.path.exists(argument) or not glob.has_magic(argument):  # noqa: PTH110  Path's raises for a name too long
            images.setdefault(path, Path())
        else:
            start = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            files = _without_outputs(sorted(match for match in _matches(path) if match.is_file()), start, output)
            if not files:
                raise ImageError(f"no file matches {argument!r}")
            images.update((file, Path()) for file in files if file not in images)
    return images


def is_video(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is the path of a video, by its suffix."""
    return (
        isinstance(source, str | os.PathLike)
        and Path(source).suffix.lower() in VIDEO_SUFFIXES
        and not (is_address(source) or _is_folder(str(source)))
    )


def _is_folder(argument: str) -> bool:
    return not is_address(argument) and os.path.isdir(argument)  # noqa: PTH112  Path's raises for a name too long


def without_earlier(places: Mapping[Path | str, Path], folder: Path, kinds: Sequence[str]) -> dict[Path | str, Path]:
    """The images, but for those that an earlier run wrote beside theirs: NAME_overlay.png where NAME.jpg is.

    Args:
        places: Images and the sub-folders of their outputs, as from `find_images`.
        folder: Where the outputs are.
        kinds: As for `plan_outputs`; outputs of the kinds in `SUFFIXES` and `VIDEO_KINDS` are recognized always, but
            for ids.
    """
    folders = {place: os.path.realpath(folder / place) for place in set(places.values())}
    parents = {path.parent for path in places if isinstance(path, Path)}
    if not {os.path.realpath(parent) for parent in parents} & set(folders.values()):
        return dict(places)
    suffixes = {_suffix(kind) for kind in {*SUFFIXES, *VIDEO_KINDS, *kinds} if kind != "ids"}
    suffixes |= {suffix.replace(".", "_part.") for suffix in map(_suffix, VIDEO_KINDS)}
    written = {
        f"{folders[place]}{os.sep}{_stem(path, suffix)}{suffix}"
        for path, place in places.items()
        for suffix in suffixes
    }
    return {path: place for path, place in places.items() if is_address(path) or os.path.realpath(path) not in written}


def _without_outputs(images: list[Path], start: Path, output: Path | None) -> list[Path]:
    """Images found from a folder downwards, but for those in the folder of the outputs, if that is below it."""
    out, top = ("" if output is None else os.path.realpath(output)), os.path.realpath(start)
    if not out.startswith(f"{top.rstrip(os.sep)}{os.sep}"):
        return images
    parents = {image.parent: os.path.realpath(image.parent) for image in images}
    outputs = {parent for parent, real in parents.items() if f"{real}{os.sep}".startswith(f"{out}{os.sep}")}
    return [image for image in images if image.parent not in outputs]


def in_shard(image: Path | str, place: Path, number: int, count: int) -> bool:
    """Whether an image is in the shard of this number, 1 to `count`.

    It depends on the image's name and its `place` alone, as `find_images` gives it: not on the other images, the order
    or the machine.
    """
    name = image if is_address(image) else (place / Path(image).name).as_posix()
    digest = sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") % count == number - 1


def listed_images(source: str) -> list[str]:
    """The lines of a text file, or of standard input for "-": a path or an address each; empty ones are left out.

    Raises:
        ImageError: It cannot be read, or is no text in UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ImageError(f"{source} is no list of images: it is not text in UTF-8; give one path a line") from error
    except OSError as error:
        raise ImageError(f"the list {source} cannot be read: {error.strerror}; check the path") from error


def _matches(pattern: Path) -> Iterable[Path]:
    """What matches a glob pattern; hidden files only where it names them; "**" does not follow links to folders."""
    if "**" not in pattern.parts:
        return map(Path, glob.glob(str(pattern)))  # noqa: PTH207  a pattern may be absolute
    start = Path(pattern.anchor)
    deep = pattern.relative_to(start) / ("*" if pattern.name == "**" else "")
    # Not glob.glob, which follows links here: two that lead to the folder that they are in would double the walk
    found = start.glob(str(deep))
    return (path for path in found if not any(part[0] == "." and part not in pattern.parts for part in path.parts))


def plan_outputs(
    places: Mapping[Path | str, Path],
    folder: Path,
    kinds: Sequence[str],
    *,
    overwrite: bool,
    files: Sequence[Path] = (),
) -> OutputPlan:
    """Decide which image becomes which files of a folder; nothing is written.

    An output never takes the place of an input, of another image's output or of a folder, and of an earlier file only
    with `overwrite`; without it, that file is kept and counts as done. Where there are `files`, which are about all
    images, an image is segmented for them even if all of its own outputs exist, unless nothing at all is missing.

    Args:
        places: Images and the sub-folders of their outputs, as from `find_images`.
        folder: Where the outputs will be; need not exist.
        kinds: Keys of `SUFFIXES`, and `mask:CLASS`.
        overwrite: Whether earlier files are replaced.
        files: Outputs that are about all images.

    Raises:
        OutputError: One of `files` cannot be written, or exists while something else is missing; or two kinds would
            have the same file.
    """
    plan = OutputPlan({}, [], {})
    suffixes = {kind: _suffix(kind) for kind in kinds}
    if len(set(suffixes.values())) < len(suffixes):
        raise OutputError(f"two of {', '.join(suffixes)} would have the same file; ask for one at a time")
    # By an input, or as an output of an earlier image. Not by Path.resolve, which raises for links in a circle
    claimed: dict[str, Path | str] = {os.path.realpath(path): path for path in places if not is_address(path)}
    for file in files:
        _check_file(file, claimed)
        claimed[os.path.realpath(file)] = file
    for path, place in places.items():
        outputs = {kind: folder / place / f"{_stem(path, suffix)}{suffix}" for kind, suffix in suffixes.items()}
        try:
            if not is_address(path) and not os.path.exists(path):  # noqa: PTH110  Path's raises for a name too long
                raise ImageError("there is no such file")
            real = {os.path.realpath(output): output for output in outputs.values()}
            owners = {claimed.get(name) for name in real}
            if owners and all(owner != path and _is_same(owner, path) for owner in owners):
                continue  # the same image by another path
            for name, output in real.items():
                if owner := claimed.get(name):
                    raise OutputError(
                        f"its output {output} is already taken by {shown(owner)}; use another --output, or give the "
                        "folder that holds both with --recursive"
                    )
                if os.path.isdir(output):  # noqa: PTH112
                    raise OutputError(f"its output {output} is a folder; use another --output")
        except (ImageError, OutputError) as error:
            plan.failures[path] = str(error)
            continue
        claimed.update(dict.fromkeys(real, path))
        plan.outputs[path] = outputs if overwrite else missing_outputs(outputs)
    done = [path for path, missing in plan.outputs.items() if not missing] if kinds else []
    if len(done) < len(plan.outputs) or not all(map(os.path.lexists, files)):
        for file in files:
            keep_existing(file, overwrite=overwrite)
        done = [] if files else done
    for path in done:
        del plan.outputs[path]
    plan.kept.extend(done)
    return plan


def _is_same(one: Path | str | None, other: Path | str) -> bool:
    return isinstance(one, Path) and isinstance(other, Path) and os.path.realpath(one) == os.path.realpath(other)


def missing_outputs(outputs: Mapping[str, Path]) -> dict[str, Path]:
    """Those that do not exist, not even as a dangling link."""
    return {kind: output for kind, output in outputs.items() if not os.path.lexists(output)}


@contextmanager
def claim(outputs: Mapping[str, Path]) -> Iterator[bool]:
    """While the outputs of an image are made: whether this process may, or another one is at it.

    The operating system gives the claim back when its process ends. On a file system without locks all may.
    """
    import filelock

    first = next(iter(outputs.values()))
    path = first.parent / f".isanet-{sha256(os.fsencode(first.name)).hexdigest()[:16]}.lock"
    held = filelock.FileLock(path, timeout=0)
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        yield True  # what else is wrong with the folder, writing will tell
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # who waits with the old file sees afterwards that the outputs exist
        held.release()


def _check_file(path: Path, claimed: Mapping[str, Path | str]) -> None:
    given_path(path, OutputError)
    if os.path.realpath(path) in claimed:
        raise OutputError(f"{path} is one of the images, or another output; use another name")
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"the folder {path.parent} does not exist; create it first"
        raise OutputError(f"cannot write {path}: {reason}")


def _suffix(kind: str) -> str:
    _, is_mask, name = kind.partition("mask:")
    if not is_mask:
        return {**SUFFIXES, **VIDEO_KINDS}[kind]
    name = without_controls(name, "_").replace("/", "_").replace("\\", "_")
    return f"_mask_{name.encode()[:MAX_CLASS].decode(errors='ignore')}.png"


def shown(image: Path | str) -> str:
    """How an image of a plan is written into messages: an address without passwords."""
    return redacted(image) if is_address(image) else str(image)


def _stem(image: Path | str, suffix: str) -> str:
    """What the names of an image's outputs start with: its own name, short enough for the suffix.

    The name at the end of an address, which someone else chose, keeps its letters and digits alone, and never hides.
    """
    name = Path(image).name
    if is_address(image):
        name = re.sub(r"[^\w.-]", "_", unquote(file_name(image))).lstrip(".") or "image"
    kept = without_controls(Path(name).stem, "_").encode()
    return kept[: min(MAX_STEM, 255 - len(suffix.encode()))].decode(errors="ignore")


def write_outputs(result: Segmentation, outputs: Mapping[str, Path], legend: bool | str = True) -> None:
    """Write the outputs of one image, each atomically.

    Args:
        result: The image's label map.
        outputs: Files by kind, as in `OutputPlan.outputs`.
        legend: Of the overlay, see `Segmentation.overlay`.

    Raises:
        OutputError: A file cannot be written, or there is not enough memory to draw it.
    """
    from PIL import Image

    for kind, output in outputs.items():
        name = result.path or output.name  # images from addresses have no path
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if kind in ("labels", "ids"):
                (result if kind == "labels" else result.for_server()).save(output)
                continue
            with atomic_write(output) as file:
                if kind == "areas":
                    file.write((json.dumps(result.areas(), indent=1) + "\n").encode())
                elif kind.startswith("mask:"):
                    Image.fromarray(result.mask(kind.removeprefix("mask:"))).save(file, format="PNG")
                else:
                    # A fifth of the time of Pillow's default, which the network may be waiting for; a sixth larger
                    result.overlay(legend=legend).save(file, format="PNG", compress_level=1)
        except MemoryError as error:
            raise OutputError(
                f"there is not enough memory for the outputs of {name}; make it smaller, or leave out --overlay"
            ) from error
        except OSError as error:
            raise OutputError(
                f"cannot write the outputs of {name} to {output.parent}: {error.strerror or error}; choose a "
                "writable folder with --output"
            ) from error


class CommonFile(NamedTuple):
    """A file about all images of a run, while it is written.

    Attributes:
        part: Makes the part of one image, in any thread; takes its number, from 1 on, itself, and its result.
        add: Appends a part.
    """

    part: Callable[[int, Path | str, Segmentation], Any]
    add: Callable[[Any], None]


@contextmanager
def csv_file(path: Path, classes: Sequence[str]) -> Iterator[CommonFile]:
    """A CSV file of areas: a row for each image, a column for each class, fractions of the image.

    Raises:
        OutputError: It cannot be written; an earlier file is unchanged then, as after any error of the body.
    """

    def part(_: int, image: Path | str, result: Segmentation) -> bytes:
        areas = result.areas()
        return csv_line([shown(image), *(areas.get(name, 0) for name in classes)]).encode()

    with output_stream(path) as write:
        write(csv_line(["image", *classes]).encode())
        yield CommonFile(part, write)


@contextmanager
def coco_file(path: Path, images: Iterable[Path | str]) -> Iterator[CommonFile]:
    """A COCO file of all results, as of `Segmentation.to_coco`; only the list of images is held in memory.

    Args:
        path: What to write.
        images: All images of the run; their names in the file are addresses, or paths from the innermost folder that
            holds them all.

    Raises:
        OutputError: It cannot be written; an earlier file is unchanged then, as after any error of the body.
    """
    folders = [os.path.abspath(image.parent) for image in images if isinstance(image, Path)]  # noqa: PTH100  keeps links
    folder = os.path.commonpath(folders) if folders else ""
    rest: dict[str, Any] = {"images": [], "categories": []}

    def part(number: int, image: Path | str, result: Segmentation) -> tuple[dict[str, Any], bytes]:
        name = Path(os.path.relpath(image, folder)).as_posix() if isinstance(image, Path) else shown(image)
        document = result.to_coco(number, name)
        return document, ",\n".join(map(json.dumps, document.pop("annotations"))).encode()

    with output_stream(path) as write:
        write(b'{"annotations": [\n')

        def add(part: tuple[dict[str, Any], bytes]) -> None:
            document, annotations = part
            write((b",\n" if rest["images"] else b"") + annotations)
            rest["images"] += document["images"]
            rest["categories"] = document["categories"]

        yield CommonFile(part, add)
        write(f"\n],\n{json.dumps(rest)[1:]}\n".encode())
