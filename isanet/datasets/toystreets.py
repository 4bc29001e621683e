"""ToyStreets as a dataset: scenes are drawn when they are read."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsIndex, Unpack

import numpy as np
from numpy.typing import NDArray

from isanet.datasets.base import SegmentationDataset, Transforms
from isanet.errors import DatasetError
from isanet.images.reading import RGBImage
from isanet.toystreets import NUM_TEST_SCENES, SIZE, SPACE, SPLITS, VERSION, draw_scene, scene_seed


class ToyStreets(SegmentationDataset):
    """A dataset of scenes that are drawn when they are read; nothing is stored.

    The same index gives the same scene whatever the count. Different splits and seeds have different scenes, see
    `isanet.toystreets.scene_seed`.

    >>> image, mask = isanet.datasets.ToyStreets(count=4, size=(64, 128))[0]
    >>> image.size
    (128, 64)
    """

    name = "ToyStreets"

    def __init__(
        self,
        count: int = 1000,
        seed: int = 0,
        size: tuple[int, int] = SIZE,
        split: str = "train",
        **transforms: Unpack[Transforms],
    ) -> None:
        """Checks the arguments.

        Args:
            count: Number of scenes, 1 to 2**32.
            seed: At least 0.
            size: (height, width) in pixels, at least (32, 32), see `isanet.toystreets.draw_scene`.
            split: "train", "val" or "test".
            transforms: See `isanet.datasets.Transforms`.

        Raises:
            DatasetError: There is no such split, or a number is out of range.
        """
        super(SegmentationDataset, self).__init__(Path(), **transforms)  # the base would look for files
        if split not in SPLITS:
            raise DatasetError(f"{self.name} has no split {split!r}; it has: {', '.join(SPLITS)}")
        if not 1 <= count <= 2**32 or seed < 0 or min(size) < 32:
            raise DatasetError(
                f"{self.name} needs a count of 1 to 2**32, a seed of at least 0 and a size (height, width) of at least "
                f"(32, 32); got count={count}, seed={seed}, size={size}"
            )
        height, width = size
        self.split = split
        if (split, seed, (height, width)) == ("test", 0, SIZE):
            self.official_size = NUM_TEST_SCENES
        self.seed, self.size = seed, (height, width)
        self._scenes, self._samples = split, range(count)
        self.label_space = SPACE
        self.classes, self.palette = SPACE.classes, SPACE.palette
        self.has_masks = True
        # an evaluation resumes if the keys are the same, so they have to name everything that makes a scene
        self.keys = [f"v{VERSION}_seed{seed}_{height}x{width}_{split}_{index:06}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: SupportsIndex) -> tuple[RGBImage, NDArray[np.uint8]]:
        """Draws a scene.

        Returns:
            The image (H, W, 3) and the mask (H, W) of class indices, both uint8.

        Raises:
            IndexError: There are fewer scenes.
        """
        image, mask = draw_scene(scene_seed(self.seed, self._scenes, self._samples[operator.index(index)]), self.size)
        return np.asarray(image), mask

    def fingerprint(self, indices: Iterable[int]) -> str:
        """A hash of the keys, which name everything that makes the scenes."""
        return sha256(" ".join(self.keys[index] for index in indices).encode()).hexdigest()

    def image_path(self, index: SupportsIndex) -> Path:
        """Scenes have no files.

        Raises:
            DatasetError: Always.
        """
        raise DatasetError(f"{self.name} draws its scenes; they have no files (sample {index!r})")

    def mask_path(self, index: SupportsIndex) -> Any:
        """As `image_path`."""
        return self.image_path(index)
