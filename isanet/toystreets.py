"""ToyStreets: street scenes drawn from a seed, with exact masks, for tests, demonstrations and training without data.

A camera stands in a street: road, pavements, facades, trees, cars, people, poles, lights and signs, drawn from far to
near in perspective, in sun, overcast weather, fog, rain, at dusk or at night. The classes are called as in Cityscapes.
Colours say little about them (greys are roads, pavements, walls, skies, cars and coats alike): a model has to look at
shapes and surroundings.

Every pixel is one 64-bit number that holds its colour, class and distance, and a shape writes whole numbers. So there
is no way in which picture and mask could disagree; nothing is antialiased. Afterwards light, fog, rain, a blur of at
most two pixels and noise change the colours where they are, and never the classes. No pixel is `IGNORED`.

`toystreets_camera` has the camera, the pixels and the shapes; `toystreets_street` and `toystreets_things` put into the
street what it holds; `toystreets_photo` makes the picture of it.

Promised: a seed and a size give the same picture and mask on every machine, to the last bit. Hence nothing in these
modules but `random.Random(seed).random()` and the raw stream of numpy's PCG64, both documented as fixed; integers; and
additions, multiplications, divisions and square roots of 64-bit floats, which IEEE 754 fixes. No Pillow operation has
a part in it (its polygons are computed by what floats the compiler likes), nor fonts, sines or matrix products. A
change of the scenes is a change of `VERSION`.

A scene of 256 by 512 takes one core 20 to 35 ms, one of 128 by 256 about 20 ms, one of 1024 by 2048 about 0.25 s.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, SupportsIndex, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet.datasets import SegmentationDataset, Transforms
from isanet.errors import DatasetError
from isanet.labels import LABEL_SPACES
from isanet.preprocess import RGBImage
from isanet.toystreets_camera import (
    BUILDING,
    CAR,
    LIGHT,
    PERSON,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    TERRAIN,
    VEGETATION,
    Scene,
)
from isanet.toystreets_photo import develop
from isanet.toystreets_street import build, draw_backdrop, draw_ground, draw_sky, lay_out
from isanet.toystreets_things import furnish

__all__ = [
    "BUILDING", "CAR", "CLASSES", "LIGHT", "PERSON", "POLE", "ROAD", "SIDEWALK", "SIGN", "SKY", "SPACE", "SPLITS",
    "TERRAIN", "VEGETATION", "VERSION", "ToyStreets", "scene", "scene_seed",
]  # fmt: skip

VERSION = 1
"""Goes up when a seed's scene changes: results of different versions do not compare."""

SPLITS = ("train", "val", "test")

SIZE = (256, 512)
"""(height, width) in pixels of a scene, if nobody says otherwise."""

MEASURED = 200
"""Scenes of the split "test", of seed 0 and that size, that the figure in weights.json is of."""

SPACE = LABEL_SPACES["toystreets"]
CLASSES = SPACE.classes


def _draw(scene: Scene) -> None:
    """Draws everything, without the weather."""
    left, right = lay_out(scene), lay_out(scene)
    draw_sky(scene)
    build(scene, (left, right))
    furnish(scene, (left, right))
    draw_ground(scene, (left, right))
    draw_backdrop(scene)
    for _, draw in sorted(scene.things, key=operator.itemgetter(0), reverse=True):
        draw()
    scene.things.clear()  # they hold the scene: without this the pixels would wait for the garbage collector


def scene(seed: int, size: tuple[int, int]) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Draws a scene.

    Args:
        seed: At least 0. Different ones give different scenes.
        size: (height, width) in pixels, from (32, 32). Sizes of one shape show the same; a wider picture shows more
            at the sides.

    Returns:
        The picture (RGB), and the mask (H, W) of positions in `CLASSES`.

    Raises:
        ValueError: The seed is negative, or the size too small.
    """
    height, width = (operator.index(length) for length in size)
    seed = operator.index(seed)
    if seed < 0 or min(height, width) < 32:
        raise ValueError(f"a scene needs a seed of at least 0 and 32 by 32 pixels, got {seed} and {height} by {width}")
    drawn = Scene(Random(seed), height, width)  # noqa: S311 - nothing secret
    _draw(drawn)
    mask = (drawn.canvas >> np.uint64(24)).astype(np.uint8)
    return Image.fromarray(develop(drawn, seed)), mask


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of a data set's scene: ranges of 2**32 for each seed and split, none of which overlap."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * 2**32 + index


class ToyStreets(SegmentationDataset):
    """A data set of scenes that are drawn when they are asked for; nothing is stored.

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
            The picture (H, W, 3) and the mask (H, W) of class indices.

        Raises:
            IndexError: There are not so many scenes.
        """
        picture, mask = scene(scene_seed(self.seed, str(self.split), range(len(self))[index]), self.size)
        return np.asarray(picture), mask

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
