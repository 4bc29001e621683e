"""Diagnose masks: how their values or colors encode classes, and which arguments of `Folder` read them.

In come the counts of all masks and what is known of the classes; out go findings. Where the masks allow two readings,
the text names both.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from isanet._text import clean, percent, plural, shortened
from isanet.images.masks import Color, unpacked
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, generic_palette

MAX_COLORS = 300
"""Colors that are counted in a mask; one with more does not encode classes."""

CITYSCAPES, CITYSCAPES_IDS = LABEL_SPACES["cityscapes19"], OFFICIAL_SPACES["cityscapes-ids"]
_VOC_BORDER, _BLACK, _WHITE = (224, 224, 192), (0, 0, 0), (255, 255, 255)
_IGNORED_16 = 65535
_MAX_VALUES = 70_000  # counted: all that 16 bits have, so that only 32-bit files can exceed it
_MAX_VALUES_PER_FILE = 1024  # masks of classes have fewer; bounds the memory for other files
_MAX_SPELLED_OUT = 32  # values or colors in a finding

TWO_CLASSES = {"black-and-white", "one-plus-255"}
"""Kinds of findings that say: what seems to be ignored is the second class."""

Diagnosis = tuple[str, str, dict[str, Any]]
"""Kind and text of a finding, and the arguments of `Folder` that help, see `finding`."""


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
            lines += [f"    Python:        Folder(..., {self.fix})", f"    command line:  {self.option}"]
        more = ", …" if self.files > 3 else ""
        lines.append(f"  In {self.files:,} of {self.of:,} files, e.g. {', '.join(map(clean, self.examples[:3]))}{more}")
        return "\n".join(lines)


def finding(kind: str, text: str, names: Sequence[str], of: int, fix: Mapping[str, Any] | None = None) -> Finding:
    """A finding about the files of these names.

    `fix`: Arguments of `Folder`: a word, values, colors, or a label space for its palette.
    """
    python, options = [], []
    for name, value in (fix or {}).items():
        if isinstance(value, LabelSpace):
            python.append(f'{name}=isanet.labels.label_space("{value.name}").palette')
            options.append(f"--{name} {value.name}")
        elif isinstance(value, str):
            python.append(f'{name}="{value}"')
            options.append(f"--{name} {value}")
        else:
            python.append(f"{name}={value}")
            in_hex = ",".join(bytes(color).hex() for color in value) if name == "colors" else ""  # "#" is a comment
            options.append(f"--{name} {in_hex or _ranges(value) or 'none'}")
    return Finding(kind, text, len(names), of, tuple(names[:5]), ", ".join(python), " ".join(options))


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


@dataclass
class Counts:
    """The values, or colors as 24 bits, of each file (ascending), and the number of pixels of each in all files."""

    files: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pixels: Counter[int] = field(default_factory=Counter)

    def add(self, name: str, counts: Mapping[int, int]) -> None:
        """Add the pixels of each value in a file."""
        self.files[name] = tuple(sorted(counts)[:_MAX_VALUES_PER_FILE])
        for value, count in counts.items():
            if value in self.pixels or len(self.pixels) < _MAX_VALUES:
                self.pixels[value] += count

    def files_with(self, values: Set[int]) -> list[str]:
        """The files that have one of the values."""
        return [name for name, held in self.files.items() if not values.isdisjoint(held)]

    def share(self, values: Iterable[int]) -> str:
        """The share of all pixels that have one of the values."""
        return percent(sum(self.pixels[value] for value in values) / self.pixels.total())


@dataclass
class MaskStats:
    """What was counted: values, the colors of RGB masks, files of each format, pixels, and colors in palettes.

    `problems`: for each kind of finding the names of the files concerned, with details.
    """

    values: Counts = field(default_factory=Counts)
    colors: Counts = field(default_factory=Counts)
    formats: Counter[str] = field(default_factory=Counter)
    num_pixels: int = 0
    palette: dict[int, Color] = field(default_factory=dict)
    problems: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))


# --- values


def diagnose_values(
    stats: MaskStats, num_classes: int | None, space: LabelSpace | None, *, official_ids: bool
) -> Diagnosis:
    """How values encode classes, of which the number or the space may be known.

    `official_ids`: the file names say that the values are official ids of Cityscapes.
    """
    present, has_voc_palette = stats.values.pixels.keys(), is_voc_palette(stats.palette)
    core = present - ignored_values(num_classes)
    if num_classes is None and (len(core) > IGNORED or max(core, default=0) >= 1000):
        text = (
            f"{plural(len(core), 'different value')}, {min(core)} to {max(core)}: these look like instance ids, depths "
            "or heights, not like classes. (Cityscapes' class masks are the files *_labelIds.png.)"
        )
        return "not-classes", text, {}
    two = len(present) == 2 and (len(core) == 1 or (num_classes == 2 and max(core, default=0) > 2))
    if two and num_classes != 1 and not (has_voc_palette or official_ids):
        low, high = sorted(present)
        return _two_classes(low, high, num_classes, {"ids": (low, high), "ignore": ()})
    expected_city = space.classes == CITYSCAPES.classes if space else num_classes in (None, len(CITYSCAPES))
    if expected_city and (official_ids or (not has_voc_palette and _like_official_ids(core, num_classes))):
        doubt = " Plain indices of 34 classes would look the same." if core == set(range(len(CITYSCAPES_IDS))) else ""
        text = (
            f"The values {_ranges(core)} fit the official Cityscapes ids (7 road, 11 building, 23 sky, 26 car).{doubt} "
            "isanet.datasets.Cityscapes reads them; for your own folder:"
        )
        return "official-ids", text, {"classes": CITYSCAPES.name, "ids": "official", "ignore": "rest"}
    if num_classes is not None and (stray := core - set(range(num_classes))):
        kind, text, fix = _out_of_range(stats.values, stray, num_classes, space)
    else:
        kind, text, fix = _in_range(core, num_classes, space)
    if _IGNORED_16 in present and "ignore" not in fix:
        text += " 65535 seems to mean 'ignore' in 16 bits:"
        fix["ignore"] = tuple(sorted(present & ignored_values(num_classes)))
    return kind, text, fix


def ignored_values(num_classes: int | None) -> Set[int]:
    """The values that mean 'ignore' unless they are classes."""
    return {_IGNORED_16} if num_classes is not None and num_classes > IGNORED else {IGNORED, _IGNORED_16}


def is_voc_palette(palette: Mapping[int, Color]) -> bool:
    """Whether the colors of these indices are those of VOC, where 255 is the border of objects."""
    voc = generic_palette(256)
    return bool(palette.keys() - {0, IGNORED}) and all(
        color in (_VOC_BORDER, _WHITE) if index == IGNORED else color == voc[index] for index, color in palette.items()
    )


def _two_classes(low: object, high: object, num_classes: int | None, fix: dict[str, Any]) -> Diagnosis:
    """Masks of only two values or colors, of which the second is usually ignored."""
    kind = "black-and-white" if low in (0, "black") else "one-plus-255"
    text = (
        f"There are only {low} and {high}: probably two classes, and {high} is one of them and not ignored. (The other "
        f"reading, that everything is {low} or ignored, is possible and useless.)"
    )
    if num_classes not in (None, 2):
        return kind, f"{text} But {num_classes} classes are expected.", {}
    return kind, f"{text} If so:", fix


def _like_official_ids(core: Set[int], num_classes: int | None) -> bool:
    """Whether values look like the official ids of Cityscapes, not like its train ids or indices of other classes."""
    if not core <= set(CITYSCAPES_IDS.official_ids):
        return False
    if num_classes is not None:
        return not (core <= set(range(num_classes)) or core <= set(range(1, num_classes + 1)))
    return max(core, default=0) > 20 and len(core & {7, 8, 11, 21, 23, 26}) >= 3


def _out_of_range(values: Counts, stray: Set[int], num_classes: int, space: LabelSpace | None) -> Diagnosis:
    """Classes counted from 1, or values that are no classes."""
    ids, hint = range(1, num_classes + 1), ""
    if stray == {num_classes}:
        if 0 not in values.pixels:
            text = f"The values reach {num_classes}, and 0 does not occur: the classes are counted from 1."
            return "shifted", text, {"ids": ids}
        known = f" {space.name} is counted so in its own files." if space and space.official_ids == tuple(ids) else ""
        if known or len(values.files) < 10 or len(values.files_with(stray)) > max(1, len(values.files) // 200):
            text = (
                f"Both 0 and {num_classes} occur, one value more than {num_classes} classes have: probably 0 is "
                f"'other', and the classes are counted from 1.{known} If instead 0 is a class, {num_classes} "
                f"({values.share(stray)} of the pixels) is a stray value or one more class. If 0 is 'other':"
            )
            ignored = {0, IGNORED} | (values.pixels.keys() & {_IGNORED_16})
            return "shifted-zero-other", text, {"ids": ids, "ignore": tuple(sorted(ignored))}
        hint = f" In so few files it hardly means that 0 is 'other' and the classes are counted from 1 ({ids=})."
    text = (
        f"Neither a class (0 to {num_classes - 1}) nor 255: {_ranges(stray)} ({values.share(stray)} of the pixels). "
        "Either a class is missing from the list, or another number means 'ignore', or the masks were resized or "
        f"smoothed with interpolation.{hint} Correct the files; or, to ignore all such values:"
    )
    return "stray", text, {"ignore": "rest"}


def _in_range(core: Set[int], num_classes: int | None, space: LabelSpace | None) -> Diagnosis:
    """Values that may be class indices as they are."""
    top, shown = max(core, default=0), _ranges(core) or "none but ignored"
    if core and 0 not in core and num_classes != 1:
        count, first = num_classes or top, f"0 {shortened(space.classes[0])}" if space else "0"
        text = (
            f"The values are {shown}, and 0 never occurs. Either no pixel has the class {first}, or the {count} "
            "classes are counted from 1. Compare one mask with its image; if they are counted from 1:"
        )
        return "shifted-unsure", text, {"ids": range(1, count + 1)}
    if num_classes is not None:
        train_ids = " (Cityscapes' train ids, not the official ids)" if space == CITYSCAPES else ""
        return "plain", f"Class indices as expected: {shown}, of {num_classes} classes{train_ids}.", {}
    like_ade20k, gaps = ", as for ADE20K" if top == 150 else "", ", with gaps" if len(core) <= top else ""
    if gaps and len(core) <= _MAX_SPELLED_OUT:
        gaps += f" (if each value is a class, ids={tuple(sorted(core))} is right)"
    text = (
        f"Probably class indices: {shown}{gaps}. With {top + 1} classes they are read as they are; if 0 is 'other' or "
        f"'unlabeled', there are {top} classes and ids=range(1, {top + 1}) is right{like_ade20k}. The values cannot "
        "tell which: say how many classes there are."
    )
    return "plain", text, {}


def palette_finding(stats: MaskStats) -> Finding:
    """What the palettes of palette images say."""
    problems, of = stats.problems, len(stats.values.files)
    if differing := problems["palettes-differ"]:
        text = (
            "The same index has different colors in different files, so an index may not mean the same class "
            "everywhere: some program gave each file its own palette. Export them with one palette, or as RGB."
        )
        return finding("palettes-differ", text, list(differing), of)
    colors_of = ", with the colors of VOC" if is_voc_palette(stats.palette) else ""
    text = f"Palette images, read as indices{colors_of}: nothing to do."
    if indices := stats.palette.keys() - {0, IGNORED}:
        gray = Image.new("RGB", (1, 1), stats.palette[max(indices)]).convert("L").getpixel((0, 0))
        text += f" Programs that convert them to gray would read {gray} where the class is {max(indices)}."
    return finding("palette", text, list(problems["palette"]), of)


# --- colors

_VOC, _ADE20K = LABEL_SPACES["voc21"], LABEL_SPACES["ade20k150"]
_BORDER_REMARK = " #e0e0c0 is the border of objects, which is no class: paint it white, which is ignored."
_REMARKS = {
    _VOC: " Other programs use the colors of VOC for other classes.",
    _ADE20K: " Road and skyscraper have one color and cannot be told apart: use ADE20K's own masks of values.",
    CITYSCAPES_IDS: " Some are of classes that are not among the 19, and pole and polegroup have one color: use the "
    "files *_labelIds.png instead.",
}


def color_finding(held: Counts, num_classes: int | None, space: LabelSpace | None) -> Finding:
    """How the colors of RGB masks encode classes."""
    colors = [unpacked(code) for code, _ in held.pixels.most_common()]
    telling = set(colors) - {_BLACK, _WHITE}
    names, of = list(held.files), len(held.files)
    uncounted = [name for name, codes in held.files.items() if not codes]
    if uncounted or len(colors) > MAX_COLORS:
        text = (
            f"More than {MAX_COLORS} colors: photographs, or masks with smoothed edges or lossy compression. They "
            "cannot be read as classes; export them again as PNG, without smoothing (nearest neighbor)."
        )
        return finding("too-many-colors", text, uncounted or names, of)
    painted = f"Painted in {plural(len(colors), 'color')}"
    if telling and (fits := _known_palettes(telling, num_classes, space)):
        known, *others = fits
        remark = _BORDER_REMARK if _VOC_BORDER in telling and known == _VOC else _REMARKS.get(known, "")
        text = f"{painted}, all of the palette of {known.name}.{remark}"
        if others:
            text += f" They fit {', '.join(other.name for other in others)} as well; which it is, only you know."
        elif len(telling) < 3 and space is None:
            text += " So few colors may fit by chance."
        fix = _color_fix(known.palette, known)
        return finding("known-colors", f"{text} If so:" if fix else text, names, of, fix)
    if set(colors) == {_BLACK, _WHITE}:
        kind, text, fix = _two_classes("black", "white", num_classes, {"colors": (_BLACK, _WHITE)})
        return finding(kind, text, names, of, fix)
    text = (
        f"{painted} of no known palette. Give the color of each class, in the order of your classes (black and white "
        "are ignored unless they are listed). If they are grays, save one channel instead:"
    )
    return finding("colors", text, names, of, _color_fix([color for color in colors if color != _WHITE] or colors))


def _known_palettes(colors: Set[Color], num_classes: int | None, space: LabelSpace | None) -> list[LabelSpace]:
    """The spaces whose palettes have all these colors; only the expected space if it has them."""
    if space is not None and colors <= set(space.palette):
        return [space]
    palettes = {_VOC: {*_VOC.palette, _VOC_BORDER}, _ADE20K: {*_ADE20K.palette}, CITYSCAPES: {*CITYSCAPES.palette}}
    fits = [known for known in palettes if colors <= palettes[known] and num_classes in (None, len(known))]
    if not fits and colors <= set(CITYSCAPES_IDS.palette) and num_classes in (None, len(CITYSCAPES)):
        return [CITYSCAPES_IDS]
    return fits  # without ToyStreets, whose colors are those of Cityscapes


def _color_fix(colors: Sequence[Color], space: LabelSpace | None = None) -> dict[str, Any]:
    """The argument of `Folder`; none if classes share a color or there are too many to spell out."""
    if len(set(colors)) < len(colors):
        return {}
    if space is not None and LABEL_SPACES.get(space.name) == space:
        return {"colors": space}
    return {"colors": tuple(colors)} if len(colors) <= _MAX_SPELLED_OUT else {}
