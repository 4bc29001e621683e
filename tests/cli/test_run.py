"""Exit codes, one line for errors, and what every command has in common."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isanet.cli import options
from isanet.cli.run import _parser
from isanet.inference.fast import optimize
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands of a parser by name."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


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


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        ("segmnt x.jpg", "isanet: error: argument COMMAND: invalid choice: 'segmnt'; did you mean segment?"),
        ("cache lst", "isanet cache: error: argument ACTION: invalid choice: 'lst'; did you mean list?"),
        (
            "segment x.jpg --model m --devise cpu",
            "unrecognized arguments: --devise cpu; did you mean --device?",
        ),
        ("segment x.jpg --model m --devise=cpu", "--devise=cpu; did you mean --device?"),
        (
            "segment x.jpg --model m --precision float61",
            "invalid choice: 'float61'; did you mean float16?",
        ),
        ("segment x.jpg --modle m", "arguments are required: --model; did you mean --model instead of --modle?"),
        ("segment x.jpg --model m --batch-size 0 --devise cpu", "--batch-size: 0 is not a positive number"),
        ("segment --output o", "arguments are required: --model"),
        ("--quite list", "unrecognized arguments: --quite; did you mean --quiet?"),
        ("segment x.jpg --model m --zzz", "unrecognized arguments: --zzz"),
        ("list a b", "unrecognized arguments: b"),
    ],
)
def test_a_mistyped_command_option_or_value_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: str, end: str
) -> None:
    with pytest.raises(SystemExit, check=lambda stop: stop.code == 2):
        run(*arguments.split())
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: isanet")
    assert last.endswith(end)


@pytest.mark.parametrize("arguments", [("--quiet", "download"), ("download", "--quiet")])
def test_quiet_works_before_and_after_the_command(
    tiny: FileServer, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, tiny_zoo.NAME) == 0
    error = capsys.readouterr().err
    assert "downloading" not in error
    assert "is recorded" in error  # a warning: trust on first use is never silent


def test_running_out_of_memory_is_one_line(
    tiny: FileServer, voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr("isanet.inference.fast.network.FastISANet.coarse_logits", full)
    assert run("evaluate", voc, "--model", tiny_zoo.NAME, "--workers", "0") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("isanet: error: CUDA out of memory. Tried")
    assert "--batch-size 1" in last


def test_debug_shows_the_traceback(tiny: FileServer) -> None:
    with pytest.raises(ValueError, match="no model"):
        run("--debug", "info", "nothing")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "*50*", "--license", "commercial", "--sort", "speed"],
        ["recommend", "--dataset", "voc"],
        ["--help"],
        *([command, "--help"] for command in subcommands(_parser())),
        ["cache", "path"],
        ["cache", "list"],
        ["info", "isanet_r50_voc"],
    ],
)
def test_light_commands_are_fast_and_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['isanet', *{arguments!r}]\n"
        "try:\n    runpy.run_module('isanet.cli', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "import time\n"
        "assert time.process_time() < 1  # of the CPU, whatever else the machine does\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'requests', 'huggingface_hub', 'safetensors', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_closed_pipe_is_no_error_of_ours() -> None:
    command = f"{sys.executable} -m isanet.cli list --json | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "{\n"
    assert result.stderr == ""


@pytest.mark.parametrize(("closed", "code"), [("list >&-", 0), ("list 2>&-", 0), ("info nothing >&- 2>&-", 1)])
def test_closed_standard_streams_are_no_traceback(closed: str, code: int) -> None:
    command = f"{sys.executable} -m isanet.cli {closed}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (code, "")


def test_failed_addresses_are_a_list(tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.files.clear()
    assert run("download", tiny_zoo.NAME, "--quiet") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("isanet: http")]
    assert lines[0].startswith(f"isanet: error: {tiny_zoo.NAME}: no address gave {tiny_zoo.FILE_NAME}; try again later")
    assert [line.split(": ")[0] for line in lines[1:]] == [
        f"  {tiny.url}/{tiny_zoo.FILE_NAME}",
        f"  {tiny.url}/isanet_tiny.pth",
        f"  https://127.0.0.1:1/{tiny_zoo.FILE_NAME}",
        "  https://127.0.0.1:1/isanet_tiny.pth",
    ]
    assert run("selftest", tiny_zoo.NAME) == 1
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_every_argument_has_a_help_text() -> None:
    for command in subcommands(_parser()).values():
        for parser in (command, *subcommands(command).values()):
            for action in parser._actions:
                assert action.help or isinstance(action, argparse._SubParsersAction), (parser.prog, action.dest)


def test_precisions_are_those_of_the_inference_room() -> None:
    assert (*optimize.PRECISIONS, "int8") == options.PRECISIONS
