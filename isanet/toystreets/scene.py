"""ToyStreets: street scenes drawn from a seed, with exact masks, for tests, demos and training without data.

A camera stands in a street: road, sidewalks, facades, trees, cars, people, poles, lights and signs, drawn from far to
near in perspective, in sun, overcast weather, fog, rain, at dusk or at night. The classes are named as in Cityscapes.
Colors say little about them (roads, sidewalks, walls, skies, cars and coats are all gray): a model has to look at
shapes and surroundings.

Every pixel is one 64-bit integer that holds its color, class and distance, and shapes write whole integers, so image
and mask cannot disagree; nothing is antialiased. Afterwards light, fog, rain, a blur of at most two pixels and noise
change the colors in place, never the classes. No pixel is `IGNORED`.

`draw` has the camera, the pixels and the shapes; `street`, `buildings` and `things` fill the scene; `photo` makes the
image.

Promised: a seed and a size give the same image and mask on every machine, bit-exactly. Hence these modules use nothing
but `random.Random(seed).random()` and the raw stream of NumPy's PCG64, both documented as stable; integers; and
additions, multiplications, divisions and square roots of 64-bit floats, which IEEE 754 defines. Pillow draws nothing
(its polygons depend on how the compiler treats floats), and there are no fonts, sines or matrix products. A change of
the scenes is a change of `VERSION`.

One core takes 20 to 35 ms for a scene of 256x512, about 20 ms for 128x256, about 0.25 s for 1024x2048.
"""

from __future__ import annotations

import operator
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet.labels import LABEL_SPACES
from isanet.toystreets.buildings import add_buildings
from isanet.toystreets.draw import Scene
from isanet.toystreets.photo import develop
from isanet.toystreets.street import draw_backdrop, draw_ground, draw_sky, lay_out
from isanet.toystreets.things import add_things

VERSION = 1
"""Incremented when a seed's scene changes; results of different versions do not compare."""

SPLITS = ("train", "val", "test")

SIZE = (256, 512)
"""Default (height, width) of a scene in pixels."""

NUM_TEST_SCENES = 200
"""Scenes of the split "test", of seed 0 and the default size, on which the metrics in weights.json were measured."""

SPACE = LABEL_SPACES["toystreets"]
CLASSES = SPACE.classes


def _draw_everything(scene: Scene) -> None:
    """Draws everything but the effects of the weather."""
    sides = lay_out(scene), lay_out(scene)
    draw_sky(scene)
    add_buildings(scene, sides)
    add_things(scene, sides)
    draw_ground(scene, sides)
    draw_backdrop(scene)
    for _, draw in sorted(scene.things, key=operator.itemgetter(0), reverse=True):
        draw()
    scene.things.clear()  # they refer to the scene: otherwise its pixels would wait for the garbage collector


def draw_scene(seed: int, size: tuple[int, int]) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Draws the scene of a seed.

    Args:
        seed: At least 0. Different seeds give different scenes.
        size: (height, width) in pixels, at least (32, 32). Sizes of the same aspect show the same; a wider image shows
            more at the sides.

    Returns:
        The image (RGB), and the mask (H, W) uint8 of positions in `CLASSES`.

    Raises:
        ValueError: The seed is negative, or the size too small.
    """
    height, width = (operator.index(length) for length in size)
    seed = operator.index(seed)
    if seed < 0 or min(height, width) < 32:
        raise ValueError(f"a scene needs a seed of at least 0 and 32 by 32 pixels, got {seed} and {height} by {width}")
    drawn = Scene(Random(seed), height, width)  # noqa: S311 - nothing secret
    _draw_everything(drawn)
    mask = (drawn.canvas >> np.uint64(24)).astype(np.uint8)
    return Image.fromarray(develop(drawn, seed)), mask


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of a scene of a dataset; each seed and split have 2**32 of their own, which never overlap."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * 2**32 + index
