"""The buildings along the street of a scene of ToyStreets."""

from __future__ import annotations

from functools import partial
from math import ceil, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isanet.toystreets.draw import BUILDING, DARK, TILE, WHITE, Color, Point, Scene, mix, pixel, times
from isanet.toystreets.street import Side


class _Facade(NamedTuple):
    """The look of a building. Lengths are centimeters."""

    paints: tuple[tuple[Color, bool], ...]  # and whether they shine, see `_JOINT`
    bricks: bool
    pitch: tuple[int, int]  # from window to window, across and up
    window: tuple[int, int]  # its size
    ground: int  # height of the ground floor
    shop: bool
    edge: int  # height of the band below the roof
    seed: int


_JOINT, _WINDOW, _LIT, _FRAME, _GROUND, _EDGE = range(1, 7)
"""Positions in `_Facade.paints`, after the wall's own."""


def _facade(scene: Scene) -> _Facade:
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
    """Draws an upright wall, perhaps with a gable on top, between two places (x, z) on the ground."""
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

    paints = _wall_paints(scene, facade, along, up, height, scale)
    values = [
        pixel(BUILDING, color if shines else times(color, light), 0, 10, shines) for color, shines in facade.paints
    ]
    depth = np.minimum(8 / near, 65535).astype(np.uint64) << np.uint64(32)
    np.copyto(scene.canvas[top:bottom, first:last], np.array(values, np.uint64)[paints] | depth, where=inside)


def _wall_paints(
    scene: Scene, facade: _Facade, along: NDArray[Any], up: NDArray[Any], height: float, scale: NDArray[Any]
) -> NDArray[np.uint8]:
    """The position in `facade.paints` of each pixel that is `along` (columns,) and `up` (rows, columns) centimeters."""
    paints = np.zeros(up.shape, np.uint8)
    floor_up = up + (1000 * facade.pitch[1] - facade.ground)  # counted from far below, so that it is positive
    column, row = along // facade.pitch[0], floor_up // facade.pitch[1]
    in_column, in_row = along - column * facade.pitch[0], floor_up - row * facade.pitch[1]
    if facade.bricks:
        close = scale > 14  # else joints would only flicker
        course = up // 22
        joints = np.where(course & 1 == 1, (along + 25) % 50 < 4, along % 50 < 4)
        np.putmask(paints, (joints | (up - course * 22 < 4)) & close, _JOINT)
    hidden = (up < facade.ground) | (up >= int(height * 100) - max(facade.edge, 40))
    for paint, rim in ((_FRAME, 10), (_WINDOW, 0)):
        low, high = (facade.pitch[0] - facade.window[0]) // 2 - rim, (facade.pitch[0] + facade.window[0]) // 2 + rim
        sill, lintel = facade.pitch[1] // 4 - rim, facade.pitch[1] // 4 + facade.window[1] + rim
        glass = ((in_column >= low) & (in_column < high)) & ((in_row >= sill) & (in_row < lintel)) & ~hidden
        np.putmask(paints, glass, paint)
    if scene.weather.lit:
        lights = TILE[(row * 5 + facade.seed) & 127, (column * 11 + facade.seed) & 127] < scene.weather.lit
        np.putmask(paints, glass & lights, _LIT)
    if facade.shop:
        np.putmask(paints, (up < facade.ground) & (up > facade.ground - 70), _GROUND)
        np.putmask(paints, (up < facade.ground - 80) & (up > 40) & (along % 300 > 30), _WINDOW)
    else:
        np.putmask(paints, (up < 230) & (along % 900 > 780), _GROUND)
    if facade.edge:
        np.putmask(paints, up >= int(height * 100) - facade.edge, _EDGE)
    return paints


def add_buildings(scene: Scene, sides: tuple[Side, Side]) -> None:
    """Adds the buildings of both sides, and perhaps one at the end of the street."""
    sun = scene.sun[0]
    for sign, side in ((-1, sides[0]), (1, sides[1])):
        # the sun throws shadows along `sun`: to the right from the left, so that the right side is lit
        light = 0.72 if scene.sunny and sign * sun < 0 else 1.0
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
            corner = at, max(begin, 0.8)
            if not hidden:
                across = at + sign * 11, corner[1]
                scene.add(end, partial(_draw_wall, scene, corner, across, height, facade, 0.86, gable))
            scene.add(end, partial(_draw_wall, scene, corner, (at, end), height, facade, light))
            if sign * sun < 0:  # its shadow falls towards the road
                reach = min(abs(sun) * height, 30) * (1 if scene.sunny else 0.08)
                if scene.weather.shadow < 256:
                    scene.blocks.append((at, -sign * reach, begin, end, reach * scene.sun[1]))
    if scene.chance(0.3):
        facade, z, tall = _facade(scene), scene.between(70, 110), scene.between(6, 22)
        scene.add(z, partial(_draw_wall, scene, (-60, z), (60, z), tall, facade, 0.86))
