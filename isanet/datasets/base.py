"""Datasets for evaluation and training, read from where their archives were unpacked; nothing is downloaded.

Each is a map-style `torch.utils.data.Dataset` of pairs: a PIL image (RGB) and a PIL mask (mode L) of class indices,
`isanet.labels.IGNORED` (255) where a pixel does not count. `transforms=`, `transform=` and `target_transform=` are
those of torchvision. For torchvision's v2, which would take the mask for another image, say what is what:

    def augment(image, mask):
        return v2_transforms(tv_tensors.Image(image), tv_tensors.Mask(mask))

torchvision's own readers of VOC and Cityscapes are not used. They keep the order in which the file system lists files,
follow list entries out of the root, take a blank line for a sample, notice an absent mask when it is asked for, and
leave Cityscapes' label ids as they are.

Everything that folders and lists can tell is checked when a dataset is made, everything else when a sample is read.
A sample that cannot be used is an error, never left out. An image is turned upright by its EXIF orientation; a mask
that has one is refused. Whether a mask without fits the image as stored or upright shows only where turning changes the
size, and is an error then; otherwise (orientations 2 to 4, and squares) it is taken to fit the upright one. Names are
compared in the Unicode form NFC. Hidden files (`._name.png` of macOS) are no samples. Links to folders are followed:
large datasets often lie on another disk.
"""

from __future__ import annotations

import inspect
import operator
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from hashlib import sha256
from importlib import import_module
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple, SupportsIndex, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import VisionDataset  # type: ignore[import-untyped]

from isanet.errors import DatasetError
from isanet.images.masks import Colors, Mask, checked_colors, read_mask
from isanet.images.reading import MAX_PIXELS, SUFFIXES, RGBImage, read_image
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, custom_space, label_space, official_name

PathLike = str | os.PathLike[str]
_UNKNOWN = -1


class Transforms(TypedDict, total=False):
    """What torchvision's datasets take: `transforms` for both, or one for each."""

    transforms: Callable[[Any, Any], Any] | None
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[Any], Any] | None


class Options(Transforms, total=False):
    """What all datasets here take.

    `max_pixels`: larger images and masks are refused before they are decoded (SBD's masks after it).
    """

    max_pixels: int


class _Files(NamedTuple):
    """What a layout finds: images and masks by their common keys, and the keys that are meant."""

    images: Mapping[str, Path]
    masks: Mapping[str, Path] | None
    """None: the truth is not published."""
    keys: Sequence[str] | None = None
    """None: all, and every mask has an image."""
    names: Callable[[str], str] = str
    """From a key to the name of the sample."""
    advice: str = ""
    """For messages: what to do about a missing mask."""


class _Sample(NamedTuple):
    name: str
    image: Path
    mask: Path | None


class SegmentationDataset(VisionDataset):  # type: ignore[misc]
    """What all datasets here have in common.

    `dataset[i]` is (PIL image RGB, PIL mask L), or what the transforms make of them. Indices are those of lists.

    Attributes:
        name: The dataset, as in `weights.json`; of a folder of one's own its name.
        split: "train", "val", ...; None for all of a folder.
        label_space: What the indices in the masks mean.
        classes: Names of its classes.
        palette: Colors (red, green, blue) of its classes.
        keys: Unique names of the samples, for output files. They contain "/" only where a folder has sub-folders.
        has_masks: False for a test split whose truth is not published.
        official_size: Number of samples that the official val split has: a figure from another number does not compare
            with published ones. None for other splits and datasets.
    """

    name: str
    official_size: int | None = None
    _layout: ClassVar[str]
    """For messages: the folders that are expected."""
    _colors: Colors | None = None

    def __init__(
        self,
        root: Path,
        split: str | None,
        space: LabelSpace,
        files: _Files,
        indices: Mapping[int, int],
        otherwise: int = _UNKNOWN,
        *,
        max_pixels: int = MAX_PIXELS,
        **transforms: Unpack[Transforms],
    ) -> None:
        """`indices`: the index for each value of the files; `otherwise`: for every other value."""
        super().__init__(root, **transforms)
        self.split = split
        self.label_space = space
        self.classes, self.palette = space.classes, space.palette
        self.has_masks = files.masks is not None
        self._samples = _paired(files, str(self))
        self.keys = [sample.name for sample in self._samples]
        values = sorted(indices)
        self._values = np.array(values, np.int64)
        self._indices = np.array([indices[value] for value in values], np.int16)
        self._otherwise = otherwise
        self._max_pixels = max_pixels
        self._table = self._look_up(np.arange(256))  # nearly all masks are uint8, and a table is much faster

    def __str__(self) -> str:
        """For messages: what is read, and where, on one line."""
        return f"{self.name}{f' {self.split}' if self.split else ''} in {self.root}"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Reads a sample.

        Returns:
            (image, mask), PIL images of one size, or what the transforms make of them.

        Raises:
            IndexError: There are not so many samples.
            DatasetError: The mask cannot be used, or there is none (see `read`).
            ImageError: The image cannot be read.
        """
        pair = self.pair(index)
        return pair if self.transforms is None else self.transforms(*pair)

    def pair(self, index: SupportsIndex) -> tuple[Image.Image, Image.Image]:
        """Reads a sample without transforms: as `dataset[i]` is, if there are none."""
        if not self.has_masks:
            raise DatasetError(f"the truth of {self} is not published, only its images; read(i) gives (image, None)")
        image, mask = self.read(index)
        assert mask is not None
        return Image.fromarray(image), Image.fromarray(mask)

    def extra_repr(self) -> str:
        """The lines that torchvision's `repr` leaves to each dataset."""
        return f"Split: {self.split}\nClasses: {self.label_space}"

    def image_path(self, index: SupportsIndex) -> Path:
        """The file of the image."""
        return self._samples[operator.index(index)].image

    def mask_path(self, index: SupportsIndex) -> Path | None:
        """The file of the mask; None without masks."""
        return self._samples[operator.index(index)].mask

    def read(self, index: SupportsIndex) -> tuple[RGBImage, NDArray[np.uint8] | None]:
        """Reads a sample as arrays, without transforms.

        Returns:
            The image (H, W, 3), see `isanet.images.reading.read_image`, and the mask (H, W) of class indices and `IGNORED`;
            None without masks.

        Raises:
            IndexError: There are not so many samples.
            DatasetError: The mask cannot be read (see `isanet.images.masks.read_mask`), has another size than the image, or
                holds a value that is neither a class nor ignored.
            ImageError: The image cannot be read.
        """
        _, image_path, mask_path = self._samples[operator.index(index)]
        image = read_image(image_path, max_pixels=self._max_pixels)
        if mask_path is None:
            return image, None
        values = self._read_values(mask_path)
        if values.shape != image.shape[:2]:
            (height, width), (mask_height, mask_width) = image.shape[:2], values.shape
            turned = (mask_width, mask_height) == (height, width)
            raise DatasetError(
                f"the image {image_path} is {width}x{height}, and its mask {mask_path} is {mask_width}x{mask_height}; "
                + (
                    "most likely the image has an EXIF orientation, which is applied, and the mask was drawn without "
                    "it: turn the mask, or remove the orientation from the image"
                    if turned
                    else "a mask has a value for every pixel: export it in the size of the image"
                )
            )
        mask = self._table[values] if values.dtype == np.uint8 else self._look_up(values)
        stray = mask == _UNKNOWN
        if stray.any():
            found = dict(zip(*(part.tolist() for part in np.unique(values[stray], return_counts=True)), strict=True))
            named = ", ".join(f"{value} ({count:,} pixels)" for value, count in islice(found.items(), 5))
            raise DatasetError(
                f"the mask {mask_path} holds {len(found)} values that are neither a class nor ignored: {named}"
                f"{', …' if len(found) > 5 else ''}; {self._advice()}"
            )
        return image, mask.astype(np.uint8)

    def fingerprint(self, indices: Iterable[int]) -> str:
        """A hash of how some samples are read, and of their files: path, size and time of change."""
        digest = sha256(
            repr((self.name, self.split, self._values, self._indices, self._otherwise, self._colors)).encode()
        )
        for index in indices:
            for path in self._samples[index][1:]:
                if path is not None:
                    status = path.stat()
                    digest.update(os.fsencode(path.absolute()))
                    digest.update(f" {status.st_size} {status.st_mtime_ns} ".encode())
        return digest.hexdigest()

    def _look_up(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """The index for each value, `_UNKNOWN` where there is none."""
        nearest = np.searchsorted(self._values, values).clip(max=len(self._values) - 1)
        return np.where(self._values[nearest] == values, self._indices[nearest], np.int16(self._otherwise))

    def _read_values(self, path: Path) -> Mask:
        return read_mask(path, colors=self._colors, max_pixels=self._max_pixels)

    def _advice(self) -> str:
        """What to do about values that should not be there."""
        raise NotImplementedError


class _Official(SegmentationDataset):
    """A published dataset: facts, and where its files lie."""

    splits: ClassVar[tuple[str, ...]]
    _space: ClassVar[LabelSpace]
    _val_size: ClassVar[int]
    _homes: ClassVar[tuple[str, ...]] = (".",)
    """Where below the root the dataset may lie."""
    _marks: ClassVar[tuple[tuple[str, ...], ...]]
    """Folders by which it is known, or with "!" by their absence; each entry alone suffices."""
    _ignored: ClassVar[tuple[int, ...]]
    _promise: ClassVar[str]

    def __init__(self, root: Path, split: str, files: _Files, **options: Unpack[Options]) -> None:
        indices = dict.fromkeys(self._ignored, IGNORED)
        indices |= {value: index for index, value in enumerate(self._space.official_ids)}
        self.official_size = self._val_size if split == "val" else None
        super().__init__(root, split, self._space, files, indices, **options)

    @classmethod
    def _home(cls, root: Path) -> Path | None:
        """The folder of the dataset in `root`, None if it is not there."""
        return next((root / home for home in cls._homes if _any_of(root / home, cls._marks)), None)

    @classmethod
    def _open(cls, root: PathLike, split: str) -> tuple[Path, Path]:
        """The root, and the folder of the dataset in it; `split` is checked."""
        root = _folder(root)
        if split not in cls.splits:
            raise DatasetError(f"{cls.name} has no split {split!r}; it has: {', '.join(cls.splits)}")
        home = cls._home(root)
        if home is None:
            raise DatasetError(f"{root} does not hold {cls.name}: expected {cls._layout}; {_there_is(root)}")
        return root, home

    def _advice(self) -> str:
        return f"{self._promise}: unpack the archive again, or open masks of your own by isanet.datasets.Folder"


class VOC2012(_Official):
    """PASCAL VOC 2012, semantic segmentation: 21 classes with the background.

    Args:
        root: The folder with `VOCdevkit`, or that, or `VOC2012` in it (the one with `JPEGImages`).
        split: "train", "val", "trainval", "test" (images alone), or "trainaug": the training images with those of SBD.
            For it, whoever has the converted masks needs `ImageSets/Segmentation/trainaug.txt` and
            `SegmentationClassAug` (`SegmentationClass` for images that are not there). Otherwise it is made from
            SBD as published: VOC's train and SBD's train and val without VOC's val, sorted; VOC's own masks for VOC's
            train. The usual archives give 10,582 samples.
        sbd: For "trainaug": SBD's `benchmark_RELEASE`, or `dataset` in it (`train.txt`, `val.txt`, `cls`). Its masks
            are read by SciPy. With `trainaug.txt`, that says what the samples are, and SBD has the masks that are in
            neither folder.
        options: See `Options`.

    Masks are palette images read as indices; 255, the border of objects, is ignored.

    Raises:
        DatasetError: Something is not as promised; the message names the file.

    Sources: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and Hariharan et al., Semantic Contours from Inverse
    Detectors, ICCV 2011; the rule of "trainaug" as in mmsegmentation's `tools/dataset_converters/voc_aug.py`.
    """

    name = "PASCAL VOC 2012"
    splits = ("train", "val", "trainval", "trainaug", "test")
    _space = LABEL_SPACES["voc21"]
    _val_size = 1449
    _homes = ("VOCdevkit/VOC2012", "VOC2012", ".")
    _marks = (("JPEGImages", "SegmentationClass"), ("JPEGImages", "ImageSets/Segmentation"))
    _layout = "JPEGImages, SegmentationClass and ImageSets, also below VOCdevkit/VOC2012 or VOC2012"
    _ignored = (IGNORED,)
    _promise = "PASCAL VOC's hold 0 to 20, and 255 where ignored"

    def __init__(
        self, root: PathLike, split: str = "val", *, sbd: PathLike | None = None, **options: Unpack[Options]
    ) -> None:
        root, home = self._open(root, split)
        lists = home / "ImageSets" / "Segmentation"
        images = _files(home / "JPEGImages", ".jpg")
        masks = {} if split == "test" else _files(home / "SegmentationClass", ".png")
        listed, converted, advice = lists / f"{split}.txt", home / "SegmentationClassAug", ""
        there = split != "trainaug" or listed.is_file()
        keys = _entries(listed, columns=True) if there else []
        if split == "trainaug":
            advice = f"put the masks into {converted}, or pass sbd=, the folder of SBD's benchmark_RELEASE"
            if there and converted.is_dir():
                masks |= _files(converted, ".png")
            if sbd is not None:
                _loadmat()  # if SciPy is not there, say so now and not at the first sample
                extra = _folder(sbd)
                extra = extra / "dataset" if (extra / "dataset").is_dir() else extra
                masks = _files(extra / "cls", ".mat") | masks
                if not there:
                    together = (lists / "train.txt", extra / "train.txt", extra / "val.txt")
                    every = {key for path in together for key in _entries(path, columns=True)}
                    keys = sorted(every - set(_entries(lists / "val.txt", columns=True)))
            elif not there:
                raise DatasetError(
                    f"{root} has no trainaug: pass sbd=, the folder of SBD's benchmark_RELEASE, or put the list "
                    f"{listed} and the masks {converted} there"
                )
        files = _Files(images, None if split == "test" else masks, keys, advice=advice)
        super().__init__(root, split, files, **options)

    def _read_values(self, path: Path) -> Mask:
        return _read_sbd(path, self._max_pixels) if path.suffix.lower() == ".mat" else super()._read_values(path)


class ADE20K(_Official):
    """ADE20K as in the Scene Parsing Challenge 2016: 150 classes.

    Args:
        root: `ADEChallengeData2016`, or the folder that it is in.
        split: "train" or "training", "val" or "validation", "test" or "testing" (images alone: `images/testing`, or
            `release_test/testing` of the other archive, in `root` or in the dataset's folder).
        options: See `Options`.

    The value 0 of the files, "other", is ignored; 1 to 150 are the classes 0 to 149.

    Raises:
        DatasetError: Something is not as promised; the message names the file.

    Source: http://sceneparsing.csail.mit.edu
    """

    name = "ADE20K"
    splits = ("train", "val", "test", "training", "validation", "testing")
    _space = LABEL_SPACES["ade20k150"]
    _val_size = 2000
    _homes = ("ADEChallengeData2016", ".")
    _marks = (
        ("images/validation", "annotations"),
        ("images/training", "annotations"),
        ("images/testing", "!masks"),  # with them it is a folder of one's own
        ("release_test/testing",),
    )
    _layout = "images/validation and annotations/validation, also below ADEChallengeData2016"
    _ignored = (0,)
    _promise = "ADE20K's hold 0 to 150 (0: ignored)"

    def __init__(self, root: PathLike, split: str = "val", **options: Unpack[Options]) -> None:
        root, home = self._open(root, split)
        long = {"train": "training", "val": "validation", "test": "testing"}
        short = {name: key for key, name in long.items()}.get(split, split)
        folder = home / "images" / long[short]
        if short == "test" and not folder.is_dir():
            candidates = [home / "release_test" / "testing", root / "release_test" / "testing"]
            folder = next((path for path in candidates if path.is_dir()), folder)
        images = _files(folder, ".jpg")
        masks = None if short == "test" else _files(home / "annotations" / long[short], ".png")
        super().__init__(root, short, _Files(images, masks), **options)


class Cityscapes(_Official):
    """Cityscapes, fine annotations: the 19 classes that are evaluated.

    Args:
        root: The folder with `leftImg8bit` and `gtFine`.
        split: "train", "val", or "test" (images alone: the masks of the archive are dummies).
        options: See `Options`.

    Masks are `*_gtFine_labelIds.png`; the ids of the 19 classes become 0 to 18, the others of 0 to 33 are ignored. Keys
    are the names of the image files, as the evaluation server wants them.

    Raises:
        DatasetError: Something is not as promised; the message names the file.

    Source: `cityscapesscripts/helpers/labels.py` of mcordts/cityscapesScripts.
    """

    name = "Cityscapes"
    splits = ("train", "val", "test")
    _space = LABEL_SPACES["cityscapes19"]
    _val_size = 500
    _marks = (("leftImg8bit",),)
    _layout = "leftImg8bit and gtFine, both in one folder"
    _ignored = OFFICIAL_SPACES["cityscapes-ids"].official_ids
    _promise = "Cityscapes' labelIds hold 0 to 33 (255 is for train ids, which these files do not hold)"

    def __init__(self, root: PathLike, split: str = "val", **options: Unpack[Options]) -> None:
        root, home = self._open(root, split)
        images = _files(home / "leftImg8bit" / split, "_leftImg8bit.png")
        masks = None
        if split != "test":
            if not (home / "gtFine").is_dir():
                raise DatasetError(
                    f"{home} does not hold the masks of {self.name}: expected {self._layout}; {_there_is(home)}"
                )
            folder = home / "gtFine" / split
            masks = _files(folder, "_gtFine_labelIds.png")
            made = {} if masks else _files(folder, "_gtFine_labelTrainIds.png")
            if made:
                raise DatasetError(
                    f"{folder} has *_gtFine_labelTrainIds.png alone, which a script made; the *_gtFine_labelIds.png of "
                    "gtFine_trainvaltest.zip are read: unpack it there"
                )
        super().__init__(root, split, _Files(images, masks, names=_image_name), **options)


class Folder(SegmentationDataset):
    """A folder of one's own: `images/…/name.jpg` and `masks/…/name.png`, of equal names but for the suffix.

    Args:
        root: The folder.
        split: A sub-folder (`images/train` and `masks/train`), or a list of keys (`train.txt` in the folder or in
            `splits`), one a line: the path in `images`, with or without suffix. None: everything. A list picks samples;
            without one, every image needs its mask, and every mask its image.
        classes: Names of the classes, or the name of a label space such as "cityscapes19". None: the lines of
            `classes.txt` in the folder. No more than 255.
        images: Name of the images' folder.
        masks: Name of the masks' folder.
        ids: For each class its value in the files, such as `range(1, 151)`; None: 0, 1, 2, ...; "official": the
            official ids of the label space, of which those that are no class are ignored.
        colors: For masks painted in colors: the colors (red, green, blue), no more than 255. The value of a pixel is
            then the position of its color in this list, for `ids` and `ignore` too; 255 for black and white where the
            list has them not. Another color is an error. Of classes that share a color in a published palette, the
            first gets all.
        ignore: A further value that may occur and is ignored, or several; "rest": every other value.
        options: See `Options`.

    Raises:
        DatasetError: Something is not as described; the message names the file or the argument.
    """

    _layout = "images and masks"

    def __init__(
        self,
        root: PathLike,
        split: str | None = None,
        *,
        classes: Sequence[str] | str | None = None,
        images: str = "images",
        masks: str = "masks",
        ids: Sequence[int] | str | None = None,
        colors: Colors | None = None,
        ignore: Iterable[int] | int | str = (IGNORED,),
        **options: Unpack[Options],
    ) -> None:
        root = _folder(root)
        self.name = root.resolve().name
        self._masks = root / masks
        space = _own_space(root, classes, self.name)
        self._colors = None if colors is None else checked_colors(colors)
        indices, otherwise = _own_values(space, ids, self._colors, ignore)
        part, listed = _own_split(root, images, split)
        image_files = _files(root / images / part, *SUFFIXES)
        keys = None if listed is None else [_without_suffix(entry, image_files) for entry in _entries(listed)]
        files = _Files(image_files, _files(root / masks / part, *SUFFIXES), keys)
        super().__init__(root, split, space, files, indices, otherwise, **options)

    def held_out(self, share: float = 0.2, seed: int = 0) -> tuple[Folder, Folder]:
        """Parts it at random into one to train on and one to validate on.

        Args:
            share: Of the images that are held out for validation, above 0 and below 1; one at least.
            seed: Another one parts it otherwise.

        Raises:
            DatasetError: There are fewer than two images.
        """
        if len(self) < 2 or not 0 < share < 1:
            raise DatasetError(f"{self} has {len(self)} images, of which a share of {share} cannot be held out")
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        number = min(max(1, round(share * len(self))), len(self) - 1)
        parts = []
        for name, places in (("the rest", order[number:]), (f"{number} held out", order[:number])):
            part = copy(self)
            part.split = name if self.split is None else f"{self.split}, {name}"
            part._samples = [self._samples[place] for place in sorted(places)]
            part.keys = [sample.name for sample in part._samples]
            parts.append(part)
        return parts[0], parts[1]

    def _advice(self) -> str:
        return (
            "if they are to be ignored, pass them as ignore=(…), or ignore='rest'; if they are classes, say by ids= "
            f"which value is which class (`isanet check-masks {self._masks}` says what the masks hold)"
        )


def open_dataset(
    root: PathLike, split: str | None = None, *, layout: str = "auto", **options: Any
) -> SegmentationDataset:
    """Opens the dataset that a folder holds.

    Args:
        root: The folder, as for the classes of this module.
        split: None: "val", but all of a folder of one's own.
        layout: "voc", "ade20k", "cityscapes", "folder", or "auto": by the folders in `root`. What has a `classes.txt`
            is never taken for one of the first three.
        options: Further arguments of the class.

    Raises:
        DatasetError: Not exactly one layout is recognized, or the dataset does not take an option; and all those of
            the class.
    """
    if layout == "auto":
        layout = _layout(_folder(root), options)
    if layout not in LAYOUTS:
        raise DatasetError(f"unknown layout {layout!r}; the known ones are: auto, {', '.join(LAYOUTS)}")
    kind = LAYOUTS[layout]
    known = {*inspect.signature(kind).parameters, *Options.__annotations__} - {"root", "split"}
    for option in options:
        if option not in known:
            raise DatasetError(f"{root} is read as {kind.__name__} (layout={layout!r}), which has no option {option!r}")
    dataset: SegmentationDataset = kind(root, **({} if split is None else {"split": split}), **options)
    return dataset


def _layout(root: Path, options: Mapping[str, Any]) -> str:
    """Which of `LAYOUTS` a folder has."""
    own = (root / "classes.txt").is_file()
    official = [] if own else [name for name, kind in LAYOUTS.items() if kind is not Folder]
    found = [name for name in official if LAYOUTS[name]._home(root) is not None]
    images, masks = str(options.get("images", "images")), str(options.get("masks", "masks"))
    if _any_of(root, [(images, masks)]):
        found.append("folder")
    elif own:
        raise DatasetError(
            f"{root} has a classes.txt, as a folder of one's own, but not both {images} and {masks}: pass the "
            f"names of its folders as images= and masks=, or what it is as layout=; {_there_is(root)}"
        )
    if len(found) > 1:
        raise DatasetError(f"{root} holds several datasets ({', '.join(found)}); say which one by layout")
    if not found:
        expected = "; ".join(f"{kind.__name__}: {kind._layout}" for kind in LAYOUTS.values())
        raise DatasetError(f"{root} is in no known layout. Expected one of these: {expected}. {_there_is(root)}")
    return found[0]


def open_train_and_val(
    root: PathLike,
    val_root: PathLike | None = None,
    *,
    split: str | None = None,
    val_split: str | None = None,
    hold_out: float = 0.2,
    seed: int = 0,
    **options: Any,
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens what to train on and what to validate on.

    Args:
        root: See `open_dataset`.
        val_root: Where the validation data is, if not in `root`.
        split: To train on. None: "train", but all of a folder of one's own that has no such split.
        val_split: To validate on. None: "val"; of a folder of one's own that has no such split, and where `val_root` is
            not given, a share of the images is held out instead (see `Folder.held_out`).
        hold_out: That share.
        seed: By which it is chosen.
        options: See `open_dataset`; for both.

    Raises:
        DatasetError: See `open_dataset`.
    """
    layout = options.get("layout", "auto")
    own = (_layout(_folder(root), options) if layout == "auto" else layout) == "folder"
    if split is None and (not own or _has_split(root, "train", options)):
        split = "train"
    train = open_dataset(root, split, **options)
    if val_root is not None:
        if val_split is None and not (own and not _has_split(val_root, "val", options)):
            val_split = "val"
        return train, open_dataset(val_root, val_split, **options)
    if isinstance(train, Folder) and val_split is None and not _has_split(root, "val", options):
        return train.held_out(hold_out, seed)
    return train, open_dataset(root, val_split or "val", **options)


def _has_split(root: PathLike, split: str, options: Mapping[str, Any]) -> bool:
    root, images = Path(root), str(options.get("images", "images"))
    places = (root / f"{split}.txt", root / "splits" / f"{split}.txt", root / images / split)
    return any(place.exists() for place in places)


LAYOUTS: dict[str, Any] = {"voc": VOC2012, "ade20k": ADE20K, "cityscapes": Cityscapes, "folder": Folder}
"""The classes by the names that `open_dataset` takes."""


def _any_of(folder: Path, marks: Iterable[Iterable[str]]) -> bool:
    """Whether all folders of one of the entries are there, and those with "!" are not."""
    return any(all((folder / name.lstrip("!")).is_dir() != name.startswith("!") for name in names) for names in marks)


def _there_is(folder: Path) -> str:
    """For messages: what a folder holds."""
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder} holds: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else "It is empty"


def _folder(path: PathLike) -> Path:
    """The path, if it is a folder."""
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{path} cannot be found: {error}") from error
    if not folder.is_dir():
        reason = "is a file, not a folder: if it is an archive, unpack it" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {reason} (working folder: {Path.cwd()})")
    return folder


def _files(folder: Path, *endings: str) -> dict[str, Path]:
    """Files by their paths in the folder without the ending, sorted.

    Args:
        folder: Is searched with its sub-folders, but not the hidden ones.
        endings: Of the names, lower case; capitals in the names make no difference.

    Raises:
        DatasetError: The folder is missing or cannot be read, contains itself by a link, or two files have one key.
    """
    if not folder.is_dir():
        above = next(parent for parent in folder.parents if parent.is_dir())
        raise DatasetError(f"there is no folder {folder}; {_there_is(above)}")
    found: dict[str, Path] = {}
    lower = tuple(ending.lower() for ending in endings)
    try:
        for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = Path(place)
            below = here.relative_to(folder)
            if here.is_symlink() and any((folder / one).resolve() == here.resolve() for one in below.parents):
                raise DatasetError(f"the link {here} leads back to a folder that it is in; remove it")
            prefix = "" if here == folder else f"{below.as_posix()}/"
            for name in names:
                ending = next((ending for ending in lower if name.lower().endswith(ending)), None)
                if ending is None or name.startswith("."):
                    continue
                path, key = here / name, unicodedata.normalize("NFC", prefix + name[: -len(ending)])
                if key in found:
                    raise DatasetError(
                        f"{found[key]} and {path} differ in nothing but the suffix, or how accents are encoded; remove "
                        "one"
                    )
                found[key] = path
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error}") from error
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    raise error


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the lines of a list: no byte order mark, no space around, blank ones passed over.

    Raises:
        DatasetError: The list is missing, not UTF-8 text, or empty.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"there is no list {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the list {path} cannot be read ({error}); save it as UTF-8 text") from error
    texts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise DatasetError(f"the list {path} is empty")
    return texts


def _entries(path: Path, *, columns: bool = False) -> list[str]:
    """The paths in a list.

    Args:
        path: See `_lines`.
        columns: Whether a second column may follow, -1, 0 or 1, as in VOC's lists of one class. It does not count.

    Raises:
        DatasetError: Besides those of `_lines`: a line has other columns, leads out of the dataset, or is there twice.
    """
    seen: dict[str, int] = {}
    for number, text in _lines(path):
        entry = text
        if columns:
            entry, *rest = text.split()
            if rest and rest not in (["-1"], ["0"], ["1"]):
                raise DatasetError(f"line {number} of {path} is {text!r}; expected one name, without a path")
        entry = unicodedata.normalize("NFC", entry.replace("\\", "/"))  # lists made on Windows
        if PureWindowsPath(entry).anchor or ".." in entry.split("/"):  # a leading "/" is an anchor there too
            raise DatasetError(f"line {number} of {path} leads out of the dataset: {entry!r}")
        if entry in seen:
            raise DatasetError(f"line {number} of {path} repeats {entry!r} of line {seen[entry]}; remove one")
        seen[entry] = number
    return list(seen)


def _paired(files: _Files, what: str) -> list[_Sample]:
    """Images with their masks, in the order of the keys.

    Raises:
        DatasetError: There is none, one has no partner, or two have one name.
    """
    images, masks = files.images, files.masks
    keys = images if files.keys is None else files.keys
    if not keys and not masks:
        raise DatasetError(f"{what} has no sample")
    _check_partners(what, keys, images, "image")
    if masks is not None:
        _check_partners(what, keys, masks, "mask", files.advice)
        if files.keys is None:
            _check_partners(what, masks, images, "image")
    samples: dict[str, _Sample] = {}
    for key in keys:
        sample = _Sample(files.names(key), images[key], None if masks is None else masks[key])
        if sample.name in samples:
            other = samples[sample.name].image
            raise DatasetError(f"{what} has {sample.name!r} twice: {other} and {sample.image}; remove one")
        samples[sample.name] = sample
    return list(samples.values())


def _check_partners(what: str, keys: Iterable[str], partners: Mapping[str, Path], kind: str, advice: str = "") -> None:
    """Makes sure that each key has its file of a kind."""
    missing = [key for key in keys if key not in partners]
    if missing:
        named = ", ".join(map(repr, missing[:3])) + (", …" if len(missing) > 3 else "")
        if PurePosixPath(missing[0]).suffix.lower() in SUFFIXES:
            advice = "names are without suffix here"
        raise DatasetError(
            f"{len(missing):,} of the samples of {what} have no {kind}: {named}{'; ' if advice else ''}{advice}"
        )


def _image_name(key: str) -> str:
    """Cityscapes calls a sample by its image's file name, without the city's folder."""
    return f"{PurePosixPath(key).name}_leftImg8bit"


def _loadmat() -> Callable[..., Any]:
    """SciPy's reader, if SciPy is there."""
    try:
        load: Callable[..., Any] = import_module("scipy.io").loadmat
    except ImportError as error:
        raise DatasetError(f"the masks of SBD are read by SciPy ({error}): pip install 'isanet[sbd]'") from error
    return load


def _read_sbd(path: Path, max_pixels: int) -> Mask:
    """The values of a mask of SBD, (H, W) uint8, 0 to 20."""
    load = _loadmat()
    try:
        mask: Mask = load(str(path), variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0]
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"GTcls.Segmentation is {mask.dtype} of shape {mask.shape}, not 8-bit (H, W)")
    except Exception as error:  # SciPy raises nearly anything on damaged data
        raise DatasetError(f"the mask {path} is no mask of SBD ({error}); unpack the archive again") from error
    if mask.size > max_pixels:
        raise DatasetError(
            f"the mask {path} has {mask.size:,} pixels, more than the limit of {max_pixels:,}; raise max_pixels if you "
            "trust it"
        )
    return mask


def _own_space(root: Path, classes: Sequence[str] | str | None, name: str) -> LabelSpace:
    """The label space of a folder of one's own, see `Folder`."""
    try:
        if isinstance(classes, str):
            return label_space(classes)
        if classes is None:
            if not (root / "classes.txt").is_file():
                raise DatasetError(
                    f"the classes of {root} are not known: pass classes=, a list of names or the name of a label "
                    f"space, or write the names into {root / 'classes.txt'}, one a line"
                )
            classes = [text for _, text in _lines(root / "classes.txt")]
        space = custom_space(classes, name=name)
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"the classes of {root}: {error}") from error
    except TypeError as error:
        raise DatasetError(f"classes must be names, or the name of a label space, got {classes!r}") from error
    if len(space) > IGNORED:
        raise DatasetError(f"{root} has {len(space)} classes; a mask of 8 bits holds no more than {IGNORED}")
    return space


def _own_values(
    space: LabelSpace, ids: Sequence[int] | str | None, colors: Colors | None, ignore: Iterable[int] | int | str
) -> tuple[dict[int, int], int]:
    """The index for each value of the files, and the index for every other value, see `Folder`."""
    indices: dict[int, int] = {}
    if isinstance(ids, str) and ids == "official":
        ids = space.official_ids
        official = OFFICIAL_SPACES.get(official_name(space.name) or "")
        if official is not None:  # what has an official id and is no class counts for nothing
            indices = dict.fromkeys(official.official_ids, IGNORED)
    if isinstance(ids, str) or (isinstance(ignore, str) and ignore != "rest"):
        raise DatasetError(f"ids is a list or 'official', and ignore a list or 'rest'; got {ids!r} and {ignore!r}")
    values = list(range(len(space))) if ids is None else _whole("ids", ids)
    if len(values) != len(space) or len(set(values)) != len(space):
        raise DatasetError(f"ids must be {len(space)} different values, one for each class, got {values}")
    if colors is not None:
        published = [known.palette for known in (LABEL_SPACES | OFFICIAL_SPACES).values()]
        different = len(colors) if colors in published else len(set(colors))  # some of those give a color twice
        if not max(values) < len(colors) == different:
            raise DatasetError(
                f"colors must be different ones, and have one for each class; got {len(colors)}, {different} of them "
                f"different, for {len(space)} classes"
            )
    indices |= {value: index for index, value in enumerate(values)}
    if isinstance(ignore, str):
        return indices, IGNORED
    for value in _whole("ignore", [ignore] if isinstance(ignore, int | np.integer) else ignore):
        if value in values:
            raise DatasetError(
                f"{value} is the value of {space.classes[indices[value]]!r} and in ignore; pass an ignore without it, "
                "such as ignore=()"
            )
        indices.setdefault(value, IGNORED)
    return indices, _UNKNOWN


def _whole(name: str, values: Iterable[int]) -> list[int]:
    """Values as plain numbers."""
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise DatasetError(f"{name} must be whole numbers, got {values!r}") from error


def _own_split(root: Path, images: str, split: str | None) -> tuple[str, Path | None]:
    """The sub-folder to search and the list to go by, see `Folder`."""
    if split is None:
        return ".", None
    lists = [path for path in (root / f"{split}.txt", root / "splits" / f"{split}.txt") if path.is_file()]
    folders = [path for path in [root / images / split] if path.is_dir()]
    if len(lists) + len(folders) > 1:
        raise DatasetError(f"the split {split!r} is there twice: {' and '.join(map(str, folders + lists))}; rename one")
    if not lists and not folders:
        others = {path.stem for path in [*root.glob("[!.]*.txt"), *root.glob("splits/[!.]*.txt")]} - {"classes"}
        others |= {path.name for path in root.glob(f"{images}/[!.]*") if path.is_dir()}
        raise DatasetError(
            f"{root} has no split {split!r}, neither a folder {images}/{split} nor a list {split}.txt; "
            + (f"it has: {', '.join(sorted(others))}" if others else "it has none: leave out split for all of it")
        )
    return (split, None) if folders else (".", lists[0])


def _without_suffix(entry: str, images: Mapping[str, Path]) -> str:
    """The key that a line of a list means."""
    path = PurePosixPath(entry)
    plain = path.as_posix()  # no "./" in front
    return plain if plain in images or path.suffix.lower() not in SUFFIXES else path.with_suffix("").as_posix()
