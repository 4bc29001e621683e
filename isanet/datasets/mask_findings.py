"""What follows from what was seen in masks: how their values or colors stand for classes, and what is odd.

Where the files allow two readings, both are said.
"""

from __future__ import annotations

import itertools
import textwrap
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from isanet._text import percent, plural, shortened
from isanet.images.masks import Color, unpacked
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, generic_palette, official_name

MAX_COLORS = 300
"""Colors told apart in masks that are in colors; more are no classes anyway."""

CITYSCAPES = LABEL_SPACES["cityscapes19"]
CITYSCAPES_IDS = OFFICIAL_SPACES["cityscapes-ids"]
_IGNORED_16 = 65535
_VOC_BORDER = (224, 224, 192)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_LISTED = 32  # colors or levels, at most, that an argument spells out


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
        group: The kind of file it is about, see `isanet.datasets.mask_check.MaskGroup`; empty if there is one kind or it is
            about all.
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


@dataclass
class Counts:
    """The values of some masks, or their colors as 24 bits.

    Attributes:
        files: Which each file has, ascending, by its name; none for a file of more than `MAX_COLORS` colors.
        pixels: How many pixels each has in all files.
    """

    files: dict[str, array[int]] = field(default_factory=dict)
    pixels: Counter[int] = field(default_factory=Counter)

    def having(self, values: Container[int]) -> list[str]:
        """The files with one of these values."""
        return [name for name, held in self.files.items() if any(value in values for value in held)]

    def share(self, values: Iterable[int]) -> str:
        """What these values have of all pixels."""
        return percent(sum(self.pixels[value] for value in values) / self.pixels.total())

    def leading(self, share: float) -> list[int]:
        """The most frequent values that together have this share of the pixels."""
        common = self.pixels.most_common()
        sums = itertools.accumulate((count for _, count in common), initial=0)
        wanted = share * self.pixels.total()
        return [value for (value, _), before in zip(common, sums, strict=False) if before < wanted]


@dataclass
class Seen:
    """What is kept of the masks of one kind.

    Attributes:
        values: Of the masks that hold values.
        colors: Of the masks that are painted in colors.
        formats: How many files have each format and mode.
        area: Pixels of all files.
        palette: The color of each value, in the first palette image that has it.
        palette_files: The palette images.
        palettes_differ: Those in which a value has another color than in an earlier one.
        one_bit: The images of 1 bit, whose values are 0 and 1.
    """

    values: Counts = field(default_factory=Counts)
    colors: Counts = field(default_factory=Counts)
    formats: Counter[str] = field(default_factory=Counter)
    area: int = 0
    palette: dict[int, Color] = field(default_factory=dict)
    palette_files: list[str] = field(default_factory=list)
    palettes_differ: list[str] = field(default_factory=list)
    one_bit: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Coding:
    """How values stand for classes, as far as the files tell.

    Attributes:
        kind: As of a finding.
        text: As of a finding.
        arguments: Fix and option of the finding.
        ids: The value of each class, if known.
        ignored: Values that are ignored.
        concerned: The values that the text is about; None: all.
    """

    kind: str = ""
    text: str = ""
    arguments: tuple[str, str] = ("", "")
    ids: Sequence[int] | None = None
    ignored: frozenset[int] = frozenset({IGNORED})
    concerned: frozenset[int] | None = None


def finding(
    kind: str, text: str, names: Sequence[str], of: int, arguments: tuple[str, str] = ("", ""), group: str = ""
) -> Finding:
    """A finding about the files of these names."""
    return Finding(kind, text, len(names), of, tuple(names[:5]), *arguments, group)


def judge(
    kind: str, seen: Seen, number: int | None = None, space: LabelSpace | None = None
) -> tuple[Coding, list[Finding]]:
    """What the masks of one kind are.

    Args:
        kind: The ending of their names.
        seen: What they hold.
        number: Of the expected classes.
        space: Of the expected classes.
    """
    values, colors = seen.values, seen.colors
    coding, findings = Coding(), []
    if values.files:
        voc = _is_voc_palette(seen.palette)
        coding = _coding(kind, values, number, space, voc)
        concerned = None if coding.concerned is None else values.having(coding.concerned)
        names = concerned or list(values.files)  # a large value of a file that has very many is not remembered
        findings.append(finding(coding.kind, coding.text, names, len(values.files), coding.arguments))
        findings += _value_findings(values, coding, number, space)
        if seen.palette_files:
            findings.append(_palette_finding(seen, voc))
    if 0 < len(seen.one_bit) < len(values.files):
        text = (
            "Black and white of 1 bit, read as 0 and 1, beside masks of more bits. A program that saved 0 and 255 with "
            "fewer bits makes such files, and one reading does not fit both then: save all with 8 bits."
        )
        findings.append(finding("one-bit", text, seen.one_bit, len(values.files)))
    if colors.files:
        findings.append(_color_finding(kind, colors, number, space))
    if values.files and colors.files:
        text = (
            f"{len(values.files):,} masks hold values and {len(colors.files):,} are in colors; one reading does not "
            "fit both: export them alike, or put them in folders of their own."
        )
        rarer = min((colors, values), key=lambda counts: len(counts.files))
        findings.append(finding("mixed", text, list(rarer.files), len(values.files) + len(colors.files)))
    return coding, [replace(each, group=kind) for each in findings]


# --- values


def _coding(kind: str, values: Counts, number: int | None, space: LabelSpace | None, voc_palette: bool) -> Coding:
    """How the values stand for classes.

    Args:
        kind: The ending of the files' names.
        values: That occur.
        number: Of the expected classes.
        space: Of the expected classes.
        voc_palette: The files carry the VOC color map, so 255 is its border.
    """
    ignored = frozenset({IGNORED, _IGNORED_16} if number is None or number <= IGNORED else {_IGNORED_16})
    present = frozenset(values.pixels)
    core = present - ignored
    top = max(core, default=0)
    shown = _ranges(core) or "none but ignored"

    if kind.startswith("instance") or _like_instance_ids(present):
        sure = "By their names these are" if kind.startswith("instance") else "The values look like"
        return Coding(
            "instance-ids",
            f"{sure} Cityscapes' instance ids (class id x 1000 + number of the object), no class masks. The class "
            "masks are the files *_labelIds.png; of an instance file, values from 1000 on divided by 1000 are label "
            "ids.",
            ignored=frozenset(),
            concerned=frozenset(value for value in present if value >= 1000) or None,
        )

    city = space is not None and space.classes == CITYSCAPES.classes
    city_possible = city or number is None or (number == len(CITYSCAPES) and space is None)
    strange = core - set(range(len(CITYSCAPES_IDS)))  # no official ids
    if kind == "labelIds" and city_possible:
        but = f" Only {_ranges(strange)} are none: stray values." if strange else ""
        return _official(
            f"Official Cityscapes ids, by name and by values ({shown}).{but} isanet.datasets.Cityscapes reads "
            "them; in a folder of one's own:"
        )
    if kind == "labelTrainIds" and city_possible and top < len(CITYSCAPES):
        text = f"Cityscapes' train ids, by name and by values ({shown}): the models' own indices."
        return Coding("train-ids", text, _arguments(classes=CITYSCAPES.name), range(len(CITYSCAPES)))

    smoothed = _smoothed(values)
    # 255 is a class where all files have two values, 0 and 255, and nothing says that it is the border of VOC
    binary = present == {0, IGNORED} and not voc_palette and (number is None or number >= 2)
    if binary or (not core <= set(range(number or 0)) and _far_apart(present, ignored, number)):
        if smoothed and number != len(present):
            return smoothed
        return _gray_levels(present, number)

    if number is not None:
        stray = core - set(range(number))
        if stray and city_possible and not strange and not core <= set(range(1, number + 1)):
            return _official(
                f"The values {shown} are more than the 19 classes have, and fit the official Cityscapes ids, 0 to 33."
            )
        if stray == {number}:
            return _shifted(values, number, space)
        if stray:
            return smoothed or _stray(values, stray, number)
    elif city_possible and not strange and not voc_palette and top > 20 and len(core & {7, 8, 11, 21, 23, 26}) >= 3:
        doubt = "" if len(core) < len(CITYSCAPES_IDS) else " Plain indices of 34 classes would look the same."
        return _official(
            f"The values {shown} fit the official Cityscapes ids (7 road, 11 building, 23 sky, 26 car), though their "
            f"names do not say so.{doubt} If that is what they are:"
        )
    elif smoothed:
        return smoothed
    elif len(core) > IGNORED:
        return Coding(
            "too-many-values",
            f"{len(core):,} different values, {min(core)} to {top}: not classes, rather depths, heights or "
            "numbers of objects.",
            ignored=frozenset(),
        )

    if core and 0 not in core and number != 1:
        say = "" if number else ", or say how many classes there are"
        return Coding(
            "shifted-unsure",
            f"The values are {shown}, and 0 never occurs. Either no pixel has the class {_class(space, 0)}, or the "
            f"{number or top} classes are counted from 1. Compare one mask with its image{say}; if they are counted "
            "from 1:",
            _arguments(ids=range(1, (number or top) + 1)),
            range(number) if number else None,
        )
    if city:
        text = f"Cityscapes' train ids ({shown}), the model's own indices, not the official ids."
        return Coding("train-ids", text, ids=range(len(CITYSCAPES)))
    if number is not None:
        text = f"Class indices as expected: {shown}, of {number} classes."
    else:
        text = f"Class indices {shown}, as it seems{'' if len(core) > top else ', with gaps'}."
        if top > 0:
            text += (
                f" With {top + 1} classes they are read as they are; if 0 is 'other' or 'unlabeled', there are {top} "
                f"classes and ids=range(1, {top + 1}) is right{', as for ADE20K' if top == 150 else ''}. The values "
                "cannot tell which: say how many classes there are."
            )
    arguments = ("", "")
    if _IGNORED_16 in present:
        text += " 65535 looks like the value for 'ignore' in 16 bits:"
        arguments = _arguments(ignore=tuple(sorted(present & ignored)))
    return Coding("plain", text, arguments, None if number is None else range(number))


def _official(text: str) -> Coding:
    arguments = _arguments(classes=CITYSCAPES.name, ids="official", ignore="rest")
    ignored = frozenset(range(len(CITYSCAPES_IDS))) - set(CITYSCAPES.official_ids) | {IGNORED}
    return Coding("official-ids", text, arguments, CITYSCAPES.official_ids, ignored)


def _stray(values: Counts, stray: frozenset[int], number: int, hint: str = "") -> Coding:
    return Coding(
        "stray",
        f"Neither a class (0 to {number - 1}) nor 255: {_ranges(stray)} ({values.share(stray)} of the pixels). What "
        "that means is not known: a class that is missing from the list, another number that means 'ignore', or a "
        f"mask that was resized with interpolation, which makes new values at edges.{hint} Mend the files; or, to "
        "ignore all such values:",
        _arguments(ignore="rest"),
        range(number),
        concerned=stray,
    )


def _shifted(values: Counts, number: int, space: LabelSpace | None) -> Coding:
    """The values reach `number`, one more than the last index."""
    ids, present = range(1, number + 1), frozenset(values.pixels)
    if 0 not in present:
        text = f"The values reach {number}, and 0 does not occur, so the {number} classes are counted from 1."
        return Coding("shifted", text, _arguments(ids=ids), ids)
    known = space is not None and space.official_ids == tuple(ids)
    files = len(values.files)
    if not known and files >= 10 and len(values.having({number})) <= max(1, files // 200):
        hint = f" So few files have {number} that the classes are hardly counted from 1, with 0 for 'other' ({ids=})."
        return _stray(values, frozenset({number}), number, hint)
    ignored = frozenset({0, IGNORED}) | (present & {_IGNORED_16})
    which = f" {space.name} is counted so in its own files." if known and space else ""
    return Coding(
        "shifted-zero-other",
        f"Both 0 and {number} occur, one value more than {number} classes have. That is certain; why is not: 0 is "
        f"probably 'other', as in ADE20K, and the classes are counted from 1.{which} If instead 0 is a class, {number} "
        f"({values.share([number])} of the pixels) is a stray value or a class more. If 0 is 'other':",
        _arguments(ids=ids, ignore=tuple(sorted(ignored))),
        ids,
        ignored,
    )


def _gray_levels(present: frozenset[int], number: int | None) -> Coding:
    levels = tuple(sorted(present))
    text = f"Few values, far apart: {', '.join(map(str, levels))}. These look like gray levels, not class indices."
    if levels == (0, 255):
        text = (
            "The only values are 0 and 255: two classes painted black and white, probably. (The other reading, that "
            "all is class 0 or ignored, is possible and useless.)"
        )
    elif number is None:
        text += " (Unless the folder is a small part of a set with many classes.)"
    elif number != len(levels):
        text += f" They are {len(levels)}, but the classes are {number}: which value is which class only you know."
    if IGNORED in present:
        text += " 255 is a class then and not ignored."
    if number is not None and number != len(levels):
        return Coding("gray-levels", text, ignored=frozenset())
    arguments = _arguments(ids=levels, ignore=()) if IGNORED in present else _arguments(ids=levels)
    return Coding("gray-levels", text + " Classes in the order of the values:", arguments, levels, frozenset())


def _spread(values: Iterable[int]) -> bool:
    """Whether these are few, of 8 bits, and far from each other."""
    levels = sorted(values)
    if not 2 <= len(levels) <= _LISTED or levels[-1] > 255:
        return False
    return min(b - a for a, b in itertools.pairwise(levels)) >= 8


def _far_apart(present: frozenset[int], ignored: frozenset[int], number: int | None) -> bool:
    """Few values, far from each other, that reach up to where class indices seldom do."""
    if number == len(present):
        return _spread(present)
    if number is not None and sum(level < number for level in present) > 1:
        return False  # several are indices, and the others rather stray
    return max(present - ignored, default=0) >= 64 and _spread(present)


def _smoothed(values: Counts) -> Coding | None:
    """A few values far apart that have nearly all pixels, and several between them that have hardly any."""
    levels = sorted(values.leading(0.9))
    between = frozenset(v for v in values.pixels if levels[0] < v < levels[-1]) - set(levels)
    if len(between) < 4 or levels[-1] < 64 or not _spread(levels):
        return None
    return Coding(
        "interpolated",
        f"The values {', '.join(map(str, levels))} have {values.share(levels)} of the pixels; {len(between)} other "
        "values lie between them. That is what smoothed edges or resizing with interpolation make, and no argument "
        "mends it: export the masks again without smoothing (nearest neighbor). (Rare classes would look the same "
        "only if their values were chosen so.)",
        ignored=frozenset(),
        concerned=between,
    )


def _like_instance_ids(present: frozenset[int]) -> bool:
    core = present - {IGNORED, _IGNORED_16}
    return max(core, default=0) >= 1000 and all(
        24 <= value // 1000 <= 33 if value >= 1000 else value < len(CITYSCAPES_IDS) for value in core
    )


def _value_findings(values: Counts, coding: Coding, number: int | None, space: LabelSpace | None) -> Iterator[Finding]:
    """What is ignored, what is constant, what never occurs."""
    if coding.kind in ("instance-ids", "too-many-values", "interpolated"):
        return
    of = len(values.files)
    ignored = coding.ignored - set(coding.ids or ())
    skipped = sorted(ignored & values.pixels.keys())
    if skipped:
        text = (
            f"{'The value' if len(skipped) == 1 else 'The values'} {_ranges(skipped)} ({values.share(skipped)} of the "
            f"pixels) {'is' if len(skipped) == 1 else 'are'} ignored, "
            + ("as by default." if skipped == [IGNORED] else "read like that.")
        )
        yield finding("ignored", text, values.having(ignored), of)
    empty = [name for name, held in values.files.items() if ignored.issuperset(held)]
    if empty:
        text = "Every pixel is ignored; nothing is learned or counted from such masks."
        yield finding("all-ignored", text, empty, of)
    flat = {name: held[0] for name, held in values.files.items() if len(held) == 1 and held[0] not in ignored}
    if flat:
        listed = ", ".join(f"{value} in {plural(n, 'file')}" for value, n in Counter(flat.values()).most_common(5))
        text = f"One value in the whole mask ({listed}): right for images of one class."
        yield finding("single-value", text, list(flat), of)
    if number is not None and coding.ids is not None and len(coding.ids) == number:
        unseen = [index for index, value in enumerate(coding.ids) if value not in values.pixels]
        if unseen:
            names = ", ".join(_class(space, index) for index in unseen[:12]) + (", …" if len(unseen) > 12 else "")
            text = (
                f"{plural(len(unseen), 'class', 'classes')} of {number} never "
                f"{'occurs' if len(unseen) == 1 else 'occur'}: {names}. IoU is not defined there on these masks."
            )
            yield finding("never-seen", text, list(values.files), of)


# --- palettes and colors


def _palette_finding(seen: Seen, voc: bool) -> Finding:
    of = len(seen.values.files)
    if seen.palettes_differ:
        text = (
            "The same index has different colors in different files, so an index does not mean one class "
            "throughout: some program gave each file a palette of its own. Export them with one palette, or as RGB."
        )
        return finding("palettes-differ", text, seen.palettes_differ, of)
    text = f"Palette images, read as indices{', with the colors of VOC' if voc else ''}: nothing to do."
    index = max(seen.palette.keys() - {0, IGNORED}, default=None)
    if index is not None:
        gray = Image.new("RGB", (1, 1), seen.palette[index]).convert("L").getpixel((0, 0))
        text += f" A program that turns them into gray would read {gray} where the class is {index}; isanet does not."
    return finding("palette", text, seen.palette_files, of)


def _is_voc_palette(palette: Mapping[int, Color]) -> bool:
    voc = dict(enumerate(generic_palette(256)))
    return bool(palette.keys() - {0, IGNORED}) and all(
        color in (_VOC_BORDER, _WHITE) if index == IGNORED else color == voc[index] for index, color in palette.items()
    )


def _color_finding(kind: str, counts: Counts, number: int | None, space: LabelSpace | None) -> Finding:
    """What masks in colors are."""
    of, names = len(counts.files), list(counts.files)
    colors = [unpacked(code) for code, _ in counts.pixels.most_common()]
    wild = [name for name, held in counts.files.items() if not held]
    if wild or len(colors) >= MAX_COLORS:
        text = (
            f"More than {MAX_COLORS} colors{'' if wild else ' in all files together'}: photographs, or masks whose "
            "edges were smoothed or which were compressed with loss. They cannot be read as classes; export them "
            "again, without smoothing (nearest neighbor), as PNG."
        )
        return finding("too-many-colors", text, wild or names, of)
    if all(red == green == blue for red, green, blue in colors):
        return _gray_as_rgb(sorted(red for red, _, _ in colors), names, number)

    telling = set(colors) - {_BLACK, _WHITE}
    fits = _known_palettes(telling, number, space)
    if fits:
        name, remark, arguments = fits[0]
        doubt = ""
        if len(fits) > 1:
            doubt = f" They fit {', '.join(fit[0] for fit in fits[1:])} as well; which it is, only you know."
        elif len(telling) < 3 and space is None and kind != "color":
            doubt = " Colors so few may fit by chance."
        so = " If so:" if arguments[0] else ""
        text = f"Painted in {plural(len(colors), 'color')}, all of {name}.{remark}{doubt}{so}"
        return finding("known-colors", text, names, of, arguments)
    few = counts.leading(0.95)
    if len(colors) >= 16 and len(few) * 4 <= len(colors):
        text = (
            f"{len(colors)} colors, {len(few)} of which have {counts.share(few)} of the pixels: probably masks "
            "with smoothed edges. Export them again without smoothing (nearest neighbor)."
        )
        return finding("too-many-colors", text, names, of)
    text = (
        f"Painted in {plural(len(colors), 'color')} of no palette that is known here. Give the color of each class, "
        "in the order of your classes (black and white are ignored unless they are listed):"
    )
    return finding("colors", text, names, of, _by_colors([color for color in colors if color != _WHITE]))


def _gray_as_rgb(values: Sequence[int], names: Sequence[str], number: int | None) -> Finding:
    """Masks in colors that are all gray, as they are read by their indices, or else by the values that occur."""
    classes = number or max((value for value in values if value != IGNORED), default=0) + 1
    if set(values) - {IGNORED} <= set(range(classes)) and values != [0, 255]:
        arguments = f"colors=tuple((v, v, v) for v in range({classes}))", _hex([(v, v, v) for v in range(classes)])
        doubt = "" if number else f" if there are {classes} classes"
    else:
        arguments, doubt = _by_colors([(v, v, v) for v in values]), " if each of these values is a class"
    text = (
        f"Gray saved as RGB: red, green and blue are equal everywhere (values {_ranges(values)}). Save one "
        f"channel; or read them as they are,{doubt or ' by'}:"
    )
    return finding("gray-as-rgb", text, names, len(names), arguments)


def _known_palettes(
    telling: set[Color], number: int | None, space: LabelSpace | None
) -> list[tuple[str, str, tuple[str, str]]]:
    """Name, a remark and the arguments for each palette that has all these colors."""
    if not telling:
        return []
    # The expected one goes before all others
    known = [each for each in LABEL_SPACES.values() if official_name(each.name)]  # ToyStreets' colors are Cityscapes'
    if space is not None and telling <= set(space.palette):
        known = [space]
    fits = [
        (f"the palette of {each.name}", _REMARKS.get(each.name, ""), _by_palette(each))
        for each in known
        if telling <= set(each.palette) and number in (None, len(each))
    ]
    if fits:
        return fits
    voc = LABEL_SPACES["voc21"]
    if telling <= {*voc.palette, _VOC_BORDER} and number in (None, len(voc)):
        border = " #e0e0c0 is the border of objects, which is no class: paint it white, which is ignored."
        fits.append(("the palette of voc21 and its border", border, _by_palette(voc)))
    if telling <= set(CITYSCAPES_IDS.palette) and number in (None, len(CITYSCAPES)):
        remark = (
            " Some are of classes that are not among the 19, and pole and polegroup have one color: take the files "
            "*_labelIds.png instead."
        )
        fits.append(("the official palette of Cityscapes", remark, ("", "")))
    if number is not None and telling <= set(generic_palette(number)):
        fix = f"colors=isanet.labels.generic_palette({number})"
        fits.append(("the color map of VOC", "", (fix, _hex(generic_palette(number)))))
    return fits


_REMARKS = {
    "ade20k150": " Road and skyscraper have one color, so it cannot be undone: take ADE20K's own masks of values.",
    "voc21": " Other programs use the colors of VOC for classes of their own.",
}


# --- words and arguments


def _arguments(**values: str | Sequence[int]) -> tuple[str, str]:
    """Arguments of `isanet.datasets.Folder`, as Python and for the command line."""
    python, options = [], []
    for name, value in values.items():
        python.append(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}")
        options.append(f"--{name} {value if isinstance(value, str) else _ranges(value) or 'none'}")
    return ", ".join(python), " ".join(options)


def _by_palette(space: LabelSpace) -> tuple[str, str]:
    """The arguments that read masks in the colors of a space; none if two classes share one."""
    if len(set(space.palette)) < len(space):
        return "", ""
    if LABEL_SPACES.get(space.name) == space:
        return f'colors=isanet.labels.label_space("{space.name}").palette', f"--colors {space.name}"
    return _by_colors(space.palette)


def _by_colors(colors: Sequence[Color]) -> tuple[str, str]:
    """The arguments that spell out the colors; none if there are too many."""
    return (f"colors={tuple(colors)}", _hex(colors)) if len(colors) <= _LISTED else ("", "")


def _hex(colors: Sequence[Color]) -> str:
    """Colors for the command line, without the # that shells take for a comment; none if there are too many."""
    return "--colors " + ",".join(bytes(color).hex() for color in colors) if len(colors) <= _LISTED else ""


def _class(space: LabelSpace | None, index: int) -> str:
    return str(index) if space is None else f"{index} {shortened(space.classes[index])}"


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
