"""cite."""

from __future__ import annotations

import re

import pytest

from isanet._version import __version__
from isanet.cli import cite
from isanet.weights.manifest import load_backbones, load_manifest
from tests.helpers.commands import run


def entries(text: str) -> dict[str, dict[str, str]]:
    """The fields of BibTeX entries by key; refuses what does not balance, and keys that come twice."""
    assert text.isascii()
    found: dict[str, dict[str, str]] = {}
    for entry in text.split("\n\n"):
        match = re.fullmatch(r"@misc\{([a-z0-9_]+),\n((?:  [A-Za-z]+ = \{.*\},?\n)+)\}\n*", entry)
        assert match, entry
        assert match[1] not in found
        lines = match[2].splitlines()
        assert [line.endswith(",") for line in lines] == [True] * (len(lines) - 1) + [False]
        fields = dict(line.strip().rstrip(",").split(" = ", 1) for line in lines)
        for value in fields.values():
            depths = [value[:end].count("{") - value[:end].count("}") for end in range(1, len(value) + 1)]
            assert depths[-1] == 0
            assert min(depths[:-1]) > 0
        found[match[1]] = {name: value[1:-1] for name, value in fields.items()}
    return found


def test_everything_is_cited_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cite") == 0
    found = entries(capsys.readouterr().out)
    assert found["huang2019interlaced"]["title"] == "Interlaced Sparse Self-Attention for Semantic Segmentation"
    assert found["huang2019interlaced"]["eprint"] == "1907.12273"
    assert found["huang2019interlaced"]["author"].count(" and ") == 5
    assert __version__ in found["isanet"]["note"]
    released = {**load_manifest(), **load_backbones()}
    sources = {"jin2023sssegmentation", "mmseg2020", "liu2021paddleseg", "openseg", "liu2023bpkd", "mmcv2018"}
    assert set(found) == {"huang2019interlaced", "isanet"} | sources | {
        name.replace(".", "_") for name, weights in released.items() if not weights.packaged
    }
    # The paper and the toolboxes that the command knows are those of the manifest
    assert {weights.paper for weights in load_manifest().values()} == {"https://arxiv.org/abs/1907.12273"}
    families = {weights.family for weights in load_manifest().values()}
    assert families - {"isanet"} | {weights.layout for weights in load_backbones().values()} == set(cite.TOOLBOXES)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("isanet_r101_voc", ["huang2019interlaced", "jin2023sssegmentation", "isanet_r101_voc", "isanet"]),
        ("resnet50_v1c", ["huang2019interlaced", "mmcv2018", "resnet50_v1c", "isanet"]),
        ("isanet_r50_voc.mmseg_20k", ["huang2019interlaced", "mmseg2020", "isanet_r50_voc_mmseg_20k", "isanet"]),
        (
            "isanet_r101_cityscapes.openseg",
            ["huang2019interlaced", "openseg", "isanet_r101_cityscapes_openseg", "isanet"],
        ),
        ("isanet_nano_toystreets", ["huang2019interlaced", "isanet"]),
    ],
)
def test_the_source_of_one_model(capsys: pytest.CaptureFixture[str], name: str, keys: list[str]) -> None:
    assert run("cite", name) == 0
    found = entries(capsys.readouterr().out)
    assert list(found) == keys
    released = {**load_manifest(), **load_backbones()}[name]
    if not released.packaged:
        entry = found[name.replace(".", "_")]
        assert entry["howpublished"] == f"\\url{{{(*released.urls, *(page['url'] for page in released.pages))[0]}}}"
        assert released.license in entry["note"].replace("\\", "")


def test_any_license_is_valid_bibtex() -> None:
    weights = load_backbones()["resnet50_v1c"]
    object.__setattr__(weights, "license", "100 % {free} & Stéfan's_\\ }} \x1b 道")
    found = entries(cite._weights(weights))["resnet50_v1c"]["note"]
    assert found.startswith(r"License: 100 \% \textbraceleft{}free\textbraceright{} \& Stefan's\_\textbackslash{} ")
    assert found.endswith(" ? ?")


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cite", "isanet_r50_vok") == 1
    assert "did you mean isanet_r50_voc" in capsys.readouterr().err
