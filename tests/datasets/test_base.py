"""Every layout is read exactly, and what is wrong with one is said, with the file and the value."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from isanet.datasets import ADE20K, VOC2012, Cityscapes, Folder, PascalContext, SegmentationDataset, open_dataset
from isanet.errors import DatasetError, ImageError
from isanet.images.reading import read_image
from isanet.labels import IGNORED
from tests.helpers import replicas
from tests.helpers.replicas import Replica

OFFICIAL: dict[str, tuple[Callable[..., dict[str, Replica]], type[SegmentationDataset]]] = {
    "voc": (replicas.voc, VOC2012),
    "ade20k": (replicas.ade20k, ADE20K),
    "cityscapes": (replicas.cityscapes, Cityscapes),
    "context59": (replicas.pascal_context, PascalContext),
}


LAYOUTS: dict[str, tuple[Callable[..., dict[Any, Replica]], type[SegmentationDataset]]] = {
    **OFFICIAL,
    "folder": (replicas.folder, Folder),
}


def check(dataset: SegmentationDataset, replica: Replica) -> None:
    """Every sample, its image and its mask, in the order of the keys."""
    assert dataset.keys == replica.keys
    assert len(dataset) == len(replica.keys)
    assert dataset.has_masks
    assert dataset.label_space == replica.space
    assert (dataset.classes, dataset.palette) == (replica.space.classes, replica.space.palette)
    for i, key in enumerate(replica.keys):
        assert (dataset.image_path(i), dataset.mask_path(i)) == (replica.image_files[key], replica.mask_files[key])
        image, mask = dataset.read(i)
        assert mask is not None
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)
        np.testing.assert_array_equal(mask, replica.masks[key])
        np.testing.assert_array_equal(image, read_image(replica.image_files[key]))
        # the replicas paint the classes: an image that is another sample's, or BGR, would show
        assert np.abs(image.astype(int) - replicas.paint(replica.masks[key], replica.space)).mean() < 12
        pil_image, labels = dataset[i]
        assert (pil_image.mode, labels.mode) == ("RGB", "L")
        np.testing.assert_array_equal(np.asarray(pil_image), image)
        np.testing.assert_array_equal(np.asarray(labels), mask)


CROP = v2.Compose(
    [
        v2.RandomCrop(16),
        v2.RandomHorizontalFlip(1.0),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
    ]
)


def augment(image: Image.Image, mask: Image.Image) -> Any:
    return CROP(tv_tensors.Image(image), tv_tensors.Mask(mask))


def test_transforms_of_v2_move_image_and_mask_together(tmp_path: Path) -> None:
    replica = replicas.cityscapes(tmp_path)["val"]
    for image, mask in Cityscapes(tmp_path, transforms=augment):
        assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
        assert (mask.shape, mask.dtype) == ((1, 16, 16), torch.uint8)
        painted = replicas.paint(mask[0].numpy(), replica.space)
        np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), painted)


def test_transform_and_target_transform(tmp_path: Path) -> None:
    replica = replicas.folder(tmp_path)[None]
    dataset = Folder(tmp_path, transform=lambda image: image.size, target_transform=lambda mask: np.asarray(mask))
    size, mask = dataset[0]
    assert size == replica.masks[replica.first].shape[::-1]
    np.testing.assert_array_equal(mask, replica.masks[replica.first])
    with pytest.raises(ValueError, match="transforms or transform"):
        Folder(tmp_path, transform=lambda image: image, transforms=augment)


# A fresh process imports torch for seconds, so there is but one.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_worker_processes_read_the_same(tmp_path: Path, method: str, workers: int) -> None:
    replica = replicas.voc(tmp_path)["val"]
    loader = DataLoader(VOC2012(tmp_path), batch_size=None, num_workers=workers, multiprocessing_context=method)
    for (image, mask), key in zip(loader, replica.keys, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), replica.masks[key])
        np.testing.assert_array_equal(np.asarray(image), read_image(replica.image_files[key]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_survives_pickling(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    replica = next(iter(make(tmp_path).values()))
    check(pickle.loads(pickle.dumps(kind(tmp_path, replica.split))), replica)


def test_indices_are_those_of_lists(tmp_path: Path) -> None:
    replica = replicas.folder(tmp_path)[None]
    dataset = Folder(tmp_path)
    assert dataset.image_path(-1) == replica.image_files[replica.keys[-1]]
    np.testing.assert_array_equal(np.asarray(dataset[-1][1]), replica.masks[replica.keys[-1]])
    np.testing.assert_array_equal(np.asarray(dataset[np.int64(1)][1]), replica.masks[replica.keys[1]])
    for wrong in (len(dataset), -len(dataset) - 1):
        for reads in (dataset.__getitem__, dataset.read, dataset.image_path, dataset.mask_path):
            with pytest.raises(IndexError):
                reads(wrong)
    assert len(list(dataset)) == len(dataset)
    assert repr(dataset) == f"Folder({tmp_path}, 4 images, 4 classes: sky, land, water, …)"


# Layout, trap, parts of the message; FILE stands for the first sample's mask, IMAGE for its image, LIST for the list.
WRONG_WHEN_MADE = [
    ("voc", "missing mask", ["1 of the samples", "have no mask: '2007_000033'"]),
    ("voc", "missing image", ["have no image: '2007_000033'"]),
    ("voc", "line leads out", ["LIST", "line 5", "'../../secret'", "leads out"]),
    ("voc", "line is absolute", ["LIST", "line 5", "'/etc/passwd'", "leads out"]),
    ("voc", "line leads to a drive", ["LIST", "line 5", "leads out"]),
    ("voc", "line twice", ["LIST", "line 5", "'2007_000033'", "line 1"]),
    ("voc", "line with paths", ["LIST", "line 1", "/JPEGImages/a.jpg", "expected one name"]),
    ("voc", "empty list", ["LIST", "is empty"]),
    ("voc", "no list", ["there is no list", "LIST"]),
    ("voc", "UTF-16 list", ["LIST", "UTF-8"]),
    ("ade20k", "missing mask", ["ADE20K val", "have no mask: 'ADE_val_00000001'"]),
    ("ade20k", "missing image", ["have no image: 'ADE_val_00000001'"]),
    ("cityscapes", "missing mask", ["have no mask: 'frankfurt/frankfurt_000000_000019'"]),
    ("cityscapes", "missing image", ["have no image: 'frankfurt/frankfurt_000000_000019'"]),
    ("cityscapes", "train ids alone", ["labelTrainIds.png alone", "script", "labelIds.png", "gtFine_trainvaltest.zip"]),
    ("context59", "line leads out", ["LIST", "line 5", "'../../secret'", "leads out"]),
    ("context59", "missing mask", ["have no mask: '2008_000101'"]),
    ("folder", "missing mask", ["have no mask: 'pic 0.0'"]),
    ("folder", "missing image", ["have no image: 'pic 0.0'"]),
]


EVERY_READING = [
    ("truncated mask", ["FILE", "cannot be read"]),
    ("empty mask", ["FILE", "is empty (0 bytes)"]),
    ("small mask", ["IMAGE is 53x37", "FILE is 53x36"]),
    ("narrow mask", ["IMAGE is 53x37", "FILE is 52x37"]),
    ("rotated image", ["IMAGE is 37x53", "FILE is 53x37", "EXIF"]),
    ("stray value", ["FILE", "200 (3 pixels)"]),
    ("RGB mask", ["FILE", "is in colors"]),
    ("JPEG mask", ["FILE", "JPEG"]),
]


WRONG_WHEN_READ = [(layout, trap, parts) for layout in LAYOUTS for trap, parts in EVERY_READING] + [
    ("folder", "stray value", ["ignore='rest'", "ids=", "isanet check-masks", "ROOT/masks"]),
    ("folder", "16-bit mask", ["FILE", "65535 (", "ignore="]),
    ("voc", "stray value", ["0 to 20, and 255"]),
    ("ade20k", "stray value", ["0 to 150"]),
    ("cityscapes", "stray value", ["0 to 33"]),
    ("context59", "stray value", ["0 to 59"]),
]


def expect(error: pytest.ExceptionInfo[Exception], replica: Replica, parts: list[str]) -> None:
    names = {
        "FILE": replica.mask_files.get(replica.first),
        "IMAGE": replica.image_files[replica.first],
        "LIST": replica.list_file,
        "ROOT": replica.root,
    }
    for part in parts:
        for name, path in names.items():
            part = part.replace(name, str(path))
        assert part in str(error.value)


@pytest.mark.parametrize(("layout", "trap", "parts"), WRONG_WHEN_MADE)
def test_problems_of_lists_and_folders_are_found_at_construction(
    tmp_path: Path, layout: str, trap: str, parts: list[str]
) -> None:
    make, kind = LAYOUTS[layout]
    replica = next(replica for split, replica in make(tmp_path, traps=[trap]).items() if split in ("val", None))
    with pytest.raises(DatasetError) as error:
        kind(tmp_path)
    expect(error, replica, parts)


@pytest.mark.parametrize(("layout", "trap", "parts"), WRONG_WHEN_READ)
def test_problems_of_files_are_found_when_they_are_read(
    tmp_path: Path, layout: str, trap: str, parts: list[str]
) -> None:
    make, kind = LAYOUTS[layout]
    replica = next(replica for split, replica in make(tmp_path, traps=[trap]).items() if split in ("val", None))
    dataset = kind(tmp_path)
    for reads in (dataset.read, dataset.__getitem__):
        with pytest.raises(DatasetError) as error:
            reads(0)
        expect(error, replica, parts)
    np.testing.assert_array_equal(dataset.read(1)[1], replica.masks[replica.keys[1]])  # the others are none the worse


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unreadable_image_is_an_image_error(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    replica = next(
        replica for split, replica in make(tmp_path, traps=["truncated image"]).items() if split in ("val", None)
    )
    with pytest.raises(ImageError) as error:
        kind(tmp_path)[0]
    expect(error, replica, ["IMAGE"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_split_is_an_error(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    replica = next(replica for split, replica in make(tmp_path).items() if split in ("val", None))
    for path in [*replica.image_files.values(), *replica.mask_files.values()]:
        path.unlink()
    if replica.list_file:
        replica.list_file.write_text("\n")
    with pytest.raises(DatasetError, match=r"no sample|is empty"):
        kind(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_masks_over_max_pixels_are_refused(tmp_path: Path, layout: str) -> None:
    make, _ = LAYOUTS[layout]
    replica = next(replica for split, replica in make(tmp_path).items() if split in ("val", None))
    dataset = open_dataset(tmp_path, replica.split, max_pixels=1000)
    with pytest.raises(ImageError, match="more than the limit of 1,000"):
        dataset.read(0)
    Image.new("RGB", (1, 1)).save(replica.image_files[replica.first])
    with pytest.raises(DatasetError, match="more than the limit of 1,000"):
        dataset.read(0)


def test_the_fingerprint_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    replicas.folder(tmp_path)
    dataset = Folder(tmp_path)
    before = dataset.fingerprint(range(len(dataset)))
    assert dataset.fingerprint(range(len(dataset))) == before
    dataset.image_path(1).unlink()
    with pytest.raises(DatasetError, match=r"pic 1\.0\.png cannot be read"):
        dataset.fingerprint(range(len(dataset)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replicas_are_equal_for_equal_seeds_and_tell_their_classes(tmp_path: Path, layout: str) -> None:
    make, _ = LAYOUTS[layout]
    first, again, other = (make(tmp_path / str(i) / "x", seed=seed) for i, seed in enumerate((0, 0, 1)))
    for replica, same, different in zip(first.values(), again.values(), other.values(), strict=True):
        for key in replica.keys:
            assert replica.image_files[key].read_bytes() == same.image_files[key].read_bytes()
        assert any((replica.masks[key] != different.masks[key]).any() for key in replica.keys)
        for key in replica.keys:
            pixels = read_image(replica.image_files[key]).astype(int)[..., None, :]
            colors = np.array([*replica.space.palette, replicas.BORDER])
            nearest = np.abs(pixels - colors).sum(-1).argmin(-1)
            wrong = nearest != np.where(replica.masks[key] == IGNORED, len(replica.space), replica.masks[key])
            assert wrong.mean() < (0.02 if replica.image_files[key].suffix == ".jpg" else 1e-9)
