"""What ToyStreets draws with: a camera in a street, its weather, the pixels drawn so far, and shapes.

See `isanet.toystreets.scene` for the arithmetic that is allowed, so that all machines draw the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

ROAD, SIDEWALK, BUILDING, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR = range(11)
"""Positions in `isanet.toystreets.scene.CLASSES`."""

Color = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

# One set of colors for walls, cars, clothes, awnings and signs, and one of grays for nearly everything.
GRAYS: list[Color] = [
    (52, 54, 58), (76, 76, 80), (98, 98, 98), (112, 110, 106), (128, 130, 134), (146, 142, 136), (166, 166, 168),
    (190, 188, 182), (216, 216, 214),
]  # fmt: skip
COLORS: list[Color] = [
    (168, 52, 44), (146, 84, 62), (186, 120, 72), (206, 174, 112), (226, 206, 160), (96, 124, 74), (52, 92, 70),
    (74, 112, 154), (40, 62, 112), (120, 156, 180), (118, 70, 106), (196, 150, 140), (232, 228, 216), (214, 168, 40),
    (34, 36, 42), (150, 130, 110),
]  # fmt: skip
LEAVES: list[Color] = [(62, 96, 44), (84, 116, 50), (50, 84, 58), (112, 128, 60), (156, 120, 48), (150, 78, 44)]
DARK: Color = (26, 27, 30)
WHITE: Color = (226, 226, 222)

# Fixed noise for bricks, leaves, asphalt and clouds: the same at every size, unlike the noise of the sensor.
TILE = np.random.PCG64(20).random_raw(2048).astype("<u8").view(np.uint8).reshape(128, 128)


class Weather(NamedTuple):
    """How light and air change the colors."""

    share: float  # of the scenes
    top: Color  # the sky above
    bottom: Color  # the sky at the horizon, and what fog turns everything into
    gain: Color  # light of each channel; 256: as painted
    fog: int  # density; half of the color is gone at 8192 / fog meters
    shadow: int  # light in a shadow; 256: all of it; more than that: the light under lamps
    clouds: int
    lit: int  # lit windows of 256
    noise: int


WEATHERS = {
    "sun": Weather(0.34, (84, 140, 206), (190, 214, 232), (276, 262, 238), 14, 138, 90, 0, 10),
    "overcast": Weather(0.24, (166, 172, 180), (206, 208, 210), (226, 228, 236), 28, 212, 30, 12, 14),
    "fog": Weather(0.11, (182, 186, 188), (196, 198, 198), (222, 224, 226), 330, 236, 8, 20, 12),
    "rain": Weather(0.13, (116, 122, 132), (152, 156, 162), (184, 190, 202), 90, 216, 40, 40, 18),
    "dusk": Weather(0.10, (72, 74, 118), (232, 150, 104), (190, 156, 150), 36, 200, 50, 110, 22),
    "night": Weather(0.08, (14, 18, 38), (46, 44, 58), (92, 94, 120), 30, 460, 12, 100, 28),
}


@dataclass
class Scene:
    """A camera in a street, and the pixels drawn so far.

    Positions are meters: x to the right of the middle of the road, y above the ground, z ahead of the camera along the
    road, which bends by `bend * z * z`.
    """

    rng: Random
    height: int
    width: int
    canvas: NDArray[np.uint64] = field(init=False)
    """Bytes from the lowest: red, green, blue, class; distance in eighths of a meter (2); shines; grain."""

    def __post_init__(self) -> None:
        self.canvas = np.zeros((self.height, self.width), np.uint64)
        weather = self.pick_weighted([(name, weather.share) for name, weather in WEATHERS.items()])
        self.weather = WEATHERS[weather]
        self.sunny, self.rainy = weather in ("sun", "dusk"), weather == "rain"
        self.headlights = weather in ("night", "dusk", "rain")
        self.eye = self.between(1.3, 2.7)
        self.focal = self.between(0.8, 1.45) * self.height
        self.horizon = self.between(0.36, 0.58) * self.height
        self.middle = self.width / 2 + self.between(-0.35, 0.35) * self.height
        self.bend = self.between(-1, 1) * self.between(0, 1) * 0.003
        self.half_road = self.between(3.2, 6.8)
        # mostly in a lane, sometimes on a sidewalk
        self.aside = self.half_road * (self.between(-0.6, 0.6) if self.chance(0.8) else self.between(-1.25, 1.25))
        self.sun = self.between(-0.9, 0.9), self.between(-0.5, 0.7)
        self.crossing = self.between(9, 34) if self.chance(0.6) else 1e6
        self.crossing_end = self.crossing + self.between(6, 11)
        # Shadows on the ground: from x, z to x, z, and the radius
        self.shadows: list[tuple[float, float, float, float, float]] = []
        # Shadows of buildings: x, and how far across; from z to z, and how far ahead they lean
        self.blocks: list[tuple[float, float, float, float, float]] = []
        # Distance of each thing, and the function that draws it
        self.things: list[tuple[float, Callable[[], None]]] = []

    # Only random() is guaranteed to keep its stream between Python versions; choice() and the others are not.

    def between(self, low: float, high: float) -> float:
        """A random number between two."""
        return low + (high - low) * self.rng.random()

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.rng.random() < share

    def pick(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[int(self.rng.random() * len(items))]

    def pick_weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One item by probabilities, which add up to 1."""
        left = self.rng.random()
        for item, part in items:
            left -= part
            if left < 0:
                return item
        return items[-1][0]

    def any_color(self, gray: float = 0.5) -> Color:
        """A random color, a gray with probability `gray`, slightly lighter or darker."""
        change = self.between(0.85, 1.12)
        return times(self.pick(GRAYS) if self.chance(gray) else self.pick(COLORS), change)

    def project(self, x: float, y: float, z: float) -> Point:
        """The pixel position (x, y) of a place in the street."""
        return (
            self.middle + self.focal * ((x - self.aside) / z + self.bend * z),
            self.horizon + self.focal * (self.eye - y) / z,
        )

    def add(self, z: float, draw: Callable[[], None]) -> None:
        """Registers something to be drawn after everything that is farther away."""
        if z > 2:
            self.things.append((z, draw))

    # Shapes. A pixel belongs to a shape if its center does.

    def box(self, left: float, top: float, right: float, bottom: float, value: int) -> None:
        """Fills an upright rectangle."""
        x, y = max(ceil(left - 0.5), 0), max(ceil(top - 0.5), 0)
        self.canvas[y : max(ceil(bottom - 0.5), 0), x : max(ceil(right - 0.5), 0)] = value

    def polygon(self, points: Sequence[Point], value: int) -> None:
        """Fills a convex polygon."""
        first = max(ceil(min(y for _, y in points) - 0.5), 0)
        last = min(ceil(max(y for _, y in points) - 0.5), self.height)
        across = [x for x, _ in points]
        if first >= last or max(across) < 0 or min(across) > self.width:
            return
        # in a convex polygon, the edges that go down bound one side, those that go up the other
        chains = [0.0] * (last - first), [0.0] * (last - first)
        x0, y0 = points[-1]
        for x1, y1 in points:
            xa, ya, yb = (x0, y0, y1) if y0 < y1 else (x1, y1, y0)
            start, stop = max(ceil(ya - 0.5), first), min(ceil(yb - 0.5), last)
            if start < stop:
                slope = (x1 - x0) / (y1 - y0)
                chains[y0 < y1][start - first : stop - first] = [
                    xa + (row + 0.5 - ya) * slope for row in range(start, stop)
                ]
            x0, y0 = x1, y1
        canvas, filled = self.canvas, np.uint64(value)
        for row, one, other in zip(range(first, last), *chains, strict=True):
            low, high = (one, other) if one < other else (other, one)
            if high > 0.5:
                canvas[row, ceil(low - 0.5) if low > 0.5 else 0 : ceil(high - 0.5)] = filled

    def disc(self, x: float, y: float, z: float, rx: float, ry: float, value: int) -> None:
        """Fills an ellipse that faces the camera; radii in meters."""
        x, y = self.project(x, y, z)
        rx, ry = rx * (self.focal / z), ry * (self.focal / z)
        for row in range(max(ceil(y - ry - 0.5), 0), min(ceil(y + ry - 0.5), self.height)):
            part = (row + 0.5 - y) / ry
            half = rx * sqrt(max(1 - part * part, 0))
            stop = ceil(x + half - 0.5)
            if stop > 0:
                self.canvas[row, max(ceil(x - half - 0.5), 0) : stop] = value

    def leaves(self, x: float, y: float, rx: float, ry: float, values: Sequence[int], seed: int) -> None:
        """Fills a ragged ellipse with light and dark spots; `values`: light, medium, dark."""
        left, top = max(ceil(x - rx * 1.2), 0), max(ceil(y - ry * 1.2), 0)
        part = self.canvas[top : max(ceil(y + ry * 1.2), 0), left : max(ceil(x + rx * 1.2), 0)]
        if not part.size:
            return
        across = (np.arange(left, left + part.shape[1]) + (0.5 - x)) / rx
        down = (np.arange(top, top + part.shape[0]) + (0.5 - y)) / ry
        coarse, fine = (
            TILE[down_cell[:, None], across_cell]
            for down_cell, across_cell in (
                ((cells * down + (99 + seed)).astype(np.int32) & 127, (cells * across + 99).astype(np.int32) & 127)
                for cells in (14, 29)
            )
        )
        inside = (across * across)[None] + (down * down)[:, None] < 0.72 + coarse * (0.5 / 256)
        light = fine * (1 / 256) - down[:, None] * 0.6 - across * (-0.35 if self.sun[0] < 0 else 0.35)
        spots = np.array(values, np.uint64)[(light < 0.72).astype(np.intp) + (light < 0.3)]
        np.copyto(part, spots, where=inside)

    def post(self, x: float, z: float, y0: float, y1: float, wide: float, value: int) -> None:
        """Draws an upright bar."""
        left, top = self.project(x - wide / 2, y1, z)
        right, bottom = self.project(x + wide / 2, y0, z)
        self.box(left, top, right, bottom, value)

    def flat(self, x: float, z: float, points: Sequence[Point], value: int) -> None:
        """Draws a convex polygon that faces the camera; points are relative to a place on the ground."""
        self.polygon([self.project(x + dx, y, z) for dx, y in points], value)

    def cast_shadow(self, x: float, z: float, height: float, radius: float, start: float = 0) -> None:
        """Adds the shadow of something upright, or a dark spot where there is no sun."""
        if self.weather.shadow > 256:
            return
        reach = (1.0 if self.sunny else 0.1) * height
        (dx, dz), low = self.sun, start / height
        self.shadows.append((x + dx * reach * low, z + dz * reach * low, x + dx * reach, z + dz * reach, radius))


def times(color: Color, factor: float) -> Color:
    """A lighter or darker color."""
    red, green, blue = int(color[0] * factor), int(color[1] * factor), int(color[2] * factor)
    return red if red < 255 else 255, green if green < 255 else 255, blue if blue < 255 else 255


def mix(one: Color, other: Color, share: float) -> Color:
    """A color between two; `share`: of the other."""
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def pixel(what: int, color: Color, z: float = 0, grain: int = 8, shines: bool = False) -> int:
    """A pixel as one integer, see `Scene.canvas`.

    Args:
        what: The class.
        color: As painted.
        z: Distance in meters.
        grain: Strength of the noise of its color, of 128.
        shines: Whether neither light nor shadow changes it.
    """
    red, green, blue = color
    distance = min(int(z * 8), 65535)
    return red | green << 8 | blue << 16 | what << 24 | distance << 32 | shines << 48 | grain << 56


def foliage(leaf: Color, z: float) -> list[int]:
    """Pixels of light, medium and dark leaves."""
    return [pixel(VEGETATION, times(leaf, factor), z, 24) for factor in (1.25, 0.95, 0.65)]
