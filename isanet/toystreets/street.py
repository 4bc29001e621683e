"""What stands still in ToyStreets: sky, ground, buildings, and what is at the horizon."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isanet.toystreets.draw import (
    BUILDING,
    DARK,
    GRAYS,
    LEAVES,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    TILE,
    WHITE,
    Color,
    Point,
    Scene,
    foliage,
    mix,
    pixel,
    times,
)

_GRASS: list[Color] = [(92, 124, 58), (110, 130, 66), (140, 132, 84), (120, 104, 76), (78, 108, 60)]


def _smooth(rows: int, columns: int, down: float, across: float, seed: int) -> NDArray[np.float64]:
    """Clouds from 0 to 255: the tile, enlarged so that `down` by `across` of its cells fill the shape."""

    def places(n: int, cells: float) -> tuple[NDArray[np.intp], NDArray[Any]]:
        at = (np.arange(n) + 0.5) * (cells / n)
        whole = at.astype(np.intp)
        return whole, at - whole

    y, part_y = places(rows, down)
    x, part_x = places(columns, across)
    tile = TILE[(np.arange(int(down) + 2) + seed) % 128].astype(np.float64)
    lines = tile[y] + (tile[y + 1] - tile[y]) * part_y[:, None]
    lines = lines[:, (np.arange(int(across) + 2) + seed // 128) % 128]
    start, stop = lines[:, x], lines[:, x + 1]
    clouds: NDArray[np.float64] = start + (stop - start) * part_x
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
    """What lies to one side of the road: distances from its middle."""

    pavement: float
    """Where it ends, and the green begins."""
    wall: float
    """Where the green ends."""
    built: float
    """Share of the building plots that are not empty."""


def lay_out(scene: Scene) -> Side:
    """Lays out one side."""
    pavement = scene.half_road + scene.between(1.8, 4.5)
    green = scene.between(1, 4) if scene.chance(0.4) else 0
    return Side(pavement, pavement + green, scene.share([(0.95, 0.78), (0.5, 0.1), (0.08, 0.12)]))


def draw_ground(scene: Scene, sides: tuple[Side, Side]) -> None:
    """Fills the image below the horizon: road, markings, pavements, green, and the shadows on them."""
    first = max(ceil(scene.horizon + 0.5), 0)
    z = scene.focal * scene.eye / (np.arange(first, scene.height) + 0.5 - scene.horizon)
    columns = np.arange(scene.width) + (0.5 - scene.middle)
    x = columns * (z / scene.focal)[:, None] + (scene.aside - scene.bend * z * z)[:, None]
    asphalt = times(scene.pick(GRAYS[:6]), scene.between(0.8, 1.1))
    if scene.chance(0.1):
        asphalt = (134, 96, 80)  # paved in brick
    stone = scene.any_color(0.8)
    grass = scene.pick(_GRASS)
    paint = WHITE if scene.chance(0.85) else (222, 186, 70)
    patch, yard = times(asphalt, scene.between(0.65, 1.3)), scene.chance(0.5)
    paints = [
        (ROAD, asphalt, 14), (ROAD, times(asphalt, 0.93), 14), (ROAD, times(asphalt, 1.07), 14),
        (ROAD, paint, 10), (SIDEWALK, stone, 10), (SIDEWALK, times(stone, 0.8), 8), (SIDEWALK, times(stone, 1.15), 8),
        (TERRAIN, grass, 20), (TERRAIN, times(grass, 0.84), 26), (ROAD, patch, 12), (ROAD, times(asphalt, 0.5), 6),
        (ROAD, mix(asphalt, scene.weather.bottom, 0.6), 4),
    ]  # fmt: skip
    tone_b, tone_c, mark, slab, joint, curb, green, tuft, repair, lid, puddle = range(1, 12)
    left, right = sides
    half = scene.half_road
    edges = (-left.wall, -left.pavement, -half - 0.22, -half, half, half + 0.22, right.pavement, right.wall)
    zones = np.zeros(x.shape, np.uint8)
    for edge in edges:
        zones += x > edge
    # behind the building line: a park where little is built
    behind = [slab if yard and side.built > 0.9 else green for side in sides]
    kinds = np.array([behind[0], green, slab, curb, 0, curb, slab, green, behind[1]], np.uint8)[zones]
    # the street that crosses, with its pavements
    junction = (z > scene.crossing) & (z < scene.crossing_end)
    walks = (z > scene.crossing - 3) & (z < scene.crossing_end + 3) & ~junction
    for there, kind in ((walks, slab), (junction, 0)):
        kinds[there] = np.where(kinds[there] == 0, 0, kind)
    # patterns of places on the ground: in tenths of a meter, counted from far outside
    near = int(np.searchsorted(-z, -60.0))  # farther they would only flicker
    x, z, kinds_near, junction, walks = x[near:], z[near:], kinds[near:], junction[near:], walks[near:]
    across, ahead = (x * 10 + 100000).astype(np.int32), (z * 10).astype(np.int32)
    spots = TILE[(ahead[:, None] // 3) & 127, (across // 3) & 127]
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
            pixel(what, times(color, factor), 0, grain)
            for factor in (1, scene.weather.shadow / 256)
            for what, color, grain in paints
        ],
        np.uint64,
    )
    distance = np.minimum(scene.focal * scene.eye * 8 / (np.arange(first, scene.height) + 0.5 - scene.horizon), 65535)
    scene.canvas[first:] = (
        values[kinds + shade * np.uint8(len(paints))] | (distance.astype(np.uint64) << np.uint64(32))[:, None]
    )


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


class _Facade(NamedTuple):
    """The look of a building. Lengths are centimeters."""

    paints: tuple[tuple[Color, bool], ...]
    """Colors, and whether they shine: wall, joint, window, lit window, frame, ground floor, edge."""
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


def _facade(scene: Scene) -> _Facade:
    """Makes up a building."""
    wall = scene.any_color(0.45)
    glass = scene.pick([(44, 52, 62), (70, 84, 98), mix(scene.weather.top, (60, 70, 80), 0.5)])
    pitch = int(scene.between(160, 420)), int(scene.between(260, 380))
    fill = scene.pick([(0.35, 0.5), (0.5, 0.55), (0.8, 0.5), (0.92, 0.86)])
    return _Facade(
        paints=(
            (wall, False), (times(wall, scene.pick([0.8, 0.88, 1.12])), False), (glass, False),
            (scene.pick([(255, 220, 140), (250, 236, 190)]), True),
            (scene.pick([WHITE, times(wall, 0.7), DARK]), False), (scene.any_color(0.3), False),
            (times(wall, scene.pick([0.6, 1.2])), False),
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
    scene: Scene, start: Point, end: Point, height: float, facade: _Facade, light: float, gable: float = 0
) -> None:
    """Draws an upright wall between two places (x, z) on the ground.

    Args:
        scene: Where to.
        start: One end.
        end: The other end.
        height: In meters.
        facade: The look.
        light: Factor for the colors.
        gable: Height of the triangle on top, in meters.
    """
    ends = [(scene.project(x, 0, z)[0], 1 / z, u) for (x, z), u in ((start, 0.0), (end, 1.0))]
    (left, near0, u0), (right, near1, u1) = sorted(ends)
    first, last = max(ceil(left - 0.5), 0), min(ceil(right - 0.5), scene.width)
    if first >= last:
        return
    part = (np.arange(first, last) + (0.5 - left)) / (right - left)
    near = near0 + (near1 - near0) * part  # 1 / z is linear in the image, and so is u / z
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
        close = scale > 14  # pixels to the meter: else joints would only flicker
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
        lights = TILE[(row * 5 + facade.seed) & 127, (column * 11 + facade.seed) & 127] < scene.weather.lit
        np.putmask(kinds, glass & lights, lit)
    if facade.shop:
        np.putmask(kinds, (up < facade.ground) & (up > facade.ground - 70), ground)
        np.putmask(kinds, (up < facade.ground - 80) & (up > 40) & (along % 300 > 30), window)
    else:
        np.putmask(kinds, (up < 230) & (along % 900 > 780), ground)
    if facade.edge:
        np.putmask(kinds, up >= int(height * 100) - facade.edge, edge)
    values = [
        pixel(BUILDING, color if shines else times(color, light), 0, 10, shines) for color, shines in facade.paints
    ]
    depth = np.minimum(8 / near, 65535).astype(np.uint64) << np.uint64(32)
    np.copyto(scene.canvas[top:bottom, first:last], np.array(values, np.uint64)[kinds] | depth, where=inside)


def build(scene: Scene, sides: tuple[Side, Side]) -> None:
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


def draw_backdrop(scene: Scene) -> None:
    """Draws what stands at the horizon: towers and woods."""
    base = scene.horizon + 1.5
    for _ in range(int(scene.between(3, 14))):
        x, wide = scene.between(-1.3, 1.3) * scene.height + scene.middle, scene.between(0.02, 0.12) * scene.height
        high, color = scene.between(0.01, 0.16) * scene.between(0.3, 1) * scene.height, scene.any_color()
        scene.box(x, base - high, x + wide, base, pixel(BUILDING, color, 180))
    for _ in range(int(scene.between(0, 12))):
        x, wide = scene.between(-1.3, 1.3) * scene.height + scene.middle, scene.between(0.02, 0.1) * scene.height
        high, seed, leaf = scene.between(0.01, 0.06) * scene.height, int(scene.between(0, 128)), scene.pick(LEAVES)
        scene.leaves(x, base - high * 0.6, wide, high, foliage(leaf, 150), seed)
