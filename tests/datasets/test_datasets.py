"""Every layout is read exactly, and what is wrong with one is said, with the file and the value."""

from __future__ import annotations

import json
import os
import pickle
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from isanet.datasets import ADE20K, VOC2012, Cityscapes, Folder, SegmentationDataset, ToyStreets, open_dataset
from isanet.errors import DatasetError, ImageError
from isanet.images.reading import read_image
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, custom_space
from isanet.weights.manifest import manifest_path
from tests.helpers import replicas
from tests.helpers.replicas import Truth

OFFICIAL: dict[str, tuple[Callable[..., dict[str, Truth]], type[SegmentationDataset]]] = {
    "voc": (replicas.voc, VOC2012),
    "ade20k": (replicas.ade20k, ADE20K),
    "cityscapes": (replicas.cityscapes, Cityscapes),
}
LAYOUTS: dict[str, tuple[Callable[..., dict[Any, Truth]], type[SegmentationDataset]]] = {
    **OFFICIAL,
    "folder": (replicas.folder, Folder),
}


def check(dataset: SegmentationDataset, truth: Truth) -> None:
    """Every sample, its image and its mask, in the order of the truth."""
    assert dataset.keys == truth.keys
    assert len(dataset) == len(truth.keys)
    assert dataset.has_masks
    assert dataset.label_space == truth.space
    assert (dataset.classes, dataset.palette) == (truth.space.classes, truth.space.palette)
    for i, key in enumerate(truth.keys):
        assert (dataset.image_path(i), dataset.mask_path(i)) == (truth.image_files[key], truth.mask_files[key])
        image, mask = dataset.read(i)
        assert mask is not None
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)
        np.testing.assert_array_equal(mask, truth.masks[key])
        np.testing.assert_array_equal(image, read_image(truth.image_files[key]))
        # the replicas paint the classes: an image that is another sample's, or BGR, would show
        assert np.abs(image.astype(int) - replicas.paint(truth.masks[key], truth.space)).mean() < 12
        pil_image, labels = dataset[i]
        assert (pil_image.mode, labels.mode) == ("RGB", "L")
        np.testing.assert_array_equal(np.asarray(pil_image), image)
        np.testing.assert_array_equal(np.asarray(labels), mask)


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", OFFICIAL)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_official_layout_reads_the_truth(tmp_path: Path, layout: str, split: str) -> None:
    make, kind = OFFICIAL[layout]
    truth = make(tmp_path)[split]
    assert any((mask == IGNORED).any() for mask in truth.masks.values())
    check(kind(tmp_path, split), truth)
    check(open_dataset(str(tmp_path), split), truth)


def test_val_is_the_split_that_is_meant(tmp_path: Path) -> None:
    for layout, (make, kind) in OFFICIAL.items():
        truth = make(tmp_path / layout)["val"]
        assert kind(tmp_path / layout).keys == open_dataset(tmp_path / layout).keys == truth.keys
        assert kind(tmp_path / layout).split == "val"


def test_names_splits_and_sizes_are_those_of_the_published_figures(tmp_path: Path) -> None:
    published = {w["metrics"]["dataset"] for w in json.loads(manifest_path().read_text())["weights"].values()}
    drawn = ToyStreets(count=200, split="test")
    assert (drawn.name in published, drawn.official_size) == (True, len(drawn))
    assert ToyStreets(count=200, seed=1, split="test").official_size is None
    sizes = {}
    for layout, (make, kind) in OFFICIAL.items():
        make(tmp_path / layout)
        sizes[kind(tmp_path / layout).name] = kind(tmp_path / layout).official_size
        for split in {"train", "trainval", "test"} & set(kind.splits):
            if (layout, split) != ("ade20k", "test"):
                assert kind(tmp_path / layout, split).official_size is None
    assert set(sizes) == published - {drawn.name}
    assert sizes == {"PASCAL VOC 2012": 1449, "ADE20K": 2000, "Cityscapes": 500}


@pytest.mark.parametrize("home", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_wherever_it_was_unpacked(tmp_path: Path, home: str) -> None:
    truths = replicas.voc(tmp_path, home=home)
    check(VOC2012(tmp_path, "trainval"), truths["trainval"])
    check(open_dataset(tmp_path, "trainval"), truths["trainval"])


def test_ade20k_itself_is_a_root_and_the_long_names_are_splits(tmp_path: Path) -> None:
    truths = replicas.ade20k(tmp_path)
    check(ADE20K(tmp_path / "ADEChallengeData2016", "validation"), truths["val"])
    check(ADE20K(tmp_path, "training"), truths["train"])
    assert ADE20K(tmp_path, "validation").split == "val"
    assert ADE20K(tmp_path, "validation").official_size == 2000


@pytest.mark.parametrize("layout", OFFICIAL)
def test_a_test_split_has_images_alone(tmp_path: Path, layout: str) -> None:
    make, kind = OFFICIAL[layout]
    make(tmp_path)
    if layout == "ade20k":
        for i in range(2):
            pixels = np.full((9, 7, 3), i, np.uint8)
            replicas.save(tmp_path / "release_test" / "testing" / f"ADE_test_0000000{i}.jpg", pixels)
    dataset = kind(tmp_path, "test")
    assert not dataset.has_masks
    assert dataset.official_size is None
    assert dataset.mask_path(0) is None
    image, mask = dataset.read(0)
    assert mask is None
    np.testing.assert_array_equal(image, read_image(dataset.image_path(0)))
    with pytest.raises(DatasetError, match=r"truth of .* test in .* not published"):
        dataset[0]


@pytest.mark.parametrize("place", ["ADEChallengeData2016/images/testing", "ADEChallengeData2016/release_test/testing"])
def test_ade20k_test_images_are_found_in_the_dataset_too(tmp_path: Path, place: str) -> None:
    replicas.ade20k(tmp_path)
    replicas.save(tmp_path / place / "ADE_test_00000001.jpg", np.zeros((9, 7, 3), np.uint8))
    assert ADE20K(tmp_path, "test").keys == ADE20K(tmp_path, "testing").keys == ["ADE_test_00000001"]


@pytest.mark.parametrize("place", ["images/testing", "release_test/testing"])
def test_ade20k_test_images_are_found_without_the_rest(tmp_path: Path, place: str) -> None:
    replicas.save(tmp_path / place / "ADE_test_00000001.jpg", np.zeros((9, 7, 3), np.uint8))
    assert open_dataset(tmp_path, "test").keys == ["ADE_test_00000001"]


@pytest.mark.parametrize("split", ["training", "validation"])
def test_ade20k_is_known_by_either_split(tmp_path: Path, split: str) -> None:
    truths = replicas.ade20k(tmp_path)
    other = {"training": "validation", "validation": "training"}[split]
    (tmp_path / "ADEChallengeData2016" / "images" / other).rename(tmp_path / "away")
    check(open_dataset(tmp_path, split), truths[split.removesuffix("ing").removesuffix("idation")])


@pytest.mark.parametrize("folder", ["SegmentationClass", "ImageSets"])
def test_voc_is_known_by_masks_or_lists(tmp_path: Path, folder: str) -> None:
    replicas.voc(tmp_path, home=".")
    (tmp_path / folder).rename(tmp_path / "away")
    if folder == "ImageSets":
        with pytest.raises(DatasetError, match=r"there is no list .*val\.txt"):
            open_dataset(tmp_path)
    else:
        assert len(open_dataset(tmp_path, "test")) == 1
    (tmp_path / {"SegmentationClass": "ImageSets", "ImageSets": "SegmentationClass"}[folder]).rename(tmp_path / "too")
    with pytest.raises(DatasetError, match="no known layout"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("layout", OFFICIAL)
def test_capitals_in_suffixes_make_no_difference(tmp_path: Path, layout: str) -> None:
    make, kind = OFFICIAL[layout]
    truth = make(tmp_path)["val"]
    for path in [*truth.image_files.values(), *truth.mask_files.values()]:
        path.rename(path.with_suffix(path.suffix.upper()))
    dataset = kind(tmp_path)
    assert dataset.keys == truth.keys
    np.testing.assert_array_equal(dataset.read(0)[1], truth.masks[truth.first])


def test_cityscapes_test_masks_are_not_read_though_they_are_there(tmp_path: Path) -> None:
    truth = replicas.cityscapes(tmp_path)["test"]
    assert Cityscapes(tmp_path, "test").keys == truth.keys


@pytest.mark.parametrize("name", ["benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_trainaug_is_made_from_sbd(tmp_path: Path, name: str) -> None:
    truths = replicas.voc(tmp_path)
    expected = replicas.sbd(tmp_path, truths)
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / name)
    assert dataset.keys == list(expected)
    assert dataset.official_size is None
    assert not set(dataset.keys) & set(truths["val"].keys)
    for i, key in enumerate(dataset.keys):
        np.testing.assert_array_equal(dataset.read(i)[1], expected[key])
    assert {path.suffix for path in map(dataset.mask_path, range(len(dataset))) if path} == {".png", ".mat"}


def test_trainaug_by_its_list_takes_the_converted_masks_first(tmp_path: Path) -> None:
    truths = replicas.voc(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    first, second = truths["train"].keys[:2]
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(f"{second}\n{first}\n")
    converted = np.full_like(truths["train"].masks[first], 7)
    replicas.save(home / "SegmentationClassAug" / f"{first}.png", converted)
    dataset = VOC2012(tmp_path, "trainaug")
    assert dataset.keys == [second, first]
    np.testing.assert_array_equal(dataset.read(0)[1], truths["train"].masks[second])
    np.testing.assert_array_equal(dataset.read(1)[1], converted)


def test_sbd_fills_in_what_the_list_of_trainaug_names_and_no_folder_has(tmp_path: Path) -> None:
    truths = replicas.voc(tmp_path)
    expected = replicas.sbd(tmp_path, truths)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    keys = [key for key in reversed(expected) if key != truths["train"].first]
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n".join(keys))
    with pytest.raises(DatasetError, match=r"2 of the samples .* no mask: .*SegmentationClassAug, or pass sbd="):
        VOC2012(tmp_path, "trainaug")
    converted = np.full_like(expected["2008_000002"], 7)
    replicas.save(home / "SegmentationClassAug" / "2008_000002.png", converted)
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE")
    assert dataset.keys == keys
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(dataset.read(i)[1], converted if key == "2008_000002" else expected[key])
    assert [path.name for path in map(dataset.mask_path, range(len(keys))) if path and path.suffix == ".mat"] == [
        "2008_000007.mat"
    ]


def test_without_list_and_sbd_both_ways_to_trainaug_are_said(tmp_path: Path) -> None:
    replicas.voc(tmp_path)
    with pytest.raises(DatasetError, match=r"sbd=.*trainaug\.txt.*SegmentationClassAug"):
        VOC2012(tmp_path, "trainaug")


def test_without_scipy_the_extra_is_named_before_the_first_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.sbd(tmp_path, replicas.voc(tmp_path))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DatasetError, match=r"pip install 'isanet\[sbd\]'"):
        VOC2012(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE")


def test_a_damaged_mask_of_sbd_is_named(tmp_path: Path) -> None:
    truths = replicas.voc(tmp_path)
    replicas.sbd(tmp_path, truths)
    path = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    path.write_bytes(path.read_bytes()[:150])
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE")
    with pytest.raises(DatasetError, match=r"2008_000002\.mat is no mask of SBD"):
        dataset[dataset.keys.index("2008_000002")]


@pytest.mark.parametrize("mask", [np.zeros((9, 7), np.int16), np.zeros((9, 7, 3), np.uint8)])
def test_another_array_in_the_place_of_a_mask_of_sbd_is_refused(tmp_path: Path, mask: Any) -> None:
    from scipy.io import savemat

    replicas.sbd(tmp_path, replicas.voc(tmp_path))
    cell = np.zeros((1, 1), [("Segmentation", object)])
    cell[0, 0]["Segmentation"] = mask
    savemat(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat", {"GTcls": cell})
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE")
    with pytest.raises(DatasetError, match=rf"2008_000002\.mat is no mask of SBD .*{mask.dtype} of shape"):
        dataset.read(dataset.keys.index("2008_000002"))


def test_masks_of_sbd_have_a_largest_size_and_their_files_other_contents_and_suffixes_in_capitals(
    tmp_path: Path,
) -> None:
    expected = replicas.sbd(tmp_path, replicas.voc(tmp_path))
    path = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    path.write_bytes(path.read_bytes() + b"what is not asked for is not read")
    path.rename(path.with_suffix(".MAT"))
    sbd, index = tmp_path / "benchmark_RELEASE", list(expected).index("2008_000002")
    dataset = VOC2012(tmp_path, "trainaug", sbd=sbd)
    np.testing.assert_array_equal(dataset.read(index)[1], expected["2008_000002"])
    Image.new("RGB", (1, 1)).save(dataset.image_path(index))
    with pytest.raises(DatasetError, match=r"2008_000002\.MAT has .* pixels, more than the limit of 100"):
        VOC2012(tmp_path, "trainaug", sbd=sbd, max_pixels=100).read(index)


# --- torchvision --------------------------------------------------------------------------------------------


def test_voc_agrees_with_torchvision(tmp_path: Path) -> None:
    replicas.voc(tmp_path)
    theirs = torchvision.datasets.VOCSegmentation(tmp_path, image_set="val", download=False)
    compare(VOC2012(tmp_path), {Path(path).stem: pair for path, pair in zip(theirs.images, theirs, strict=True)})


def test_cityscapes_agrees_with_torchvision(tmp_path: Path) -> None:
    replicas.cityscapes(tmp_path)
    theirs = torchvision.datasets.Cityscapes(tmp_path, split="val", target_type="semantic")
    train_ids = np.array([entry.train_id if entry.train_id >= 0 else 255 for entry in theirs.classes[:-1]], np.uint8)
    pairs = {
        Path(path).stem: (image, train_ids[np.asarray(mask)])
        for path, (image, mask) in zip(theirs.images, theirs, strict=True)
    }
    compare(Cityscapes(tmp_path), pairs)


def compare(ours: SegmentationDataset, theirs: dict[str, tuple[Any, Any]]) -> None:
    assert set(ours.keys) == set(theirs)
    for key, (image, mask) in zip(ours.keys, ours, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(theirs[key][0]))
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(theirs[key][1]))


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
    truth = replicas.cityscapes(tmp_path)["val"]
    for image, mask in Cityscapes(tmp_path, transforms=augment):
        assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
        assert (mask.shape, mask.dtype) == ((1, 16, 16), torch.uint8)
        painted = replicas.paint(mask[0].numpy(), truth.space)
        np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), painted)


def test_transforms_of_each_alone(tmp_path: Path) -> None:
    truth = replicas.folder(tmp_path)[None]
    dataset = Folder(tmp_path, transform=lambda image: image.size, target_transform=lambda mask: np.asarray(mask))
    size, mask = dataset[0]
    assert size == truth.masks[truth.first].shape[::-1]
    np.testing.assert_array_equal(mask, truth.masks[truth.first])
    with pytest.raises(ValueError, match="transforms or transform"):
        Folder(tmp_path, transform=lambda image: image, transforms=augment)


# A fresh process imports torch for seconds, so there is but one.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_worker_processes_read_the_same(tmp_path: Path, method: str, workers: int) -> None:
    truth = replicas.voc(tmp_path)["val"]
    loader = DataLoader(VOC2012(tmp_path), batch_size=None, num_workers=workers, multiprocessing_context=method)
    for (image, mask), key in zip(loader, truth.keys, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), truth.masks[key])
        np.testing.assert_array_equal(np.asarray(image), read_image(truth.image_files[key]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_survives_pickling(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    truth = next(iter(make(tmp_path).values()))
    check(pickle.loads(pickle.dumps(kind(tmp_path, truth.split))), truth)


def test_indices_are_those_of_lists(tmp_path: Path) -> None:
    truth = replicas.folder(tmp_path)[None]
    dataset = Folder(tmp_path)
    assert dataset.image_path(-1) == truth.image_files[truth.keys[-1]]
    np.testing.assert_array_equal(np.asarray(dataset[-1][1]), truth.masks[truth.keys[-1]])
    np.testing.assert_array_equal(np.asarray(dataset[np.int64(1)][1]), truth.masks[truth.keys[1]])
    for wrong in (len(dataset), -len(dataset) - 1):
        for reads in (dataset.__getitem__, dataset.read, dataset.image_path, dataset.mask_path):
            with pytest.raises(IndexError):
                reads(wrong)
    assert len(list(dataset)) == len(dataset)
    text = repr(dataset)
    assert all(part in text for part in ("Folder", str(tmp_path), "4 classes"))


# --- one's own folders --------------------------------------------------------------------------------------


def coded(table: dict[int, int], dtype: type = np.uint8) -> Callable[[Path, Any], object]:
    """Writes a mask with other values; `table` says which."""

    def write(path: Path, mask: Any) -> object:
        values = mask.astype(dtype)
        for index, value in table.items():
            values[mask == index] = value
        return replicas.save(path, values)

    return write


FOUR = custom_space(tuple("abcd"))


def painted(path: Path, mask: Any) -> object:
    pixels = replicas.paint(mask, FOUR)
    pixels[mask == 255] = 255
    return replicas.save(path, pixels)


OWN_COLORS = FOUR.palette
CODINGS: dict[str, tuple[Callable[[Path, Any], object], dict[str, Any]]] = {
    "plain": (replicas.save, {}),
    "with the palette of VOC": (lambda path, mask: replicas.save(path, mask, palette=True), {}),
    "from 1, other 0": (coded({0: 1, 1: 2, 2: 3, 3: 4, 255: 0}), {"ids": range(1, 5), "ignore": (0,)}),
    "in no order": (coded({0: 9, 1: 255, 2: 0, 3: 100, 255: 3}), {"ids": [9, 255, 0, 100], "ignore": [3]}),
    "ids of NumPy": (coded({0: 9, 1: 8, 2: 7, 3: 6}), {"ids": np.array([9, 8, 7, 6])}),
    "one of many": (coded({255: 77}), {"ignore": "rest"}),
    "one to ignore": (coded({255: 77}), {"ignore": 77}),
    "one of NumPy to ignore": (coded({255: 77}), {"ignore": np.int64(77)}),
    "two to ignore": (coded({255: 77}), {"ignore": (77, 255)}),
    "16 bits": (coded({255: 65535}, np.uint16), {"ignore": (65535,)}),
    "16 bits, large ids": (coded({0: 1000, 1: 2000, 2: 256, 3: 65534}, np.uint16), {"ids": [1000, 2000, 256, 65534]}),
    "16 bits, the rest": (coded({255: 300}, np.uint16), {"ignore": "rest"}),
    "32 bits": (
        lambda path, mask: Image.fromarray(np.where(mask == 255, -1, mask.astype(np.int32))).save(path, "TIFF"),
        {"ignore": (-1,)},
    ),
    "colors": (painted, {"colors": OWN_COLORS}),
    "colors, ids and ignore": (
        painted,
        {"colors": ((1, 2, 3), *OWN_COLORS, (255, 255, 255)), "ids": range(1, 5), "ignore": (0, 5)},
    ),
}


@pytest.mark.parametrize("name", CODINGS)
def test_a_folder_is_read_as_its_arguments_say(tmp_path: Path, name: str) -> None:
    write, options = CODINGS[name]
    truth = replicas.folder(tmp_path, write=write)[None]
    check(Folder(tmp_path, **options), truth)
    check(open_dataset(tmp_path, **options), truth)


def test_the_classes_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "terrain"
    replicas.folder(root)
    monkeypatch.chdir(root)
    assert Folder(".").name == "terrain"
    assert (Folder(root).name, Folder(root).split, Folder(root).official_size) == ("terrain", None, None)
    assert Folder(root).label_space == custom_space(("sky", "land", "water", "house"), name="terrain")
    assert Folder(root, classes=["a", "w", "x"]).classes == ("a", "w", "x")
    assert Folder(root, classes="voc21").label_space is LABEL_SPACES["voc21"]
    (root / "classes.txt").write_bytes("\ufeffthe sky\r\n\r\n land \r\nwater\r\nhäuser".encode())
    assert Folder(root).classes == ("the sky", "land", "water", "häuser")


def test_the_official_ids_of_a_space(tmp_path: Path) -> None:
    ids = OFFICIAL_SPACES["cityscapes-ids"]

    def write(path: Path, mask: Any) -> object:  # 255 becomes 4, "static", which is no class
        table = np.full(256, 4, np.uint8)
        table[:4] = LABEL_SPACES["cityscapes19"].official_ids[:4]
        return replicas.save(path, table[mask])

    truth = replicas.folder(tmp_path, write=write)[None]
    dataset = Folder(tmp_path, classes="cityscapes19", ids="official")
    for i, key in enumerate(truth.keys):
        np.testing.assert_array_equal(dataset.read(i)[1], truth.masks[key])
    for i, path in enumerate(truth.mask_files.values()):  # the same in colors, of which some are several ids'
        replicas.save(path, np.array(ids.palette, np.uint8)[np.asarray(Image.open(path))])
        in_colors = Folder(tmp_path, classes="cityscapes19", ids="official", colors=ids.palette) if i == 3 else None
    assert in_colors is not None
    np.testing.assert_array_equal(in_colors.read(0)[1], truth.masks[truth.first])


def test_folders_in_folders_links_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    truth = replicas.folder(root, nested=True)[None]
    assert truth.keys == ["a/pic 0.0", "a/pic 2.0", "b/pic 1.0", "b/pic 3.0"]
    check(Folder(root), truth)
    (root / "images" / "a" / "._pic 0.0.png").write_bytes(b"of macOS")
    (root / "images" / ".ipynb_checkpoints").mkdir()
    (root / "images" / ".ipynb_checkpoints" / "x.png").write_bytes(b"")
    (root / "images" / "Thumbs.db").write_bytes(b"")
    for kind in ("images", "masks"):
        (root / kind / "b").rename(tmp_path / f"{kind} elsewhere")
        (root / kind / "b").symlink_to(tmp_path / f"{kind} elsewhere", target_is_directory=True)
    check(Folder(root), truth)
    (root / "images" / "b" / "round").symlink_to(root / "images", target_is_directory=True)
    with pytest.raises(DatasetError, match=r"link .*round leads back"):
        Folder(root)


def test_splits_that_are_folders(tmp_path: Path) -> None:
    truths = replicas.folder(tmp_path, splits=("train", "val"))
    for split in ("train", "val"):
        check(Folder(tmp_path, split), truths[split])
        assert open_dataset(tmp_path, split).split == split
    assert Folder(tmp_path).keys == [f"{split}/{key}" for split in ("train", "val") for key in truths[split].keys]
    with pytest.raises(DatasetError, match=r"no split 'test', .*it has: train, val$"):
        Folder(tmp_path, "test")
    (tmp_path / "val.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"'val' is there twice: .*images/val and .*val\.txt"):
        Folder(tmp_path, "val")


@pytest.mark.parametrize("place", ["few.txt", "splits/few.txt"])
def test_splits_that_are_lists(tmp_path: Path, place: str) -> None:
    replicas.folder(tmp_path, nested=True)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("b/pic 3.0\n./a/pic 0.0.png\nb\\pic 1.0\na/pic 2.0.PNG\n")
    assert Folder(tmp_path, "few").keys == ["b/pic 3.0", "a/pic 0.0", "b/pic 1.0", "a/pic 2.0"]
    (tmp_path / "images" / "a" / "without mask.png").write_bytes(b"")  # not in the list, so no sample
    assert len(Folder(tmp_path, "few")) == 4
    for hidden in ("._few.txt", "splits/._few.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"of macOS")
    (tmp_path / "images" / ".cache").mkdir()
    with pytest.raises(DatasetError, match=r"no split 'many', .*it has: a, b, few$"):
        Folder(tmp_path, "many")


def test_other_names_of_the_folders(tmp_path: Path) -> None:
    truth = replicas.folder(tmp_path)[None]
    (tmp_path / "images").rename(tmp_path / "x")
    (tmp_path / "masks").rename(tmp_path / "y")
    for dataset in (Folder(tmp_path, images="x", masks="y"), open_dataset(tmp_path, images="x", masks="y")):
        assert dataset.keys == truth.keys
        np.testing.assert_array_equal(dataset.read(0)[1], truth.masks[truth.first])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "cityscape"}, r"unknown label space 'cityscape'.*cityscapes19"),
        ({"classes": ["a", "a"]}, "different names"),
        ({"classes": [f"c{i}" for i in range(256)]}, "256 classes.* no more than 255"),
        ({"ids": [1, 2, 3]}, r"ids must be 4 different values.*\[1, 2, 3\]"),
        ({"ids": [1, 2, 3, 3]}, "ids must be 4 different values"),
        ({"ids": "all"}, "'all'"),
        ({"ids": [0.0, 1.0, 2.0, 3.0]}, r"ids must be whole numbers, got \[0\.0, "),
        ({"ids": 4}, "ids must be whole numbers, got 4"),
        ({"ignore": [255.0]}, r"ignore must be whole numbers, got \[255\.0\]"),
        ({"ignore": 255.0}, r"ignore must be whole numbers, got 255\.0"),
        ({"classes": 4}, "classes must be names, or the name of a label space, got 4"),
        ({"ignore": "all"}, "'all'"),
        ({"ids": [0, 1, 2, 255]}, r"255 is the value of 'house' and in ignore.*ignore=\(\)"),
        ({"colors": [(0, 0, 0)] * 4}, "got 4, 1 of them different, for 4 classes"),
        ({"colors": [(0, 0, 0), (1, 1, 1)]}, "got 2, 2 of them different, for 4 classes"),
        ({"colors": [(0, 0, 300), (0, 1, 44), (1, 1, 1), (2, 2, 2)]}, r"from 0 to 255, got \(\(0, 0, 300\)"),
        ({"colors": ["#ff0000"] * 4}, "three whole numbers each"),
        ({"colors": OWN_COLORS}, r"pic 0\.0\.png holds values, not colors"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    replicas.folder(tmp_path)
    with pytest.raises(DatasetError, match=message):
        Folder(tmp_path, **options).read(0)


def test_255_classes_are_possible(tmp_path: Path) -> None:
    replicas.folder(tmp_path, classes=tuple(f"c{i}" for i in range(255)))
    assert len(Folder(tmp_path).classes) == 255
    assert Folder(tmp_path).read(0)[1] is not None


def test_classes_that_nobody_names(tmp_path: Path) -> None:
    replicas.folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"pass classes=.*classes\.txt"):
        Folder(tmp_path)


# --- what is wrong ------------------------------------------------------------------------------------------

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
]


def expect(error: pytest.ExceptionInfo[Exception], truth: Truth, parts: list[str]) -> None:
    names = {
        "FILE": truth.mask_files.get(truth.first),
        "IMAGE": truth.image_files[truth.first],
        "LIST": truth.list_file,
        "ROOT": truth.root,
    }
    for part in parts:
        for name, path in names.items():
            part = part.replace(name, str(path))
        assert part in str(error.value)


@pytest.mark.parametrize(("layout", "trap", "parts"), WRONG_WHEN_MADE)
def test_what_lists_and_folders_tell_is_said_at_once(tmp_path: Path, layout: str, trap: str, parts: list[str]) -> None:
    make, kind = LAYOUTS[layout]
    truth = next(truth for split, truth in make(tmp_path, traps=[trap]).items() if split in ("val", None))
    with pytest.raises(DatasetError) as error:
        kind(tmp_path)
    expect(error, truth, parts)


@pytest.mark.parametrize(("layout", "trap", "parts"), WRONG_WHEN_READ)
def test_what_files_tell_is_said_when_they_are_read(tmp_path: Path, layout: str, trap: str, parts: list[str]) -> None:
    make, kind = LAYOUTS[layout]
    truth = next(truth for split, truth in make(tmp_path, traps=[trap]).items() if split in ("val", None))
    dataset = kind(tmp_path)
    for reads in (dataset.read, dataset.__getitem__):
        with pytest.raises(DatasetError) as error:
            reads(0)
        expect(error, truth, parts)
    np.testing.assert_array_equal(dataset.read(1)[1], truth.masks[truth.keys[1]])  # the others are none the worse


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_that_cannot_be_read_is_the_image_s_own_error(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    truth = next(truth for split, truth in make(tmp_path, traps=["truncated image"]).items() if split in ("val", None))
    with pytest.raises(ImageError) as error:
        kind(tmp_path)[0]
    expect(error, truth, ["IMAGE"])


@pytest.mark.parametrize(
    "trap", ["CRLF", "byte order mark", "blank lines", "no newline at the end", "spaces", "second column"]
)
def test_harmless_lists_are_read(tmp_path: Path, trap: str) -> None:
    truth = replicas.voc(tmp_path, traps=[trap])["val"]
    check(VOC2012(tmp_path), truth)


def test_the_order_of_samples_is_that_of_the_list(tmp_path: Path) -> None:
    truth = replicas.voc(tmp_path)["val"]
    assert truth.list_file is not None
    truth.list_file.write_text("\n".join(reversed(truth.keys)))
    assert VOC2012(tmp_path).keys == truth.keys[::-1]


def test_train_ids_under_the_name_of_label_ids_are_not_mistaken(tmp_path: Path) -> None:
    truth = replicas.cityscapes(tmp_path)["val"]
    replicas.save(truth.mask_files[truth.first], truth.masks[truth.first])
    with pytest.raises(DatasetError, match=r"255 \(\d+ pixels\); .*255 is for train ids"):
        Cityscapes(tmp_path)[0]


def test_many_missing_partners_are_counted_and_three_are_named(tmp_path: Path) -> None:
    truth = replicas.ade20k(tmp_path, val=6)["val"]
    for key in truth.keys[1:]:
        truth.mask_files[key].unlink()
    with pytest.raises(
        DatasetError, match=r"5 of the samples .*: 'ADE_val_00000002', 'ADE_val_00000003', [^,]*04', …$"
    ):
        ADE20K(tmp_path)


def test_two_files_of_one_key_are_an_error(tmp_path: Path) -> None:
    replicas.folder(tmp_path)
    replicas.save(tmp_path / "images" / "pic 0.0.jpg", np.zeros((37, 53, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"pic 0\.0\.(png|jpg) and .*pic 0\.0\.(png|jpg) differ in nothing but"):
        Folder(tmp_path)


def test_two_samples_of_one_name_are_an_error(tmp_path: Path) -> None:
    truth = replicas.cityscapes(tmp_path)["val"]
    for path in (truth.image_files[truth.first], truth.mask_files[truth.first]):
        (path.parent.parent / "lindau" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match=f"'{truth.first}' twice: .*frankfurt/.*lindau/"):
        Cityscapes(tmp_path)
    replicas.folder(tmp_path / "own")
    (tmp_path / "own" / "list.txt").write_text("pic 0.0\npic 0.0.png")
    with pytest.raises(DatasetError, match=r"'pic 0\.0' twice"):
        Folder(tmp_path / "own", "list")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_split_is_an_error(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    truth = next(truth for split, truth in make(tmp_path).items() if split in ("val", None))
    for path in [*truth.image_files.values(), *truth.mask_files.values()]:
        path.unlink()
    if truth.list_file:
        truth.list_file.write_text("\n")
    with pytest.raises(DatasetError, match=r"no sample|is empty"):
        kind(tmp_path)


@pytest.mark.parametrize("layout", OFFICIAL)
def test_unknown_splits_and_roots(tmp_path: Path, layout: str) -> None:
    make, kind = OFFICIAL[layout]
    make(tmp_path / "set")
    with pytest.raises(DatasetError, match="no split 'valid'; it has: train, val, "):
        kind(tmp_path / "set", "valid")
    with pytest.raises(DatasetError, match=r"nowhere does not exist"):
        kind(tmp_path / "nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"set\.zip is a file.*unpack"):
        kind(tmp_path / "set.zip")
    (tmp_path / "other" / "thing").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"other does not hold .*: expected .* holds: thing$"):
        kind(tmp_path / "other")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    replicas.cityscapes(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "gtCoarse")
    with pytest.raises(DatasetError, match=r"not hold the masks .* in one folder; .* holds: gtCoarse, leftImg8bit$"):
        Cityscapes(tmp_path)
    assert len(Cityscapes(tmp_path, "test")) == 1
    (tmp_path / "gtCoarse").rename(tmp_path / "gtFine")
    (tmp_path / "gtFine" / "val").rename(tmp_path / "gtFine" / "valid")
    with pytest.raises(DatasetError, match=r"no folder .*gtFine.val; .* holds: test, train, valid$"):
        Cityscapes(tmp_path)
    (tmp_path / "leftImg8bit").rename(tmp_path / "other")
    with pytest.raises(DatasetError, match="leftImg8bit and gtFine, both in one folder"):
        Cityscapes(tmp_path)


def test_a_user_that_does_not_exist_is_named() -> None:
    with pytest.raises(DatasetError, match="~nobody of this name/set cannot be found"):
        Folder("~nobody of this name/set")


def test_odd_lines_of_a_list_are_shown_as_they_are(tmp_path: Path) -> None:
    truth = replicas.voc(tmp_path)["val"]
    assert truth.list_file is not None
    truth.list_file.write_text("2007_000033\n\x1a\n")
    with pytest.raises(DatasetError, match=r"no image: '\\x1a'$"):
        VOC2012(tmp_path)
    truth.list_file.write_text("2007_000033.jpg\n")
    with pytest.raises(DatasetError, match=r"no image: '2007_000033\.jpg'; names are without suffix here"):
        VOC2012(tmp_path)


def test_unicode_forms_of_a_name_are_one_name(tmp_path: Path) -> None:
    truth = replicas.folder(tmp_path, count=1)[None]
    composed, apart = (unicodedata.normalize(form, "Straße ü") for form in ("NFC", "NFD"))
    for path, name in ((truth.image_files[truth.first], composed), (truth.mask_files[truth.first], apart)):
        path.rename(path.with_name(f"{name}.png"))
    assert Folder(tmp_path).keys == [composed]
    (tmp_path / "list.txt").write_text(f"{apart}.png", "utf-8")
    assert Folder(tmp_path, "list").keys == [composed]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas.folder(tmp_path, nested=True)
    scandir = os.scandir

    def refusing(path: Any) -> Any:  # permissions do not stop root
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DatasetError, match=r"images cannot be read: .*Permission denied: .*images/b"):
        Folder(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_larger_images_than_asked_for_are_refused(tmp_path: Path, layout: str) -> None:
    make, _ = LAYOUTS[layout]
    truth = next(truth for split, truth in make(tmp_path).items() if split in ("val", None))
    dataset = open_dataset(tmp_path, truth.split, max_pixels=1000)
    with pytest.raises(ImageError, match="more than the limit of 1,000"):
        dataset.read(0)
    Image.new("RGB", (1, 1)).save(truth.image_files[truth.first])
    with pytest.raises(DatasetError, match="more than the limit of 1,000"):
        dataset.read(0)


# --- recognizing layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognized_and_can_be_said(tmp_path: Path, layout: str) -> None:
    make, kind = LAYOUTS[layout]
    make(tmp_path)
    assert type(open_dataset(tmp_path)) is kind
    assert type(open_dataset(tmp_path, layout=layout)) is kind
    other = "voc" if layout != "voc" else "ade20k"
    with pytest.raises(DatasetError, match="does not hold"):
        open_dataset(tmp_path, layout=other)


def test_options_go_to_the_class_or_are_refused(tmp_path: Path) -> None:
    expected = replicas.sbd(tmp_path, replicas.voc(tmp_path))
    dataset = open_dataset(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE", transforms=augment)
    assert dataset.keys == list(expected)
    assert dataset.transforms is augment
    with pytest.raises(DatasetError, match=r"read as VOC2012 \(layout='voc'\), which has no option 'ids'"):
        open_dataset(tmp_path, ids=[1])


def test_what_is_in_no_layout_or_in_several(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match=r"no known layout.*VOC2012: .*ADE20K: .*Cityscapes: .*Folder: .* images$"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"unknown layout 'coco'.*auto, voc, ade20k, cityscapes, folder"):
        open_dataset(tmp_path, layout="coco")
    replicas.voc(tmp_path)
    replicas.ade20k(tmp_path)
    with pytest.raises(DatasetError, match=r"several datasets \(voc, ade20k\)"):
        open_dataset(tmp_path)
    assert type(open_dataset(tmp_path, layout="ade20k")) is ADE20K


def test_what_has_a_list_of_classes_is_a_folder_of_one_s_own(tmp_path: Path) -> None:
    replicas.folder(tmp_path, splits=("validation",))
    (tmp_path / "masks").rename(tmp_path / "annotations")
    with pytest.raises(
        DatasetError, match=r"has a classes\.txt.* images= and masks=.* layout=; .* holds: annotations, "
    ):
        open_dataset(tmp_path)
    assert type(open_dataset(tmp_path, masks="annotations")) is Folder
    replicas.ade20k(tmp_path / "set")
    (tmp_path / "set" / "classes.txt").write_text("a")
    with pytest.raises(DatasetError, match=r"has a classes\.txt"):
        open_dataset(tmp_path / "set")
    assert type(open_dataset(tmp_path / "set", layout="ade20k")) is ADE20K


def test_test_images_beside_masks_are_no_ade20k(tmp_path: Path) -> None:
    truth = replicas.folder(tmp_path, splits=("testing",))["testing"]
    (tmp_path / "classes.txt").unlink()
    dataset = open_dataset(tmp_path, "testing", classes=truth.space.classes)
    assert (type(dataset), dataset.keys) == (Folder, truth.keys)


# --- the replicas themselves --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replicas_are_equal_for_equal_seeds_and_tell_their_classes(tmp_path: Path, layout: str) -> None:
    make, _ = LAYOUTS[layout]
    first, again, other = (make(tmp_path / str(i) / "x", seed=seed) for i, seed in enumerate((0, 0, 1)))
    for truth, same, different in zip(first.values(), again.values(), other.values(), strict=True):
        for key in truth.keys:
            assert truth.image_files[key].read_bytes() == same.image_files[key].read_bytes()
        assert any((truth.masks[key] != different.masks[key]).any() for key in truth.keys)
        for key in truth.keys:
            pixels = read_image(truth.image_files[key]).astype(int)[..., None, :]
            colors = np.array([*truth.space.palette, replicas.BORDER])
            nearest = np.abs(pixels - colors).sum(-1).argmin(-1)
            wrong = nearest != np.where(truth.masks[key] == IGNORED, len(truth.space), truth.masks[key])
            assert wrong.mean() < (0.02 if truth.image_files[key].suffix == ".jpg" else 1e-9)
