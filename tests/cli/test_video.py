"""segment, for videos."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import isanet
from isanet.inference.outputs import claim
from isanet.inference.video import frames
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer
from tests.helpers.videos import make_video, quarters

ROOT = Path(__file__).parents[2]


@pytest.fixture
def drive(tiny: FileServer, work: Path) -> Path:
    make_video(work / "drive.mp4", [np.roll(quarters(), 4 * i, 1) for i in range(12)], sound="aac")
    return Path("drive.mp4")


def test_a_video_becomes_an_overlay_and_labels(drive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("segment", drive, "images/0.png", "--model", tiny_zoo.NAME)
    assert run(*call) == 0
    said = capsys.readouterr()
    assert "drive.mp4 -> segmented/drive_overlay.mp4: 12 frames in " in said.out
    assert "isanet: 2 segmented" in said.err
    assert len(list(frames("segmented/drive_overlay.mp4"))) == 12
    assert Path("segmented/0_overlay.png").exists()
    assert run(*call) == 0  # a second time, nothing is done
    assert "isanet: 2 kept" in capsys.readouterr().err
    assert run("segment", drive, "--model", tiny_zoo.NAME, "--labels") == 0
    assert sorted(path.name for path in Path("segmented").glob("drive*")) == ["drive_labels.mkv", "drive_overlay.mp4"]


def test_labels_as_png_and_parts_of_a_video(drive: Path) -> None:
    call = ("segment", drive, "--model", tiny_zoo.NAME, "--labels", "--labels-as", "png", "--output", "out")
    assert run(*call, "--every", 3, "--start", "0:00.1", "--end", 0.3) == 0
    names = sorted(path.name for path in Path("out/drive_labels").iterdir())
    taken = list(frames(drive, every=3, start=0.1, end=0.3))
    assert names == [f"{i:06}.png" for i in range(len(taken))]
    segmenter = isanet.Segmenter(tiny_zoo.NAME)
    for name, frame in zip(names, taken, strict=True):
        labels = np.asarray(Image.open(Path("out/drive_labels", name)))
        np.testing.assert_array_equal(labels, segmenter(frame.image).labels)


def test_pngs_that_are_incomplete_are_made_again(drive: Path) -> None:
    call = ("segment", drive, "--model", tiny_zoo.NAME, "--labels", "--labels-as", "png")
    Path("segmented/drive_labels_part").mkdir(parents=True)
    Path("segmented/drive_labels_part/000044.png").touch()  # of a process that was killed
    assert run(*call) == 0
    assert len(list(Path("segmented/drive_labels").iterdir())) == 12
    assert run(*call, "--force", "--every", 6) == 0
    assert sorted(path.name for path in Path("segmented/drive_labels").iterdir()) == ["000000.png", "000001.png"]
    Path("broken.mp4").write_bytes(b"\0" * 999)
    assert run("segment", "broken.mp4", *call[2:]) == 1
    assert [path.name for path in Path("segmented").iterdir()] == ["drive_labels"]


def test_its_own_outputs_beside_videos_are_no_videos_to_segment(
    drive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("drive_overlay_part.mp4").write_bytes(b"of a run that was interrupted")
    for words in ("drive.mp4 -> drive_overlay.mp4", "isanet: 1 kept"):
        assert run("segment", "*.mp4", "--model", tiny_zoo.NAME, "--output", ".") == 0
        said = capsys.readouterr()
        assert words in said.out + said.err
    assert {path.name for path in Path().glob("*.m*")} == {"drive.mp4", "drive_overlay.mp4", "drive_overlay_part.mp4"}


def test_an_absent_package_is_named_before_a_model_is_loaded(
    drive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isanet.inference.runtimes.packages.why_absent", lambda package: f"No module named '{package}'")
    assert run("segment", drive, "--model", "absent") == 1
    assert "this needs the package av (No module named 'av'): pip install 'isanet[video]'" in capsys.readouterr().err


def test_a_video_that_another_process_is_at_is_left_to_it(drive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claim({"overlay_video": Path("segmented/drive_overlay.mp4")}):
        assert run("segment", drive, "--model", tiny_zoo.NAME) == 0
    assert "1 left to another process" in capsys.readouterr().err


def test_wrong_calls_are_answered_before_a_model_is_loaded(drive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (["--coco", "all.json"], "--coco is for images; a video has --overlay and --labels"),
        (["--mask", "road"], "--mask is for images"),
        (["--start", "2", "--end", "1"], "--end 1 is not after --start 2"),
        (["--start", "1:2:3:4"], "is not a time such as 90, 1:30"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run("segment", drive, "--model", "absent", *options)
        assert words in capsys.readouterr().err


def test_a_broken_video_is_named_and_the_others_are_segmented(drive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.mp4").write_bytes(drive.read_bytes()[:3000])
    assert run("segment", "broken.mp4", drive, "--model", tiny_zoo.NAME, "--errors", "errors.jsonl") == 1
    said = capsys.readouterr()
    assert "isanet: broken.mp4 cannot be read as a video: it looks like an MP4 whose index is missing" in said.err
    assert "1 segmented, 1 failed" in said.err
    assert "broken.mp4" in Path("errors.jsonl").read_text()
    assert [path.name for path in Path("segmented").iterdir()] == ["drive_overlay.mp4"]


def test_progress_is_lines_where_there_is_no_terminal(
    drive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isanet.cli.video.SECONDS_PER_LINE", 0)
    assert run("segment", drive, "--model", tiny_zoo.NAME) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "of about 12" in line]
    assert len(lines) == 12
    assert "frames/s" in lines[0]
    assert lines[-1].startswith("isanet: drive.mp4: 12 frames of about 12, 0.0 s left, ")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_playable_part(tiny: FileServer, work: Path, number: signal.Signals, code: int) -> None:
    isanet.from_pretrained(tiny_zoo.NAME).save_pretrained("model")
    make_video(work / "drive.mp4", [quarters()] * 3000)
    call = [sys.executable, "-m", "isanet.cli", "segment", "drive.mp4", "--model", "model", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 120
        # Once the temporary file has its first bytes, frames are written
        while not any(path.stat().st_size for path in Path("segmented").glob(".isanet-*.part")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert "segmented/drive_overlay_part.mp4 is a part, which can be played: its first" in said
    assert "no incomplete file was left" not in said
    assert [path.name for path in Path("segmented").iterdir()] == ["drive_overlay_part.mp4"]
    assert 0 < len(list(frames("segmented/drive_overlay_part.mp4"))) < 3000


def test_int8_is_calibrated_on_frames(drive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", drive, "--model", tiny_zoo.NAME, "--precision", "int8", "--device", "cpu") == 0
    assert "segmented/drive_overlay.mp4: 12 frames in " in capsys.readouterr().out
