"""One label map: areas, colors, overlays, other label spaces, files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from isanet.errors import OutputError
from isanet.inference.segmentation import Segmentation
from isanet.labels import label_space

CLASSES = ("night", "fire", "grass", "water", "snow")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def result_of(labels: np.ndarray, **changes: Any) -> Segmentation:
    image = np.full((*labels.shape, 3), 200, np.uint8)
    return Segmentation(**({"labels": labels, "classes": CLASSES, "palette": PALETTE, "image": image} | changes))


# --- what can be made of a result


def test_areas_are_sorted_and_sum_to_one() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:6], labels[6:9] = 3, 1
    areas = result_of(labels).areas()
    assert list(areas.items()) == [("water", 0.6), ("fire", 0.3), ("night", 0.1)]
    odd = np.random.default_rng(0).integers(0, 5, (2100, 2101)).astype(np.uint8)  # counted in more than one part
    assert sum(result_of(odd).areas().values()) == pytest.approx(1, abs=1e-12)
    assert result_of(odd).areas()["fire"] == pytest.approx((odd == 1).mean(), abs=1e-12)


def test_text() -> None:
    labels = np.array([[0, 1, 2, 3]] * 2, np.uint8)
    assert repr(result_of(labels)) == "Segmentation(4x2: night 0.25, fire 0.25, grass 0.25, …)"
    assert str(result_of(labels[:, :1])) == "Segmentation(1x2: night 1.00)"


def test_as_an_array_it_is_its_labels() -> None:
    result = result_of(np.array([[0, 1], [3, 4]], np.uint8))
    assert np.array_equal(np.asarray(result), result.labels)
    assert np.asarray(result).dtype == np.uint8
    assert np.asarray(result, np.int64).dtype == np.int64
    assert not np.shares_memory(np.array(result), result.labels)
    assert np.shares_memory(np.asarray(result), result.labels)
    assert (result == 3) is False  # it is not an array: comparing is of objects
    assert np.bincount(result.__array__().ravel()).tolist() == [1, 1, 0, 1, 1]  # type: ignore[no-untyped-call]


def many_classes(count: int, labels: np.ndarray, **changes: Any) -> Segmentation:
    palette = tuple((i % 256, i // 256, 7) for i in range(count))
    return result_of(labels, classes=tuple(f"class {i}" for i in range(count)), palette=palette, **changes)


def test_colored() -> None:
    labels = np.array([[0, 1], [3, 4]], np.uint8)
    image = result_of(labels).colored()
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(PALETTE)[labels])
    many = many_classes(300, np.array([[299, 0]], np.int32)).colored()
    assert many.mode == "RGB"
    assert many.getpixel((0, 0)) == (43, 1, 7)


def test_overlay_blends_at_the_size_of_the_image() -> None:
    labels = np.array([[0, 1], [3, 4]], np.uint8)
    result = result_of(labels)
    np.testing.assert_array_equal(np.asarray(result.overlay(0, legend=False)), result.image)
    np.testing.assert_array_equal(np.asarray(result.overlay(1, legend=False)), np.array(PALETTE)[labels])
    half = np.asarray(result.overlay(0.5, legend=False)).astype(int)
    assert np.abs(half - (200 + np.array(PALETTE)[labels]) / 2).max() <= 1
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            result.overlay(alpha)


@pytest.mark.parametrize("count", [1, 5, 60, 150, 300])
@pytest.mark.parametrize(
    "size", [(1, 1), (20, 20), (300, 451), (100, 2000), (2000, 100), (1, 500), (500, 1), (1500, 2250)]
)
def test_overlay_with_legend_is_whole_on_any_image(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int
) -> None:
    labels = (np.arange(size[0] * size[1]) % count).reshape(size).astype(np.uint8 if count <= 256 else np.int32)
    result = many_classes(count, labels)
    drawn: list[tuple[tuple[float, float, float, float], str]] = []
    plain_text = ImageDraw.ImageDraw.text

    def text(self: Any, position: tuple[float, float], words: str, **options: Any) -> None:
        assert options["font"].size >= 13
        drawn.append((self.textbbox(position, words, font=options["font"], anchor=options["anchor"]), words))
        plain_text(self, position, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    overlay = result.overlay()
    assert overlay.mode == "RGB"
    # the image itself, enlarged by a whole factor if tiny, is at the top left, untouched by the legend
    factor = max(1, -(-240 // max(size)))
    body = np.asarray(result.overlay(legend=False)).repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(np.asarray(overlay)[: body.shape[0], : body.shape[1]], body)
    # every class is named once, with its share; no text overlaps another, leaves the canvas or covers the image
    present = len(np.unique(labels))
    assert [words for _, words in drawn[::2]] == [f"class {index}" for index in range(present)]
    assert all(words.endswith("%") for _, words in drawn[1::2])
    boxes = np.array([box for box, _ in drawn])
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= overlay.width).all()
    assert (boxes[:, 3] <= overlay.height).all()
    assert ((boxes[:, 0] >= body.shape[1]) | (boxes[:, 1] >= body.shape[0])).all()
    for index, box in enumerate(boxes):
        rest = boxes[index + 1 :]
        apart = (rest[:, 0] >= box[2]) | (rest[:, 2] <= box[0]) | (rest[:, 1] >= box[3]) | (rest[:, 3] <= box[1])
        assert apart.all()


def test_legend_swatch_has_the_color_of_the_class() -> None:
    overlay = np.asarray(result_of(np.full((300, 400), 2, np.uint8)).overlay())
    panel = overlay[300:]
    assert (panel == PALETTE[2]).all(axis=-1).sum() > 50
    assert (panel == 255).all(axis=-1).mean() > 0.5  # plain background


@pytest.mark.parametrize("name", ["background", "Unlabeled", "VOID"])
def test_the_background_is_not_painted_unless_asked(name: str) -> None:
    labels = np.array([[0, 1], [0, 2]], np.uint8)
    result = result_of(labels, classes=(name, *CLASSES[1:]))
    overlay = np.asarray(result.overlay(1, legend=False))
    np.testing.assert_array_equal(overlay[labels == 0], result.image[labels == 0])
    np.testing.assert_array_equal(overlay[labels > 0], np.array(PALETTE)[labels[labels > 0]])
    np.testing.assert_array_equal(np.asarray(result.overlay(1, False, skip=())), np.array(PALETTE)[labels])
    for skip in ("fire", ["fire"]):
        overlay = np.asarray(result.overlay(1, False, skip=skip))
        np.testing.assert_array_equal(overlay[labels == 1], result.image[labels == 1])
        np.testing.assert_array_equal(overlay[labels == 0], np.array(PALETTE)[labels[labels == 0]])
    with pytest.raises(ValueError, match="fire"):
        result.overlay(skip=["fir"])


def test_skipped_classes_are_not_in_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("isanet.inference.segmentation.draw_overlay", lambda *_, legend, **__: drawn.append(legend))
    result = result_of(np.array([[0, 0, 1]], np.uint8), classes=("background", *CLASSES[1:]))
    result.overlay()
    result.overlay(skip=())
    result.overlay(legend="fixed")
    assert [[entry.name for entry in legend] for legend in drawn] == [
        ["fire"], ["background", "fire"], ["fire", "grass", "water", "snow"]
    ]  # fmt: skip


@pytest.mark.parametrize("count", [9, 40])
def test_frames_of_one_size_have_overlays_of_one_size(count: int) -> None:
    frames = [np.zeros((120, 200), np.uint8), *np.random.default_rng(0).integers(0, count, (3, 120, 200)).astype("u1")]
    results = [many_classes(count, frame) for frame in frames]
    assert len({result.overlay().size for result in results}) > 1
    assert len({result.overlay(legend="fixed").size for result in results}) == 1
    with pytest.raises(ValueError, match="'fixed', got 'fix'"):
        results[0].overlay(legend="fix")


def test_legend_takes_odd_names() -> None:
    result = result_of(np.zeros((30, 40), np.uint8), classes=("x" * 500 + "\n", "", "б", "a\nb", " "))
    assert result.overlay().width < 2000
    assert result_of(np.ones((30, 40), np.uint8), classes=result.classes).overlay().mode == "RGB"


# --- other label spaces


def known(space: str, labels: np.ndarray, **changes: Any) -> Segmentation:
    names = label_space(space)
    return result_of(labels, classes=names.classes, palette=names.palette, label_space=space, **changes)


@pytest.mark.parametrize(
    ("space", "ids", "values"),
    [
        ("cityscapes19", "cityscapes-ids", {0: 7, 1: 8, 13: 26, 18: 33}),
        ("ade20k150", "ade20k-ids", {0: 1, 149: 150}),
        ("voc21", "voc-ids", {0: 0, 20: 20}),
    ],
)
def test_official_ids_and_back(space: str, ids: str, values: dict[int, int]) -> None:
    labels = np.arange(len(label_space(space)), dtype=np.uint8).reshape(1, -1)
    confidence = np.ones(labels.shape, np.float32)
    result = known(space, labels, path=Path("a.jpg"), confidence=confidence)
    official = result.to(ids)
    assert official.labels.dtype == np.uint8
    assert {index: int(official.labels[0, index]) for index in values} == values
    assert official.label_space == ids
    assert (official.classes, official.palette) == (label_space(ids).classes, label_space(ids).palette)
    assert official.path == Path("a.jpg")
    assert official.image is result.image
    assert official.confidence is confidence
    assert official.areas() == result.areas()  # the names are the same
    np.testing.assert_array_equal(
        np.asarray(official.colored().convert("RGB")), np.asarray(result.colored().convert("RGB"))
    )
    again = official.to(space)
    np.testing.assert_array_equal(again.labels, labels)
    assert (again.label_space, again.classes) == (space, result.classes)


def test_a_label_without_counterpart_is_named() -> None:
    result = known("cityscapes-ids", np.array([[7, 0, 0, 4]], np.uint8))
    with pytest.raises(ValueError, match=r"2 pixels are 'unlabeled' .*cityscapes-ids.*cityscapes19"):
        result.to("cityscapes19")
    assert known("cityscapes-ids", np.array([[7, 8]], np.uint8)).to("cityscapes19").labels.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="1 pixels are 'sky'"):
        known("cityscapes19", np.array([[0, 10]], np.uint8)).to({"sky": None})


def test_spaces_that_do_not_translate_are_named() -> None:
    with pytest.raises(ValueError, match=r"voc21.*cityscapes-ids"):
        known("voc21", np.zeros((1, 1), np.uint8)).to("cityscapes-ids")
    with pytest.raises(ValueError, match=r"custom \(5 classes.*voc21"):
        result_of(np.zeros((1, 1), np.uint8)).to("voc21")
    with pytest.raises(ValueError, match="unknown label space 'voc'"):
        known("voc21", np.zeros((1, 1), np.uint8)).to("voc")


def test_classes_are_merged() -> None:
    labels = np.array([[0, 13, 14, 15, 18]], np.uint8)
    result = known("cityscapes19", labels).to({"vehicle": ["car", "truck", "bus"]})
    assert [result.classes[index] for index in result.labels[0]] == ["road", "vehicle", "vehicle", "vehicle", "bicycle"]
    assert len(result.classes) == len(result.palette) == 17
    assert result.palette[result.classes.index("vehicle")] == (0, 0, 142)
    assert result.label_space is None
    assert result.labels.dtype == np.uint8
    own = result_of(np.arange(5, dtype=np.uint8).reshape(1, 5)).to({"nature": ["grass", "water"]})
    assert own.labels.tolist() == [[0, 1, 2, 2, 3]]
    assert own.classes == ("night", "fire", "nature", "snow")
    with pytest.raises(ValueError, match=r"'gras'.*did you mean 'grass'"):
        result_of(labels).to({"nature": ["gras", "water"]})


@pytest.mark.parametrize(("members", "dtype"), [(44, np.int32), (45, np.uint8)])
def test_merged_labels_have_the_type_that_holds_them(members: int, dtype: type) -> None:
    labels = np.arange(300, dtype=np.int32).reshape(1, -1)
    result = many_classes(300, labels).to({"first": [f"class {i}" for i in range(members)]})
    assert result.labels.dtype == dtype
    assert len(result.classes) == 301 - members
    assert result.labels[0].tolist() == [0] * members + list(range(1, 301 - members))


# --- regions


def test_a_mask_is_of_one_class_and_unknown_classes_are_named() -> None:
    labels = np.array([[0, 1], [1, 4]], np.uint8)
    mask = result_of(labels).mask("fire")
    assert (mask.dtype, mask.tolist()) == (bool, [[False, True], [True, False]])
    assert not result_of(labels).mask("water").any()
    assert many_classes(300, np.array([[299, 0]], np.int32)).mask("class 299").tolist() == [[True, False]]
    for method in (Segmentation.mask, Segmentation.polygons):
        with pytest.raises(ValueError, match=r"no class 'gras' in custom \(5 classes.*did you mean 'grass'\?"):
            method(result_of(labels), "gras")
    with pytest.raises(ValueError, match="in cityscapes19 "):
        known("cityscapes19", labels).mask("Rode")


def test_polygons_are_of_one_class() -> None:
    labels = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], np.uint8)
    large, small = result_of(labels).polygons("fire")
    assert large.outer.tolist() == [[0, 0], [2, 0], [2, 1], [3, 1], [3, 2], [0, 2]]
    assert small.outer.tolist() == [[0, 3], [1, 3], [1, 4], [0, 4]]
    assert len(result_of(labels).polygons("fire", min_area=2)) == 1
    assert result_of(labels).polygons("snow") == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
@pytest.mark.parametrize("count", [5, 256, 300])
def test_pycocotools_reads_the_labels_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    generator = np.random.default_rng(count)
    maps = [generator.integers(0, count, size) for size in ((9, 14), (1, 7), (30, 1))]
    maps = [labels.astype(np.uint8 if count <= 256 else np.int32) for labels in maps]
    documents = [
        many_classes(count, labels, path=Path(f"in/{number}.jpg")).to_coco(number)
        for number, labels in enumerate(maps, 1)
    ]
    whole = documents[0] | {key: [row for part in documents for row in part[key]] for key in ("images", "annotations")}
    (tmp_path / "coco.json").write_text(json.dumps(whole))
    coco = COCO(str(tmp_path / "coco.json"))
    assert [coco.cats[index + 1]["name"] for index in range(count)] == [f"class {index}" for index in range(count)]
    assert len(coco.anns) == len(whole["annotations"])  # no id twice
    for number, labels in enumerate(maps, 1):
        image = coco.imgs[number]
        assert (image["file_name"], image["height"], image["width"]) == (f"{number}.jpg", *labels.shape)
        again = np.full(labels.shape, -1)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[number])):
            mask = coco.annToMask(annotation).astype(bool)
            assert (again[mask] == -1).all()
            again[mask] = annotation["category_id"] - 1
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
        np.testing.assert_array_equal(again, labels)
    assert result_of(maps[0][:, :1] % 5).to_coco(file_name="a/b.png")["images"][0]["file_name"] == "a/b.png"
    assert result_of(maps[0][:, :1] % 5).to_coco()["images"][0]["file_name"] == ""
    capsys.readouterr()  # pycocotools prints


# --- saving


@pytest.mark.parametrize(("space", "ids"), [("cityscapes19", "cityscapes-ids"), ("ade20k150", "ade20k-ids")])
def test_ids_are_saved_as_the_servers_take_them(tmp_path: Path, space: str, ids: str) -> None:
    labels = np.arange(len(label_space(space)), dtype=np.uint8).reshape(1, -1)
    known(space, labels).to(ids).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image)[0], label_space(space).official_ids)
    known("voc21", np.array([[20, 0]], np.uint8)).to("voc-ids").save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[20, 0]]


def test_saved_labels_come_back(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (30, 41)).astype(np.uint8)
    path = tmp_path / "labels.PNG"
    result_of(labels).save(str(path))
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        np.testing.assert_array_equal(np.asarray(image), labels)
        palette = image.getpalette()
        assert palette is not None
        assert palette[:15] == [value for color in PALETTE for value in color]
    assert list(tmp_path.iterdir()) == [path]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode  # readable by those who may read other new files


@pytest.mark.parametrize("count", [2, 16, 17, 256, 300])
def test_saved_labels_come_back_for_any_number_of_classes(tmp_path: Path, count: int) -> None:
    labels = np.arange(count).reshape(1, -1).astype(np.uint8 if count <= 256 else np.int32)
    many_classes(count, labels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("P" if count <= 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize("name", ["a.jpg", "a.gif", "a.tif", "a", "a.png.webp"])
def test_only_png_is_saved(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.png only"):
        result_of(np.zeros((2, 2), np.uint8)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere does not exist"):
        result_of(np.zeros((2, 2), np.uint8)).save(tmp_path / "nowhere" / "a.png")


def test_labels_are_saved_to_file_objects_as_to_files(tmp_path: Path) -> None:
    result = result_of(np.array([[0, 1], [3, 4]], np.uint8), label_space="cityscapes-ids")
    for kind in (result, result_of(result.labels)):
        kind.save(tmp_path / "labels.png")
        kind.save(buffer := io.BytesIO())
        with (tmp_path / "again.png").open("wb") as file:
            kind.save(file)
        assert buffer.getvalue() == (tmp_path / "labels.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_file_objects_that_take_no_bytes_are_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    closed = io.BytesIO()
    closed.close()
    with (tmp_path / "a").open("rb") as reading, (tmp_path / "b").open("w") as text:
        for file in (closed, reading, text, 3, None):
            with pytest.raises(OutputError, match=r"^cannot write to .*expected a path that ends in \.png, or a file "):
                result_of(np.zeros((2, 2), np.uint8)).save(file)  # type: ignore[arg-type]
    assert (tmp_path / "a").read_text() == "a"


def test_failed_save_keeps_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    result_of(np.zeros((2, 2), np.uint8)).save(path)
    earlier = path.read_bytes()

    def full(self: Image.Image, target: BinaryIO, **_: Any) -> None:
        target.write(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OutputError, match="No space"):
            result_of(np.ones((2, 2), np.uint8)).save(path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
    result_of(np.ones((2, 2), np.uint8)).save(path)  # replaced
    assert path.read_bytes() != earlier
