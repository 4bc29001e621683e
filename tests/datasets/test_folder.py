"""Your own folder is read as its arguments say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.datasets import Folder, open_dataset
from isanet.errors import DatasetError
from isanet.labels import LABEL_SPACES, OFFICIAL_SPACES, custom_space
from tests.datasets.test_base import check
from tests.helpers import replicas
from tests.helpers.training import write_data


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
    replica = replicas.folder(tmp_path, write=write)[None]
    check(Folder(tmp_path, **options), replica)
    check(open_dataset(tmp_path, **options), replica)


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

    replica = replicas.folder(tmp_path, write=write)[None]
    dataset = Folder(tmp_path, classes="cityscapes19", ids="official")
    for i, key in enumerate(replica.keys):
        np.testing.assert_array_equal(dataset.read(i)[1], replica.masks[key])
    for i, path in enumerate(replica.mask_files.values()):  # the same in colors, of which some are several ids'
        replicas.save(path, np.array(ids.palette, np.uint8)[np.asarray(Image.open(path))])
        in_colors = Folder(tmp_path, classes="cityscapes19", ids="official", colors=ids.palette) if i == 3 else None
    assert in_colors is not None
    np.testing.assert_array_equal(in_colors.read(0)[1], replica.masks[replica.first])


def test_splits_that_are_folders(tmp_path: Path) -> None:
    splits = replicas.folder(tmp_path, splits=("train", "val"))
    for split in ("train", "val"):
        check(Folder(tmp_path, split), splits[split])
        assert open_dataset(tmp_path, split).split == split
    assert Folder(tmp_path).keys == [f"{split}/{key}" for split in ("train", "val") for key in splits[split].keys]
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
    replica = replicas.folder(tmp_path)[None]
    (tmp_path / "images").rename(tmp_path / "x")
    (tmp_path / "masks").rename(tmp_path / "y")
    for dataset in (Folder(tmp_path, images="x", masks="y"), open_dataset(tmp_path, images="x", masks="y")):
        assert dataset.keys == replica.keys
        np.testing.assert_array_equal(dataset.read(0)[1], replica.masks[replica.first])


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
def test_invalid_arguments_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    replicas.folder(tmp_path)
    with pytest.raises(DatasetError, match=message):
        Folder(tmp_path, **options).read(0)


def test_255_classes_are_possible(tmp_path: Path) -> None:
    replicas.folder(tmp_path, classes=tuple(f"c{i}" for i in range(255)))
    assert len(Folder(tmp_path).classes) == 255
    assert Folder(tmp_path).read(0)[1] is not None


def test_unknown_classes_are_an_error(tmp_path: Path) -> None:
    replicas.folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"pass classes=.*classes\.txt"):
        Folder(tmp_path)


def test_held_out_images_are_disjoint_from_the_rest(tmp_path: Path) -> None:
    whole = Folder(write_data(tmp_path / "data"), "train")
    rest, held = whole.held_out(0.3, seed=1)
    assert sorted(rest.keys + held.keys) == whole.keys
    assert len(held) == 2
    assert [held.read(0)[0].tobytes()] == [whole.read(whole.keys.index(held.keys[0]))[0].tobytes()]
    assert whole.held_out(0.3, seed=2)[1].keys != held.keys or whole.held_out(0.3, seed=3)[1].keys != held.keys
    assert rest.fingerprint(range(5)) != held.fingerprint(range(2))
    with pytest.raises(DatasetError, match="cannot be held out"):
        held.held_out(1.0)


@pytest.mark.parametrize(
    "text",
    [
        "road #804080\ncar #00008e\nsky #4682b4\n",
        "road 128 64 128\r\ncar 0, 0, 142\r\nsky\t70 130 180\r\n",
        "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\nsky:70,130,180:wing,tail:fly\n",
        "road:128,64,128::\ncar:0,0,142::\nsky:70,130,180::\n",
    ],
)
def test_classes_txt_may_hold_colors(tmp_path: Path, text: str) -> None:
    palette = ((128, 64, 128), (0, 0, 142), (70, 130, 180))
    mask = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    replicas.save(tmp_path / "images" / "a.png", np.zeros((2, 3, 3), np.uint8))
    replicas.save(tmp_path / "masks" / "a.png", mask)
    (tmp_path / "classes.txt").write_text(text)
    dataset = Folder(tmp_path)
    assert (dataset.classes, dataset.palette) == (("road", "car", "sky"), palette)
    np.testing.assert_array_equal(dataset.read(0)[1], mask)
    in_color = np.array([*palette, (0, 0, 0)], np.uint8)[np.where(mask == 255, 3, mask)]
    replicas.save(tmp_path / "masks" / "a.png", in_color)  # and RGB masks are read by them
    np.testing.assert_array_equal(Folder(tmp_path).read(0)[1], mask)
    assert Folder(tmp_path).palette == palette


def test_colors_of_classes_are_kept_or_made(tmp_path: Path) -> None:
    replicas.save(tmp_path / "images" / "a.png", np.zeros((2, 3, 3), np.uint8))
    replicas.save(tmp_path / "masks" / "a.png", np.zeros((2, 3), np.uint8))
    (tmp_path / "classes.txt").write_text("sky\nroad 0 0 0\ncar 128 0 0 9\n")
    dataset = Folder(tmp_path)
    assert dataset.classes == ("sky", "road", "car 128")  # the last three numbers
    assert len(set(dataset.palette)) == 3
    (tmp_path / "classes.txt").write_text("sky\nroad 0 256 0\n")
    with pytest.raises(DatasetError, match=r"line 2 of .*classes\.txt: the color of 'road' is not within 0 and 255"):
        Folder(tmp_path)
    colors = [(9, 8, 7), (1, 2, 3), (4, 5, 6)]
    replicas.save(tmp_path / "masks" / "a.png", np.full((2, 3, 3), (9, 8, 7), np.uint8))
    dataset = Folder(tmp_path, classes=["a", "b"], ids=[2, 0], colors=colors)
    assert dataset.palette == (colors[2], colors[0])
    assert (dataset.read(0)[1] == 1).all()


def test_an_image_is_never_its_own_mask(tmp_path: Path) -> None:
    replicas.save(tmp_path / "images" / "a.png", np.zeros((2, 3), np.uint8))
    for masks in ("images", "./images", "link"):
        (tmp_path / "link").exists() or (tmp_path / "link").symlink_to("images")
        with pytest.raises(DatasetError, match=r"in one folder, images, so every image .* its own mask; .*x_mask"):
            Folder(tmp_path, classes=["a"], masks=masks)
    replicas.save(tmp_path / "images" / "a-m.png", np.ones((2, 3), np.uint8))
    dataset = Folder(tmp_path, classes=["a", "b"], masks="images", mask_suffix="-m")
    assert (dataset.keys, dataset.read(0)[1].max()) == (["a"], 1)  # type: ignore[union-attr]


def test_deep_images_are_scaled_by_their_range(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.array([[0, 1, 1]], np.uint8)).save(tmp_path / "masks" / "a.png")
    plain = Folder(tmp_path, classes=["a", "b"])
    scaled = open_dataset(tmp_path, classes=["a", "b"], value_range=(0, 4095))
    assert plain.read(0)[0][0, :, 0].tolist() == [0, 8, 15]
    assert scaled.read(0)[0][0, :, 0].tolist() == [0, 128, 255]
    assert scaled.fingerprint([0]) != plain.fingerprint([0])  # a run does not resume with another range
