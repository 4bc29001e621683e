"""ToyStreets as a dataset: scenes drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsIndex, Unpack

import numpy as np
from numpy.typing import NDArray

from isanet.datasets.base import SegmentationDataset, Transforms
from isanet.errors import DatasetError
from isanet.images.reading import RGBImage
from isanet.toystreets.scene import MEASURED, SIZE, SPACE, SPLITS, VERSION, scene, scene_seed


class ToyStreets(SegmentationDataset):
    """A dataset of scenes that are drawn when they are asked for; nothing is stored.

    The same index gives the same scene whatever the count. Scenes of different splits and of different seeds are
    different, see `scene_seed`.
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
            size: (height, width) in pixels, see `scene`.
            split: "train", "val" or "test".
            transforms: See `isanet.datasets.Transforms`.

        Raises:
            DatasetError: There is no such split, or a number is too small or large.
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
            self.official_size = MEASURED
        self.seed, self.size = seed, (height, width)
        self.label_space = SPACE
        self.classes, self.palette = SPACE.classes, SPACE.palette
        self.has_masks = True
        # an evaluation goes on where it stopped if the keys are the same, so that they have to say all
        self.keys = [f"v{VERSION}_seed{seed}_{height}x{width}_{split}_{index:06}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: SupportsIndex) -> tuple[RGBImage, NDArray[np.uint8]]:
        """Draws a scene.

        Returns:
            The image (H, W, 3) and the mask (H, W) of class indices.

        Raises:
            IndexError: There are not so many scenes.
        """
        image, mask = scene(scene_seed(self.seed, str(self.split), range(len(self))[index]), self.size)
        return np.asarray(image), mask

    def fingerprint(self, indices: Iterable[int]) -> str:
        """All that makes the scenes: the keys say it."""
        return sha256(" ".join(self.keys[index] for index in indices).encode()).hexdigest()

    def image_path(self, index: SupportsIndex) -> Path:
        """There is none.

        Raises:
            DatasetError: Always.
        """
        raise DatasetError(f"{self.name} draws its scenes; they have no files (sample {index!r})")

    def mask_path(self, index: SupportsIndex) -> Any:
        """There is none; raises as `image_path`."""
        return self.image_path(index)
