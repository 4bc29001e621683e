"""Diagnose masks: how their values or colors encode classes, and which arguments of `Folder` read them.

In come statistics of the masks of one kind and what is known of the classes; out go the encoding and the findings.
Where the masks allow two readings, the text names both.
"""

from __future__ import annotations

import textwrap
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from isanet._text import clean, percent, plural, shortened
from isanet.images.masks import Color, unpacked
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, generic_palette

MAX_COLORS = 300
"""Colors that are counted in RGB masks; masks with more do not encode classes."""

CITYSCAPES = LABEL_SPACES["cityscapes19"]
CITYSCAPES_IDS = OFFICIAL_SPACES["cityscapes-ids"]
_VOC_BORDER = (224, 224, 192)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_IGNORED_16 = 65535
_MAX_SPELLED_OUT = 32  # values or colors in a finding

Arguments = tuple[str, str]
"""Arguments of `isanet.datasets.Folder` in Python, and as options of the command line; both may be empty."""


@dataclass(frozen=True)
class Finding:
    """One thing to know or to act on.

    Attributes:
        kind: A word by which programs tell findings apart, such as `"shifted"`.
        text: Sentences for people.
        files: Number of files concerned.
        of: Number of files that were checked for it.
        examples: Names of the first files concerned.
        fix: Arguments of `isanet.datasets.Folder` that help, in Python; empty if none helps or is needed.
        option: The same as options of the command line.
    """

    kind: str
    text: str
    files: int
    of: int
    examples: tuple[str, ...]
    fix: str = ""
    option: str = ""

    def __str__(self) -> str:
        lines = [textwrap.fill(clean(self.text), 110, initial_indent="* ", subsequent_indent="  ")]
        if self.fix:
            lines.append(f"    Python:        Folder(..., {self.fix})")
        if self.option:
            lines.append(f"    command line:  {self.option}")
        more = ", …" if self.files > 3 else ""
        lines.append(f"  In {self.files:,} of {self.of:,} files, e.g. {', '.join(map(clean, self.examples[:3]))}{more}")
        return "\n".join(lines)


@dataclass
class Occurrences:
    """The values, or colors as 24 bits, of each file (ascending), and the number of pixels of each in all files."""

    files: dict[str, array[int]] = field(default_factory=dict)
    pixels: Counter[int] = field(default_factory=Counter)

    def files_with(self, values: Container[int]) -> list[str]:
        """The files that have one of the values."""
        return [name for name, held in self.files.items() if any(value in values for value in held)]

    def share(self, values: Iterable[int]) -> str:
        """The share of all pixels that have one of the values."""
        return percent(sum(self.pixels[value] for value in values) / self.pixels.total())


@dataclass
class MaskStats:
    """Statistics of masks.

    Attributes:
        values: Of the masks that hold values.
        colors: Of the RGB masks; a file with more than `MAX_COLORS` colors has none here.
        formats: Number of files of each format and mode.
        area: Pixels of all files.
        palette: The color of each value, from the first palette image that has it.
        palette_files: The palette images, and in `palettes_differ` those that give a value another color.
    """

    values: Occurrences = field(default_factory=Occurrences)
    colors: Occurrences = field(default_factory=Occurrences)
    formats: Counter[str] = field(default_factory=Counter)
    area: int = 0
    palette: dict[int, Color] = field(default_factory=dict)
    palette_files: list[str] = field(default_factory=list)
    palettes_differ: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MaskEncoding:
    """How values encode classes: the value of each class (None: unknown) and the ignored values.

    `kind`, `text` and `arguments` are those of the finding that says so; `space` is what the classes are, if known.
    """

    kind: str = ""
    text: str = ""
    arguments: Arguments = ("", "")
    ids: Sequence[int] | None = None
    ignored: frozenset[int] = frozenset({IGNORED})
    space: LabelSpace | None = None


def finding(kind: str, text: str, names: Sequence[str], of: int, arguments: Arguments = ("", "")) -> Finding:
    """A finding about the files of these names."""
    return Finding(kind, text, len(names), of, tuple(names[:5]), *arguments)


def diagnose(
    stats: MaskStats, num_classes: int | None = None, space: LabelSpace | None = None, *, official_ids: bool = False
) -> tuple[MaskEncoding, list[Finding]]:
    """Find out how masks encode classes, of which the number or the space may be known.

    `official_ids`: the file names say that the values are official ids of Cityscapes.
    """
    values, encoding, findings = stats.values, MaskEncoding(space=space), []
    if values.files:
        voc_palette = _is_voc_palette(stats.palette)
        encoding = _encoding(values, num_classes, space, official_ids, voc_palette)
        names = list(values.files)
        if encoding.kind == "stray":
            names = values.files_with(values.pixels.keys() - set(encoding.ids or ()) - encoding.ignored) or names
        findings.append(finding(encoding.kind, encoding.text, names, len(values.files), encoding.arguments))
        if stats.palette_files:
            findings.append(_palette_finding(stats, voc_palette))
    if stats.colors.files:
        findings.append(_color_finding(stats.colors, num_classes, space))
    return encoding, findings


# --- values


def _encoding(
    values: Occurrences, num_classes: int | None, space: LabelSpace | None, official_ids: bool, voc_palette: bool
) -> MaskEncoding:
    """How values encode classes; with the palette of VOC, 255 is the border of objects. See `diagnose`."""
    ignored = frozenset({IGNORED, _IGNORED_16} if num_classes is None or num_classes <= IGNORED else {_IGNORED_16})
    present = frozenset(values.pixels)
    core = present - ignored
    top, shown = max(core, default=0), _ranges(core) or "none but ignored"
    if num_classes is None and (len(core) > IGNORED or top >= 1000):
        text = (
            f"{plural(len(core), 'different value')}, {min(core, default=0)} to {top}: these look like instance ids, "
            "depths or heights, not like classes. (Cityscapes' class masks are the files *_labelIds.png.)"
        )
        return MaskEncoding("not-classes", text, ignored=frozenset())
    if present == {0, IGNORED} and not voc_palette and num_classes != 1:
        return _black_and_white(num_classes)
    stray = core - set(range(num_classes or top + 1))
    expected_city = space.classes == CITYSCAPES.classes if space else num_classes in (None, len(CITYSCAPES))
    if expected_city and (official_ids or _like_official_ids(core, stray, num_classes, voc_palette)):
        doubt = " Plain indices of 34 classes would look the same." if core == set(range(len(CITYSCAPES_IDS))) else ""
        text = (
            f"The values {shown} fit the official Cityscapes ids (7 road, 11 building, 23 sky, 26 car).{doubt} "
            "isanet.datasets.Cityscapes reads them; for your own folder:"
        )
        arguments = _arguments(classes=CITYSCAPES.name, ids="official", ignore="rest")
        others = frozenset(CITYSCAPES_IDS.official_ids) - set(CITYSCAPES.official_ids) | {IGNORED}
        return MaskEncoding("official-ids", text, arguments, CITYSCAPES.official_ids, others, CITYSCAPES)
    if num_classes is not None and stray:
        read = _shifted(values, num_classes, space) if stray == {num_classes} else _stray(values, stray, num_classes)
        return replace(read, space=space)
    ids, text, arguments = None if num_classes is None else range(num_classes), "", ("", "")
    if core and 0 not in core and num_classes != 1:
        count, first = num_classes or top, f"0 {shortened(space.classes[0])}" if space else "0"
        text = (
            f"The values are {shown}, and 0 never occurs. Either no pixel has the class {first}, or the {count} "
            "classes are counted from 1. Compare one mask with its image; if they are counted from 1:"
        )
        return MaskEncoding("shifted-unsure", text, _arguments(ids=range(1, count + 1)), ids, space=space)
    if num_classes is not None:
        train_ids = " (Cityscapes' train ids, not the official ids)" if space == CITYSCAPES else ""
        text = f"Class indices as expected: {shown}, of {num_classes} classes{train_ids}."
    else:
        like_ade20k, gaps = ", as for ADE20K" if top == 150 else "", ", with gaps" if len(core) <= top else ""
        if gaps and len(core) <= _MAX_SPELLED_OUT:
            gaps += f" (if each value is a class, ids={tuple(sorted(core))} is right)"
        text = (
            f"Probably class indices: {shown}{gaps}. With {top + 1} classes they are read as they are; if 0 is 'other' "
            f"or 'unlabeled', there are {top} classes and ids=range(1, {top + 1}) is right{like_ade20k}. The values "
            "cannot tell which: say how many classes there are."
        )
    if _IGNORED_16 in present:
        text += " 65535 seems to mean 'ignore' in 16 bits:"
        arguments = _arguments(ignore=tuple(sorted(present & ignored)))
    return MaskEncoding("plain", text, arguments, ids, ignored, space)


def _like_official_ids(core: frozenset[int], stray: frozenset[int], num_classes: int | None, voc_palette: bool) -> bool:
    """Whether values look like the official ids of Cityscapes, not like its train ids or indices of other classes."""
    if voc_palette or not core <= set(CITYSCAPES_IDS.official_ids):
        return False
    if num_classes is not None:
        return bool(stray) and not core <= set(range(1, num_classes + 1))
    return max(core, default=0) > 20 and len(core & {7, 8, 11, 21, 23, 26}) >= 3


def _black_and_white(num_classes: int | None) -> MaskEncoding:
    text = (
        "The only values are 0 and 255: probably two classes painted black and white, and 255 is a class and not "
        "ignored. (The other reading, that everything is class 0 or ignored, is possible and useless.)"
    )
    if num_classes not in (None, 2):
        return MaskEncoding("black-and-white", f"{text} But {num_classes} classes are expected.", ignored=frozenset())
    return MaskEncoding("black-and-white", f"{text} If so:", _arguments(ids=(0, 255), ignore=()), (0, 255), frozenset())


def _stray(values: Occurrences, stray: Iterable[int], num_classes: int, hint: str = "") -> MaskEncoding:
    text = (
        f"Neither a class (0 to {num_classes - 1}) nor 255: {_ranges(stray)} ({values.share(stray)} of the pixels). "
        "Either a class is missing from the list, or another number means 'ignore', or the masks were resized or "
        f"smoothed with interpolation, which makes new values at edges.{hint} Correct the files; or, to ignore all "
        "such values:"
    )
    return MaskEncoding("stray", text, _arguments(ignore="rest"), range(num_classes))


def _shifted(values: Occurrences, num_classes: int, space: LabelSpace | None) -> MaskEncoding:
    """Values that reach `num_classes`, one more than the last index."""
    ids, files = range(1, num_classes + 1), len(values.files)
    if 0 not in values.pixels:
        text = f"The values reach {num_classes}, and 0 does not occur: the {num_classes} classes are counted from 1."
        return MaskEncoding("shifted", text, _arguments(ids=ids), ids)
    known = space is not None and space.official_ids == tuple(ids)
    if not known and files >= 10 and len(values.files_with({num_classes})) <= max(1, files // 200):
        hint = (
            f" So few files have {num_classes} that the classes are hardly counted from 1, with 0 as 'other' ({ids=})."
        )
        return _stray(values, {num_classes}, num_classes, hint)
    ignored = frozenset({0, IGNORED}) | (values.pixels.keys() & {_IGNORED_16})
    which = f" {space.name} is counted so in its own files." if known and space else ""
    text = (
        f"Both 0 and {num_classes} occur, one value more than {num_classes} classes have: probably 0 is 'other', as in "
        f"ADE20K, and the classes are counted from 1.{which} If instead 0 is a class, {num_classes} "
        f"({values.share([num_classes])} of the pixels) is a stray value or one more class. If 0 is 'other':"
    )
    arguments = _arguments(ids=ids, ignore=tuple(sorted(ignored)))
    return MaskEncoding("shifted-zero-other", text, arguments, ids, ignored)


# --- palettes and colors


def _palette_finding(stats: MaskStats, voc: bool) -> Finding:
    of = len(stats.values.files)
    if stats.palettes_differ:
        text = (
            "The same index has different colors in different files, so an index may not mean the same class "
            "everywhere: some program gave each file its own palette. Export them with one palette, or as RGB."
        )
        return finding("palettes-differ", text, stats.palettes_differ, of)
    text = f"Palette images, read as indices{', with the colors of VOC' if voc else ''}: nothing to do."
    index = max(stats.palette.keys() - {0, IGNORED}, default=None)
    if index is not None:
        gray = Image.new("RGB", (1, 1), stats.palette[index]).convert("L").getpixel((0, 0))
        text += f" A program that converts them to gray would read {gray} where the class is {index}; isanet does not."
    return finding("palette", text, stats.palette_files, of)


def _is_voc_palette(palette: dict[int, Color]) -> bool:
    voc = dict(enumerate(generic_palette(256)))
    return bool(palette.keys() - {0, IGNORED}) and all(
        color in (_VOC_BORDER, _WHITE) if index == IGNORED else color == voc[index] for index, color in palette.items()
    )


def _color_finding(held: Occurrences, num_classes: int | None, space: LabelSpace | None) -> Finding:
    """How the colors of RGB masks encode classes."""
    colors = [unpacked(code) for code, _ in held.pixels.most_common()]
    telling = set(colors) - {_BLACK, _WHITE}
    uncounted = [name for name, codes in held.files.items() if not codes]
    names, of = uncounted or list(held.files), len(held.files)
    if uncounted or len(colors) >= MAX_COLORS:
        text = (
            f"More than {MAX_COLORS} colors: photographs, or masks with smoothed edges or lossy compression. They "
            "cannot be read as classes; export them again as PNG, without smoothing (nearest neighbor)."
        )
        return finding("too-many-colors", text, names, of)
    painted = f"Painted in {plural(len(colors), 'color')}"
    fits = _known_palettes(telling, num_classes, space) if telling else []
    if fits:
        known, *others = fits
        remark = _BORDER_REMARK if _VOC_BORDER in telling else _REMARKS.get(known.name, "")
        if others:
            remark += f" They fit {', '.join(other.name for other in others)} as well; which it is, only you know."
        elif len(telling) < 3 and space is None:
            remark += " So few colors may fit by chance."
        arguments = _color_arguments(known.palette, known)
        text = f"{painted}, all of the palette of {known.name}.{remark}{' If so:' if arguments[0] else ''}"
        return finding("known-colors", text, names, of, arguments)
    text = (
        f"{painted} of no known palette. Give the color of each class, in the order of your classes (black and white "
        "are ignored unless they are listed). If they are grays, save one channel instead:"
    )
    listed = [color for color in colors if color != _WHITE] if telling else sorted(colors)
    return finding("colors", text, names, of, _color_arguments(listed))


def _known_palettes(telling: set[Color], num_classes: int | None, space: LabelSpace | None) -> list[LabelSpace]:
    """The spaces whose palettes have all these colors; only the expected space if it has them."""
    if space is not None and telling <= set(space.palette):
        return [space]
    voc, ade20k = LABEL_SPACES["voc21"], LABEL_SPACES["ade20k150"]
    fits = [
        known
        for known in (voc, ade20k, CITYSCAPES)  # not ToyStreets, whose colors are those of Cityscapes
        if telling <= {*known.palette, *([_VOC_BORDER] if known is voc else [])} and num_classes in (None, len(known))
    ]
    ids_fit = telling <= set(CITYSCAPES_IDS.palette) and num_classes in (None, len(CITYSCAPES))
    return fits or ([CITYSCAPES_IDS] if ids_fit else [])


_BORDER_REMARK = " #e0e0c0 is the border of objects, which is no class: paint it white, which is ignored."
_REMARKS = {
    "ade20k150": " Road and skyscraper have one color and cannot be told apart: use ADE20K's own masks of values.",
    "voc21": " Other programs use the colors of VOC for other classes.",
    "cityscapes-ids": " Some are of classes that are not among the 19, and pole and polegroup have one color: use the "
    "files *_labelIds.png instead.",
}


# --- arguments of Folder


def _arguments(**values: str | Sequence[int]) -> Arguments:
    python, options = [], []
    for name, value in values.items():
        python.append(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}")
        options.append(f"--{name} {value if isinstance(value, str) else _ranges(value) or 'none'}")
    return ", ".join(python), " ".join(options)


def _color_arguments(colors: Sequence[Color], space: LabelSpace | None = None) -> Arguments:
    """For RGB masks; none if classes share a color or there are too many to spell out."""
    if len(set(colors)) < len(colors):
        return "", ""
    if space is not None and LABEL_SPACES.get(space.name) == space:
        return f'colors=isanet.labels.label_space("{space.name}").palette', f"--colors {space.name}"
    if len(colors) > _MAX_SPELLED_OUT:
        return "", ""
    return f"colors={tuple(colors)}", "--colors " + ",".join(bytes(color).hex() for color in colors)  # "#" is a comment


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
