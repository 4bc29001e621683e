from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from isanet import datasets
from isanet.errors import OutputError
from isanet.labels import LABEL_SPACES, custom_space
from tests.helpers import replicas
from tests.helpers.color_model import ColorModel
from tests.helpers.evaluating import InterruptedCityscapes, confusion_by_pixel, quick_evaluate

pytestmark = pytest.mark.usefixtures("no_charts")


def test_counts_of_another_run_are_not_mixed_in(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at = 3
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quick_evaluate(model, dataset, output=output)
    dataset.at = -1
    (state,) = output.glob("progress-*.json")
    kept = state.read_bytes()
    with torch.no_grad():
        model.bias[0] += 1e-6
    with pytest.raises(OutputError, match=r"another run.*--force"):
        quick_evaluate(model, dataset, output=output)
    with torch.no_grad():
        model.bias.copy_(ColorModel(LABEL_SPACES["cityscapes19"]).bias)
    for changed in ({"limit": 2}, {"protocol": "multiscale-flip"}, {"mapping": {"sky": None}}, {"boundary": True}):
        with pytest.raises(OutputError, match=r"another run.*--force"):
            quick_evaluate(model, dataset, output=output, **changed)
    assert state.read_bytes() == kept
    assert quick_evaluate(model, dataset, output=output, overwrite=True, limit=2).num_images == 2


def test_counts_of_masks_read_differently_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sky", "land", "water", "house")
    for home in ("x", "y"):
        replicas.folder(tmp_path / home / "data", classes=names, count=4, seed=ord(home))
    model: Any = ColorModel(custom_space(names))
    root, output = tmp_path / "x" / "data", tmp_path / "out"
    shutil.copytree(root / "masks", root / "masks2")

    def interrupted(dataset: Any) -> None:
        read, calls = dataset.read, []

        def failing(index: int) -> Any:
            calls.append(index)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return read(index)

        dataset.read = failing
        with pytest.raises(KeyboardInterrupt):
            quick_evaluate(model, dataset, output=output, overwrite=True)

    interrupted(datasets.Folder(root, ids=[1, 0, 3, 2]))
    for dataset in (datasets.Folder(root), datasets.Folder(root, ids=[1, 0, 3, 2], masks="masks2")):
        with pytest.raises(OutputError, match="another run"):
            quick_evaluate(model, dataset, output=output)
    interrupted(datasets.Folder(root))
    mask = root / "masks" / f"{datasets.Folder(root).keys[-1]}.png"
    os.utime(mask, (1, 1))
    with pytest.raises(OutputError, match="another run"):
        quick_evaluate(model, datasets.Folder(root), output=output)
    monkeypatch.chdir(tmp_path / "x")
    interrupted(datasets.Folder("data"))
    assert quick_evaluate(model, datasets.Folder(root), output=output).num_images == 4  # the same files
    interrupted(datasets.Folder("data"))
    monkeypatch.chdir(tmp_path / "y")
    with pytest.raises(OutputError, match="another run"):
        quick_evaluate(model, datasets.Folder("data"), output=output)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"run": 1}', b"\xff"])
def test_a_damaged_progress_file_is_reported(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, damage: bytes
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "progress-0.json").write_bytes(damage)
    with pytest.raises(OutputError, match=r"progress-0.json cannot be read|another run"):
        quick_evaluate(model, cityscapes, output=output)
    assert quick_evaluate(model, cityscapes, output=output, overwrite=True).num_images == len(cityscapes)


def test_a_finished_report_is_kept(model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path) -> None:
    output = tmp_path / "out"
    quick_evaluate(model, cityscapes, output=output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {"report.json", "index.html", "confusion.png", "classes.png"} <= {path.name for path in before}
    with pytest.raises(OutputError, match=r"report\.json exists and was kept"):
        quick_evaluate(model, cityscapes, output=output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert quick_evaluate(model, cityscapes, output=output, overwrite=True, limit=1).num_images == 1


def test_an_unwritable_folder_is_reported_before_the_first_image(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out"):
        quick_evaluate(model, cityscapes, output=tmp_path / "out")
    assert model.seen == 0


def test_counts_already_gathered_are_not_added_twice(
    tmp_path: Path, model: Any, cityscapes: datasets.SegmentationDataset
) -> None:
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at = 4
    with pytest.raises(KeyboardInterrupt):
        quick_evaluate(model, dataset, output=tmp_path / "out")
    state = json.loads((tmp_path / "out" / "progress-0.json").read_text())
    part = {**state, "images": state["images"][:1], "confusion": confusion_by_pixel(model, cityscapes, [0]).tolist()}
    (tmp_path / "out" / "progress-1.json").write_text(json.dumps(part))
    report = quick_evaluate(model, cityscapes, output=tmp_path / "out")
    assert torch.equal(report.confusion, quick_evaluate(model, cityscapes).confusion)
