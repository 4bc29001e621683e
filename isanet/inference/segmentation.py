"""The label map of one image, with what can be computed, shown and saved of it; without torch."""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet._files import atomic_write, given_path, output_errors
from isanet._text import listed, shortened
from isanet.errors import OutputError
from isanet.images.reading import RGBImage
from isanet.inference import regions
from isanet.labels import (
    Groups,
    LabelSpace,
    check_groups,
    custom_space,
    label_space,
    merged,
    official_name,
    translation,
)
from isanet.viz.legend import Entry
from isanet.viz.overlay import draw_overlay

NOT_PAINTED = ("background", "unlabeled", "void")
"""Names, in lower case, of classes that overlays leave as the image is."""

_SAVED_GRAY = ("cityscapes-ids", "ade20k-ids")  # their servers take ids as plain gray levels

MIN_SHOWN, SHOWN = 512, 1024
"""Pixels of the longer side of an image in a notebook, which shows about 800 and stores them all."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The label map of one image.

    >>> result = segmenter("street.jpg")
    >>> result.labels.shape, result.labels.dtype, result.classes[2]  # np.asarray(result) is result.labels too
    ((128, 256), dtype('uint8'), 'building')

    Attributes:
        labels: (H, W) indices into `classes`, at the image's own size; uint8, or int32 for more than 256 classes.
        classes: The K names.
        palette: K colors, (red, green, blue) of 0..255.
        image: (H, W, 3) uint8 RGB, the image as read: upright, alpha dropped.
        path: Where the image was read from; None if it was not a file.
        label_space: Name of the known label space of the classes, or None.
        confidence: (H, W) float32 in 0..1, the softmax probability of the label; None unless asked for.
        time: Of a frame of a video, seconds from the start of the file at `path`; else None.
    """

    labels: NDArray[np.uint8] | NDArray[np.int32]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: RGBImage
    path: Path | None = None
    label_space: str | None = None
    confidence: NDArray[np.float32] | None = None
    time: float | None = None

    def to(self, target: str | Groups) -> Segmentation:
        """Convert the labels to another label space, or merge classes.

        `result.to("cityscapes-ids")` has the ids that the benchmark's server takes; `result.to({"vehicle": ["car",
        "bus"]})` has one class in place of two, and the others as they are.

        >>> merged = result.to({"traffic": ["car", "person"]})
        >>> merged.classes[-1]
        'traffic'

        Args:
            target: Name of a label space (see `isanet.labels.label_space`), or the names that each new class is made
                of (see `isanet.labels.merged`).

        Returns:
            A new result with the same image, path and confidence; a pixel of a merged class keeps the confidence that
            its old class had.

        Raises:
            ValueError: There is no translation into that space, or a class that occurs has no counterpart in it; an
                unknown label space or class; or `isanet.labels.merged` refuses.
        """
        source = self._space()
        if isinstance(target, str):
            space = label_space(target)
            table = translation(source, space)
            name: str | None = target
        else:
            check_groups(target, source)
            space, table = merged(source, target)
            name = self.label_space if space.classes == self.classes else None
        for index, new_index in enumerate(table):
            if new_index is None and (count := int((self.labels == index).sum())):
                raise ValueError(
                    f"{count} pixels are {self.classes[index]!r} of the label space {source}, which has no counterpart "
                    f"in {space}"
                )
        lookup = np.array([new_index or 0 for new_index in table], np.int32)
        new = lookup.astype(np.uint8)[self.labels] if len(space) <= 256 else lookup[self.labels]
        return replace(self, labels=new, classes=space.classes, palette=space.palette, label_space=name)

    def for_server(self) -> Segmentation:
        """The labels as ids that the dataset's evaluation server takes; unchanged for classes without official ids.

        >>> result.for_server() is result  # ToyStreets has no server
        True
        """
        official = official_name(self.label_space)
        return self if official is None else self.to(official)

    def areas(self) -> dict[str, float]:
        """Fractions of the image by class: only classes that occur, largest first, sum 1.

        >>> result.areas()
        {'road': 0..., ...}
        """
        return {self.classes[index]: share for index, share in self._shares()}

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Which pixels are of a class: (H, W).

        >>> road = result.mask("road")
        >>> result.image[~road] = 0  # black but for the road

        Raises:
            ValueError: There is no such class; the message lists the nearest names.
        """
        mask: NDArray[np.bool_] = self.labels == self._space().index(name)
        return mask

    def polygons(self, name: str, min_area: int = 1) -> list[regions.Polygon]:
        """The outlines of a class's connected regions, largest first, exact to the pixel.

        `for outer, holes in result.polygons("car")`: `outer` and each of `holes` is an (N, 2) array of corners (x, y)
        of pixels, x to the right and y down from the image's top left corner. As seen on a screen, `outer` is clockwise
        and holes are counterclockwise; the first corner is not repeated. Pixels that share an edge are connected, those
        that only share a corner are not. No ring touches itself, so `shapely.Polygon(outer, holes)` is valid.

        >>> outer, holes = result.polygons("road")[0]
        >>> len(outer) > 3, outer.shape[1]
        (True, 2)

        Args:
            name: Of the class.
            min_area: Smaller regions are left out; in pixels, without those of holes.

        Raises:
            ValueError: There is no such class; the message lists the nearest names.
        """
        return regions.polygons(self.mask(name), min_area)

    def to_coco(self, image_id: int = 1, file_name: str | None = None) -> dict[str, Any]:
        """The labels in COCO's format: `images`, `annotations` and `categories`, ready for `json.dump`.

        Each class that occurs is one annotation, with compressed run lengths; `area` and `bbox` (left, top, width,
        height) are in pixels. The id of a category is the index of its class plus 1.

        >>> document = result.to_coco()
        >>> document["images"]
        [{'id': 1, 'file_name': 'street.jpg', 'width': 256, 'height': 128}]

        Args:
            image_id: From 1 on. The images and annotations of results with different ids can be put into one document.
            file_name: Of the image; default: the name of the file that was read, empty if it was not a file.
        """
        height, width = self.labels.shape
        if file_name is None:
            file_name = "" if self.path is None else self.path.name
        annotations = [
            {
                "id": (image_id - 1) * len(self.classes) + index + 1,
                "image_id": image_id,
                "category_id": index + 1,
                "segmentation": {
                    "size": [height, width],
                    "counts": regions.coco_counts(starts, ends, self.labels.size),
                },
                "area": int((ends - starts).sum()),
                "bbox": list(regions.bounding_box(starts, ends, height)),
                "iscrowd": 0,
            }
            for index, starts, ends in regions.class_runs(self.labels)
        ]
        return {
            "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
            "annotations": annotations,
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.classes, 1)],
        }

    def colored(self) -> Image.Image:
        """The label map in the palette's colors: mode P, labels as indices, or RGB for more than 256 classes.

        >>> result.colored().save("colors.png")
        """
        if len(self.classes) > 256:
            return Image.fromarray(np.array(self.palette, np.uint8)[self.labels])
        image = Image.fromarray(self.labels)
        image.putpalette([value for color in self.palette for value in color])
        return image

    def overlay(
        self, alpha: float = 0.5, legend: bool | str = True, skip: Collection[str] | None = None
    ) -> Image.Image:
        """The image blended with the colors of its classes.

        >>> result.overlay(alpha=0.6).save("overlay.jpg")

        Args:
            alpha: Weight of the colors, 0 (the image alone) to 1 (the colors alone).
            legend: Add a panel that names the classes present and their areas, largest first; below the image or to
                its right, whichever suits its shape. Images below 240 pixels are enlarged for it by a whole factor;
                where it would dwarf a long thin image (see `isanet.viz.legend`), it is left out. "fixed": all classes,
                without areas, so that images of one size give overlays of one size, as the frames of a video need.
            skip: Names of classes that are not painted, and not in the legend; None: those named background,
                unlabeled or void, in any case; () paints all.

        Returns:
            Mode RGB. Without a legend, exactly of the image's size.

        Raises:
            ValueError: `alpha` is not in 0..1, there is no such legend, or `skip` names an unknown class.
        """
        return self._overlay(self, alpha, legend, skip)

    def _overlay(
        self, pixels: Segmentation, alpha: float, legend: bool | str, skip: Collection[str] | None
    ) -> Image.Image:
        """The overlay of an image and labels, which may be smaller than those that the legend is of."""
        if not isinstance(legend, bool) and legend != "fixed":
            raise ValueError(f"legend must be True, False or 'fixed', got {legend!r}")
        if skip is None:
            skip = [name for name in self.classes if name.lower() in NOT_PAINTED]
        space = self._space()
        skipped = {space.index(name) for name in ([skip] if isinstance(skip, str) else skip)}
        if legend == "fixed":
            shown = [(index, "") for index in range(len(self.classes))]
        else:
            shares = self._shares() if legend else []
            shown = [(index, f"{share:.1%}" if share >= 0.001 else "<0.1%") for index, share in shares]
        entries = [
            Entry(self.palette[index], shortened(self.classes[index]), detail)
            for index, detail in shown
            if index not in skipped
        ]
        painted = Image.fromarray(~np.isin(pixels.labels, list(skipped))) if skipped else None
        return draw_overlay(Image.fromarray(pixels.image), pixels.colored(), painted, alpha=alpha, legend=entries)

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the labels as a PNG of class indices.

        The palette is that of the classes; above 256 classes the PNG is 16-bit gray, without one. The file is written
        atomically. An existing one is replaced, unless it is the image itself.

        The benchmarks' servers take `result.to(...)`, saved under the names that they expect:

        * Cityscapes: `to("cityscapes-ids")`, 8-bit gray, `<city>_<sequence>_<frame>*.png`.
        * ADE20K: `to("ade20k-ids")`, 8-bit gray, 1..150, `<stem of the image>.png`.
        * PASCAL VOC: as it is, `<id of the image>.png` in the folder `comp6_test_cls` (`comp5_test_cls` for models
          that were trained on the challenge's own images alone).

        >>> result.save("labels.png")
        >>> buffer = io.BytesIO()
        >>> result.save(buffer)

        Args:
            path: Ends in .png; its folder exists. Or a binary file object, such as `io.BytesIO()`.

        Raises:
            ValueError: The name does not end in .png, or it is the file that the image was read from.
            OutputError: The folder does not exist, or the file cannot be written; an earlier one is unchanged.
        """
        if self.label_space in _SAVED_GRAY:
            indices = Image.fromarray(self.labels)
        else:
            indices = self.colored() if len(self.classes) <= 256 else Image.fromarray(self.labels.astype(np.uint16))
        if not isinstance(path, str | os.PathLike):
            try:
                indices.save(path, format="PNG")
            except (OSError, ValueError, TypeError, AttributeError) as error:  # closed, or opened for text or reading
                raise OutputError(
                    f"cannot write to {shortened(repr(path), 80)}: {error}; expected a path that ends in .png, or a "
                    "file that is open for writing bytes ('wb')"
                ) from error
            return
        path = given_path(path, OutputError)
        if path.suffix.lower() != ".png":
            raise ValueError(
                f"labels are saved as .png only, got {path.name!r}: lossy formats change labels, others lose the "
                "palette; for an image to look at, use overlay().save(...)"
            )
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path.name}: the folder {path.parent} does not exist; create it first")
        if self.path is not None and path.exists() and self.path.exists() and path.samefile(self.path):
            raise ValueError(f"{path} is the image that was segmented; save the labels under another name")
        with output_errors(path), atomic_write(path) as file:
            indices.save(file, format="PNG")

    def _space(self) -> LabelSpace:
        return custom_space(self.classes, self.palette, self.label_space or "custom")

    def _shares(self) -> list[tuple[int, float]]:
        """(class index, fraction) of the classes that occur, largest first."""
        flat = self.labels.reshape(-1)
        counts = np.zeros(len(self.classes), np.int64)
        for start in range(0, flat.size, 1 << 22):  # bincount makes an int64 copy: of a part at a time
            counts += np.bincount(flat[start : start + (1 << 22)], minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return [(int(index), int(counts[index]) / flat.size) for index in order if counts[index]]

    def _repr_png_(self) -> bytes:
        """What notebooks show: the overlay of the image in `MIN_SHOWN` to `SHOWN` pixels a side, with a legend."""
        height, width = self.labels.shape
        factor = min(max(MIN_SHOWN, height, width), SHOWN) / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        image = self._overlay(resized(self, size), 0.5, True, None)
        image.thumbnail((2 * SHOWN, 2 * SHOWN))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """`np.asarray(result)` is the labels."""
        # numpy 1 calls without `copy`, and its array() takes no None
        return np.asarray(self.labels, dtype) if copy is None else np.array(self.labels, dtype, copy=copy)

    def __repr__(self) -> str:
        areas = [f"{shortened(name)} {share:.2f}" for name, share in self.areas().items()]
        height, width = self.labels.shape
        return f"Segmentation({width}x{height}: {listed(areas, 3)})"


def resized(result: Segmentation, size: tuple[int, int]) -> Segmentation:
    """The result with its image and labels in another size (width, height), to look at; without its confidence."""
    image = Image.fromarray(result.image).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    labels: Any = np.asarray(Image.fromarray(result.labels).resize(size, Image.Resampling.NEAREST))
    return replace(result, image=np.asarray(image), labels=labels, confidence=None)
