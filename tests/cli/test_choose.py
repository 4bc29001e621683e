"""list and recommend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import isanet
from isanet.weights.choosing import by_dataset
from isanet.weights.manifest import Weights, load_manifest
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert run(*arguments) == 0
    return capsys.readouterr().out.splitlines()


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The names of models in the answer."""
    return [line.split()[0] for line in answer(capsys, "list", *arguments) if line.startswith("isanet_")]


def test_list_says_what_is_cached(tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    head, columns, row, empty, *notes = answer(capsys, "list")
    assert head == "PASCAL VOC 2012 val: 1 model (--dataset voc)"
    assert columns.split() == ["NAME", "mIoU", "PARAMETERS", "GMACS", "LICENSE", "CACHED"]
    assert row.split() == [tiny_zoo.NAME, "76.99", "44.3", "M", "224.5", "no"]
    assert empty == ""
    assert len(notes) == 2
    isanet.from_pretrained(tiny_zoo.NAME)
    assert answer(capsys, "list", "*voc")[2].split()[-1] == "yes"
    shown = json.loads("\n".join(answer(capsys, "list", "--json")))
    assert shown[tiny_zoo.NAME]["tensors"] == len(tiny_zoo.upstream_state())
    assert run("list", "resnet*") == 1
    assert "no model matches" in capsys.readouterr().err


def test_list_groups_by_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "list")
    groups = "\n".join(lines).split("\n\n")[:-1]
    manifest = load_manifest()
    expected = by_dataset(manifest.values())
    assert len(groups) == len(expected) == 5
    for text, (dataset, models) in zip(groups, expected.items(), strict=True):
        head, columns, *rows = text.splitlines()
        facts = models[0].metrics
        assert head.startswith(f"{facts['dataset']} {facts['split']}: {len(models)} model")
        assert head.endswith(f"(--dataset {dataset})")
        assert columns.split()[0] == "NAME"
        assert [row.split()[0] for row in rows] == [weights.name for weights in models]
        for row, weights in zip(rows, models, strict=True):
            assert row.split()[1] == f"{100 * weights.metrics['miou']:.2f}"
            assert ("academic" in row) == (weights.family == "bpkd")
            assert row.endswith("by hand") == (weights.family == "openseg")
            assert row.endswith("packaged") == weights.packaged
    assert max(map(len, lines)) <= 100
    assert len({line.index("CACHED") + 6 for line in lines if line.startswith("NAME")}) == 1  # one width for all groups


def test_list_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(
        capsys, "--licence", "commercial", "--dataset", "pascal-voc", "--backbone", "r50", "--family", "mmseg"
    ) == [
        "isanet_r50_voc.mmseg_20k",
        "isanet_r50_voc.mmseg_40k",
    ]
    assert listed(capsys, "*_bpkd", "--dataset", "city") == ["isanet_r18_cityscapes.bpkd_bpkd"]
    shown = json.loads("\n".join(answer(capsys, "list", "--family", "paddle", "--sort", "speed", "--json")))
    assert list(shown)[:2] == ["isanet_r50_voc.paddleseg", "isanet_r101_voc.paddleseg"]
    assert [entry["family"] for entry in shown.values()] == ["paddleseg"] * 4
    assert run("list", "--license", "commercial", "--dataset", "context59") == 1
    assert capsys.readouterr().err == (
        "isanet: error: no model has dataset context59 and license commercial; change dataset to voc or ade20k or "
        "cityscapes or toystreets, or leave out license\n"
    )


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ("parameters", lambda weights: weights.parameters),
        ("speed", lambda weights: weights.gmacs),
        ("miou", lambda weights: -weights.metrics["miou"]),
    ],
)
def test_list_sorts_within_each_dataset(
    capsys: pytest.CaptureFixture[str], order: str, value: Callable[[Weights], float]
) -> None:
    manifest = load_manifest()
    names = listed(capsys, "--sort", order)
    assert sorted(names) == sorted(manifest)
    groups = by_dataset(manifest[name] for name in names)
    assert sum(map(len, groups.values())) == len(names)
    place = 0
    for group in groups.values():
        assert names[place : place + len(group)] == [weights.name for weights in group]
        assert [value(weights) for weights in group] == sorted(map(value, group))
        place += len(group)


def test_recommend(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "recommend", "--dataset", "cityscapes", "--license", "commercial", "--max-parameters", "60M")
    assert lines == [
        "isanet_r101_cityscapes.mmseg_769x769_80k  (56.7 M parameters, 4,203.8 G multiply-adds)",
        "    best mIoU (80.61) of 12 for Cityscapes (commercial use allowed, at most 60,000,000 parameters); "
        "measured in windows of 769x769",
        "isanet_r101_cityscapes.mmseg_512x1024_80k  (56.7 M parameters, 1,829.4 G multiply-adds)",
        "    mIoU 80.32: 0.29 points less, 44 % of the multiply-adds",
        "isanet_r50_cityscapes  (44.3 M parameters, 1,346.2 G multiply-adds)",
        "    mIoU 79.34: 1.27 points less, 32 % of the multiply-adds",
    ]
    for options in (("--backbone", "r18"), ("--max-gmacs", "1300.5"), ("--count", "1")):
        choices = {
            "--backbone": isanet.recommend(backbone="r18"),
            "--max-gmacs": isanet.recommend(max_gmacs=1300.5),
            "--count": isanet.recommend(count=1),
        }[options[0]]
        lines = answer(capsys, "recommend", *options)
        assert [line.split()[0] for line in lines[::2]] == [choice.name for choice in choices]
        assert [line.strip() for line in lines[1::2]] == [choice.reason for choice in choices]


@pytest.mark.parametrize(
    ("text", "number"), [("40M", 40e6), ("40m", 40e6), ("40e6", 40e6), ("12433734", 12433734), ("12.5M", 12.5e6)]
)
def test_numbers_of_parameters(capsys: pytest.CaptureFixture[str], text: str, number: float) -> None:
    names = [line.split()[0] for line in answer(capsys, "recommend", "--max-parameters", text)[::2]]
    assert names == [choice.name for choice in isanet.recommend(max_parameters=number)]


@pytest.mark.parametrize("text", ["", "M", "4x", "1.2.3M", "-5", "nan", ".", "1e", "0x10"])
def test_what_is_no_number_of_parameters_is_a_wrong_call(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("recommend", f"--max-parameters={text}")
    assert "is not a number such as 40M" in capsys.readouterr().err


def test_impossible_limits_and_wrong_values_say_what_is_near() -> None:
    command = [sys.executable, "-m", "isanet.cli", "recommend", "--dataset", "voc"]
    for options, message in {
        ("--dataset", "kitti"): "--dataset kitti is none of voc, ade20k, cityscapes, context59, toystreets",
        ("--max-parameters", "5M"): "no model for PASCAL VOC 2012 is that small (at most 5,000,000 parameters); the "
        "nearest is isanet_r50_voc.paddleseg with 37,708,938 parameters and 149.7 G multiply-adds",
        ("--max-gmacs", "-1"): "--max-gmacs -1.0 is not a number above 0",
        ("--backbone", "r18"): "no model has dataset voc and backbone resnet18; change dataset to ade20k or "
        "cityscapes or context59, or change backbone to resnet50 or resnet101",
    }.items():
        result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert (result.returncode, result.stdout, result.stderr) == (1, "", f"isanet: error: {message}\n")
