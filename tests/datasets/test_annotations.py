"""Exports of labelling tools open as they are: the same samples as the masks that they stand for."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.datasets import Exported, Folder, import_masks, open_dataset, open_train_and_val
from isanet.errors import DatasetError, OutputError
from isanet.labels import IGNORED
from tests.helpers import exports
from tests.helpers.exports import CLASSES, EXPORTS, SHAPES, image_of, mask_of

NAMES = tuple(EXPORTS)


def masks_in(dataset: Any) -> dict[str, Any]:
    """Masks by the last part of the key; images are compared on the way."""
    masks = {}
    for index, key in enumerate(dataset.keys):
        name = key.rpartition("/")[2]
        image, masks[name] = dataset.read(index)
        np.testing.assert_array_equal(image, image_of(name))
    return masks


def check(dataset: Any, names: str = "abcdef") -> None:
    found = masks_in(dataset)
    assert sorted(found) == sorted(names)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, mask_of(name), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_export_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    write, palette, has_splits = EXPORTS[name]
    write(tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    assert dataset.classes == CLASSES
    assert dataset.palette == palette
    check(dataset)
    check(pickle.loads(pickle.dumps(dataset)))
    train, val = open_train_and_val(tmp_path / "set")
    assert train.classes == val.classes == CLASSES
    if has_splits:
        check(train, "abcd")
        check(val, "ef")
    else:
        assert (len(train), len(val)) == (5, 1)
    assert dataset.fingerprint([0]) == open_dataset(tmp_path / "set").fingerprint([0])


@pytest.mark.parametrize("name", NAMES)
def test_import_masks_writes_a_plain_folder(tmp_path: Path, name: str) -> None:
    write, palette, has_splits = EXPORTS[name]
    write(tmp_path / "set")
    found = import_masks(tmp_path / "set", tmp_path / "new" / "plain")
    dataset = open_dataset(tmp_path / "new" / "plain")
    assert type(dataset) is Folder
    assert (dataset.classes, dataset.palette) == (CLASSES, palette)
    check(dataset)
    train, val = open_train_and_val(tmp_path / "new" / "plain")
    assert (train.split, val.split, len(train) + len(val)) == ("train", "val", 6)
    if has_splits:
        check(train, "abcd")
    masks = [mask_of(each) for each in SHAPES]
    assert found.pixels == tuple(sum(int((mask == i).sum()) for mask in masks) for i in (0, 1, 2, 3, IGNORED))
    assert found.splits == {"train": len(train), "val": len(val)}
    with Image.open(tmp_path / "new" / "plain" / "masks" / "a.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), np.array(palette)[mask_of("a")])
    with Image.open(tmp_path / "new" / "plain" / "overlays.png") as sheet:
        assert min(sheet.size) > 200
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["plain"]


def change(path: Path, *where: Any, to: Any) -> None:
    """Replaces a value in a JSON file."""
    data = inner = json.loads(path.read_text())
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = to
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("name", NAMES[:-2])
def test_what_is_not_annotated_may_be_ignored(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    EXPORTS[name][0](tmp_path)
    caplog.set_level(logging.INFO, "isanet")
    dataset = open_dataset(tmp_path, unlabeled="ignored")
    assert "not annotated" not in caplog.text
    assert dataset.classes == CLASSES[1:]
    for each, mask in masks_in(dataset).items():
        np.testing.assert_array_equal(mask, np.where(mask_of(each) == 0, IGNORED, mask_of(each) - 1))
    open_dataset(tmp_path)
    assert "what is not annotated is background; unlabeled='ignored' (--unlabeled ignored)" in caplog.text
    with pytest.raises(DatasetError, match=r'unlabeled is "background" or "ignored"'):
        open_dataset(tmp_path, unlabeled="void")


def test_classes_give_the_order(tmp_path: Path) -> None:
    exports.via(tmp_path)
    dataset = open_dataset(tmp_path, classes=["road", "car", "bus", "person", "background"])
    order = np.array([4, 1, 3, 0])
    for each, mask in masks_in(dataset).items():
        np.testing.assert_array_equal(mask, order[mask_of(each)])
    with pytest.raises(DatasetError, match="that classes= does not have: background; unlabeled='ignored'"):
        open_dataset(tmp_path, classes=["road", "car", "person"])
    with pytest.raises(DatasetError, match="that classes= does not have: person"):
        open_dataset(tmp_path, classes=["road", "car", "background"])


def test_the_list_of_labelme_gives_the_order_and_what_is_ignored(tmp_path: Path) -> None:
    exports.labelme(tmp_path)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\nperson\n")
    change(tmp_path / "a.json", "shapes", 2, "label", to="__ignore__")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("_background_", "road", "car", "person")
    mask = masks_in(dataset)["a"]
    np.testing.assert_array_equal(mask, np.array([0, 2, IGNORED, 1])[mask_of("a")])
    change(tmp_path / "b.json", "shapes", 0, "label", to="bus")
    with pytest.raises(DatasetError, match=r"shape 0 of .*b\.json: the class 'bus' is not in .*labels\.txt"):
        open_dataset(tmp_path)


def test_overlaps_and_images_without_annotations_and_lines_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports.labelme(tmp_path / "set")
    Image.new("RGB", (9, 9)).save(tmp_path / "set" / "forgotten.png")
    change(tmp_path / "set" / "c.json", "shapes", 0, "shape_type", to="linestrip")
    found = import_masks(tmp_path / "set", tmp_path / "plain")
    assert [Path(path).name for path in found.unmatched] == ["forgotten.png"]
    assert found.skipped == {"linestrip": 1}
    assert dict(found.overlaps) == {"a": 10 * 6 + 6 * 8 + 4 * 10 - 24, "b": 37}
    assert "1 image in" in caplog.text
    assert "without annotations, which are no samples: forgotten.png" in caplog.text
    text = str(found)
    for part in ("6 images (train 5, val 1)", "Overlaps: ", "in 2 images, the later shape on top: a (", "1 linestrip"):
        assert part in text
    assert "forgotten.png" in text


def test_holes_are_those_of_supervisely(tmp_path: Path) -> None:
    exports.supervisely(tmp_path)
    path = tmp_path / "train" / "ann" / "c.png.json"
    change(path, "objects", 0, "points", "interior", to=[[[2, 3], [10, 3], [10, 20], [2, 20]]])
    expected = mask_of("c")
    expected[3:20, 2:10] = 0
    np.testing.assert_array_equal(masks_in(open_dataset(tmp_path))["c"], expected)


COCO = ("annotations", "instances_train2017.json")
PANOPTIC = ("annotations", "panoptic_train.json")
REGION = ("_via_img_metadata", "a.png123", "regions", 0, "region_attributes")

WRONG: dict[str, tuple[str, tuple[str, ...], tuple[Any, ...], Any, str]] = {
    "path up": ("labelme", ("a.json",), ("imagePath",), "../../etc/passwd", "outside"),
    "path up, Windows": ("labelme", ("a.json",), ("imagePath",), "..\\..\\x.png", "outside"),
    "absolute path": ("labelme", ("a.json",), ("imagePath",), "/etc/passwd", "no image 'passwd'"),
    "no path": ("labelme", ("a.json",), ("imagePath",), "..", "no name of an image"),
    "path of another kind": ("labelme", ("a.json",), ("imagePath",), 7, "'7' is no name of an image"),
    "image twice": ("labelme", ("a.json",), ("imagePath",), "b.png", "and so does"),
    "size": ("labelme", ("a.json",), ("imageHeight",), 33, "is 32x24, and its mask .* 32x33"),
    "large": ("labelme", ("a.json",), ("imageHeight",), 10**9, "more than the limit"),
    "negative size": ("labelme", ("a.json",), ("imageWidth",), -1, "the size -1x24 is none"),
    "label": ("labelme", ("a.json",), ("shapes", 0, "label"), 3, "shape 0 has no label"),
    "empty label": ("labelme", ("a.json",), ("shapes", 0, "label"), " ", "no name of a class"),
    "points": ("labelme", ("b.json",), ("shapes", 0, "points"), [[1, 2]], "shape 0 of .*at least three points"),
    "bitmap": ("labelme", ("f.json",), ("shapes", 0, "mask"), "AAAA", "bitmap in the annotations"),
    "shapes": ("labelme", ("a.json",), ("shapes",), {}, "shapes are no list"),
    "category": ("coco", COCO, ("annotations", 0, "category_id"), 99, "annotation 700 of .*category 99 is not listed"),
    "categories": ("coco", COCO, ("categories",), None, "no lists images, annotations and categories"),
    "image": ("coco", COCO, ("annotations", 0, "image_id"), 99, "annotation 0 is of the image '99'"),
    "file name": ("coco", COCO, ("images", 0, "file_name"), "zz.png", "there is no image 'zz.png'"),
    "run lengths": ("coco", COCO, ("annotations", 0, "segmentation"), {"size": [24, 32], "counts": [5]}, "cover 5 pix"),
    "run size": ("coco", COCO, ("annotations", 0, "segmentation"), {"size": [9, 9], "counts": [81]}, "are of 9x9"),
    "segment": ("panoptic", PANOPTIC, ("annotations", 0, "segments_info"), [], "color #"),
    "mask path": ("panoptic", PANOPTIC, ("annotations", 0, "file_name"), "../a", "no mask"),
    "attribute": ("via", ("via_project.json",), REGION, {}, "no name of a class"),
    "regions": ("via", ("via_project.json",), ("_via_img_metadata", "a.png123"), 5, "via_project.json"),
    "class": ("supervisely", ("train", "ann", "a.png.json"), ("objects", 0, "classTitle"), "bus", "'bus' is not in"),
    "geometry": ("supervisely", ("train", "ann", "a.png.json"), ("objects", 1, "bitmap", "data"), "xx!", "object 1 of"),
    "task": ("label-studio", ("project.json",), (0, "id"), 99, "which image is task 1 of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_the_file_and_the_value(tmp_path: Path, case: str) -> None:
    name, path, where, value, message = WRONG[case]
    EXPORTS[name][0](tmp_path / "set")
    change((tmp_path / "set").joinpath(*path), *where, to=value)
    with pytest.raises(DatasetError, match=message) as caught:
        masks_in(open_dataset(tmp_path / "set"))
    assert str(tmp_path) in str(caught.value) or "bitmap" in message
    with pytest.raises(DatasetError):
        import_masks(tmp_path / "set", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_wrong_colors_values_and_lists_of_masks(tmp_path: Path) -> None:
    exports.cvat(tmp_path / "cvat")
    Image.new("RGB", (32, 24), (1, 2, 3)).save(tmp_path / "cvat" / "SegmentationClass" / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png has the color #010203 in 768 pixels"):
        masks_in(open_dataset(tmp_path / "cvat"))
    (tmp_path / "cvat" / "JPEGImages" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"b\.png has no image b in .*export with the images"):
        open_dataset(tmp_path / "cvat")
    (tmp_path / "cvat" / "labelmap.txt").write_text("# label:\nroad:1,2:3")
    with pytest.raises(DatasetError, match=r"line 2 of .*labelmap\.txt: 'road:1,2:3' is not label:red,green,blue"):
        open_dataset(tmp_path / "cvat")
    exports.roboflow(tmp_path / "robo")
    Image.new("L", (32, 24), 77).save(tmp_path / "robo" / "train" / "a_mask.png")
    with pytest.raises(DatasetError, match=r"a_mask\.png has the value 77 in 768 pixels"):
        masks_in(open_dataset(tmp_path / "robo"))
    (tmp_path / "robo" / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, bus\n")
    with pytest.raises(DatasetError, match="has other classes than"):
        open_dataset(tmp_path / "robo")


def test_a_large_coco_file_is_recognized_beside_the_other_files_of_the_archive(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports.coco(tmp_path)
    for split in ("train", "val"):
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({"images": data["images"], **{"x" * 70_000: 0}, **data}))
        data["categories"][0]["keypoints"] = ["nose"]
        path.with_name(f"person_keypoints_{split}2017.json").write_text(json.dumps(data))
        del data["categories"]
        path.with_name(f"captions_{split}2017.json").write_text(json.dumps(data))
    check(open_dataset(tmp_path))
    assert "captions_val2017.json holds no categories, and is left out" in caplog.text
    assert "person_keypoints_val2017.json holds keypoints, and is left out" in caplog.text


def test_a_detection_export_and_yolo_are_said_to_be_that(tmp_path: Path) -> None:
    exports.coco(tmp_path / "coco")
    for path in (tmp_path / "coco" / "annotations").iterdir():
        data = json.loads(path.read_text())
        data["annotations"] = [{**each, "segmentation": [], "bbox": [0, 0, 2, 2]} for each in data["annotations"]]
        path.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match="holds boxes alone, for detection"):
        open_dataset(tmp_path / "coco")
    for name in ("images", "labels"):
        (tmp_path / "yolo" / name).mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(DatasetError, match=r"holds no image files, so no masks .*YOLO"):
        open_dataset(tmp_path / "yolo")


@pytest.mark.parametrize("text", ["[" * 99_999, '{"shapes": [', '{"shapes": ' + "9" * 9999 + "}", '"shapes"', "\x00"])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    exports.labelme(tmp_path)
    (tmp_path / "a.json").write_text(text)
    if '"shapes"' in text:
        with pytest.raises(DatasetError, match=r"a\.json"):
            open_dataset(tmp_path)
    else:
        assert len(open_dataset(tmp_path)) == 5


def test_two_exports_in_one_folder_are_told_apart_by_layout(tmp_path: Path) -> None:
    exports.labelme(tmp_path)
    exports.via(tmp_path)
    with pytest.raises(DatasetError, match=r"several datasets \(labelme, via\); say which one by layout"):
        open_dataset(tmp_path)
    for layout in ("labelme", "via"):
        check(open_dataset(tmp_path, layout=layout))
    with pytest.raises(DatasetError, match="has no split 'train'; it has none"):
        open_dataset(tmp_path, "train", layout="via")
    with pytest.raises(DatasetError, match=r"Exported \(layout='via'\), which has no argument ids="):
        open_dataset(tmp_path, layout="via", ids=[1])
    with pytest.raises(DatasetError, match="does not hold an export of Supervisely"):
        open_dataset(tmp_path, layout="supervisely")


def test_the_message_of_an_unknown_folder_names_the_layouts_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"no known layout") as caught:
        open_dataset(tmp_path)
    for part in (
        "CVAT: ",
        "LabelMe: ",
        "COCO: ",
        "Roboflow: ",
        "Label Studio: ",
        "VIA: ",
        "Supervisely: ",
        "notes.json",
    ):
        assert part in str(caught.value)


def test_import_masks_keeps_what_is_there_and_takes_any_dataset(tmp_path: Path) -> None:
    exports.other_names(tmp_path / "set")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for path in ("full", "full/x"):
        with pytest.raises(OutputError, match="exists and was kept"):
            import_masks(tmp_path / "set", tmp_path / path)
    (tmp_path / "empty").mkdir()
    assert import_masks(tmp_path / "set", tmp_path / "empty").splits == {"train": 4, "val": 2}
    again = import_masks(tmp_path / "empty", tmp_path / "again")
    assert again.pixels == import_masks(tmp_path / "set", tmp_path / "third").pixels
    assert (tmp_path / "again" / "classes.txt").read_text() == (tmp_path / "empty" / "classes.txt").read_text()


def test_samples_of_equal_names_stay_apart(tmp_path: Path) -> None:
    exports.labelme(tmp_path / "set" / "one")
    exports.labelme(tmp_path / "set" / "two")
    found = import_masks(tmp_path / "set", tmp_path / "plain")
    assert sum(found.splits.values()) == 12
    assert sorted(path.stem for path in (tmp_path / "plain" / "masks").iterdir())[:2] == ["one_a", "one_b"]
    assert isinstance(open_dataset(tmp_path / "set"), Exported)
    assert len(open_dataset(tmp_path / "plain")) == 12


@pytest.mark.parametrize("name", NAMES[:-2])
def test_links_in_circles_end(tmp_path: Path, name: str) -> None:
    EXPORTS[name][0](tmp_path)
    (tmp_path / "more").mkdir()
    for link in ("x1", "x2", "x3"):
        (tmp_path / "more" / link).symlink_to(tmp_path, target_is_directory=True)
    check(open_dataset(tmp_path))
