"""Label spaces: what the class indices of the published models mean.

A checkpoint holds only the number of its classes. Their names, their colors and their values in the dataset's own
annotation files are facts about the datasets, written down here once for the whole package.

Sources:

* `voc21`: the PASCAL VOC development kit, `VOCinit.m` (names) and `VOClabelcolormap.m` (colors), as in
  mmsegmentation's `mmseg/utils/class_names.py`. sssegmentation calls the first class `__background__`.
* `ade20k150`: `objectInfo150.txt` of CSAILVision/sceneparsing (order), shortened to one name per class as in
  mmsegmentation's `mmseg/datasets/ade.py`; colors as in that file and in sssegmentation's
  `ssseg/modules/datasets/ade20k.py`.
* `context59`: `PascalContextDataset59` of mmsegmentation's `mmseg/datasets/pascal_context.py`, without background; ids
  as its converter writes them; colors are those of `ade20k150` from the second on. Older code has VOC's classes first.
* `cityscapes19`: `cityscapesscripts/helpers/labels.py` of mcordts/cityscapesScripts, the labels with a train id.
* `toystreets`: what `isanet.toystreets` draws, named and colored as in Cityscapes; its ids are its indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from isanet._text import listed, plural, shortened

__all__ = [
    "IGNORED",
    "LABEL_SPACES",
    "OFFICIAL_SPACES",
    "Groups",
    "LabelSpace",
    "custom_space",
    "generic_palette",
    "label_space",
    "label_space_for",
    "merged",
    "official_name",
    "translation",
]

IGNORED = 255
"""The value of mask pixels that count neither in training nor in evaluation (`ignore_index`)."""

Groups = Mapping[str, Sequence[str] | None]
"""Merged classes: for each new name the names of the old classes; None: the class of this name is ignored."""


@dataclass(frozen=True)
class LabelSpace:
    """The classes of one dataset; position i of each tuple describes class index i.

    >>> space = isanet.labels.label_space("cityscapes19")
    >>> len(space), space.classes[0], space.palette[0], space.official_ids[0]
    (19, 'road', (128, 64, 128), 7)

    Attributes:
        name: Name of the space, as in `LABEL_SPACES`.
        classes: Names of the classes, unique.
        palette: Colors (red, green, blue) of the classes, each 0 to 255. Not always unique, see `ade20k150`.
        official_ids: Values of the classes in the dataset's annotation files and in results for its evaluation
            server. Values that are not listed are ignored in training and evaluation.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    official_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        """For messages: the name, the number of classes and the first of them."""
        return f"{self.name} ({named_classes(self.classes)})"

    def index(self, name: str) -> int:
        """The index of a class; a ValueError lists the nearest names if there is none.

        >>> isanet.labels.label_space("cityscapes19").index("car")
        13
        """
        check_groups({name: None}, self)
        return self.classes.index(name)


def named_classes(classes: Sequence[str]) -> str:
    """For messages: `11 classes: road, sidewalk, building, …`."""
    return f"{plural(len(classes), 'class', 'classes')}: {listed(map(shortened, classes), 3)}"


def generic_palette(n: int) -> tuple[tuple[int, int, int], ...]:
    """`n` colors (red, green, blue), 0 to 255, for classes that have none: the VOC color map, continued.

    The bits of the index go to red, green and blue in turn, and fill each channel from its highest bit down. So
    neighboring classes get clearly different colors, and the first do not depend on `n`. They repeat after 2**24.
    Source: `VOClabelcolormap.m` of the PASCAL VOC development kit.

    >>> isanet.labels.generic_palette(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))

    Raises:
        ValueError: `n` is negative.
    """
    if n < 0:
        raise ValueError(f"a palette needs a number of colors of at least 0, got {n}")

    def every_third_bit(index: int) -> int:
        return sum((index >> (3 * k) & 1) << (7 - k) for k in range(8))

    return tuple((every_third_bit(i), every_third_bit(i >> 1), every_third_bit(i >> 2)) for i in range(n))


def _parse(name: str, table: str) -> LabelSpace:
    """A space from rows of entries `id name red green blue`, separated by `|`; names may contain spaces."""
    ids, classes, palette = [], [], []
    for entry in table.strip().replace("\n", "|").split("|"):
        official_id, *words, red, green, blue = entry.split()
        ids.append(int(official_id))
        classes.append(" ".join(words))
        palette.append((int(red), int(green), int(blue)))
    return LabelSpace(name, tuple(classes), tuple(palette), tuple(ids))


_VOC21 = """
background aeroplane bicycle bird boat bottle bus car cat chair cow
diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor
"""

# Id 0 is "other" and ignored. Road and skyscraper share a color in the original. It is kept: with other colors, images
# would not compare with anybody else's.
_ADE20K150 = """
  1 wall                120 120 120 |   2 building            180 120 120 |   3 sky                   6 230 230
  4 floor                80  50  50 |   5 tree                  4 200   3 |   6 ceiling             120 120  80
  7 road                140 140 140 |   8 bed                 204   5 255 |   9 windowpane          230 230 230
 10 grass                 4 250   7 |  11 cabinet             224   5 255 |  12 sidewalk            235 255   7
 13 person              150   5  61 |  14 earth               120 120  70 |  15 door                  8 255  51
 16 table               255   6  82 |  17 mountain            143 255 140 |  18 plant               204 255   4
 19 curtain             255  51   7 |  20 chair               204  70   3 |  21 car                   0 102 200
 22 water                61 230 250 |  23 painting            255   6  51 |  24 sofa                 11 102 255
 25 shelf               255   7  71 |  26 house               255   9 224 |  27 sea                   9   7 230
 28 mirror              220 220 220 |  29 rug                 255   9  92 |  30 field               112   9 255
 31 armchair              8 255 214 |  32 seat                  7 255 224 |  33 fence               255 184   6
 34 desk                 10 255  71 |  35 rock                255  41  10 |  36 wardrobe              7 255 255
 37 lamp                224 255   8 |  38 bathtub             102   8 255 |  39 railing             255  61   6
 40 cushion             255 194   7 |  41 base                255 122   8 |  42 box                   0 255  20
 43 column              255   8  41 |  44 signboard           255   5 153 |  45 chest of drawers      6  51 255
 46 counter             235  12 255 |  47 sand                160 150  20 |  48 sink                  0 163 255
 49 skyscraper          140 140 140 |  50 fireplace           250  10  15 |  51 refrigerator         20 255   0
 52 grandstand           31 255   0 |  53 path                255  31   0 |  54 stairs              255 224   0
 55 runway              153 255   0 |  56 case                  0   0 255 |  57 pool table          255  71   0
 58 pillow                0 235 255 |  59 screen door           0 173 255 |  60 stairway             31   0 255
 61 river                11 200 200 |  62 bridge              255  82   0 |  63 bookcase              0 255 245
 64 blind                 0  61 255 |  65 coffee table          0 255 112 |  66 toilet                0 255 133
 67 flower              255   0   0 |  68 book                255 163   0 |  69 hill                255 102   0
 70 bench               194 255   0 |  71 countertop            0 143 255 |  72 stove                51 255   0
 73 palm                  0  82 255 |  74 kitchen island        0 255  41 |  75 computer              0 255 173
 76 swivel chair         10   0 255 |  77 boat                173 255   0 |  78 bar                   0 255 153
 79 arcade machine      255  92   0 |  80 hovel               255   0 255 |  81 bus                 255   0 245
 82 towel               255   0 102 |  83 light               255 173   0 |  84 truck               255   0  20
 85 tower               255 184 184 |  86 chandelier            0  31 255 |  87 awning                0 255  61
 88 streetlight           0  71 255 |  89 booth               255   0 204 |  90 television receiver   0 255 194
 91 airplane              0 255  82 |  92 dirt track            0  10 255 |  93 apparel               0 112 255
 94 pole                 51   0 255 |  95 land                  0 194 255 |  96 bannister             0 122 255
 97 escalator             0 255 163 |  98 ottoman             255 153   0 |  99 bottle                0 255  10
100 buffet              255 112   0 | 101 poster              143 255   0 | 102 stage                82   0 255
103 van                 163 255   0 | 104 ship                255 235   0 | 105 fountain              8 184 170
106 conveyer belt       133   0 255 | 107 canopy                0 255  92 | 108 washer              184   0 255
109 plaything           255   0  31 | 110 swimming pool         0 184 255 | 111 stool                 0 214 255
112 barrel              255   0 112 | 113 basket               92 255   0 | 114 waterfall             0 224 255
115 tent                112 224 255 | 116 bag                  70 184 160 | 117 minibike            163   0 255
118 cradle              153   0 255 | 119 oven                 71 255   0 | 120 ball                255   0 163
121 food                255 204   0 | 122 step                255   0 143 | 123 tank                  0 255 235
124 trade name          133 255   0 | 125 microwave           255   0 235 | 126 pot                 245   0 255
127 animal              255   0 122 | 128 bicycle             255 245   0 | 129 lake                 10 190 212
130 dishwasher          214 255   0 | 131 screen                0 204 255 | 132 blanket              20   0 255
133 sculpture           255 255   0 | 134 hood                  0 153 255 | 135 sconce                0  41 255
136 vase                  0 255 204 | 137 traffic light        41   0 255 | 138 tray                 41 255   0
139 ashcan              173   0 255 | 140 fan                   0 245 255 | 141 pier                 71   0 255
142 crt screen          122   0 255 | 143 plate                 0 255 184 | 144 monitor               0  92 255
145 bulletin board      184 255   0 | 146 shower                0 133 255 | 147 radiator            255 214   0
148 glass                25 194 194 | 149 clock               102 255   0 | 150 flag                 92   0 255
"""

_CONTEXT59 = """
aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth
computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain mouse
person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train tree truck
tvmonitor wall water window wood
"""

# The ids are those of `*_labelIds.png`; the model's own index (the position) is the official train id.
_CITYSCAPES19 = """
  7 road                128  64 128 |   8 sidewalk            244  35 232 |  11 building             70  70  70
 12 wall                102 102 156 |  13 fence               190 153 153 |  17 pole                153 153 153
 19 traffic light       250 170  30 |  20 traffic sign        220 220   0 |  21 vegetation          107 142  35
 22 terrain             152 251 152 |  23 sky                  70 130 180 |  24 person              220  20  60
 25 rider               255   0   0 |  26 car                   0   0 142 |  27 truck                 0   0  70
 28 bus                   0  60 100 |  31 train                 0  80 100 |  32 motorcycle            0   0 230
 33 bicycle             119  11  32
"""

_TOYSTREETS = """
  0 road                128  64 128 |   1 sidewalk            244  35 232 |   2 building             70  70  70
  3 pole                153 153 153 |   4 traffic light       250 170  30 |   5 traffic sign        220 220   0
  6 vegetation          107 142  35 |   7 terrain             152 251 152 |   8 sky                  70 130 180
  9 person              220  20  60 |  10 car                   0   0 142
"""

# The ids of classes that are not among the 19: ignored in training and evaluation.
_CITYSCAPES_REST = """
  0 unlabeled             0   0   0 |   1 ego vehicle           0   0   0 |   2 rectification border  0   0   0
  3 out of roi            0   0   0 |   4 static                0   0   0 |   5 dynamic             111  74   0
  6 ground               81   0  81 |   9 parking             250 170 160 |  10 rail track          230 150 140
 14 guard rail          180 165 180 |  15 bridge              150 100 100 |  16 tunnel              150 120  90
 18 polegroup           153 153 153 |  29 caravan               0   0  90 |  30 trailer               0   0 110
"""


def _by_id(name: str, *parts: LabelSpace) -> LabelSpace:
    """The space whose class indices are official ids; the ids of the parts together are 0, 1, 2, ..."""
    entries = sorted(
        entry for part in parts for entry in zip(part.official_ids, part.classes, part.palette, strict=True)
    )
    ids, classes, palette = zip(*entries, strict=True)
    assert ids == tuple(range(len(ids)))
    return LabelSpace(name, classes, palette, ids)


_ADE20K = _parse("ade20k150", _ADE20K150)

LABEL_SPACES: dict[str, LabelSpace] = {
    "voc21": LabelSpace("voc21", tuple(_VOC21.split()), generic_palette(21), tuple(range(21))),
    "ade20k150": _ADE20K,
    "context59": LabelSpace("context59", tuple(_CONTEXT59.split()), _ADE20K.palette[1:60], tuple(range(1, 60))),
    "cityscapes19": _parse("cityscapes19", _CITYSCAPES19),
    "toystreets": _parse("toystreets", _TOYSTREETS),
}
"""The spaces of published models, by name."""

_BACKGROUND = LabelSpace("", ("background",), ((0, 0, 0),), (0,))

OFFICIAL_SPACES: dict[str, LabelSpace] = {
    "voc-ids": _by_id("voc-ids", LABEL_SPACES["voc21"]),
    "ade20k-ids": _by_id("ade20k-ids", LabelSpace("", ("other",), ((0, 0, 0),), (0,)), LABEL_SPACES["ade20k150"]),
    "context-ids": _by_id("context-ids", _BACKGROUND, LABEL_SPACES["context59"]),
    "cityscapes-ids": _by_id("cityscapes-ids", LABEL_SPACES["cityscapes19"], _parse("", _CITYSCAPES_REST)),
}
"""The values in the datasets' own annotation files, by name: the index of a class is its official id."""

_OFFICIAL_NAMES = {
    "voc21": "voc-ids",
    "ade20k150": "ade20k-ids",
    "context59": "context-ids",
    "cityscapes19": "cityscapes-ids",
}
"""From spaces of real datasets to those of their official ids. ToyStreets has neither files nor a server."""


def label_space(name: str) -> LabelSpace:
    """The label space of a name in `LABEL_SPACES` or `OFFICIAL_SPACES`.

    >>> print(isanet.labels.label_space("voc21"))
    voc21 (21 classes: background, aeroplane, bicycle, …)

    Raises:
        ValueError: There is none; the message lists the known names.
    """
    known = LABEL_SPACES | OFFICIAL_SPACES
    if name not in known:
        raise ValueError(f"unknown label space {name!r}; the known ones are: {', '.join(known)}")
    return known[name]


def label_space_for(num_classes: int) -> LabelSpace | None:
    """The space of a real dataset with exactly that many classes (21, 150, 59 or 19), to guess that of a checkpoint.

    Else None: an unknown checkpoint with 11 classes need not be of ToyStreets.

    >>> isanet.labels.label_space_for(150).name
    'ade20k150'
    """
    return next((LABEL_SPACES[name] for name in _OFFICIAL_NAMES if len(LABEL_SPACES[name]) == num_classes), None)


def official_name(name: str | None) -> str | None:
    """The name of the official ids of a known space ("cityscapes-ids" for "cityscapes19"); None for any other.

    >>> isanet.labels.official_name("ade20k150")
    'ade20k-ids'
    """
    return _OFFICIAL_NAMES.get(name or "")


def custom_space(
    classes: Sequence[str], palette: Sequence[Sequence[int]] | None = None, name: str = "custom"
) -> LabelSpace:
    """A label space for your own classes; its official ids are the indices.

    >>> isanet.labels.custom_space(["road", "rest"]).palette
    ((0, 0, 0), (128, 0, 0))

    Args:
        classes: Names of the classes, unique.
        palette: Colors (red, green, blue), 0 to 255; default: `generic_palette`.
        name: What messages call it.

    Raises:
        ValueError: There is no class, a name is repeated, or the number of colors is not that of names.
    """
    names = tuple(classes)
    if isinstance(classes, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"classes must be a list of different names, got {classes!r}")
    colors = generic_palette(len(names)) if palette is None else tuple((int(r), int(g), int(b)) for r, g, b in palette)
    if len(colors) != len(names):
        raise ValueError(f"got {len(colors)} colors for {len(names)} classes")
    return LabelSpace(name, names, colors, tuple(range(len(names))))


def translation(source: LabelSpace, target: LabelSpace) -> tuple[int | None, ...]:
    """The index in `target` of each class of `source`; None where it has none.

    Spaces with the same classes in the same order translate into each other, and so do a dataset's space and its
    official ids. Nothing else does: equal names in different datasets need not mean the same.

    >>> classes, ids = isanet.labels.label_space("cityscapes19"), isanet.labels.label_space("cityscapes-ids")
    >>> isanet.labels.translation(classes, ids)[:3]
    (7, 8, 11)

    Raises:
        ValueError: There is no translation; the message names both.
    """
    if source.classes == target.classes:
        return tuple(range(len(source)))
    for name, ids in _OFFICIAL_NAMES.items():
        space, official = LABEL_SPACES[name], OFFICIAL_SPACES[ids]
        if (source.classes, target.classes) == (space.classes, official.classes):
            return space.official_ids
        if (source.classes, target.classes) == (official.classes, space.classes):
            positions = {official_id: index for index, official_id in enumerate(space.official_ids)}
            return tuple(positions.get(index) for index in range(len(official)))
    raise ValueError(
        f"there is no translation from the label space {source} to {target}; say which classes are which by a mapping "
        'such as {"vehicle": ["car", "bus"]}'
    )


def merged(space: LabelSpace, groups: Groups) -> tuple[LabelSpace, tuple[int | None, ...]]:
    """Merges classes; a class that no group names stays as it is.

    >>> space = isanet.labels.custom_space(["road", "car", "bus"])
    >>> merged, table = isanet.labels.merged(space, {"vehicle": ["car", "bus"]})
    >>> merged.classes, table
    (('road', 'vehicle'), (0, 1, 1))

    Args:
        space: The space to start from.
        groups: Names that `space` does not have are skipped, since the groups may also be meant for another space
            (`check_groups` finds misspelled names).

    Returns:
        The space of the new classes, in the order and with the color of the first of their old classes; and the new
        index of each old class, None if it is ignored.

    Raises:
        ValueError: A class is in two groups, a new name is also a class outside its group, or no class is left.
    """
    new_name: dict[str, str | None] = {}
    for name, members in groups.items():
        for member in [name] if members is None else members:
            if member in new_name:
                raise ValueError(f"the class {member!r} is in two groups")
            new_name[member] = None if members is None else name
    names = [new_name.get(old, old) for old in space.classes]
    for old in space.classes:
        members = groups.get(old) or ()
        if old not in members and any(member in space.classes for member in members):
            raise ValueError(f"{old!r} is a class already; list it among the classes that become {old!r}")
    kept = tuple(dict.fromkeys(name for name in names if name is not None))
    if not kept:
        raise ValueError(f"all classes of {space} are ignored; leave one")
    indices = tuple(None if name is None else kept.index(name) for name in names)
    if kept == space.classes:
        return space, indices
    palette = [space.palette[names.index(name)] for name in kept]
    return custom_space(kept, palette, f"{space.name}, merged"), indices


def check_groups(groups: Groups, *spaces: LabelSpace) -> None:
    """Checks that every class that `groups` names is in one of the spaces.

    Raises:
        ValueError: A class is in none (the message lists the nearest names) or listed twice, or a group is not a list
            of names.
    """
    known = list(dict.fromkeys(name for space in spaces for name in space.classes))
    for name, members in groups.items():
        if members is None:
            members = [name]
        if (
            not isinstance(members, Sequence)
            or isinstance(members, str)
            or not all(isinstance(m, str) for m in members)
        ):
            raise ValueError(f"the classes that become {name!r} must be a list of names, not {members!r}")
        if len(set(members)) < len(members):
            raise ValueError(f"a class is listed twice among those that become {name!r}: {', '.join(members)}")
        for member in members:
            if member not in known:
                near = get_close_matches(member, known, n=3, cutoff=0.6)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(f"no class {member!r} in {' or '.join(map(str, spaces))}{hint}")


def __dir__() -> list[str]:
    return __all__
