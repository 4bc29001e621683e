"""Exports of labelling tools as datasets: what the readers found becomes images and masks of class indices."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from isanet._text import listed, plural
from isanet.datasets.annotations import FORMATS
from isanet.datasets.base import Options
from isanet.datasets.exports import Export
from isanet.datasets.folder import Folder, filled_palette
from isanet.datasets.listing import FoundFiles, PathLike, contents, existing_folder
from isanet.datasets.shapes import UNLABELED, Values, paint
from isanet.errors import DatasetError, ImageError
from isanet.images.blocks import exif_orientation
from isanet.images.masks import Color, Mask
from isanet.images.reading import check_size, open_header
from isanet.labels import IGNORED, LabelSpace, custom_space, label_space

log = logging.getLogger("isanet")


class Exported(Folder):
    """What a labelling tool exported, read as it is; `isanet.datasets.shapes` says how shapes become pixels.

    >>> isanet.datasets.Exported("boxes", layout="labelme").classes
    ('background', 'car', 'person', 'road')

    Args:
        root: The folder.
        split: "train", "val", "test", where the export has splits; None: everything.
        layout: A name in `isanet.datasets.annotations.FORMATS`.
        classes: Names of the classes in the order of their indices; None: those of the export, in its order, after
            "background" if that is not one of them.
        unlabeled: Pixels that no shape covers are "background" (the default, which is logged), or "ignored". Where
            masks have a background, "ignored" leaves it out of the classes.
        options: See `Options`.

    Attributes:
        splits: Those that the export has.
        unmatched: Images in the folder that are not annotated; they are no samples.
        skipped: Number of shapes that have no area, by their kind.
        overlaps: Pixels that two classes claim, by sample; of those read so far.

    Raises:
        DatasetError: Something cannot be read; the message names the file and the value.
    """

    def __init__(
        self,
        root: PathLike,
        split: str | None = None,
        *,
        layout: str,
        classes: Sequence[str] | str | None = None,
        unlabeled: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        root = existing_folder(root)
        self.name, self.root, self.split = root.resolve().name, root, split
        if unlabeled not in (None, "background", "ignored"):
            raise DatasetError(f'unlabeled is "background" or "ignored", got {unlabeled!r}')
        title, find, read, _ = FORMATS[layout]
        if not (files := find(root)):
            raise DatasetError(f"{root} does not hold an export of {title}; {contents(root)}")
        export = read(root, files)
        space, final = _classes(export, classes, self.name, unlabeled or "background")
        if unlabeled is None and final[UNLABELED] != IGNORED:
            log.info(
                "%s: what is not annotated is background; unlabeled='ignored' (--unlabeled ignored) ignores it", self
            )
        if not export.samples:
            raise DatasetError(f"{root} has no sample: its {title.partition(':')[0]} export annotates no image")
        self._annotated = export.samples
        self.splits = sorted({sample.split for sample in export.samples.values() if sample.split})
        used = {sample.image for sample in export.samples.values()}
        self.unmatched = sorted(path for path in export.images if path not in used)
        self.skipped = dict(export.skipped)
        self.overlaps: dict[str, int] = {}
        if self.unmatched:
            named = listed((path.relative_to(root) for path in self.unmatched), 5)
            number = plural(len(self.unmatched), "image")
            log.warning("%s in %s without annotations, which are no samples: %s", number, root, named)
        if self.skipped:
            named = listed(f"{count:,} of kind {kind!r}" for kind, count in self.skipped.items())
            log.warning("shapes in %s that have no area are skipped: %s", root, named)
        keys = sorted(key for key, sample in export.samples.items() if split in (None, sample.split))
        if not keys:
            raise self._no_split(split)
        images = {key: sample.image for key, sample in export.samples.items()}
        sources = {key: sample.source for key, sample in export.samples.items()}
        super(Folder, self).__init__(root, split, space, FoundFiles(images, sources, keys), final, **options)

    def part(self, split: str | None) -> Exported:
        """One split of all, or all for None.

        >>> len(isanet.datasets.Exported("boxes", layout="labelme").part(None))
        6

        Raises:
            DatasetError: There is no such split.
        """
        indices = [i for i, key in enumerate(self.keys) if split in (None, self._annotated[key].split)]
        if not indices:
            raise self._no_split(split)
        return self._subset(split, indices)

    def _no_split(self, split: str | None) -> DatasetError:
        has = f"has: {', '.join(self.splits)}" if self.splits else "has none: leave out split for all of it"
        return DatasetError(f"{self.root} has no split {split!r}; it {has}")

    def _read_values(self, path: Path, name: str) -> Mask:
        sample = self._annotated[name]
        try:
            size = sample.size or _size_of(sample.image, self._max_pixels)
            check_size(size[1], size[0], f"{path}: {sample.image.name}", self._max_pixels)
        except ImageError as error:
            raise DatasetError(str(error)) from error
        mask, self.overlaps[name] = paint(sample.layers, size, self._max_pixels)
        return mask

    def _advice(self) -> str:
        return "export it again"


def _size_of(path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width) of an image as it is read, upright; by its header."""
    try:
        with path.open("rb") as stream:
            image = open_header(stream, path, max_pixels)
            turned = exif_orientation(image) in (5, 6, 7, 8)
            return image.size if turned else (image.height, image.width)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error}") from error


def _classes(
    export: Export, classes: Sequence[str] | str | None, name: str, unlabeled: str
) -> tuple[LabelSpace, dict[int, int]]:
    """The label space, and the class index or `IGNORED` of each class of the export and of `UNLABELED`."""
    names, colors = list(export.classes), list(export.classes.values())
    background = next((i for i, each in enumerate(names) if each.strip("_").lower() == "background"), None)
    covered = export.whole and not any(
        isinstance(layer, Values) and UNLABELED in layer.indices.values()
        for sample in export.samples.values()
        for layer in sample.layers
    )
    ignored = set(export.ignored)
    if unlabeled == "ignored" and export.whole and background is not None:
        ignored.add(background)
    kept = {each: colors[i] for i, each in enumerate(names) if i not in ignored}
    if unlabeled == "background" and background is None and not covered:
        kept = {"background": (0, 0, 0), **kept}
    fallback = "background" if background is None else names[background]
    space = _space(export, kept, classes, name)
    final = {i: IGNORED if i in ignored else space.classes.index(each) for i, each in enumerate(names)}
    final[UNLABELED] = IGNORED
    if unlabeled == "background" and fallback in kept:
        final[UNLABELED] = space.classes.index(fallback)
    return space, final


def _space(
    export: Export, kept: Mapping[str, Color | None], classes: Sequence[str] | str | None, name: str
) -> LabelSpace:
    try:
        if isinstance(classes, str):
            space = label_space(classes)
        elif classes is None:
            space = custom_space(list(kept), filled_palette(list(kept.values())), name)
        else:
            space = custom_space(classes, filled_palette([kept.get(each) for each in classes]), name)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"the classes of {export.root}: {error}") from error
    if missing := [each for each in kept if each not in space.classes]:
        hint = "; unlabeled='ignored' does without a background" if "background" in missing else ""
        raise DatasetError(f"the classes of {export.root} that classes= does not have: {listed(missing)}{hint}")
    if len(space) > IGNORED:
        raise DatasetError(f"{export.root} has {len(space)} classes; an 8-bit mask holds no more than {IGNORED}")
    return space
