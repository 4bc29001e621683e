from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from isanet.evaluation import report as module
from isanet.evaluation.report import Report, Sample
from isanet.labels import LABEL_SPACES, generic_palette
from isanet.viz import charts
from tests.helpers.disk import full_at

WHOLE = "whole image, single scale, no flip"
PUBLISHED = {"dataset": "Roads", "split": "val", "miou": 0.5567, "protocol": WHOLE}
CLASSES = ("road", "car", "sky", "boat")
# road: 6 of 8 found, 2 taken for car; car: 3 of 4, 1 taken for road; sky is predicted only; boat is nowhere
CONFUSION = [[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
IOU = {"road": 6 / 9, "car": 3 / 6}


def make(confusion: Any = CONFUSION, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Report:
    values = {
        "confusion": torch.tensor(confusion),
        "classes": classes,
        "palette": generic_palette(len(classes)),
        "dataset": "Roads",
        "split": "val",
        "samples": 3,
        "total": 3,
        "label_space": "roads",
        "model": "tiny",
        "protocol": "whole",
        "protocol_text": WHOLE,
        "precision": "float32",
        "device": "cpu",
        "seconds": 1.5,
        "ignored": 7,
    }
    return Report(**(values | changes))


def with_sky() -> list[list[int]]:
    """Sky is predicted where there is road, and never true."""
    return [[6, 2, 2, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def random_confusion(count: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    return generator.integers(0, 50, (count, count)) + np.diag(generator.integers(100, 5000, count))


def worst(key: str = "a", height: int = 40, width: int = 60) -> tuple[Sample, np.ndarray, np.ndarray, np.ndarray]:
    """Truth: left road, right car, top four rows ignored; prediction: car everywhere. The image is white."""
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 1
    truth[: height // 10] = 255
    return Sample(key, 0.25, 0.5), np.full((height, width, 3), 255, np.uint8), np.ones_like(truth), truth


class Page(HTMLParser):
    """Reads a page, and refuses tags that do not balance."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        source = (folder / "index.html").read_text(encoding="utf-8")
        self.feed(source)
        self.close()
        assert self.open == []
        assert source.startswith("<!DOCTYPE html>")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def sources(self) -> list[str]:
        return [unquote(attributes["src"] or "") for tag, attributes in self.tags if tag == "img"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def bars(report: Report) -> Any:
    return charts.iou_chart(list(report.iou.values()), report.classes, report.palette)


def drawn(figure: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(charts.to_png(figure))).convert("RGB"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files for the two figures, for tests of other things: drawing is slow."""
    for name, value in (("confusion_chart", None), ("iou_chart", None), ("to_png", b"")):
        monkeypatch.setattr(charts, name, lambda *_, value=value: value)


# --- figures


def test_figures_are_those_of_the_confusion_matrix() -> None:
    report = make()
    assert report.iou == pytest.approx(IOU | {"sky": math.nan, "boat": math.nan}, nan_ok=True)
    assert report.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert report.pixel_accuracy == pytest.approx(9 / 12)
    assert report.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert report.frequency_weighted_iou == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)
    absent = {"sky": math.nan, "boat": math.nan}
    assert report.precision_by_class == pytest.approx({"road": 6 / 7, "car": 3 / 5} | absent, nan_ok=True)
    assert report.recall_by_class == pytest.approx({"road": 6 / 8, "car": 3 / 4} | absent, nan_ok=True)
    assert report.share_by_class == pytest.approx({"road": 8 / 12, "car": 4 / 12, "sky": 0, "boat": 0})
    assert make(with_sky()).iou["sky"] == 0  # predicted only: wrong, not absent


def test_mean_boundary_leaves_out_absent_classes() -> None:
    nan = math.nan
    assert make().mean_boundary is None
    assert make(boundary=dict(zip(CLASSES, (0.5, 0.7, nan, nan), strict=True))).mean_boundary == pytest.approx(0.6)
    assert math.isnan(make(boundary=dict.fromkeys(CLASSES, nan)).mean_boundary or 0)


@pytest.mark.parametrize("changes", [{"classes": ("a", "b")}, {"palette": ((0, 0, 0),)}])
def test_a_matrix_of_other_classes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="4x4"):
        make(**changes)


# --- text


def test_text_names_what_was_evaluated_and_every_class() -> None:
    text = str(make(notes=("classes of the model left out: boat",), samples=2, total=40, seconds=125))
    lines = [line.split() for line in text.splitlines()]
    assert ["model", "tiny"] in lines
    assert "Roads val, 2 of 40 images" in text
    assert f"whole: {WHOLE}" in text
    assert "12 counted, 7 ignored" in text
    assert "2 min 5 s" in text
    assert "classes of the model left out: boat" in text
    assert ["class", "IoU", "precision", "recall", "share"] in lines
    assert ["road", "66.67", "85.71", "75.00", "66.67"] in lines
    assert ["boat", "-", "-", "-", "0.00"] in lines
    assert ["mIoU", "58.33"] in lines
    assert ["pixel", "accuracy", "75.00"] in lines
    assert ["frequency-weighted", "IoU", "61.11"] in lines
    assert "boundary" not in text
    assert ["road", "66.67", "85.71", "75.00", "66.67", "12.00"] in [
        line.split() for line in str(make(boundary=dict.fromkeys(CLASSES, 0.12))).splitlines()
    ]


def test_text_is_aligned_whatever_the_names() -> None:
    classes = ("道路", "e\u0301te\u0301", "x" * 60, "a\x1b[31mb\nc")
    text = str(make(classes=classes))
    table = text.split("\n\n")[1].splitlines()
    widths = [module._terminal_width(line) for line in table]
    assert len(set(widths)) == 1
    assert widths[0] < 80
    assert "\x1b" not in text


def test_measured_and_published_stand_side_by_side() -> None:
    lines = str(make(published=PUBLISHED)).split("\n\n")[-1].splitlines()
    assert lines == [
        f"mIoU measured     58.33  Roads val, {WHOLE}",
        f"mIoU published    55.67  Roads val, {WHOLE}",
        "mIoU difference   +2.66",
    ]
    lower = str(make(published=PUBLISHED | {"miou": 0.6})).splitlines()[-1]
    assert lower.split() == ["mIoU", "difference", "-1.67"]


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_compared_has_no_difference(tmp_path: Path) -> None:
    report = make(published=PUBLISHED, incomparable=("50 of 1449 images", "another <protocol>"))
    text = str(report)
    assert "difference" not in text
    assert text.endswith("not comparable: 50 of 1449 images; another <protocol>")
    report.save(tmp_path)
    page = Page(tmp_path)
    assert "Not comparable: 50 of 1449 images; another <protocol>." in page.text
    assert "difference" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_without_a_published_figure_the_text_says_so(tmp_path: Path) -> None:
    make().save(tmp_path)
    assert str(make()).endswith("no figure is published for this model")
    assert "No figure is published for this model." in Page(tmp_path).text


# --- JSON


@pytest.mark.usefixtures("undrawn")
def test_json_is_strict_and_holds_fractions(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    make(published=PUBLISHED).save(tmp_path)
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert document["confusion"] == CONFUSION
    assert document["miou"] == pytest.approx(7 / 12)
    assert document["iou"] == pytest.approx(IOU | {"sky": None, "boat": None})
    assert document["published"] == PUBLISHED
    assert document["schema"] == 1


@pytest.mark.usefixtures("undrawn")
def test_reports_come_back_as_they_were(tmp_path: Path) -> None:
    report = make(
        classes=("道路", '"q"', "[ 1, 2 ]", "<b>"),
        published=PUBLISHED,
        incomparable=("a", "b"),
        notes=("n",),
        worst=(Sample("no text: \udcff", 0.1, 0.2), Sample("b", math.nan, math.nan)),
        boundary={"道路": 0.5, '"q"': math.nan, "[ 1, 2 ]": 0.25, "<b>": 1.0},
    )
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert str(loaded) == str(report)
    assert loaded.to_json() == report.to_json()
    assert loaded.confusion.dtype == torch.int64
    assert loaded.palette == report.palette
    assert loaded.worst[0] == report.worst[0]
    assert math.isnan(loaded.worst[1].miou)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "schema: expected 1, got 2"),
        (lambda d: d.pop("classes"), "missing field 'classes'"),
        (lambda d: d.update(worst=3), "unexpected value"),
        (lambda d: d.update(confusion=[[1]]), "4x4"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    document = make().to_json()
    change(document)
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        Report.load(tmp_path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match="is not a report of an evaluation"):
            Report.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Report.load(tmp_path / "none")


# --- images


@pytest.mark.parametrize("count", [1, 2, 21, 150])
def test_images_have_a_size_that_can_be_looked_at(tmp_path: Path, count: int) -> None:
    names = LABEL_SPACES["ade20k150"].classes[:count]
    make(random_confusion(count), names).save(tmp_path)
    for name, least in (("confusion", 20), ("classes", 10)):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG"
            assert least * count < min(image.size)  # room for each class
            assert max(image.size) < 1300 + 28 * count


def test_no_class_name_breaks_a_report(tmp_path: Path) -> None:
    names = ("道路", "طريق", "$x^2$", r"$\frac$", "a\nb\x00c", "x" * 500, "\udcff", " ")
    make(random_confusion(8), names, model="".join(names), dataset=r"$\frac$").save(tmp_path, [worst()])
    Page(tmp_path)
    assert Report.load(tmp_path).classes == names
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.width < 1500  # names and title are shortened


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nothing_measured_is_said(tmp_path: Path, count: int) -> None:
    report = make(np.zeros((count, count), np.int64), tuple("abcde")[:count], samples=0, published=PUBLISHED)
    assert "0 counted, 7 ignored: nothing was measured" in str(report)
    assert "nan" not in str(report).lower()
    assert "difference" not in str(report)
    report.save(tmp_path)
    assert "nothing was measured" in Page(tmp_path).text
    assert "nothing was measured" in [text.get_text() for text in bars(report).texts]
    assert Report.load(tmp_path).samples == 0


# --- page


@pytest.mark.usefixtures("undrawn")
def test_page_shows_every_class_and_figure(tmp_path: Path) -> None:
    classes = LABEL_SPACES["ade20k150"].classes
    report = make(
        random_confusion(150), classes, palette=LABEL_SPACES["ade20k150"].palette, published=PUBLISHED, notes=("so",),
        boundary=dict.fromkeys(classes, 0.4321),
    )  # fmt: skip
    report.save(tmp_path)
    page = Page(tmp_path)
    for name in classes:
        assert name in page.text
    for fraction in (report.miou, report.pixel_accuracy, *report.iou.values(), *report.recall_by_class.values()):
        assert f"{100 * fraction:.2f}" in page.text
    assert page.text.count("43.21") >= 151
    styles = [attributes.get("style") for _, attributes in page.tags]
    assert "background:rgb(120,120,120)" in styles
    assert f"width:{100 * report.iou['wall']:.1f}%" in styles
    assert page.sources() == ["classes.png", "confusion.png"]


@pytest.mark.usefixtures("undrawn")
def test_page_says_what_a_class_is_most_taken_for(tmp_path: Path) -> None:
    make(with_sky()).save(tmp_path)
    text = Page(tmp_path).text
    assert "car 20.0 %" in text
    assert "road 25.0 %" in text


@pytest.mark.usefixtures("undrawn")
def test_page_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    make().save(tmp_path, [worst()])
    page = Page(tmp_path)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert "http" not in (tmp_path / "index.html").read_text()
    assert all((tmp_path / source).is_file() for source in page.sources())


@pytest.mark.usefixtures("undrawn")
def test_names_and_keys_are_escaped(tmp_path: Path) -> None:
    evil = "<b>&\"'x"
    report = make(
        classes=(evil, *CLASSES[1:]), model=evil, dataset=evil, notes=(evil,), published=PUBLISHED | {"dataset": evil}
    )
    report.save(tmp_path, [worst(evil)])
    page = Page(tmp_path)
    assert "b" not in [tag for tag, _ in page.tags if tag == "b"][len(report._means()) :]
    assert page.text.count(evil) >= 6
    make(worst=(Sample(evil, 0.1, 0.2),)).save(tmp_path)  # without images
    assert evil in Page(tmp_path).text


# --- the worst images


@pytest.mark.usefixtures("undrawn")
def test_worst_images_show_prediction_truth_and_errors(tmp_path: Path) -> None:
    palette = ((200, 0, 0), (0, 0, 200), (0, 0, 0), (0, 0, 0))
    make(palette=palette).save(tmp_path, [worst("one"), worst("two")])
    page = Page(tmp_path)
    kinds = ("image", "prediction", "truth", "errors")
    names = [f"worst/{number}_{key}_{kind}.jpg" for number, key in (("01", "one"), ("02", "two")) for kind in kinds]
    assert page.sources()[2:] == names
    shown = {kind: np.asarray(Image.open(tmp_path / f"worst/01_one_{kind}.jpg")).astype(int) for kind in kinds}

    def differs(kind: str, place: tuple[int, int], color: tuple[int, int, int]) -> int:
        return int(abs(shown[kind][place[::-1]] - color).max())

    left, right, ignored = (10, 30), (50, 30), (10, 0)
    assert differs("image", left, (255, 255, 255)) < 8  # JPEG is not exact
    assert differs("prediction", left, (128, 128, 228)) < 8
    assert differs("prediction", right, (128, 128, 228)) < 8
    assert differs("truth", left, (228, 128, 128)) < 8
    assert differs("truth", right, (128, 128, 228)) < 8
    assert differs("truth", ignored, (255, 255, 255)) < 8
    red, green, blue = shown["errors"][left[::-1]]
    assert red > 200
    assert max(green, blue) < 120
    assert differs("errors", right, (254, 254, 254)) < 8
    assert differs("errors", ignored, (120, 120, 120)) < 8


@pytest.mark.usefixtures("undrawn")
def test_worst_images_have_figures_confusions_and_one_legend(tmp_path: Path) -> None:
    make().save(tmp_path, [worst("one")])
    text = " ".join(Page(tmp_path).text.split())
    assert "1. one mIoU 25.00, pixel accuracy 50.00 Of the counted pixels: road taken for car 50.0 % image" in text
    assert text.endswith("car 50.0 % true, 100.0 % predicted road 50.0 % true, 0 % predicted")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("value", ["right", "ignored"])
def test_images_without_errors(tmp_path: Path, value: str) -> None:
    sample, image, predicted, _ = worst()
    truth = predicted if value == "right" else np.full_like(predicted, 255)
    make().save(tmp_path, [(sample, image, predicted, truth)])
    assert ("No pixel is wrong" if value == "right" else "No pixel counted") in Page(tmp_path).text


@pytest.mark.usefixtures("undrawn")
def test_large_images_are_made_light(tmp_path: Path) -> None:
    make().save(tmp_path, [worst("wide", 500, 2000), worst("small", 40, 60)])
    for name, size in (("01_wide", (640, 160)), ("02_small", (60, 40))):
        with Image.open(tmp_path / f"worst/{name}_truth.jpg") as image:
            assert image.size == size


@pytest.mark.usefixtures("undrawn")
def test_more_classes_than_a_byte_has(tmp_path: Path) -> None:
    classes = tuple(f"class {index}" for index in range(300))
    sample, image, predicted, truth = worst()
    wide = np.where(truth == 255, -1, truth.astype(np.int32) + 255)  # 255 is a class here
    make(random_confusion(300), classes).save(tmp_path, [(sample, image, predicted.astype(np.int32) + 255, wide)])
    assert "class 255 taken for class 256 50.0 %" in Page(tmp_path).text


KEYS = ("../../x", "a/b", "k" * 200, "/etc/passwd", "..", "C:\\x", "a\x00b", "", "図", "-rf", "con", "a\udcff")


@pytest.mark.usefixtures("undrawn")
def test_hostile_keys_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "report"
    make().save(folder, (worst(key) for key in KEYS))
    written = files(tmp_path)
    assert all(name.startswith("in/report/") for name in written)
    images = {path.name for path in (folder / "worst").iterdir()}
    assert len(images) == 4 * len(KEYS)
    assert all(name.isascii() and len(name) < 100 and name[:2].isdigit() for name in images)
    assert all((folder / source).is_file() for source in Page(folder).sources())


@pytest.mark.usefixtures("undrawn")
def test_images_are_taken_one_at_a_time(tmp_path: Path) -> None:
    def stream() -> Any:
        for number, key in enumerate("abc"):
            assert len(list((tmp_path / "worst").glob("*_truth.jpg"))) == number
            yield worst(key)

    make().save(tmp_path, stream())
    assert len(list((tmp_path / "worst").glob("*_truth.jpg"))) == 3


# --- files


@pytest.mark.usefixtures("undrawn")
def test_a_report_replaces_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    make().save(tmp_path, [worst("old"), worst("older")])
    kept = [tmp_path / "mine.txt", tmp_path / "worst" / "mine.jpg", tmp_path / "worst" / "02_notes.txt"]
    for path in kept:
        path.write_text("mine")
    make(np.eye(4, dtype=np.int64), worst=(Sample("new", 0.1, 0.2),)).save(tmp_path, [worst("new")])
    images = {f"worst/01_new_{kind}.jpg" for kind in ("image", "prediction", "truth", "errors")}
    own = {"report.json", "index.html", "confusion.png", "classes.png"}
    assert files(tmp_path) == own | images | {"mine.txt", "worst/mine.jpg", "worst/02_notes.txt"}
    assert all(path.read_text() == "mine" for path in kept)
    assert Report.load(tmp_path).miou == 1


@pytest.mark.usefixtures("undrawn")
def test_what_fails_leaves_no_half_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    full_at(monkeypatch, file=1)
    with pytest.raises(OSError, match="No space left"):
        make(with_sky()).save(tmp_path)
    assert files(tmp_path) == set(before)
    assert (tmp_path / "index.html").read_bytes() == before["index.html"]
    assert (tmp_path / "report.json").read_bytes() == before["report.json"]


@pytest.mark.usefixtures("undrawn")
def test_report_json_comes_last(tmp_path: Path) -> None:
    def broken() -> Any:
        yield worst()
        raise OSError("the image is gone")

    with pytest.raises(OSError, match="gone"):
        make().save(tmp_path, broken())
    assert not (tmp_path / "report.json").exists()  # where it is, everything is


def test_figures_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    make().save(tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.pyplot.get_fignums() == []
