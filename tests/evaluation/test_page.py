from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet._text import MAX_LINE
from isanet.evaluation.page import ImageScore
from isanet.labels import LABEL_SPACES
from tests.helpers.reports import (
    CLASSES,
    PUBLISHED,
    SKY_CONFUSION,
    Page,
    files,
    make,
    random_confusion,
    worst_image,
)


@pytest.mark.usefixtures("no_charts")
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


@pytest.mark.usefixtures("no_charts")
def test_page_names_what_a_class_is_most_confused_with(tmp_path: Path) -> None:
    make(SKY_CONFUSION).save(tmp_path)
    text = Page(tmp_path).text
    assert "car 20.0 %" in text
    assert "road 25.0 %" in text


@pytest.mark.usefixtures("no_charts")
def test_page_loads_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    make().save(tmp_path, [worst_image()])
    page = Page(tmp_path)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert "http" not in (tmp_path / "index.html").read_text()
    assert all((tmp_path / source).is_file() for source in page.sources())


@pytest.mark.usefixtures("no_charts")
def test_names_and_keys_are_escaped(tmp_path: Path) -> None:
    evil = "<b>&\"'x"
    report = make(
        classes=(evil, *CLASSES[1:]), model=evil, dataset=evil, notes=(evil,), published=PUBLISHED | {"dataset": evil}
    )
    report.save(tmp_path, [worst_image(evil)])
    page = Page(tmp_path)
    assert "b" not in [tag for tag, _ in page.tags if tag == "b"][len(report._content().means) :]
    assert page.text.count(evil) >= 6
    make(worst=(ImageScore(evil, 0.1, 0.2),)).save(tmp_path)  # without images
    assert evil in Page(tmp_path).text
    long = "\x1b\u202e" + "y" * 60_000
    make(classes=(long, *CLASSES[1:]), model=long, dataset=long, notes=(long,)).save(tmp_path, [worst_image(long)])
    written = (tmp_path / "index.html").read_text()
    assert not {"\x1b", "\u202e"} & set(written)
    assert max(map(len, written.splitlines())) < 3 * MAX_LINE


# --- the worst images


@pytest.mark.usefixtures("no_charts")
def test_worst_images_show_prediction_ground_truth_and_errors(tmp_path: Path) -> None:
    palette = ((200, 0, 0), (0, 0, 200), (0, 0, 0), (0, 0, 0))
    make(palette=palette).save(tmp_path, [worst_image("one"), worst_image("two")])
    page = Page(tmp_path)
    kinds = ("image", "prediction", "ground_truth", "errors")
    names = [f"worst/{number}_{key}_{kind}.jpg" for number, key in (("01", "one"), ("02", "two")) for kind in kinds]
    assert page.sources()[2:] == names
    shown = {kind: np.asarray(Image.open(tmp_path / f"worst/01_one_{kind}.jpg")).astype(int) for kind in kinds}

    def differs(kind: str, pixel: tuple[int, int], color: tuple[int, int, int]) -> int:
        return int(abs(shown[kind][pixel[::-1]] - color).max())

    left, right, ignored = (10, 30), (50, 30), (10, 0)
    assert differs("image", left, (255, 255, 255)) < 8  # JPEG is not exact
    assert differs("prediction", left, (128, 128, 228)) < 8
    assert differs("prediction", right, (128, 128, 228)) < 8
    assert differs("ground_truth", left, (228, 128, 128)) < 8
    assert differs("ground_truth", right, (128, 128, 228)) < 8
    assert differs("ground_truth", ignored, (255, 255, 255)) < 8
    red, green, blue = shown["errors"][left[::-1]]
    assert red > 200
    assert max(green, blue) < 120
    assert differs("errors", right, (254, 254, 254)) < 8
    assert differs("errors", ignored, (120, 120, 120)) < 8


@pytest.mark.usefixtures("no_charts")
def test_worst_images_have_figures_confusions_and_one_legend(tmp_path: Path) -> None:
    make().save(tmp_path, [worst_image("one")])
    text = " ".join(Page(tmp_path).text.split())
    assert "1. one mIoU 25.00, pixel accuracy 50.00 Of the counted pixels: road predicted as car 50.0 % image" in text
    assert text.endswith(
        "car 50.0 % of the ground truth, 100.0 % of the prediction "
        "road 50.0 % of the ground truth, 0 % of the prediction"
    )


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("value", ["correct", "ignored"])
def test_images_without_errors(tmp_path: Path, value: str) -> None:
    one = worst_image()
    ground_truth = one.prediction if value == "correct" else np.full_like(one.prediction, 255)
    make().save(tmp_path, [one._replace(ground_truth=ground_truth)])
    assert ("No pixel is wrong" if value == "correct" else "No pixel counted") in Page(tmp_path).text


@pytest.mark.usefixtures("no_charts")
def test_large_images_are_reduced(tmp_path: Path) -> None:
    make().save(tmp_path, [worst_image("wide", 500, 2000), worst_image("small", 40, 60)])
    for name, size in (("01_wide", (640, 160)), ("02_small", (60, 40))):
        with Image.open(tmp_path / f"worst/{name}_ground_truth.jpg") as image:
            assert image.size == size


@pytest.mark.usefixtures("no_charts")
def test_more_classes_than_a_byte_can_hold(tmp_path: Path) -> None:
    classes = tuple(f"class {index}" for index in range(300))
    one = worst_image()
    wide = np.where(one.ground_truth == 255, -1, one.ground_truth.astype(np.int32) + 255)  # 255 is a class here
    one = one._replace(prediction=one.prediction.astype(np.int32) + 255, ground_truth=wide)
    make(random_confusion(300), classes).save(tmp_path, [one])
    assert "class 255 predicted as class 256 50.0 %" in Page(tmp_path).text


KEYS = ("../../x", "a/b", "k" * 200, "/etc/passwd", "..", "C:\\x", "a\x00b", "", "図", "-rf", "con", "a\udcff")


@pytest.mark.usefixtures("no_charts")
def test_hostile_keys_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "report"
    make().save(folder, (worst_image(key) for key in KEYS))
    written = files(tmp_path)
    assert all(name.startswith("in/report/") for name in written)
    images = {path.name for path in (folder / "worst").iterdir()}
    assert len(images) == 4 * len(KEYS)
    assert all(name.isascii() and len(name) < 100 and name[:2].isdigit() for name in images)
    assert all((folder / source).is_file() for source in Page(folder).sources())


@pytest.mark.usefixtures("no_charts")
def test_images_are_taken_one_at_a_time(tmp_path: Path) -> None:
    def stream() -> Any:
        for number, key in enumerate("abc"):
            assert len(list((tmp_path / "worst").glob("*_ground_truth.jpg"))) == number
            yield worst_image(key)

    make().save(tmp_path, stream())
    assert len(list((tmp_path / "worst").glob("*_ground_truth.jpg"))) == 3
