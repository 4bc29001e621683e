"""The objects on the roads and sidewalks of ToyStreets: trees, people, cars, lamps, traffic lights and signs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from isanet.toystreets.draw import (
    CAR,
    COLORS,
    DARK,
    GRAYS,
    LEAVES,
    LIGHT,
    PERSON,
    POLE,
    SIGN,
    VEGETATION,
    WHITE,
    Color,
    Point,
    Scene,
    foliage,
    mix,
    pixel,
    times,
)
from isanet.toystreets.street import Side

_SKIN: list[Color] = [(236, 196, 166), (206, 156, 120), (150, 102, 72), (96, 64, 46)]


def _add_tree(scene: Scene, x: float, z: float) -> None:
    leaf, bark = scene.pick(LEAVES), scene.pick([(84, 66, 50), (70, 62, 56), (110, 98, 86)])
    trunk, crown = scene.between(1.8, 3.2), scene.between(1.1, 2.6)
    conifer = scene.chance(0.2)
    blobs = [
        (scene.between(-0.6, 0.6) * crown, scene.between(0.2, 1.3) * crown, scene.between(0.5, 0.9) * crown,
         int(scene.between(0, 128)))
        for _ in range(4)
    ]  # fmt: skip

    def draw() -> None:
        scene.post(x, z, 0, trunk + 0.5 * crown, 0.22, pixel(VEGETATION, bark, z, 16))
        values, scale = foliage(leaf, z), scene.focal / z
        if conifer:
            for step in range(6):
                low, half = trunk * 0.4 + step * crown * 0.42, crown * (0.8 - 0.11 * step)
                dark = values[2 - (step & 1)]
                scene.flat(x, z, [(-half, low), (half, low), (0, low + crown * 0.9)], dark)
            return
        for dx, dy, radius, seed in blobs:
            at_x, at_y = scene.project(x + dx, trunk + dy, z)
            scene.leaves(at_x, at_y, radius * scale, radius * scale * 0.85, values, seed)

    scene.add(z, draw)
    scene.cast_shadow(x, z, trunk, 0.14)
    scene.cast_shadow(x, z, trunk + crown, crown * 0.9, trunk)


def _add_bush(scene: Scene, x: float, z: float) -> None:
    leaf, wide, high = scene.pick(LEAVES), scene.between(0.5, 1.6), scene.between(0.35, 0.8)
    seed = int(scene.between(0, 128))

    def draw() -> None:
        scale = scene.focal / z
        scene.leaves(*scene.project(x, high * 0.8, z), wide * scale, high * scale, foliage(leaf, z), seed)

    scene.add(z, draw)
    scene.cast_shadow(x, z, high, wide * 0.7)


def _add_person(scene: Scene, x: float, z: float) -> None:
    tall, step = scene.between(1.05, 1.95), scene.between(0.02, 0.3)
    top, legs, hair = scene.any_color(0.4), scene.any_color(0.6), scene.pick([*GRAYS[:2], *COLORS[1:4], DARK])
    skin, wide = scene.pick(_SKIN), scene.between(0.2, 0.29)
    dress, bag, umbrella = scene.chance(0.25), scene.chance(0.35), scene.chance(0.6)
    bag_color, cover = scene.any_color(0.2), scene.any_color(0.2)
    side = scene.pick([-1, 1])

    def draw() -> None:
        def flat(points: Sequence[Point], color: Color) -> None:
            scene.flat(x, z, [(dx, y * tall) for dx, y in points], pixel(PERSON, color, z, 6))

        for way, shade in ((-1, 0.8), (1, 1.0)):
            foot = way * step
            flat([(-0.08 + foot, 0), (0.08 + foot, 0), (0.1 + way * 0.05, 0.5), (-0.1 + way * 0.05, 0.5)],
                 times(legs, shade))  # fmt: skip
            flat([(foot - 0.09, 0), (foot + 0.12, 0), (foot + 0.12, 0.04), (foot - 0.09, 0.04)], DARK)
            arm = way * wide
            flat([(arm + way * step * 0.4 - 0.05, 0.42), (arm + way * step * 0.4 + 0.05, 0.42), (arm + 0.06, 0.8),
                  (arm - 0.06, 0.8)], times(top, 0.75))  # fmt: skip
        if dress:
            flat([(-wide * 1.1, 0.28), (wide * 1.1, 0.28), (wide * 0.7, 0.6), (-wide * 0.7, 0.6)], top)
        flat([(-wide * 0.85, 0.46), (wide * 0.85, 0.46), (wide, 0.82), (-wide, 0.82)], top)
        if bag:
            flat([(side * wide - 0.14, 0.38), (side * wide + 0.14, 0.38), (side * wide + 0.12, 0.56),
                  (side * wide - 0.12, 0.56)], bag_color)  # fmt: skip
        scene.post(x, z, 0.8 * tall, 0.88 * tall, 0.1, pixel(PERSON, times(skin, 0.85), z, 6))
        scene.disc(x, 0.935 * tall, z, 0.1, 0.075 * tall, pixel(PERSON, hair, z, 6))
        scene.disc(x + side * 0.02, 0.915 * tall, z, 0.085, 0.055 * tall, pixel(PERSON, skin, z, 6))
        if umbrella and scene.rainy:
            flat([(-0.65, 1.04), (0.65, 1.04), (0.4, 1.22), (0, 1.28), (-0.4, 1.22)], cover)

    scene.add(z, draw)
    scene.cast_shadow(x, z, tall, 0.22)


_CarShape = tuple[float, float, float, float, float, float]
"""Length, width, height, bottom of the windows; begin and end of the cabin as shares of the length, from behind."""

_CARS: list[_CarShape] = [
    (4.1, 1.75, 1.48, 0.90, 0.02, 0.66),
    (4.6, 1.80, 1.42, 0.88, 0.20, 0.68),
    (4.7, 1.90, 1.75, 1.05, 0.02, 0.70),
    (5.2, 2.00, 2.30, 1.15, 0.00, 0.84),
    (3.6, 1.60, 1.50, 0.90, 0.02, 0.70),
]


def _add_car(scene: Scene, x: float, z: float, ahead: bool) -> None:
    """Adds a car along the street; `ahead`: it faces away from the camera."""
    shape, paint = scene.pick(_CARS), scene.any_color(0.55)
    length, width, height = shape[:3]
    scene.add(z, lambda: _draw_car(scene, x, z, shape, paint, ahead))
    reach = height * 0.8 if scene.sunny else 0.1
    for share in (0.12, 0.5, 0.88) if scene.weather.shadow < 256 else ():
        at = z + length * share
        scene.shadows.append((x, at, x + scene.sun[0] * reach, at + scene.sun[1] * reach, width / 2 * 1.12))


def _draw_car(scene: Scene, x: float, z: float, shape: _CarShape, paint: Color, ahead: bool) -> None:
    length, width, height, sill, begin, end = shape
    if not ahead:
        begin, end = 1 - end, 1 - begin
    half, lit = width / 2, scene.headlights

    def face(points: Sequence[tuple[float, float, float]], color: Color, shines: bool = False) -> None:
        projected = [scene.project(x + dx, y, z + dz) for dx, y, dz in points]
        scene.polygon(projected, pixel(CAR, color, z, 5, shines))

    def front(left: float, right: float, low: float, high: float, color: Color, shines: bool = False) -> None:
        face([(left, low, 0), (right, low, 0), (right, high, 0), (left, high, 0)], color, shines)

    def side(at: float, low: float, high: float, color: Color) -> None:
        face([(at, low, 0), (at, high, 0), (at, high, length), (at, low, length)], color)

    def shows(at: float, sign: int) -> bool:
        return (scene.project(x + at, 0, z + length)[0] - scene.project(x + at, 0, z)[0]) * sign > 0

    glass = mix((36, 42, 50), scene.weather.bottom, 0.25)
    fore, back = begin * length, end * length
    near_roof, far_roof = fore + (0.12 if begin > 0.1 else 0.05) * length, back - 0.1 * length
    rise, inset, belt = 0.28, half * 0.84, half * 0.98
    # from far to near: what is nearer hides what is farther
    for sign in (-1, 1):
        edge = sign * half
        if not shows(edge, sign):
            continue
        shade = 0.78 if sign * scene.sun[0] > 0 else 0.95
        side(edge, rise, sill, times(paint, shade))
        side(edge, rise - 0.06, 0.42, times(paint, shade * 0.8))
        for at in (0.18, 0.8):
            wheel = [(edge, 0.33 + dy, at * length + dz) for dz, dy in _OCTAGON]
            face(wheel, DARK)
            hub = [(edge, 0.33 + (y - 0.33) * 0.5, at * length + (dz - at * length) * 0.5) for _, y, dz in wheel]
            face(hub, (130, 130, 134))
    face([(-half, sill, 0), (half, sill, 0), (half, sill, length), (-half, sill, length)], times(paint, 1.12))
    for sign in (-1, 1):
        low, high = sign * belt, sign * inset
        if shows(low, sign):
            window = [(low, sill, fore), (high, height, near_roof), (high, height, far_roof), (low, sill, back)]
            face(window, times(paint, 0.85))
            face(_shrunk(window), glass)
    near = [(-inset, height, near_roof), (inset, height, near_roof)]
    far = [(inset, height, far_roof), (-inset, height, far_roof)]
    face([(-belt, sill, back), (belt, sill, back), *far], glass)
    face([*near, *far], times(paint, 1.15))
    screen = [(-belt, sill, fore), (belt, sill, fore), *reversed(near)]
    face(screen, times(paint, 0.92))
    face(_shrunk(screen), glass)
    for sign in (-1, 1):
        front(sign * half * 0.95, sign * half * 0.65, 0, 0.4, DARK)
    front(-half, half, rise, sill, paint)
    front(-half, half, rise - 0.05, 0.46, times(paint, 0.72))
    lamp = (236, 46, 36) if ahead else (255, 250, 224)
    for sign in (-1, 1):
        left, right = sign * half * 0.97, sign * half * 0.66
        front(left, right, sill - 0.28, sill - 0.1, lamp if lit else times(lamp, 0.75), lit)
    front(-0.26, 0.26, 0.5, 0.62, WHITE)


_OCTAGON = [(0.33, 0.14), (0.14, 0.33), (-0.14, 0.33), (-0.33, 0.14), (-0.33, -0.14), (-0.14, -0.33), (0.14, -0.33),
            (0.33, -0.14)]  # fmt: skip
"""A circle of radius 0.35."""


def _shrunk(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """A polygon shrunk towards its middle: a window in a frame."""
    x0, y0, z0 = (sum(values) / len(points) for values in zip(*points, strict=True))
    return [(x0 + (x - x0) * 0.8, y0 + (y - y0) * 0.8, z0 + (z - z0) * 0.8) for x, y, z in points]


def _add_crossing_car(scene: Scene, x: float, z: float) -> None:
    """Adds a car that crosses the street, seen from its side."""
    length, _, height, sill, begin, end = scene.pick(_CARS)
    paint, way = scene.any_color(0.55), scene.pick([-1, 1])

    def draw() -> None:
        def flat(points: Sequence[Point], color: Color) -> None:
            scene.flat(x, z, [(way * (dx - 0.5) * length, y) for dx, y in points], pixel(CAR, color, z, 5))

        glass = mix((36, 42, 50), scene.weather.bottom, 0.25)
        pillar = (begin + end) / 2
        flat([(0.0, 0.28), (1.0, 0.28), (1.0, sill * 0.75), (0.92, sill), (0.02, sill)], paint)
        flat([(begin, sill), (end + 0.06, sill), (end - 0.1, height), (begin + 0.06, height)], paint)
        flat([(begin + 0.04, sill), (pillar - 0.02, sill), (pillar - 0.02, height - 0.1), (begin + 0.09, height - 0.1)],
             glass)  # fmt: skip
        flat([(pillar + 0.02, sill), (end + 0.02, sill), (end - 0.11, height - 0.1), (pillar + 0.02, height - 0.1)],
             glass)  # fmt: skip
        flat([(0.0, 0.26), (1.0, 0.26), (1.0, 0.42), (0.0, 0.42)], times(paint, 0.75))
        for at in (0.2, 0.8):
            for radius, color in ((0.34, DARK), (0.17, (130, 130, 134))):
                middle = x + way * (at - 0.5) * length
                scene.disc(middle, 0.34, z, radius, radius, pixel(CAR, color, z, 5))

    scene.add(z, draw)
    for share in (-0.35, 0.0, 0.35) if scene.weather.shadow < 256 else ():
        scene.shadows.append((x + share * length, z + 0.8, x + share * length, z + 1.0, 1.0))


def _add_lamp(scene: Scene, x: float, z: float) -> None:
    tall, metal, arm = scene.between(4.5, 7.5), scene.pick([*GRAYS[:7], (60, 76, 66)]), scene.between(0, 1.6)
    lit = scene.weather.lit > 50
    towards = -1 if x > 0 else 1

    def draw() -> None:
        value = pixel(POLE, metal, z)
        scene.post(x, z, 0, tall, 0.17, value)
        scene.post(x, z, 0, 0.9, 0.26, value)
        end = x + towards * arm
        scene.post((x + end) / 2, z, tall - 0.12, tall, arm + 0.1, value)
        scene.post(end, z, tall - 0.3, tall + 0.04, 0.6, pixel(POLE, (255, 236, 180) if lit else metal, z, 4, lit))

    scene.add(z, draw)
    scene.cast_shadow(x, z, tall, 0.09)
    if scene.weather.shadow > 256:
        scene.shadows.append((x, z, x + towards * arm, z, 3.2))


def _add_light(scene: Scene, x: float, z: float) -> None:
    """Adds a traffic light, on a post or over the road."""
    case = scene.pick([DARK, (44, 52, 48), (196, 160, 44), (92, 94, 98)])
    tall, state, metal = scene.between(2.6, 3.4), int(scene.between(0, 3)), scene.pick(GRAYS[:7])
    over, big = scene.chance(0.35), scene.between(1.0, 1.35)

    def head(at: float, y: float) -> None:
        scene.post(at, z, y, y + 1.05 * big, 0.42 * big, pixel(LIGHT, case, z, 4))
        for place, color in enumerate([(240, 50, 40), (250, 190, 50), (60, 220, 120)]):
            on = place == state
            scene.disc(at, y + (0.86 - 0.33 * place) * big, z, 0.13 * big, 0.13 * big,
                   pixel(LIGHT, color if on else times(color, 0.22), z, 2, on))  # fmt: skip

    def draw() -> None:
        value = pixel(POLE, metal, z)
        scene.post(x, z, 0, 5.6 if over else tall + 0.3, 0.17, value)
        if over:
            end = x * 0.15
            scene.post((x + end) / 2, z, 5.4, 5.56, abs(x - end), value)
            head(end, 4.6)
        head(x, tall)

    scene.add(z, draw)
    scene.cast_shadow(x, z, tall, 0.1)


def _add_sign(scene: Scene, x: float, z: float) -> None:
    tall, metal = scene.between(1.9, 2.9), scene.pick(GRAYS[3:])
    plates = [
        (scene.pick(["round", "triangle", "diamond", "plate", "round", "board"]), scene.pick(_SIGNS),
         scene.between(0.34, 0.5))
        for _ in range(1 if scene.chance(0.65) else 2)
    ]  # fmt: skip

    def draw() -> None:
        scene.post(x, z, 0, tall + 0.2, 0.11, pixel(POLE, metal, z))
        y = tall
        for form, (rim, inner, symbol), radius in plates:
            for share, color in ((1.0, rim), (0.74, inner), (0.3, symbol)):
                value, size = pixel(SIGN, color, z, 3), radius * share
                if form == "round":
                    scene.disc(x, y, z, size, size, value)
                elif form == "triangle":
                    points = [(-size, y - size * 0.8), (size, y - size * 0.8), (0, y + size)]
                    scene.flat(x, z, points, value)
                elif form == "diamond":
                    scene.flat(x, z, [(-size, y), (0, y + size), (size, y), (0, y - size)], value)
                else:
                    wide = size * 2 if form == "board" else size * 0.8
                    scene.post(x, z, y - size, y + size, 2 * wide, value)
            y -= radius * 2 + 0.05

    scene.add(z, draw)
    scene.cast_shadow(x, z, tall, 0.2)


_SIGNS: list[tuple[Color, Color, Color]] = [
    ((198, 40, 36), WHITE, DARK),
    ((198, 40, 36), WHITE, (198, 40, 36)),
    ((40, 80, 168), (40, 80, 168), WHITE),
    (WHITE, (214, 168, 40), DARK),
    ((198, 40, 36), (198, 40, 36), WHITE),
    (WHITE, (40, 110, 70), WHITE),
    (DARK, WHITE, DARK),
]
"""Rim, inside and symbol."""


def add_things(scene: Scene, sides: tuple[Side, Side]) -> None:
    """Adds everything on the road and the sidewalks."""
    half = scene.half_road
    for sign, side in ((-1, sides[0]), (1, sides[1])):
        parked = scene.pick_weighted([(0.0, 0.35), (0.4, 0.3), (0.85, 0.35)])
        z = scene.between(2, 10)
        while z < 70:
            if scene.chance(parked) and _off_junction(scene, z) and _off_junction(scene, z + 5):
                _add_car(scene, sign * (half - 1.1), z, sign > 0)
            z += scene.between(5.6, 7.5)
        _add_green(scene, sign, side)
        _add_sidewalk_things(scene, sign, side)
        # traffic keeps to the right
        z = scene.between(4, 30)
        lane = sign * (half * 0.3 if parked else half * 0.5)
        while z < 90:
            if not scene.crossing - 5 < z < scene.crossing_end:
                _add_car(scene, lane + scene.between(-0.3, 0.3), z, sign > 0)
            z += scene.between(8, 45)
    for _ in range(int(scene.between(1, 4)) if scene.chance(0.6) else 0):
        x, far = scene.between(-14, 14), scene.between(0.25, 0.75)
        _add_crossing_car(scene, x, scene.crossing + (scene.crossing_end - scene.crossing) * far)
    for _ in range(int(scene.between(0, 5))):
        _add_person(scene, scene.between(-half, half), scene.crossing - scene.between(0.5, 2.6))
    if scene.chance(0.25):
        _add_person(scene, scene.between(-half, half), scene.between(6, 30))


def _off_junction(scene: Scene, z: float) -> bool:
    return z < scene.crossing - 4 or z > scene.crossing_end + 3


def _add_green(scene: Scene, sign: int, side: Side) -> None:
    """Adds trees and bushes to one side of the road; `sign`: -1 left, 1 right."""
    trees, spacing = scene.pick_weighted([(0.0, 0.3), (0.5, 0.35), (0.9, 0.35)]), scene.between(6, 13)
    z = scene.between(3, 12)
    while z < 90:
        grows = scene.chance(trees)
        at = (side.sidewalk + side.wall) / 2 if side.wall - side.sidewalk > 0.8 else scene.half_road + 0.7
        if grows and _off_junction(scene, z):
            _add_tree(scene, sign * at, z)
        z += spacing * scene.between(0.8, 1.2)
    if side.built < 0.9:
        for _ in range(int(scene.between(2, 14))):
            _add_tree(scene, sign * (side.wall + scene.between(1, 22)), scene.between(12, 80))
    for _ in range(int(scene.between(0, 9))):
        z = scene.between(4, 40)
        if _off_junction(scene, z) and side.wall - side.sidewalk > 0.8:
            _add_bush(scene, sign * scene.between(side.sidewalk + 0.5, side.wall), z)


def _add_sidewalk_things(scene: Scene, sign: int, side: Side) -> None:
    """Adds lamps, signs, bollards, people and traffic lights to one side; `sign`: -1 left, 1 right."""
    half = scene.half_road
    spacing, z = scene.between(12, 24), scene.between(5, 16)
    has_lamps = scene.chance(0.8)
    while z < 90:
        if has_lamps and _off_junction(scene, z):
            _add_lamp(scene, sign * (half + 0.45), z)
        z += spacing
    for _ in range(int(scene.between(0, 4))):
        _add_sign(scene, sign * (half + scene.between(0.35, 0.8)), scene.between(4, 12) * scene.between(1, 3))
    for _ in range(int(scene.between(0, 2.3))):
        at, z, gap = sign * (half + 0.3), scene.between(4, 20), scene.between(1.2, 2)
        metal, count = scene.pick(GRAYS), int(scene.between(3, 8))
        for bollard in (z + step * gap for step in range(count)):
            scene.add(bollard, partial(scene.post, at, bollard, 0, 0.95, 0.16, pixel(POLE, metal, bollard)))
    for _ in range(int(scene.between(0, 8) * scene.between(0.3, 1))):
        x, z = sign * scene.between(half + 0.5, side.sidewalk + 0.1), scene.between(3.5, 9) * scene.between(1, 4)
        _add_person(scene, x, z)
        if scene.chance(0.3):
            _add_person(scene, x + 0.6, z + 0.2)
    if scene.chance(0.85):
        _add_light(scene, sign * (half + 0.5), (scene.crossing if sign > 0 else scene.crossing_end) + sign * -0.8)
