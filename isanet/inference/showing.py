"""Results to look at: several as a sheet with one legend, in a notebook or in the system's viewer."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, SupportsIndex, overload

from PIL import Image

from isanet._progress import in_notebook
from isanet._text import shortened
from isanet.errors import OutputError
from isanet.inference.segmentation import NOT_PAINTED, Segmentation, resized
from isanet.viz.legend import Entry
from isanet.viz.sheet import Tile, fitted, lay_out, sheet_png

MAX_SHOWN = 24
"""Images of a sheet."""


class Segmentations(list[Segmentation]):
    """A list of results. A notebook shows it as a sheet."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Segmentation: ...

    @overload
    def __getitem__(self, index: slice) -> Segmentations: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Segmentation | Segmentations:
        return Segmentations(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def _repr_png_(self) -> bytes | None:
        """What notebooks show; None if there is nothing to show."""
        return sheet_png(_sheet(self, len(self))) if self else None


def show(results: Segmentation | Image.Image | Iterable[Segmentation | Image.Image]) -> None:
    """Show a result with its legend, or several as a sheet: in the notebook, or else in the system's image viewer.

    >>> isanet.show(result)
    >>> isanet.show(segmenter.stream("streets/images"))

    Args:
        results: A result, or any iterable of results, of which the first 24 are shown. PIL images are shown as they
            are, also among results.

    Raises:
        ValueError: There is nothing to show, or something is neither a result nor a PIL image.
        OutputError: There is no notebook, no screen or no viewer.
    """
    one = isinstance(results, Segmentation | Image.Image)
    if one:
        shown: Any = results
    elif isinstance(results, Iterable):
        total = len(results) if isinstance(results, Sequence) else None
        shown = _sheet(list(islice(results, MAX_SHOWN + 1)), total)
    else:
        raise ValueError(_wrong(results))
    if in_notebook():
        png = shown._repr_png_() if one else sheet_png(shown)
        display = import_module("IPython.display")
        display.display(display.Image(data=png))
        return
    from PIL import ImageShow  # it imports IPython

    if not _has_viewer() or not ImageShow.show(shown.overlay() if isinstance(shown, Segmentation) else shown):
        raise OutputError(
            "there is no screen or no image viewer here; save the image instead: result.overlay().save('overlay.png')"
        )


def _has_viewer() -> bool:
    """Whether there is a screen and, of the programs that Pillow knows on Linux, one to view images with."""
    if sys.platform != "linux":
        return True
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and any(map(shutil.which, ("xdg-open", "display", "gm", "eog", "xv")))


def _sheet(results: Sequence[Segmentation | Image.Image], total: int | None) -> Image.Image:
    """The first results as a sheet.

    Args:
        results: At least one more than are drawn, if there are more.
        total: How many there are; None: nobody knows.
    """
    if not results:
        raise ValueError("there is nothing to show: got no results")
    if wrong := [result for result in results if not isinstance(result, Segmentation | Image.Image)]:
        raise ValueError(_wrong(wrong[0]))
    number = min(len(results), MAX_SHOWN)
    columns = 2 if number <= 4 else 3 if number <= 12 else 4
    present: set[tuple[int, Entry]] = set()

    def tiles() -> Iterator[Tile]:
        for place, result in enumerate(results[:number], 1):
            if isinstance(result, Image.Image):
                path = getattr(result, "filename", None)
                image = result.convert("RGB").resize(fitted(*result.size, columns), Image.Resampling.LANCZOS)
            else:
                areas = result.areas()
                present.update(
                    (index, Entry(result.palette[index], shortened(name)))
                    for index, name in enumerate(result.classes)
                    if name in areas and name.lower() not in NOT_PAINTED
                )
                path, (height, width) = result.path, result.labels.shape
                image = resized(result, fitted(width, height, columns)).overlay(legend=False)
            yield Tile(Path(path).name if path else f"image {place}", image)

    title = ""
    if len(results) > number:
        title = f"the first {number} images, and {'more' if total is None else f'{total - number:,} more'}"
    return lay_out(tiles(), columns, lambda: [entry for _, entry in sorted(present)], title)


def _wrong(thing: object) -> str:
    return f"expected a result, a PIL image, or an iterable of these, got {shortened(repr(thing), 80)}"
