"""Check a folder of masks: what they hold, whether they fit their images, and how `Folder` reads them.

Every mask is opened once. What follows from its values and colors is said by `isanet.datasets.mask_findings`.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isanet._files import write_output
from isanet._text import aligned, clean, listed, percent, plural, shortened
from isanet.datasets.mask_findings import (
    CITYSCAPES_IDS,
    MAX_COLORS,
    Finding,
    MaskEncoding,
    MaskStats,
    Occurrences,
    diagnose,
    finding,
)
from isanet.errors import DatasetError, ImageError
from isanet.images.masks import COLOR_MODES, VALUE_MODES, Color, open_mask, packed, unpacked
from isanet.images.reading import SUFFIXES, open_header
from isanet.labels import LabelSpace
from isanet.viz.charts import Bar, share_chart, to_png

__all__ = ["Finding", "MaskCheck", "ValueCount", "check_masks"]

_MAX_VALUES = 70_000  # counted: all that 16 bits have, so that only 32-bit files can exceed it
_MAX_VALUES_PER_FILE = 1024  # masks of classes have fewer; bounds the memory for other files
_MAX_ROWS, _NUM_FREQUENT = 256, 50  # of more values, only the most frequent are shown

# Of Cityscapes' annotations, the files *_labelIds are read; the others show objects or are made from those
_PARTNER = re.compile(r"(_gtFine|_gtCoarse)?_(label(Train)?Ids|instance(Train)?Ids|color)$|_leftImg8bit$")

_FILE_FINDINGS = {
    "unreadable": "Cannot be used; the reasons are listed below. Export or fetch them again, as 8-bit PNG.",
    "size": "The mask has another size than its image: {}. Export it again at the image's size (nearest neighbor). If "
    "width and height are swapped, the mask was turned, or the image lost an EXIF orientation.",
    "exif": "The image is rotated by its EXIF orientation, and the mask is not: {}. Rotate the masks too, or save the "
    "images without the orientation if the masks fit the stored pixels.",
    "no-image": "The mask has no image of the same path and name.",
    "image-unreadable": "The mask's image cannot be read.",
    "no-mask": "Images without a mask (even if the list of a split leaves them out).",
    "not-labelIds": "Not checked, since isanet.datasets.Cityscapes reads only the files *_labelIds.png.",
}
_Problem = tuple[str, str, str]
"""A key of `_FILE_FINDINGS`, the name of the file, and a detail."""

_HATCHED = {"ignored": ("white", "////", "#808080"), "stray": ("#ffd0d0", "xxxx", "#c00000")}


@dataclass(frozen=True)
class ValueCount:
    """How often a value, or a color, occurs.

    Attributes:
        value: As in the files; a color as 24 bits, red highest.
        pixels: Pixels in all files.
        files: Files that have it.
        role: `"class"`, `"ignored"`, `"stray"` (not expected), or `"unknown"`.
        name: Of the class, if known.
        color: Of the class or of the pixels, if known.
    """

    value: int
    pixels: int
    files: int
    role: str = "unknown"
    name: str = ""
    color: Color | None = None


@dataclass(frozen=True)
class MaskCheck:
    """What `check_masks` found; `str()` of it is the report.

    Attributes:
        folder: As it was given.
        files: Number of masks, unreadable ones included.
        formats: Number of readable files of each format and mode, such as `{"PNG, mode P": 12}`.
        pixels: Of all readable files.
        values: Of the masks that hold values, ascending.
        colors: Of the RGB masks, most frequent first.
        findings: What to know or to act on, most important first.
        unreadable: The reason for each mask that cannot be used, by its path in the folder.
    """

    folder: str
    files: int
    formats: dict[str, int]
    pixels: int
    values: tuple[ValueCount, ...]
    colors: tuple[ValueCount, ...]
    findings: tuple[Finding, ...]
    unreadable: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{clean(self.folder)}: {plural(self.files, 'mask')}"]
        if self.unreadable:
            lines[0] += f", {len(self.unreadable):,} of them unreadable"
        if self.formats:
            formats = ", ".join(f"{count:,} {name}" for name, count in self.formats.items())
            lines += ["", f"{formats}; {self.pixels:,} pixels"]
            lines += [*_table("VALUE", self.values), *_table("COLOR", self.colors)]
        if self.findings:
            lines += ["", *map(str, self.findings)]
        if self.unreadable:
            reasons = [f"  {clean(name)}: {clean(reason)}" for name, reason in self.unreadable.items()]
            more = [f"  … and {len(reasons) - 20:,} more"] if len(reasons) > 20 else []
            lines += ["", "Unreadable:", *reasons[:20], *more]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as `json.dumps` takes it."""
        return asdict(self)

    def histogram(self) -> Image.Image:
        """A bar chart of the share of pixels of each value; of each color if there are only RGB masks.

        Bars have the colors of the classes where they are known; ignored and stray values are hatched. Of more than
        256 values the most frequent are shown. The axis is logarithmic where shares differ more than 1000-fold.

        Raises:
            DatasetError: No mask could be read.
        """
        counts = self.values or self.colors
        if not counts:
            raise DatasetError(f"there is nothing to draw: no mask in {self.folder} could be read")
        shown, total = _most_frequent(counts), sum(count.pixels for count in counts)
        lines = [self.folder, f"{plural(sum(self.formats.values()), 'mask')}, share of pixels"]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} of {self.files:,} masks unreadable")
        if len(shown) < len(counts):
            lines.append(f"{len(shown)} of {len(counts):,} values, the most frequent")
        bars = []
        for count in shown:
            value = str(count.value) if self.values else f"#{count.value:06x}"
            role = count.role if count.role in _HATCHED else ""
            label = "  ".join(filter(None, (shortened(count.name), role, value)))
            look = _HATCHED.get(role, (count.color or "#4878a8", "", "black"))
            bars.append(Bar(label, count.pixels / total, percent(count.pixels / total), *look))
        return Image.open(io.BytesIO(to_png(share_chart(bars, *lines), dpi=100))).convert("RGB")

    def save_histogram(self, path: str | os.PathLike[str]) -> None:
        """Write `histogram()` as a PNG; an existing file is replaced.

        Raises:
            DatasetError: No mask could be read.
            OutputError: The file cannot be written.
        """
        stream = io.BytesIO()
        self.histogram().save(stream, format="PNG")
        write_output(Path(path), stream.getvalue())


def _most_frequent(counts: Sequence[ValueCount]) -> Sequence[ValueCount]:
    if len(counts) <= _MAX_ROWS:
        return counts
    return sorted(counts, key=lambda count: -count.pixels)[:_NUM_FREQUENT]


def _table(head: str, counts: Sequence[ValueCount]) -> list[str]:
    if not counts:
        return []
    shown, total = _most_frequent(counts), sum(count.pixels for count in counts)
    rows, meanings = [(head, "PIXELS", "SHARE", "FILES")], ["CLASS"]
    for count in shown:
        value = f"#{count.value:06x}" if head == "COLOR" else str(count.value)
        rows.append((value, f"{count.pixels:,}", percent(count.pixels / total), f"{count.files:,}"))
        role = f"({count.role})" if count.role in _HATCHED else ""
        meanings.append(" ".join(filter(None, (clean(count.name), role))))
    lines = [f"{row}  {meaning}".rstrip() for row, meaning in zip(aligned(rows, left=0), meanings, strict=True)]
    if len(shown) < len(counts):
        lines.append(f"… and {len(counts) - len(shown):,} more values, each with fewer pixels")
    return lines


def check_masks(
    folder: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    classes: LabelSpace | int | None = None,
    progress: bool | None = None,
) -> MaskCheck:
    """Open every mask in a folder and its sub-folders, and report what they hold.

    About 2 ms for a mask of 512x512 pixels. Memory grows with the number of files (less than a kilobyte each for
    masks of classes), not with their size.

    Args:
        folder: Searched for files with the suffixes of images; hidden files and folders are skipped.
        images: The folder of the images, to compare sizes. An image and its mask have the same path in their
            folders, apart from the suffix and the endings of Cityscapes' names (`_leftImg8bit`, `_gtFine_labelIds`).
        classes: The expected classes, or their number.
        progress: Show a progress bar on standard error; None: if that is a terminal.

    Raises:
        DatasetError: A folder is missing or has no image in it.
        ValueError: `classes` is a number below 1, or `folder` and `images` are the same.
    """
    num_classes, space = (len(classes), classes) if isinstance(classes, LabelSpace) else (classes, None)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"the number of classes must be at least 1, got {num_classes}")
    root, image_root = Path(folder), None if images is None else Path(images)
    if image_root is not None and image_root.resolve() == root.resolve():
        raise ValueError(f"images and masks are in the same folder {root}; put each in its own folder")
    masks = {path.relative_to(root): path for path in _find(root, "masks", apart_from=image_root)}
    official_ids = any(path.stem.endswith("_labelIds") for path in masks)
    problems = [
        ("not-labelIds", path.as_posix(), "") for path in masks if official_ids and not path.stem.endswith("_labelIds")
    ]
    masks = {path: masks[path] for path in masks if not official_ids or path.stem.endswith("_labelIds")}
    images_by_key: dict[str, Path] | None = None
    if image_root is not None:
        found = _find(image_root, "images", apart_from=root)
        images_by_key = {_key(path.relative_to(image_root)): path for path in found}
        keys = set(map(_key, masks))
        problems += [("no-mask", path.name, "") for key, path in images_by_key.items() if key not in keys]
    stats, unreadable = _read_all(masks, images_by_key, problems, progress)
    encoding, pixel_findings = diagnose(stats, num_classes, space, official_ids=official_ids)
    findings = (*_file_findings(problems, len(masks), len(images_by_key or ())), *pixel_findings)
    values, colors, formats = _value_counts(stats, encoding), _color_counts(stats, space), stats.formats.most_common()
    return MaskCheck(str(folder), len(masks), dict(formats), stats.area, values, colors, findings, unreadable)


def _read_all(
    masks: Mapping[Path, Path], images: Mapping[str, Path] | None, problems: list[_Problem], progress: bool | None
) -> tuple[MaskStats, dict[str, str]]:
    """Statistics of the masks, and why the others cannot be used; adds to the problems."""
    from tqdm import tqdm

    stats, unreadable = MaskStats(), {}
    for relative, path in tqdm(masks.items(), unit="mask", disable=None if progress is None else not progress):
        name = relative.as_posix()
        try:
            mask = open_mask(path)
            if mask.mode not in (*VALUE_MODES, *COLOR_MODES):
                raise DatasetError(f"{path} has mode {mask.mode}, which is neither one channel of values nor RGB")
        except DatasetError as error:
            unreadable[name] = clean(str(error).replace(str(path), name))
            problems.append(("unreadable", name, ""))
            continue
        _add(stats, name, mask)
        if images is not None and (problem := _compare(name, mask, images.get(_key(relative)))):
            problems.append(problem)
    return stats, unreadable


def _file_findings(problems: Sequence[_Problem], num_masks: int, num_images: int) -> Iterator[Finding]:
    for kind, text in _FILE_FINDINGS.items():
        if names := [name for problem, name, _ in problems if problem == kind]:
            details = sorted(detail for problem, _, detail in problems if problem == kind)
            of = {"no-mask": num_images, "not-labelIds": num_masks + len(names)}.get(kind, num_masks)
            yield finding(kind, text.format(listed(details, 3)), names, of)


def _find(root: Path, what: str, apart_from: Path | None) -> list[Path]:
    """The files below `root` with the suffix of an image, sorted, except those below `apart_from`."""
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root} to look for {what} in")
    apart = None if apart_from is None or apart_from.resolve() in root.resolve().parents else apart_from.resolve()
    seen: set[Path | None] = {apart}
    found: list[Path] = []
    others: Counter[str] = Counter()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := Path(folder).resolve()) in seen:  # a link may lead back to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                found.append(path)
            else:
                others[path.suffix.lower() or path.name] += 1
    if not found:
        present = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(4))
        raise DatasetError(
            f"there are no {what} under {root}: no file there ends in {', '.join(sorted(SUFFIXES))}"
            + (f"; found were {present}" if present else "; it is empty")
        )
    return sorted(found)


def _key(path: Path) -> str:
    """What an image and its mask have in common."""
    return unicodedata.normalize("NFC", path.with_name(_PARTNER.sub("", path.stem)).as_posix())


def _add(stats: MaskStats, name: str, mask: Image.Image) -> None:
    """Count one mask."""
    stats.formats[f"{mask.format}, mode {mask.mode}"] += 1
    stats.area += mask.width * mask.height
    into, limit = (stats.colors, MAX_COLORS) if mask.mode in COLOR_MODES else (stats.values, _MAX_VALUES)
    if mask.mode in COLOR_MODES:
        colors = mask.convert("RGB").getcolors(MAX_COLORS) or []
        counts = {int(packed(color)): count for count, color in colors}
    elif mask.mode in ("L", "P"):
        counts = {value: count for value, count in enumerate(mask.histogram()) if count}
    else:
        values, times = np.unique(np.asarray(mask), return_counts=True)
        counts = dict(zip(map(int, values), times.tolist(), strict=True))
    for value, count in counts.items():
        if value in into.pixels or len(into.pixels) < limit:
            into.pixels[value] += count
    into.files[name] = array("q", sorted(counts)[:_MAX_VALUES_PER_FILE])
    if mask.mode == "P":
        stats.palette_files.append(name)
        table = np.reshape(mask.getpalette("RGB") or [], (-1, 3)).tolist()
        colors_of = {index: (red, green, blue) for index, (red, green, blue) in enumerate(table) if index in counts}
        if any(stats.palette.setdefault(index, color) != color for index, color in colors_of.items()):
            stats.palettes_differ.append(name)


def _compare(name: str, mask: Image.Image, image_path: Path | None) -> _Problem | None:
    """What is wrong between a mask and its image, which is turned upright when it is read."""
    if image_path is None:
        return "no-image", name, ""
    turned = False
    try:
        with image_path.open("rb") as stream:
            image = open_header(stream, image_path)
            stored = image.size
            # Pillow decodes the whole of a PNG for an orientation that may stand behind its pixels
            if image.format != "PNG" or "exif" in image.info or stored != mask.size:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (ImageError, OSError):
        return "image-unreadable", name, ""
    except Exception:  # a damaged EXIF block counts as none, as when the image is read
        turned = False
    width, height = stored[::-1] if turned else stored
    detail = f"{name} is {mask.width}x{mask.height}, its image {width}x{height}"
    if mask.size == (width, height):
        return None
    return "exif" if turned and mask.size == stored else "size", name, detail


def _counts(
    held: Occurrences, order: Iterable[int], describe: Callable[[int], tuple[str, str, Color | None]]
) -> tuple[ValueCount, ...]:
    files = Counter(value for values in held.files.values() for value in values)
    return tuple(ValueCount(value, held.pixels[value], files[value], *describe(value)) for value in order)


def _value_counts(stats: MaskStats, encoding: MaskEncoding) -> tuple[ValueCount, ...]:
    """The values, with the names of the classes as the encoding reads them."""
    ids, space = {value: index for index, value in enumerate(encoding.ids or ())}, encoding.space

    def describe(value: int) -> tuple[str, str, Color | None]:
        if value in ids:
            index = ids[value]
            return ("class", space.classes[index], space.palette[index]) if space else ("class", "", None)
        if value in encoding.ignored:
            is_id = encoding.kind == "official-ids" and value < len(CITYSCAPES_IDS)
            return "ignored", CITYSCAPES_IDS.classes[value] if is_id else "", None
        return "stray" if ids else "unknown", "", None

    return _counts(stats.values, sorted(stats.values.pixels), describe)


def _color_counts(stats: MaskStats, space: LabelSpace | None) -> tuple[ValueCount, ...]:
    """The colors, with the names of the expected classes that have them."""
    names = dict(zip(space.palette, space.classes, strict=True)) if space else {}

    def describe(code: int) -> tuple[str, str, Color | None]:
        color = unpacked(code)
        return "class" if color in names else "unknown", names.get(color, ""), color

    return _counts(stats.colors, [code for code, _ in stats.colors.pixels.most_common()], describe)
