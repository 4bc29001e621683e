"""The commands and snippets of README.md and docs/ run, page by page; links lead somewhere; the table is current."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet.evaluation.report import Report
from isanet.protocols import PROTOCOLS
from isanet.tools.flops import IMAGE_SIZES
from isanet.weights.choosing import CLEARLY_LESS
from isanet.weights.manifest import load_manifest
from tests.helpers import models_page, replicas, tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.videos import make_video, quarters

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
MAX_WORDS = 1100


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in re.findall(r"```(\w+)\n(.*?)```", PAGES[page], re.S) if kind == language]


def commands(page: str) -> list[str]:
    return [line for text in blocks(page, "sh") for line in text.splitlines()]


WITH_COMMANDS = [page for page in PAGES if commands(page)]
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages mention, and torch.hub's cache with a checkout in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "chelsea.jpg", folder / "photo.jpg")
    make_video(folder / "drive.mp4", [quarters()] * 25, rate=10, sound="aac")
    replicas.voc(folder / "VOCdevkit", home="VOC2012", val=2)
    replicas.folder(
        folder / "pets",
        classes=("animal", "rest"),
        count=2,
        write=lambda path, mask: replicas.save(
            path, np.where(mask == 255, 255, 10 * mask.astype(int) + 1).astype("u1")
        ),
    )
    mapping = re.search(r"holds `(\{.*?\})`", PAGES["docs/your-data.md"])
    assert mapping is not None
    (folder / "mapping.json").write_text(mapping[1])
    (folder / "checkpoint.pth").write_bytes(tiny_zoo.saved({"model": tiny_zoo.upstream_state()}))
    checkout = tmp_path / "torch" / "hub" / "org_isanet_v1.0.0"
    checkout.mkdir(parents=True)
    for name in ("hubconf.py", "weights.json"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "isanet", checkout / "isanet", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(folder)
    return folder


# What the commands of a page leave behind, beside exit code 0
OUTPUTS = {
    "README.md": (
        "segmented/photo_overlay.png",
        "evaluated/index.html",
        "runs/pets/model.safetensors",
        "segmented_pets",
    ),
    "docs/quickstart.md": ("all_outputs/photo_labels.png", "all_outputs/photo_areas.json", "converted/config.json"),
    "docs/your-data.md": ("evaluated_pets/index.html",),
    "docs/evaluation.md": ("evaluated/index.html", "evaluated_twice/index.html", "predictions"),
    "docs/training.md": (
        "runs/streets/curves.png",
        "runs/streets/history.csv",
        "segmented_by_streets/photo_overlay.png",
    ),
    "docs/offline.md": ("models.zip",),
    "docs/video.md": ("segmented/drive_overlay.mp4", "labels/drive_labels.mkv", "pngs/drive_labels/000001.png"),
}


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands(r50: FileServer, work: Path, page: str) -> None:
    (work / "bin").mkdir()
    script = work / "bin" / "isanet"
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m isanet.cli "$@"\n'
    )
    script.chmod(0o755)
    torchrun = work / "bin" / "torchrun"
    torchrun.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(ROOT))}\n"
        f'exec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n'
    )
    torchrun.chmod(0o755)
    environment = {**os.environ, "PATH": f"{work / 'bin'}:{os.environ['PATH']}"}
    for command in commands(page):
        if command.startswith("pip "):  # .ci/run runs those
            continue
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    for name in OUTPUTS.get(page, ()):
        assert Path(name).exists(), name
    if page == "docs/your-data.md":
        assert Report.load("evaluated_pets").classes == ("animal", "rest")


def test_the_two_set_up_commands_are_those_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for pattern in re.findall(r"grep -m1 (?:'([^']+)'|\"([^\"]+)\") README\.md", ci):
        assert len([line for line in commands("README.md") if re.search(pattern[0] or pattern[1], line)]) == 1
    assert len([line for line in commands("README.md") if line.startswith("pip ")]) == 2


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_snippets(r50: FileServer, work: Path, page: str) -> None:
    if page == "docs/deployment.md" and torch.__version__ < "2.14":
        pytest.skip("torch.export takes no ShapesSpec yet")
    # One session for each page, top to bottom; in a process of its own, because torch.hub changes what is imported
    prelude = "import torch\nimages = torch.zeros(2, 3, 65, 65)\n"
    code = prelude + "\n".join(blocks(page, "python"))
    assert code.count("torch.hub.load") == (page == "README.md")
    viewer = work / "bin" / "xdg-open"  # what isanet.show opens
    viewer.parent.mkdir()
    viewer.write_text("#!/bin/sh\n")
    viewer.chmod(0o755)
    path = f"{viewer.parent}:{os.environ['PATH']}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "DISPLAY": ":0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    if page == "docs/quickstart.md":
        for name in ("overlay.png", "labels.png", "my_model/model.safetensors"):
            assert Path(name).exists()


@pytest.mark.parametrize(("page", "method"), [("docs/evaluation.md", "forkserver"), ("docs/training.md", "spawn")])
def test_python_snippets_are_scripts_where_processes_are_not_forked(
    r50: FileServer, work: Path, page: str, method: str
) -> None:
    code = "\n".join(blocks(page, "python"))
    assert ("evaluate(" in code) or ("finetune(" in code)  # what starts worker processes
    script = work / "script.py"
    script.write_text(f"import multiprocessing\nmultiprocessing.set_start_method({method!r})\n{code}", "utf-8")
    result = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def test_links_lead_somewhere() -> None:
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", text):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), (page, target)
            if anchor:
                heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor[1:] in slugs, (page, anchor)


def test_the_readme_is_short_and_names_every_page() -> None:
    assert len(README.split()) <= MAX_WORDS
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/security.md":
            # SECURITY.md leads there
            assert f"({page})" in README


def test_versions_agree() -> None:
    version = isanet.__version__.partition(".dev")[0]
    assert f'torch.hub.load("org/isanet:v{version}"' in README
    assert f"[Unreleased] - {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_tables_and_picture_are_those_of_the_manifest() -> None:
    for page, name, made in (
        ("README.md", "models", models_page.overview()),
        ("docs/models.md", "tables", models_page.tables()),
    ):
        assert models_page.with_made(PAGES[page], name, made) == PAGES[page], f"{page} is stale: `make models` mends it"
    with Image.open(models_page.PICTURE) as picture:
        assert picture.info["Description"] == models_page.digest(), "the picture is stale: `make models` mends it"
        assert picture.width >= 2 * 600  # sharp at 600 pixels, legible at 800
        assert np.asarray(picture.convert("RGBA"))[..., 3].min() == 255  # its own background, also on a dark page


def test_a_stale_table_or_picture_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (models_page.overview(), models_page.tables(), models_page.digest())
    document = json.loads((ROOT / "weights.json").read_text(encoding="utf-8"))
    document["weights"]["isanet_r50_voc.paddleseg"]["metrics"]["miou"] = 0.8123
    (tmp_path / "weights.json").write_text(json.dumps(document))
    monkeypatch.setattr("isanet.weights.manifest.manifest_path", lambda: tmp_path / "weights.json")
    after = (models_page.overview(), models_page.tables(), models_page.digest())
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert all("81.23" in text for text in after[:2])
    models_page.draw(tmp_path / "models.png")
    with Image.open(tmp_path / "models.png") as picture:
        assert picture.info["Description"] == after[2]


def test_the_page_of_models_says_what_the_manifest_says() -> None:
    page, manifest = PAGES["docs/models.md"], load_manifest()
    for name, weights in manifest.items():
        assert page.count(f"| `{name}`") == 1, name
        assert f"`{weights.metrics['protocol']}`" in page
    for text, dataset in {"375x500": "voc21", "512x683": "ade20k150", "1024x2048": "cityscapes19"}.items():
        assert text == "{}x{}".format(*IMAGE_SIZES[dataset])
        assert text in page
    whole, windows = (manifest[f"isanet_r101_cityscapes.mmseg_{crop}_80k"].gmacs for crop in ("512x1024", "769x769"))
    assert f"take {windows / whole:.1f} times" in page
    assert f"at most {100 * CLEARLY_LESS:.0f} %" in page
    entry = re.search(r"`(\S+)` is the entry point `(\w+)`", page)
    assert entry is not None
    assert entry[1] in manifest
    assert entry[2] == entry[1].replace(".", "_")


def test_figures_in_the_text_are_those_of_the_code() -> None:
    from isanet.images import reading

    assert f"{reading.MAX_PIXELS:,} pixels" in README
    assert torch.__version__ >= "2.11"


def test_the_protocols_in_the_text_are_those_of_the_code() -> None:
    table = re.search(r"\| `--protocol` \|.*?\n\n", PAGES["docs/evaluation.md"], re.S)
    assert table is not None
    names = re.findall(
        r"`([a-z0-9-]+)`", "\n".join(line.split("|")[1] for line in table[0].splitlines()[2:] if "|" in line)
    )
    assert set(names) == set(PROTOCOLS)
