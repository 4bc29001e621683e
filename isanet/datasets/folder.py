"""Your own folder of images and masks as a dataset."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Unpack

import numpy as np

from isanet.datasets.base import UNKNOWN, Options, SegmentationDataset
from isanet.datasets.exports import color_of, read_labelmap
from isanet.datasets.listing import FoundFiles, PathLike, existing_folder, files_by_key, read_keys, read_lines
from isanet.errors import DatasetError
from isanet.images.masks import Color, Colors, checked_colors
from isanet.images.reading import SUFFIXES
from isanet.labels import (
    IGNORED,
    LABEL_SPACES,
    OFFICIAL_SPACES,
    LabelSpace,
    custom_space,
    generic_palette,
    label_space,
    official_name,
)


class Folder(SegmentationDataset):
    """Your own folder: `images/…/name.jpg` and `masks/…/name.png`, whose names differ only in the suffix.

    >>> isanet.datasets.Folder("streets")
    Folder(streets, 4 images, 11 classes: road, sidewalk, building, …)

    Args:
        root: The folder.
        split: A sub-folder (`images/train` and `masks/train`), or a list of keys (`train.txt` in the folder or in
            `splits`), one per line: the path in `images`, with or without suffix. None: everything. A list selects
            samples; without one, every image needs its mask, and every mask its image.
        classes: Names of the classes, or the name of a label space such as "cityscapes19". None: the lines of
            `classes.txt` in the folder, where a color may follow a name (`road #804080`, `road 128 64 128`), or CVAT's
            `labelmap.txt` under that name. RGB masks are read by those colors, if all classes have one. At most 255.
        images: Name of the images' folder.
        masks: Name of the masks' folder.
        mask_suffix: If both are the same folder: what the name of a mask has behind that of its image ("_mask").
        ids: The value of each class in the files, such as `range(1, 151)`; None: 0, 1, 2, ...; "official": the
            official ids of the label space, where ids that are not classes are ignored.
        colors: For RGB masks: the color (red, green, blue) of each class, at most 255 colors. The value of a pixel is
            then the position of its color in this list, also for `ids` and `ignore`; black and white are 255 if they
            are not listed. Another color is an error. Of classes that share a color in a published palette, the first
            gets all pixels. They are also the `palette`.
        ignore: A further value to ignore, or several; "rest": every other value.
        options: See `Options`.

    Raises:
        DatasetError: Something is not as described; the message names the file or the argument.
    """

    expected_layout = "images and masks"

    def __init__(
        self,
        root: PathLike,
        split: str | None = None,
        *,
        classes: Sequence[str] | str | None = None,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        ids: Sequence[int] | str | None = None,
        colors: Colors | None = None,
        ignore: Iterable[int] | int | str = (IGNORED,),
        **options: Unpack[Options],
    ) -> None:
        root = existing_folder(root)
        self.name = root.resolve().name
        self._masks = root / masks
        space, has_colors = _space(root, classes, self.name)
        self._colors = None if colors is None else checked_colors(colors)
        index_of, other_index = _index_of(space, ids, self._colors, ignore)
        if self._colors is not None:
            values = {index: value for value, index in index_of.items()}
            space = replace(space, palette=tuple(self._colors[values[index]] for index in range(len(space))))
        elif has_colors and ids is None:
            self._rgb_palette = space.palette
        folder, key_list = _find_split(root, images, split)
        image_files = files_by_key(root / images / folder, *SUFFIXES)
        mask_files = files_by_key(root / masks / folder, *SUFFIXES)
        if mask_suffix:
            image_files = {key: path for key, path in image_files.items() if not key.endswith(mask_suffix)}
            ends = {key: path for key, path in mask_files.items() if key.endswith(mask_suffix)}
            mask_files = {key.removesuffix(mask_suffix): path for key, path in ends.items()}
        elif (root / images).resolve() == (root / masks).resolve():
            raise DatasetError(
                f"images and masks of {root} are in one folder, {images}, so every image would be its own mask; put "
                "the masks into a folder of their own, or name them as x_mask.png beside x.jpg (mask_suffix='_mask')"
            )
        keys = None if key_list is None else [_key(entry, image_files) for entry in read_keys(key_list)]
        super().__init__(
            root, split, space, FoundFiles(image_files, mask_files, keys), index_of, other_index, **options
        )

    def _advice(self) -> str:
        return (
            "to ignore such values, pass them as ignore=(…), or ignore='rest'; if they are classes, say by ids= which "
            f"value is which class (`isanet check-masks {self._masks}` lists the values)"
        )


def _space(root: Path, classes: Sequence[str] | str | None, name: str) -> tuple[LabelSpace, bool]:
    """The label space, see `Folder`, and whether a file has a color for each class."""
    colors: Sequence[Color | None] | None = None
    try:
        if isinstance(classes, str):
            return label_space(classes), False
        if classes is None:
            if not (root / "classes.txt").is_file():
                raise DatasetError(
                    f"the classes of {root} are not known: pass classes=, a list of names or the name of a label "
                    f"space, or write the names into {root / 'classes.txt'}, one per line"
                )
            classes, colors = read_classes(root / "classes.txt")
        space = custom_space(classes, filled_palette(colors) if colors else None, name=name)
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"the classes of {root}: {error}") from error
    except TypeError as error:
        raise DatasetError(f"classes must be names, or the name of a label space, got {classes!r}") from error
    if len(space) > IGNORED:
        raise DatasetError(f"{root} has {len(space)} classes; an 8-bit mask holds no more than {IGNORED}")
    return space, bool(colors) and len(set(colors or ()) - {None}) == len(space)


_NAME_AND_COLOR = re.compile(r"(.*\S)[\s,]+(?:(#[0-9a-fA-F]{6})|(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3}))")
_LABELMAP = re.compile(r"[^:]+:\d+,\d+,\d+:.*:.*")


def write_classes(path: Path, space: LabelSpace) -> None:
    """Write names and colors of the classes, as `read_classes` reads them."""
    colors = zip(space.classes, space.palette, strict=True)
    path.write_text("".join(f"{name} #{bytes(color).hex()}\n" for name, color in colors), "utf-8")


def read_classes(path: Path) -> tuple[list[str], list[Color | None]]:
    """Names and colors of the classes in a list, see `Folder`.

    Raises:
        DatasetError: The list cannot be read, or a color is out of range.
    """
    lines = read_lines(path)
    if all(_LABELMAP.fullmatch(text) or text.startswith("# label:") for _, text in lines):
        entries = list(read_labelmap(path))
        return [name for name, _ in entries], [color for _, color in entries]
    names: list[str] = []
    colors: list[Color | None] = []
    for number, text in lines:
        match = _NAME_AND_COLOR.fullmatch(text)
        numbers = match.groups()[2:] if match else ()
        color = color_of(match[2] or [int(part) for part in numbers]) if match else None
        if match and color is None:
            raise DatasetError(f"line {number} of {path}: the color of {match[1]!r} is not within 0 and 255")
        names.append(match[1] if match else text)
        colors.append(color)
    return names, colors


def filled_palette(colors: Sequence[Color | None]) -> list[Color]:
    """Colors, and for those that are missing the first of `generic_palette` that are not taken."""
    fresh = (color for color in generic_palette(2 * len(colors) + 1) if color not in colors)
    return [color or next(fresh) for color in colors]


def _index_of(
    space: LabelSpace, ids: Sequence[int] | str | None, colors: Colors | None, ignore: Iterable[int] | int | str
) -> tuple[dict[int, int], int]:
    """The class index of each value in the files, and that of every other value, see `SegmentationDataset`."""
    indices: dict[int, int] = {}
    if isinstance(ids, str) and ids == "official":
        ids = space.official_ids
        official = OFFICIAL_SPACES.get(official_name(space.name) or "")
        if official is not None:
            indices = dict.fromkeys(official.official_ids, IGNORED)
    if isinstance(ids, str) or (isinstance(ignore, str) and ignore != "rest"):
        raise DatasetError(f"ids is a list or 'official', and ignore a list or 'rest'; got {ids!r} and {ignore!r}")
    values = list(range(len(space))) if ids is None else _integers("ids", ids)
    if len(values) != len(space) or len(set(values)) != len(space):
        raise DatasetError(f"ids must be {len(space)} different values, one for each class, got {values}")
    if colors is not None:
        published = [known.palette for known in (LABEL_SPACES | OFFICIAL_SPACES).values()]
        different = len(colors) if colors in published else len(set(colors))  # some have a color twice
        if not max(values) < len(colors) == different:
            raise DatasetError(
                f"colors must be different, and one for each class at least; got {len(colors)}, {different} of them "
                f"different, for {len(space)} classes"
            )
    indices |= {value: index for index, value in enumerate(values)}
    if isinstance(ignore, str):
        return indices, IGNORED
    for value in _integers("ignore", [ignore] if isinstance(ignore, int | np.integer) else ignore):
        if value in values:
            raise DatasetError(
                f"{value} is the value of {space.classes[indices[value]]!r} and in ignore; pass an ignore without it, "
                "such as ignore=()"
            )
        indices.setdefault(value, IGNORED)
    return indices, UNKNOWN


def _integers(name: str, values: Iterable[int]) -> list[int]:
    """Values as int."""
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise DatasetError(f"{name} must be whole numbers, got {values!r}") from error


def split_paths(root: Path, images: str, split: str) -> tuple[Path, Path, Path]:
    """What a split may be: a folder of images, or one of two lists."""
    return root / images / split, root / f"{split}.txt", root / "splits" / f"{split}.txt"


def _find_split(root: Path, images: str, split: str | None) -> tuple[str, Path | None]:
    """The sub-folder to search and the list of keys, see `Folder`."""
    if split is None:
        return ".", None
    found = [path for path in split_paths(root, images, split) if path.exists()]
    if len(found) > 1:
        raise DatasetError(f"the split {split!r} is there twice: {' and '.join(map(str, found))}; rename one")
    if not found:
        others = {path.stem for path in [*root.glob("[!.]*.txt"), *root.glob("splits/[!.]*.txt")]} - {"classes"}
        others |= {path.name for path in root.glob(f"{images}/[!.]*") if path.is_dir()}
        raise DatasetError(
            f"{root} has no split {split!r}, neither a folder {images}/{split} nor a list {split}.txt; "
            + (f"it has: {', '.join(sorted(others))}" if others else "it has none: leave out split for all of it")
        )
    return (split, None) if found[0].is_dir() else (".", found[0])


def _key(entry: str, images: Mapping[str, Path]) -> str:
    """The key of a line in a list, which may have a suffix and a leading "./"."""
    path = PurePosixPath(entry)
    key = path.as_posix()
    return key if key in images or path.suffix.lower() not in SUFFIXES else path.with_suffix("").as_posix()
