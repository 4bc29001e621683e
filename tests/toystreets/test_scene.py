"""ToyStreets draws the same scenes everywhere, with masks that agree with the images, and scenes that differ."""

from __future__ import annotations

import random
from hashlib import sha256

import numpy as np
import pytest
from numpy.typing import NDArray

from isanet.datasets import ToyStreets
from isanet.labels import LABEL_SPACES
from isanet.toystreets import CLASSES, SPACE, buildings, draw, draw_scene, photo, street, things
from isanet.toystreets.scene import _draw_everything

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
N = len(CLASSES)
SMALL = (64, 128)

HASHES = {
    (0, (64, 128)): ("9cd349c30710d943", "09df794c0d5f640c"),
    (1, (64, 128)): ("95189175152e02d1", "8cbf332826fedbee"),
    (2, (128, 256)): ("96086a3ebc021c6b", "fcdf1b022931e07d"),
    (3, (96, 80)): ("9bf3eeca9e866527", "00dbb106d2d1907e"),
    (4, (128, 256)): ("26bbe7fef08f5e16", "ed0b6c2977fbace1"),
    (7, (64, 128)): ("18802d568ff82989", "d06f42932dfa14ff"),
    (11, (64, 128)): ("9c5f9a8dd39f4bbd", "ff598d6657406440"),
    (1099511627781, (96, 192)): ("0163bc65477b1913", "bf8fcf56cbcfc183"),
}
"""Of mask and image, by seed and size. If they change on purpose, so must VERSION."""


@pytest.fixture(scope="module")
def scenes() -> list[Pair]:
    dataset = ToyStreets(200, size=SMALL)
    return [dataset.read(i) for i in range(len(dataset))]


def fingerprint(seed: int, size: tuple[int, int]) -> tuple[str, str]:
    image, mask = draw_scene(seed, size)
    return sha256(mask.tobytes()).hexdigest()[:16], sha256(image.tobytes()).hexdigest()[:16]


def test_names_and_colors_are_those_of_cityscapes() -> None:
    official = LABEL_SPACES["cityscapes19"]
    assert SPACE.classes == CLASSES
    assert [official.palette[official.classes.index(name)] for name in CLASSES] == list(SPACE.palette)
    for name in (
        "ROAD",
        "SIDEWALK",
        "BUILDING",
        "POLE",
        "LIGHT",
        "SIGN",
        "VEGETATION",
        "TERRAIN",
        "SKY",
        "PERSON",
        "CAR",
    ):
        assert CLASSES[getattr(draw, name)].endswith(name.lower())


@pytest.mark.parametrize(("seed", "size"), [(-1, SMALL), (0, (64, 31))])
def test_invalid_seeds_and_sizes_are_refused(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs a seed of at least 0"):
        draw_scene(seed, size)


# --- determinism ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "size"), HASHES)
def test_scenes_are_the_same_on_every_machine(seed: int, size: tuple[int, int]) -> None:
    assert fingerprint(seed, size) == HASHES[seed, size]


def test_scenes_do_not_use_the_global_generators() -> None:
    before = fingerprint(5, SMALL)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert fingerprint(5, SMALL) == before
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


# --- masks and images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 300), (200, 64), (32, 32), (256, 512)])
def test_any_size(size: tuple[int, int]) -> None:
    for seed in range(4):
        image, mask = draw_scene(seed, size)
        assert (image.height, image.width) == mask.shape == size
        assert mask.max() < N


def test_a_larger_image_shows_the_same_scene() -> None:
    for seed in range(6):
        small, large = draw_scene(seed, (128, 256))[1], draw_scene(seed, (384, 768))[1]
        assert (large[1::3, 1::3] == small).mean() > 0.97, seed  # [1::3]: the middles of the small one's pixels


def test_pixels_are_painted_as_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the colors of the palette, in neutral light, the image is the colored mask, but for the blur."""
    pixel = draw.pixel

    def plain(what: int, _: object, z: float = 0, grain: int = 0, shines: bool = False) -> int:
        return pixel(what, SPACE.palette[what], z, 0, shines)

    sky = SPACE.palette[draw.SKY]
    neutral = draw.Weather(1, sky, sky, (256, 256, 256), 0, 256, 0, 128, 0)
    for module in (draw, street, buildings, things):
        monkeypatch.setattr(module, "pixel", plain)
    monkeypatch.setattr(draw, "WEATHERS", {"plain": neutral})
    seen = set()
    for seed in range(8):
        drawn = draw.Scene(random.Random(seed), 128, 256)
        _draw_everything(drawn)
        mask = draw_scene(seed, (128, 256))[1]
        monkeypatch.setattr(drawn, "between", lambda low, high: (low + high) / 2)  # neither exposure nor tint
        image = photo.develop(drawn, seed)
        nearest = ((image[:, :, None].astype(int) - np.array(SPACE.palette)) ** 2).sum(-1).argmin(-1)
        around = [np.roll(mask, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)]
        inner = np.all([other == mask for other in around], 0)  # where no other class is blurred in
        np.testing.assert_array_equal(nearest[inner], mask[inner])
        seen |= set(np.unique(mask[inner]).tolist())
    assert seen >= set(range(N)) - {draw.LIGHT}  # often too small to have an inside


def test_edges_of_image_and_mask_coincide(scenes: list[Pair]) -> None:
    """Of all shifts, the image changes most where the mask does with none."""
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    change = dict.fromkeys(shifts, 0.0)
    for image, mask in scenes[:60]:
        gray = image.astype(float).mean(-1)
        steps = (abs(np.diff(gray, axis=0)), abs(np.diff(gray, axis=1)))
        edges = (np.diff(mask.astype(int), axis=0) != 0, np.diff(mask.astype(int), axis=1) != 0)
        for shift in shifts:
            change[shift] += sum(float(s[np.roll(e, shift, (0, 1))].mean()) for s, e in zip(steps, edges, strict=True))
    assert max(change, key=lambda shift: change[shift]) == (0, 0)
    assert change[0, 0] > 1.15 * max(value for shift, value in change.items() if shift != (0, 0))


# --- variety --------------------------------------------------------------------------------------------------


def test_no_two_scenes_are_equal(scenes: list[Pair]) -> None:
    assert len({mask.tobytes() for _, mask in scenes}) == len(scenes)
    assert len({image.tobytes() for image, _ in scenes}) == len(scenes)


def test_every_class_is_frequent_enough_and_its_share_varies(scenes: list[Pair]) -> None:
    parts = np.array([np.bincount(mask.ravel(), minlength=N) / mask.size for _, mask in scenes])
    shares, there = parts.mean(0), (parts > 0).mean(0)
    least = {  # share of the pixels, and of the scenes that show the class
        "road": (0.15, 0.95), "sidewalk": (0.04, 0.95), "building": (0.2, 0.95), "pole": (0.005, 0.9),
        "traffic light": (0.0005, 0.4), "traffic sign": (0.003, 0.7), "vegetation": (0.04, 0.8),
        "terrain": (0.005, 0.5), "sky": (0.06, 0.9), "person": (0.004, 0.8), "car": (0.04, 0.9),
    }  # fmt: skip
    assert tuple(least) == CLASSES
    for name, share, seen in zip(CLASSES, shares, there, strict=True):
        assert (share >= least[name][0], seen >= least[name][1]) == (True, True), (name, share, seen)
    assert shares.max() < 0.5
    # the shares vary from scene to scene by no less than a quarter of their mean
    assert (parts.std(0) > shares / 4).all()


def test_light_varies(scenes: list[Pair]) -> None:
    brightness = np.array([image.mean() for image, _ in scenes])
    assert brightness.min() < 60
    assert brightness.max() > 150
    assert brightness.std() > 20


def test_color_and_height_alone_do_not_predict_the_class(scenes: list[Pair]) -> None:
    """A table from quantized color and row to the most frequent class there, which is all but useless."""

    def places(image: NDArray[np.uint8]) -> NDArray[np.intp]:
        levels = (image >> 5).astype(np.intp)
        row = (np.arange(image.shape[0]) // 4)[:, None]
        return ((row * 8 + levels[..., 0]) * 8 + levels[..., 1]) * 8 + levels[..., 2]

    counts = np.zeros((16 * 512, N))
    for image, mask in scenes[:150]:
        np.add.at(counts, (places(image), mask), 1)
    confusion = np.zeros((N, N))
    for image, mask in scenes[150:]:
        np.add.at(confusion, (mask, counts.argmax(1)[places(image)]), 1)
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert iou.mean() < 0.35
    assert (iou[[CLASSES.index(name) for name in ("sidewalk", "person", "car", "pole")]] < 0.3).all()
