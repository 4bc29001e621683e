"""The sky, the ground and the horizon of a scene of ToyStreets."""

from __future__ import annotations

from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isanet.toystreets.draw import (
    BUILDING,
    GRAYS,
    LEAVES,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    TILE,
    WHITE,
    Color,
    Scene,
    foliage,
    mix,
    pixel,
    times,
)

_GRASS: list[Color] = [(92, 124, 58), (110, 130, 66), (140, 132, 84), (120, 104, 76), (78, 108, 60)]


def _smooth(rows: int, columns: int, down: float, across: float, seed: int) -> NDArray[np.float64]:
    """Clouds of 0 to 255, (rows, columns): the tile, enlarged so that `down` x `across` of its cells fill them."""

    def cells_and_offsets(n: int, cells: float) -> tuple[NDArray[np.intp], NDArray[Any]]:
        position = (np.arange(n) + 0.5) * (cells / n)
        cell = position.astype(np.intp)
        return cell, position - cell

    y, offset_y = cells_and_offsets(rows, down)
    x, offset_x = cells_and_offsets(columns, across)
    tile = TILE[(np.arange(int(down) + 2) + seed) % 128].astype(np.float64)
    lines = tile[y] + (tile[y + 1] - tile[y]) * offset_y[:, None]
    lines = lines[:, (np.arange(int(across) + 2) + seed // 128) % 128]
    start, stop = lines[:, x], lines[:, x + 1]
    clouds: NDArray[np.float64] = start + (stop - start) * offset_x
    return clouds


def draw_sky(scene: Scene) -> None:
    """Fills the image down to the horizon and a row beyond."""
    weather, rows = scene.weather, min(int(scene.horizon) + 2, scene.height)
    seed = int(scene.between(0, 16384))
    wide = 5 * scene.width / scene.height
    clouds = _smooth(rows, scene.width, 7, wide, seed) + _smooth(rows, scene.width, 16, wide * 3, seed // 3) * 0.5
    cover = scene.between(0.5, 0.85) * 384
    white = ((clouds - 384 + cover).clip(0, 128) * (weather.clouds / 128)).astype(np.int32)
    down = ((np.arange(rows) + 0.5) / scene.horizon)[:, None]
    pixels = np.full((rows, scene.width), SKY << 24 | 1 << 48 | 2 << 56, np.uint64)
    change = scene.between(0.9, 1.1)
    top, bottom = times(weather.top, change), times(weather.bottom, change)
    for shift, above, below in zip((0, 8, 16), top, bottom, strict=True):
        channel = (above + (below - above) * down * down).astype(np.int32) + white
        pixels |= channel.clip(0, 255).astype(np.uint64) << np.uint64(shift)
    scene.canvas[:rows] = pixels


class Side(NamedTuple):
    """One side of the road; distances are from its middle."""

    sidewalk: float  # where the sidewalk ends and the green begins
    wall: float  # where the green ends and the buildings begin
    built: float  # share of the building plots that are not empty


def lay_out(scene: Scene) -> Side:
    """Chooses the layout of one side of the road."""
    sidewalk = scene.half_road + scene.between(1.8, 4.5)
    green = scene.between(1, 4) if scene.chance(0.4) else 0
    return Side(sidewalk, sidewalk + green, scene.pick_weighted([(0.95, 0.78), (0.5, 0.1), (0.08, 0.12)]))


# Kinds of ground, positions in the list of `_ground_paints`
_ASPHALT, _DARK_ASPHALT, _LIGHT_ASPHALT, _MARKING, _SLAB, _JOINT, _CURB, _GRASS_KIND, _TUFT, _REPAIR, _LID, _PUDDLE = (
    range(12)
)


def draw_ground(scene: Scene, sides: tuple[Side, Side]) -> None:
    """Fills the image below the horizon: road, markings, sidewalks, green, and the shadows on them."""
    first = max(ceil(scene.horizon + 0.5), 0)
    z = scene.focal * scene.eye / (np.arange(first, scene.height) + 0.5 - scene.horizon)
    columns = np.arange(scene.width) + (0.5 - scene.middle)
    x = columns * (z / scene.focal)[:, None] + (scene.aside - scene.bend * z * z)[:, None]
    paints = _ground_paints(scene)
    yard = scene.chance(0.5)
    junction = (z > scene.crossing) & (z < scene.crossing_end)
    crosswalks = (z > scene.crossing - 3) & (z < scene.crossing_end + 3) & ~junction
    kinds = _ground_kinds(scene.half_road, sides, x, yard, junction, crosswalks)
    far = int(np.searchsorted(-z, -60.0))  # beyond, details would only flicker
    near = _Near(x[far:], z[far:], kinds[far:])
    _draw_patches(scene, near)
    _draw_markings(scene, near, (junction | crosswalks)[far:])
    shade = np.zeros(kinds.shape, np.bool_)
    if scene.weather.shadow != 256:
        _cast(scene, shade[far:], near.x, near.z)
    values = [
        pixel(what, times(color, factor), 0, grain)
        for factor in (1, scene.weather.shadow / 256)
        for what, color, grain in paints
    ]
    distance = np.minimum(scene.focal * scene.eye * 8 / (np.arange(first, scene.height) + 0.5 - scene.horizon), 65535)
    distance = distance.astype(np.uint64)[:, None] << np.uint64(32)
    scene.canvas[first:] = np.array(values, np.uint64)[kinds + shade * np.uint8(len(paints))] | distance


def _ground_paints(scene: Scene) -> list[tuple[int, Color, int]]:
    """Class, color and grain of each kind of ground."""
    asphalt = times(scene.pick(GRAYS[:6]), scene.between(0.8, 1.1))
    if scene.chance(0.1):
        asphalt = (134, 96, 80)  # paved in brick
    stone = scene.any_color(0.8)
    grass = scene.pick(_GRASS)
    paint = WHITE if scene.chance(0.85) else (222, 186, 70)
    repair = times(asphalt, scene.between(0.65, 1.3))
    return [
        (ROAD, asphalt, 14), (ROAD, times(asphalt, 0.93), 14), (ROAD, times(asphalt, 1.07), 14),
        (ROAD, paint, 10), (SIDEWALK, stone, 10), (SIDEWALK, times(stone, 0.8), 8), (SIDEWALK, times(stone, 1.15), 8),
        (TERRAIN, grass, 20), (TERRAIN, times(grass, 0.84), 26), (ROAD, repair, 12), (ROAD, times(asphalt, 0.5), 6),
        (ROAD, mix(asphalt, scene.weather.bottom, 0.6), 4),
    ]  # fmt: skip


def _ground_kinds(
    half: float, sides: tuple[Side, Side], x: NDArray[Any], yard: bool, junction: NDArray[Any], crosswalks: NDArray[Any]
) -> NDArray[np.uint8]:
    """The kind of ground at each pixel, by the distance from the middle of the road, without details."""
    left, right = sides
    zones = np.zeros(x.shape, np.uint8)
    for edge in (-left.wall, -left.sidewalk, -half - 0.22, -half, half, half + 0.22, right.sidewalk, right.wall):
        zones += x > edge
    # behind the building line: a park where little is built
    behind = [_SLAB if yard and side.built > 0.9 else _GRASS_KIND for side in sides]
    across = [behind[0], _GRASS_KIND, _SLAB, _CURB, _ASPHALT, _CURB, _SLAB, _GRASS_KIND, behind[1]]
    kinds = np.array(across, np.uint8)[zones]
    for rows, kind in ((crosswalks, _SLAB), (junction, _ASPHALT)):  # the street that crosses, with its sidewalks
        kinds[rows] = np.where(kinds[rows] == _ASPHALT, _ASPHALT, kind)
    return kinds


class _Near:
    """The ground near the camera, where details are drawn."""

    def __init__(self, x: NDArray[Any], z: NDArray[Any], kinds: NDArray[np.uint8]) -> None:
        self.x, self.z = x, z  # (rows, columns) meters right of the middle of the road; (rows,) meters ahead
        self.kinds = kinds  # (rows, columns), changed by drawing
        # In tenths of a meter, `across` from far to the left
        self.across, self.ahead = (x * 10 + 100000).astype(np.int32), (z * 10).astype(np.int32)
        self.spots = TILE[(self.ahead[:, None] // 3) & 127, (self.across // 3) & 127]  # fixed noise
        self.road = kinds == _ASPHALT  # before any detail


def _draw_patches(scene: Scene, near: _Near) -> None:
    """Draws the tones of asphalt and grass, joints between slabs, repairs, lids and puddles."""
    x, z, kinds = near.x, near.z, near.kinds
    half = scene.half_road
    tones = np.array([0, 0, 0, _DARK_ASPHALT, 0, _LIGHT_ASPHALT, 0, 0], np.uint8)
    grass_tones = np.where(near.spots > 128, np.uint8(_GRASS_KIND), np.uint8(_TUFT))
    slab = scene.pick([5, 8, 12])
    joints = (near.across - near.across // slab * slab == 0) | (near.ahead % slab == 0)[:, None]  # `%` is much slower
    joints &= (z < 2.5 * slab)[:, None] & (kinds == _SLAB)
    np.copyto(kinds, tones[near.spots >> 5], where=near.road)
    np.copyto(kinds, grass_tones, where=kinds == _GRASS_KIND)
    np.putmask(kinds, joints, _JOINT)
    for _ in range(int(scene.between(0, 5))):
        at, far = scene.between(-half, half), scene.between(4, 25)
        wide, long = scene.between(0.3, 1.8), scene.between(0.4, 4)
        is_round = scene.chance(0.4) or scene.rainy
        kind = _PUDDLE if scene.rainy else _LID if is_round else _REPAIR
        if kind == _LID:
            wide = long = 0.35
        rows = slice(int(np.searchsorted(-z, -far - long)), int(np.searchsorted(-z, -far + long)))
        dx, dz = (x[rows] - at) / wide, ((z[rows] - far) / long)[:, None]
        inside = dx * dx + dz * dz < 1 if is_round else abs(dx) < 1
        kinds[rows][inside & near.road[rows]] = kind


def _draw_markings(scene: Scene, near: _Near, crossing: NDArray[np.bool_]) -> None:
    """Draws the markings of the road; `crossing`: rows of the junction and its crosswalks."""
    x, z, kinds, half = near.x, near.z, near.kinds, scene.half_road
    open_road = ~crossing[:, None] & (near.spots > scene.pick([0, 0, 20, 60]))  # markings are worn by the noise
    lanes = scene.pick([[0.0], [0.0], [-half / 2, 0.0, half / 2], []])
    dashes = (near.ahead % 60 < scene.pick([24, 36, 60]))[:, None]
    for lane in lanes:
        np.putmask(kinds, (abs(x - lane) < 0.09) & dashes & open_road, _MARKING)
    if scene.chance(0.5):
        np.putmask(kinds, (abs(abs(x) - half + 0.35) < 0.07) & open_road, _MARKING)
    zebra, stop_line = scene.chance(0.7), scene.chance(0.7)
    if zebra:
        rows = ((z > scene.crossing - 2.8) & (z < scene.crossing - 0.4))[:, None]
        stripes = near.across - near.across // 10 * 10 < 5
        np.putmask(kinds, rows & stripes & near.road & (abs(x) < half - 0.3), _MARKING)
    if stop_line:
        rows = ((z > scene.crossing - 4.2) & (z < scene.crossing - 3.7))[:, None]
        np.putmask(kinds, rows & (x > 0) & (x < half) & near.road, _MARKING)


def _cast(scene: Scene, shade: NDArray[np.bool_], x: NDArray[Any], z: NDArray[Any]) -> None:
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


def draw_backdrop(scene: Scene) -> None:
    """Draws towers and woods at the horizon."""
    base = scene.horizon + 1.5
    for _ in range(int(scene.between(3, 14))):
        x, wide = scene.between(-1.3, 1.3) * scene.height + scene.middle, scene.between(0.02, 0.12) * scene.height
        high, color = scene.between(0.01, 0.16) * scene.between(0.3, 1) * scene.height, scene.any_color()
        scene.box(x, base - high, x + wide, base, pixel(BUILDING, color, 180))
    for _ in range(int(scene.between(0, 12))):
        x, wide = scene.between(-1.3, 1.3) * scene.height + scene.middle, scene.between(0.02, 0.1) * scene.height
        high, seed, leaf = scene.between(0.01, 0.06) * scene.height, int(scene.between(0, 128)), scene.pick(LEAVES)
        scene.leaves(x, base - high * 0.6, wide, high, foliage(leaf, 150), seed)
