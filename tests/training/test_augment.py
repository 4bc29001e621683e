from __future__ import annotations

import colorsys
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from isanet.images.preprocess import preprocess, target_size
from isanet.training import Recipe
from isanet.training.augment import CROP_TRIES, augment, augmentation, change_colors, random_crop

VOC: dict[str, Any] = {
    "short_edge": 64,
    "long_edge": 256,
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
}
PALETTE = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [128, 128, 128]], np.uint8)
STILL = Recipe(crop=(64, 64), scale_range=(1.0, 1.0), flip=0.0, photometric=0.0, max_class_share=1.0)


def scene(height: int = 90, width: int = 130, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """An image painted by class, in four colors, with ignored pixels black; and its mask."""
    blocks = np.random.RandomState(seed).choice([0, 1, 2, 3, 255], (height // 10 + 1, width // 10 + 1))
    mask = blocks.repeat(10, 0).repeat(10, 1)[:height, :width].astype(np.uint8)
    image = np.where((mask == 255)[..., None], 0, PALETTE[mask.clip(max=3)]).astype(np.uint8)
    return Image.fromarray(image), Image.fromarray(mask)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(image_3HW: Tensor) -> Tensor:
    """Normalized -> (H, W, 3) of 0..255."""
    mean, std = (torch.tensor(VOC[name])[:, None, None] for name in ("mean", "std"))
    return (image_3HW * std + mean).permute(1, 2, 0)


def inside(mask_HW: Tensor) -> Tensor:
    """Where all neighbors have the same value, so that no two classes are interpolated."""
    same = torch.ones_like(mask_HW, dtype=torch.bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            same &= mask_HW.roll((dy, dx), (0, 1)) == mask_HW
    same[[0, -1]] = same[:, [0, -1]] = False
    return same


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_stay_together(seed: int) -> None:
    recipe = replace(STILL, crop=(80, 70), scale_range=(0.5, 2.0), flip=0.5, max_class_share=0.75)
    image, mask = augment(*scene(), recipe, VOC, generator(seed))
    assert image.shape == (3, 80, 70)
    assert mask.shape == (80, 70)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.uint8)
    assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 255}, "the mask was interpolated"
    clear = inside(mask) & (mask != 255)
    assert clear.float().mean() > 0.05  # at the smallest scale much is padding
    painted = torch.from_numpy(PALETTE)[mask[clear].long()].float()
    # In a small image, classes are only a few pixels wide, and a pixel that interpolation mixes with another class may
    # pass `inside`; its own class is always the nearest color.
    distance = (pixels(image)[clear][:, None] - torch.from_numpy(PALETTE).float()).norm(dim=-1)
    assert torch.equal(distance.argmin(dim=1), mask[clear].long())
    assert (pixels(image)[clear] - painted).abs().mean() < 2


def test_edges_of_image_and_mask_coincide() -> None:
    mask = np.zeros((64, 300), np.uint8)
    mask[:, 150:] = 1
    pair = Image.fromarray(mask * np.uint8(200)).convert("RGB"), Image.fromarray(mask)
    for scale in (0.5, 0.73, 1.0, 1.31, 2.0):
        image, labels = augment(*pair, replace(STILL, crop=(128, 600), scale_range=(scale, scale)), VOC)
        row = labels.shape[0] // 2
        in_image = (pixels(image)[row, :, 0] > 100)[labels[row] != 255]
        in_mask = (labels[row] == 1)[labels[row] != 255]
        assert (in_image != in_mask).sum() <= 1  # the pixel at the edge may be either


def test_without_randomness_it_equals_preprocess() -> None:
    photo = np.random.RandomState(0).randint(0, 256, (90, 130, 3)).astype(np.uint8)
    expected = preprocess(photo, **VOC)
    mask = Image.fromarray(np.zeros((90, 130), np.uint8))
    image, _ = augment(Image.fromarray(photo), mask, replace(STILL, crop=tuple(expected.shape[1:])), VOC)
    assert (image - expected).abs().max() <= 1.01 / min(VOC["std"])  # one gray level, from torchvision's rounding
    small = photo[:64, :64]
    mask = Image.fromarray(np.zeros((64, 64), np.uint8))
    image, _ = augment(Image.fromarray(small), mask, STILL, VOC)
    torch.testing.assert_close(image, preprocess(small, **VOC), rtol=1e-6, atol=1e-6)


def test_scales_are_multiples_of_the_inference_size() -> None:
    photo, mask = scene(90, 130)
    seen = []
    for seed in range(60):
        recipe = replace(STILL, crop=(300, 300), scale_range=(0.5, 2.0))
        _, labels = augment(photo, Image.new("L", photo.size), recipe, VOC, generator(seed))
        rows, columns = (labels != 255).any(dim=1).sum().item(), (labels != 255).any(dim=0).sum().item()
        scale = torch.rand((), generator=generator(seed), dtype=torch.float64).item() * 1.5 + 0.5
        edges = {"short_edge": int(64 * scale), "long_edge": int(256 * scale)}
        assert (rows, columns) == target_size(90, 130, **edges)
        seen.append(rows)
    assert min(seen) < 45
    assert max(seen) > 115
    fixed = augment(photo, mask, replace(STILL, crop=(300, 300), scale_range=(1.5, 1.5)), VOC)[1]
    assert (fixed != 255).any(dim=1).sum() == 96


def test_images_that_are_not_resized_are_scaled_by_their_own_size() -> None:
    plain = {"mean": VOC["mean"], "std": VOC["std"]}
    padded = plain | {"pad_to": [60, 100], "pad_color": [0, 0, 0]}
    # 90x130 fits 60x100 as 60x87; padding is for inference alone
    for preprocessing, (height, width) in ((plain, (135, 195)), (padded, (90, 130))):
        photo, mask = scene(90, 130)
        recipe = replace(STILL, crop=(300, 300), scale_range=(1.5, 1.5))
        labels = augment(photo, Image.new("L", mask.size), recipe, preprocessing)[1]
        assert (labels != 255).any(dim=1).sum() == height
        assert (labels != 255).any(dim=0).sum() == width
    photo, mask = scene(64, 64)
    image, _ = augment(photo, mask, STILL, plain)
    torch.testing.assert_close(image, preprocess(np.asarray(photo), **plain), rtol=1e-6, atol=1e-6)


def test_channels_are_in_the_models_order() -> None:
    photo, mask = scene(64, 64)
    bgr = {name: VOC[name][::-1] for name in ("mean", "std")} | {"channels": "BGR"}
    for recipe in (STILL, replace(STILL, photometric=1.0)):  # colors change as they do in RGB
        image, _ = augment(photo, mask, recipe, {**VOC, **bgr}, generator())
        expected, _ = augment(photo, mask, recipe, VOC, generator())
        assert torch.equal(image, expected.flip(0))


def test_padding_is_the_mean_is_ignored_and_lies_where_upstreams_does() -> None:
    photo = Image.new("RGB", (100, 64), (255, 255, 255))
    image, mask = augment(photo, Image.new("L", (100, 64)), replace(STILL, crop=(71, 151)), VOC)
    counted = torch.zeros(71, 151, dtype=torch.bool)
    counted[3:67, 25:125] = True  # an odd row or column is padded at the end
    assert torch.equal(mask == 0, counted)
    assert torch.equal(mask == 255, ~counted)
    assert not image[:, ~counted].any()
    assert (image[:, counted] > 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (400, 1), (3, 2), (64, 64), (65, 63), (200, 300)])
@pytest.mark.parametrize("crop", [(1, 1), (33, 64), (64, 33)])
def test_every_size_gives_the_crop(size: tuple[int, int], crop: tuple[int, int]) -> None:
    call = augmentation(Recipe(crop=crop), VOC)
    torch.manual_seed(0)
    image, mask = call(Image.new("RGB", size), Image.new("L", size))
    assert image.shape == (3, *crop)
    assert mask.shape == crop
    assert image.isfinite().all()
    assert image.is_contiguous()
    assert mask.is_contiguous()
    assert image.untyped_storage().nbytes() == 4 * 3 * crop[0] * crop[1], "the whole image is kept in memory"


def test_flips_have_their_probability() -> None:
    ramp = np.arange(64, dtype=np.uint8)[None].repeat(64, 0)
    pair = Image.fromarray(ramp).convert("RGB"), Image.fromarray(ramp)
    for flip, low, high in ((0.0, 0, 0), (1.0, 200, 200), (0.25, 30, 70)):
        random = generator(1)
        flipped = 0
        for _ in range(200):
            image, mask = augment(*pair, replace(STILL, flip=flip), VOC, random)
            assert bool(mask[0, 0] == 63) == bool(image[0, 0, 0] > image[0, 0, -1])
            flipped += bool(mask[0, 0] == 63)
        assert low <= flipped <= high


def test_crops_come_from_every_position() -> None:
    random = generator(2)
    places = [random_crop(torch.zeros(12, 15, dtype=torch.uint8), (10, 10), 1.0, random) for _ in range(300)]
    assert {(top, left) for top, left, _, _ in places} == {(top, left) for top in range(3) for left in range(6)}
    assert {place[2:] for place in places} == {(10, 10)}


def test_no_class_dominates_a_crop_where_possible() -> None:
    mask = torch.zeros(40, 200, dtype=torch.uint8)
    mask[:, 100:] = 1
    mask[:20] = 255  # ignored pixels do not count

    def largest_share(seed: int, share: float) -> float:
        top, left, height, width = random_crop(mask, (40, 40), share, generator(seed))
        counts = mask[top : top + height, left : left + width].flatten().bincount()[:255]
        return (counts.max() / counts.sum()).item()

    ruled = [largest_share(seed, 0.75) for seed in range(200)]
    free = [largest_share(seed, 1.0) for seed in range(200)]
    # One position in eight satisfies it, so that (7/8) ** 10 = 26 % of all crops find none in ten tries.
    assert 0.6 < np.mean([share < 0.75 for share in ruled]) < 0.87
    assert np.mean([share < 0.75 for share in free]) < 0.25


@pytest.mark.parametrize(("share", "tries"), [(0.75, CROP_TRIES), (1.0, 1)])
def test_an_image_of_one_class_is_cropped_after_all_tries(
    share: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        return drawn(*arguments, **options)

    drawn: Callable[..., Tensor] = torch.randint
    monkeypatch.setattr(torch, "randint", counting)
    for value in (0, 255):
        calls.clear()
        random_crop(torch.full((50, 50), value, dtype=torch.uint8), (20, 20), share)
        assert len(calls) == 2 * tries  # top and left


def test_colors_change_as_upstream_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    x = torch.from_numpy(random.randint(0, 256, (3, 4, 5))).float()
    x[:, 0, 0], x[:, 0, 1] = 0, 255
    x[:, 0, 2] = torch.tensor([200.0, 0, 0])

    def hsv(change: Callable[[float, float, float], tuple[float, float, float]]) -> Tensor:
        table = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in (x / 255).flatten(1).T.tolist()]
        return torch.tensor(table).T.reshape(x.shape) * 255

    # The random numbers in order: whether each change happens, and how large it is
    def changed(draws: list[float]) -> Tensor:
        queue = iter(draws)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(next(queue), dtype=torch.float64))
        result = change_colors(x, 0.5)
        assert next(queue, None) is None
        return result

    no, yes, first, last = 0.9, 0.1, 0.1, 0.9
    expected = {
        "nothing": ([no, last, no, no, no], x),
        "brightness": ([yes, 1.0, last, no, no, no], (x + 32).clamp(0, 255)),
        "less brightness": ([yes, 0.0, last, no, no, no], (x - 32).clamp(0, 255)),
        "contrast first": ([no, first, yes, 1.0, no, no], (x * 1.5).clamp(0, 255)),
        "contrast last": ([no, last, no, no, yes, 0.0], x * 0.5),
        "saturation": ([no, last, yes, 1.0, no, no], hsv(lambda h, s, v: (h, min(1.0, 1.5 * s), v))),
        "less saturation": ([no, last, yes, 0.0, no, no], hsv(lambda h, s, v: (h, 0.5 * s, v))),
        "hue": ([no, last, no, yes, 1.0, no], hsv(lambda h, s, v: ((h + 0.1) % 1, s, v))),
        "hue back": ([no, last, no, yes, 0.0, no], hsv(lambda h, s, v: ((h - 0.1) % 1, s, v))),
        "order": ([yes, 1.0, first, yes, 0.0, no, no], (x + 32).clamp(0, 255) * 0.5),
    }
    for name, (draws, result) in expected.items():
        torch.testing.assert_close(
            changed(draws), result, rtol=1e-4, atol=1e-2, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_each_color_change_has_its_probability() -> None:
    x = torch.tensor([200.0, 100.0, 50.0])[:, None, None]
    random = generator(3)
    for probability in (0.0, 0.5, 1.0):
        unchanged = sum(torch.equal(change_colors(x, probability, random), x) for _ in range(400))
        expected = 400 * (1 - probability) ** 4
        assert abs(unchanged - expected) < 15
    assert torch.equal(x.flatten(), torch.tensor([200.0, 100.0, 50.0])), "the input was changed"


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_colors_stay_in_their_range(probability: float) -> None:
    random = generator(4)
    for _ in range(50):
        x = torch.rand(3, 8, 8, generator=random) * 255
        x[:, 0] = x[:, 0].round() // 255 * 255
        changed = change_colors(x, probability, random)
        assert changed.isfinite().all()
        assert changed.min() >= -0.01
        assert changed.max() <= 255.01


def test_a_sample_depends_only_on_the_seed() -> None:
    call = augmentation(Recipe(crop=(48, 48)), VOC)
    samples = []
    for copy in (call, pickle.loads(pickle.dumps(call))):
        torch.manual_seed(5)
        samples.append(copy(*scene()))
    state = torch.get_rng_state()
    np.random.seed(0)
    own = [call(*scene(), generator=generator(6)) for _ in range(2)]  # type: ignore[call-arg]
    assert torch.equal(torch.get_rng_state(), state), "a generator was given, and the global one was used"
    for first, second in (samples, own):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    assert not torch.equal(samples[0][0], own[0][0])


class Scenes:
    """A dataset that needs no file."""

    def __init__(self, transforms: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.transforms = transforms

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transforms(*scene(seed=index))


def test_loader_workers_give_different_and_reproducible_samples() -> None:
    scenes = Scenes(augmentation(Recipe(crop=(32, 32)), VOC))

    def epoch(seed: int) -> Tensor:
        loader = DataLoader(scenes, batch_size=2, num_workers=2, generator=generator(seed))  # type: ignore[arg-type]
        return torch.cat([images for images, _ in loader])

    assert torch.equal(epoch(7), epoch(7))
    assert not torch.equal(epoch(7), epoch(8))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (Image.new("RGB", (5, 4)), Image.new("L", (4, 5))),
        (Image.new("L", (5, 4)), Image.new("L", (5, 4))),
        (Image.new("RGB", (5, 4)), Image.new("RGB", (5, 4))),
    ],
)
def test_wrong_pairs_are_errors(image: Image.Image, mask: Image.Image) -> None:
    with pytest.raises(ValueError, match="RGB image and a mask"):
        augment(image, mask, STILL, VOC)


def test_a_palette_mask_is_read_as_indices() -> None:
    _, mask = scene(64, 64)
    palette = mask.copy()
    palette.putpalette([255 - i // 3 for i in range(768)])
    assert palette.mode == "P"
    image = Image.new("RGB", (64, 64))
    assert torch.equal(augment(image, palette, STILL, VOC)[1], augment(image, mask, STILL, VOC)[1])
