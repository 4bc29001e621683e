"""The published datasets, in the layouts of their official archives."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Unpack

import numpy as np

from isanet.datasets.base import Options, SegmentationDataset
from isanet.datasets.listing import (
    FoundFiles,
    PathLike,
    contents,
    existing_folder,
    files_by_key,
    has_folders,
    read_keys,
)
from isanet.errors import DatasetError
from isanet.images.masks import Mask
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace


class OfficialDataset(SegmentationDataset):
    """A published dataset: facts, and where its files lie.

    Attributes:
        splits: Names of the splits.
    """

    splits: ClassVar[tuple[str, ...]]
    _space: ClassVar[LabelSpace]
    _val_size: ClassVar[int]
    _homes: ClassVar[tuple[str, ...]] = (".",)
    """Where below the root the dataset may lie."""
    _marks: ClassVar[tuple[tuple[str, ...], ...]]
    """Folders by which it is recognized, or with "!" by their absence; each tuple alone suffices."""
    _ignored: ClassVar[tuple[int, ...]]
    _valid_values: ClassVar[str]
    """For messages."""

    def __init__(self, root: Path, split: str, files: FoundFiles, **options: Unpack[Options]) -> None:
        index_of = dict.fromkeys(self._ignored, IGNORED)
        index_of |= {value: index for index, value in enumerate(self._space.official_ids)}
        self.official_size = self._val_size if split == "val" else None
        super().__init__(root, split, self._space, files, index_of, **options)

    @classmethod
    def home(cls, root: Path) -> Path | None:
        """The folder of the dataset, `root` or one in it; None if it is not there."""
        return next((root / home for home in cls._homes if has_folders(root / home, cls._marks)), None)

    @classmethod
    def _open(cls, root: PathLike, split: str) -> tuple[Path, Path]:
        """The root and the folder of the dataset in it, after checking both and `split`."""
        root = existing_folder(root)
        if split not in cls.splits:
            raise DatasetError(f"{cls.name} has no split {split!r}; it has: {', '.join(cls.splits)}")
        home = cls.home(root)
        if home is None:
            raise DatasetError(f"{root} does not hold {cls.name}: expected {cls.expected_layout}; {contents(root)}")
        return root, home

    def _advice(self) -> str:
        return f"{self._valid_values}: unpack the archive again, or open your own masks by isanet.datasets.Folder"


class VOC2012(OfficialDataset):
    """PASCAL VOC 2012, semantic segmentation: 21 classes with the background.

    >>> isanet.datasets.VOC2012("VOCdevkit", "val")
    VOC2012(VOCdevkit, val, 4 images, 21 classes: background, aeroplane, bicycle, …)

    Args:
        root: The folder with `VOCdevkit`, or that, or `VOC2012` in it (the one with `JPEGImages`).
        split: "train", "val", "trainval", "test" (images only), or "trainaug": the training images with those of SBD.
            With the list `ImageSets/Segmentation/trainaug.txt`, the masks are those of `SegmentationClassAug`, else of
            `SegmentationClass`. Without it, the split is made from SBD as published: VOC's train and SBD's train and
            val without VOC's val, sorted, with VOC's own masks for VOC's train. The usual archives give 10,582 samples.
        sbd: For "trainaug": SBD's `benchmark_RELEASE`, or `dataset` in it (`train.txt`, `val.txt`, `cls`). Its masks
            are read by SciPy. With `trainaug.txt`, only for samples whose mask is in neither folder.
        options: See `Options`.

    Masks are palette images read as indices; 255, the border of objects, is ignored.

    Raises:
        DatasetError: Something is not as described; the message names the file.

    Sources: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and Hariharan et al., Semantic Contours from Inverse
    Detectors, ICCV 2011; the rule of "trainaug" as in mmsegmentation's `tools/dataset_converters/voc_aug.py`.
    """

    name = "PASCAL VOC 2012"
    splits = ("train", "val", "trainval", "trainaug", "test")
    _space = LABEL_SPACES["voc21"]
    _val_size = 1449
    _homes = ("VOCdevkit/VOC2012", "VOC2012", ".")
    _marks = (("JPEGImages", "SegmentationClass"), ("JPEGImages", "ImageSets/Segmentation"))
    expected_layout = "JPEGImages, SegmentationClass and ImageSets, also below VOCdevkit/VOC2012 or VOC2012"
    _ignored = (IGNORED,)
    _valid_values = "PASCAL VOC's hold 0 to 20, and 255 where ignored"

    def __init__(
        self, root: PathLike, split: str = "val", *, sbd: PathLike | None = None, **options: Unpack[Options]
    ) -> None:
        root, home = self._open(root, split)
        lists = home / "ImageSets" / "Segmentation"
        images = files_by_key(home / "JPEGImages", ".jpg")
        masks = {} if split == "test" else files_by_key(home / "SegmentationClass", ".png")
        listed, converted, advice = lists / f"{split}.txt", home / "SegmentationClassAug", ""
        has_list = split != "trainaug" or listed.is_file()
        keys = read_keys(listed, columns=True) if has_list else []
        if split == "trainaug":
            advice = f"put the masks into {converted}, or pass sbd=, the folder of SBD's benchmark_RELEASE"
            if has_list and converted.is_dir():
                masks |= files_by_key(converted, ".png")
            if sbd is not None:
                _loadmat()  # if SciPy is missing, say so now and not at the first sample
                extra = existing_folder(sbd)
                extra = extra / "dataset" if (extra / "dataset").is_dir() else extra
                masks = files_by_key(extra / "cls", ".mat") | masks
                if not has_list:
                    together = (lists / "train.txt", extra / "train.txt", extra / "val.txt")
                    all_keys = {key for path in together for key in read_keys(path, columns=True)}
                    keys = sorted(all_keys - set(read_keys(lists / "val.txt", columns=True)))
            elif not has_list:
                raise DatasetError(
                    f"{root} has no trainaug: pass sbd=, the folder of SBD's benchmark_RELEASE, or put the list "
                    f"{listed} and the masks {converted} there"
                )
        files = FoundFiles(images, None if split == "test" else masks, keys, advice=advice)
        super().__init__(root, split, files, **options)

    def _read_values(self, path: Path, name: str) -> Mask:
        return _read_sbd(path, self._max_pixels) if path.suffix.lower() == ".mat" else super()._read_values(path, name)


class ADE20K(OfficialDataset):
    """ADE20K as in the Scene Parsing Challenge 2016: 150 classes.

    >>> isanet.datasets.ADE20K("ADEChallengeData2016", "val")
    ADE20K(ADEChallengeData2016, val, 4 images, 150 classes: wall, building, sky, …)

    Args:
        root: `ADEChallengeData2016`, or the folder that it is in.
        split: "train" or "training", "val" or "validation", "test" or "testing" (images only: `images/testing`, or
            `release_test/testing` of the other archive, in `root` or in the dataset's folder).
        options: See `Options`.

    The value 0 of the files, "other", is ignored; 1 to 150 are the classes 0 to 149.

    Raises:
        DatasetError: Something is not as described; the message names the file.

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
        ("images/testing", "!masks"),  # with masks it is a `Folder`
        ("release_test/testing",),
    )
    expected_layout = "images/validation and annotations/validation, also below ADEChallengeData2016"
    _ignored = (0,)
    _valid_values = "ADE20K's hold 0 to 150 (0: ignored)"

    def __init__(self, root: PathLike, split: str = "val", **options: Unpack[Options]) -> None:
        root, home = self._open(root, split)
        long = {"train": "training", "val": "validation", "test": "testing"}
        short = {name: key for key, name in long.items()}.get(split, split)
        folder = home / "images" / long[short]
        if short == "test" and not folder.is_dir():
            candidates = [home / "release_test" / "testing", root / "release_test" / "testing"]
            folder = next((path for path in candidates if path.is_dir()), folder)
        images = files_by_key(folder, ".jpg")
        masks = None if short == "test" else files_by_key(home / "annotations" / long[short], ".png")
        super().__init__(root, short, FoundFiles(images, masks), **options)


class Cityscapes(OfficialDataset):
    """Cityscapes, fine annotations: the 19 classes that are evaluated.

    >>> image, mask = isanet.datasets.Cityscapes("cityscapes", "val")[0]
    >>> image.mode, mask.mode, image.size == mask.size
    ('RGB', 'L', True)

    Args:
        root: The folder with `leftImg8bit` and `gtFine`.
        split: "train", "val", or "test" (images only: the masks of the archive are dummies).
        options: See `Options`.

    Masks are `*_gtFine_labelIds.png`; the ids of the 19 classes become 0 to 18, the others of 0 to 33 are ignored. Keys
    are the names of the image files, as the evaluation server wants them.

    Raises:
        DatasetError: Something is not as described; the message names the file.

    Source: `cityscapesscripts/helpers/labels.py` of mcordts/cityscapesScripts.
    """

    name = "Cityscapes"
    splits = ("train", "val", "test")
    _space = LABEL_SPACES["cityscapes19"]
    _val_size = 500
    _marks = (("leftImg8bit",),)
    expected_layout = "leftImg8bit and gtFine, both in one folder"
    _ignored = OFFICIAL_SPACES["cityscapes-ids"].official_ids
    _valid_values = "Cityscapes' labelIds hold 0 to 33 (255 is for train ids, which these files do not hold)"

    def __init__(self, root: PathLike, split: str = "val", **options: Unpack[Options]) -> None:
        root, home = self._open(root, split)
        images = files_by_key(home / "leftImg8bit" / split, "_leftImg8bit.png")
        masks = None
        if split != "test":
            if not (home / "gtFine").is_dir():
                raise DatasetError(
                    f"{home} does not hold the masks of {self.name}: expected {self.expected_layout}; {contents(home)}"
                )
            folder = home / "gtFine" / split
            masks = files_by_key(folder, "_gtFine_labelIds.png")
            made = {} if masks else files_by_key(folder, "_gtFine_labelTrainIds.png")
            if made:
                raise DatasetError(
                    f"{folder} has *_gtFine_labelTrainIds.png alone, which a script made; the *_gtFine_labelIds.png of "
                    "gtFine_trainvaltest.zip are needed: unpack it there"
                )
        super().__init__(root, split, FoundFiles(images, masks, name=_image_name), **options)


class PascalContext(OfficialDataset):
    """Pascal Context on the images of PASCAL VOC 2010: the 59 most frequent classes, without a background.

    >>> isanet.datasets.PascalContext("VOC2010", "val")
    PascalContext(VOC2010, val, 4 images, 59 classes: aeroplane, bag, bed, …)

    Args:
        root: The folder with `VOCdevkit`, or that, or `VOC2010` in it (the one with `JPEGImages`).
        split: "train" or "val".
        options: See `Options`.

    Masks and lists are those that mmsegmentation's converter makes of `trainval_merged.json`: it lists 4,996 and 5,104
    images, where the paper has 4,998 and 5,105. The value 0, the other classes, is ignored; 1 to 59 become 0 to 58.

    Raises:
        DatasetError: Something is not as described; the message names the file.

    Source: https://cs.stanford.edu/~roozbeh/pascal-context/ and mmsegmentation's
    `tools/dataset_converters/pascal_context.py`.
    """

    name = "Pascal Context"
    splits = ("train", "val")
    _space = LABEL_SPACES["context59"]
    _val_size = 5104
    _homes = ("VOCdevkit/VOC2010", "VOC2010", ".")
    _marks = (("JPEGImages", "SegmentationClassContext"),)
    expected_layout = "JPEGImages, SegmentationClassContext and ImageSets, also below VOCdevkit/VOC2010 or VOC2010"
    _ignored = (0,)
    _valid_values = "Pascal Context's hold 0 to 59 (0: ignored)"

    def __init__(self, root: PathLike, split: str = "val", **options: Unpack[Options]) -> None:
        root, home = self._open(root, split)
        images = files_by_key(home / "JPEGImages", ".jpg")
        masks = files_by_key(home / "SegmentationClassContext", ".png")
        keys = read_keys(home / "ImageSets" / "SegmentationContext" / f"{split}.txt")
        super().__init__(root, split, FoundFiles(images, masks, keys), **options)


def _image_name(key: str) -> str:
    """The name of a sample of Cityscapes: its image's file name without the city's folder."""
    return f"{PurePosixPath(key).name}_leftImg8bit"


def _loadmat() -> Callable[..., Any]:
    """SciPy's reader of MATLAB files."""
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
