"""Which images are segmented into which files, decided before anything is read or loaded; and their writing.

`isanet segment` is, without its progress bar:

    images = find_images(arguments)
    plan = plan_outputs(images, folder, kinds, overwrite=False)
    for result in segmenter.stream(list(plan.outputs), on_error=...):
        write_outputs(result, plan.outputs[result.path])

Imports neither torch nor numpy, so that wrong calls are answered at once.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import category

from isanet._files import atomic_write, keep_existing
from isanet.errors import ImageError, OutputError

if TYPE_CHECKING:
    from isanet.inference.segmentation import Segmentation

SUFFIXES = {"overlay": "_overlay.png", "labels": "_labels.png", "areas": "_areas.json", "ids": ".png"}
"""Kinds of output, and how the names of their files end."""

MAX_STEM = 240
"""Bytes of a name before that end; file systems take 255."""

JOINERS = "\u200c\u200d"
"""Letters of Persian and many emoji are joined or kept apart by them."""


class OutputPlan(NamedTuple):
    """What will be written, decided in advance.

    Attributes:
        outputs: For each image to segment, in order, its output files by kind.
        failures: For each other image, why it is left out.
    """

    outputs: dict[Path, dict[str, Path]]
    failures: dict[Path, str]


def find_images(arguments: Iterable[str]) -> list[Path]:
    """The images that files, folders and glob patterns stand for, each once, in order.

    A file that does not exist is in the list too: `plan_outputs` reports it, and the others are segmented.

    Raises:
        ImageError: A pattern matches no file, or a folder has no images.
    """
    from isanet.images.reading import images_in  # imports numpy, which `isanet list` does without

    images: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if os.path.isdir(argument):  # noqa: PTH112  Path's raises for a name too long
            images += images_in(path)
        elif os.path.exists(argument) or not glob.has_magic(argument):  # noqa: PTH110
            images.append(path)
        else:
            files = sorted(match for match in _matches(path) if match.is_file())
            if not files:
                raise ImageError(f"no file matches {argument!r}")
            images += files
    return list(dict.fromkeys(images))


def _matches(pattern: Path) -> Iterable[Path]:
    """What matches a glob pattern; hidden files only where it names them; "**" does not follow links to folders."""
    if "**" not in pattern.parts:
        return map(Path, glob.glob(str(pattern)))  # noqa: PTH207  a pattern may be absolute
    start = Path(pattern.anchor)
    deep = pattern.relative_to(start) / ("*" if pattern.name == "**" else "")
    # Not glob.glob, which follows links here: two that lead to the folder that they are in would double the walk
    found = start.glob(str(deep))
    return (path for path in found if not any(part[0] == "." and part not in pattern.parts for part in path.parts))


def plan_outputs(images: Sequence[Path], folder: Path, kinds: Sequence[str], *, overwrite: bool) -> OutputPlan:
    """Decide which image becomes which files of a folder; nothing is written.

    An output never takes the place of an input, of another image's output or of a folder, and of an earlier file only
    with `overwrite`.

    Args:
        images: As from `find_images`.
        folder: Where the outputs will be; need not exist.
        kinds: Keys of `SUFFIXES`.
        overwrite: Whether earlier files are replaced.
    """
    plan = OutputPlan({}, {})
    # By an input, or as an output of an earlier image. Not by Path.resolve, which raises for links in a circle
    claimed = {os.path.realpath(path): path for path in images}
    for path in images:
        outputs = {kind: folder / f"{_stem(path)}{SUFFIXES[kind]}" for kind in kinds}
        try:
            if not os.path.exists(path):  # noqa: PTH110  Path's raises for a name too long
                raise ImageError("there is no such file")
            for output in outputs.values():
                if owner := claimed.get(os.path.realpath(output)):
                    raise OutputError(f"its output {output} is already taken by {owner}; use another --output")
                if os.path.isdir(output):  # noqa: PTH112
                    raise OutputError(f"its output {output} is a folder; use another --output")
                keep_existing(output, overwrite=overwrite)
        except (ImageError, OutputError) as error:
            plan.failures[path] = str(error)
        else:
            plan.outputs[path] = outputs
            claimed.update((os.path.realpath(output), path) for output in outputs.values())
    return plan


def _stem(path: Path) -> str:
    """What the names of an image's outputs start with: its own name, short enough for a suffix.

    What could steer a terminal (control characters, marks of direction) is replaced; spaces and joiners of other
    scripts, as in the names of screenshots on a Mac, are kept.
    """
    kept = "".join(
        char if char.isprintable() or char in JOINERS or category(char) == "Zs" else "_" for char in path.stem
    )
    return kept.encode()[:MAX_STEM].decode(errors="ignore")


def write_outputs(result: Segmentation, outputs: Mapping[str, Path]) -> None:
    """Write the outputs of one image, each atomically.

    Args:
        result: The image's label map.
        outputs: Files by kind, as in `OutputPlan.outputs`; their folder exists.

    Raises:
        OutputError: A file cannot be written, or there is not enough memory to draw it.
    """
    for kind, output in outputs.items():
        try:
            if kind in ("labels", "ids"):
                (result if kind == "labels" else result.for_server()).save(output)
                continue
            with atomic_write(output) as file:
                if kind == "areas":
                    file.write((json.dumps(result.areas(), indent=1) + "\n").encode())
                else:
                    # A fifth of the time of Pillow's default, which the network may be waiting for; a sixth larger
                    result.overlay().save(file, format="PNG", compress_level=1)
        except MemoryError as error:
            raise OutputError(
                f"there is not enough memory for the outputs of {result.path}; make it smaller, or leave out --overlay"
            ) from error
        except OSError as error:
            raise OutputError(
                f"cannot write the outputs of {result.path} to {output.parent}: {error.strerror or error}; choose a "
                "writable folder with --output"
            ) from error
