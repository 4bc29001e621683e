"""ToyStreets: street scenes drawn from a seed, with exact masks, for tests, demonstrations and training without data.

A camera stands in a street: road, pavements, facades, trees, cars, people, poles, lights and signs, drawn from far to
near in perspective, in sun, overcast weather, fog, rain, at dusk or at night. The classes are called as in Cityscapes.
Colours say little about them (greys are roads, pavements, walls, skies, cars and coats alike): a model has to look at
shapes and surroundings.

Every pixel is one 64-bit number that holds its colour, class and distance, and a shape writes whole numbers. So there
is no way in which picture and mask could disagree; nothing is antialiased. Afterwards light, fog, rain, a blur of at
most two pixels and noise change the colours where they are, and never the classes. No pixel is `IGNORED`.

Promised: a seed and a size give the same picture and mask on every machine, to the last bit. Hence nothing here but
`random.Random(seed).random()` and the raw stream of numpy's PCG64, both documented as fixed; integers; and additions,
multiplications, divisions and square roots of 64-bit floats, which IEEE 754 fixes. No Pillow operation has a part in
it (its polygons are computed by what floats the compiler likes), nor fonts, sines or matrix products. A change of the
scenes is a change of `VERSION`.

A scene of 256 by 512 takes one core 20 to 35 ms, one of 128 by 256 about 20 ms, one of 1024 by 2048 about 0.25 s.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import ceil, sqrt
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, SupportsIndex, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet.datasets import SegmentationDataset, Transforms
from isanet.errors import DatasetError
from isanet.labels import LABEL_SPACES, custom_space
from isanet.preprocess import RGBImage

VERSION = 1
"""Goes up when a seed's scene changes: results of different versions do not compare."""

SPLITS = ("train", "val", "test")

ROAD, SIDEWALK, BUILDING, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR = range(11)
CLASSES = (
    "road", "sidewalk", "building", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person",
    "car",
)  # fmt: skip

_CITYSCAPES = LABEL_SPACES["cityscapes19"]
SPACE = custom_space(CLASSES, [_CITYSCAPES.palette[_CITYSCAPES.classes.index(name)] for name in CLASSES], "toystreets")

Colour = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

# One set of colours for walls, cars, clothes, awnings and signs, and one of greys for nearly everything.
_GREYS: list[Colour] = [
    (52, 54, 58), (76, 76, 80), (98, 98, 98), (112, 110, 106), (128, 130, 134), (146, 142, 136), (166, 166, 168),
    (190, 188, 182), (216, 216, 214),
]  # fmt: skip
_COLOURS: list[Colour] = [
    (168, 52, 44), (146, 84, 62), (186, 120, 72), (206, 174, 112), (226, 206, 160), (96, 124, 74), (52, 92, 70),
    (74, 112, 154), (40, 62, 112), (120, 156, 180), (118, 70, 106), (196, 150, 140), (232, 228, 216), (214, 168, 40),
    (34, 36, 42), (150, 130, 110),
]  # fmt: skip
_LEAVES: list[Colour] = [(62, 96, 44), (84, 116, 50), (50, 84, 58), (112, 128, 60), (156, 120, 48), (150, 78, 44)]
_GRASS: list[Colour] = [(92, 124, 58), (110, 130, 66), (140, 132, 84), (120, 104, 76), (78, 108, 60)]
_SKIN: list[Colour] = [(236, 196, 166), (206, 156, 120), (150, 102, 72), (96, 64, 46)]
_DARK: Colour = (26, 27, 30)
_WHITE: Colour = (226, 226, 222)

# Fixed noise for bricks, leaves, asphalt and clouds: the same at every size, unlike the noise of the sensor.
_TILE = np.random.PCG64(20).random_raw(2048).astype("<u8").view(np.uint8).reshape(128, 128)


class _Weather(NamedTuple):
    """What light and air do to the colours."""

    share: float
    top: Colour
    """The sky above."""
    bottom: Colour
    """The sky at the horizon, and what fog turns everything into."""
    gain: Colour
    """Light by channel; 256: as painted."""
    fog: int
    """Density; half of the colour is gone at 8192 / fog metres."""
    shadow: int
    """What a shadow leaves of the light; 256: all. Beyond: the pools of light under lamps."""
    clouds: int
    lit: int
    """Of 256 windows."""
    noise: int


_WEATHERS = {
    "sun": _Weather(0.34, (84, 140, 206), (190, 214, 232), (276, 262, 238), 14, 138, 90, 0, 10),
    "overcast": _Weather(0.24, (166, 172, 180), (206, 208, 210), (226, 228, 236), 28, 212, 30, 12, 14),
    "fog": _Weather(0.11, (182, 186, 188), (196, 198, 198), (222, 224, 226), 330, 236, 8, 20, 12),
    "rain": _Weather(0.13, (116, 122, 132), (152, 156, 162), (184, 190, 202), 90, 216, 40, 40, 18),
    "dusk": _Weather(0.10, (72, 74, 118), (232, 150, 104), (190, 156, 150), 36, 200, 50, 110, 22),
    "night": _Weather(0.08, (14, 18, 38), (46, 44, 58), (92, 94, 120), 30, 460, 12, 100, 28),
}


@dataclass
class _Scene:
    """A camera in a street, and the pixels drawn so far.

    Positions are metres: x to the right of the middle of the road, y above the ground, z ahead of the camera along the
    road, which bends by `bend * z * z`.
    """

    rng: Random
    height: int
    width: int
    canvas: NDArray[np.uint64] = field(init=False)
    """Bytes from the lowest: red, green, blue, class; distance in eighths of a metre (2); shines; grain."""

    def __post_init__(self) -> None:
        self.canvas = np.zeros((self.height, self.width), np.uint64)
        self.name = self.share([(name, weather.share) for name, weather in _WEATHERS.items()])
        self.weather = _WEATHERS[self.name]
        self.eye = self.between(1.3, 2.7)
        self.focal = self.between(0.8, 1.45) * self.height
        self.horizon = self.between(0.36, 0.58) * self.height
        self.middle = self.width / 2 + self.between(-0.35, 0.35) * self.height
        self.bend = self.between(-1, 1) * self.between(0, 1) * 0.003
        self.half_road = self.between(3.2, 6.8)
        # mostly in a lane, sometimes on a pavement
        self.aside = self.half_road * (self.between(-0.6, 0.6) if self.chance(0.8) else self.between(-1.25, 1.25))
        self.sun = self.between(-0.9, 0.9), self.between(-0.5, 0.7)
        self.crossing = self.between(9, 34) if self.chance(0.6) else 1e6
        self.crossing_end = self.crossing + self.between(6, 11)
        self.shadows: list[tuple[float, float, float, float, float]] = []
        """On the ground: from x, z to x, z, and the radius."""
        self.blocks: list[tuple[float, float, float, float, float]] = []
        """Shadows of buildings: x, and how far across; from z to z, and how far ahead they lean."""
        self.things: list[tuple[float, Callable[[], None]]] = []
        """Distances, and what draws them."""

    # Only random() keeps its stream from one Python to the next; choice() and the others need not.

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def share(self, items: Sequence[tuple[T, float]]) -> T:
        """Picks by shares, which add up to 1."""
        left = self.rng.random()
        for item, part in items:
            left -= part
            if left < 0:
                return item
        return items[-1][0]

    def any_colour(self, grey: float = 0.5) -> Colour:
        """Any colour that there is, a little changed."""
        change = self.between(0.85, 1.12)
        return _times(self.pick(_GREYS) if self.chance(grey) else self.pick(_COLOURS), change)

    def project(self, x: float, y: float, z: float) -> Point:
        """Where a place is in the picture, in pixels."""
        return (
            self.middle + self.focal * ((x - self.aside) / z + self.bend * z),
            self.horizon + self.focal * (self.eye - y) / z,
        )

    def add(self, z: float, draw: Callable[[], None]) -> None:
        """Puts down something to draw when all that is farther is drawn."""
        if z > 2:
            self.things.append((z, draw))

    # Shapes. A pixel belongs to a shape if its middle does.

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
        # of a convex polygon, the edges that go down bound one side, those that go up the other
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
        canvas, pixel = self.canvas, np.uint64(value)
        for row, one, other in zip(range(first, last), *chains, strict=True):
            low, high = (one, other) if one < other else (other, one)
            if high > 0.5:
                canvas[row, ceil(low - 0.5) if low > 0.5 else 0 : ceil(high - 0.5)] = pixel

    def ellipse(self, x: float, y: float, rx: float, ry: float, value: int) -> None:
        """Fills an ellipse around a point."""
        for row in range(max(ceil(y - ry - 0.5), 0), min(ceil(y + ry - 0.5), self.height)):
            part = (row + 0.5 - y) / ry
            half = rx * sqrt(max(1 - part * part, 0))
            stop = ceil(x + half - 0.5)
            if stop > 0:
                self.canvas[row, max(ceil(x - half - 0.5), 0) : stop] = value

    def leaves(self, x: float, y: float, rx: float, ry: float, values: Sequence[int], seed: int) -> None:
        """Fills a ragged ellipse in light and dark spots; `values`: light, middle, dark."""
        left, top = max(ceil(x - rx * 1.2), 0), max(ceil(y - ry * 1.2), 0)
        part = self.canvas[top : max(ceil(y + ry * 1.2), 0), left : max(ceil(x + rx * 1.2), 0)]
        if not part.size:
            return
        across = (np.arange(left, left + part.shape[1]) + (0.5 - x)) / rx
        down = (np.arange(top, top + part.shape[0]) + (0.5 - y)) / ry
        coarse, fine = (
            _TILE[down_cell[:, None], across_cell]
            for down_cell, across_cell in (
                ((cells * down + (99 + seed)).astype(np.int32) & 127, (cells * across + 99).astype(np.int32) & 127)
                for cells in (14, 29)
            )
        )
        inside = (across * across)[None] + (down * down)[:, None] < 0.72 + coarse * (0.5 / 256)
        light = fine * (1 / 256) - down[:, None] * 0.6 - across * (-0.35 if self.sun[0] < 0 else 0.35)
        spots = np.array(values, np.uint64)[(light < 0.72).astype(np.intp) + (light < 0.3)]
        np.copyto(part, spots, where=inside)


def _times(colour: Colour, factor: float) -> Colour:
    """A lighter or darker colour."""
    red, green, blue = int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)
    return red if red < 255 else 255, green if green < 255 else 255, blue if blue < 255 else 255


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    """A colour between two; `share`: of the other."""
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _value(what: int, colour: Colour, z: float = 0, grain: int = 8, shines: bool = False) -> int:
    """A pixel: see `_Scene.canvas`."""
    red, green, blue = colour
    distance = min(int(z * 8), 65535)
    return red | green << 8 | blue << 16 | what << 24 | distance << 32 | shines << 48 | grain << 56


def _smooth(rows: int, columns: int, down: float, across: float, seed: int) -> NDArray[np.float64]:
    """Clouds from 0 to 255: the tile, enlarged so that `down` by `across` of its cells fill the shape."""

    def places(n: int, cells: float) -> tuple[NDArray[np.intp], NDArray[Any]]:
        at = (np.arange(n) + 0.5) * (cells / n)
        whole = at.astype(np.intp)
        return whole, at - whole

    y, part_y = places(rows, down)
    x, part_x = places(columns, across)
    tile = _TILE[(np.arange(int(down) + 2) + seed) % 128].astype(np.float64)
    lines = tile[y] + (tile[y + 1] - tile[y]) * part_y[:, None]
    lines = lines[:, (np.arange(int(across) + 2) + seed // 128) % 128]
    start, stop = lines[:, x], lines[:, x + 1]
    clouds: NDArray[np.float64] = start + (stop - start) * part_x
    return clouds


def _draw_sky(scene: _Scene) -> None:
    """Fills the picture down to the horizon and a row beyond."""
    weather, rows = scene.weather, min(int(scene.horizon) + 2, scene.height)
    seed = int(scene.between(0, 16384))
    wide = 5 * scene.width / scene.height
    clouds = _smooth(rows, scene.width, 7, wide, seed) + _smooth(rows, scene.width, 16, wide * 3, seed // 3) * 0.5
    cover = scene.between(0.5, 0.85) * 384
    white = ((clouds - 384 + cover).clip(0, 128) * (weather.clouds / 128)).astype(np.int32)
    down = ((np.arange(rows) + 0.5) / scene.horizon)[:, None]
    pixels = np.full((rows, scene.width), SKY << 24 | 1 << 48 | 2 << 56, np.uint64)
    change = scene.between(0.9, 1.1)
    top, bottom = _times(weather.top, change), _times(weather.bottom, change)
    for shift, above, below in zip((0, 8, 16), top, bottom, strict=True):
        channel = (above + (below - above) * down * down).astype(np.int32) + white
        pixels |= channel.clip(0, 255).astype(np.uint64) << np.uint64(shift)
    scene.canvas[:rows] = pixels


class _Street(NamedTuple):
    """What lies to one side of the road: distances from its middle."""

    pavement: float
    """Where it ends, and the green begins."""
    wall: float
    """Where the green ends."""
    built: float
    """Share of the building plots that are not empty."""


def _street(scene: _Scene) -> _Street:
    """Lays out one side."""
    pavement = scene.half_road + scene.between(1.8, 4.5)
    green = scene.between(1, 4) if scene.chance(0.4) else 0
    return _Street(pavement, pavement + green, scene.share([(0.95, 0.78), (0.5, 0.1), (0.08, 0.12)]))


def _draw_ground(scene: _Scene, sides: tuple[_Street, _Street]) -> None:
    """Fills the picture below the horizon: road, markings, pavements, green, and the shadows on them."""
    first = max(ceil(scene.horizon + 0.5), 0)
    z = scene.focal * scene.eye / (np.arange(first, scene.height) + 0.5 - scene.horizon)
    columns = np.arange(scene.width) + (0.5 - scene.middle)
    x = columns * (z / scene.focal)[:, None] + (scene.aside - scene.bend * z * z)[:, None]
    asphalt = _times(scene.pick(_GREYS[:6]), scene.between(0.8, 1.1))
    if scene.chance(0.1):
        asphalt = (134, 96, 80)  # paved in brick
    stone = scene.any_colour(0.8)
    grass = scene.pick(_GRASS)
    paint = _WHITE if scene.chance(0.85) else (222, 186, 70)
    patch, yard = _times(asphalt, scene.between(0.65, 1.3)), scene.chance(0.5)
    paints = [
        (ROAD, asphalt, 14), (ROAD, _times(asphalt, 0.93), 14), (ROAD, _times(asphalt, 1.07), 14),
        (ROAD, paint, 10), (SIDEWALK, stone, 10), (SIDEWALK, _times(stone, 0.8), 8), (SIDEWALK, _times(stone, 1.15), 8),
        (TERRAIN, grass, 20), (TERRAIN, _times(grass, 0.84), 26), (ROAD, patch, 12), (ROAD, _times(asphalt, 0.5), 6),
        (ROAD, _mix(asphalt, scene.weather.bottom, 0.6), 4),
    ]  # fmt: skip
    tone_b, tone_c, mark, slab, joint, kerb, green, tuft, repair, lid, puddle = range(1, 12)
    left, right = sides
    half = scene.half_road
    edges = (-left.wall, -left.pavement, -half - 0.22, -half, half, half + 0.22, right.pavement, right.wall)
    zones = np.zeros(x.shape, np.uint8)
    for edge in edges:
        zones += x > edge
    # behind the building line: a park where little is built
    behind = [slab if yard and side.built > 0.9 else green for side in sides]
    kinds = np.array([behind[0], green, slab, kerb, 0, kerb, slab, green, behind[1]], np.uint8)[zones]
    # the street that crosses, with its pavements
    junction = (z > scene.crossing) & (z < scene.crossing_end)
    walks = (z > scene.crossing - 3) & (z < scene.crossing_end + 3) & ~junction
    for there, kind in ((walks, slab), (junction, 0)):
        kinds[there] = np.where(kinds[there] == 0, 0, kind)
    # patterns of places on the ground: in tenths of a metre, counted from far outside
    near = int(np.searchsorted(-z, -60.0))  # farther they would only flicker
    x, z, kinds_near, junction, walks = x[near:], z[near:], kinds[near:], junction[near:], walks[near:]
    across, ahead = (x * 10 + 100000).astype(np.int32), (z * 10).astype(np.int32)
    spots = _TILE[(ahead[:, None] // 3) & 127, (across // 3) & 127]
    road = kinds_near == 0
    tones = np.array([0, 0, 0, tone_b, 0, tone_c, 0, 0], np.uint8)
    green_tones = np.where(spots > 128, np.uint8(green), np.uint8(tuft))
    slabs = scene.pick([5, 8, 12])
    joints = (across - across // slabs * slabs == 0) | (ahead % slabs == 0)[:, None]  # `%` is much slower
    joints &= (z < 2.5 * slabs)[:, None] & (kinds_near == slab)
    np.copyto(kinds_near, tones[spots >> 5], where=road)
    np.copyto(kinds_near, green_tones, where=kinds_near == green)
    np.putmask(kinds_near, joints, joint)
    for _ in range(int(scene.between(0, 5))):
        at, far = scene.between(-half, half), scene.between(4, 25)
        wide, long = scene.between(0.3, 1.8), scene.between(0.4, 4)
        rain = scene.name == "rain"
        round_one = scene.chance(0.4) or rain
        kind = puddle if rain else lid if round_one else repair
        if kind == lid:
            wide = long = 0.35
        rows = slice(int(np.searchsorted(-z, -far - long)), int(np.searchsorted(-z, -far + long)))
        dx, dz = (x[rows] - at) / wide, ((z[rows] - far) / long)[:, None]
        spot = dx * dx + dz * dz < 1 if round_one else abs(dx) < 1
        kinds_near[rows][spot & road[rows]] = kind
    # a marking is worn where the tile says so
    open_road = ~(junction | walks)[:, None] & (spots > scene.pick([0, 0, 20, 60]))
    lanes = scene.pick([[0.0], [0.0], [-half / 2, 0.0, half / 2], []])
    dashes = (ahead % 60 < scene.pick([24, 36, 60]))[:, None]
    for lane in lanes:
        np.putmask(kinds_near, (abs(x - lane) < 0.09) & dashes & open_road, mark)
    if scene.chance(0.5):
        np.putmask(kinds_near, (abs(abs(x) - half + 0.35) < 0.07) & open_road, mark)
    stripes, stop_line = scene.chance(0.7), scene.chance(0.7)
    zebra = ((z > scene.crossing - 2.8) & (z < scene.crossing - 0.4))[:, None] & (across - across // 10 * 10 < 5) & road
    if stripes:
        np.putmask(kinds_near, zebra & (abs(x) < half - 0.3), mark)
    if stop_line:
        line = ((z > scene.crossing - 4.2) & (z < scene.crossing - 3.7))[:, None] & (x > 0) & (x < half)
        np.putmask(kinds_near, line & road, mark)

    shade = np.zeros(kinds.shape, np.bool_)
    if scene.weather.shadow != 256:
        _cast(scene, shade[near:], x, z)
    values = np.array(
        [
            _value(what, _times(colour, factor), 0, grain)
            for factor in (1, scene.weather.shadow / 256)
            for what, colour, grain in paints
        ],
        np.uint64,
    )
    distance = np.minimum(scene.focal * scene.eye * 8 / (np.arange(first, scene.height) + 0.5 - scene.horizon), 65535)
    scene.canvas[first:] = (
        values[kinds + shade * np.uint8(len(paints))] | (distance.astype(np.uint64) << np.uint64(32))[:, None]
    )


def _cast(scene: _Scene, shade: NDArray[np.bool_], x: NDArray[Any], z: NDArray[Any]) -> None:
    """Marks the shadows: all places within a radius of a line, or in a parallelogram."""
    for start, reach, z0, z1, lean in scene.blocks:
        low, high = min(z0, z0 + lean), max(z1, z1 + lean)
        rows = slice(int(np.searchsorted(-z, -high)), int(np.searchsorted(-z, -low)))
        along = (x[rows] - start) * (1 / reach)
        base = z[rows, None] - along * lean
        shade[rows] |= (along >= 0) & (along <= 1) & (base >= z0) & (base <= z1)
    for x0, z0, x1, z1, radius in scene.shadows:
        low, high = min(z0, z1) - radius, max(z0, z1) + radius
        rows = slice(int(np.searchsorted(-z, -high)), int(np.searchsorted(-z, -low)))
        if rows.start >= rows.stop:
            continue
        spans = [scene.project(at, 0, max(far, 1.5))[0] for at in (min(x0, x1) - radius, max(x0, x1) + radius)
                 for far in (low, high)]  # fmt: skip
        columns = slice(max(int(min(spans)) - 1, 0), max(int(max(spans)) + 2, 0))
        dx, dz = x1 - x0, z1 - z0
        from_x, from_z = x[rows, columns] - x0, (z[rows] - z0)[:, None]
        along = ((from_x * dx + from_z * dz) / (dx * dx + dz * dz + 1e-6)).clip(0, 1)
        off_x, off_z = from_x - along * dx, from_z - along * dz
        shade[rows, columns] |= off_x * off_x + off_z * off_z < radius * radius


class _Facade(NamedTuple):
    """The look of a building. Lengths are centimetres."""

    paints: tuple[tuple[Colour, bool], ...]
    """Colours, and whether they shine: wall, joint, window, lit window, frame, ground floor, edge."""
    bricks: bool
    pitch: tuple[int, int]
    """From window to window, across and up."""
    window: tuple[int, int]
    """Its size."""
    ground: int
    """Height of the ground floor."""
    shop: bool
    edge: int
    """Height of the band below the roof."""
    seed: int


def _facade(scene: _Scene) -> _Facade:
    """Makes up a building."""
    wall = scene.any_colour(0.45)
    glass = scene.pick([(44, 52, 62), (70, 84, 98), _mix(scene.weather.top, (60, 70, 80), 0.5)])
    pitch = int(scene.between(160, 420)), int(scene.between(260, 380))
    fill = scene.pick([(0.35, 0.5), (0.5, 0.55), (0.8, 0.5), (0.92, 0.86)])
    return _Facade(
        paints=(
            (wall, False), (_times(wall, scene.pick([0.8, 0.88, 1.12])), False), (glass, False),
            (scene.pick([(255, 220, 140), (250, 236, 190)]), True),
            (scene.pick([_WHITE, _times(wall, 0.7), _DARK]), False), (scene.any_colour(0.3), False),
            (_times(wall, scene.pick([0.6, 1.2])), False),
        ),
        bricks=scene.chance(0.45),
        pitch=pitch,
        window=(int(pitch[0] * fill[0]), int(pitch[1] * fill[1])),
        ground=int(scene.between(280, 400)),
        shop=scene.chance(0.5),
        edge=scene.pick([0, 30, 60]),
        seed=int(scene.between(0, 128)),
    )  # fmt: skip


def _draw_wall(
    scene: _Scene, start: Point, end: Point, height: float, facade: _Facade, light: float, gable: float = 0
) -> None:
    """Draws an upright wall between two places (x, z) on the ground.

    Args:
        scene: Where to.
        start: One end.
        end: The other end.
        height: In metres.
        facade: The look.
        light: Factor for the colours.
        gable: Height of the triangle on top, in metres.
    """
    ends = [(scene.project(x, 0, z)[0], 1 / z, u) for (x, z), u in ((start, 0.0), (end, 1.0))]
    (left, near0, u0), (right, near1, u1) = sorted(ends)
    first, last = max(ceil(left - 0.5), 0), min(ceil(right - 0.5), scene.width)
    if first >= last:
        return
    part = (np.arange(first, last) + (0.5 - left)) / (right - left)
    near = near0 + (near1 - near0) * part  # 1 / z is linear in the picture, and so is u / z
    dx, dz = end[0] - start[0], end[1] - start[1]
    length = sqrt(dx * dx + dz * dz) * 100
    share = (u0 * near0 + (u1 * near1 - u0 * near0) * part) / near
    along = (share * length).astype(np.int32)
    scale = scene.focal * near
    roof = height + gable * (1 - abs(2 * share - 1))
    top = max(int((scene.horizon + (scene.eye - roof) * scale).min()), 0)
    bottom = min(int((scene.horizon + scene.eye * scale).max()) + 1, scene.height)
    if top >= bottom:
        return
    rows = np.arange(top, bottom) + (0.5 - scene.horizon)
    up = ((scene.eye - rows[:, None] / scale) * 100).astype(np.int32)
    inside = (up >= 0) & (up < (roof * 100).astype(np.int32))

    joint, window, lit, frame, ground, edge = range(1, 7)
    kinds = np.zeros(up.shape, np.uint8)
    floor_up = up + (1000 * facade.pitch[1] - facade.ground)  # counted from far below, so that it is positive
    column, row = along // facade.pitch[0], floor_up // facade.pitch[1]
    in_column, in_row = along - column * facade.pitch[0], floor_up - row * facade.pitch[1]
    if facade.bricks:
        close = scale > 14  # pixels to the metre: else joints would only flicker
        course = up // 22
        joints = np.where(course & 1 == 1, (along + 25) % 50 < 4, along % 50 < 4)
        np.putmask(kinds, (joints | (up - course * 22 < 4)) & close, joint)
    hidden = (up < facade.ground) | (up >= int(height * 100) - max(facade.edge, 40))
    for kind, rim in ((frame, 10), (window, 0)):
        low, high = (facade.pitch[0] - facade.window[0]) // 2 - rim, (facade.pitch[0] + facade.window[0]) // 2 + rim
        sill, lintel = facade.pitch[1] // 4 - rim, facade.pitch[1] // 4 + facade.window[1] + rim
        glass = ((in_column >= low) & (in_column < high)) & ((in_row >= sill) & (in_row < lintel)) & ~hidden
        np.putmask(kinds, glass, kind)
    if scene.weather.lit:
        lights = _TILE[(row * 5 + facade.seed) & 127, (column * 11 + facade.seed) & 127] < scene.weather.lit
        np.putmask(kinds, glass & lights, lit)
    if facade.shop:
        np.putmask(kinds, (up < facade.ground) & (up > facade.ground - 70), ground)
        np.putmask(kinds, (up < facade.ground - 80) & (up > 40) & (along % 300 > 30), window)
    else:
        np.putmask(kinds, (up < 230) & (along % 900 > 780), ground)
    if facade.edge:
        np.putmask(kinds, up >= int(height * 100) - facade.edge, edge)
    values = [
        _value(BUILDING, colour if shines else _times(colour, light), 0, 10, shines) for colour, shines in facade.paints
    ]
    depth = np.minimum(8 / near, 65535).astype(np.uint64) << np.uint64(32)
    np.copyto(scene.canvas[top:bottom, first:last], np.array(values, np.uint64)[kinds] | depth, where=inside)


def _build(scene: _Scene, sides: tuple[_Street, _Street]) -> None:
    """Puts up the buildings of both sides, and what stands at the end of the street."""
    sun = scene.sun[0]
    sunny = scene.name in ("sun", "dusk")
    for sign, side in ((-1, sides[0]), (1, sides[1])):
        # the sun throws shadows along `sun`: to the right from the left, so that the right side is lit
        light = 0.72 if sunny and sign * sun < 0 else 1.0
        tall = scene.between(5, 20)
        before = 0.0, 0.0, 0.0  # end, setback and height of the last building
        z = scene.between(0.5, 4)
        while z < 110:
            length = scene.between(6, 18)
            gap = scene.between(1, 9) if scene.chance(0.3) else 0
            height, gable = scene.between(0.6, 1.5) * tall, scene.between(1, 4) if scene.chance(0.3) else 0
            facade, back = _facade(scene), scene.between(0, 1.5) if scene.chance(0.4) else 0
            there = scene.chance(side.built)
            begin, end = z, z + length
            z = end + gap
            if begin < scene.crossing_end + 3 and end > scene.crossing - 3:
                if begin < scene.crossing - 7:
                    end = scene.crossing - 3
                else:
                    begin = scene.crossing_end + 3
                    end = max(end, begin + 6)
                    z = max(z, end)
            if not there:
                continue
            at = sign * (side.wall + back)
            hidden = begin == before[0] and back >= before[1] and height + gable <= before[2]
            before = end, back, height

            def draw(
                at: float = at,
                begin: float = max(begin, 0.8),
                end: float = end,
                height: float = height,
                gable: float = gable,
                facade: _Facade = facade,
                light: float = light,
                sign: int = sign,
                hidden: bool = hidden,
            ) -> None:
                if not hidden:
                    _draw_wall(scene, (at, begin), (at + sign * 11, begin), height, facade, 0.86, gable)
                _draw_wall(scene, (at, begin), (at, end), height, facade, light)

            scene.add(end, draw)
            if sign * sun < 0:  # its shadow falls towards the road
                reach = min(abs(sun) * height, 30) * (1 if sunny else 0.08)
                if scene.weather.shadow < 256:
                    scene.blocks.append((at, -sign * reach, begin, end, reach * scene.sun[1]))
    if scene.chance(0.3):
        facade, z, tall = _facade(scene), scene.between(70, 110), scene.between(6, 22)
        scene.add(z, lambda: _draw_wall(scene, (-60, z), (60, z), tall, facade, 0.86))


def _draw_backdrop(scene: _Scene) -> None:
    """Draws what stands at the horizon: towers and woods."""
    base = scene.horizon + 1.5
    for _ in range(int(scene.between(3, 14))):
        x, wide = scene.between(-1.3, 1.3) * scene.height + scene.middle, scene.between(0.02, 0.12) * scene.height
        high, colour = scene.between(0.01, 0.16) * scene.between(0.3, 1) * scene.height, scene.any_colour()
        scene.box(x, base - high, x + wide, base, _value(BUILDING, colour, 180))
    for _ in range(int(scene.between(0, 12))):
        x, wide = scene.between(-1.3, 1.3) * scene.height + scene.middle, scene.between(0.02, 0.1) * scene.height
        high, seed, leaf = scene.between(0.01, 0.06) * scene.height, int(scene.between(0, 128)), scene.pick(_LEAVES)
        scene.leaves(x, base - high * 0.6, wide, high, _green(leaf, 150), seed)


def _green(leaf: Colour, z: float) -> list[int]:
    """Light, middle and dark leaves."""
    return [_value(VEGETATION, _times(leaf, factor), z, 24) for factor in (1.25, 0.95, 0.65)]


def _post(scene: _Scene, x: float, z: float, y0: float, y1: float, wide: float, value: int) -> None:
    """Draws an upright bar."""
    left, top = scene.project(x - wide / 2, y1, z)
    right, bottom = scene.project(x + wide / 2, y0, z)
    scene.box(left, top, right, bottom, value)


def _round(scene: _Scene, x: float, y: float, z: float, rx: float, ry: float, value: int) -> None:
    """Draws an ellipse."""
    scale = scene.focal / z
    scene.ellipse(*scene.project(x, y, z), rx * scale, ry * scale, value)


def _shape(scene: _Scene, points: Sequence[tuple[float, float, float]], value: int) -> None:
    """Draws a convex polygon of places x, y, z."""
    scene.polygon([scene.project(*point) for point in points], value)


def _flat(scene: _Scene, x: float, z: float, points: Sequence[Point], value: int) -> None:
    """Draws a convex polygon that faces the camera; points are relative to a place on the ground."""
    scene.polygon([scene.project(x + dx, y, z) for dx, y in points], value)


def _shadow(scene: _Scene, x: float, z: float, height: float, radius: float, start: float = 0) -> None:
    """Throws the shadow of something upright, or leaves a dark spot where there is no sun."""
    if scene.weather.shadow > 256:
        return
    reach = (1.0 if scene.name in ("sun", "dusk") else 0.1) * height
    (dx, dz), low = scene.sun, start / height
    scene.shadows.append((x + dx * reach * low, z + dz * reach * low, x + dx * reach, z + dz * reach, radius))


def _add_tree(scene: _Scene, x: float, z: float) -> None:
    """Plants a tree, or a conifer."""
    leaf, bark = scene.pick(_LEAVES), scene.pick([(84, 66, 50), (70, 62, 56), (110, 98, 86)])
    trunk, crown = scene.between(1.8, 3.2), scene.between(1.1, 2.6)
    conifer = scene.chance(0.2)
    blobs = [
        (scene.between(-0.6, 0.6) * crown, scene.between(0.2, 1.3) * crown, scene.between(0.5, 0.9) * crown,
         int(scene.between(0, 128)))
        for _ in range(4)
    ]  # fmt: skip

    def draw() -> None:
        _post(scene, x, z, 0, trunk + 0.5 * crown, 0.22, _value(VEGETATION, bark, z, 16))
        values, scale = _green(leaf, z), scene.focal / z
        if conifer:
            for step in range(6):
                low, half = trunk * 0.4 + step * crown * 0.42, crown * (0.8 - 0.11 * step)
                dark = values[2 - (step & 1)]
                _flat(scene, x, z, [(-half, low), (half, low), (0, low + crown * 0.9)], dark)
            return
        for dx, dy, radius, seed in blobs:
            at_x, at_y = scene.project(x + dx, trunk + dy, z)
            scene.leaves(at_x, at_y, radius * scale, radius * scale * 0.85, values, seed)

    scene.add(z, draw)
    _shadow(scene, x, z, trunk, 0.14)
    _shadow(scene, x, z, trunk + crown, crown * 0.9, trunk)


def _add_bush(scene: _Scene, x: float, z: float) -> None:
    """Plants a bush."""
    leaf, wide, high = scene.pick(_LEAVES), scene.between(0.5, 1.6), scene.between(0.35, 0.8)
    seed = int(scene.between(0, 128))

    def draw() -> None:
        scale = scene.focal / z
        scene.leaves(*scene.project(x, high * 0.8, z), wide * scale, high * scale, _green(leaf, z), seed)

    scene.add(z, draw)
    _shadow(scene, x, z, high, wide * 0.7)


def _add_person(scene: _Scene, x: float, z: float) -> None:
    """Lets somebody walk."""
    tall, step = scene.between(1.05, 1.95), scene.between(0.02, 0.3)
    top, legs, hair = scene.any_colour(0.4), scene.any_colour(0.6), scene.pick([*_GREYS[:2], *_COLOURS[1:4], _DARK])
    skin, wide = scene.pick(_SKIN), scene.between(0.2, 0.29)
    dress, bag, umbrella = scene.chance(0.25), scene.chance(0.35), scene.chance(0.6)
    bag_colour, cover = scene.any_colour(0.2), scene.any_colour(0.2)
    side = scene.pick([-1, 1])

    def draw() -> None:
        def flat(points: Sequence[Point], colour: Colour) -> None:
            _flat(scene, x, z, [(dx, y * tall) for dx, y in points], _value(PERSON, colour, z, 6))

        for way, shade in ((-1, 0.8), (1, 1.0)):
            foot = way * step
            flat([(-0.08 + foot, 0), (0.08 + foot, 0), (0.1 + way * 0.05, 0.5), (-0.1 + way * 0.05, 0.5)],
                 _times(legs, shade))  # fmt: skip
            flat([(foot - 0.09, 0), (foot + 0.12, 0), (foot + 0.12, 0.04), (foot - 0.09, 0.04)], _DARK)
            arm = way * wide
            flat([(arm + way * step * 0.4 - 0.05, 0.42), (arm + way * step * 0.4 + 0.05, 0.42), (arm + 0.06, 0.8),
                  (arm - 0.06, 0.8)], _times(top, 0.75))  # fmt: skip
        if dress:
            flat([(-wide * 1.1, 0.28), (wide * 1.1, 0.28), (wide * 0.7, 0.6), (-wide * 0.7, 0.6)], top)
        flat([(-wide * 0.85, 0.46), (wide * 0.85, 0.46), (wide, 0.82), (-wide, 0.82)], top)
        if bag:
            flat([(side * wide - 0.14, 0.38), (side * wide + 0.14, 0.38), (side * wide + 0.12, 0.56),
                  (side * wide - 0.12, 0.56)], bag_colour)  # fmt: skip
        _post(scene, x, z, 0.8 * tall, 0.88 * tall, 0.1, _value(PERSON, _times(skin, 0.85), z, 6))
        _round(scene, x, 0.935 * tall, z, 0.1, 0.075 * tall, _value(PERSON, hair, z, 6))
        _round(scene, x + side * 0.02, 0.915 * tall, z, 0.085, 0.055 * tall, _value(PERSON, skin, z, 6))
        if umbrella and scene.name == "rain":
            flat([(-0.65, 1.04), (0.65, 1.04), (0.4, 1.22), (0, 1.28), (-0.4, 1.22)], cover)

    scene.add(z, draw)
    _shadow(scene, x, z, tall, 0.22)


# length, width, height, bottom of the windows, and where the cabin begins and ends, as shares of the length from behind
_CARS = [
    (4.1, 1.75, 1.48, 0.90, 0.02, 0.66),
    (4.6, 1.80, 1.42, 0.88, 0.20, 0.68),
    (4.7, 1.90, 1.75, 1.05, 0.02, 0.70),
    (5.2, 2.00, 2.30, 1.15, 0.00, 0.84),
    (3.6, 1.60, 1.50, 0.90, 0.02, 0.70),
]


def _add_car(scene: _Scene, x: float, z: float, ahead: bool) -> None:
    """Parks or drives a car along the street; `ahead`: we see its back."""
    length, width, height, sill, begin, end = scene.pick(_CARS)
    paint = scene.any_colour(0.55)
    half, lit = width / 2, scene.name in ("night", "dusk", "rain")
    if not ahead:
        begin, end = 1 - end, 1 - begin

    def draw() -> None:
        def face(points: Sequence[tuple[float, float, float]], colour: Colour, shines: bool = False) -> None:
            _shape(scene, [(x + dx, y, z + dz) for dx, y, dz in points], _value(CAR, colour, z, 5, shines))

        glass = _mix((36, 42, 50), scene.weather.bottom, 0.25)
        front, back = begin * length, end * length
        slope = 0.12 * length if begin > 0.1 else 0.05 * length
        rise, inset = 0.28, half * 0.84
        near_roof, far_roof = front + slope, back - 0.1 * length
        # far end of the bonnet and the boot first: what is nearer hides what is farther
        for sign in (-1, 1):
            edge = sign * half
            shows = (scene.project(x + edge, 0, z + length)[0] - scene.project(x + edge, 0, z)[0]) * sign > 0
            if not shows:
                continue
            shade = 0.78 if sign * scene.sun[0] > 0 else 0.95
            face([(edge, rise, 0), (edge, sill, 0), (edge, sill, length), (edge, rise, length)], _times(paint, shade))
            face([(edge, rise - 0.06, 0), (edge, 0.42, 0), (edge, 0.42, length), (edge, rise - 0.06, length)],
                 _times(paint, shade * 0.8))  # fmt: skip
            for at in (0.18, 0.8):
                wheel = [(edge, 0.33 + dy, at * length + dz) for dz, dy in _OCTAGON]
                face(wheel, _DARK)
                face([(edge, 0.33 + (y - 0.33) * 0.5, at * length + (dz - at * length) * 0.5) for _, y, dz in wheel],
                     (130, 130, 134))  # fmt: skip
        face([(-half, sill, 0), (half, sill, 0), (half, sill, length), (-half, sill, length)], _times(paint, 1.12))
        for sign in (-1, 1):
            low, high = sign * half * 0.98, sign * inset
            shows = (scene.project(x + low, 0, z + length)[0] - scene.project(x + low, 0, z)[0]) * sign > 0
            if shows:
                quad = [(low, sill, front), (high, height, near_roof), (high, height, far_roof), (low, sill, back)]
                face(quad, _times(paint, 0.85))
                face(_shrunk(quad), glass)
        face([(-half * 0.98, sill, back), (half * 0.98, sill, back), (inset, height, far_roof),
              (-inset, height, far_roof)], glass)  # fmt: skip
        roof = [(-inset, height, near_roof), (inset, height, near_roof), (inset, height, far_roof)]
        face([*roof, (-inset, height, far_roof)], _times(paint, 1.15))
        screen = [(-half * 0.98, sill, front), (half * 0.98, sill, front), (inset, height, near_roof),
                  (-inset, height, near_roof)]  # fmt: skip
        face(screen, _times(paint, 0.92))
        face(_shrunk(screen), glass)
        for sign in (-1, 1):
            face([(sign * half * 0.95, 0, 0), (sign * half * 0.65, 0, 0), (sign * half * 0.65, 0.4, 0),
                  (sign * half * 0.95, 0.4, 0)], _DARK)  # fmt: skip
        face([(-half, rise, 0), (half, rise, 0), (half, sill, 0), (-half, sill, 0)], paint)
        face([(-half, rise - 0.05, 0), (half, rise - 0.05, 0), (half, 0.46, 0), (-half, 0.46, 0)], _times(paint, 0.72))
        lamp = (236, 46, 36) if ahead else (255, 250, 224)
        for sign in (-1, 1):
            face([(sign * half * 0.97, sill - 0.28, 0), (sign * half * 0.66, sill - 0.28, 0),
                  (sign * half * 0.66, sill - 0.1, 0), (sign * half * 0.97, sill - 0.1, 0)],
                 lamp if lit else _times(lamp, 0.75), lit)  # fmt: skip
        face([(-0.26, 0.5, 0), (0.26, 0.5, 0), (0.26, 0.62, 0), (-0.26, 0.62, 0)], _WHITE)

    scene.add(z, draw)
    sunny = scene.name in ("sun", "dusk")
    for share in (0.12, 0.5, 0.88) if scene.weather.shadow < 256 else ():
        reach = height * 0.8 if sunny else 0.1
        at = z + length * share
        scene.shadows.append((x, at, x + scene.sun[0] * reach, at + scene.sun[1] * reach, half * 1.12))


_OCTAGON = [(0.33, 0.14), (0.14, 0.33), (-0.14, 0.33), (-0.33, 0.14), (-0.33, -0.14), (-0.14, -0.33), (0.14, -0.33),
            (0.33, -0.14)]  # fmt: skip
"""A circle of radius 0.35."""


def _shrunk(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """A polygon's points, drawn together towards their middle: a window in a frame."""
    middle = [sum(values) / len(points) for values in zip(*points, strict=True)]
    inner = [tuple(m + (v - m) * 0.8 for v, m in zip(point, middle, strict=True)) for point in points]
    return [(x, y, z) for x, y, z in inner]


def _add_crossing_car(scene: _Scene, x: float, z: float) -> None:
    """Drives a car across the street: we see its side."""
    length, _, height, sill, begin, end = scene.pick(_CARS)
    paint, way = scene.any_colour(0.55), scene.pick([-1, 1])

    def draw() -> None:
        def flat(points: Sequence[Point], colour: Colour) -> None:
            _flat(scene, x, z, [(way * (dx - 0.5) * length, y) for dx, y in points], _value(CAR, colour, z, 5))

        glass = _mix((36, 42, 50), scene.weather.bottom, 0.25)
        pillar = (begin + end) / 2
        flat([(0.0, 0.28), (1.0, 0.28), (1.0, sill * 0.75), (0.92, sill), (0.02, sill)], paint)
        flat([(begin, sill), (end + 0.06, sill), (end - 0.1, height), (begin + 0.06, height)], paint)
        flat([(begin + 0.04, sill), (pillar - 0.02, sill), (pillar - 0.02, height - 0.1), (begin + 0.09, height - 0.1)],
             glass)  # fmt: skip
        flat([(pillar + 0.02, sill), (end + 0.02, sill), (end - 0.11, height - 0.1), (pillar + 0.02, height - 0.1)],
             glass)  # fmt: skip
        flat([(0.0, 0.26), (1.0, 0.26), (1.0, 0.42), (0.0, 0.42)], _times(paint, 0.75))
        for at in (0.2, 0.8):
            for radius, colour in ((0.34, _DARK), (0.17, (130, 130, 134))):
                middle = x + way * (at - 0.5) * length
                _round(scene, middle, 0.34, z, radius, radius, _value(CAR, colour, z, 5))

    scene.add(z, draw)
    for share in (-0.35, 0.0, 0.35) if scene.weather.shadow < 256 else ():
        scene.shadows.append((x + share * length, z + 0.8, x + share * length, z + 1.0, 1.0))


def _add_lamp(scene: _Scene, x: float, z: float) -> None:
    """Puts up a street lamp."""
    tall, metal, arm = scene.between(4.5, 7.5), scene.pick([*_GREYS[:7], (60, 76, 66)]), scene.between(0, 1.6)
    lit = scene.weather.lit > 50
    towards = -1 if x > 0 else 1

    def draw() -> None:
        value = _value(POLE, metal, z)
        _post(scene, x, z, 0, tall, 0.17, value)
        _post(scene, x, z, 0, 0.9, 0.26, value)
        end = x + towards * arm
        _post(scene, (x + end) / 2, z, tall - 0.12, tall, arm + 0.1, value)
        _post(scene, end, z, tall - 0.3, tall + 0.04, 0.6, _value(POLE, (255, 236, 180) if lit else metal, z, 4, lit))

    scene.add(z, draw)
    _shadow(scene, x, z, tall, 0.09)
    if scene.weather.shadow > 256:
        scene.shadows.append((x, z, x + towards * arm, z, 3.2))


def _add_bollard(scene: _Scene, x: float, z: float, metal: Colour) -> None:
    """Puts up a low post."""
    scene.add(z, lambda: _post(scene, x, z, 0, 0.95, 0.16, _value(POLE, metal, z)))


def _add_light(scene: _Scene, x: float, z: float) -> None:
    """Puts up a traffic light, on a post or over the road."""
    case = scene.pick([_DARK, (44, 52, 48), (196, 160, 44), (92, 94, 98)])
    tall, state, metal = scene.between(2.6, 3.4), int(scene.between(0, 3)), scene.pick(_GREYS[:7])
    over, big = scene.chance(0.35), scene.between(1.0, 1.35)

    def head(at: float, y: float) -> None:
        _post(scene, at, z, y, y + 1.05 * big, 0.42 * big, _value(LIGHT, case, z, 4))
        for place, colour in enumerate([(240, 50, 40), (250, 190, 50), (60, 220, 120)]):
            on = place == state
            _round(scene, at, y + (0.86 - 0.33 * place) * big, z, 0.13 * big, 0.13 * big,
                   _value(LIGHT, colour if on else _times(colour, 0.22), z, 2, on))  # fmt: skip

    def draw() -> None:
        value = _value(POLE, metal, z)
        _post(scene, x, z, 0, 5.6 if over else tall + 0.3, 0.17, value)
        if over:
            end = x * 0.15
            _post(scene, (x + end) / 2, z, 5.4, 5.56, abs(x - end), value)
            head(end, 4.6)
        head(x, tall)

    scene.add(z, draw)
    _shadow(scene, x, z, tall, 0.1)


def _add_sign(scene: _Scene, x: float, z: float) -> None:
    """Puts up a traffic sign, one or two on a post."""
    tall, metal = scene.between(1.9, 2.9), scene.pick(_GREYS[3:])
    plates = [
        (scene.pick(["round", "triangle", "diamond", "plate", "round", "board"]), scene.pick(_SIGNS),
         scene.between(0.34, 0.5))
        for _ in range(1 if scene.chance(0.65) else 2)
    ]  # fmt: skip

    def draw() -> None:
        _post(scene, x, z, 0, tall + 0.2, 0.11, _value(POLE, metal, z))
        y = tall
        for form, (rim, inner, symbol), radius in plates:
            for share, colour in ((1.0, rim), (0.74, inner), (0.3, symbol)):
                value, size = _value(SIGN, colour, z, 3), radius * share
                if form == "round":
                    _round(scene, x, y, z, size, size, value)
                elif form == "triangle":
                    points = [(-size, y - size * 0.8), (size, y - size * 0.8), (0, y + size)]
                    _flat(scene, x, z, points, value)
                elif form == "diamond":
                    _flat(scene, x, z, [(-size, y), (0, y + size), (size, y), (0, y - size)], value)
                else:
                    wide = size * 2 if form == "board" else size * 0.8
                    _post(scene, x, z, y - size, y + size, 2 * wide, value)
            y -= radius * 2 + 0.05

    scene.add(z, draw)
    _shadow(scene, x, z, tall, 0.2)


_SIGNS: list[tuple[Colour, Colour, Colour]] = [
    ((198, 40, 36), _WHITE, _DARK),
    ((198, 40, 36), _WHITE, (198, 40, 36)),
    ((40, 80, 168), (40, 80, 168), _WHITE),
    (_WHITE, (214, 168, 40), _DARK),
    ((198, 40, 36), (198, 40, 36), _WHITE),
    (_WHITE, (40, 110, 70), _WHITE),
    (_DARK, _WHITE, _DARK),
]
"""Rim, inside and symbol."""


def _furnish(scene: _Scene, sides: tuple[_Street, _Street]) -> None:
    """Puts everything on the road and the pavements."""
    half = scene.half_road

    def free(z: float) -> bool:
        return z < scene.crossing - 4 or z > scene.crossing_end + 3

    for sign, side in ((-1, sides[0]), (1, sides[1])):
        parked = scene.share([(0.0, 0.35), (0.4, 0.3), (0.85, 0.35)])
        z = scene.between(2, 10)
        while z < 70:
            if scene.chance(parked) and free(z) and free(z + 5):
                _add_car(scene, sign * (half - 1.1), z, sign > 0)
            z += scene.between(5.6, 7.5)
        trees, spacing = scene.share([(0.0, 0.3), (0.5, 0.35), (0.9, 0.35)]), scene.between(6, 13)
        z = scene.between(3, 12)
        while z < 90:
            grows = scene.chance(trees)
            at = (side.pavement + side.wall) / 2 if side.wall - side.pavement > 0.8 else half + 0.7
            if grows and free(z):
                _add_tree(scene, sign * at, z)
            z += spacing * scene.between(0.8, 1.2)
        if side.built < 0.9:
            for _ in range(int(scene.between(2, 14))):
                _add_tree(scene, sign * (side.wall + scene.between(1, 22)), scene.between(12, 80))
        for _ in range(int(scene.between(0, 9))):
            z = scene.between(4, 40)
            if free(z) and side.wall - side.pavement > 0.8:
                _add_bush(scene, sign * scene.between(side.pavement + 0.5, side.wall), z)
        lamps, z = scene.between(12, 24), scene.between(5, 16)
        there = scene.chance(0.8)
        while z < 90:
            if there and free(z):
                _add_lamp(scene, sign * (half + 0.45), z)
            z += lamps
        for _ in range(int(scene.between(0, 4))):
            _add_sign(scene, sign * (half + scene.between(0.35, 0.8)), scene.between(4, 12) * scene.between(1, 3))
        for _ in range(int(scene.between(0, 2.3))):
            at, z, gap = sign * (half + 0.3), scene.between(4, 20), scene.between(1.2, 2)
            metal, count = scene.pick(_GREYS), int(scene.between(3, 8))
            for step in range(count):
                _add_bollard(scene, at, z + step * gap, metal)
        for _ in range(int(scene.between(0, 8) * scene.between(0.3, 1))):
            x, z = sign * scene.between(half + 0.5, side.pavement + 0.1), scene.between(3.5, 9) * scene.between(1, 4)
            _add_person(scene, x, z)
            if scene.chance(0.3):
                _add_person(scene, x + 0.6, z + 0.2)
        if scene.chance(0.85):
            _add_light(scene, sign * (half + 0.5), (scene.crossing if sign > 0 else scene.crossing_end) + sign * -0.8)
        # traffic keeps to the right
        z = scene.between(4, 30)
        lane = sign * (half * 0.3 if parked else half * 0.5)
        while z < 90:
            if not scene.crossing - 5 < z < scene.crossing_end:
                _add_car(scene, lane + scene.between(-0.3, 0.3), z, sign > 0)
            z += scene.between(8, 45)
    if scene.chance(0.6):
        for _ in range(int(scene.between(1, 4))):
            x, far = scene.between(-14, 14), scene.between(0.25, 0.75)
            _add_crossing_car(scene, x, scene.crossing + (scene.crossing_end - scene.crossing) * far)
    for _ in range(int(scene.between(0, 5))):
        _add_person(scene, scene.between(-half, half), scene.crossing - scene.between(0.5, 2.6))
    if scene.chance(0.25):
        _add_person(scene, scene.between(-half, half), scene.between(6, 30))


def _draw(scene: _Scene) -> None:
    """Draws everything, without the weather."""
    left, right = _street(scene), _street(scene)
    _draw_sky(scene)
    _build(scene, (left, right))
    _furnish(scene, (left, right))
    _draw_ground(scene, (left, right))
    _draw_backdrop(scene)
    for _, draw in sorted(scene.things, key=operator.itemgetter(0), reverse=True):
        draw()
    scene.things.clear()  # they hold the scene: without this the pixels would wait for the garbage collector


def _develop(scene: _Scene, seed: int) -> RGBImage:
    """Makes the picture of what was drawn: light, fog, rain, blur and noise."""
    weather, shape = scene.weather, (scene.height, scene.width)
    parts = scene.canvas.astype("<u8", copy=False).view(np.uint8).reshape(*shape, 8)
    noise = np.random.PCG64(seed)
    count = -(-scene.height * scene.width // 8)

    def grey() -> NDArray[np.int16]:
        raw = noise.random_raw(count).astype("<u8", copy=False).view(np.uint8)[: scene.height * scene.width]
        return raw.reshape(shape).astype(np.int16) - 128

    distance = parts.view("<u2")[..., 2].astype(np.int32)
    grain = (grey() * parts[..., 7]) >> 7
    density = weather.fog * scene.between(0.6, 1.4)
    thick = (distance * int(density)) >> 2  # no more than what a shift by 8 leaves within 32 bits
    fog = (thick << 8) // (thick + 16384)
    expose = scene.between(0.85, 1.15)
    tints = [scene.between(0.95, 1.05) for _ in range(3)]
    contrast, lift = scene.between(0.85, 1.1), scene.between(-8, 12)
    shines = parts[..., 6] > 0
    picture = np.empty((*shape, 3), np.int16)
    for channel in range(3):
        gain = int(weather.gain[channel] * expose * tints[channel])
        plain = parts[..., channel].astype(np.int32)
        lit = ((plain + grain).clip(0, 255) * gain) >> 8
        np.copyto(lit, plain, where=shines)
        lit += ((weather.bottom[channel] - lit) * fog) >> 8
        lit = ((lit - 128) * int(contrast * 256) >> 8) + int(128 + lift)
        picture[..., channel] = lit.clip(0, 255)
    if scene.name == "rain":
        _reflect(scene, picture, parts[..., 3] == ROAD)
        _rain(scene, picture)
    for _ in range(scene.share([(0, 0.15), (1, 0.65), (2, 0.2)])):
        _blur(picture)
    strength = int(weather.noise * scene.between(0.4, 1.6))
    for channel in range(3):
        picture[..., channel] += (grey() * strength) >> 7
    return picture.clip(0, 255).astype(np.uint8)


def _reflect(scene: _Scene, picture: NDArray[np.int16], road: NDArray[np.bool_]) -> None:
    """Mirrors what stands above the horizon in the wet road."""
    first = int(scene.horizon) + 1
    mirrored = (2 * first - np.arange(first, scene.height)).clip(0)
    below = picture[first:]
    np.copyto(below, below + ((picture[mirrored] - below) * np.int16(3) >> 3), where=road[first:, :, None])


def _rain(scene: _Scene, picture: NDArray[np.int16]) -> None:
    """Adds streaks."""
    height, width = picture.shape[:2]
    slant, amount = scene.between(-0.4, 0.4), int(scene.between(60, 260))
    drops = [(scene.rng.random(), scene.rng.random(), scene.between(0.03, 0.1)) for _ in range(amount)]
    for x, y, long in drops:
        steps = np.arange(max(int(long * height), 1))
        rows = int(y * height) + steps
        columns = (x * width + slant * steps).astype(np.intp)
        there = (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = rows[there], columns[there]
        picture[rows, columns] += (220 - picture[rows, columns]) >> 2


def _blur(picture: NDArray[np.int16]) -> None:
    """Averages each pixel with its neighbours, 1 : 2 : 1, in both directions."""
    for turned in (picture, picture.swapaxes(0, 1)):
        middle = turned[1:-1] * 2
        middle += turned[:-2]
        middle += turned[2:]
        turned[1:-1] = (middle + 2) >> 2


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
    drawn = _Scene(Random(seed), height, width)  # noqa: S311 - nothing secret
    _draw(drawn)
    mask = (drawn.canvas >> np.uint64(24)).astype(np.uint8)
    return Image.fromarray(_develop(drawn, seed)), mask


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
        size: tuple[int, int] = (256, 512),
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
