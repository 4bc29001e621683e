"""segment."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from tqdm import tqdm

import isanet
from isanet._text import MAX_LINE
from isanet.cli import segment
from isanet.inference.outputs import claim
from isanet.inference.segmentation import Segmentation
from tests.helpers import disk, tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]


def test_segment_writes_the_requested_outputs(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--overlay", "--labels", "--areas") == 0
    written = sorted(path.name for path in Path("segmented").iterdir())
    assert written == [f"{i}_{kind}" for i in range(3) for kind in ("areas.json", "labels.png", "overlay.png")]
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" -> ")[0] for line in out] == [f"images/{i}.png" for i in range(3)]
    expected = isanet.Segmenter(tiny_zoo.NAME)(work / "images" / "1.png")
    np.testing.assert_array_equal(np.asarray(Image.open("segmented/1_labels.png")), expected.labels)
    assert json.loads(Path("segmented/1_areas.json").read_text()) == expected.areas()
    assert np.array_equal(np.asarray(Image.open("segmented/1_overlay.png")), np.asarray(expected.overlay()))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_one_coco_file_and_one_table_for_all_images(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/1.png").rename("images/=1.png")
    Path("more").mkdir()
    shutil.copy("images/0.png", "more/0.png")
    Path("images/bad.png").write_text("text")
    call = ("segment", "images", "more", "--model", tiny_zoo.NAME, "--coco", "all.json", "--csv", "all.csv")
    assert run(*call) == 1
    said = capsys.readouterr()
    assert "images/bad.png is not an image" in said.err
    assert said.out.splitlines()[-2:] == ["all.json: 4 images", "all.csv: 4 images"]
    assert not Path("segmented").exists()
    names = ["images/0.png", "images/2.png", "images/=1.png", "more/0.png"]
    segmenter = isanet.Segmenter(tiny_zoo.NAME)
    coco = COCO("all.json")
    assert [image["file_name"] for image in coco.imgs.values()] == names
    assert [category["name"] for category in coco.cats.values()] == list(segmenter.model.classes)
    with Path("all.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", *segmenter.model.classes]
    assert [row[0] for row in rows] == names
    for image, row in zip(coco.imgs.values(), rows, strict=True):
        result = segmenter(image["file_name"])
        again = np.full(result.labels.shape, -1)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            again[coco.annToMask(annotation) != 0] = annotation["category_id"] - 1
        np.testing.assert_array_equal(again, result.labels)
        areas = {name: float(share) for name, share in zip(head[1:], row[1:], strict=True) if share != "0"}
        assert areas == result.areas()
    before = Path("all.json").read_bytes(), Path("all.csv").read_bytes()
    assert run(*call) == 1
    assert "all.json exists and was kept; --force" in capsys.readouterr().err
    assert run("segment", "images/0.png", "--model", tiny_zoo.NAME, "--csv", "all.csv", "--force") == 0
    assert (Path("all.json").read_bytes(), len(Path("all.csv").read_text().splitlines())) == (before[0], 2)


def test_the_datasets_of_isanet_read_its_coco_file(tiny: FileServer, work: Path) -> None:
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--coco", "images/instances.json") == 0
    data = isanet.datasets.open_dataset("images")
    assert len(data) == 3
    segmenter = isanet.Segmenter(tiny_zoo.NAME)
    for index, key in enumerate(data.keys):
        _, mask = data.read(index)
        assert mask is not None
        names = np.array([*data.label_space.classes, *[""] * 256])[mask]
        expected = segmenter(next(Path("images").glob(f"{Path(key).stem}.png")))
        np.testing.assert_array_equal(names, np.array(expected.classes)[expected.labels])


def test_common_files_are_refused_before_anything_is_done(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/0.png").rename("images/0.json")
    before = Path("images/0.json").read_bytes()
    for option, file, words in (
        ("--csv", "images/0.json", "is one of the images"),
        ("--coco", "images", "it is a folder"),
        ("--coco", "nowhere/a.json", "the folder nowhere does not exist"),
        ("--coco", "y" * 300, "File name too long"),
        ("--csv", "same", "is one of the images, or another output"),
    ):
        call = ["segment", "images/0.json", "images/1.png", "--model", tiny_zoo.NAME, "--coco", "same", "--force"]
        assert run(*call, option, file) == 1
        assert words in capsys.readouterr().err
    assert Path("images/0.json").read_bytes() == before
    assert sorted(path.name for path in work.iterdir()) == ["images"]
    assert not tiny.requests


def test_a_common_file_appears_whole_or_not_at_all(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("all.json").write_text("earlier")
    call = ("segment", "images", "--model", tiny_zoo.NAME, "--coco", "all.json", "--csv", "all.csv", "--force")
    result_of = isanet.Segmenter._result

    def interrupted(segmenter: isanet.Segmenter, read: Any, *prediction: Any) -> Any:
        if read.path.stem == "2":
            raise KeyboardInterrupt
        return result_of(segmenter, read, *prediction)

    with monkeypatch.context() as patch:
        patch.setattr(isanet.Segmenter, "_result", interrupted)
        assert run(*call) == 130
    with monkeypatch.context() as patch:
        disk.full_at(patch, 1)
        assert run(*call) == 1
    assert re.search(r"cannot write all\.(json|csv): No space left on device", capsys.readouterr().err)
    assert Path("all.json").read_text() == "earlier"
    assert {path.name for path in work.iterdir()} == {"images", "all.json"}


def test_annotations_that_one_image_cannot_have_do_not_stop_the_others(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_coco = Segmentation.to_coco

    def cramped(result: Segmentation, number: int, name: str) -> Any:
        if name == "1.png":
            raise MemoryError
        return to_coco(result, number, name)

    monkeypatch.setattr(Segmentation, "to_coco", cramped)
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--coco", "all.json") == 1
    assert "not enough memory for the outputs of images/1.png" in capsys.readouterr().err
    assert [image["id"] for image in json.loads(Path("all.json").read_text())["images"]] == [1, 3]


def test_masks_of_classes_are_black_and_white(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["cat", "a/b", "a_b", "\x1bd" + "x" * 300]
    isanet.from_pretrained(tiny_zoo.NAME, classes=classes).save_pretrained("mine")
    call = ("segment", "images", "--model", "mine", "--output", "out")
    assert run(*call, "--mask", "ca") == 1
    assert "no class 'ca' in" in (said := capsys.readouterr().err)
    assert "did you mean 'cat'?" in said
    assert run(*call, "--mask", "a/b", "--mask", "a_b") == 1
    assert "would have the same file" in capsys.readouterr().err
    assert not Path("out").exists()
    assert run(*call, "--mask", "cat", "--mask", "a/b", "--mask", "cat", "--mask", classes[3]) == 0
    segmenter = isanet.Segmenter("mine")
    ends = {"cat": "cat", "a/b": "a_b", classes[3]: "_d" + 62 * "x"}
    assert {path.name for path in Path("out").iterdir()} == {
        f"{i}_mask_{end}.png" for i in range(3) for end in ends.values()
    }
    for i in range(3):
        result = segmenter(f"images/{i}.png")
        for name, end in ends.items():
            with Image.open(f"out/{i}_mask_{end}.png") as image:
                assert image.mode == "1"
                np.testing.assert_array_equal(np.asarray(image), result.mask(name))


def test_segment_takes_files_folders_and_patterns_once_each(tiny: FileServer, work: Path) -> None:
    arguments = ("images/0.png", "images", "images/[12].png")
    assert run("segment", *arguments, "--model", tiny_zoo.NAME, "--output", "out", "--batch-size", "2") == 0
    assert len(list(Path("out").iterdir())) == 3


def test_segment_keeps_existing_outputs_without_force(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("segmented").mkdir()
    Path("segmented/1_overlay.png").write_text("mine")
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 0
    error = capsys.readouterr().err
    assert "isanet: 2 segmented, 1 kept (their outputs exist; --force replaces them)\n" in error
    assert Path("segmented/1_overlay.png").read_text() == "mine"
    assert Path("segmented/2_overlay.png").exists()
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--force") == 0
    with Image.open("segmented/1_overlay.png") as replaced:
        assert replaced.mode == "RGB"


def test_segment_never_overwrites_an_input(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("images/0.png", "images/0_overlay.png")
    before = Path("images/0_overlay.png").read_bytes()
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--output", "images", "--force") == 1
    assert "already taken by" in capsys.readouterr().err
    assert Path("images/0_overlay.png").read_bytes() == before


def test_two_images_of_one_name_do_not_share_an_output(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other").mkdir()
    shutil.copy("images/0.png", "other/0.png")
    assert run("segment", "images/0.png", "other/0.png", "--model", tiny_zoo.NAME) == 1
    assert "already taken by images/0.png" in capsys.readouterr().err
    assert Path("segmented/0_overlay.png").exists()


def test_one_bad_image_does_not_stop_the_others(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/1.png").write_text("<html>")
    assert run("segment", "images", "missing.jpg", "--model", tiny_zoo.NAME) == 1
    error = capsys.readouterr().err
    assert "images/1.png" in error
    assert "missing.jpg" in error
    assert "2 segmented, 2 failed" in error
    assert sorted(path.name for path in Path("segmented").iterdir()) == ["0_overlay.png", "2_overlay.png"]


def test_a_missing_image_is_reported_before_the_model_is_fetched(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", "missing.jpg", "--model", tiny_zoo.NAME) == 1
    assert "missing.jpg: there is no such file" in capsys.readouterr().err
    assert not Path("segmented").exists()
    assert not tiny.requests


def test_a_file_name_that_is_not_valid_text(tiny: FileServer, work: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    shutil.copy("images/0.png", Path("images", odd))
    code = (
        "import isanet.weights.manifest, pathlib, sys\n"
        f"isanet.weights.manifest.manifest_path = lambda: pathlib.Path({str(work.parent / 'weights.json')!r})\n"
        "from isanet.cli import main\n"
        f"sys.exit(main(['segment', 'images', '--model', {tiny_zoo.NAME!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert len(list(Path("segmented").iterdir())) == 4


def test_an_output_that_cannot_be_written_does_not_stop_the_others(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("segmented/1_overlay.png").mkdir(parents=True)
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--force") == 1
    assert "1_overlay.png is a folder" in capsys.readouterr().err
    assert Path("segmented/2_overlay.png").is_file()


def test_images_are_reported_in_order_whichever_is_written_first(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3, 9):
        shutil.copy("images/0.png", f"images/{i}.png")
    Path("images/4.png").write_text("<html>")
    write = segment._write

    def slow(result: Any, outputs: Any, **options: Any) -> str:
        number = int(result.path.stem)
        time.sleep(0.1 if number % 2 == 0 else 0)
        if number == 5:
            raise isanet.OutputError(f"cannot write the outputs of {result.path}: the disk is full")
        return write(result, outputs, **options)

    monkeypatch.setattr(segment, "_write", slow)
    monkeypatch.setattr(tqdm, "write", lambda bar, line, file: print(line))
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 1
    out, error = capsys.readouterr()
    assert re.findall(r"images/(\d)\.png", out) == list("012345678")
    assert re.findall(r"isanet: .*images/(\d)", out) == ["4", "5"]
    assert "7 segmented, 2 failed" in error
    assert {path.name for path in Path("segmented").iterdir()} == {f"{i}_overlay.png" for i in (0, 1, 2, 3, 6, 7, 8)}


def test_the_network_runs_ahead_of_the_writers_but_not_far(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3, 30):
        shutil.copy("images/0.png", f"images/{i}.png")
    isanet.from_pretrained(tiny_zoo.NAME)
    far_enough = threading.Event()
    segmented, written, ahead = 0, 0, 0
    write, result_of = segment._write, isanet.Segmenter._result

    def counted(*arguments: Any) -> Any:
        nonlocal segmented, ahead
        segmented += 1
        ahead = max(ahead, segmented - written)
        if segmented == segment.MAX_PENDING_WRITES + 1:
            far_enough.set()
        return result_of(*arguments)

    def slow(result: Any, outputs: Any, **options: Any) -> str:
        nonlocal written
        assert far_enough.wait(60)  # nothing is written until the network is ahead
        line = write(result, outputs, **options)
        written += 1
        return line

    monkeypatch.setattr(isanet.Segmenter, "_result", counted)
    monkeypatch.setattr(segment, "_write", slow)
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 0
    assert written == segmented == 30
    assert ahead == segment.MAX_PENDING_WRITES + 1


def test_what_one_image_cannot_have_does_not_stop_the_others(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3, 9):
        shutil.copy("images/0.png", f"images/{i}.png")
    result_of, overlay = isanet.Segmenter._result, Segmentation.overlay

    def full(segmenter: isanet.Segmenter, read: Any, *prediction: Any) -> Any:
        if read.path.stem == "1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result_of(segmenter, read, *prediction)

    def cramped(result: Segmentation, **options: Any) -> Any:
        assert result.path is not None
        if result.path.stem == "5":
            raise MemoryError
        return overlay(result, **options)

    monkeypatch.setattr(isanet.Segmenter, "_result", full)
    monkeypatch.setattr(Segmentation, "overlay", cramped)
    disk.full_at(monkeypatch, 4)  # 0, 2, 3, and now 4
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--batch-size", "2", "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "not enough memory for images/1.png" in error
    assert "not enough memory for the outputs of images/5.png" in error
    assert "No space left on device" in error
    assert "6 segmented, 3 failed" in error
    assert len(list(Path("segmented").iterdir())) == 6
    assert all(path.name.endswith("_overlay.png") for path in Path("segmented").iterdir())


def test_a_large_image_is_written_before_the_next_is_segmented(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: set[str] = set()
    write, result_of = segment._write, isanet.Segmenter._result

    def counted(segmenter: isanet.Segmenter, read: Any, *prediction: Any) -> Any:
        assert not waiting
        waiting.add(read.path.stem)
        return result_of(segmenter, read, *prediction)

    def written(result: Any, outputs: Any, **options: Any) -> str:
        line = write(result, outputs, **options)
        waiting.remove(result.path.stem)
        return line

    monkeypatch.setattr(isanet.Segmenter, "_result", counted)
    monkeypatch.setattr(segment, "_write", written)
    monkeypatch.setattr(segment, "MAX_PENDING_PIXELS", 80 * 60 - 1)
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 0


def test_segment_writes_official_ids(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--ids", "--protocol", "multiscale-flip") == 0
    segmenter = isanet.Segmenter(tiny_zoo.NAME, protocol="multiscale-flip")
    for i in range(3):
        with Image.open(f"segmented/{i}.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), segmenter(f"images/{i}.png").labels)
    isanet.from_pretrained(tiny_zoo.NAME, num_classes=3).save_pretrained("mine")
    assert run("segment", "images", "--model", "mine", "--ids", "--output", "other") == 1
    assert "without official ids" in capsys.readouterr().err
    assert not Path("other").exists()


@pytest.mark.parametrize(
    "facts",
    [
        {"label_space": "ade20k150"},
        {"label_space": 5},
        {"palette": [[1, 2, 3]]},
        {"palette": [[float("inf"), 0, 0], [0, 0, 0]]},
        {"classes": [1, 2]},
        {"preprocessing": {"short_edge": 10**9, "long_edge": 10**9, "mean": [0, 0, 0], "std": [1, 1, 1]}},
    ],
)
def test_false_facts_of_a_model_are_noticed_before_the_first_image(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any]
) -> None:
    isanet.from_pretrained(tiny_zoo.NAME, classes=["cat", "dog"]).save_pretrained("false")
    config = Path("false/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | facts))
    assert run("segment", "images", "--model", "false", "--labels", "--ids") == 1
    assert "is not the configuration of an ISANet" in capsys.readouterr().err
    assert not list(Path("segmented").iterdir())


def test_damaged_exif_does_not_flood_the_terminal(work: Path, shell: dict[str, str]) -> None:
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", 5000)
    exif += b"".join(struct.pack(">HHII", 10_000 + tag, 7, 40_000, 8) for tag in range(5000)) + bytes(4)
    photo = Image.open("images/0.png")
    photo.save("images/0.png", exif=b"Exif\0\0" + exif)
    command = [sys.executable, "-m", "isanet.cli", "--quiet", "segment", "images/0.png", "--model", "model"]
    result = subprocess.run(command, env=shell, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")


def test_class_names_of_an_untrusted_model_are_cleaned(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ["\x1b[2Jcat" + "t" * 60_000, "dog\x9b\u202e"]
    model = isanet.from_pretrained(tiny_zoo.NAME, classes=classes)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1e6, 0.0]))  # the first class everywhere: the new weights are random
    model.save_pretrained("untrusted")
    capsys.readouterr()
    shutil.copy("images/0.png", "images/a\nb\x1b[2J\u202e.png")
    Path("images/bad\nisanet: error: \x1b.png").write_text("text")
    arguments = ("--model", "untrusted", "--areas", "--overlay")
    assert run("segment", "images", "y" * 5000, *arguments) == 1
    said = capsys.readouterr()
    assert "[2Jcat" in said.out
    assert "images/a b\ufffd[2J\ufffd.png -> segmented/a_b_[2J__overlay.png" in said.out
    assert "isanet: images/bad isanet: error: \ufffd.png is not an image" in said.err
    assert "4 segmented, 2 failed" in said.err
    lines = (said.out + said.err).splitlines()
    assert all(line.isprintable() and len(line) <= MAX_LINE for line in lines)
    assert len(repr(isanet.Segmenter("untrusted")("images/0.png"))) < 200
    assert run("segment", "images", *arguments, "--output", "o" * 300) == 1
    assert f"cannot make the folder {'o' * 300}: File name too long" in capsys.readouterr().err


def test_segment_scales_deep_images_by_their_range(tiny: FileServer, work: Path) -> None:
    for name in ("deep", "plain"):
        Path(name).mkdir()
    values = np.random.default_rng(0).integers(0, 256, (40, 50))
    Image.fromarray((values * 4095 // 255).astype(np.uint16)).save("deep/x.png")
    Image.fromarray(values.astype(np.uint8)).save("plain/x.png")
    for folder, options in (("deep", ["--value-range", "0,4095"]), ("plain", [])):
        assert run("segment", folder, "--model", tiny_zoo.NAME, "--labels", "--output", f"{folder}_out", *options) == 0
    assert Path("deep_out/x_labels.png").read_bytes() == Path("plain_out/x_labels.png").read_bytes()


def test_segment_takes_addresses(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("images/0.png").read_bytes()
    names = ("my%20street.png", "..%2F..%2Fa%3Ab%1B.png", "", "..", ".hidden.png")
    for name in names:
        tiny.files[f"/x/{name}"] = data
    urls = [f"{tiny.url.replace('//', '//user:secret@')}/x/{name}?key=secret" for name in (*names, "missing.png")]
    assert (
        run(
            "segment", *urls, "images/0.png", "--model", tiny_zoo.NAME, "--labels", "--csv", "a.csv", "--coco", "a.json"
        )
        == 1
    )
    written = {path.name.removesuffix("_labels.png"): path.read_bytes() for path in Path("segmented").iterdir()}
    assert sorted(written) == ["0", "_.._a_b_", "hidden", "image", "my_street"]
    assert len(set(written.values())) == 1
    out, error = capsys.readouterr()
    assert f"{tiny.url}/x/my%20street.png -> segmented/my_street_labels.png" in out
    assert f"{tiny.url}/x/missing.png: answered 404" in error
    assert "already taken by" in error  # the two without a name
    assert "5 segmented, 2 failed" in error
    assert "secret" not in out + error + Path("a.csv").read_text() + Path("a.json").read_text()
    assert f"{tiny.url}/x/my%20street.png," in Path("a.csv").read_text()
    assert [image["file_name"] for image in json.loads(Path("a.json").read_text())["images"]][-1] == "0.png"


# --- many images


def test_a_rerun_is_a_success_and_loads_no_model(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("segment", "images", "--model", tiny_zoo.NAME)
    assert run(*call) == 0
    assert "isanet: 3 segmented\n" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in Path("segmented").iterdir()}
    with monkeypatch.context() as context:
        context.setattr(segment, "_segmenter", None)  # calling it would fail
        for options, expected in (
            ((), "isanet: 3 kept (their outputs exist; --force replaces them)\n"),
            (("--quiet",), ""),
        ):
            assert run(*options, *call) == 0
            said = capsys.readouterr()
            assert said.out == ""
            assert said.err.endswith(expected)
            assert expected or not said.err
    assert {path: path.stat().st_mtime_ns for path in Path("segmented").iterdir()} == before
    Path("images/broken.png").write_bytes(b"broken")
    assert run("--quiet", *call) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("3 kept (their outputs exist; --force replaces them), 1 failed")
    )


@pytest.mark.parametrize(("folder", "output"), [(".", "segmented"), ("images", "images")])
def test_a_rerun_does_not_take_its_outputs_for_images(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str], folder: str, output: str
) -> None:
    call = ("segment", folder, "--recursive", "--model", tiny_zoo.NAME, "--output", output)
    assert run(*call) == 0
    before = sorted(Path().rglob("*.png"))
    assert len(before) == 6
    for shard in ((), ("--shard", "1/2"), ("--shard", "2/2")):
        assert run(*call, *shard) == 0
    assert sorted(Path().rglob("*.png")) == before
    assert "failed" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM that can be handled")
def test_a_batch_system_that_ends_it_leaves_no_temporary_files(work: Path, shell: dict[str, str]) -> None:
    for number in range(500):  # more lines than the pipe and the reader take, so that it is not done before the signal
        shutil.copy("images/0.png", f"images/more{number}.png")
    call = [sys.executable, "-m", "isanet.cli", "segment", "images", "--model", "isanet_nano_toystreets", "--labels"]
    with subprocess.Popen(
        call,
        env={**shell, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in error
    assert 1 <= len(list(Path("segmented").iterdir())) < 503
    assert {path.suffix for path in Path("segmented").iterdir()} == {".png"}


def test_folders_are_mirrored_and_lists_are_read(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shots/a", "shots/day/a"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("images/0.png", f"{name}.png")
    assert run("segment", "shots", "--recursive", "--labels", "--model", tiny_zoo.NAME, "--output", "out") == 0
    assert sorted(map(str, Path("out").rglob("*.png"))) == ["out/a_labels.png", "out/day/a_labels.png"]
    Path("list.txt").write_text("images/1.png\nimages/2.png\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"images/0.png\n")))
    assert run("segment", "--from", "list.txt", "--from", "-", "--model", tiny_zoo.NAME, "--output", "listed") == 0
    assert sorted(path.name for path in Path("listed").iterdir()) == [f"{i}_overlay.png" for i in range(3)]
    with pytest.raises(SystemExit):
        run("segment", "--model", tiny_zoo.NAME)
    assert "no images: name files, folders, patterns or addresses, or give a list by --from" in capsys.readouterr().err


def test_shards_together_segment_each_image_once(tiny: FileServer, work: Path) -> None:
    counts = []
    for part in (1, 2, 3):
        assert run("segment", "images", "--model", tiny_zoo.NAME, "--output", f"out{part}", "--shard", f"{part}/3") == 0
        counts.append([path.name for path in Path(f"out{part}").iterdir()] if Path(f"out{part}").exists() else [])
    assert sorted(name for names in counts for name in names) == [f"{i}_overlay.png" for i in range(3)]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x/3", "3", "1/0"])
def test_wrong_shards_are_wrong_calls(work: Path, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("segment", "images", "--model", tiny_zoo.NAME, "--shard", shard)
    assert caught.value.code == 2
    assert re.search(r"is not (one of the parts|a part such as) ", capsys.readouterr().err)


def test_failures_are_appended_as_lines_of_json(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/broken.png").write_bytes(b"broken")
    Path("failed.jsonl").write_text('{"image": "earlier", "error": ""}\n')
    call = ("segment", "images", "gone.png", "--model", tiny_zoo.NAME, "--errors")
    assert run(*call, "failed.jsonl") == 1
    lines = [json.loads(line) for line in Path("failed.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["earlier", "gone.png", "images/broken.png"]
    assert lines[1]["error"] == "there is no such file"
    assert "not an image" in lines[2]["error"]
    capsys.readouterr()
    for name, words in (("images/0.png", "in .jsonl"), ("none/x.jsonl", "cannot write none/x.jsonl")):
        before = Path("images/0.png").read_bytes()
        assert run(*call, name) == 1
        assert words in capsys.readouterr().err
        assert Path("images/0.png").read_bytes() == before


def test_what_another_process_is_at_is_left_to_it(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claim({"overlay": Path("segmented/1_overlay.png")}):
        assert run("segment", "images", "--model", tiny_zoo.NAME) == 0
    assert "isanet: 2 segmented, 1 left to another process\n" in capsys.readouterr().err
    assert sorted(path.name for path in Path("segmented").iterdir()) == ["0_overlay.png", "2_overlay.png"]


def test_what_another_process_has_done_meanwhile_is_kept(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = segment._segmenter

    def slow(*arguments: Any) -> Any:
        Path("segmented").mkdir()
        Path("segmented/1_overlay.png").write_text("theirs")
        return make(*arguments)

    monkeypatch.setattr(segment, "_segmenter", slow)
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 0
    assert "isanet: 2 segmented, 1 kept" in capsys.readouterr().err
    assert Path("segmented/1_overlay.png").read_text() == "theirs"
    assert len(list(Path("segmented").iterdir())) == 3


def test_overlays_of_frames_have_one_size(tiny: FileServer, work: Path) -> None:
    result = isanet.Segmenter(tiny_zoo.NAME)("images/1.png")
    for name, legend in segment.LEGENDS.items():
        call = ("segment", "images/1.png", "--model", tiny_zoo.NAME, "--output", name, "--legend", name)
        assert run(*call) == 0
        expected = result.overlay(legend=legend)
        np.testing.assert_array_equal(np.asarray(Image.open(f"{name}/1_overlay.png")), np.asarray(expected))
