"""ToyStreets: street scenes drawn from a seed, with exact masks, for tests, demonstrations and training without data.

A camera stands in a street: road, pavements, facades, trees, cars, people, poles, lights and signs, drawn from far to
near in perspective, in sun, overcast weather, fog, rain, at dusk or at night. The classes are called as in Cityscapes.
Colors say little about them (grays are roads, pavements, walls, skies, cars and coats alike): a model has to look at
shapes and surroundings.

Every pixel is one 64-bit number that holds its color, class and distance, and a shape writes whole numbers. So there
is no way in which image and mask could disagree; nothing is antialiased. Afterwards light, fog, rain, a blur of at
most two pixels and noise change the colors where they are, and never the classes. No pixel is `IGNORED`.

`toystreets_camera` has the camera, the pixels and the shapes; `toystreets_street` and `toystreets_things` put into the
street what it holds; `toystreets_photo` makes the image of it.

Promised: a seed and a size give the same image and mask on every machine, to the last bit. Hence nothing in these
modules but `random.Random(seed).random()` and the raw stream of numpy's PCG64, both documented as fixed; integers; and
additions, multiplications, divisions and square roots of 64-bit floats, which IEEE 754 fixes. No Pillow operation has
a part in it (its polygons are computed by what floats the compiler likes), nor fonts, sines or matrix products. A
change of the scenes is a change of `VERSION`.

A scene of 256 by 512 takes one core 20 to 35 ms, one of 128 by 256 about 20 ms, one of 1024 by 2048 about 0.25 s.
"""

from __future__ import annotations

import operator
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet.labels import LABEL_SPACES
from isanet.toystreets.draw import (
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
from isanet.toystreets.photo import develop
from isanet.toystreets.street import build, draw_backdrop, draw_ground, draw_sky, lay_out
from isanet.toystreets.things import furnish

__all__ = [
    "BUILDING", "CAR", "CLASSES", "LIGHT", "PERSON", "POLE", "ROAD", "SIDEWALK", "SIGN", "SKY", "SPACE", "SPLITS",
    "TERRAIN", "VEGETATION", "VERSION", "scene", "scene_seed",
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
        size: (height, width) in pixels, from (32, 32). Sizes of one shape show the same; a wider image shows more
            at the sides.

    Returns:
        The image (RGB), and the mask (H, W) of positions in `CLASSES`.

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
    """The seed of a dataset's scene: ranges of 2**32 for each seed and split, none of which overlap."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * 2**32 + index
