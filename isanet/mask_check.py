"""What the masks of a folder hold, and which arguments read them rightly.

Every mask is opened once; of each are kept its size, its mode and which values it has, of the folder how many pixels
each value has. What follows from that is said as findings, each with the files it concerns and, where an argument of
`isanet.datasets.Folder` helps, that argument. Where the files allow two readings, both are said.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet.errors import DatasetError, ImageError
from isanet.files import written_whole
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, generic_palette
from isanet.legend import shortened
from isanet.masks import open_mask
from isanet.preprocess import SUFFIXES, open_header

MAX_COLOURS = 300
"""Colours told apart in masks that are in colours; more are no classes anyway."""

MAX_VALUES = 70_000
"""Distinct values counted: all that 16 bits have, so that only files of 32 bits can exceed it."""

_KEPT_VALUES = 1024
"""Values remembered of each single file; masks of classes have fewer, and memory stays bounded for the others."""

_SHOWN_VALUES = 256
_EXAMPLES = 5
_VALUE_MODES = ("1", "L", "P", "I;16", "I;16L", "I;16B", "I;16N", "I")
_CITYSCAPES = LABEL_SPACES["cityscapes19"]
_CITYSCAPES_IDS = OFFICIAL_SPACES["cityscapes-ids"]
_VOC_BORDER = (224, 224, 192)
_BLACK_AND_WHITE = {(0, 0, 0), (255, 255, 255)}

_KIND = re.compile(r"_(labelIds|labelTrainIds|instanceIds|instanceTrainIds|color)$")
_KIND_TEXT = {
    "": "masks",
    "labelIds": "Cityscapes: the class of each pixel as official id (what evaluation starts from)",
    "labelTrainIds": "Cityscapes: the class of each pixel as train id, 0 to 18, the model's own indices",
    "instanceIds": "Cityscapes: single objects; no class masks",
    "instanceTrainIds": "Cityscapes: single objects by train id; no class masks",
    "color": "Cityscapes: the classes painted in colours, to look at",
}
_PARTNER = re.compile(
    r"(_gtFine|_gtCoarse)?_(labelIds|labelTrainIds|instanceIds|instanceTrainIds|color)$|_leftImg8bit$"
)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: A word by which programs tell findings apart, such as `"shifted"`.
        text: Sentences for people.
        files: How many files it concerns.
        of: How many files were looked at for it.
        examples: The first of the files.
        fix: Arguments of `isanet.datasets.Folder` that fix it, as Python; empty where none helps or is needed.
        option: The same for the command line; empty where there is none.
        group: The kind of file it is about, see `MaskGroup`; empty if there is one kind or it is about all.
    """

    kind: str
    text: str
    files: int
    of: int
    examples: tuple[str, ...]
    fix: str = ""
    option: str = ""
    group: str = ""

    def __str__(self) -> str:
        where = f"{self.group}: " if self.group else ""
        shown = ", ".join(self.examples[:3]) + (", …" if self.files > 3 else "")
        lines = [textwrap.fill(where + self.text, 110, initial_indent="* ", subsequent_indent="  ")]
        if self.fix:
            lines.append(f"    Python:        Folder(..., {self.fix})")
        if self.option:
            lines.append(f"    command line:  {self.option}")
        lines.append(f"  In {self.files:,} of {self.of:,} files, e.g. {shown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ValueCount:
    """How often one value, or one colour, occurs.

    Attributes:
        value: The value in the files; for a colour its 24 bits, red highest.
        pixels: Pixels in all files.
        files: Files that have it.
        role: `"class"`, `"ignored"`, `"stray"` (outside what was expected), or `"unknown"` without known classes.
        name: Of the class, empty if not known.
        colour: Of the class or of the pixels, None if not known.
    """

    value: int
    pixels: int
    files: int
    role: str = "unknown"
    name: str = ""
    colour: Colour | None = None


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
        colours: Of the files that are in colours, by share; at most `MAX_COLOURS`.
    """

    name: str
    text: str
    files: int
    formats: dict[str, int]
    pixels: int
    values: tuple[ValueCount, ...]
    colours: tuple[ValueCount, ...]


@dataclass(frozen=True)
class MaskCheck:
    """What `check_masks` found; `str()` of it is the report.

    Attributes:
        folder: As it was given.
        files: Masks found, unreadable ones too.
        groups: The masks by kind.
        findings: What is to be known or done, gravest first.
        unreadable: The reason for each file that cannot be used, by its path in the folder.
        sizes: (mask's width and height, upright picture's) for each mask whose picture has another size.
    """

    folder: str
    files: int
    groups: tuple[MaskGroup, ...]
    findings: tuple[Finding, ...]
    unreadable: dict[str, str]
    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]]

    def __str__(self) -> str:
        lines = [f"{self.folder}: {_count(self.files, 'mask')}"]
        if self.unreadable:
            lines[0] += f", {len(self.unreadable):,} of them unreadable"
        for group in self.groups:
            formats = ", ".join(f"{count:,} {name}" for name, count in group.formats.items())
            title = f"*_{group.name}: {group.text}; " if group.name else ""
            lines += ["", f"{title}{formats}; {group.pixels:,} pixels"]
            for head, counts in (("VALUE", group.values), ("COLOUR", group.colours)):
                lines += _table(head, counts)
        if self.findings:
            lines += ["", *map(str, self.findings)]
        if self.unreadable:
            listed = list(self.unreadable.items())[:20]
            lines += ["", "Unreadable:", *(f"  {name}: {reason}" for name, reason in listed)]
            if len(self.unreadable) > len(listed):
                lines.append(f"  … and {len(self.unreadable) - len(listed):,} more")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as `json.dumps` takes it."""
        return asdict(self)

    def histogram(self) -> Image.Image:
        """A bar chart of the share of pixels of each value, one part for each kind of mask.

        Bars have the colours of the classes where they are known; ignored and stray values are hatched. Of more than
        256 values the most frequent are shown. The axis is logarithmic where shares differ more than 1000-fold.

        Raises:
            DatasetError: No mask could be read.
        """
        charts = [
            (group, counts, painted)
            for group in self.groups
            for counts, painted in ((group.values, False), (group.colours, True))
            if sum(count.pixels for count in counts)
        ]
        if not charts:
            raise DatasetError(f"there is nothing to draw: no mask in {self.folder} could be read")
        files = f"{len(self.unreadable):,} of {self.files:,} masks unreadable" if self.unreadable else ""
        return _stacked(
            [
                _chart(
                    counts, "\n".join(filter(None, (f"{self.folder}: {_chart_title(group)}", files))), painted=painted
                )
                for group, counts, painted in charts
            ]
        )

    def save_histogram(self, path: str | os.PathLike[str]) -> None:
        """Write `histogram()` to a PNG; an existing file is replaced."""
        picture = self.histogram()
        with written_whole(Path(path)) as temporary:
            picture.save(temporary, format="PNG")


@dataclass(frozen=True)
class _File:
    """What is kept of one mask."""

    name: str
    size: tuple[int, int]
    values: NDArray[np.int64]  # which occur, ascending, at most _KEPT_VALUES; of colours: packed
    painted: bool = False
    uncounted: bool = False  # more colours than are told apart
    palette_differs: bool = False  # an index has another colour than in an earlier file


@dataclass
class _Tally:
    """What is summed over the masks of one kind."""

    files: list[_File] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    colours: Counter[int] = field(default_factory=Counter)
    palette: dict[int, Colour] = field(default_factory=dict)
    palette_files: list[str] = field(default_factory=list)
    total: int = 0


@dataclass(frozen=True)
class _Coding:
    """How values stand for classes, as far as the files tell."""

    kind: str
    text: str
    fix: str = ""
    option: str = ""
    ids: Sequence[int] | None = None  # the value of each class
    ignored: frozenset[int] = frozenset({IGNORED})
    concerned: frozenset[int] | None = None  # the values that the text is about; None: all files


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
        folder: Looked through with the folders in it, for files with the suffixes of pictures; hidden ones are left
            out.
        images: The folder of the pictures, to compare sizes. A picture and its mask have the same path in their
            folders, apart from the suffix and the endings of Cityscapes' names (`_leftImg8bit`, `_gtFine_labelIds`).
        classes: The classes that are expected, or their number.
        progress: Show a bar on standard error; None: if that is a terminal.

    Raises:
        DatasetError: A folder is missing or has no picture in it.
        ValueError: `classes` is a number below 1, or `folder` and `images` are the same.
    """
    from tqdm import tqdm

    number = len(classes) if isinstance(classes, LabelSpace) else classes
    if number is not None and number < 1:
        raise ValueError(f"the number of classes must be at least 1, got {number}")
    root, image_root = Path(folder), None if images is None else Path(images)
    if image_root is not None and image_root.resolve() == root.resolve():
        raise ValueError(f"pictures and masks are in the same folder {root}; put each in a folder of their own")
    paths = _pictures_below(root, "masks", apart_from=image_root)
    pictures = {} if image_root is None else _by_key(image_root, _pictures_below(image_root, "pictures", root))

    tallies: dict[str, _Tally] = {}
    unreadable: dict[str, str] = {}
    jpegs: list[str] = []
    other_modes: list[str] = []
    pairs = _Pairs()
    with tqdm(paths, unit="mask", disable=None if progress is None else not progress) as bar:
        for path in bar:
            name = path.relative_to(root).as_posix()
            kind = match[1] if (match := _KIND.search(path.stem)) else ""
            try:
                image = open_mask(path)
            except (DatasetError, OSError) as error:
                unreadable[name] = " ".join(str(error).replace(str(path), name).split())
                if _is_jpeg(path):
                    jpegs.append(name)
                continue
            if image.mode not in (*_VALUE_MODES, "RGB", "RGBA"):
                unreadable[name] = f"has mode {image.mode}, which is neither one channel of values nor RGB"
                other_modes.append(name)
                continue
            _add(tallies.setdefault(kind, _Tally()), name, image)
            if image_root is not None:
                _compare(pairs, name, kind, image.size, pictures.get(_key(path.relative_to(root))))

    groups, findings = [], []
    for kind, tally in sorted(tallies.items(), key=lambda item: list(_KIND_TEXT).index(item[0])):
        group, found = _judge(kind if len(tallies) > 1 or kind else "", tally, classes, number)
        groups.append(group)
        findings += found
    if len(tallies) > 1:
        findings.insert(0, _several_kinds(tallies))
    everything = _everywhere(root, paths, unreadable, jpegs, other_modes)
    if image_root is not None:
        keys = {_key(path.relative_to(root)) for path in paths}
        everything += _pair_findings(pairs, len(paths), pictures, keys)
    return MaskCheck(
        str(folder),
        len(paths),
        tuple(groups),
        tuple(everything + findings),
        unreadable,
        dict(sorted(pairs.sizes.items())),
    )


# --- looking ---------------------------------------------------------------------------------------------------------


def _pictures_below(root: Path, what: str, apart_from: Path | None) -> list[Path]:
    """The files with the suffix of a picture, sorted, links followed, without those below `apart_from`."""
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
    """What a picture and its mask have in common."""
    return path.with_name(_PARTNER.sub("", path.stem)).as_posix()


def _by_key(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    return {_key(path.relative_to(root)): path for path in paths}


def _is_jpeg(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(3) == b"\xff\xd8\xff"
    except OSError:
        return False


def _add(tally: _Tally, name: str, image: Image.Image) -> None:
    """Count one mask."""
    tally.formats[f"{image.format}, mode {image.mode}"] += 1
    tally.total += image.width * image.height
    if image.mode in ("RGB", "RGBA"):
        colours = image.convert("RGB").getcolors(MAX_COLOURS)
        if colours is None:
            tally.files.append(_File(name, image.size, np.empty(0, np.int64), painted=True, uncounted=True))
            return
        counts = {_packed(colour): count for count, colour in colours}  # type: ignore[arg-type]  # RGB gives tuples
        _count_up(tally.colours, counts, MAX_COLOURS)
        present = np.array(sorted(counts), np.int64)
        tally.files.append(_File(name, image.size, present, painted=True))
        return
    if image.mode in ("L", "P"):
        counts = {value: count for value, count in enumerate(image.histogram()) if count}
    else:
        values = np.asarray(image)
        if values.dtype == np.int32:
            found, times = np.unique(values, return_counts=True)
        else:
            times = np.bincount(values.ravel())
            (found,) = np.nonzero(times)
            times = times[found]
        counts = dict(zip(found.tolist(), times.tolist(), strict=True))
    _count_up(tally.pixels, counts, MAX_VALUES)
    differs = image.mode == "P" and _add_palette(tally, name, image, counts)
    present = np.array(sorted(counts)[:_KEPT_VALUES], np.int64)
    tally.files.append(_File(name, image.size, present, palette_differs=differs))


def _count_up(total: Counter[int], counts: Mapping[int, int], limit: int) -> None:
    for value, count in counts.items():
        if value in total or len(total) < limit:
            total[value] += count


def _add_palette(tally: _Tally, name: str, image: Image.Image, present: Iterable[int]) -> bool:
    """Remember the colours of the indices that occur; whether one of them had another colour in an earlier file."""
    tally.palette_files.append(name)
    table = image.getpalette("RGB") or []
    differs = False
    for index in present:
        if 3 * index + 3 <= len(table):
            colour = (table[3 * index], table[3 * index + 1], table[3 * index + 2])
            differs |= tally.palette.setdefault(index, colour) != colour
    return differs


@dataclass
class _Pairs:
    """Masks whose picture does not fit, by what is wrong."""

    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    by_reason: dict[str, list[str]] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)


def _compare(pairs: _Pairs, name: str, kind: str, size: tuple[int, int], picture: Path | None) -> None:
    """Hold the size of a mask against that of its picture, which is turned upright when it is read."""

    def note(reason: str) -> None:
        pairs.by_reason.setdefault(reason, []).append(name)

    key = (_key(Path(name)), kind)
    if key in pairs.seen:
        note("duplicate")
    pairs.seen.add(key)
    if picture is None:
        note("no-picture")
        return
    try:
        with picture.open("rb") as stream:
            image = open_header(stream, picture)
            stored, turned = image.size, False
            # Pillow decodes the whole of a PNG for an orientation that may stand behind its pixels
            if image.format != "PNG" or "exif" in image.info or stored != size:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (ImageError, OSError):
        note("picture-unreadable")
        return
    except Exception:  # a damaged EXIF block counts as none, as when the picture is read
        turned = False
    upright = stored[::-1] if turned else stored
    if size == upright:
        return
    pairs.sizes[name] = (size, upright)
    note("exif" if turned and size == stored else "transposed" if size == upright[::-1] else "size")


# --- judging ---------------------------------------------------------------------------------------------------------


def _judge(
    kind: str, tally: _Tally, classes: LabelSpace | int | None, number: int | None
) -> tuple[MaskGroup, list[Finding]]:
    """What the masks of one kind are."""
    space = classes if isinstance(classes, LabelSpace) else None
    files = tally.files
    painted = [file for file in files if file.painted]
    plain = [file for file in files if not file.painted]
    findings: list[Finding] = []

    def found(kind_: str, text: str, concerned: Sequence[str], fix: str = "", option: str = "", of: int = 0) -> None:
        examples = tuple(concerned[:_EXAMPLES])
        findings.append(Finding(kind_, text, len(concerned), of or len(files), examples, fix, option, kind))

    per_value = Counter(value for file in plain for value in file.values.tolist())
    coding = None
    if plain:
        voc_palette = _is_voc_palette(tally.palette)
        coding = _coding(kind, tally.pixels, per_value, len(plain), number, space, voc_palette)
        concerned = coding.concerned
        names = [file.name for file in plain if concerned is None or not concerned.isdisjoint(file.values.tolist())]
        found(coding.kind, coding.text, names or [file.name for file in plain], coding.fix, coding.option, len(plain))
        _value_findings(found, plain, tally, coding, number, space)
        if tally.palette_files:
            _palette_findings(found, plain, tally, voc_palette)
    if painted:
        _colour_findings(found, kind, painted, tally, number, space)
    if painted and plain:
        rarer = min((painted, plain), key=len)
        found(
            "mixed",
            f"{len(plain):,} masks hold values and {len(painted):,} are in colours; one reading does not fit both: "
            "export them alike, or put them in folders of their own.",
            [file.name for file in rarer],
        )
    names_known = space or (_CITYSCAPES if coding and coding.kind in ("official-ids", "train-ids") else None)
    values = [_named(v, n, per_value[v], coding, number, names_known) for v, n in sorted(tally.pixels.items())]
    per_colour = Counter(value for file in painted for value in file.values.tolist())
    palette = dict(zip(space.palette, space.classes, strict=True)) if space else {}
    colours = [
        ValueCount(
            code,
            pixels,
            per_colour[code],
            "class" if _unpacked(code) in palette else "unknown",
            palette.get(_unpacked(code), ""),
            _unpacked(code),
        )
        for code, pixels in tally.colours.most_common()
    ]
    group = MaskGroup(
        kind,
        _KIND_TEXT[kind],
        len(files),
        dict(tally.formats.most_common()),
        tally.total,
        tuple(values),
        tuple(colours),
    )
    return group, findings


def _coding(
    kind: str,
    pixels: Mapping[int, int],
    files: Mapping[int, int],
    total: int,
    number: int | None,
    space: LabelSpace | None,
    voc_palette: bool,
) -> _Coding:
    """How the values stand for classes.

    Args:
        kind: The ending of the files' names.
        pixels: Of each value.
        files: That have each value.
        total: Number of files.
        number: Of the expected classes, or None.
        space: Of the expected classes, or None.
        voc_palette: The files carry the VOC colour map, so 255 is its border.
    """
    ignored = frozenset({IGNORED, 65535}) if number is None or number <= IGNORED else frozenset({65535})
    present = frozenset(pixels)
    core = present - ignored
    shown = _ranges(core)
    ignore_fix, ignore_option = _ignore(present & ignored)

    if kind.startswith("instance") or _like_instance_ids(present):
        sure = "By their names these are" if kind.startswith("instance") else "The values look like"
        return _Coding(
            "instance-ids",
            f"{sure} Cityscapes' instance ids (class id x 1000 + number of the object), no class masks. The class "
            "masks are the files *_labelIds.png; of an instance file, values from 1000 on divided by 1000 are label "
            "ids.",
            ignored=frozenset(),
            concerned=frozenset(value for value in present if value >= 1000) or None,
        )

    cityscapes = number is None or (number == 19 and (space is None or space.classes == _CITYSCAPES.classes))
    fits_ids = core <= set(range(34)) and cityscapes
    if kind == "labelIds" and cityscapes:
        extra = core - set(range(34))
        but = f" Only {_ranges(extra)} are none: stray values." if extra else ""
        return _official(
            f"Official Cityscapes ids, by name and by values ({shown}).{but} isanet.datasets.Cityscapes reads "
            "them; in a folder of one's own:"
        )
    if kind == "labelTrainIds" and core <= set(range(19)) and cityscapes:
        return _Coding(
            "train-ids",
            f"Cityscapes' train ids, by name and by values ({shown}): the models' own indices.",
            'classes="cityscapes19"',
            ids=range(19),
        )

    # 255 is a class where all files have two values, 0 and 255, and nothing says that it is the border of VOC
    binary = present == {0, 255} and not voc_palette and (number is None or number >= 2)
    if binary or (not core <= set(range(number or 0)) and _far_apart(present, ignored, number)):
        blurred = None if number == len(present) else _interpolated(pixels, ignored)
        return blurred or _grey_levels(present, number, certain=not binary and number == len(present))

    if number is not None:
        expected = set(range(number))
        if core <= expected:
            unseen_first = 0 not in core and number > 1 and bool(core)
            text = f"Class indices as expected: {shown}, of {number} classes."
            if space is not None and space.classes == _CITYSCAPES.classes:
                text = f"Cityscapes' train ids ({shown}), the model's own indices, not the official ids."
            if unseen_first:
                return _Coding(
                    "shifted-unsure",
                    f"The values {shown} fit {number} classes, but 0 never occurs: either no pixel has the class "
                    f"{_class(space, 0)}, or the classes are counted from 1 (and class {_class(space, number - 1)} "
                    "never occurs). Compare one mask with its picture; if they are counted from 1:",
                    f"ids={_python(range(1, number + 1))}",
                    f"--ids {_ranges(range(1, number + 1))}",
                    range(number),
                )
            if space is not None and space.classes == _CITYSCAPES.classes:
                return _Coding("train-ids", text, ids=range(number))
            return _Coding("plain", text + _ignore_text(ignore_fix), ignore_fix, ignore_option, range(number))
        if fits_ids and not core <= set(range(1, 20)):
            return _official(
                f"The values {shown} are more than the 19 classes have, and fit the official Cityscapes ids, 0 to 33."
            )
        if core <= {*expected, number}:
            return _shifted(pixels, files, total, number, space, core, present)
        blurred = _interpolated(pixels, ignored)
        if blurred:
            return blurred
        stray = core - expected
        return _Coding(
            "stray",
            f"Neither a class (0 to {number - 1}) nor 255: {_ranges(stray)} "
            f"({_percent(sum(pixels[v] for v in stray), sum(pixels.values()))} of the pixels). What that means is not "
            "known: a class that is missing from the list, another number that means 'ignore', or a mask that was "
            "resized with interpolation, which makes new values at edges. Mend the files; or, to ignore all such "
            "values:",
            'ignore="rest"',
            "--ignore rest",
            range(number),
            concerned=stray,
        )

    if fits_ids and not voc_palette and max(core, default=0) > 20 and len(core & {7, 8, 11, 21, 23, 26}) >= 3:
        doubt = "" if len(core) < 34 else " Plain indices of 34 classes would look the same."
        return _official(
            f"The values {shown} fit the official Cityscapes ids (7 road, 11 building, 23 sky, 26 car), though their "
            f"names do not say so.{doubt} If that is what they are:"
        )
    blurred = _interpolated(pixels, ignored)
    if blurred:
        return blurred
    if len(core) > IGNORED:
        return _Coding(
            "too-many-values",
            f"{len(core):,} different values, {min(core)} to {max(core)}: not classes, rather depths, heights or "
            "numbers of objects.",
            ignored=frozenset(),
        )
    consecutive = sorted(core) == list(range(min(core, default=0), max(core, default=-1) + 1))
    if core and 0 not in core:
        top = max(core)
        return _Coding(
            "shifted-unsure",
            f"The values are {shown}, and 0 never occurs. If there are {top} classes, they are counted from 1; if "
            f"there are more, class 0 just never occurs. Say how many there are to be sure. If counted from 1:",
            f"ids={_python(range(1, top + 1))}",
            f"--ids {_ranges(range(1, top + 1))}",
        )
    top = max(core, default=0)
    text = f"Class indices {shown}, as it seems" + ("" if consecutive else ", with gaps") + "."
    if top > 0:
        text += (
            f" With {top + 1} classes they are read as they are; if 0 is 'other' or 'unlabelled', there are {top} "
            f"classes and ids={_python(range(1, top + 1))} is right{', as for ADE20K' if top == 150 else ''}. The "
            "values cannot tell which: say how many classes there are."
        )
    return _Coding("plain", text + _ignore_text(ignore_fix), ignore_fix, ignore_option)


def _ignore_text(fix: str) -> str:
    """The sentence that goes before an `ignore` argument."""
    return " 65535 looks like the value for 'ignore' in 16 bits:" if fix else ""


def _ignore(special: Iterable[int]) -> tuple[str, str]:
    """The arguments that ignore these values, nothing if the default does."""
    values = sorted(special)
    if 65535 not in values:
        return "", ""
    return f"ignore={_python(values)}", f"--ignore {_ranges(values)}"


def _official(text: str) -> _Coding:
    return _Coding(
        "official-ids",
        text,
        'classes="cityscapes19", ids="official", ignore="rest"',
        "--classes cityscapes19 --ids official --ignore rest",
        _CITYSCAPES.official_ids,
        frozenset(range(34)) - set(_CITYSCAPES.official_ids) | {IGNORED},
    )


def _shifted(
    pixels: Mapping[int, int],
    files: Mapping[int, int],
    total: int,
    number: int,
    space: LabelSpace | None,
    core: frozenset[int],
    present: frozenset[int],
) -> _Coding:
    """The values reach `number`, one more than the last index."""
    fix, option = f"ids={_python(range(1, number + 1))}", f"--ids {_ranges(range(1, number + 1))}"
    if 0 not in core:
        return _Coding(
            "shifted",
            f"The values are {_ranges(core)}: {number} occurs, 0 does not, so the {number} classes are counted from 1.",
            fix,
            option,
            range(1, number + 1),
        )
    rare = total >= 10 and files[number] <= max(1, total // 200)
    share = _percent(pixels[number], sum(pixels.values()))
    ignore = sorted({0} | (present & {IGNORED, 65535}) | {IGNORED})
    known = space is not None and space.official_ids == tuple(range(1, number + 1))
    if rare and not known:
        return _Coding(
            "stray",
            f"The value {number} is outside 0 to {number - 1}: in {_count(files[number], 'file')} ({share} of the "
            f"pixels), too few to say why. Likely a stray value; but where 0 means 'other', the classes are counted "
            f"from 1 (ids={_python(range(1, number + 1))}). Mend the files; or, to ignore such values:",
            'ignore="rest"',
            "--ignore rest",
            range(number),
            concerned=frozenset({number}),
        )
    which = f" {space.name} is counted so in its own files." if known and space else ""
    return _Coding(
        "shifted-zero-other",
        f"The values are {_ranges(core)}, one more than {number} classes have. That 0 and {number} occur is certain; "
        f"why is not: 0 is probably 'other', as in ADE20K, and the classes are counted from 1.{which} If instead 0 is "
        f"a class, {number} ({share} of the pixels) is a stray value or a class more. If 0 is 'other':",
        f"{fix}, ignore={_python(ignore)}",
        f"{option} --ignore {_ranges(ignore)}",
        range(1, number + 1),
        frozenset(ignore),
    )


def _grey_levels(present: frozenset[int], number: int | None, *, certain: bool) -> _Coding:
    levels = sorted(present)
    text = f"Few values, far apart: {', '.join(map(str, levels))}. These look like grey levels, not class indices."
    if levels == [0, 255]:
        text = (
            "The only values are 0 and 255: two classes painted black and white, probably. (The other reading, that "
            "all is class 0 or ignored, is possible and useless.)"
        )
    elif number is not None and number != len(levels):
        text += f" They are {len(levels)}, but the classes are {number}: which value is which class only you know."
    elif not certain:
        text += " (Unless the folder is a small part of a set with many classes.)"
    if 255 in present:
        text += " 255 is a class then and not ignored."
    exact = number is None or number == len(levels)
    return _Coding(
        "grey-levels",
        text + " Classes in the order of the values:" * exact,
        f"ids={_python(levels)}{', ignore=()' if IGNORED in present else ''}" if exact else "",
        # the command line has no empty list; no value is left for the rest
        f"--ids {','.join(map(str, levels))}{' --ignore rest' if IGNORED in present else ''}" if exact else "",
        levels if exact else None,
        frozenset(),
    )


def _far_apart(present: frozenset[int], ignored: frozenset[int], number: int | None) -> bool:
    """Few values, far from each other, that reach up to where class indices seldom do."""
    levels = sorted(present)
    if number is not None and number != len(levels) and sum(level < number for level in levels) > 1:
        return False  # several are indices, and the others rather stray
    if not 2 <= len(levels) <= 32 or (max(present - ignored, default=0) < 64 and number != len(levels)):
        return False
    return min(b - a for a, b in itertools.pairwise(levels)) >= 8 and levels[-1] <= IGNORED


def _interpolated(pixels: Mapping[int, int], ignored: frozenset[int]) -> _Coding | None:
    """A few values far apart that have nearly all pixels, and several between them that have hardly any."""
    total, covered, main = sum(pixels.values()), 0, set()
    for value, count in sorted(pixels.items(), key=lambda item: -item[1]):
        if covered >= 0.9 * total:
            break
        covered += count
        main.add(value)
    levels = sorted(main)
    between = {value for value in pixels if value not in main and levels[0] < value < levels[-1]}
    if not 2 <= len(levels) <= 32 or len(between) < 4 or max(levels) > IGNORED:
        return None
    if min(b - a for a, b in itertools.pairwise(levels)) < 8 or max(levels) < 64:
        return None
    return _Coding(
        "interpolated",
        f"The values {', '.join(map(str, levels))} have {_percent(covered, total)} of the pixels; {len(between)} other "
        "values lie between them. That is what smoothed edges or resizing with interpolation make, and no argument "
        "mends it: export the masks again without smoothing (nearest neighbour). (Rare classes would look the same "
        "only if their values were chosen so.)",
        ignored=frozenset(),
        concerned=frozenset(between),
    )


def _like_instance_ids(present: frozenset[int]) -> bool:
    large = {value for value in present if value >= 1000 and value != 65535}
    return len(large) > 0 and all(
        24 <= value // 1000 <= 33 if value in large else value < 34 or value in (IGNORED, 65535) for value in present
    )


def _value_findings(
    found: Callable[..., None],
    plain: Sequence[_File],
    tally: _Tally,
    coding: _Coding,
    number: int | None,
    space: LabelSpace | None,
) -> None:
    """What is ignored, what is constant, what never occurs."""
    of, total = len(plain), sum(tally.pixels.values())
    if coding.kind in ("instance-ids", "too-many-values", "interpolated"):
        return
    ignored = coding.ignored - set(coding.ids or ())
    skipped = sorted(set(tally.pixels) & ignored)
    if skipped:
        share = _percent(sum(tally.pixels[value] for value in skipped), total)
        named = "The value" if len(skipped) == 1 else "The values"
        found(
            "ignored",
            f"{named} {_ranges(skipped)} ({share} of the pixels) {'is' if len(skipped) == 1 else 'are'} ignored, "
            + ("as by default." if skipped == [IGNORED] else "read like that."),
            [file.name for file in plain if ignored & set(file.values.tolist())],
            of=of,
        )
    empty = [file.name for file in plain if len(file.values) and ignored.issuperset(file.values.tolist())]
    if empty:
        found("all-ignored", "Every pixel is ignored; nothing is learnt or counted from such masks.", empty, of=of)
    flat = [file.name for file in plain if len(file.values) == 1 and file.name not in set(empty)]
    if flat:
        held = Counter(int(file.values[0]) for file in plain if len(file.values) == 1 and file.values[0] not in ignored)
        listed = ", ".join(f"{value} in {_count(count, 'file')}" for value, count in held.most_common(5))
        found("single-value", f"One value in the whole mask ({listed}): right for pictures of one class.", flat, of=of)
    if number is not None and coding.ids is not None and len(coding.ids) == number:
        unseen = [index for index, value in enumerate(coding.ids) if value not in tally.pixels]
        if unseen:
            names = ", ".join(_class(space, index) for index in unseen[:12]) + (", …" if len(unseen) > 12 else "")
            found(
                "never-seen",
                f"{_count(len(unseen), 'class', 'classes')} of {number} never "
                f"{'occurs' if len(unseen) == 1 else 'occur'}: {names}. IoU is not defined there on these masks.",
                [file.name for file in plain],
                of=of,
            )


def _palette_findings(found: Callable[..., None], plain: Sequence[_File], tally: _Tally, voc: bool) -> None:
    differing = [file.name for file in plain if file.palette_differs]
    if differing:
        found(
            "palettes-differ",
            "The same index has different colours in different files, so an index does not mean one class "
            "throughout: some program gave each file a palette of its own. Export them with one palette, or as RGB.",
            differing,
            of=len(plain),
        )
        return
    index = max((i for i in tally.palette if i not in (0, IGNORED)), default=None)
    warning = ""
    if index is not None:
        grey = Image.new("RGB", (1, 1), tally.palette[index]).convert("L").getpixel((0, 0))
        warning = f" A program that turns them into grey would read {grey} where the class is {index}; isanet does not."
    found(
        "palette",
        f"Palette pictures, read as indices{', with the colours of VOC' if voc else ''}: nothing to do.{warning}",
        tally.palette_files,
        of=len(plain),
    )


def _is_voc_palette(palette: Mapping[int, Colour]) -> bool:
    voc = dict(enumerate(generic_palette(256))) | {IGNORED: _VOC_BORDER}
    known = [
        voc[index] == colour or (index == IGNORED and colour == (255, 255, 255)) for index, colour in palette.items()
    ]
    return all(known) and any(index not in (0, IGNORED) for index in palette)


def _colour_findings(
    found: Callable[..., None],
    kind: str,
    painted: Sequence[_File],
    tally: _Tally,
    number: int | None,
    space: LabelSpace | None,
) -> None:
    """What masks in colours are."""
    of = len(painted)
    names = [file.name for file in painted]
    wild = [file.name for file in painted if file.uncounted]
    colours = [_unpacked(code) for code, _ in tally.colours.most_common()]
    total = sum(tally.colours.values())
    if wild or len(colours) >= MAX_COLOURS:
        found(
            "too-many-colours",
            f"More than {MAX_COLOURS} colours{'' if wild else ' in all files together'}: photographs, or masks whose "
            "edges were smoothed or which were compressed with loss. They cannot be read as classes; export them "
            "again, without smoothing (nearest neighbour), as PNG.",
            wild or names,
            of=of,
        )
        return
    if all(r == g == b for r, g, b in colours):
        values = sorted(colour[0] for colour in colours)
        core = [value for value in values if value != IGNORED]
        indices = range(number or max(core, default=0) + 1)
        if set(core) <= set(indices) and values != [0, 255]:
            fix = f"colours=tuple((v, v, v) for v in range({len(indices)}))"
            option = _hex([(v, v, v) for v in indices])
            doubt = "" if number else f" if there are {len(indices)} classes"
        else:
            fix, doubt = f"colours={tuple((v, v, v) for v in values)}", " if each of these values is a class"
            option = _hex([(v, v, v) for v in values])
        found(
            "grey-as-rgb",
            f"Grey saved as RGB: red, green and blue are equal everywhere (values {_ranges(values)}). Save one "
            f"channel; or read them as they are,{doubt or ' by'}:",
            names,
            fix if len(values) <= 64 or "range" in fix else "",
            option,
            of=of,
        )
        return
    telling = set(colours) - _BLACK_AND_WHITE
    fits = _known_palettes(telling, number, space)
    if fits:
        name, fix, option, remark = fits[0]
        doubt = ""
        if len(fits) > 1:
            doubt = f" They fit {', '.join(fit[0] for fit in fits[1:])} as well; which it is, only you know."
        elif len(telling) < 3 and space is None and kind != "color":
            doubt = " Colours so few may fit by chance."
        found(
            "known-colours",
            f"Painted in {_count(len(colours), 'colour')}, all of {name}.{remark}{doubt}{' If so:' if fix else ''}",
            names,
            fix,
            option,
            of=of,
        )
        return
    few, covered = 0, 0
    for count in sorted(tally.colours.values(), reverse=True):
        if covered >= 0.95 * total:
            break
        covered, few = covered + count, few + 1
    if len(colours) >= 16 and few * 4 <= len(colours):
        found(
            "too-many-colours",
            f"{len(colours)} colours, {few} of which have {_percent(covered, total)} of the pixels: probably masks "
            "with smoothed edges. Export them again without smoothing (nearest neighbour).",
            names,
            of=of,
        )
        return
    listed = sorted(telling | ({(0, 0, 0)} & set(colours)), key=colours.index)
    found(
        "colours",
        f"Painted in {_count(len(colours), 'colour')} of no palette that is known here. Give the colour of each class, "
        "in the order of your classes (black and white are ignored unless they are listed):",
        names,
        f"colours={tuple(listed)}" if len(listed) <= 32 else "",
        _hex(listed),
        of=of,
    )


def _known_palettes(
    telling: set[Colour], number: int | None, space: LabelSpace | None
) -> list[tuple[str, str, str, str]]:
    """Name, arguments, options and a remark for each palette that has all these colours."""
    if not telling:
        return []
    fits: list[tuple[str, str, str, str]] = []
    known = list(LABEL_SPACES.values())
    if space is not None and telling <= set(space.palette):  # the expected one goes before all others
        known = [space]
    for each in known:
        if telling <= set(each.palette) and (number is None or number == len(each)):
            fits.append((f"the palette of {each.name}", *_by_palette(each), _REMARKS.get(each.name, "")))
    if fits:
        return fits
    voc = LABEL_SPACES["voc21"]
    if _VOC_BORDER in telling and telling - {_VOC_BORDER} <= set(voc.palette) and number in (None, 21):
        border = " #e0e0c0 is the border of objects, which is no class: paint it white, which is ignored."
        fits.append(("the palette of voc21 and its border", *_by_palette(voc), border))
    if telling <= set(_CITYSCAPES_IDS.palette) and number in (None, 19):
        remark = (
            " Some are of classes that are not among the 19, and pole and polegroup have one colour: take the files "
            "*_labelIds.png instead."
        )
        fits.append(("the official palette of Cityscapes", "", "", remark))
    if number is not None and number != 21 and telling <= set(generic_palette(number)):
        fix = f"colours=isanet.labels.generic_palette({number})"
        fits.append(("the colour map of VOC", fix, _hex(generic_palette(number)), ""))
    return fits


_REMARKS = {
    "ade20k150": " Road and skyscraper have one colour, so it cannot be undone: take ADE20K's own masks of values.",
    "voc21": " Other programs use the colours of VOC for classes of their own.",
}


def _by_palette(space: LabelSpace) -> tuple[str, str]:
    """The arguments that read masks in the colours of a space; none if two classes share one."""
    if len(set(space.palette)) < len(space):
        return "", ""
    if LABEL_SPACES.get(space.name) == space:
        return f'colours=isanet.labels.label_space("{space.name}").palette', f"--colours {space.name}"
    return f"colours={space.palette}", _hex(space.palette)


def _hex(colours: Sequence[Colour]) -> str:
    """Colours for the command line, without the # that shells take for a comment."""
    return "--colours " + ",".join(bytes(colour).hex() for colour in colours) if len(colours) <= 32 else ""


def _several_kinds(tallies: Mapping[str, _Tally]) -> Finding:
    files = [file.name for tally in tallies.values() for file in tally.files]
    kinds = ", ".join(f"{len(tally.files):,} {f'*_{kind}' if kind else 'others'}" for kind, tally in tallies.items())
    return Finding(
        "several-kinds",
        f"Several kinds of masks of the same pictures: {kinds}. Take one kind; isanet.datasets.Cityscapes takes "
        "*_labelIds.",
        len(files),
        len(files),
        tuple(files[:_EXAMPLES]),
    )


def _everywhere(
    root: Path, paths: Sequence[Path], unreadable: Mapping[str, str], jpegs: list[str], other_modes: list[str]
) -> list[Finding]:
    """Findings about files that were not counted."""
    of, findings = len(paths), []
    damaged = [name for name in unreadable if name not in {*jpegs, *other_modes}]
    if damaged:
        findings.append(
            Finding(
                "unreadable",
                "Cannot be read; the reasons are listed below. Fetch or export them again.",
                len(damaged),
                of,
                tuple(damaged[:_EXAMPLES]),
            )
        )
    if jpegs:
        findings.append(
            Finding(
                "jpeg",
                "JPEG alters labels at every edge, which cannot be undone: such masks are refused. Export them from "
                "their source as PNG. (If these are the pictures, name the folder that holds the masks alone.)",
                len(jpegs),
                of,
                tuple(jpegs[:_EXAMPLES]),
            )
        )
    if other_modes:
        modes = ", ".join(sorted({unreadable[name].split()[2].rstrip(",") for name in other_modes}))
        findings.append(
            Finding(
                "mode",
                f"Mode {modes}: neither one channel of values nor RGB; export them as 8-bit PNG with one channel.",
                len(other_modes),
                of,
                tuple(other_modes[:_EXAMPLES]),
            )
        )
    return findings


_PAIR_TEXT = {
    "size": "The mask has another size than its picture: {sizes}. Export it again at the picture's size, with nearest "
    "neighbour if it must be resized.",
    "exif": "The picture is stored lying and turned upright by its EXIF orientation; the mask is not turned: {sizes}. "
    "Turn the masks too, or write the pictures anew without the orientation if the masks fit what is stored.",
    "transposed": "Width and height of the mask are swapped: {sizes}. It is transposed or turned, or the picture lost "
    "an EXIF orientation on the way; which of them, the sizes cannot tell.",
    "no-picture": "The mask has no picture of the same path and name.",
    "picture-unreadable": "The mask's picture cannot be read.",
    "duplicate": "Another mask belongs to the same picture (its name differs in the suffix only); one of them is too "
    "many.",
}


def _pair_findings(pairs: _Pairs, of: int, pictures: Mapping[str, Path], keys: set[str]) -> list[Finding]:
    findings = []
    for reason, text in _PAIR_TEXT.items():
        names = pairs.by_reason.get(reason, [])
        if names:
            sizes = "; ".join(
                f"{name} is {size[0]}x{size[1]}, its picture {picture[0]}x{picture[1]}"
                for name in names[:3]
                if name in pairs.sizes
                for size, picture in [pairs.sizes[name]]
            )
            findings.append(Finding(reason, text.format(sizes=sizes), len(names), of, tuple(names[:_EXAMPLES])))
    alone = [path.name for key, path in pictures.items() if key not in keys]
    if alone:
        text = "Pictures without a mask (no matter if the list of a split leaves them out)."
        findings.append(Finding("no-mask", text, len(alone), len(pictures), tuple(alone[:_EXAMPLES])))
    return findings


# --- showing ---------------------------------------------------------------------------------------------------------


def _named(
    value: int, pixels: int, files: int, coding: _Coding | None, number: int | None, space: LabelSpace | None
) -> ValueCount:
    """A row of the table: the value, as the coding reads it."""
    assert coding is not None
    if coding.ids is not None and value in coding.ids:
        index = list(coding.ids).index(value)
        name = space.classes[index] if space and index < len(space) else ""
        colour = space.palette[index] if space and index < len(space) else None
        return ValueCount(value, pixels, files, "class", name, colour)
    if value in coding.ignored:
        named = coding.kind == "official-ids" and value < len(_CITYSCAPES_IDS)
        return ValueCount(value, pixels, files, "ignored", _CITYSCAPES_IDS.classes[value] if named else "")
    stray = coding.ids is not None or (coding.kind == "interpolated" and value in (coding.concerned or ()))
    return ValueCount(value, pixels, files, "stray" if stray else "unknown")


def _table(head: str, counts: Sequence[ValueCount]) -> list[str]:
    total = sum(count.pixels for count in counts)
    shown = counts if len(counts) <= _SHOWN_VALUES else sorted(counts, key=lambda count: -count.pixels)[:40]
    rows = [(head, "PIXELS", "SHARE", "FILES", "CLASS")] if counts else []
    for count in shown:
        value = f"#{count.value:06x}" if head == "COLOUR" else str(count.value)
        meaning = count.name if count.role == "class" else " ".join(filter(None, (count.name, _ROLE[count.role])))
        rows.append((value, f"{count.pixels:,}", _percent(count.pixels, total), f"{count.files:,}", meaning))
    widths = [max(len(row[column]) for row in rows) for column in range(5)] if rows else []
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:4], widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    if len(shown) < len(counts):
        lines.append(f"… and {len(counts) - len(shown):,} values more, each with fewer pixels")
    return lines


_ROLE = {"class": "", "ignored": "(ignored)", "stray": "(stray)", "unknown": ""}


def _chart_title(group: MaskGroup) -> str:
    return f"{f'*_{group.name}, ' if group.name else ''}{_count(group.files, 'mask')}, share of pixels"


def _chart(counts: Sequence[ValueCount], title: str, *, painted: bool) -> Image.Image:
    """Horizontal bars, in columns of at most 50, all on one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = sum(count.pixels for count in counts)
    shown = counts if len(counts) <= _SHOWN_VALUES else sorted(counts, key=lambda count: -count.pixels)[:50]
    shown = [count for count in shown if count.pixels]
    shares = [100 * count.pixels / total for count in shown]
    columns = math.ceil(len(shown) / 50)
    rows = math.ceil(len(shown) / columns)
    logarithmic = max(shares) > 1000 * min(shares)
    left, right = (min(shares) / 3, max(shares) * 8) if logarithmic else (0, max(shares) * 1.2)
    figure = Figure(figsize=(max(7.5, 5.5 * columns), 1.5 + 0.26 * max(rows, 3)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    note = f"\n{len(shown)} of {len(counts):,} values, the most frequent" if len(shown) < len(counts) else ""
    figure.suptitle(_wrapped(title, 80 * max(columns, 1)) + note, fontsize=11, parse_math=False)
    for column in range(columns):
        part = slice(column * rows, (column + 1) * rows)
        axes = figure.add_subplot(1, columns, column + 1)
        axes.set_xscale("log" if logarithmic else "linear")
        axes.set_xlim(left, right)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.grid(axis="x", color="#e0e0e0")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        labels = []
        for position, (count, share) in enumerate(zip(shown[part], shares[part], strict=True)):
            face, hatch, edge = _BAR.get(count.role, (None, "", "#606060"))
            colour = face or (tuple(c / 255 for c in count.colour) if count.colour else "#4878a8")
            axes.barh(position, share - left, 0.74, left, color=colour, hatch=hatch, edgecolor=edge, linewidth=0.7)
            shown_share = f" {_percent(count.pixels, total)}"
            axes.text(share, position, shown_share, va="center", fontsize=8, color="#404040")
            labels.append(_bar_label(count, painted))
        axes.set_yticks(range(len(labels)), labels, fontsize=9, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("percent of the pixels" + (", logarithmic" if logarithmic else ""), fontsize=9)
        for label, count in zip(axes.get_yticklabels(), shown[part], strict=True):
            label.set_color({"stray": "#c00000", "ignored": "#707070"}.get(count.role, "black"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


_BAR = {"ignored": ("white", "////", "#909090"), "stray": ("#ffd0d0", "xxxx", "#c00000")}


def _bar_label(count: ValueCount, painted: bool) -> str:
    value = f"#{count.value:06x}" if painted else str(count.value)
    return "  ".join(filter(None, (shortened(count.name), _ROLE[count.role].strip("()"), value)))


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """One below the other, on white."""
    if len(pictures) == 1:
        return pictures[0]
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _wrapped(text: str, width: int) -> str:
    """Lines of at most `width`; also where there are no spaces, as in paths."""
    return "\n".join(line[i : i + width] for line in text.split("\n") for i in range(0, len(line), width))


def _packed(colour: Sequence[int]) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def _unpacked(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _class(space: LabelSpace | None, index: int) -> str:
    return str(index) if space is None else f"{index} {shortened(space.classes[index])}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _percent(part: int, whole: int) -> str:
    """A share that is never shown as none or all when it is not."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.001:
        return "<0.001 %"
    if share < 100 and round(share, 2) == 100:
        return ">99.99 %"
    return f"{share:.3f} %" if 0 < share < 0.01 else f"{share:.2f} %"


def _ranges(values: Iterable[int]) -> str:
    """Values as the command line takes them: `0-20,255`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    parts = [f"{a}" if a == b else f"{a}-{b}" if b > a + 1 or a < 0 else f"{a},{b}" for a, b in runs]
    return ",".join(parts[:40]) + (",…" if len(parts) > 40 else "")


def _python(values: Sequence[int]) -> str:
    """Values as Python writes them."""
    return f"range({values.start}, {values.stop})" if isinstance(values, range) else repr(tuple(values))
