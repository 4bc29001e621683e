"""Other map-style datasets, and parts of any, as datasets of this package."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsIndex, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset

from isanet.datasets.base import Options, SegmentationDataset
from isanet.errors import DatasetError, ImageError
from isanet.images.masks import VALUE_MODES
from isanet.images.reading import MAX_PIXELS, RGBImage, read_image
from isanet.labels import IGNORED, LabelSpace, custom_space, label_space

NUM_PROBES = 8
"""Samples whose content is part of a fingerprint."""


class Wrapped(SegmentationDataset):
    """Any map-style dataset of pairs of an image and a mask, such as torchvision's, or a part of one (`Subset`).

    The image is a PIL image or a uint8 array (H, W, 3), the mask a PIL image of one channel (L, P, I) or an array
    (H, W) of integers: class indices, and 255 where a pixel does not count. `isanet.evaluate` and `isanet.finetune`
    wrap a dataset by themselves if it has `classes`.

    A run on it resumes if class, length and classes of the dataset, the indices of the part, and a few samples spread
    over it are the same as before.

    >>> pairs = [dataset[0], dataset[1]]
    >>> isanet.datasets.Wrapped(pairs, classes=dataset.classes, name="mine")
    Wrapped(2 images, 11 classes: road, sidewalk, building, …)

    Args:
        dataset: What has `len(dataset)` and `dataset[i]`.
        classes: Names of the classes in the order of their indices, or the name of a label space such as "voc21". None:
            the attribute `classes` of the dataset; colors are then those of its attribute `palette`, if it has one.
        name: For messages and reports; None: the name of the dataset's class.
        options: See `Options`. `transforms` replace the augmentation of training, those of the dataset itself do not.

    Raises:
        DatasetError: The dataset is empty or not map-style, or its classes are not known.
    """

    def __init__(
        self,
        dataset: Any,
        classes: Sequence[str] | str | None = None,
        *,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._max_pixels = options.pop("max_pixels", MAX_PIXELS)
        self._value_range = options.pop("value_range", None)
        super(SegmentationDataset, self).__init__(Path(), **options)  # the base would look for files
        self.source, self._samples, noted = _flattened(dataset)
        self.name, self.split, self.has_masks = name or type(self.source).__name__, None, True
        self.label_space = _space(noted, classes, self.name)
        self.classes, self.palette = self.label_space.classes, self.label_space.palette
        if not self._samples:
            raise DatasetError(f"{self} has no sample")
        self.keys = [f"{index:06}" for index in self._samples]
        self._set_meanings({**{index: index for index in range(len(self.classes))}, IGNORED: IGNORED})

    def __str__(self) -> str:
        """For messages: name and number of samples."""
        return f"{self.name} ({len(self):,} samples)"

    def read(self, index: SupportsIndex) -> tuple[RGBImage, NDArray[np.uint8]]:
        """Reads a sample as arrays.

        Returns:
            The image (H, W, 3) and the mask (H, W) of class indices and `IGNORED`, both uint8.

        Raises:
            IndexError: There are fewer samples.
            DatasetError: The dataset cannot read it, or yields something else than such a pair.
        """
        number = self._samples[operator.index(index)]
        what = f"of sample {number} of {self.name}"
        try:
            sample = self.source[number]
        except Exception as error:  # anybody's code
            raise DatasetError(f"the pair {what} cannot be read: {type(error).__name__}: {error}") from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise DatasetError(f"expected a pair (image, mask) {what}, got {_described(sample)}")
        source, mask = sample
        if not isinstance(source, Image.Image | np.ndarray):
            raise DatasetError(
                f"the image {what} is {_described(source)}; expected a PIL image or a uint8 array (H, W, 3): leave out "
                "transforms of the dataset that make tensors (for training: Wrapped(..., transforms=...))"
            )
        try:
            image = read_image(source, max_pixels=self._max_pixels, value_range=self._value_range)
        except ImageError as error:
            raise ImageError(f"the image {what}: {error}") from error
        try:
            values = _mask_values(mask)
        except Exception as error:  # decoders raise nearly anything on damaged data
            raise DatasetError(f"the mask {what} cannot be read: {error}") from error
        if values is None:
            raise DatasetError(
                f"the mask {what} is {_described(mask)}; expected class indices: a PIL image of one channel (L, P, I), "
                "or an array (H, W) of integers"
            )
        return image, self._class_indices(values, image, what, what)

    def fingerprint(self, indices: Iterable[int]) -> str:
        """A hash of class, length and classes of the dataset, of which samples are used, and of a few of them.

        A sample is left out where reading it twice gives different images, as random transforms do.
        """
        places = list(indices)
        used = [self._samples[place] for place in places]
        kind, source = type(self.source), self.source
        part = [*map(operator.index, source.indices)] if isinstance(source, Subset) else []
        known = (kind.__module__, kind.__qualname__, self.name, len(source), self.classes, used, part)
        digest = sha256(repr(known).encode())
        for place in places[:: -(-len(places) // NUM_PROBES)]:
            first, second = (sha256(b"".join(each.tobytes() for each in self.read(place))).digest() for _ in range(2))
            if first == second:
                digest.update(first)
        return digest.hexdigest()

    def image_path(self, index: SupportsIndex) -> Path:
        """The files are not known.

        Raises:
            DatasetError: Always.
        """
        raise DatasetError(f"the files of {self} are not known (sample {index!r}); dataset[i] reads them")

    def mask_path(self, index: SupportsIndex) -> Any:
        """As `image_path`."""
        return self.image_path(index)

    def _advice(self) -> str:
        return f"expected class indices from 0 to {len(self.classes) - 1}, and {IGNORED} where a pixel does not count"


def as_dataset(given: Any) -> SegmentationDataset:
    """A dataset as this package has it: itself, a part of it for a `Subset`, or anything else `Wrapped`.

    Raises:
        ValueError: It is no map-style dataset, or its classes are not known.
        DatasetError: A part has indices that its dataset does not have, or no sample.
    """
    if isinstance(given, SegmentationDataset):
        return given
    if isinstance(given, str | os.PathLike):
        raise ValueError(f"expected a dataset, got a path; pass isanet.datasets.open_dataset({os.fspath(given)!r})")
    readable = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    if readable:
        source, indices, classes = _flattened(given)
        if isinstance(source, SegmentationDataset):
            if not indices:
                raise DatasetError(f"the part of {source} has no sample")
            number = f"{len(indices):,} of {len(source):,}"
            return source._subset(f"{source.split}, {number}" if source.split else number, indices)
        if classes is not None:
            return Wrapped(given)
    raise ValueError(
        f"expected a dataset of isanet.datasets, got {type(given).__name__}"
        + (", whose classes are not known" if readable else "")
        + "; pass isanet.datasets.Wrapped(dataset, classes=[...]) for pairs of an image and a mask, and for a part a "
        "torch.utils.data.Subset, or what held_out(share) of a dataset returns"
    )


def _flattened(dataset: Any) -> tuple[Any, list[int], Any]:
    """The dataset behind parts of parts, the indices in it, and the object whose `classes` count, if any has them."""
    levels = [dataset]
    while type(dataset) is Subset:  # others may do more than select
        levels.append(dataset := dataset.dataset)
    try:
        indices = list(range(len(dataset)))
        for level in levels[-2::-1]:
            indices = [indices[operator.index(index)] for index in level.indices]
    except TypeError as error:
        raise DatasetError(f"{type(dataset).__name__} is no map-style dataset with whole indices: {error}") from error
    except IndexError as error:
        raise DatasetError(
            f"an index of a Subset is out of range: {type(dataset).__name__} has {len(dataset)}"
        ) from error
    return dataset, indices, next((level for level in levels if getattr(level, "classes", None) is not None), None)


def _space(noted: Any, classes: Sequence[str] | str | None, name: str) -> LabelSpace:
    palette = None
    if classes is None:
        classes, palette = getattr(noted, "classes", None), getattr(noted, "palette", None)
    if classes is None:
        raise DatasetError(f"the classes of {name} are not known: pass classes=, a list of names")
    try:
        if isinstance(classes, str):
            return label_space(classes)
        if not all(isinstance(each, str) for each in classes):
            raise ValueError("they are not names; pass classes=, a list of names")
        space = custom_space(classes, palette, name)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"the classes of {name}: {error}") from error
    if len(space) > IGNORED:
        raise DatasetError(f"{name} has {len(space)} classes; an 8-bit mask holds no more than {IGNORED}")
    return space


def _mask_values(mask: Any) -> NDArray[Any] | None:
    """The values of a mask; None if it is not one."""
    values = np.asarray(mask) if isinstance(mask, Image.Image) and mask.mode in VALUE_MODES else mask
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "bui":
        return None
    return values if values.dtype == np.uint8 else values.astype(np.int64)


def _described(value: Any) -> str:
    """What a sample or a part of it is, for messages."""
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode}"
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{kind} of {value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {len(value)} ({', '.join(type(each).__name__ for each in value[:5])})"
    return f"{kind} {value!r:.100}" if isinstance(value, str | int | float | None) else f"a {kind}"
