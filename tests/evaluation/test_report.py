from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from isanet._text import display_width
from isanet.errors import OutputError
from isanet.evaluation.page import ImageScore, WorstImage
from isanet.evaluation.report import Report
from isanet.labels import LABEL_SPACES
from isanet.viz import charts
from tests.helpers.disk import full_at
from tests.helpers.reports import (
    CLASSES,
    CONFUSION,
    IOU,
    PUBLISHED,
    SKY_CONFUSION,
    WHOLE,
    Page,
    files,
    make,
    random_confusion,
    worst_image,
)

# --- metrics


def test_metrics_are_those_of_the_confusion_matrix() -> None:
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
    assert make(SKY_CONFUSION).iou["sky"] == 0  # predicted only: wrong, not absent


def test_mean_boundary_leaves_out_absent_classes() -> None:
    nan = math.nan
    assert make().mean_boundary is None
    assert make(boundary=dict(zip(CLASSES, (0.5, 0.7, nan, nan), strict=True))).mean_boundary == pytest.approx(0.6)
    assert math.isnan(make(boundary=dict.fromkeys(CLASSES, nan)).mean_boundary or 0)


@pytest.mark.parametrize("changes", [{"classes": ("a", "b")}, {"palette": ((0, 0, 0),)}])
def test_a_matrix_of_another_size_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="4x4"):
        make(**changes)


# --- text


def test_text_names_what_was_evaluated_and_every_class() -> None:
    text = str(make(notes=("classes of the model left out: boat",), num_images=2, dataset_size=40, seconds=125))
    lines = [line.split() for line in text.splitlines()]
    assert ["model", "tiny"] in lines
    assert "Roads val, 2 of 40 images" in text
    assert f"whole: {WHOLE}\n" in text
    assert f"whole: {WHOLE} (as asked)\n" in str(make(protocol_reason="as asked"))
    assert "12 counted, 7 ignored" in text
    assert "2 min 5 s" in text
    assert "classes of the model left out: boat" in text
    assert ["class", "IoU", "precision", "recall", "share"] in lines
    assert ["road", "66.67", "85.71", "75.00", "66.67"] in lines
    assert ["boat", "-", "-", "-", "0.00"] in lines
    assert ["mIoU,", "2", "of", "4", "classes", "measured", "58.33"] in lines
    assert ["pixel", "accuracy", "75.00"] in lines
    assert ["frequency-weighted", "IoU", "61.11"] in lines
    assert "boundary" not in text
    assert ["road", "66.67", "85.71", "75.00", "66.67", "12.00"] in [
        line.split() for line in str(make(boundary=dict.fromkeys(CLASSES, 0.12))).splitlines()
    ]


@pytest.mark.usefixtures("no_charts")
def test_a_mean_over_fewer_classes_says_so_wherever_it_is_shown(tmp_path: Path) -> None:
    one = make([[9, 0], [0, 0]], ("road", "car"))
    one.save(tmp_path)
    assert (one.miou, one.measured_classes) == (1, 1)
    assert ["mIoU,", "1", "of", "2", "classes", "measured", "100.00"] in [*map(str.split, str(one).splitlines())]
    assert "100.00mIoU, 1 of 2 classes measured" in Page(tmp_path).text
    assert "mIoU 100.00 %, 1 of 2 classes measured" in repr(one)
    assert json.loads((tmp_path / "report.json").read_text())["measured_classes"] == 1
    both = make([[9, 0], [1, 3]], ("road", "car"))
    assert both.measured_classes == 2
    assert "classes measured" not in str(both) + repr(both)


def test_text_is_aligned_for_any_names() -> None:
    classes = ("道路", "e\u0301te\u0301", "x" * 60, "a\x1b[31mb\nc")
    text = str(make(classes=classes))
    table = text.split("\n\n")[1].splitlines()
    widths = [display_width(line) for line in table]
    assert len(set(widths)) == 1
    assert widths[0] < 80
    assert "\x1b" not in text


def test_measured_and_published_figures_are_compared() -> None:
    lines = str(make(published=PUBLISHED)).split("\n\n")[-1].splitlines()
    assert lines == [
        f"mIoU measured     58.33  Roads val, {WHOLE}",
        f"mIoU published    55.67  Roads val, {WHOLE}",
        "mIoU difference   +2.66",
    ]
    lower = str(make(published=PUBLISHED | {"miou": 0.6})).splitlines()[-1]
    assert lower.split() == ["mIoU", "difference", "-1.67"]


@pytest.mark.usefixtures("no_charts")
def test_incomparable_figures_have_no_difference(tmp_path: Path) -> None:
    report = make(published=PUBLISHED, incomparable=("50 of 1449 images", "another <protocol>"))
    text = str(report)
    assert "difference" not in text
    assert text.endswith("not comparable: 50 of 1449 images; another <protocol>")
    report.save(tmp_path)
    page = Page(tmp_path)
    assert "Not comparable: 50 of 1449 images; another <protocol>." in page.text
    assert "difference" not in page.text


@pytest.mark.usefixtures("no_charts")
def test_without_a_published_figure_the_text_says_so(tmp_path: Path) -> None:
    make().save(tmp_path)
    assert str(make()).endswith("no figure is published for this model")
    assert "No figure is published for this model." in Page(tmp_path).text


# --- tables

HOSTILE = ("=road", "car|`<b>`_{&%\\", "sky\n\x1b[2J\u202e", 'www.boat,"x"~^#$')


def test_figures_by_class_as_csv_are_fractions() -> None:
    report = make(classes=HOSTILE, boundary=dict(zip(HOSTILE, (0.5, 0.7, math.nan, math.nan), strict=True)))
    text = report.to_csv()
    assert all(line.isprintable() for line in text.splitlines())
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["class", "IoU", "precision", "recall", "share", "boundary F"]
    assert [row[0] for row in rows] == ["'=road", HOSTILE[1], "sky\ufffd\ufffd[2J\ufffd", HOSTILE[3]]
    columns = (report.iou, report.precision_by_class, report.recall_by_class, report.share_by_class, report.boundary)
    for name, (_, *figures) in zip(HOSTILE, rows, strict=True):
        measured = [column[name] for column in columns if column is not None]
        assert [float(figure or "nan") for figure in figures] == pytest.approx(measured, abs=0, nan_ok=True)


def test_markdown_is_one_table_with_means() -> None:
    assert make().to_markdown() == (
        "| class | IoU | precision | recall | share |\n"
        "|---|---|---|---|---|\n"
        "| road | 66.67 | 85.71 | 75.00 | 66.67 |\n"
        "| car | 50.00 | 60.00 | 75.00 | 33.33 |\n"
        "| sky | - | - | - | 0.00 |\n"
        "| boat | - | - | - | 0.00 |\n"
        "| mean, 2 of 4 classes measured | 58.33 |  | 75.00 |  |\n"
    )
    text = make(classes=HOSTILE).to_markdown()
    assert "| car\\|\\`\\<b\\>\\`\\_{\\&%\\\\ |" in text
    assert '| www\\.boat,"x"\\~^\\#$ |' in text
    assert len(text.splitlines()) == 7
    assert all(line.isprintable() for line in text.splitlines())


def test_latex_is_one_tabular_with_means() -> None:
    boundary = dict(zip(HOSTILE, (0.5, 0.7, math.nan, math.nan), strict=True))
    lines = make(classes=HOSTILE, boundary=boundary).to_latex().splitlines()
    assert lines[:3] == [
        r"\begin{tabular}{lrrrrr}",
        r"\hline",
        r"class & IoU & precision & recall & share & boundary F \\",
    ]
    assert lines[3:9] == [
        r"\hline",
        r"=road & 66.67 & 85.71 & 75.00 & 66.67 & 50.00 \\",
        r"car\textbar{}`\textless{}b\textgreater{}`\_\textbraceleft{}\&\%\textbackslash{} "
        r"& 50.00 & 60.00 & 75.00 & 33.33 & 70.00 \\",
        "sky \ufffd[2J\ufffd & - & - & - & 0.00 & - \\\\",
        r"www.boat," + '"x"' + r"\textasciitilde{}\textasciicircum{}\#\$ & - & - & - & 0.00 & - \\",
        r"\hline",
    ]
    assert lines[9:] == [r"mean, 2 of 4 classes measured & 58.33 &  & 75.00 &  & 60.00 \\", r"\hline", r"\end{tabular}"]


# --- JSON


@pytest.mark.usefixtures("no_charts")
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


@pytest.mark.usefixtures("no_charts")
def test_a_loaded_report_equals_the_saved_one(tmp_path: Path) -> None:
    report = make(
        classes=("道路", '"q"', "[ 1, 2 ]", "<b>"),
        published=PUBLISHED,
        incomparable=("a", "b"),
        notes=("n",),
        worst=(ImageScore("no text: \udcff", 0.1, 0.2), ImageScore("b", math.nan, math.nan)),
        boundary={"道路": 0.5, '"q"': math.nan, "[ 1, 2 ]": 0.25, "<b>": 1.0},
        protocol_reason="as asked",
    )
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert str(loaded) == str(report)
    assert loaded.to_json() == report.to_json()
    assert loaded.confusion.dtype == torch.int64
    assert loaded.palette == report.palette
    assert loaded.worst[0] == report.worst[0]
    assert math.isnan(loaded.worst[1].miou)
    earlier = {name: value for name, value in report.to_json().items() if name != "protocol_reason"}
    assert Report.from_json(earlier).protocol_reason == ""


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


def test_invalid_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match="is not a report of an evaluation"):
            Report.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Report.load(tmp_path / "none")


# --- charts


@pytest.mark.parametrize("count", [1, 2, 21, 150])
def test_charts_have_a_reasonable_size(tmp_path: Path, count: int) -> None:
    names = LABEL_SPACES["ade20k150"].classes[:count]
    make(random_confusion(count), names).save(tmp_path)
    for name, least in (("confusion", 20), ("classes", 10)):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG"
            assert least * count < min(image.size)  # room for each class
            assert max(image.size) < 1300 + 28 * count


def test_no_class_name_breaks_a_report(tmp_path: Path) -> None:
    names = ("道路", "طريق", "$x^2$", r"$\frac$", "a\nb\x00c", "x" * 500, "\udcff", " ")
    make(random_confusion(8), names, model="".join(names), dataset=r"$\frac$").save(tmp_path, [worst_image()])
    Page(tmp_path)
    assert Report.load(tmp_path).classes == names
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.width < 1500  # names and title are shortened


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_report_of_nothing_says_so(tmp_path: Path, count: int) -> None:
    report = make(np.zeros((count, count), np.int64), tuple("abcde")[:count], num_images=0, published=PUBLISHED)
    assert "0 counted, 7 ignored: nothing was measured" in str(report)
    assert "nan" not in str(report).lower()
    assert "difference" not in str(report)
    report.save(tmp_path)
    assert "nothing was measured" in Page(tmp_path).text
    bars = charts.iou_chart(list(report.iou.values()), report.classes, report.palette)
    assert "nothing was measured" in [text.get_text() for text in bars.texts]
    assert Report.load(tmp_path).num_images == 0


# --- files


@pytest.mark.usefixtures("no_charts")
def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    make().save(tmp_path, [worst_image("old"), worst_image("older")])
    kept = [tmp_path / "mine.txt", tmp_path / "worst" / "mine.jpg", tmp_path / "worst" / "02_notes.txt"]
    for path in kept:
        path.write_text("mine")
    make(np.eye(4, dtype=np.int64), worst=(ImageScore("new", 0.1, 0.2),)).save(tmp_path, [worst_image("new")])
    images = {f"worst/01_new_{kind}.jpg" for kind in ("image", "prediction", "ground_truth", "errors")}
    own = {"report.json", "index.html", "confusion.png", "classes.png"}
    assert files(tmp_path) == own | images | {"mine.txt", "worst/mine.jpg", "worst/02_notes.txt"}
    assert all(path.read_text() == "mine" for path in kept)
    assert Report.load(tmp_path).miou == 1


@pytest.mark.usefixtures("no_charts")
def test_a_failed_save_leaves_no_partial_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    full_at(monkeypatch, file=1)
    with pytest.raises(OutputError, match="No space left"):
        make(SKY_CONFUSION).save(tmp_path)
    assert files(tmp_path) == set(before)
    assert (tmp_path / "index.html").read_bytes() == before["index.html"]
    assert (tmp_path / "report.json").read_bytes() == before["report.json"]


@pytest.mark.usefixtures("no_charts")
def test_report_json_comes_last(tmp_path: Path) -> None:
    def broken() -> Any:
        yield worst_image()
        raise OSError("the image is gone")

    with pytest.raises(OSError, match="gone"):
        make().save(tmp_path, broken())
    assert not (tmp_path / "report.json").exists()  # where it is, everything is


def test_charts_leave_matplotlib_unchanged(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    make().save(tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.pyplot.get_fignums() == []


@pytest.mark.usefixtures("no_charts")
def test_a_folder_that_cannot_be_created_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*out"):
        make().save(tmp_path / "out")


def test_a_prediction_that_is_no_class_is_named(tmp_path: Path) -> None:
    image, labels = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8)
    for prediction in (labels + 255, labels[:1]):
        with pytest.raises(ValueError, match="the prediction of a/b must be"):
            make().save(tmp_path, [WorstImage(ImageScore("a/b", 0.5, 0.5), image, prediction, labels)])
