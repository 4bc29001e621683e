"""What all datasets have in common: a map-style `torch.utils.data.Dataset` of pairs of an image and a mask.

An image is a PIL image (RGB), a mask a PIL image (mode L) of class indices, `isanet.labels.IGNORED` (255) where a pixel
does not count. `transforms=`, `transform=` and `target_transform=` are those of torchvision. Its v2 transforms would
take the mask for another image; tell them what is what:

    def augment(image, mask):
        return v2_transforms(tv_tensors.Image(image), tv_tensors.Mask(mask))

torchvision's own readers of VOC and Cityscapes are not used. They keep the order in which the file system lists files,
follow list entries out of the root, take a blank line for a sample, notice a missing mask only when it is read, and
leave Cityscapes' label ids as they are.

Whatever folders and lists can tell is checked when a dataset is made, everything else when a sample is read. A sample
that cannot be used is an error, never dropped. An image is turned upright by its EXIF orientation; a mask that has one
is refused. Whether a mask without one fits the image as stored or upright shows only where turning changes the size,
and is an error then; otherwise (orientations 2 to 4, and squares) it is taken to fit the upright image.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self, SupportsIndex, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import VisionDataset  # type: ignore[import-untyped]

from isanet._text import clean, listed, plural
from isanet.datasets.listing import FoundFiles, pair_files
from isanet.errors import DatasetError
from isanet.images.masks import Colors, Mask, read_mask
from isanet.images.reading import MAX_PIXELS, RGBImage, ValueRange, check_range, read_image
from isanet.labels import LabelSpace, named_classes

UNKNOWN = -1
"""The index of a value that is neither a class nor ignored."""


class Transforms(TypedDict, total=False):
    """What torchvision's datasets take: `transforms` for image and mask together, or one for each.

    >>> transforms = isanet.datasets.Transforms(transform=np.asarray, target_transform=np.asarray)
    >>> image, mask = isanet.datasets.Folder("streets", **transforms)[0]
    >>> image.shape, mask.shape
    ((64, 128, 3), (64, 128))
    """

    transforms: Callable[[Any, Any], Any] | None
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[Any], Any] | None


class Options(Transforms, total=False):
    """Arguments of all datasets.

    `max_pixels`: larger images and masks are refused before they are decoded (SBD's masks after decoding).
    `value_range`: for images of more than 8 bits, see `isanet.images.reading.read_image`.

    >>> options = isanet.datasets.Options(max_pixels=1_000_000)
    >>> dataset = isanet.datasets.Folder("streets", **options)
    """

    max_pixels: int
    value_range: ValueRange | None


class SegmentationDataset(VisionDataset):  # type: ignore[misc]
    """Base of all datasets.

    `dataset[i]` is a pair of PIL images, image (RGB) and mask (L), or what the transforms make of them. Negative
    indices count from the end.

    >>> isinstance(dataset, isanet.datasets.SegmentationDataset)
    True
    >>> dataset.name, dataset.split, len(dataset), dataset.classes[0]
    ('ToyStreets', 'train', 4, 'road')

    Attributes:
        name: Of the dataset, as in `weights.json`; of your own folder its name.
        split: "train", "val", ...; None for all of a folder.
        label_space: What the indices in the masks mean.
        classes: Names of its classes.
        palette: Colors (red, green, blue) of its classes.
        keys: Unique names of the samples, for output files. They contain "/" only where a folder has sub-folders.
        has_masks: False for a test split whose ground truth is not published.
        official_size: Number of samples of the official val split; a metric of another number of samples does not
            compare with published ones. None for other splits and datasets.
    """

    name: str
    official_size: int | None = None
    expected_layout: ClassVar[str]
    """For messages: the folders that are expected in the root."""
    _colors: Colors | None = None
    _rgb_palette: Colors | None = None
    _samples: Sequence[Any]

    def __init__(
        self,
        root: Path,
        split: str | None,
        space: LabelSpace,
        files: FoundFiles,
        index_of: Mapping[int, int],
        other_index: int = UNKNOWN,
        *,
        max_pixels: int = MAX_PIXELS,
        value_range: ValueRange | None = None,
        **transforms: Unpack[Transforms],
    ) -> None:
        """Pairs the files.

        Args:
            root: The folder of the dataset.
            split: See the class.
            space: See `label_space` of the class.
            files: Images and masks.
            index_of: The class index, or `IGNORED`, of each value in the mask files.
            other_index: The same of every other value; `UNKNOWN`: other values are an error.
            max_pixels: See `Options`.
            value_range: See `Options`.
            transforms: See `Transforms`.

        Raises:
            DatasetError: There is no sample, or an image or a mask has no partner.
        """
        super().__init__(root, **transforms)
        self.split = split
        self.label_space = space
        self.classes, self.palette = space.classes, space.palette
        self.has_masks = files.masks is not None
        self._samples = pair_files(files, str(self))
        self.keys = [sample.name for sample in self._samples]
        check_range(value_range)
        self._max_pixels, self._value_range = max_pixels, value_range
        self._set_meanings(index_of, other_index)

    def _set_meanings(self, index_of: Mapping[int, int], other_index: int = UNKNOWN) -> None:
        values = sorted(index_of)
        self._values = np.array(values, np.int64)
        self._indices = np.array([index_of[value] for value in values], np.int16)
        self._other_index = other_index
        self._index_of_byte = self._look_up(np.arange(256))  # nearly all masks are uint8, and indexing is much faster

    def __str__(self) -> str:
        """For messages: name, split and root on one line."""
        return f"{self.name}{f' {self.split}' if self.split else ''} in {self.root}"

    def __repr__(self) -> str:
        facts = [clean(str(part)) for part in (self.root, self.split) if part not in (Path(), None)]
        facts += [plural(len(self), "image"), named_classes(self.classes)]
        return f"{type(self).__name__}({', '.join(facts)})"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Reads a sample.

        Returns:
            (image, mask), PIL images of one size, or what the transforms make of them.

        Raises:
            IndexError: There are fewer samples.
            DatasetError: There are no masks, or the mask cannot be used (see `read`).
            ImageError: The image cannot be read.
        """
        pair = self.pair(index)
        return pair if self.transforms is None else self.transforms(*pair)

    def pair(self, index: SupportsIndex) -> tuple[Image.Image, Image.Image]:
        """Reads a sample as `dataset[i]` does, but without transforms.

        >>> image, mask = dataset.pair(0)
        >>> image.size, mask.size
        ((128, 64), (128, 64))
        """
        if not self.has_masks:
            raise DatasetError(f"the ground truth of {self} is not published; read(i) gives (image, None)")
        image, mask = self.read(index)
        assert mask is not None
        return Image.fromarray(image), Image.fromarray(mask)

    def image_path(self, index: SupportsIndex) -> Path:
        """The file of the image.

        >>> isanet.datasets.Folder("streets").image_path(0).name
        '0.jpg'
        """
        image: Path = self._samples[operator.index(index)].image
        return image

    def mask_path(self, index: SupportsIndex) -> Path | None:
        """The file of the mask; None without masks.

        >>> isanet.datasets.Folder("streets").mask_path(0).name
        '0.png'
        """
        mask: Path | None = self._samples[operator.index(index)].mask
        return mask

    def read(self, index: SupportsIndex) -> tuple[RGBImage, NDArray[np.uint8] | None]:
        """Reads a sample as arrays, without transforms.

        >>> image, mask = dataset.read(0)
        >>> image.shape, mask.shape, mask.dtype
        ((64, 128, 3), (64, 128), dtype('uint8'))

        Returns:
            The image (H, W, 3), see `isanet.images.reading.read_image`, and the mask (H, W) of class indices and
            `IGNORED`, or None without masks; both uint8.

        Raises:
            IndexError: There are fewer samples.
            DatasetError: The mask cannot be read (see `isanet.images.masks.read_mask`), has another size than the
                image, or holds a value that is neither a class nor ignored.
            ImageError: The image cannot be read.
        """
        name, image_path, mask_path = self._samples[operator.index(index)]
        image = read_image(image_path, max_pixels=self._max_pixels, value_range=self._value_range)
        if mask_path is None:
            return image, None
        return image, self._class_indices(self._read_values(mask_path, name), image, image_path, mask_path)

    def _class_indices(
        self, values: NDArray[Any], image: RGBImage, image_path: object, mask_path: object
    ) -> NDArray[np.uint8]:
        """The class indices that the values of a mask mean; the paths are for messages."""
        if values.shape != image.shape[:2]:
            (height, width), (mask_height, mask_width) = image.shape[:2], values.shape
            turned = (mask_width, mask_height) == (height, width)
            raise DatasetError(
                f"the image {image_path} is {width}x{height}, and its mask {mask_path} is {mask_width}x{mask_height}; "
                + (
                    "most likely the image has an EXIF orientation, which is applied, and the mask was drawn without "
                    "it: turn the mask, or remove the orientation from the image"
                    if turned
                    else "a mask has a value for every pixel: export it at the size of the image"
                )
            )
        mask = self._index_of_byte[values] if values.dtype == np.uint8 else self._look_up(values)
        stray = mask == UNKNOWN
        if stray.any():
            found = dict(zip(*(part.tolist() for part in np.unique(values[stray], return_counts=True)), strict=True))
            named = listed((f"{value} ({count:,} pixels)" for value, count in found.items()), 5)
            raise DatasetError(
                f"the mask {mask_path} holds {plural(len(found), 'value')} that "
                f"{'is' if len(found) == 1 else 'are'} neither a class nor ignored: {named}; {self._advice()}"
            )
        return mask.astype(np.uint8)

    def held_out(self, share: float = 0.2, seed: int = 0) -> tuple[Self, Self]:
        """Splits the dataset at random into one for training and one for validation.

        >>> train, val = dataset.held_out(0.25)
        >>> len(train), len(val)
        (3, 1)

        Args:
            share: Share of the images that are held out for validation, above 0 and below 1; at least one image.
            seed: Decides which images are held out.

        Returns:
            The training and the validation dataset.

        Raises:
            DatasetError: There are fewer than two images, or `share` is out of range.
        """
        if len(self) < 2 or not 0 < share < 1:
            raise DatasetError(f"{self} has {len(self)} images, of which a share of {share} cannot be held out")
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        number = min(max(1, round(share * len(self))), len(self) - 1)
        parts = []
        for name, indices in (("the rest", order[number:]), (f"{number} held out", order[:number])):
            split = name if self.split is None else f"{self.split}, {name}"
            parts.append(self._subset(split, sorted(indices)))
        return parts[0], parts[1]

    def _subset(self, split: str | None, indices: Sequence[int]) -> Self:
        part = copy(self)
        part.split = split
        part._samples = [self._samples[index] for index in indices]
        part.keys = [self.keys[index] for index in indices]
        return part

    def fingerprint(self, indices: Iterable[int]) -> str:
        """A hash of how some samples are read, and of path, size and modification time of their files.

        >>> streets = isanet.datasets.Folder("streets")
        >>> streets.fingerprint([0, 1]) == streets.fingerprint([0, 2])
        False

        Raises:
            DatasetError: A file is gone.
        """
        colors = self._colors or self._rgb_palette
        digest = sha256(repr((self.name, self.split, self._values, self._indices, self._other_index, colors)).encode())
        if self._value_range is not None:
            digest.update(repr(self._value_range).encode())
        for index in indices:
            for path in self._samples[index][1:]:
                if path is not None:
                    try:
                        status = path.stat()
                    except OSError as error:
                        raise DatasetError(f"{path} cannot be read: {error}") from error
                    digest.update(os.fsencode(path.absolute()))
                    digest.update(f" {status.st_size} {status.st_mtime_ns} ".encode())
        return digest.hexdigest()

    def _look_up(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """The class index of each value, `IGNORED`, or `UNKNOWN`."""
        nearest = np.searchsorted(self._values, values).clip(max=len(self._values) - 1)
        return np.where(self._values[nearest] == values, self._indices[nearest], np.int16(self._other_index))

    def _read_values(self, path: Path, name: str) -> Mask:
        return read_mask(path, colors=self._colors, palette=self._rgb_palette, max_pixels=self._max_pixels)

    def _advice(self) -> str:
        """For messages: what to do about values that are neither a class nor ignored."""
        raise NotImplementedError
