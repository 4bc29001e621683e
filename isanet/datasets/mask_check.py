"""What the masks of a folder hold, and which arguments read them rightly.

Every mask is opened once; of each are kept its size, its mode and which values it has, of the folder how many pixels
each value has. What follows from that (`isanet.datasets.mask_findings`) is said as findings, each with the files it concerns
and, where an argument of `isanet.datasets.Folder` helps, that argument.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isanet._files import atomic_write
from isanet._text import clean, percent, plural, shortened
from isanet.datasets.mask_findings import (
    CITYSCAPES,
    CITYSCAPES_IDS,
    MAX_COLORS,
    Coding,
    Finding,
    Seen,
    finding,
    judge,
)
from isanet.errors import DatasetError, ImageError
from isanet.images.masks import COLOR_MODES, VALUE_MODES, Color, open_mask, packed, unpacked
from isanet.images.reading import SUFFIXES, open_header
from isanet.labels import LabelSpace
from isanet.viz.charts import Bar, share_chart, to_png

__all__ = ["MAX_COLORS", "MAX_VALUES", "Color", "Finding", "MaskCheck", "MaskGroup", "ValueCount", "check_masks"]

MAX_VALUES = 70_000
"""Distinct values counted: all that 16 bits have, so that only files of 32 bits can exceed it."""

_KEPT_VALUES = 1024  # of each file; masks of classes have fewer, and memory stays bounded for the others
_SHOWN_VALUES = 256  # of more, the _MOST frequent are shown
_MOST = 50

_KINDS = {
    "": "masks",
    "labelIds": "Cityscapes: the class of each pixel as official id (what evaluation starts from)",
    "labelTrainIds": "Cityscapes: the class of each pixel as train id, 0 to 18, the model's own indices",
    "instanceIds": "Cityscapes: single objects; no class masks",
    "instanceTrainIds": "Cityscapes: single objects by train id; no class masks",
    "color": "Cityscapes: the classes painted in colors, to look at",
}
_ENDINGS = "|".join(filter(None, _KINDS))
_KIND = re.compile(rf"_({_ENDINGS})$")
_PARTNER = re.compile(rf"(_gtFine|_gtCoarse)?_({_ENDINGS})$|_leftImg8bit$")

_FILE_TEXT = {
    "unreadable": "Cannot be read; the reasons are listed below. Fetch or export them again.",
    "jpeg": "JPEG alters labels at every edge, which cannot be undone: such masks are refused. Export them from their "
    "source as PNG. (If these are the images, name the folder that holds the masks alone.)",
    "mode": "Mode {}: neither one channel of values nor RGB; export them as 8-bit PNG with one channel.",
    "size": "The mask has another size than its image: {}. Export it again at the image's size, with nearest "
    "neighbor if it must be resized.",
    "exif": "The image is stored lying and turned upright by its EXIF orientation; the mask is not turned: {}. "
    "Turn the masks too, or write the images anew without the orientation if the masks fit what is stored.",
    "transposed": "Width and height of the mask are swapped: {}. It is transposed or turned, or the image lost "
    "an EXIF orientation on the way; which of them, the sizes cannot tell.",
    "no-image": "The mask has no image of the same path and name.",
    "image-unreadable": "The mask's image cannot be read.",
    "duplicate": "Another mask belongs to the same image (its name differs in the suffix only); one of them is too "
    "many.",
    "no-mask": "Images without a mask (no matter if the list of a split leaves them out).",
}

Size = tuple[int, int]


@dataclass(frozen=True)
class ValueCount:
    """How often one value, or one color, occurs.

    Attributes:
        value: The value in the files; for a color its 24 bits, red highest.
        pixels: Pixels in all files.
        files: Files that have it.
        role: `"class"`, `"ignored"`, `"stray"` (outside what was expected), or `"unknown"` without known classes.
        name: Of the class, empty if not known.
        color: Of the class or of the pixels, None if not known.
    """

    value: int
    pixels: int
    files: int
    role: str = "unknown"
    name: str = ""
    color: Color | None = None


@dataclass(frozen=True)
class MaskGroup:
    """Masks of one kind: all of a folder, or for Cityscapes those whose names end in the same word.

    Attributes:
        name: The word, such as `"labelIds"`; empty for masks that have none.
        text: What this kind is.
        files: Readable files.
        formats: How many files are in each format and mode, such as `{"PNG, mode P": 12}`.
        pixels: Of all files together.
        values: Of the files that hold values, by value.
        colors: Of the files that are in colors, by share; at most `MAX_COLORS`.
    """

    name: str
    text: str
    files: int
    formats: dict[str, int]
    pixels: int
    values: tuple[ValueCount, ...]
    colors: tuple[ValueCount, ...]


@dataclass(frozen=True)
class MaskCheck:
    """What `check_masks` found; `str()` of it is the report.

    Attributes:
        folder: As it was given.
        files: Masks found, unreadable ones too.
        groups: The masks by kind.
        findings: What is to be known or done, gravest first.
        unreadable: The reason for each file that cannot be used, by its path in the folder.
        sizes: (mask's width and height, upright image's) for each mask whose image has another size.
    """

    folder: str
    files: int
    groups: tuple[MaskGroup, ...]
    findings: tuple[Finding, ...]
    unreadable: dict[str, str]
    sizes: dict[str, tuple[Size, Size]]

    def __str__(self) -> str:
        lines = [f"{self.folder}: {plural(self.files, 'mask')}"]
        if self.unreadable:
            lines[0] += f", {len(self.unreadable):,} of them unreadable"
        for group in self.groups:
            formats = ", ".join(f"{count:,} {name}" for name, count in group.formats.items())
            title = f"*_{group.name}: {group.text}; " if group.name else ""
            lines += ["", f"{title}{formats}; {group.pixels:,} pixels"]
            lines += [*_table("VALUE", group.values), *_table("COLOR", group.colors)]
        if self.findings:
            lines += ["", *map(str, self.findings)]
        if self.unreadable:
            reasons = [f"  {name}: {reason}" for name, reason in self.unreadable.items()]
            lines += ["", "Unreadable:", *reasons[:20]]
            if len(reasons) > 20:
                lines.append(f"  … and {len(reasons) - 20:,} more")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as `json.dumps` takes it."""
        return asdict(self)

    def histogram(self) -> Image.Image:
        """A bar chart of the share of pixels of each value, one part for each kind of mask.

        Bars have the colors of the classes where they are known; ignored and stray values are hatched. Of more than
        256 values the most frequent are shown. The axis is logarithmic where shares differ more than 1000-fold.

        Raises:
            DatasetError: No mask could be read.
        """
        parts = []
        for group in self.groups:
            title = f"{f'*_{group.name}, ' if group.name else ''}{plural(group.files, 'mask')}, share of pixels"
            for counts, painted in ((group.values, False), (group.colors, True)):
                if counts:
                    parts.append(self._chart(title, counts, painted=painted))
        if not parts:
            raise DatasetError(f"there is nothing to draw: no mask in {self.folder} could be read")
        whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
        top = 0
        for part in parts:
            whole.paste(part, (0, top))
            top += part.height
        return whole

    def save_histogram(self, path: str | os.PathLike[str]) -> None:
        """Write `histogram()` to a PNG; an existing file is replaced."""
        image = self.histogram()
        with atomic_write(Path(path)) as file:
            image.save(file, format="PNG")

    def _chart(self, title: str, counts: Sequence[ValueCount], *, painted: bool) -> Image.Image:
        shown, total = _shown(counts), sum(count.pixels for count in counts)
        lines = [self.folder, title]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} of {self.files:,} masks unreadable")
        if len(shown) < len(counts):
            lines.append(f"{len(shown)} of {len(counts):,} values, the most frequent")
        bars = []
        for count in shown:
            value = f"#{count.value:06x}" if painted else str(count.value)
            role = count.role if count.role in _HATCHED else ""
            label = "  ".join(filter(None, (shortened(clean(count.name)), role, value)))
            share = count.pixels / total
            plain = (count.color or "#4878a8", "", "black")
            bars.append(Bar(label, share, percent(share), *_HATCHED.get(role, plain)))
        return Image.open(io.BytesIO(to_png(share_chart(bars, *lines), dpi=100))).convert("RGB")


_HATCHED = {"ignored": ("white", "////", "#808080"), "stray": ("#ffd0d0", "xxxx", "#c00000")}


def _shown(counts: Sequence[ValueCount]) -> Sequence[ValueCount]:
    return counts if len(counts) <= _SHOWN_VALUES else sorted(counts, key=lambda count: -count.pixels)[:_MOST]


def _table(head: str, counts: Sequence[ValueCount]) -> list[str]:
    if not counts:
        return []
    total, shown = sum(count.pixels for count in counts), _shown(counts)
    rows = [(head, "PIXELS", "SHARE", "FILES", "CLASS")]
    for count in shown:
        value = f"#{count.value:06x}" if head == "COLOR" else str(count.value)
        role = f"({count.role})" if count.role in _HATCHED else ""
        meaning = " ".join(filter(None, (clean(count.name), role)))
        rows.append((value, f"{count.pixels:,}", percent(count.pixels / total), f"{count.files:,}", meaning))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:4], widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    if len(shown) < len(counts):
        lines.append(f"… and {len(counts) - len(shown):,} values more, each with fewer pixels")
    return lines


def check_masks(
    folder: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    classes: LabelSpace | int | None = None,
    progress: bool | None = None,
) -> MaskCheck:
    """Look at every mask under a folder and tell what they hold.

    About 2 ms for a mask of 512x512 pixels. Memory grows with the number of files, by less than a kilobyte each for
    masks of classes, and not with their size.

    Args:
        folder: Looked through with the folders in it, for files with the suffixes of images; hidden ones are left
            out.
        images: The folder of the images, to compare sizes. An image and its mask have the same path in their
            folders, apart from the suffix and the endings of Cityscapes' names (`_leftImg8bit`, `_gtFine_labelIds`).
        classes: The classes that are expected, or their number.
        progress: Show a bar on standard error; None: if that is a terminal.

    Raises:
        DatasetError: A folder is missing or has no image in it.
        ValueError: `classes` is a number below 1, or `folder` and `images` are the same.
    """
    from tqdm import tqdm

    number, space = (len(classes), classes) if isinstance(classes, LabelSpace) else (classes, None)
    if number is not None and number < 1:
        raise ValueError(f"the number of classes must be at least 1, got {number}")
    root, image_root = Path(folder), None if images is None else Path(images)
    if image_root is not None and image_root.resolve() == root.resolve():
        raise ValueError(f"images and masks are in the same folder {root}; put each in a folder of their own")
    paths = _images_below(root, "masks", apart_from=image_root)
    image_files: dict[str, Path] = {}
    if image_root is not None:
        below = _images_below(image_root, "images", apart_from=root)
        image_files = {_key(path.relative_to(image_root)): path for path in below}

    seen: defaultdict[str, Seen] = defaultdict(Seen)
    unreadable: dict[str, str] = {}
    sizes: dict[str, tuple[Size, Size]] = {}
    problems: dict[str, dict[str, str]] = {problem: {} for problem in _FILE_TEXT}  # detail by file
    paired: set[tuple[str, str]] = set()
    with tqdm(paths, unit="mask", disable=None if progress is None else not progress) as bar:
        for path in bar:
            name, key = path.relative_to(root).as_posix(), _key(path.relative_to(root))
            kind = match[1] if (match := _KIND.search(path.stem)) else ""
            try:
                mask = open_mask(path)
            except (DatasetError, OSError) as error:
                unreadable[name] = " ".join(str(error).replace(str(path), name).split())
                problems["jpeg" if "is a JPEG" in str(error) else "unreadable"][name] = ""
                continue
            if mask.mode not in (*VALUE_MODES, *COLOR_MODES):
                unreadable[name] = f"has mode {mask.mode}, which is neither one channel of values nor RGB"
                problems["mode"][name] = mask.mode
                continue
            _add(seen[kind], name, mask)
            if image_root is None:
                continue
            if (key, kind) in paired:
                problems["duplicate"][name] = ""
            paired.add((key, kind))
            problem, size = _compared(mask.size, image_files.get(key))
            detail = ""
            if size is not None:
                sizes[name] = (mask.size, size)
                detail = f"{name} is {mask.width}x{mask.height}, its image {size[0]}x{size[1]}"
            if problem:
                problems[problem][name] = detail

    keys = {_key(path.relative_to(root)) for path in paths}
    problems["no-mask"] = {path.name: "" for key, path in image_files.items() if key not in keys}
    findings = [
        finding(
            problem,
            text.format(", ".join(sorted(set(problems[problem].values()))[:3])),
            list(problems[problem]),
            len(image_files) if problem == "no-mask" else len(paths),
        )
        for problem, text in _FILE_TEXT.items()
        if problems[problem]
    ]
    kinds = [kind for kind in _KINDS if kind in seen]
    if len(kinds) > 1:
        names = [name for kind in kinds for name in (*seen[kind].values.files, *seen[kind].colors.files)]
        counted = ", ".join(f"{seen[kind].formats.total():,} {f'*_{kind}' if kind else 'others'}" for kind in kinds)
        text = (
            f"Several kinds of masks of the same images: {counted}. Take one kind; isanet.datasets.Cityscapes takes "
            "*_labelIds."
        )
        findings.append(finding("several-kinds", text, names, len(names)))
    groups = []
    for kind in kinds:
        coding, found = judge(kind, seen[kind], number, space)
        findings += found
        groups.append(_group(kind, seen[kind], coding, space))
    return MaskCheck(str(folder), len(paths), tuple(groups), tuple(findings), unreadable, sizes)


def _images_below(root: Path, what: str, apart_from: Path | None) -> list[Path]:
    """The files with the suffix of an image, sorted, links followed, without those below `apart_from`."""
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root} to look for {what} in")
    apart = None if apart_from is None or apart_from.resolve() in root.resolve().parents else apart_from.resolve()
    seen: set[Path] = set()
    found: list[Path] = []
    others: Counter[str] = Counter()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in seen or real == apart:  # a link may lead back to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append(path)
            else:
                others[path.suffix.lower() or name] += 1
    if not found:
        listed = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(4))
        raise DatasetError(
            f"there are no {what} under {root}: no file there ends in {', '.join(sorted(SUFFIXES))}"
            + (f"; found were {listed}" if listed else "; it is empty")
        )
    return sorted(found)


def _key(path: Path) -> str:
    """What an image and its mask have in common."""
    return unicodedata.normalize("NFC", path.with_name(_PARTNER.sub("", path.stem)).as_posix())


def _add(seen: Seen, name: str, mask: Image.Image) -> None:
    """Count one mask."""
    seen.formats[f"{mask.format}, mode {mask.mode}"] += 1
    seen.area += mask.width * mask.height
    counts: dict[int, int]
    if mask.mode in COLOR_MODES:
        into, most = seen.colors, MAX_COLORS
        colors = mask.convert("RGB").getcolors(MAX_COLORS) or []
        counts = {int(packed(color)): count for count, color in colors}
    else:
        into, most = seen.values, MAX_VALUES
        if mask.mode in ("L", "P"):
            counts = {value: count for value, count in enumerate(mask.histogram()) if count}
        else:
            values, times = np.unique(np.asarray(mask), return_counts=True)
            counts = dict(zip(map(int, values), times.tolist(), strict=True))
    for value, count in counts.items():
        if value in into.pixels or len(into.pixels) < most:
            into.pixels[value] += count
    into.files[name] = array("q", sorted(counts)[:_KEPT_VALUES])
    if mask.mode == "1":
        seen.one_bit.append(name)
    if mask.mode == "P":
        seen.palette_files.append(name)
        if _palette_differs(seen.palette, mask, counts):
            seen.palettes_differ.append(name)


def _palette_differs(palette: dict[int, Color], mask: Image.Image, present: Iterable[int]) -> bool:
    """Add the colors of the indices that occur; whether one of them had another color before."""
    table = mask.getpalette("RGB") or []
    differs = False
    for index in present:
        if 3 * index + 3 <= len(table):
            color = (table[3 * index], table[3 * index + 1], table[3 * index + 2])
            differs |= palette.setdefault(index, color) != color
    return differs


def _compared(size: Size, image_path: Path | None) -> tuple[str, Size | None]:
    """What is wrong between a mask and its image, which is turned upright when it is read, and the size of that."""
    if image_path is None:
        return "no-image", None
    turned = False
    try:
        with image_path.open("rb") as stream:
            image = open_header(stream, image_path)
            stored = image.size
            # Pillow decodes the whole of a PNG for an orientation that may stand behind its pixels
            if image.format != "PNG" or "exif" in image.info or stored != size:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (ImageError, OSError):
        return "image-unreadable", None
    except Exception:  # a damaged EXIF block counts as none, as when the image is read
        turned = False
    upright = stored[::-1] if turned else stored
    if size == upright:
        return "", None
    return "exif" if turned and size == stored else "transposed" if size == upright[::-1] else "size", upright


def _group(kind: str, seen: Seen, coding: Coding, space: LabelSpace | None) -> MaskGroup:
    """The tables of one kind, with names as the coding reads the values."""
    known = space or (CITYSCAPES if coding.kind in ("official-ids", "train-ids") else None)
    ids = {value: index for index, value in enumerate(coding.ids or ())}
    files = Counter(value for held in seen.values.files.values() for value in held)
    values = []
    for value, pixels in sorted(seen.values.pixels.items()):
        role, name, color = "unknown", "", None
        if value in ids:
            role = "class"
            if known and ids[value] < len(known):
                name, color = known.classes[ids[value]], known.palette[ids[value]]
        elif value in coding.ignored:
            role = "ignored"
            if coding.kind == "official-ids" and value < len(CITYSCAPES_IDS):
                name = CITYSCAPES_IDS.classes[value]
        elif ids or (coding.kind == "interpolated" and value in (coding.concerned or ())):
            role = "stray"
        values.append(ValueCount(value, pixels, files[value], role, name, color))
    files = Counter(value for held in seen.colors.files.values() for value in held)
    names = dict(zip(space.palette, space.classes, strict=True)) if space else {}
    colors = [
        ValueCount(code, pixels, files[code], "class" if rgb in names else "unknown", names.get(rgb, ""), rgb)
        for code, pixels in seen.colors.pixels.most_common()
        for rgb in [unpacked(code)]
    ]
    count = seen.formats.total()
    return MaskGroup(
        kind, _KINDS[kind], count, dict(seen.formats.most_common()), seen.area, tuple(values), tuple(colors)
    )
