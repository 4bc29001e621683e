"""The published datasets are read as their archives are, and as torchvision reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from isanet.datasets import ADE20K, VOC2012, Cityscapes, SegmentationDataset, ToyStreets, open_dataset
from isanet.errors import DatasetError
from isanet.images.reading import read_image
from isanet.labels import IGNORED
from isanet.weights.manifest import manifest_path
from tests.datasets.test_base import OFFICIAL, check
from tests.helpers import replicas


@pytest.mark.parametrize("layout", OFFICIAL)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_official_layout_is_read_exactly(tmp_path: Path, layout: str, split: str) -> None:
    make, kind = OFFICIAL[layout]
    replica = make(tmp_path)[split]
    assert any((mask == IGNORED).any() for mask in replica.masks.values())
    check(kind(tmp_path, split), replica)
    check(open_dataset(str(tmp_path), split), replica)


def test_val_is_the_default_split(tmp_path: Path) -> None:
    for layout, (make, kind) in OFFICIAL.items():
        replica = make(tmp_path / layout)["val"]
        assert kind(tmp_path / layout).keys == open_dataset(tmp_path / layout).keys == replica.keys
        assert kind(tmp_path / layout).split == "val"


def test_names_and_sizes_are_those_of_the_published_metrics(tmp_path: Path) -> None:
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
    assert sizes == {"PASCAL VOC 2012": 1449, "ADE20K": 2000, "Cityscapes": 500, "Pascal Context": 5104}


@pytest.mark.parametrize("home", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_wherever_it_was_unpacked(tmp_path: Path, home: str) -> None:
    splits = replicas.voc(tmp_path, home=home)
    check(VOC2012(tmp_path, "trainval"), splits["trainval"])
    check(open_dataset(tmp_path, "trainval"), splits["trainval"])


def test_ade20k_itself_is_a_root_and_the_long_names_are_splits(tmp_path: Path) -> None:
    splits = replicas.ade20k(tmp_path)
    check(ADE20K(tmp_path / "ADEChallengeData2016", "validation"), splits["val"])
    check(ADE20K(tmp_path, "training"), splits["train"])
    assert ADE20K(tmp_path, "validation").split == "val"
    assert ADE20K(tmp_path, "validation").official_size == 2000


@pytest.mark.parametrize("layout", [layout for layout in OFFICIAL if layout != "context59"])
def test_a_test_split_has_only_images(tmp_path: Path, layout: str) -> None:
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
    with pytest.raises(DatasetError, match=r"ground truth of .* test in .* not published"):
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
def test_ade20k_is_recognized_by_either_split(tmp_path: Path, split: str) -> None:
    splits = replicas.ade20k(tmp_path)
    other = {"training": "validation", "validation": "training"}[split]
    (tmp_path / "ADEChallengeData2016" / "images" / other).rename(tmp_path / "away")
    check(open_dataset(tmp_path, split), splits[split.removesuffix("ing").removesuffix("idation")])


@pytest.mark.parametrize("folder", ["SegmentationClass", "ImageSets"])
def test_voc_is_recognized_by_masks_or_lists(tmp_path: Path, folder: str) -> None:
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
def test_suffixes_may_be_in_capitals(tmp_path: Path, layout: str) -> None:
    make, kind = OFFICIAL[layout]
    replica = make(tmp_path)["val"]
    for path in [*replica.image_files.values(), *replica.mask_files.values()]:
        path.rename(path.with_suffix(path.suffix.upper()))
    dataset = kind(tmp_path)
    assert dataset.keys == replica.keys
    np.testing.assert_array_equal(dataset.read(0)[1], replica.masks[replica.first])


def test_cityscapes_test_masks_are_not_read_though_they_are_there(tmp_path: Path) -> None:
    replica = replicas.cityscapes(tmp_path)["test"]
    assert Cityscapes(tmp_path, "test").keys == replica.keys


@pytest.mark.parametrize("name", ["benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_trainaug_is_made_from_sbd(tmp_path: Path, name: str) -> None:
    splits = replicas.voc(tmp_path)
    expected = replicas.sbd(tmp_path, splits)
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / name)
    assert dataset.keys == list(expected)
    assert dataset.official_size is None
    assert not set(dataset.keys) & set(splits["val"].keys)
    for i, key in enumerate(dataset.keys):
        np.testing.assert_array_equal(dataset.read(i)[1], expected[key])
    assert {path.suffix for path in map(dataset.mask_path, range(len(dataset))) if path} == {".png", ".mat"}


def test_trainaug_with_a_list_prefers_the_converted_masks(tmp_path: Path) -> None:
    splits = replicas.voc(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    first, second = splits["train"].keys[:2]
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(f"{second}\n{first}\n")
    converted = np.full_like(splits["train"].masks[first], 7)
    replicas.save(home / "SegmentationClassAug" / f"{first}.png", converted)
    dataset = VOC2012(tmp_path, "trainaug")
    assert dataset.keys == [second, first]
    np.testing.assert_array_equal(dataset.read(0)[1], splits["train"].masks[second])
    np.testing.assert_array_equal(dataset.read(1)[1], converted)


def test_sbd_has_the_masks_of_trainaug_that_no_folder_has(tmp_path: Path) -> None:
    splits = replicas.voc(tmp_path)
    expected = replicas.sbd(tmp_path, splits)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    keys = [key for key in reversed(expected) if key != splits["train"].first]
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


def test_without_list_and_sbd_the_message_gives_both_ways_to_trainaug(tmp_path: Path) -> None:
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
    splits = replicas.voc(tmp_path)
    replicas.sbd(tmp_path, splits)
    path = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    path.write_bytes(path.read_bytes()[:150])
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE")
    with pytest.raises(DatasetError, match=r"2008_000002\.mat is no mask of SBD"):
        dataset[dataset.keys.index("2008_000002")]


@pytest.mark.parametrize("mask", [np.zeros((9, 7), np.int16), np.zeros((9, 7, 3), np.uint8)])
def test_another_array_in_place_of_a_mask_of_sbd_is_refused(tmp_path: Path, mask: Any) -> None:
    from scipy.io import savemat

    replicas.sbd(tmp_path, replicas.voc(tmp_path))
    cell = np.zeros((1, 1), [("Segmentation", object)])
    cell[0, 0]["Segmentation"] = mask
    savemat(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat", {"GTcls": cell})
    dataset = VOC2012(tmp_path, "trainaug", sbd=tmp_path / "benchmark_RELEASE")
    with pytest.raises(DatasetError, match=rf"2008_000002\.mat is no mask of SBD .*{mask.dtype} of shape"):
        dataset.read(dataset.keys.index("2008_000002"))


def test_files_of_sbd_may_have_other_contents_and_capitals_and_obey_max_pixels(
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


def test_train_ids_named_label_ids_are_an_error(tmp_path: Path) -> None:
    replica = replicas.cityscapes(tmp_path)["val"]
    replicas.save(replica.mask_files[replica.first], replica.masks[replica.first])
    with pytest.raises(DatasetError, match=r"255 \(\d+ pixels\); .*255 is for train ids"):
        Cityscapes(tmp_path)[0]


@pytest.mark.parametrize("layout", OFFICIAL)
def test_unknown_splits_and_roots(tmp_path: Path, layout: str) -> None:
    make, kind = OFFICIAL[layout]
    make(tmp_path / "set")
    with pytest.raises(DatasetError, match="no split 'valid'; it has: train, val"):
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
