"""dir(), help() and import * show the public names; every public callable has an example, and every example runs.

An example stands in the docstring, before its sections, and has one to four lines of code. It runs offline in a folder
of its own with the files of `files`, and may use the names in `NAMES`.
"""

from __future__ import annotations

import doctest
import inspect
import io
import os
import pydoc
import re
import shutil
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isanet
from isanet import datasets, labels, metrics, training, viz
from isanet.inference import video
from tests.helpers import exports, replicas, tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer
from tests.helpers.videos import make_video

MODULES = (isanet, datasets, labels, metrics, training, viz)

NANO = "isanet_nano_toystreets"

MAX_LINES = 4


def public_callables() -> dict[str, Any]:
    """Functions, classes and their methods by path, each once; without methods that a base class in isanet has too."""
    names: dict[Any, str] = {}
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                names.setdefault(value, f"{module.__name__}.{name}")
    found = {name: value for value, name in names.items()}
    for value, name in names.items():
        bases = [base for base in getattr(value, "__mro__", ())[1:] if base.__module__.startswith("isanet.")]
        for method in vars(value) if inspect.isclass(value) else ():
            function = getattr(value, method)
            if inspect.isroutine(function) and method[0] != "_" and not any(method in vars(base) for base in bases):
                found[f"{name}.{method}"] = function
    return found


CALLABLES = {
    **public_callables(), "isanet.inference.video.frames": video.frames,
    "isanet.inference.video.write_video": video.write_video,
}  # fmt: skip


@cache
def report() -> isanet.Report:
    return isanet.evaluate(NANO, NAMES["dataset"](), workers=0, progress=False)


@cache
def run() -> isanet.Run:
    parts = NAMES["dataset"]().held_out(0.5)
    return isanet.finetune(NANO, *parts, {"epochs": 1, "batch_size": 2, "crop": (64, 64)}, workers=0, progress=False)


NAMES: dict[str, Callable[[], Any]] = {
    "model": lambda: isanet.from_pretrained(NANO),
    "segmenter": lambda: isanet.Segmenter(NANO, "cpu", precision="float32"),
    "result": lambda: NAMES["segmenter"]()("street.jpg"),
    "dataset": lambda: datasets.ToyStreets(4, size=(64, 128)),
    "images": lambda: torch.zeros(2, 3, 64, 128),
    "masks": lambda: torch.zeros(2, 64, 128, dtype=torch.int64),
    "report": report,
    "run": run,
}
"""What examples may use beside `isanet`, `io`, `np`, `os`, `torch`, and `token`, which is the Hub's."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """street.jpg, drive.mp4, streets (a Folder), the published datasets, and boxes (an export of LabelMe)."""
    folder = tmp_path_factory.mktemp("files")
    for index in range(4):
        image, mask = datasets.ToyStreets(4, size=(64, 128)).pair(index)
        replicas.save(folder / "streets" / "images" / f"{index}.jpg", np.asarray(image))
        replicas.save(folder / "streets" / "masks" / f"{index}.png", np.asarray(mask))
    (folder / "streets" / "classes.txt").write_text("\n".join(labels.label_space("toystreets").classes))
    datasets.ToyStreets(1, size=(128, 256))[0][0].save(folder / "street.jpg")
    make_video(folder / "drive.mp4", [datasets.ToyStreets(1).read(0)[0]] * 30, rate=10)
    replicas.voc(folder)
    replicas.ade20k(folder)
    replicas.cityscapes(folder / "cityscapes")
    replicas.pascal_context(folder, home="VOC2010")
    exports.labelme(folder / "boxes")
    return folder


@pytest.fixture
def work(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a copy of the files."""
    folder = tmp_path / "work"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    return folder


def run_examples(doc: str, name: str, **more: Any) -> list[doctest.Example]:
    """Runs the examples of a docstring, and gives them back."""
    source = "".join(example.source for example in doctest.DocTestParser().get_examples(doc))
    globs = {word: make() for word, make in NAMES.items() if re.search(rf"\b{word}\b", source)}
    globs |= {"isanet": isanet, "io": io, "np": np, "os": os, "torch": torch, **more}
    test = doctest.DocTestParser().get_doctest(doc, globs, name, name, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=said.append).failed == 0, "".join(said)
    return test.examples


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub of its HTTP library
@pytest.mark.parametrize("name", CALLABLES)
def test_every_public_callable_has_an_example_that_runs(
    name: str, work: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    for variable in ("ISANET_HOME", "ISANET_OFFLINE"):  # restored afterwards, whatever the example sets
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
    if name == "isanet.from_backbone":
        server: FileServer = request.getfixturevalue("tiny")
        data = tiny_zoo.saved({"state_dict": tiny_zoo.backbone_state("resnet50")})
        tiny_zoo.publish_backbone(tmp_path / "weights.json", server.files, data, "resnet50")
    if name == "isanet.show":
        monkeypatch.setattr("isanet.inference.showing._has_viewer", lambda: True)
        monkeypatch.setattr("PIL.ImageShow.show", lambda image: True)
    examples = run_examples(inspect.getdoc(CALLABLES[name]) or "", name, token=hub.token)
    assert examples, f"{name} has no example: add one of 1 to {MAX_LINES} lines to its docstring, see {__file__}"
    assert sum(len(example.source.splitlines()) for example in examples) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_dir_and_import_all_give_the_public_names_alone(module: types.ModuleType) -> None:
    assert dir(module) == sorted(module.__all__)
    names: dict[str, object] = {}
    exec(f"from {module.__name__} import *", names)
    assert names.keys() - {"__builtins__"} == set(module.__all__)


def test_help_opens_with_a_tour_of_ten_lines(work: Path) -> None:
    text = pydoc.plain(pydoc.render_doc(isanet))
    tour = text.partition("DESCRIPTION\n")[2]
    lines = [line.strip() for line in tour.splitlines()[:14] if line.strip().startswith((">>>", "..."))]
    assert len(lines) == 10
    assert len(run_examples(isanet.__doc__ or "", "isanet")) >= 8


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            NAMES["segmenter"],
            r"Segmenter\(isanet_nano_toystreets: 11 classes: road, sidewalk, building, …; cpu, float32, openvino\)",
        ),
        (NAMES["result"], r"Segmentation\(256x128: road 0\.\d\d, .*, …\)"),
        (NAMES["report"], r"Report\(isanet_nano_toystreets on ToyStreets train: mIoU \d\d\.\d\d %, 4 images\)"),
        (NAMES["run"], r"Run\(finetuned: 1 step, best mIoU \d+\.\d\d %\)"),
        (NAMES["dataset"], r"ToyStreets\(train, 4 images, 11 classes: road, sidewalk, building, …\)"),
        (lambda: metrics.ConfusionMatrix(2), r"ConfusionMatrix\(2 classes, 0 pixels, mIoU - %\)"),
        (lambda: metrics.BoundaryScore(1), r"BoundaryScore\(1 class, mean - %\)"),
    ],
)
def test_objects_say_in_one_line_what_they_are(make: Callable[[], Any], text: str, work: Path) -> None:
    assert re.fullmatch(text, repr(make()))
