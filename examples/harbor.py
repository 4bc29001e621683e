"""Harbor scenes, drawn from a seed: a folder of images and masks like your own.

python examples/harbor.py FOLDER --count 20 --seed 0

writes FOLDER/images/000000.jpg, FOLDER/masks/000000.png (class indices, with a palette for viewers) and
FOLDER/classes.txt, which `isanet.datasets.Folder` reads. Every shape is drawn into both the image and the mask, back
to front, without antialiasing, so the masks are exact. Reflections, grain, blur and noise are only in the image.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("sky", "water", "land", "building", "jetty", "boat", "buoy")
PALETTE = ((150, 200, 240), (30, 90, 160), (90, 150, 60), (190, 110, 90), (140, 100, 50), (250, 230, 80),
           (230, 40, 120))  # fmt: skip
SKY, WATER, LAND, BUILDING, JETTY, BOAT, BUOY = range(len(CLASSES))

# Hulls, sails, walls, roofs and buoys share these paints, so color alone does not tell the class.
PAINTS = ((232, 230, 224), (196, 194, 188), (140, 142, 146), (84, 88, 94), (38, 40, 46), (170, 48, 40), (206, 96, 44),
          (222, 184, 60), (60, 110, 74), (44, 74, 128), (110, 156, 190), (152, 112, 84), (200, 170, 130))  # fmt: skip
GROUNDS = ((74, 102, 54), (98, 116, 62), (58, 84, 56), (126, 114, 84), (120, 118, 114), (164, 146, 108), (92, 84, 76))
WOODS = ((128, 104, 78), (150, 140, 126), (92, 76, 60), (176, 150, 112), (130, 130, 130))
DARK, GLASS, GLOW = (34, 38, 44), (56, 66, 76), (250, 214, 130)

BOATS = (  # minimum and maximum length, heights of hull and cabin, height of the mast as a multiple of the length
    (5, 11, 0.9, 0.45, 1.3), (4, 8, 0.8, 0.4, 1.4), (5, 10, 1.1, 1.3, 0), (8, 15, 1.6, 2.3, 0.7), (3, 4.5, 0.55, 0, 0)
)  # fmt: skip

Color = tuple[float, ...]
Points = list[tuple[float, float]]
Shapes = list[tuple[Points, Color]]
"""Polygons, back to front, in meters: x to the right of a position on the water, y above it."""


WEATHERS = (  # zenith, sky at the horizon, water, light per channel, haze per 100 m, cloud brightness, noise, lamps
    ((70, 128, 200), (186, 212, 232), (30, 84, 112), (1.08, 1.02, 0.94), 0.02, 60, 4, False),
    ((110, 160, 214), (206, 218, 226), (52, 104, 108), (1.05, 1.0, 0.94), 0.04, 90, 5, False),
    ((158, 166, 176), (204, 208, 210), (70, 88, 92), (0.88, 0.9, 0.93), 0.08, 40, 6, False),
    ((184, 188, 190), (202, 204, 206), (110, 122, 126), (0.84, 0.86, 0.88), 0.55, 8, 6, False),
    ((84, 80, 126), (236, 156, 104), (62, 62, 90), (0.86, 0.68, 0.62), 0.05, 60, 7, True),
    ((30, 36, 62), (84, 86, 110), (22, 30, 48), (0.40, 0.43, 0.56), 0.06, 22, 8, True),
)


@dataclass
class View:
    """The camera, the light, and what has been drawn so far."""

    rng: np.random.Generator
    eye: float  # meters above the water
    focal: float  # in pixels
    horizon: int  # row
    air: Color
    water: Color
    light: Color
    haze: float
    lamps: bool
    image: Image.Image
    mask: Image.Image
    shore: np.ndarray  # per column, the row where the water begins


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    """A random item."""
    return items[int(rng.integers(len(items)))]


def shade(color: Color, factor: float) -> Color:
    """A lighter or darker color."""
    return tuple(channel * factor for channel in color)


def mix(one: Color, other: Color, share: float) -> Color:
    """Interpolate between two colors; `share` is that of the other."""
    return tuple(a + (b - a) * share for a, b in zip(one, other, strict=True))


def box(left: float, bottom: float, right: float, top: float) -> Points:
    """A rectangle."""
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def disc(y: float, rx: float, ry: float) -> Points:
    """An ellipse."""
    return [(rx * np.cos(turn), y + ry * np.sin(turn)) for turn in np.linspace(0, 2 * np.pi, 14)]


def clouds(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """Smooth noise (height, width), about -1 to 1, interpolated from a grid of cells."""
    cells = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))


def as_image(pixels: np.ndarray) -> Image.Image:
    """An image from floating-point values, which are clipped to 0..255."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# --- things, as polygons ------------------------------------------------------------------------------------------


def boat(rng: np.random.Generator) -> Shapes:
    """A sailing boat, a boat with a cabin or an open boat, at a random angle."""
    shortest, longest, high, cabin, mast = pick(rng, BOATS)
    paint, second, canvas = pick(rng, PAINTS), pick(rng, PAINTS), pick(rng, (*PAINTS[:2], *PAINTS[:2], *PAINTS))
    half, high = rng.uniform(shortest, longest) / 2, high * rng.uniform(0.8, 1.2)
    at, tall, top = half * 0.12, 2 * half * mast * rng.uniform(0.85, 1.15), high + cabin
    hull = [(-half, high), (-half * 0.93, 0.0), (half * 0.8, 0.0), (half, high * 1.35)]
    shapes: Shapes = []
    if mast:
        shapes.append((box(at - 0.09, high, at + 0.09, tall), pick(rng, WOODS)))
        if mast > 1 and rng.random() < 0.65:
            shapes.append(([(at - 0.1, high + 0.9), (-half * 0.85, high + 0.8), (at - 0.1, tall * 0.97)], canvas))
            jib = [(at + 0.15, high + 0.5), (half * 0.9, high + 0.4), (at + 0.15, tall * 0.85)]
            shapes.append((jib, shade(canvas, 0.86)))
        else:
            shapes.append((box(-half * 0.8, high + 0.8, at, high + 1.15), canvas))
    if cabin:
        wall = shade(pick(rng, (PAINTS[0], second)), 0.95)
        back, low = -half * 0.5, high * 0.9
        shapes.append(([(back, low), (half * 0.35, low), (half * 0.2, top), (back, top)], wall))
        shapes.append((box(-half * 0.4, top - cabin * 0.6, half * 0.17, top - cabin * 0.2), GLASS))
    shapes += [(hull, paint), ([hull[0], hull[3], (half * 0.96, high * 1.1), (-half * 0.97, high * 0.75)], second),
               ([(-half * 0.95, high * 0.2), *hull[1:3], (half * 0.84, high * 0.2)], DARK)]  # fmt: skip
    turn = rng.uniform(0.4, 1) * rng.choice([-1, 1])
    return [([(x * turn, y) for x, y in points], color) for points, color in shapes]


def buoy(rng: np.random.Generator) -> Shapes:
    """A spherical buoy, or a can, cone or pillar buoy, some with a band."""
    paint, second = (PAINTS[rng.choice([0, 4, 5, 5, 6, 7, 7, 8, 8])] for _ in range(2))
    wide, high = rng.uniform(0.35, 0.65), rng.uniform(0.9, 1.6)
    if rng.random() < 0.25:
        return [(disc(wide * 0.7, wide, wide), paint), (box(-0.06, wide * 1.5, 0.06, wide * 2.4), DARK)]
    low, tip, stretch = pick(rng, ((1, 1, 1), (1, 0.1, 1), (0.7, 0.25, 2)))  # can, cone, pillar
    low, tip, high = low * wide, tip * wide, high * stretch
    shapes = [
        (disc(0.1, wide * 1.3, 0.3), shade(paint, 0.7)),
        ([(-low, 0), (low, 0), (tip, high), (-tip, high)], paint),
    ]
    if rng.random() < 0.5:
        a, b = (low + (tip - low) * share for share in (0.4, 0.65))
        shapes.append(([(-a, high * 0.4), (a, high * 0.4), (b, high * 0.65), (-b, high * 0.65)], second))
    if stretch > 1:
        shapes.append(([(-low, high), (low, high), (0.0, high + 0.8)], second))
    return shapes


def building(rng: np.random.Generator, lit: bool) -> Shapes:
    """A lighthouse, or a house with a sunlit and a shaded wall."""
    wall, roof, sun = pick(rng, PAINTS), pick(rng, PAINTS[3:]), rng.choice([-1, 1])
    if rng.random() < 0.15:
        wide, high = rng.uniform(2, 3.2), rng.uniform(14, 24)
        shapes = [([(-wide, -2), (wide, -2), (wide * 0.6, high), (-wide * 0.6, high)], wall)]
        shapes += [(box(-wide * 0.8, high * at, wide * 0.8, high * (at + 0.12)), roof) for at in (0.25, 0.5, 0.75)]
        shapes.append((box(-wide * 0.45, high, wide * 0.45, high + 3), GLOW if lit else GLASS))
        return [*shapes, ([(-wide * 0.6, high + 3), (wide * 0.6, high + 3), (0.0, high + 5)], roof)]
    half, high, side = rng.uniform(3, 9), rng.uniform(4, 13), rng.uniform(2, 7)
    shapes = [(box(-half, -2, half, high), wall), (box(half, -2, half + side, high), shade(wall, 0.7))]
    if rng.random() < 0.7:
        top = high + rng.uniform(2, 5)
        shapes.append(([(half, high), (half + side, high), (half + side / 2, top)], shade(wall, 0.7)))
        shapes.append(([(-half - 0.5, high), (half, high), (half + side / 2, top), (side / 2 - half, top)], roof))
    across, up = rng.integers(2, 6), int(high / 3.2)
    for row in range(up):
        for column in range(across):
            x, y = half * ((2 * column + 0.6) / across - 1), high * (row + 0.3) / up
            pane = GLOW if lit and rng.random() < 0.6 else GLASS
            shapes.append((box(x, y, x + half * 0.8 / across, y + high * 0.45 / up), pane))
    return [([(x * sun, y) for x, y in points], color) for points, color in shapes]


def jetty(rng: np.random.Generator, wide: float, deep: float, x: float, z: float, eye: float) -> Shapes:
    """A deck on posts at (x, z), `wide` and `deep` in meters."""
    wood, high, rail = pick(rng, WOODS), rng.uniform(0.5, 1.1), rng.uniform(0.1, 1)
    half, under = wide / 2, shade(wood, 0.55)

    def flat(left: float, right: float, near: float, far: float) -> Points:  # in perspective, scaled to the distance z
        corners = [(left, near), (right, near), (right, far), (left, far)]
        return [((x + a) * z / (z + c) - x, eye + (high - eye) * z / (z + c)) for a, c in corners]

    def post(a: float, c: float) -> tuple[Points, Color]:
        (left, deck), (right, _), *_ = flat(a - 0.13, a + 0.13, c, c)
        scale = z / (z + c)
        return box(left, deck - high * scale, right, deck + rail * scale), under

    posts = np.linspace(-half, half, max(2, round(wide / 3)))
    shapes = [post(a, c) for c in np.arange(deep, 0.5, -3) for a in (-half, half)]
    shapes += [(flat(-half, half, 0, deep), wood)]
    shapes += [(flat(-half, half, at, at + 0.08), under) for at in np.arange(0.5, deep, 0.6)]
    return [*shapes, (box(-half, high - 0.3, half, high), shade(wood, 0.7)), *(post(a, 0) for a in posts)]


# --- a scene --------------------------------------------------------------------------------------------------


def seen(view: View, color: Color, z: float) -> Color:
    """A color in the scene's light, through haze at a distance in meters."""
    plain = color if color is GLOW else tuple(c * f for c, f in zip(color, view.light, strict=True))
    return mix(plain, view.air, 1 - (1 - view.haze) ** (z / 100))


def paint(view: View, shapes: Shapes, what: int, x: float, y: float, z: float) -> None:
    """Draw polygons at (x, y) in the image, at distance z; with the class WATER, their reflection."""
    scale, pens = view.focal / z, [ImageDraw.Draw(view.image), ImageDraw.Draw(view.mask)]
    up, dim = (1, 0.45) if what == WATER else (-1, 0)
    for points, color in shapes:
        places = [(x + a * scale, y + up * b * scale) for a, b in points]
        pens[0].polygon(places, tuple(int(c) for c in mix(seen(view, color, z), view.water, dim)))
        if what != WATER:
            pens[1].polygon(places, what)


def land(view: View, z: float, tall: float, tilt: float, houses: int) -> None:
    """Draw a shore with hills and houses, `tall` in meters; `tilt` raises it to the right."""
    rng, scale, (width, height) = view.rng, view.focal / z, view.image.size
    shape = clouds(rng, 1, 6, 1, width)[0] * 0.6 + clouds(rng, 1, 60, 1, width)[0] * 0.12
    base = view.horizon + view.eye * scale * (1 + 0.25 * clouds(rng, 1, 4, 1, width)[0])
    top = base - tall * scale * (shape + rng.uniform(-0.2, 0.5) + tilt * np.linspace(-1, 1, width))
    first, last = np.clip([top.min(), base.max() + 1], 0, height).astype(int)
    if first >= last:
        return
    rows = np.arange(first, last)[:, None]
    there = (rows >= top) & (rows < base)
    spots = clouds(rng, 12, 48, last - first, width) + clouds(rng, 30, 120, last - first, width)
    spots += np.gradient(shape) * 12 * rng.choice([-1, 1])  # sunlit and shaded slopes
    paints = np.array([seen(view, pick(rng, GROUNDS), z) for _ in range(3)], np.float32)  # two for hills, a beach
    ground = as_image(paints[np.where(rows > base - 1.5 * scale, 2, spots > 0.2)] + spots[..., None] * 12)
    view.image.paste(ground, (0, first), Image.fromarray(there))
    view.mask.paste(LAND, (0, first), Image.fromarray(there))
    np.copyto(view.shore, np.minimum(base, height).astype(int), where=there.any(0))
    for x in rng.uniform(0, width, houses):
        foot, rise = base[int(x)], base[int(x)] - top[int(x)]
        if rise > 2:
            shapes = building(rng, lit=view.lamps)
            paint(view, shapes, BUILDING, x, foot - min(rng.random() ** 2 * rise, 15 * scale), z)


def harbor(view: View) -> None:
    """Draw the water with its jetties, boats and buoys, back to front."""
    rng, horizon, (width, height) = view.rng, view.horizon, view.image.size
    rows, columns = np.arange(height)[:, None], np.arange(width)
    water = np.asarray(view.mask) == WATER
    depth = (rows - horizon + 0.5).clip(0.5).astype(np.float32)
    pixels = np.asarray(view.image).astype(np.float32)
    mirrored = pixels[(2 * view.shore - rows).clip(0, view.shore - 1), columns]
    clear = (0.2 + 0.65 * np.exp(-3 * depth / height))[..., None]
    mirrored = mirrored * clear + np.array(view.water, np.float32) * (1 - clear)
    view.image = as_image(np.where(water[..., None], mirrored, pixels))

    things: list[tuple[float, int, Shapes, float, float, float]] = []
    taken: list[tuple[float, float, float, float]] = []  # by jetties: x range, z range
    for what, most, near, far in ((JETTY, 1.5, 6, 40), (BOAT, 5, 14, 110), (BUOY, 4, 8, 40)):
        for _ in range(round(rng.uniform(0.3, most + 0.3))):
            z = near * (far / near) ** rng.random()
            column, row = rng.uniform(0, width), horizon + view.focal * view.eye / z
            x = (column - width / 2) * z / view.focal
            if row < view.shore[int(column)] + 2 or any(a < x < b and c < z < d for a, b, c, d in taken):
                continue
            wide, deep = (rng.uniform(6, 22), rng.uniform(1.5, 3)) if rng.random() < 0.6 else (2.2, rng.uniform(8, 30))
            if what == JETTY:
                taken.append((x - wide / 2 - 1.5, x + wide / 2 + 1.5, z - 0.5, z + deep + 1))
                things.append((z + deep, what, jetty(rng, wide, deep, x, z, view.eye), column, row, z))
            else:
                things.append((z, what, boat(rng) if what == BOAT else buoy(rng), column, row, z))
    things.sort(key=lambda thing: -thing[0])
    for _, _, shapes, column, row, z in things:
        paint(view, shapes, WATER, column, row, z)

    # waves, in perspective, displace and shade the reflections
    away, strength, tile = view.focal * view.eye / depth, rng.uniform(0.4, 1.3), clouds(rng, 64, 64, 256, 256)
    waves = np.zeros((height, width), np.float32)
    for cells in (3, 14):  # per meter
        across = ((columns - width / 2) * (away * cells * 0.4 / view.focal)).astype(np.int32) & 255
        waves += tile[(away * cells).astype(np.int32) & 255, across] / (1 + cells * away / depth)  # finer ones fade
    shift = (waves * strength * depth**0.5 * 1.5).astype(np.int32)
    pixels = np.asarray(view.image).astype(np.float32)
    moved = pixels[(rows + shift).clip(0, height - 1), (columns + shift).clip(0, width - 1)]
    view.image = as_image(np.where(water[..., None], moved + (waves * strength * 22)[..., None], pixels))
    for _, what, shapes, column, row, z in things:
        paint(view, shapes, what, column, row, z)


def draw(seed: int, size: tuple[int, int] = (192, 256)) -> tuple[Image.Image, Image.Image]:
    """Draw a scene.

    Args:
        seed: 0 or more; each seed gives another scene.
        size: (height, width) in pixels.

    Returns:
        The image (mode RGB), and the mask (mode P), class indices into `CLASSES`.
    """
    rng, (height, width) = np.random.default_rng(seed), size
    kind = rng.choice(len(WEATHERS), p=(0.28, 0.2, 0.2, 0.12, 0.12, 0.08))
    zenith, air, water, light, haze, cover, noise, lamps = WEATHERS[kind]
    eye, focal, horizon = rng.uniform(1.8, 7), rng.uniform(0.9, 1.5) * height, int(rng.uniform(0.28, 0.52) * height)
    rows = np.arange(height)[:, None]
    down = (rows / horizon).clip(0, 1)[..., None].astype(np.float32) ** 1.5
    veil = sum(clouds(rng, n, n, height, width) / n**0.5 for n in (6, 13, 29)) + np.float32(rng.uniform(-0.3, 0.25))
    sky = np.array(zenith, np.float32) * (1 - down) + np.array(air, np.float32) * down
    image = as_image(sky + veil.clip(0, 0.7)[..., None] * cover)
    mask = Image.fromarray(np.where(rows < horizon, SKY, np.full(width, WATER)).astype(np.uint8))
    view = View(rng, eye, focal, horizon, air, water, light, haze, lamps, image, mask, np.full(width, horizon))

    if rng.random() < 0.6:
        land(view, 3000, rng.uniform(100, 350), rng.uniform(-0.5, 0.5), houses=0)
    for z in sorted(rng.uniform(45, 220, rng.choice([0, 1, 2], p=(0.1, 0.5, 0.4))), reverse=True):
        land(view, z, rng.uniform(8, 32), rng.uniform(-0.6, 0.6), houses=int(rng.integers(1, 10)))
    harbor(view)
    if rng.random() < 0.3:  # the shore in the foreground
        near = 0.8 * focal * eye / (height - horizon)
        land(view, near, eye * rng.uniform(0.3, 0.6), rng.choice([-1.2, 1.2]), houses=0)

    rough = np.array([0, 3, 9, 4, 6, 3, 3], np.float32)[np.asarray(mask)]  # by class
    grain = rough * rng.standard_normal((height, width), np.float32)
    blurred = as_image(np.asarray(view.image) + grain[..., None]).filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.8)))
    pixels = (np.asarray(blurred) - np.float32(128)) * np.float32(rng.uniform(0.85, 1.1)) + rng.integers(116, 140)
    pixels += rng.standard_normal((height, width, 3), np.float32) * np.float32(noise * rng.uniform(0.5, 1.2))
    mask.putpalette([channel for color in PALETTE for channel in color])
    return as_image(pixels), mask


def write(folder: str | Path, count: int, seed: int = 0) -> None:
    """Write scenes: images and masks, named by their seeds, and the class names.

    Args:
        folder: Created if needed. Existing scenes are kept, so that a training run can resume with them.
        count: Number of scenes.
        seed: Seed of the first scene; the others follow it.
    """
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for scene in range(seed, seed + count):
        if not (folder / "masks" / f"{scene:06}.png").exists():
            image, mask = draw(scene)
            image.save(folder / "images" / f"{scene:06}.jpg", quality=92)
            mask.save(folder / "masks" / f"{scene:06}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write harbor scenes: images, masks and class names.")
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=20, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene; the others follow it")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.count, arguments.seed)
