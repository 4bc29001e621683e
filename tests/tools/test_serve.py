"""What the page of `isanet serve` shows and offers, without a browser; tests/promises/test_page.py has one."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import runpy
import socket
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet import Segmenter
from isanet.cli import main, run
from isanet.datasets import ToyStreets
from isanet.inference.runtimes import packages
from isanet.tools import page, serve
from isanet.tools.demo import MODEL
from isanet.tools.page import OWN, Limits, choices, segment_files, unique_names
from isanet.weights.manifest import list_models


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(MODEL, "cpu", precision="float32", runtime="torch")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    return draw(tmp_path / "street.png", 1)


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(ToyStreets(count=1, seed=seed, size=(64, 96), split="test").read(0)[0]).save(path)
    return path


def test_labels_to_download_are_those_of_the_segmenter(segmenter: Segmenter, street: Path, tmp_path: Path) -> None:
    shown = segment_files(segmenter, [street], tmp_path / "out", Limits())
    assert [file.name for file in shown.files] == ["street_labels.png", "street_overlay.png", "coco.json", "areas.csv"]
    result = segmenter(street)
    np.testing.assert_array_equal(np.asarray(Image.open(shown.files[0])), result.labels)
    np.testing.assert_array_equal(np.asarray(Image.open(shown.files[1])), np.asarray(result.overlay()))
    assert json.loads(shown.files[2].read_text())["images"] == [
        {"id": 1, "file_name": "street.png", "width": 96, "height": 64}
    ]
    (row,) = csv.DictReader(io.StringIO(shown.files[3].read_text()))
    assert row.pop("image") == "street.png"
    assert {name: float(share) for name, share in row.items() if float(share)} == pytest.approx(result.areas())


def test_what_the_browser_draws_is_the_result(segmenter: Segmenter, street: Path) -> None:
    result = segmenter(street, confidence=True)
    view = page.view(result, "street.png", 0.5)
    assert view["shown"] == view["size"] == [96, 64]
    raw = zlib.decompress(base64.b64decode(view["pixels"]))
    classes = np.frombuffer(raw, "<u2", 96 * 64).reshape(64, 96)
    names = np.array([each["name"] for each in view["classes"]])
    np.testing.assert_array_equal(names[classes], np.array(result.classes)[result.labels])
    percent = np.frombuffer(raw, np.uint8, offset=2 * 96 * 64).reshape(64, 96)
    assert np.abs(percent / 100 - result.confidence).max() <= 0.0051
    assert {each["name"]: each["share"] for each in view["classes"]} == result.areas()
    assert Image.open(io.BytesIO(base64.b64decode(view["jpeg"]))).size == (96, 64)


def test_a_large_image_is_shown_smaller(segmenter: Segmenter, street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_SHOWN", 48)
    result = segmenter(street, confidence=True)
    view = page.view(result, "street.png", 0.5)
    assert (view["size"], view["shown"]) == ([96, 64], [48, 32])
    classes = np.frombuffer(zlib.decompress(base64.b64decode(view["pixels"])), "<u2", 48 * 32).reshape(32, 48)
    names = np.array([each["name"] for each in view["classes"]])
    np.testing.assert_array_equal(names[classes], np.array(result.classes)[result.labels[1::2, 1::2]])


def test_a_broken_file_is_named_and_the_others_are_segmented(segmenter: Segmenter, tmp_path: Path) -> None:
    broken = tmp_path / "secret" / "broken.png"
    paths = [draw(tmp_path / "one" / "a.png", 1), broken, draw(tmp_path / "two" / "a.png", 2)]
    broken.parent.mkdir()
    broken.write_text("no image")
    shown = segment_files(segmenter, paths, tmp_path / "out", Limits())
    (error,) = shown.value["errors"]
    assert error.startswith("broken.png is not an image")
    assert "secret" not in error
    assert [each["name"] for each in shown.value["images"]] == ["a.png", "a_2.png"]
    (archive,) = shown.files
    with zipfile.ZipFile(archive) as opened:
        names = {f"{name}_{kind}.png" for name in ("a", "a_2") for kind in ("labels", "overlay")}
        assert set(opened.namelist()) == names | {"coco.json", "areas.csv"}
        labels = np.asarray(Image.open(io.BytesIO(opened.read("a_2_labels.png"))))
        assert [image["file_name"] for image in json.loads(opened.read("coco.json"))["images"]] == ["a.png", "a_2.png"]
    np.testing.assert_array_equal(labels, segmenter(paths[2]).labels)


def test_limits(segmenter: Segmenter, street: Path, tmp_path: Path) -> None:
    shown = segment_files(segmenter, [street] * 3, tmp_path / "out", Limits(files=2))
    assert shown.value["errors"] == ["3 files are too many at once: at most 2"]
    assert not shown.files
    shown = segment_files(segmenter, [street] * 3, tmp_path / "out", Limits(seconds=-1))
    assert shown.value["errors"] == ["stopped after -1 s: 1 of 3 files segmented"]
    assert len(shown.value["images"]) == 1
    small = Segmenter(segmenter.model, "cpu", max_pixels=1000)
    (error,) = segment_files(small, [street], tmp_path / "out", Limits()).value["errors"]
    assert error.startswith("street.png is 96x64, 6,144 pixels, more than the limit of 1,000")
    assert "max_pixels" not in error


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.helpers.videos import make_video

    scene = ToyStreets(count=1, seed=1, size=(64, 96), split="test").read(0)[0]
    return make_video(tmp_path / "clip.mp4", [np.roll(scene, 4 * shift, 1) for shift in range(6)], rate=2)


def test_a_video(segmenter: Segmenter, clip: Path, street: Path, tmp_path: Path) -> None:
    shown = segment_files(segmenter, [clip], tmp_path / "out", Limits())
    assert [file.name for file in shown.files] == ["clip_overlay.mp4", "clip_labels.mkv", "clip_areas.csv"]
    results = list(segmenter.stream(clip))
    rows = list(csv.DictReader(io.StringIO(shown.files[2].read_text())))
    assert [float(row.pop("seconds")) for row in rows] == [0, 0.5, 1, 1.5, 2, 2.5]
    for row, result in zip(rows, results, strict=True):
        assert {name: float(share) for name, share in row.items() if float(share)} == pytest.approx(result.areas())
    (video,) = shown.value["images"]
    assert (video["frames"], video["size"], video["video"]) == (6, [96, 64], str(shown.files[0]))
    mean = {each["name"]: each["share"] for each in video["classes"]}
    assert mean["road"] == pytest.approx(np.mean([result.areas()["road"] for result in results]))
    assert sum(mean.values()) == pytest.approx(1)
    with_image = segment_files(segmenter, [clip, street], tmp_path / "both", Limits())
    with zipfile.ZipFile(with_image.files[0]) as archive:
        assert {"clip_overlay.mp4", "street_labels.png", "coco.json"} < set(archive.namelist())
    assert Path(with_image.value["images"][0]["video"]).exists()  # the browser plays it


def test_limits_of_a_video(segmenter: Segmenter, clip: Path, tmp_path: Path) -> None:
    shown = segment_files(segmenter, [clip], tmp_path / "out", Limits(video_seconds=1))
    assert shown.value["errors"] == ["clip.mp4: only its first 1 s are segmented"]
    assert shown.value["images"][0]["frames"] == 2
    shown = segment_files(segmenter, [clip], tmp_path / "out", Limits(seconds=-1))
    assert shown.value["errors"] == ["clip.mp4: stopped after -1 s, at 0.0 s of it"]
    assert shown.value["images"][0]["frames"] == 1
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    shown = segment_files(segmenter, [broken], tmp_path / "out", Limits())
    assert shown.value["errors"][0].startswith("broken.mp4 cannot be read as a video")
    assert not shown.files


def test_names_of_outputs_differ() -> None:
    names = ["a.png", "A.jpg", "../../a.png", "a_2.png", "b\x1b[2J.png", "x" * 300 + ".png", ""]
    unique = [str(name) for name in unique_names(names)]
    assert unique[:5] == ["a.png", "A_2.jpg", "a_3.png", "a_2_2.png", "b_[2J.png"]
    assert len({name.partition(".")[0].lower() for name in unique}) == len(names)
    assert all(len(name) < 100 for name in unique)


def test_choices_of_models(home: Path) -> None:
    known = choices()
    assert next(iter(known)) == MODEL
    assert set(known) == set(list_models())
    assert known[MODEL] == "isanet_nano_toystreets · mIoU 86.1 · 2 MB · packaged"
    assert known["isanet_r50_voc"] == "isanet_r50_voc · mIoU 77.0 · 177 MB · to download"
    assert known["isanet_r18_cityscapes.bpkd_cwd"].endswith(" · academic use only")
    assert choices("/home/me/secret/mine")[OWN] == "mine · your own"


def test_without_gradio_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "load", lambda package: __import__("isanet_has_no_" + package))
    packages.why_absent.cache_clear()
    try:
        assert main(["serve"]) == 1
    finally:
        packages.why_absent.cache_clear()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("pip install 'isanet[serve]'\n")


@pytest.mark.parametrize("wrong", ["--port=0", "--host=300.1.1.1", "--port=99999", "--model=nope"])
def test_what_cannot_be_served_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    monkeypatch.setattr(serve, "_gradio", lambda: None)  # it has not come to the page when it ends
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = wrong if wrong != "--port=0" else f"--port={port}"
        assert main(["--quiet", "serve", wrong]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    place = {"--host=300.1.1.1": "300.1.1.1", "--port=99999": "port 99999"}.get(wrong, f"port {port}")
    if wrong == "--model=nope":
        assert error.startswith("isanet: error: no model 'nope' in the zoo")
    else:
        assert error.startswith("isanet: error: cannot listen on")
        assert place in error
        assert error.endswith("choose others with --host and --port\n")


ROOT = Path(__file__).parents[2]


def test_the_page_on_it_says_what_the_command_takes() -> None:
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    parser = run._parser()
    for command in re.findall(r"^isanet (serve.*)$", text, re.M):
        parser.parse_args(command.split())
    options = parser.parse_args(["serve"])
    limits = dict(re.findall(r"^\| `--(max-[a-z-]+)` \| (\d+) \|", text, re.M))
    assert {name: vars(options)[name.replace("-", "_")] for name in limits} == {k: int(v) for k, v in limits.items()}
    assert set(limits) == {name.replace("_", "-") for name in vars(options) if name.startswith("max_")}
    defaults = Limits()
    assert (defaults.files, defaults.video_seconds, defaults.seconds) == (20, 60, 120)
    assert (defaults.file_bytes, defaults.pixels) == (100_000_000, 50_000_000)


def test_the_space_serves_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(serve, "serve", lambda **how: calls.append(how))
    folder = ROOT / "examples" / "space"
    runpy.run_path(str(folder / "app.py"))
    assert calls == [{"host": "0.0.0.0", "port": 7860}]
    assert len((folder / "app.py").read_text().split("\n\n")) == 3
    _, head, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n")
    facts = dict(line.split(": ", 1) for line in head.splitlines())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert facts["sdk"] == "gradio"
    assert facts["app_file"] == "app.py"
    assert f"gradio>={facts['sdk_version'].removesuffix('.0')}" in extras["serve"]
    assert (folder / "requirements.txt").read_text() == "isanet[serve]\n"
