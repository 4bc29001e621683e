import json
import os
import re
import shutil
import signal
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
from tqdm import tqdm

import isanet
from isanet.cli import run as cli
from isanet.weights import cache
from tests.helpers import replicas, tiny_zoo
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "chelsea.jpg"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three small images, which is where the command runs."""
    folder = tmp_path / "work"
    (folder / "images").mkdir(parents=True)
    photo = Image.open(PHOTO)
    for i in range(3):
        photo.crop((40 * i, 0, 40 * i + 80, 60)).save(folder / "images" / f"{i}.png")
    (folder / "images" / "notes.txt").write_text("not an image")
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_list(tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["CACHED", "no"]
    isanet.from_pretrained(tiny_zoo.NAME)
    assert run("list", "*voc") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "yes"
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)[tiny_zoo.NAME]["tensors"] == len(tiny_zoo.upstream_state())
    assert run("list", "resnet*") == 1
    assert "no model fits" in capsys.readouterr().err


def test_info(tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tiny_zoo.NAME) == 0
    out = capsys.readouterr().out
    for words in ("76.99 on PASCAL VOC 2012 val", "not published", "Apache-2.0", "Label space voc21", "15     person"):
        assert words in out
    assert run("info", "isanet_tiny_vox") == 1
    assert (
        capsys.readouterr().err
        == "isanet: error: no model 'isanet_tiny_vox' in the zoo; did you mean isanet_tiny_voc?\n"
    )


def test_download_verify_and_clear(tiny: FileServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("download", tiny_zoo.NAME, "--keep") == 0
    assert "is ready" in capsys.readouterr().out
    assert (home / tiny_zoo.FILE_NAME).exists()
    assert run("download", "--all") == 0  # cached: nothing is asked
    assert [path for _, path, _ in tiny.requests] == [f"/{tiny_zoo.FILE_NAME}"]
    capsys.readouterr()
    assert run("verify", tiny_zoo.NAME) == 0
    out = capsys.readouterr().out
    assert "good" in out
    assert f"{tiny.url}/{tiny_zoo.FILE_NAME}" in out
    assert "trusted on first use" in out
    assert run("cache", "path") == 0
    assert capsys.readouterr().out == f"{home}\n"
    assert run("cache", "list") == 0
    assert tiny_zoo.NAME in capsys.readouterr().out
    file = cache.cached_file(tiny_zoo.NAME)
    assert file is not None
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run("verify") == 1
    assert "FAILED" in capsys.readouterr().out
    assert run("cache", "clear", tiny_zoo.NAME) == 0
    assert "freed" in capsys.readouterr().out
    assert run("verify", tiny_zoo.NAME) == 1
    assert "not cached" in capsys.readouterr().out


def test_verify_pins_into_a_manifest(tiny: FileServer, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    shutil.copy(tmp_path / "weights.json", copy)
    assert run("download", tiny_zoo.NAME) == 0
    assert run("verify", tiny_zoo.NAME, "--pin", "--manifest", str(copy)) == 0
    pinned = json.loads(copy.read_text())["weights"][tiny_zoo.NAME]
    data = tiny.files[f"/{tiny_zoo.FILE_NAME}"]
    assert isinstance(data, bytes)
    assert pinned["size"] == len(data)
    assert len(pinned["sha256"]) == 64


def test_segment_writes_what_is_asked_for(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", "images", "--model", tiny_zoo.NAME, "--overlay", "--labels", "--areas") == 0
    written = sorted(path.name for path in Path("segmented").iterdir())
    assert written == [f"{i}_{kind}" for i in range(3) for kind in ("areas.json", "labels.png", "overlay.png")]
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" -> ")[0] for line in out] == [f"images/{i}.png" for i in range(3)]
    expected = isanet.Segmenter(tiny_zoo.NAME)(work / "images" / "1.png")
    np.testing.assert_array_equal(np.asarray(Image.open("segmented/1_labels.png")), expected.labels)
    assert json.loads(Path("segmented/1_areas.json").read_text()) == expected.areas()
    assert np.array_equal(np.asarray(Image.open("segmented/1_overlay.png")), np.asarray(expected.overlay()))


def test_segment_takes_files_folders_and_patterns_once_each(tiny: FileServer, work: Path) -> None:
    arguments = ("images/0.png", "images", "images/[12].png")
    assert run("segment", *arguments, "--model", tiny_zoo.NAME, "--output", "out", "--batch-size", "2") == 0
    assert len(list(Path("out").iterdir())) == 3


def test_segment_keeps_existing_outputs_without_force(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("segmented").mkdir()
    Path("segmented/1_overlay.png").write_text("mine")
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 1
    error = capsys.readouterr().err
    assert "segmented/1_overlay.png exists and was kept; --force (overwrite=True) replaces it" in error
    assert "1 of 3 images were not segmented" in error
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
    assert "2 of 4 images were not segmented" in error
    assert sorted(path.name for path in Path("segmented").iterdir()) == ["0_overlay.png", "2_overlay.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "COMMAND"),
        (("segment", "x.jpg"), 2, "--model"),
        (("segment", "x.jpg", "--model", "m", "--batch-size", "0"), 2, "positive"),
        (("cache",), 2, "ACTION"),
        (("nonsense",), 2, "invalid choice"),
        (("download",), 1, "name the models"),
        (("download", tiny_zoo.NAME, "--all"), 1, "name the models"),
        (("verify",), 1, "nothing is cached"),
        (("convert", "up.pth", "out.pth"), 1, "ends in .safetensors"),
        (("download", "isanet_r5_voc"), 1, "no model"),
        (("segment", "empty", "--model", "m"), 1, "no images"),
        (("segment", "*.jpeg", "--model", "m"), 1, "no file matches"),
        (("segment", "images", "--model", "m", "--output", "images/0.png"), 1, "File exists"),
        (("segment", "images", "--model", "isanet_tiny"), 1, "did you mean"),
        (("segment", "images", "--model", tiny_zoo.NAME, "--device", "gpu"), 1, "device"),
        (("segment", "images", "--model", tiny_zoo.NAME, "--precision", "int3"), 2, "float32"),
        (("convert", "missing.pth", "out"), 1, "missing.pth"),
        (("convert", "images/0.png", "out"), 1, "not a checkpoint"),
    ],
)
def test_wrong_calls(
    tiny: FileServer,
    work: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    Path("empty").mkdir()
    if code == 2:
        with pytest.raises(SystemExit, check=lambda stop: stop.code == 2):
            run(*arguments)
    else:
        assert run(*arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    if code == 1:
        assert len([line for line in error.splitlines() if line.startswith("isanet: error:")]) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("arguments", [("--quiet", "download"), ("download", "--quiet")])
def test_quiet_works_before_and_after_the_command(
    tiny: FileServer, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, tiny_zoo.NAME) == 0
    error = capsys.readouterr().err
    assert "downloading" not in error
    assert "is recorded" in error  # a warning: trust on first use is never silent


def test_a_missing_image_is_said_before_the_model_is_fetched(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", "missing.jpg", "--model", tiny_zoo.NAME) == 1
    assert "missing.jpg: there is no such file" in capsys.readouterr().err
    assert not Path("segmented").exists()
    assert not tiny.requests


def test_a_file_name_that_is_no_text(tiny: FileServer, work: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    shutil.copy("images/0.png", Path("images", odd))
    code = (
        "import isanet.weights.manifest, pathlib, sys\n"
        f"isanet.weights.manifest.manifest_path = lambda: pathlib.Path({str(work.parent / 'weights.json')!r})\n"
        "from isanet.cli.run import main\n"
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


def test_images_are_said_in_order_whatever_is_written_first(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3, 9):
        shutil.copy("images/0.png", f"images/{i}.png")
    Path("images/4.png").write_text("<html>")
    write = cli._write

    def slow(result: Any, outputs: Any) -> str:
        number = int(result.path.stem)
        time.sleep(0.1 if number % 2 == 0 else 0)
        if number == 5:
            raise isanet.OutputError(f"cannot write the outputs of {result.path}: the disk is full")
        return write(result, outputs)

    monkeypatch.setattr(cli, "_write", slow)
    monkeypatch.setattr(tqdm, "write", lambda line, file: print(line))
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 1
    out, error = capsys.readouterr()
    assert re.findall(r"images/(\d)\.png", out) == list("012345678")
    assert re.findall(r"isanet: .*images/(\d)", out) == ["4", "5"]
    assert "2 of 9 images were not segmented" in error
    assert {path.name for path in Path("segmented").iterdir()} == {f"{i}_overlay.png" for i in (0, 1, 2, 3, 6, 7, 8)}


def test_the_network_goes_on_while_outputs_are_written_but_not_far(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3, 30):
        shutil.copy("images/0.png", f"images/{i}.png")
    isanet.from_pretrained(tiny_zoo.NAME)
    gone_on = threading.Event()
    segmented, written, ahead = 0, 0, 0
    write, result_of = cli._write, isanet.Segmenter._result

    def counted(*arguments: Any) -> Any:
        nonlocal segmented, ahead
        segmented += 1
        ahead = max(ahead, segmented - written)
        if segmented == cli.MAX_PENDING_WRITES + 1:
            gone_on.set()
        return result_of(*arguments)

    def slow(result: Any, outputs: Any) -> str:
        nonlocal written
        assert gone_on.wait(60)  # nothing is written until the network has gone on
        line = write(result, outputs)
        written += 1
        return line

    monkeypatch.setattr(isanet.Segmenter, "_result", counted)
    monkeypatch.setattr(cli, "_write", slow)
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 0
    assert written == segmented == 30
    assert ahead == cli.MAX_PENDING_WRITES + 1


def test_running_out_of_memory_after_a_image_writes_that_image(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result_of = isanet.Segmenter._result

    def full(segmenter: isanet.Segmenter, read: Any, *prediction: Any) -> Any:
        if read.path.stem == "1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result_of(segmenter, read, *prediction)

    monkeypatch.setattr(isanet.Segmenter, "_result", full)
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 1
    out, error = capsys.readouterr()
    assert "0.png -> segmented/0_overlay.png" in out
    assert "out of memory; try --batch-size 1" in error
    assert [path.name for path in Path("segmented").iterdir()] == ["0_overlay.png"]


def test_running_out_of_memory_is_one_line(
    tiny: FileServer, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr("isanet.inference.fast.optimize.FastISANet.coarse_logits", full)
    assert run("segment", "images", "--model", tiny_zoo.NAME) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("isanet: error: CUDA out of memory. Tried")
    assert "--batch-size 1" in last


def test_debug_shows_the_traceback(tiny: FileServer) -> None:
    with pytest.raises(ValueError, match="no model"):
        run("--debug", "info", "nothing")


def test_convert(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("up.pth").write_bytes(tiny_zoo.saved(tiny_zoo.upstream_state()))
    assert run("convert", "up.pth", "folder") == 0
    assert run("convert", "up.pth", "one.safetensors") == 0
    assert sorted(path.name for path in Path("folder").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    before = Path("one.safetensors").read_bytes()
    assert run("convert", "up.pth", "one.safetensors") == 1
    assert "--force" in capsys.readouterr().err
    assert run("convert", "one.safetensors", "one.safetensors", "--force") == 1
    assert Path("one.safetensors").read_bytes() == before
    assert run("convert", "folder", "folder", "--force") == 1
    assert run("convert", "folder/model.safetensors", "folder", "--force") == 1
    Path("project").mkdir()
    Path("project/config.json").write_text("mine")
    assert run("convert", "up.pth", "project") == 1
    assert [path.name for path in Path("project").iterdir()] == ["config.json"]
    assert Path("project/config.json").read_text() == "mine"
    assert run("convert", "folder", "again", "--force") == 0
    assert isanet.from_pretrained("again").classes == isanet.from_pretrained("one.safetensors").classes


@pytest.mark.parametrize("offline", [False, True])
def test_doctor(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, offline: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ISANET_MIRROR", f"http://user:secret@{tiny.url.removeprefix('http://')}/?key=secret")
    if offline:
        monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for words in ("torch 2", f"cache: {home} (writable", "free)", "HTTPS_PROXY is set", "REQUESTS_CA_BUNDLE="):
        assert words in out
    assert "secret" not in out
    if offline:
        assert "not asked" in out
        assert not tiny.requests
    else:
        assert f"{tiny.url}/{tiny_zoo.FILE_NAME}: answers 200" in out
        assert "https://127.0.0.1:1/isanet_tiny.pth: FAILED" in out


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["--help"], ["segment", "--help"], ["cache", "path"], ["cache", "list"], ["info", "isanet_r50_voc"]],
)
def test_light_commands_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['isanet', *{arguments!r}]\n"
        "try:\n    runpy.run_module('isanet.cli', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'requests', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_closed_pipe_is_no_error_of_ours() -> None:
    command = f"{sys.executable} -m isanet.cli list --json | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "{\n"
    assert result.stderr == ""


# --- evaluate and check-masks -------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    replicas.voc(tmp_path / "voc", val=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "voc"


def test_evaluate(tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("evaluate", str(voc), "--model", tiny_zoo.NAME, "--workers", "0")
    assert run(*arguments, "--boundary", "--predictions", "maps") == 0
    out = capsys.readouterr().out
    report = isanet.Report.load("evaluated")
    assert f"{100 * report.miou:.2f}" in out
    assert "76.99" in out
    assert "5 images, where the official split has 1449" in out
    assert out.splitlines()[-1] == "evaluated/index.html shows it, with images"
    assert {path.name for path in Path("evaluated").iterdir()} == {
        *("report.json", "index.html", "confusion.png", "classes.png", "worst")
    }
    assert len(list(Path("maps").iterdir())) == 5
    direct = isanet.evaluate(tiny_zoo.NAME, isanet.datasets.VOC2012(voc), workers=0)
    assert torch.equal(direct.confusion, report.confusion)

    assert run(*arguments) == 1
    assert "evaluated has a report already" in capsys.readouterr().err
    assert run(*arguments, "--force", "--limit", "2", "--split", "train") == 0
    assert (isanet.Report.load("evaluated").samples, isanet.Report.load("evaluated").split) == (2, "train")


def test_evaluate_a_folder_of_ones_own(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("cat", "pet dog", "sky")
    replicas.folder(tmp_path / "mine", classes=names, write=lambda path, mask: replicas.save(path, mask * 10 % 251 + 1))
    call = ("evaluate", "mine", "--model", tiny_zoo.NAME, "--workers", "0")
    Path("mine/classes.txt").unlink()
    assert run(*call) == 1
    assert "classes.txt" in capsys.readouterr().err
    call += ("--classes", "cat,pet dog,sky", "--ids", "1,11,21", "--ignore", "rest")
    assert run(*call) == 1
    error = capsys.readouterr().err
    assert "voc21 (21 classes" in error
    assert "mine (3 classes" in error
    Path("map.json").write_text(json.dumps({"pet dog": ["dog"], "sky": None}))
    assert run(*call, "--mapping", "map.json") == 0
    assert isanet.Report.load("evaluated").classes == ("cat", "pet dog")
    assert "left out of the argmax" in capsys.readouterr().out
    for wrong in (
        "[]",
        '{"v": ',
        '{"a": null, "a": null}',
        '{"v": 5}',
        '{"v": [1]}',
        '{"v": ["cat", "cat"]}',
        '{"v": {}}',
    ):
        Path("map.json").write_text(wrong)
        assert run(*call, "--mapping", "map.json", "--force") == 1
        error = capsys.readouterr().err
        assert error.count("\n") <= 2
        assert "map.json is no mapping" in error or "list of names" in error or "listed twice" in error
    Path("map.json").write_text('\ufeff{"pet dog": ["dog"], "sky": null}', encoding="utf-8")
    assert run(*call, "--mapping", "map.json", "--force", "--quiet") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "DATA"),
        (("voc",), 2, "--model"),
        (("voc", "--model", tiny_zoo.NAME, "--ids", "a-b"), 2, "--ids"),
        (("voc", "--model", tiny_zoo.NAME, "--colors", "#ff"), 2, "--colors"),
        (("voc", "--model", tiny_zoo.NAME, "--limit", "0"), 2, "positive"),
        (("nowhere", "--model", tiny_zoo.NAME), 1, "nowhere"),
        (("home", "--model", tiny_zoo.NAME), 1, "home"),
        (("voc", "--model", tiny_zoo.NAME, "--layout", "coco"), 2, "ade20k"),
        (("voc", "--model", tiny_zoo.NAME, "--ids", "3-1"), 2, "empty range"),
        (("voc", "--model", tiny_zoo.NAME, "--ids", "1-"), 2, "--ids"),
        (("voc", "--model", tiny_zoo.NAME, "--workers", "-1"), 2, "negative"),
        (("voc", "--model", tiny_zoo.NAME, "--precision", "half"), 2, "bfloat16"),
        (("voc", "--model", tiny_zoo.NAME, "--split", "valid"), 1, "trainval"),
        (("voc", "--model", tiny_zoo.NAME, "--split", "test"), 1, "no masks to compare with"),
        (("voc", "--model", tiny_zoo.NAME, "--classes", "a,b"), 1, "classes"),
        (("voc", "--model", tiny_zoo.NAME, "--protocol", "hole"), 2, "mmseg-slide-769"),
        (("voc", "--model", tiny_zoo.NAME, "--mapping", "none.json"), 1, "none.json"),
    ],
)
def test_wrong_calls_of_evaluate(
    tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            run("evaluate", *arguments)
    else:
        assert run("evaluate", *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("evaluated").exists()


@pytest.fixture
def shell(tiny: FileServer) -> dict[str, str]:
    """Settings for processes of their own, which find the tiny model in the cache by its converted folder."""
    isanet.from_pretrained(tiny_zoo.NAME).save_pretrained("model")
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_ctrl_c_keeps_what_was_counted(voc: Path, shell: dict[str, str]) -> None:
    replicas.voc(voc, val=120)
    call = [sys.executable, "-m", "isanet.cli", "evaluate", "voc", "--model", "model", "--predictions", "maps"]
    call += ["--workers", "1"]
    process = subprocess.Popen(call, env=shell, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not Path("maps").exists() or len(list(Path("maps").iterdir())) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "the same call goes on" in error
    counted = len(json.loads(Path("evaluated/progress-0.json").read_text())["rows"])
    assert 4 <= counted < 120
    done = subprocess.run(call, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{counted} of 120 images are counted" in done.stderr
    report = isanet.evaluate("model", isanet.datasets.VOC2012(voc), workers=0)
    assert torch.equal(isanet.Report.load("evaluated").confusion, report.confusion)


def test_label_maps_of_a_split_without_masks(tiny: FileServer, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("evaluate", str(voc), "--model", tiny_zoo.NAME, "--split", "test", "--predictions", "maps")
    assert run(*call) == 0
    assert "is not published" in capsys.readouterr().out
    assert not Path("evaluated").exists()
    dataset = isanet.datasets.VOC2012(voc, "test")
    assert [path.stem for path in sorted(Path("maps").iterdir())] == dataset.keys
    labels = isanet.Segmenter(tiny_zoo.NAME, precision="float32")(dataset.image_path(0)).labels
    with Image.open(f"maps/{dataset.keys[0]}.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
    assert run(*call) == 1
    assert "was kept" in capsys.readouterr().err
    assert run(*call, "--force") == 0


def test_torchrun(voc: Path, shell: dict[str, str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "isanet.cli"]
    call = [*launcher, "evaluate", "voc", "--model", "model", "--device", "cpu", "--workers", "0"]
    done = subprocess.run(call, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU measured") + done.stdout.count("no figure is published") == 1  # one speaks for all
    report = isanet.evaluate("model", isanet.datasets.VOC2012(voc), workers=0)
    assert torch.equal(isanet.Report.load("evaluated").confusion, report.confusion)


def test_check_masks(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = "voc/VOCdevkit/VOC2012/SegmentationClass"
    images = "voc/VOCdevkit/VOC2012/JPEGImages"
    assert run("check-masks", masks, "--images", images, "--classes", "voc21", "--output", "masks.png") == 0
    out = capsys.readouterr().out
    assert "mode P" in out
    assert "aeroplane" in out
    with Image.open("masks.png") as image:
        assert min(image.size) > 100
    assert run("check-masks", masks, "--output", "masks.png") == 1
    assert "was kept" in capsys.readouterr().err
    assert run("check-masks", masks, "--json", "--classes", "21") == 0
    assert json.loads(capsys.readouterr().out)["files"] == 8
    assert run("check-masks", masks, "--classes", "a,b") == 0
    assert "stray" in capsys.readouterr().out
    assert run("check-masks", "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


def test_segment_in_the_form_of_a_server(
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


# --- verify, of folders and files ---------------------------------------------------------------------------


def verified(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run("verify", *arguments) == code
    return capsys.readouterr().out


def test_verify_explains_what_a_file_says_and_compares_it(
    tiny: FileServer, work: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.save_pretrained("same")
    assert f"it is, byte for byte, the file of {tiny_zoo.NAME} in the cache" in verified(capsys, "same")
    model.provenance["isanet_version"] = "0.0.1"
    model.save_pretrained("mine")
    record = cache.read_record(tiny_zoo.NAME)
    assert record is not None
    for place in ("mine", "mine/model.safetensors"):
        out = verified(capsys, place)
        assert f"{place}: good" in out
        assert f"source {tiny.url}/{tiny_zoo.FILE_NAME}" in out
        assert f"source_sha256 {record.source_sha256}" in out
        assert f"is the one that was recorded here on {record.date}" in out
        assert f"all its tensors are those of {tiny_zoo.NAME}" in out
    with torch.no_grad():
        model.classifier.weight += 1
    model.save_pretrained("changed")
    assert f"1 tensor of {len(model.state_dict())} are not those of" in verified(capsys, "changed")
    # both kinds of names in one call, and the cached file itself
    out = verified(capsys, tiny_zoo.NAME, str(cache.cached_file(tiny_zoo.NAME)))
    assert f"{tiny_zoo.NAME}: good. From {tiny.url}" in out
    assert f"byte for byte, the file of {tiny_zoo.NAME} in the cache" in out
    shutil.rmtree(home)
    assert "nothing is recorded here" in verified(capsys, "mine")


def test_verify_compares_what_tensors_do_not_show(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.save_pretrained("turned")
    config = json.loads(Path("turned/config.json").read_text())
    config["classes"] = config["classes"][::-1]
    Path("turned/config.json").write_text(json.dumps(config))
    assert run("verify", "turned") == 0
    assert f"its configuration is not that of {tiny_zoo.NAME}: classes" in capsys.readouterr().out
    larger = isanet.ISANet(**{**model.config, "backbone": "resnet26"})
    larger.load_state_dict(model.state_dict(), strict=False)
    larger.provenance = model.provenance
    larger.save_pretrained("larger")
    assert run("verify", "larger") == 0
    out = capsys.readouterr().out
    assert "all its tensors" not in out
    assert "backbone" in out


def test_verify_knows_a_released_file_by_its_hash(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.files[f"/{tiny_zoo.FILE_NAME}"]
    assert isinstance(data, bytes)
    Path("up.pth").write_bytes(data)
    out = verified(capsys, "up.pth")
    assert "does not say where it came from" in out
    assert "nothing here to compare it with" in out
    isanet.from_pretrained(tiny_zoo.NAME)
    assert f"byte for byte, the released file of {tiny_zoo.NAME} that was recorded on" in verified(capsys, "up.pth")


def test_verify_contradicts_a_file_that_names_another_hash(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.provenance["source_sha256"] = "e" * 64
    model.save_pretrained("forged")
    out = verified(capsys, "forged", code=1)
    assert "forged: FAILED" in out
    assert "e" * 64 in out


def test_verify_shows_what_a_stranger_wrote_harmlessly(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.provenance = {"source": "\x1b[2J" + "x" * 9999, "a\nb": "c"}
    model.save_pretrained("stranger")
    out = verified(capsys, "stranger")
    assert all(line.isprintable() and len(line) < 500 for line in out.splitlines())
    assert "a b c" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("images/0.png",), "not a checkpoint"),
        (("images",), "cannot read"),
        (("images", "--pin"), "--pin is for"),
    ],
)
def test_verify_refuses_what_is_no_model(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("verify", *arguments) == 1
    said = capsys.readouterr()
    assert message in said.out + said.err


def test_every_converted_file_says_where_it_came_from(tiny: FileServer, work: Path) -> None:
    """The cache's, a folder's, a single file's; that of a fine-tuned model is in test_finetuning."""
    from isanet.weights import checkpoint

    data = tiny_zoo.saved(tiny_zoo.upstream_state())
    Path("up.pth").write_bytes(data)
    assert run("convert", "up.pth", "one.safetensors") == 0
    assert run("convert", "up.pth", "folder") == 0
    isanet.from_pretrained(tiny_zoo.NAME).save_pretrained("saved")
    cached = cache.cached_file(tiny_zoo.NAME)
    assert cached is not None
    for path in (Path("one.safetensors"), Path("folder/model.safetensors"), Path("saved/model.safetensors"), cached):
        metadata = checkpoint.read_safetensors(checkpoint.read_file(path))[1]
        assert {"source", "source_sha256", "layout", "converter_version"} <= set(metadata), path
    assert metadata["source"] == f"{tiny.url}/{tiny_zoo.FILE_NAME}"
