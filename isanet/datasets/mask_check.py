"""Check a folder of masks: what they hold, whether they fit their images, and how `Folder` reads them.

Every mask is opened once, and how they encode classes is concluded from all of them. Where they allow two readings, the
finding names both.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isanet._files import given_path, write_output
from isanet._progress import progress_bar
from isanet._text import aligned, clean, listed, percent, plural, shortened
from isanet.datasets.listing import walk
from isanet.datasets.mask_findings import (
    CITYSCAPES,
    CITYSCAPES_IDS,
    MAX_COLORS,
    TWO_CLASSES,
    Counts,
    Finding,
    MaskStats,
    color_finding,
    diagnose_values,
    finding,
    ignored_values,
    palette_finding,
)
from isanet.errors import DatasetError, ImageError
from isanet.images.blocks import exif_orientation
from isanet.images.masks import COLOR_MODES, VALUE_MODES, Color, open_mask, packed, unpacked
from isanet.images.reading import SUFFIXES, open_header
from isanet.labels import IGNORED, LabelSpace
from isanet.viz.charts import Bar, share_chart, to_png

__all__ = ["Finding", "MaskCheck", "ValueCount", "check_masks"]

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
_ONE_CLASS = {
    "one-class": "All that is not ignored is one class: there is nothing to learn or to measure, and evaluate and "
    "finetune stop. Where the other classes are absent on purpose, --allow-absent (allow_absent=True) goes on.",
    "all-ignored": "All pixels are ignored, so there is nothing to learn or to measure: evaluate and finetune stop.",
}
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

    @property
    def one_class(self) -> bool:
        """Whether all that is not ignored is at most one class, unless one is expected; `evaluate` would stop."""
        return any(finding.kind in TWO_CLASSES | _ONE_CLASS.keys() for finding in self.findings)

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
        shown = _shares(counts)
        lines = [self.folder, f"{plural(sum(self.formats.values()), 'mask')}, share of pixels"]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} of {self.files:,} masks unreadable")
        if len(shown) < len(counts):
            lines.append(f"{len(shown)} of {len(counts):,} values, the most frequent")
        bars = []
        for count, share in shown:
            value = str(count.value) if self.values else f"#{count.value:06x}"
            role = count.role if count.role in _HATCHED else ""
            label = "  ".join(filter(None, (shortened(count.name), role, value)))
            look = _HATCHED.get(role, (count.color or "#4878a8", "", "black"))
            bars.append(Bar(label, share, percent(share), *look))
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


def _shares(counts: Sequence[ValueCount]) -> list[tuple[ValueCount, float]]:
    """What is shown of the counts, each with its share of all pixels."""
    total, shown = sum(count.pixels for count in counts), counts
    if len(counts) > _MAX_ROWS:
        shown = sorted(counts, key=lambda count: -count.pixels)[:_NUM_FREQUENT]
    return [(count, count.pixels / total) for count in shown]


def _table(head: str, counts: Sequence[ValueCount]) -> list[str]:
    if not counts:
        return []
    shown, rows, meanings = _shares(counts), [(head, "PIXELS", "SHARE", "FILES")], ["CLASS"]
    for count, share in shown:
        value = f"#{count.value:06x}" if head == "COLOR" else str(count.value)
        rows.append((value, f"{count.pixels:,}", percent(share), f"{count.files:,}"))
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
        DatasetError: A folder is missing, cannot be read, or has no image in it.
        ValueError: `classes` is a number below 1, or `folder` and `images` are the same.
    """
    num_classes, space = (len(classes), classes) if isinstance(classes, LabelSpace) else (classes, None)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"the number of classes must be at least 1, got {num_classes}")
    root = given_path(folder, DatasetError)
    image_root = None if images is None else given_path(images, DatasetError)
    if image_root is not None and image_root.resolve() == root.resolve():
        raise ValueError(f"images and masks are in the same folder {root}; put each in its own folder")
    found = _find(root, "masks", image_root)
    label_ids = [name for name in found if _is_label_ids(name)]
    masks = label_ids or found
    image_names = [] if image_root is None else _find(image_root, "images", root)
    images_by_key = None if image_root is None else {_key(name): image_root / name for name in image_names}
    stats = _read_all(root, masks, images_by_key, progress)
    if label_ids:
        stats.problems["not-labelIds"] = {name: "" for name in found if not _is_label_ids(name)}
    keys = set(map(_key, masks))
    stats.problems["no-mask"] = {name: "" for name in image_names if _key(name) not in keys}
    totals = {"no-mask": len(image_names), "not-labelIds": len(found)}
    findings = [
        finding(kind, text.format(listed(problems.values(), 3)), list(problems), totals.get(kind, len(masks)))
        for kind, text in _FILE_FINDINGS.items()
        if (problems := stats.problems[kind])
    ]
    values: tuple[ValueCount, ...] = ()
    if stats.values.files:
        kind, text, fix = diagnose_values(stats, num_classes, space, official_ids=bool(label_ids))
        values = tuple(_value_counts(stats.values, kind, fix, num_classes, space))
        stray = {count.value for count in values if count.role == "stray"}
        names = (stats.values.files_with(stray) if kind == "stray" else []) or list(stats.values.files)
        findings.append(finding(kind, text, names, len(stats.values.files), fix))
        read = [count for count in values if count.role != "ignored"]
        if len(read) < min(2, num_classes or 2) and kind not in TWO_CLASSES and not stats.colors.files:
            kind = "one-class" if read else "all-ignored"
            findings.append(finding(kind, _ONE_CLASS[kind], list(stats.values.files), len(stats.values.files)))
    if stats.problems["palette"]:
        findings.append(palette_finding(stats))
    if stats.colors.files:
        findings.append(color_finding(stats.colors, num_classes, space))
    return MaskCheck(
        folder=str(folder),
        files=len(masks),
        formats=dict(stats.formats.most_common()),
        pixels=stats.num_pixels,
        values=values,
        colors=tuple(_color_counts(stats.colors, space)),
        findings=tuple(findings),
        unreadable=stats.problems["unreadable"],
    )


def mask_finding(paths: Iterable[Path], space: LabelSpace) -> Finding | None:
    """What `check_masks` says of the colors in these masks, or else of the values; None if none can be read."""
    stats = _read_all(Path(), [os.fspath(path) for path in paths], None, progress=False)
    if stats.colors.files:
        return color_finding(stats.colors, len(space), space)
    if not stats.values.files:
        return None
    kind, text, fix = diagnose_values(stats, len(space), space, official_ids=False)
    return finding(kind, text, list(stats.values.files), len(stats.values.files), fix)


def _read_all(root: Path, masks: Sequence[str], images: Mapping[str, Path] | None, progress: bool | None) -> MaskStats:
    """Count the pixels of the masks, and compare them with their images."""
    stats = MaskStats()
    for name in progress_bar(masks, unit="mask", show=progress):
        try:
            mask = open_mask(root / name)
            if mask.mode not in (*VALUE_MODES, *COLOR_MODES):
                raise DatasetError(f"{name} has mode {mask.mode}, which is neither one channel of values nor RGB")
        except DatasetError as error:
            stats.problems["unreadable"][name] = clean(str(error).replace(str(root / name), name))
            continue
        _count(stats, name, mask)
        if images is not None and (problem := _compare(mask, images.get(_key(name)))):
            kind, detail = problem
            stats.problems[kind][name] = f"{name} {detail}"
    return stats


def _find(root: Path, what: str, apart_from: Path | None) -> list[str]:
    """Paths in `root` of the files with the suffix of an image, sorted, except those below `apart_from`."""
    try:
        is_folder = root.is_dir()
    except OSError as error:  # a folder above cannot be read
        raise DatasetError(f"{root} cannot be read: {error}") from error
    if not is_folder:
        raise DatasetError(f"there is no folder {root} to look for {what} in")
    seen = set() if apart_from is None else {apart_from.resolve()}
    found: list[str] = []
    others: Counter[str] = Counter()
    for folder, folders, names in walk(root):
        if (real := folder.resolve()) in seen:  # a link may lead back to a folder above it
            folders.clear()
            continue
        seen.add(real)
        for path in (folder.relative_to(root) / name for name in names):
            if path.suffix.lower() in SUFFIXES:
                found.append(path.as_posix())
            else:
                others[path.suffix.lower() or path.name] += 1
    if not found:
        present = listed((f"{count:,} {suffix}" for suffix, count in others.most_common()), 4)
        raise DatasetError(
            f"there are no {what} under {root}: no file there ends in {', '.join(sorted(SUFFIXES))}"
            + (f"; found were {present}" if present else "; it is empty")
        )
    return sorted(found)


def _is_label_ids(name: str) -> bool:
    return name.rpartition(".")[0].endswith("_labelIds")


def _key(name: str) -> str:
    """What an image and its mask have in common."""
    return unicodedata.normalize("NFC", _PARTNER.sub("", name.rpartition(".")[0]))


def _count(stats: MaskStats, name: str, mask: Image.Image) -> None:
    stats.formats[f"{mask.format}, mode {mask.mode}"] += 1
    stats.num_pixels += mask.width * mask.height
    if mask.mode in COLOR_MODES:
        colors = mask.convert("RGB").getcolors(MAX_COLORS) or ()
        stats.colors.add(name, {int(packed(color)): count for count, color in colors})
        return
    if mask.mode in ("L", "P"):
        counts = {value: count for value, count in enumerate(mask.histogram()) if count}
    else:
        values, times = np.unique(np.asarray(mask, np.int32), return_counts=True)
        counts = dict(zip(values.tolist(), times.tolist(), strict=True))
    stats.values.add(name, counts)
    if mask.mode == "P":
        stats.problems["palette"][name] = ""
        for index, (red, green, blue) in enumerate(np.reshape(mask.getpalette("RGB") or [], (-1, 3)).tolist()):
            if index in counts and stats.palette.setdefault(index, (red, green, blue)) != (red, green, blue):
                stats.problems["palettes-differ"][name] = ""


def _compare(mask: Image.Image, image_path: Path | None) -> tuple[str, str] | None:
    """What is wrong between a mask and its image, which is turned upright when it is read."""
    if image_path is None:
        return "no-image", ""
    try:
        with image_path.open("rb") as stream:
            image = open_header(stream, image_path)
            stored = image.size
            # Pillow decodes the whole of a PNG for an orientation that may stand behind its pixels
            header_tells = image.format != "PNG" or "exif" in image.info or stored != mask.size
            turned = header_tells and exif_orientation(image) in (5, 6, 7, 8)
    except (ImageError, OSError):
        return "image-unreadable", ""
    width, height = stored[::-1] if turned else stored
    if mask.size == (width, height):
        return None
    kind = "exif" if turned and mask.size == stored else "size"
    return kind, f"is {mask.width}x{mask.height}, its image {width}x{height}"


def _value_counts(
    values: Counts, kind: str, fix: Mapping[str, Any], num_classes: int | None, space: LabelSpace | None
) -> Iterator[ValueCount]:
    """The values, with their roles as a finding of this kind, with these arguments of `Folder`, reads them."""
    ids: Sequence[int] = range(num_classes or 0)
    ignored = ignored_values(num_classes)
    names: Mapping[int, str] = {}
    if kind == "official-ids":
        ids, space = CITYSCAPES.official_ids, CITYSCAPES
        names = dict(enumerate(CITYSCAPES_IDS.classes))
        ignored = {*names, IGNORED}
    elif kind == "not-classes":
        ignored = set()
    elif kind not in ("shifted-unsure", "stray"):
        ids, ignored = fix.get("ids", ids), set(fix.get("ignore", ignored))
    index_of = {value: index for index, value in enumerate(ids)}
    files = Counter(chain.from_iterable(values.files.values()))
    for value in sorted(values.pixels):
        role, name, color = "stray" if index_of else "unknown", "", None
        if value in index_of:
            role = "class"
            if space is not None:
                name, color = space.classes[index_of[value]], space.palette[index_of[value]]
        elif value in ignored:
            role, name = "ignored", names.get(value, "")
        yield ValueCount(value, values.pixels[value], files[value], role, name, color)


def _color_counts(colors: Counts, space: LabelSpace | None) -> Iterator[ValueCount]:
    """The colors, with the names of the expected classes that have them."""
    files = Counter(chain.from_iterable(colors.files.values()))
    names = dict(zip(space.palette, space.classes, strict=True)) if space else {}
    for code, pixels in colors.pixels.most_common():
        color = unpacked(code)
        role = "class" if color in names else "unknown"
        yield ValueCount(code, pixels, files[code], role, names.get(color, ""), color)
