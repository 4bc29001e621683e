"""What follows from what was seen in masks: how their values or colours stand for classes, and what is odd.

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

from isanet.charts import percent
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, generic_palette
from isanet.legend import shortened

MAX_COLOURS = 300
"""Colours told apart in masks that are in colours; more are no classes anyway."""

CITYSCAPES = LABEL_SPACES["cityscapes19"]
CITYSCAPES_IDS = OFFICIAL_SPACES["cityscapes-ids"]
_IGNORED_16 = 65535
_VOC_BORDER = (224, 224, 192)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_LISTED = 32  # colours or levels, at most, that an argument spells out

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
        group: The kind of file it is about, see `isanet.mask_check.MaskGroup`; empty if there is one kind or it is
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
    """The values of some masks, or their colours as 24 bits.

    Attributes:
        files: Which each file has, ascending, by its name; none for a file of more than `MAX_COLOURS` colours.
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
        found, covered = [], 0
        for value, count in self.pixels.most_common():
            if covered >= share * self.pixels.total():
                break
            found.append(value)
            covered += count
        return found


@dataclass
class Seen:
    """What is kept of the masks of one kind.

    Attributes:
        values: Of the masks that hold values.
        colours: Of the masks that are painted in colours.
        formats: How many files have each format and mode.
        area: Pixels of all files.
        palette: The colour of each value, in the first palette picture that has it.
        palette_files: The palette pictures.
        palettes_differ: Those in which a value has another colour than in an earlier one.
    """

    values: Counts = field(default_factory=Counts)
    colours: Counts = field(default_factory=Counts)
    formats: Counter[str] = field(default_factory=Counter)
    area: int = 0
    palette: dict[int, Colour] = field(default_factory=dict)
    palette_files: list[str] = field(default_factory=list)
    palettes_differ: list[str] = field(default_factory=list)


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


def plural(number: int, one: str, many: str = "") -> str:
    """`1 mask`, `2 masks`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def colour_of(code: int) -> Colour:
    """The colour of 24 bits."""
    return code >> 16, code >> 8 & 255, code & 255


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
    values, colours = seen.values, seen.colours
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
    if colours.files:
        findings.append(_colour_finding(kind, colours, number, space))
    if values.files and colours.files:
        text = (
            f"{len(values.files):,} masks hold values and {len(colours.files):,} are in colours; one reading does not "
            "fit both: export them alike, or put them in folders of their own."
        )
        rarer = min((colours, values), key=lambda counts: len(counts.files))
        findings.append(finding("mixed", text, list(rarer.files), len(values.files) + len(colours.files)))
    return coding, [replace(each, group=kind) for each in findings]


# --- values


def _coding(kind: str, values: Counts, number: int | None, space: LabelSpace | None, voc_palette: bool) -> Coding:
    """How the values stand for classes.

    Args:
        kind: The ending of the files' names.
        values: That occur.
        number: Of the expected classes.
        space: Of the expected classes.
        voc_palette: The files carry the VOC colour map, so 255 is its border.
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
        return _grey_levels(present, number, certain=not binary and number == len(present))

    if number is None and not strange and not voc_palette and top > 20 and len(core & {7, 8, 11, 21, 23, 26}) >= 3:
        doubt = "" if len(core) < 34 else " Plain indices of 34 classes would look the same."
        return _official(
            f"The values {shown} fit the official Cityscapes ids (7 road, 11 building, 23 sky, 26 car), though their "
            f"names do not say so.{doubt} If that is what they are:"
        )
    if number is not None and top >= number:
        if city_possible and not strange and not core <= set(range(1, number + 1)):
            return _official(
                f"The values {shown} are more than the 19 classes have, and fit the official Cityscapes ids, 0 to 33."
            )
        if core <= set(range(number + 1)):
            return _shifted(values, number, space)
    elif number is not None and min(core, default=0) >= 0 and not (core and 0 not in core and number > 1):
        kept = _arguments(ignore=tuple(sorted(present & ignored))) if _IGNORED_16 in present else ("", "")
        if city:
            text = f"Cityscapes' train ids ({shown}), the model's own indices, not the official ids."
            return Coding("train-ids", text, ("", ""), range(number))
