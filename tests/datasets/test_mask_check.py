"""Folders of masks as people have them, and what is said about each."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import isanet.labels
from isanet.datasets import Folder
from isanet.datasets.mask_check import Finding, MaskCheck, check_masks
from isanet.errors import DatasetError, OutputError
from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, custom_space, generic_palette
from tests.datasets.test_listing import refuse_folder

VOC, ADE, CITY = (LABEL_SPACES[name] for name in ("voc21", "ade20k150", "cityscapes19"))
VOC_PALETTE = [channel for color in generic_palette(255) for channel in color] + [224, 224, 192]


def tiles(values: Sequence[int], size: tuple[int, int] = (24, 24), dtype: type = np.uint8) -> NDArray[np.generic]:
    """(H, W) with all values, in runs."""
    pixels = size[0] * size[1]
    return np.sort(np.resize(np.array(values, dtype), pixels)).reshape(size)


def save(path: Path, pixels: NDArray[np.generic], palette: list[int] | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path, **options)


def checked(
    folder: Path,
    *masks: NDArray[np.generic],
    classes: LabelSpace | int | None = None,
    palette: list[int] | None = None,
) -> MaskCheck:
    for number, mask in enumerate(masks):
        save(folder / f"{number:02}.png", mask, palette)
    return check_masks(folder, classes=classes, progress=False)


def the(check: MaskCheck, kind: str) -> Finding:
    found = [finding for finding in check.findings if finding.kind == kind]
    assert len(found) == 1, [(finding.kind, finding.text) for finding in check.findings]
    return found[0]


def kinds(check: MaskCheck) -> set[str]:
    return {finding.kind for finding in check.findings}


def read_with(fix: str, root: Path, mask: NDArray[np.generic], classes: object) -> NDArray[np.uint8]:
    """A mask as `Folder` reads it with the arguments of a finding, which are thereby shown to be valid."""
    save(root / "set/images/a.png", np.zeros((*mask.shape[:2], 3), np.uint8))
    save(root / "set/masks/a.png", mask)
    arguments = eval(f"dict({fix})", {"isanet": isanet})
    read = Folder(root / "set", **({"classes": classes} | arguments)).read(0)[1]
    assert read is not None
    return read


def names(number: int) -> list[str]:
    return [f"class {index}" for index in range(number)]


# --- how values stand for classes -------------------------------------------------------------------------------------


def test_palette_images_are_counted_by_index_and_the_palette_of_voc_is_recognized(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([0, 5, 15, 255]), palette=VOC_PALETTE, classes=VOC)
    finding = the(check, "palette")
    assert "colors of VOC" in finding.text
    assert "read 147 where the class is 15" in finding.text  # 0.299 * 192 + 0.587 * 128 + 0.114 * 128
    assert the(check, "plain").fix == ""
    assert [(v.value, v.name, v.role) for v in check.values] == [
        (0, "background", "class"),
        (5, "bottle", "class"),
        (15, "person", "class"),
        (255, "", "ignored"),
    ]


def test_another_palette_is_not_taken_for_that_of_voc(tmp_path: Path) -> None:
    assert "VOC" not in the(checked(tmp_path, tiles([0, 1]), palette=[9] * 768), "palette").text


def test_files_with_different_palettes_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "a.png", tiles([0, 1]), [0, 0, 0, 255, 0, 0])
    save(tmp_path / "b.png", tiles([0, 1]), [0, 0, 0, 0, 255, 0])
    finding = the(check_masks(tmp_path, progress=False), "palettes-differ")
    assert (finding.files, finding.of, finding.examples) == (1, 2, ("b.png",))


def test_correct_indices_need_no_fix(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([0, 1, 2, 255]), tiles([0, 1]), classes=3)
    assert kinds(check) == {"plain"}
    assert the(check, "plain").fix == the(check, "plain").option == ""
    assert [(v.value, v.files, v.pixels) for v in check.values] == [
        (0, 2, 144 + 288),
        (1, 2, 144 + 288),
        (2, 1, 144),
        (255, 1, 144),
    ]


def test_classes_counted_from_one_are_recognized_when_their_number_is_known(tmp_path: Path) -> None:
    mask = tiles(range(1, 5))
    finding = the(checked(tmp_path / "masks", mask, classes=4), "shifted")
    assert (finding.fix, finding.option) == ("ids=range(1, 5)", "--ids 1-4")
    assert (read_with(finding.fix, tmp_path, mask, names(4)) == mask - 1).all()


def test_an_additional_zero_is_only_probably_other(tmp_path: Path) -> None:
    mask = tiles(range(151))
    check = checked(tmp_path / "masks", mask, classes=ADE)
    finding = the(check, "shifted-zero-other")
    assert (finding.fix, finding.option) == ("ids=range(1, 151), ignore=(0, 255)", "--ids 1-150 --ignore 0,255")
    assert "probably" in finding.text
    assert "ade20k150 is counted so" in finding.text
    read = read_with(finding.fix, tmp_path, mask, "ade20k150")
    assert (read == np.where(mask == 0, IGNORED, mask - 1)).all()
    assert [(v.name, v.role) for v in check.values[:2]] == [("", "ignored"), ("wall", "class")]


def test_a_rare_highest_value_is_stray_rather_than_a_shift(tmp_path: Path) -> None:
    check = checked(tmp_path, *[tiles([0, 1, 2])] * 19, tiles([0, 1, 3]), classes=3)
    finding = the(check, "stray")
    assert (finding.files, finding.of, finding.examples) == (1, 20, ("19.png",))
    assert "range(1, 4)" in finding.text  # the other reading is not kept back


@pytest.mark.parametrize("classes", [None, 5])
def test_without_zero_and_the_highest_value_both_readings_are_given(tmp_path: Path, classes: int | None) -> None:
    finding = the(checked(tmp_path, tiles([1, 2, 3, 4]), classes=classes), "shifted-unsure")
    assert finding.fix == f"ids=range(1, {(classes or 4) + 1})"
    assert "0 never occurs" in finding.text


def test_with_an_unknown_number_of_classes_the_meaning_of_zero_is_left_open(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles(range(151))), "plain")
    assert finding.fix == ""
    assert "as for ADE20K" in finding.text
    assert "cannot tell" in finding.text


OFFICIAL = 'classes="cityscapes19", ids="official", ignore="rest"'


@pytest.mark.parametrize("classes", [None, CITY, 19])
def test_official_ids_are_recognized_by_their_values(tmp_path: Path, classes: LabelSpace | int | None) -> None:
    mask = tiles([0, 1, 4, 7, 8, 11, 17, 21, 23, 26, 33])
    finding = the(checked(tmp_path / "masks", mask, classes=classes), "official-ids")
    assert (finding.fix, finding.option) == (OFFICIAL, "--classes cityscapes19 --ids official --ignore rest")
    read = read_with(finding.fix, tmp_path, mask, "")
    assert (read[mask == 7] == 0).all()
    assert (read[mask == 33] == 18).all()
    assert (read[mask == 4] == IGNORED).all()


def test_official_ids_are_not_claimed_of_voc_or_of_34_classes(tmp_path: Path) -> None:
    city = [7, 8, 11, 21, 23, 26]
    assert "official-ids" not in kinds(checked(tmp_path / "a", tiles(range(21))))
    assert "official-ids" not in kinds(checked(tmp_path / "b", tiles([0, *city]), classes=34))
    assert "34 classes" in the(checked(tmp_path / "c", tiles(range(34))), "official-ids").text


def test_train_ids_are_not_taken_for_official_ids(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles([*range(19), 255]), classes=CITY), "plain")
    assert "not the official ids" in finding.text
    assert finding.fix == ""


def test_of_cityscapes_annotations_only_label_ids_are_checked(tmp_path: Path) -> None:
    ids = tiles(range(34))
    train = np.full(34, 255, np.uint8)
    train[list(CITY.official_ids)] = range(19)
    stem = "val/city/city_000_gtFine"
    save(tmp_path / f"gtFine/{stem}_labelIds.png", ids)
    save(tmp_path / f"gtFine/{stem}_labelTrainIds.png", train[ids])
    save(tmp_path / f"gtFine/{stem}_instanceIds.png", np.where(ids < 24, ids, ids * np.uint16(1000) + 1))
    colors = np.array(OFFICIAL_SPACES["cityscapes-ids"].palette, np.uint8)[ids]
    save(tmp_path / f"gtFine/{stem}_color.png", colors)
    save(tmp_path / "images/val/city/city_000_leftImg8bit.png", colors)
    check = check_masks(tmp_path / "gtFine", images=tmp_path / "images", progress=False)
    assert (check.files, kinds(check)) == (1, {"not-labelIds", "official-ids"})
    assert (the(check, "not-labelIds").files, the(check, "not-labelIds").of) == (3, 4)
    assert the(check, "official-ids").fix == OFFICIAL
    assert {v.value: (v.name, v.role) for v in check.values}[9] == ("parking", "ignored")
    check.histogram()


def test_the_colors_of_cityscapes_annotations_get_no_fix(tmp_path: Path) -> None:
    ids = OFFICIAL_SPACES["cityscapes-ids"]
    finding = the(checked(tmp_path, painted(ids, tiles(range(34)))), "known-colors")
    assert "labelIds.png" in finding.text  # two classes share a color
    assert finding.fix == finding.option == ""


def test_few_colors_of_cityscapes_are_not_taken_for_those_of_toystreets(tmp_path: Path) -> None:
    values = [CITY.classes.index(name) for name in ("road", "sky", "car", "person")]
    finding = the(checked(tmp_path, np.array(CITY.palette, np.uint8)[tiles(values)]), "known-colors")
    assert "the palette of cityscapes19" in finding.text
    assert "toystreets" not in finding.text


def test_instance_ids_are_recognized_by_their_values(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles([7, 11, 26001, 26002, 24000], dtype=np.uint16)), "not-classes")
    assert "look like" in finding.text


@pytest.mark.parametrize("classes", [None, 2])
def test_black_and_white(tmp_path: Path, classes: int | None) -> None:
    mask = tiles([0, 255])
    finding = the(checked(tmp_path / "masks", mask, classes=classes), "black-and-white")
    assert (finding.fix, finding.option) == ("ids=(0, 255), ignore=()", "--ids 0,255 --ignore none")
    assert "not ignored" in finding.text
    assert (read_with(finding.fix, tmp_path, mask, names(2)) == np.searchsorted([0, 255], mask)).all()


@pytest.mark.parametrize(("value", "ignored", "dtype"), [(1, 255, np.uint8), (7, 255, np.uint8), (0, 65535, np.uint16)])
def test_one_value_and_255_are_probably_two_classes(tmp_path: Path, value: int, ignored: int, dtype: type) -> None:
    mask = tiles([value, ignored], dtype=dtype)
    finding = the(checked(tmp_path / "masks", mask), "one-plus-255" if value else "black-and-white")
    assert finding.fix == f"ids=({value}, {ignored}), ignore=()"
    assert f"{ignored} is one of them and not ignored" in finding.text
    assert (read_with(finding.fix, tmp_path, mask, names(2)) == (mask == ignored)).all()
    few = the(checked(tmp_path / "masks", mask, classes=9), "one-plus-255" if value else "black-and-white")
    assert (few.fix, "9 classes are expected" in few.text) == ("", True)


@pytest.mark.parametrize(("low", "high"), [(0, 128), (0, 254), (127, 254)])
def test_any_two_values_of_two_classes(tmp_path: Path, low: int, high: int) -> None:
    mask = tiles([low, high])
    check = checked(tmp_path / "masks", mask, classes=2)
    finding = the(check, "one-plus-255" if low else "black-and-white")
    assert finding.option == f"--ids {low},{high} --ignore none"
    assert check.one_class
    assert (read_with(finding.fix, tmp_path, mask, names(2)) == (mask == high)).all()


@pytest.mark.parametrize("classes", [None, 1, 2, 5])
def test_masks_of_only_ignored_values_say_so(tmp_path: Path, classes: int | None) -> None:
    check = checked(tmp_path / "masks", tiles([255, 65535], dtype=np.uint16), classes=classes)
    assert check.one_class
    assert "All pixels are ignored" in the(check, "all-ignored").text


def test_one_class_and_255_are_one_class_if_one_is_expected(tmp_path: Path) -> None:
    assert kinds(checked(tmp_path, tiles([0, 255]), classes=1)) == {"plain"}


def test_values_with_gaps_may_be_gray_levels(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles([0, 50, 100, 150, 200])), "plain")
    assert "with gaps (if each value is a class, ids=(0, 50, 100, 150, 200) is right)" in finding.text


def test_black_and_white_with_another_number_of_classes_gets_no_fix(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles([0, 255]), classes=5), "black-and-white")
    assert finding.fix == finding.option == ""


def test_voc_masks_of_background_and_border_are_not_black_and_white(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([0, 255]), tiles([0, 8]), palette=VOC_PALETTE)
    assert "black-and-white" not in kinds(check)


def test_a_stray_value_far_from_the_indices_is_named(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles([0, 15]), tiles([0, 77]), classes=VOC), "stray")
    assert (finding.files, finding.examples) == (1, ("01.png",))


def test_stray_values_are_listed_with_their_files(tmp_path: Path) -> None:
    strange = tiles([0, 1, 2, 77])
    check = checked(tmp_path / "masks", tiles([0, 1, 2]), strange, classes=3)
    finding = the(check, "stray")
    assert (finding.files, finding.of, finding.examples) == (1, 2, ("01.png",))
    assert (finding.fix, finding.option) == ('ignore="rest"', "--ignore rest")
    assert "77" in finding.text
    assert (read_with(finding.fix, tmp_path, strange, names(3))[strange == 77] == IGNORED).all()
    assert {v.value: v.role for v in check.values} == {0: "class", 1: "class", 2: "class", 77: "stray"}


def test_the_ignored_value_of_16_bits(tmp_path: Path) -> None:
    mask = tiles([0, 1, 2, 65535], dtype=np.uint16)
    finding = the(checked(tmp_path / "masks", mask, classes=3), "plain")
    assert (finding.fix, finding.option) == ("ignore=(65535,)", "--ignore 65535")
    assert (read_with(finding.fix, tmp_path, mask, names(3)) == np.where(mask > 2, IGNORED, mask)).all()
    from_1 = tiles([1, 2, 3, 65535], dtype=np.uint16)
    finding = the(checked(tmp_path / "masks", from_1, classes=3), "shifted")
    assert (read_with(finding.fix, tmp_path, from_1, names(3)) == np.where(from_1 > 3, IGNORED, from_1 - 1)).all()


def test_depths_are_not_classes(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, tiles(range(500), (30, 30), np.uint16) + np.uint16(300)), "not-classes")
    assert "500 different values, 300 to 799" in finding.text


# --- colors ----------------------------------------------------------------------------------------------------------


def painted(space_or_palette: LabelSpace | Sequence[Sequence[int]], mask: NDArray[np.generic]) -> NDArray[np.uint8]:
    palette = space_or_palette.palette if isinstance(space_or_palette, LabelSpace) else space_or_palette
    return np.array(palette, np.uint8)[mask]


@pytest.mark.parametrize("space", [VOC, CITY])
def test_colors_of_a_known_palette(tmp_path: Path, space: LabelSpace) -> None:
    mask = tiles(range(len(space)))
    check = checked(tmp_path / "masks", painted(space, mask))
    finding = the(check, "known-colors")
    assert finding.fix == f'colors=isanet.labels.label_space("{space.name}").palette'
    assert finding.option == f"--colors {space.name}"
    assert (read_with(finding.fix, tmp_path, painted(space, mask), space.name) == mask).all()
    assert len(check.colors) == len(space)


def test_a_palette_with_a_repeated_color_gets_no_fix(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, painted(ADE, tiles(range(150)))), "known-colors")
    assert "Road and skyscraper" in finding.text
    assert finding.fix == finding.option == ""


def test_few_colors_may_fit_by_chance(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, painted(VOC, tiles([0, 1]))), "known-colors")
    assert "chance" in finding.text


def test_the_border_of_objects_in_the_colors_of_voc_is_named(tmp_path: Path) -> None:
    finding = the(checked(tmp_path, painted([*VOC.palette, (224, 224, 192)], tiles([0, 1, 5, 21]))), "known-colors")
    assert "the palette of voc21. #e0e0c0 is the border of objects" in finding.text


def test_the_expected_colors_are_tried_first(tmp_path: Path) -> None:
    space = custom_space(["a", "b"], [(1, 2, 3), (250, 4, 9)])
    pixels = painted(space, tiles([0, 1]))
    finding = the(checked(tmp_path / "masks", pixels, classes=space), "known-colors")
    assert (finding.fix, finding.option) == ("colors=((1, 2, 3), (250, 4, 9))", "--colors 010203,fa0409")
    assert (read_with(finding.fix, tmp_path, pixels, ["a", "b"]) == tiles([0, 1])).all()


def test_unknown_colors_are_listed(tmp_path: Path) -> None:
    check = checked(tmp_path, painted([(1, 2, 3), (90, 80, 70), (0, 0, 0)], tiles([0, 0, 0, 1, 1, 2])))
    finding = the(check, "colors")
    assert finding.fix == "colors=((1, 2, 3), (90, 80, 70), (0, 0, 0))"
    assert "order of your classes" in finding.text
    assert [(c.color, c.pixels) for c in check.colors] == [
        ((1, 2, 3), 288),
        ((90, 80, 70), 192),
        ((0, 0, 0), 96),
    ]


def test_black_and_white_in_rgb(tmp_path: Path) -> None:
    mask = tiles([0, 1])
    pixels = painted([(0, 0, 0), (255, 255, 255)], mask)
    finding = the(checked(tmp_path / "masks", pixels), "black-and-white")
    assert (finding.fix, finding.option) == ("colors=((0, 0, 0), (255, 255, 255))", "--colors 000000,ffffff")
    assert (read_with(finding.fix, tmp_path, pixels, names(2)) == mask).all()


def test_hundreds_of_colors_are_not_classes(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    finding = the(checked(tmp_path, photograph, painted(VOC, tiles([0, 1]))), "too-many-colors")
    assert (finding.files, finding.of, finding.examples, finding.fix) == (1, 2, ("00.png",), "")


def test_gray_saved_as_rgb(tmp_path: Path) -> None:
    mask = tiles([0, 0, 0, 1, 1, 2, 255])
    pixels = np.stack([mask] * 3, -1)
    finding = the(checked(tmp_path / "masks", pixels), "colors")
    assert finding.fix == "colors=((0, 0, 0), (1, 1, 1), (2, 2, 2))"
    assert finding.option == "--colors 000000,010101,020202"
    assert "save one channel" in finding.text
    assert (read_with(finding.fix, tmp_path, pixels, names(3)) == mask).all()


# --- files ------------------------------------------------------------------------------------------------------------


def test_jpeg_is_refused_whatever_its_suffix(tmp_path: Path) -> None:
    Image.fromarray(tiles([0, 1])).save(tmp_path / "a.png", format="JPEG")
    check = checked(tmp_path, tiles([0, 1]))
    finding = the(check, "unreadable")
    assert (finding.files, finding.of, finding.examples) == (1, 2, ("a.png",))
    assert "JPEG" in check.unreadable["a.png"]


def test_unreadable_files_are_listed_and_the_others_examined(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (200, 200), np.uint8)
    save(tmp_path / "good.png", noise)
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not found")
    check = check_masks(tmp_path, classes=3, progress=False)
    assert set(check.unreadable) == {"cut.png", "empty.png", "text.png"}
    assert "0 bytes" in check.unreadable["empty.png"]
    assert "text" in check.unreadable["text.png"]
    finding = the(check, "unreadable")
    assert (finding.files, finding.of) == (3, 4)
    assert sum(check.formats.values()) == 1
    assert "plain" in kinds(check)
    assert "empty.png: " in str(check)


def test_unsupported_modes(tmp_path: Path) -> None:
    Image.new("LA", (4, 4)).save(tmp_path / "a.png")
    Image.new("F", (4, 4)).save(tmp_path / "b.tif")
    check = check_masks(tmp_path, progress=False)
    assert the(check, "unreadable").files == 2
    assert "mode LA" in check.unreadable["a.png"]
    assert "mode F" in check.unreadable["b.tif"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/a.png", tiles([0, 1]))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "masks/loop").symlink_to(tmp_path / "masks")
    assert check_masks(tmp_path / "masks", progress=False).files == 1


def test_a_sub_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", tiles([0, 1]))
    save(tmp_path / "b" / "a.png", tiles([0, 1]))
    refuse_folder("b", monkeypatch)
    with pytest.raises(DatasetError, match=f"^{tmp_path} cannot be read: .*Permission denied: .*/b"):
        check_masks(tmp_path, progress=False)


@pytest.mark.parametrize("present", [[], ["a.npy", "b.npy"], [".hidden.png"]])
def test_a_folder_without_masks(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match="no masks under" + (r".*2 \.npy" if len(present) == 2 else "")):
        check_masks(tmp_path, progress=False)


def test_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        check_masks(tmp_path / "absent")
    with pytest.raises(ValueError, match="at least 1"):
        check_masks(tmp_path, classes=0)
    with pytest.raises(ValueError, match="same folder"):
        check_masks(tmp_path, images=tmp_path)


# --- against the images ---------------------------------------------------------------------------------------------


def test_sizes_against_the_images(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image, mask, exif in [
        ("good", (20, 30), (20, 30), None),
        ("upright", (20, 30), (30, 20), turned),  # the image is turned when it is read, and then fits
        ("lying", (20, 30), (20, 30), turned),
        ("swapped", (20, 30), (30, 20), None),
        ("smaller", (20, 30), (10, 15), None),
    ]:
        options = {"exif": exif} if exif else {}
        save(tmp_path / f"images/sub/{name}.jpg", np.zeros((*image, 3), np.uint8), **options)
        save(tmp_path / f"masks/sub/{name}.png", tiles([0, 1], mask))
    save(tmp_path / "images/sub/alone.jpg", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "masks/lonely.png", tiles([0, 1]))
    save(tmp_path / "masks/sub/good.tif", tiles([0, 1], (20, 30)))
    (tmp_path / "images/broken.jpg").touch()
    save(tmp_path / "masks/broken.png", tiles([0, 1]))
    check = check_masks(tmp_path / "masks", images=tmp_path / "images", progress=False)
    assert {kind: the(check, kind).examples for kind in kinds(check) - {"plain"}} == {
        "exif": ("sub/lying.png",),
        "size": ("sub/smaller.png", "sub/swapped.png"),
        "no-mask": ("sub/alone.jpg",),
        "no-image": ("lonely.png",),
        "image-unreadable": ("broken.png",),
    }
    assert "sub/smaller.png is 15x10, its image 30x20" in the(check, "size").text


def test_names_are_compared_whatever_their_unicode_form(tmp_path: Path) -> None:
    save(tmp_path / "images" / unicodedata.normalize("NFC", "ü.jpg"), np.zeros((24, 24, 3), np.uint8))
    save(tmp_path / "masks" / unicodedata.normalize("NFD", "ü.png"), tiles([0, 1]))
    check = check_masks(tmp_path / "masks", images=tmp_path / "images", progress=False)
    assert kinds(check) == {"plain"}


def test_images_in_a_sub_folder_are_not_masks(tmp_path: Path) -> None:
    save(tmp_path / "images/a.jpg", np.zeros((24, 24, 3), np.uint8))
    save(tmp_path / "a.png", tiles([0, 1]))
    check = check_masks(tmp_path, images=tmp_path / "images", progress=False)
    assert (check.files, kinds(check)) == (1, {"plain"})


# --- the answer -------------------------------------------------------------------------------------------------------


def test_the_report_aligns_the_table_and_gives_the_fix_for_python_and_the_command_line(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([1, 2, 2, 2]), classes=custom_space(["a", "b"]))
    lines = str(check).splitlines()
    assert lines[0] == f"{tmp_path}: 1 mask"
    assert lines[2:6] == [
        "1 PNG, mode L; 576 pixels",
        "VALUE  PIXELS    SHARE  FILES  CLASS",
        "    1     144  25.00 %      1  a",
        "    2     432  75.00 %      1  b",
    ]
    assert "    Python:        Folder(..., ids=range(1, 3))" in lines
    assert "    command line:  --ids 1,2" in lines
    assert "  In 1 of 1 files, e.g. 00.png" in lines


def test_json_has_everything(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([0, 1, 2, 77]), classes=3)
    again = json.loads(json.dumps(check.to_json()))
    assert again["values"][3] == {
        "value": 77,
        "pixels": 144,
        "files": 1,
        "role": "stray",
        "name": "",
        "color": None,
    }
    assert again["findings"][0]["fix"] == 'ignore="rest"'


def has_color(image: Image.Image, color: tuple[int, int, int], pixels: int) -> bool:
    return int((np.asarray(image) == color).all(-1).sum()) >= pixels


def test_the_histogram_has_a_bar_in_the_color_of_each_class(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([0, 1, 2, 2, 2, 77, 255]), classes=custom_space(names(3)))
    check.save_histogram(tmp_path / "histogram.png")
    with Image.open(tmp_path / "histogram.png") as image:
        assert image.format == "PNG"
        areas = [int((np.asarray(image) == color).all(-1).sum()) for color in generic_palette(3)]
    assert min(areas) > 500
    assert 2.5 < areas[2] / areas[1] < 3.5  # by share


@pytest.mark.parametrize("number", [2, 21, 150])
def test_the_histogram_grows_with_the_values(tmp_path: Path, number: int) -> None:
    image = checked(tmp_path, tiles(range(number)), classes=number).histogram()
    rows = min(number, 50)
    assert image.height >= 20 * rows  # a line of text each
    assert image.width <= 2000
    assert has_color(image, (72, 120, 168), 500 * number // 5)  # the bars of classes that have no color


def test_the_histogram_is_logarithmic_where_shares_differ_much(tmp_path: Path) -> None:
    def longest(mask: NDArray[np.generic], name: str) -> int:
        """Pixels of the bar of class 1."""
        image = np.asarray(checked(tmp_path / name, mask, classes=custom_space(names(2))).histogram())
        return int((image == generic_palette(2)[1]).all(-1).sum())

    rare = np.zeros((100, 100), np.uint8)
    rare[0, 0] = 1
    less_rare = np.zeros((100, 100), np.uint8)
    less_rare[0, :20] = 1
    assert longest(rare, "rare") > 2 * longest(less_rare, "less rare")


def test_unusual_class_names_are_drawn(tmp_path: Path) -> None:
    space = custom_space(["x" * 300, "$x_1$", "中文", "a\nb"])
    image = checked(tmp_path, tiles(range(4)), classes=space).histogram()
    assert image.width < 1000


def test_without_a_readable_mask_there_is_a_report_but_nothing_to_draw(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    check = check_masks(tmp_path, progress=False)
    assert "a.png" in str(check)
    with pytest.raises(DatasetError, match="nothing to draw"):
        check.histogram()


def test_the_bar_is_shown_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png", tiles([0, 1]))

    def shown(progress: bool | None) -> str:
        check_masks(tmp_path, progress=progress)
        return capsys.readouterr().err

    assert "mask" in shown(True)
    assert shown(False) == shown(None) == ""


def test_a_histogram_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    check = checked(tmp_path, tiles([0, 1]))
    with pytest.raises(OutputError, match=r"absent/histogram\.png"):
        check.save_histogram(tmp_path / "absent" / "histogram.png")


def test_file_names_are_cleaned_in_the_report(tmp_path: Path) -> None:
    save(tmp_path / "a\x1b[31m.png", tiles([0, 1, 9]))
    (tmp_path / "b\x1b[31m.png").touch()
    check = check_masks(tmp_path, classes=2, progress=False)
    assert the(check, "stray").examples == ("a\x1b[31m.png",)
    assert "\x1b" not in str(check)
