"""The photo of a scene of ToyStreets: light, fog, rain, blur and noise, which move no edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isanet.images.reading import RGBImage
from isanet.toystreets.draw import ROAD, Scene


def develop(scene: Scene, seed: int) -> RGBImage:
    """Turns what was drawn into an image: light, fog, rain, blur and noise."""
    weather, shape = scene.weather, (scene.height, scene.width)
    parts = scene.canvas.astype("<u8", copy=False).view(np.uint8).reshape(*shape, 8)
    noise = np.random.PCG64(seed)
    count = -(-scene.height * scene.width // 8)

    def gray() -> NDArray[np.int16]:
        raw = noise.random_raw(count).astype("<u8", copy=False).view(np.uint8)[: scene.height * scene.width]
        return raw.reshape(shape).astype(np.int16) - 128

    distance = parts.view("<u2")[..., 2].astype(np.int32)
    grain = (gray() * parts[..., 7]) >> 7
    density = weather.fog * scene.between(0.6, 1.4)
    thick = (distance * int(density)) >> 2  # small enough for a shift by 8 within 32 bits
    fog = (thick << 8) // (thick + 16384)
    expose = scene.between(0.85, 1.15)
    tints = [scene.between(0.95, 1.05) for _ in range(3)]
    contrast, lift = scene.between(0.85, 1.1), scene.between(-8, 12)
    shines = parts[..., 6] > 0
    image = np.empty((*shape, 3), np.int16)
    for channel in range(3):
        gain = int(weather.gain[channel] * expose * tints[channel])
        plain = parts[..., channel].astype(np.int32)
        lit = ((plain + grain).clip(0, 255) * gain) >> 8
        np.copyto(lit, plain, where=shines)
        lit += ((weather.bottom[channel] - lit) * fog) >> 8
        lit = ((lit - 128) * int(contrast * 256) >> 8) + int(128 + lift)
        image[..., channel] = lit.clip(0, 255)
    if scene.rainy:
        _reflect(scene, image, parts[..., 3] == ROAD)
        _rain(scene, image)
    for _ in range(scene.pick_weighted([(0, 0.15), (1, 0.65), (2, 0.2)])):
        _blur(image)
    strength = int(weather.noise * scene.between(0.4, 1.6))
    for channel in range(3):
        image[..., channel] += (gray() * strength) >> 7
    return image.clip(0, 255).astype(np.uint8)


def _reflect(scene: Scene, image: NDArray[np.int16], road: NDArray[np.bool_]) -> None:
    """Mirrors what is above the horizon in the wet road."""
    first = int(scene.horizon) + 1
    mirrored = (2 * first - np.arange(first, scene.height)).clip(0)
    below = image[first:]
    np.copyto(below, below + ((image[mirrored] - below) * np.int16(3) >> 3), where=road[first:, :, None])


def _rain(scene: Scene, image: NDArray[np.int16]) -> None:
    height, width = image.shape[:2]
    slant, amount = scene.between(-0.4, 0.4), int(scene.between(60, 260))
    drops = [(scene.rng.random(), scene.rng.random(), scene.between(0.03, 0.1)) for _ in range(amount)]
    for x, y, long in drops:
        steps = np.arange(max(int(long * height), 1))
        rows = int(y * height) + steps
        columns = (x * width + slant * steps).astype(np.intp)
        visible = (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = rows[visible], columns[visible]
        image[rows, columns] += (220 - image[rows, columns]) >> 2


def _blur(image: NDArray[np.int16]) -> None:
    """Averages each pixel with its neighbors, 1 : 2 : 1, in both directions."""
    for turned in (image, image.swapaxes(0, 1)):
        middle = turned[1:-1] * 2
        middle += turned[:-2]
        middle += turned[2:]
        turned[1:-1] = (middle + 2) >> 2
