from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from isanet import datasets
from isanet.errors import DatasetError, OutputError
from isanet.evaluation import run as run_module
from isanet.evaluation.counting import Counts, Progress
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.evaluation.report import Report
from isanet.inference.predict import Prepared
from tests.helpers.evaluating import InterruptedCityscapes, confusion_by_pixel, quick_evaluate

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.mark.parametrize("sizes", [[(3, 4), (4, 3), (3, 4), (3, 4), (5, 5), (4, 3)], [(i, 9) for i in range(1, 20)]])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_have_equal_sizes_and_every_image_once(sizes: list[tuple[int, int]], batch_size: int) -> None:
    def loader() -> Any:
        for index, size in enumerate(sizes):
            waiting.append(index)
            prepared = Prepared(size, (torch.zeros(3, *size),), ())
            yield run_module.PreparedImage(index, str(index), prepared, torch.zeros(size))

    waiting: list[int] = []
    seen: list[int] = []
    for batch in run_module._batches(loader(), batch_size):
        assert 1 <= len(batch) <= batch_size
        assert len({image.ground_truth.shape for image in batch}) == 1
        assert len(waiting) - len(seen) <= 2 * batch_size
        seen += [image.index for image in batch]
    assert sorted(seen) == list(range(len(sizes)))


def test_images_of_one_size_go_through_the_network_together(
    model: Any, cityscapes: datasets.SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    original = model.coarse_logits
    monkeypatch.setattr(model, "coarse_logits", lambda images: batches.append(len(images)) or original(images))
    quick_evaluate(model, cityscapes, batch_size=4)  # seven images, of fewer sizes
    assert max(batches) > 1
    assert sum(batches) == len(cityscapes)


def test_padded_images_are_measured_in_batches_by_workers(
    model: Any, cityscapes: datasets.SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    padding = {"pad_to": [60, 90], "pad_color": [0, 0, 0]}  # some of the images are larger
    monkeypatch.setattr(model, "preprocessing", {"mean": (127.5,) * 3, "std": (127.5,) * 3, **padding})
    expected = confusion_by_pixel(model, cityscapes)
    assert np.diag(expected).sum() > 0.5 * expected.sum()
    for options in ({}, {"batch_size": 4, "workers": 2}):
        assert np.array_equal(quick_evaluate(model, cityscapes, **options).confusion.numpy(), expected)


def test_the_bar_shows_the_running_miou_and_only_if_asked_for(
    model: Any, cityscapes: datasets.SegmentationDataset, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(run_module.time, "monotonic", lambda: float(next(ticks)))  # a second between any two calls
    report = quick_evaluate(model, cityscapes, progress=True)
    error = capsys.readouterr().err
    assert f"{len(cityscapes)}/{len(cityscapes)}" in error
    assert f"mIoU {100 * report.miou:.2f}" in error
    quick_evaluate(model, cityscapes, progress=None)  # standard error is no terminal here
    quick_evaluate(model, cityscapes, progress=False)
    assert capsys.readouterr().err == ""


def test_float32_is_exact_on_cuda() -> None:
    """Without a CUDA device, only the settings can be checked."""
    convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolution.fp32_precision
    for device, precision, inside in (
        ("cuda", "float32", "ieee"),
        ("cuda", "bfloat16", before),
        ("cpu", "float32", before),
    ):
        segmenter: Any = SimpleNamespace(device=torch.device(device), precision=precision)
        with run_module.exact_float32(segmenter):
            assert convolution.fp32_precision == inside
        assert convolution.fp32_precision == before


# --- resuming


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DatasetError("the mask x is damaged"), RuntimeError("boom")])
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("boundary", [False, True])
def test_an_interrupted_run_resumes(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, error: BaseException, at: int, boundary: bool
) -> None:
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at, dataset.error = at, error
    expected = quick_evaluate(model, cityscapes, boundary=boundary)
    output = tmp_path / "out"
    with pytest.raises(type(error)):
        quick_evaluate(model, dataset, output=output, boundary=boundary)
    assert not (output / "report.json").exists()
    (state,) = output.glob("progress-*.json")
    assert len(json.loads(state.read_text())["images"]) == at - 1
    dataset.at, dataset.reads = -1, []
    report = quick_evaluate(model, dataset, output=output, boundary=boundary)
    assert sorted(dataset.reads[: len(cityscapes) - at + 1]) == list(range(at - 1, len(cityscapes)))
    assert torch.equal(report.confusion, expected.confusion)
    assert report.worst == expected.worst
    assert report.ignored_pixels == expected.ignored_pixels
    assert report.boundary == pytest.approx(expected.boundary, nan_ok=True)
    assert list(output.glob("progress-*.json")) == []
    assert Report.load(output).miou == report.miou


def test_an_interrupted_overwrite_resumes_without_force(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    quick_evaluate(model, cityscapes, output=output)
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at = 3
    with pytest.raises(KeyboardInterrupt):
        quick_evaluate(model, dataset, output=output, overwrite=True)
    assert not (output / "report.json").exists()
    dataset.at, dataset.reads = -1, []
    quick_evaluate(model, dataset, output=output)
    assert dataset.reads[: len(cityscapes) - 2] == list(range(2, len(cityscapes)))


def interrupted(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> tuple[InterruptedCityscapes, dict[str, Any]]:
    """A dataset whose evaluation, with label maps, was interrupted at its fourth image, and the folders of the call."""
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at = 4
    call: dict[str, Any] = {"output": tmp_path / "out", "predictions": tmp_path / "maps"}
    with pytest.raises(KeyboardInterrupt):
        quick_evaluate(model, dataset, **call)
    dataset.at = -1
    return dataset, call


def test_a_resumed_run_writes_all_label_maps(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    dataset, call = interrupted(model, cityscapes, tmp_path)
    for changed in ({"predictions": None}, {"predictions": tmp_path / "other"}):
        with pytest.raises(OutputError, match="another run"):
            quick_evaluate(model, dataset, **{**call, **changed})
    quick_evaluate(model, dataset, **call)
    assert sorted(path.stem for path in (tmp_path / "maps").iterdir()) == sorted(dataset.keys)


def test_a_run_killed_before_anything_was_saved_resumes(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {"output": tmp_path / "out", "predictions": tmp_path / "maps"}
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at = 3
    with monkeypatch.context() as patch:
        # As if killed: nothing is saved
        patch.setattr(Counts, "partial", property(lambda self: bool(self.images), lambda self, value: None))
        with pytest.raises(KeyboardInterrupt):
            quick_evaluate(model, dataset, **call)
    dataset.at = -1
    report = quick_evaluate(model, dataset, **call)
    assert torch.equal(report.confusion, quick_evaluate(model, cityscapes).confusion)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DatasetError("the mask x is damaged")])
def test_a_full_disk_does_not_hide_the_error(
    model: Any,
    cityscapes: datasets.SegmentationDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    dataset = InterruptedCityscapes(cityscapes.root, "val")
    dataset.at, dataset.error = 4, error

    def full(progress: Progress, counts: Counts) -> None:
        if counts.images:
            raise OutputError("cannot write progress-0.json: No space left on device")

    monkeypatch.setattr(Progress, "save", full)
    with pytest.raises(type(error)):
        quick_evaluate(model, dataset, output=tmp_path / "out")
    assert "No space left" in caplog.text


def test_an_image_interrupted_by_ctrl_c_is_counted_once(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = quick_evaluate(model, cityscapes)
    monkeypatch.setattr(run_module, "SAVE_EVERY", 0.0)
    merge, calls = ConfusionMatrix.merge, []

    def interrupted(self: ConfusionMatrix, other: ConfusionMatrix) -> None:
        merge(self, other)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ConfusionMatrix, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick_evaluate(model, cityscapes, output=tmp_path / "out")
    report = quick_evaluate(model, cityscapes, output=tmp_path / "out")
    assert torch.equal(report.confusion, expected.confusion)


# --- several processes


SCRIPT = """
import json, os, sys, time
import torch
from isanet import datasets
from isanet.errors import DatasetError
from isanet.evaluation import run
from isanet.evaluation.evaluate import evaluate
from isanet.labels import LABEL_SPACES
from tests.helpers.color_model import ColorModel

root, output, log, behavior = sys.argv[1:]
run.SAVE_EVERY = 0.0
rank = int(os.environ.get("RANK", "0"))

class Watched(datasets.Cityscapes):
    def read(self, index):
        self.reads = getattr(self, "reads", 0) + 1
        if behavior == "stuck" and self.reads == 3:
            time.sleep(600)
        if behavior == "fails" and rank == 1:
            raise DatasetError("made to fail")
        with open(f"{log}-{rank}", "a") as file:
            print(index, file=file)
        return super().read(index)

if "WORLD_SIZE" in os.environ:
    world_size = int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", "file://" + os.environ["MEET"], rank=rank, world_size=world_size)
torch.set_num_threads(1)
report = evaluate(
    ColorModel(LABEL_SPACES["cityscapes19"]),
    Watched(root, "val"), output=output, workers=0, device="cpu", boundary=True, progress=True, allow_absent=True,
)
with open(f"{log}-answer-{rank}", "w") as file:
    json.dump({"confusion": report.confusion.tolist(), "rank": rank}, file)
if "WORLD_SIZE" in os.environ:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture
def start(tmp_path: Path, cityscapes: datasets.SegmentationDataset) -> Callable[..., list[subprocess.Popen[str]]]:
    """Starts the script: `start(processes, behavior)`. Without torchrun, which would take as long as the script."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def launch(processes: int, behavior: str = "normal") -> list[subprocess.Popen[str]]:
        arguments = [str(cityscapes.root), str(tmp_path / "out"), str(tmp_path / "reads"), behavior]
        group = {"WORLD_SIZE": str(processes), "MEET": str(tmp_path / f"meet-{behavior}")} if processes > 1 else {}
        return [
            subprocess.Popen(
                [sys.executable, str(tmp_path / "script.py"), *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": str(rank), **group},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]

    return launch


def errors(started: list[subprocess.Popen[str]]) -> list[str]:
    """What each process printed to standard error, once all have ended."""
    return [process.communicate(timeout=120)[1] for process in started]


def answers(started: list[subprocess.Popen[str]], tmp_path: Path) -> list[dict[str, Any]]:
    text = "".join(errors(started))
    assert [process.returncode for process in started] == [0] * len(started), text
    (tmp_path / "stderr.txt").write_text(text)
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("reads-answer-*"))]


def reads(tmp_path: Path) -> list[list[int]]:
    """Which images each process has read, in order; the first reads the worst ones again for the page."""
    return [[int(line) for line in path.read_text().split()] for path in sorted(tmp_path.glob("reads-[0-9]"))]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(
    start: Callable[..., Any], tmp_path: Path, model: Any, cityscapes: datasets.SegmentationDataset, processes: int
) -> None:
    assert len(cityscapes) % processes  # the shares are uneven
    expected = quick_evaluate(model, cityscapes, output=tmp_path / "alone", boundary=True)
    results = answers(start(processes), tmp_path)
    assert [result["rank"] for result in results] == list(range(processes))
    for result in results:
        assert result["confusion"] == expected.confusion.tolist()
    shares = reads(tmp_path)
    shares[0] = shares[0][: -len(expected.worst)]
    assert sorted(chain(*shares)) == list(range(len(cityscapes)))  # none twice, none dropped
    bars = set(re.findall(r" (\d+/\d+) \[", (tmp_path / "stderr.txt").read_text()))
    assert bars <= {f"{done}/{len(shares[0])}" for done in range(len(shares[0]) + 1)}  # the first alone has one
    assert len(bars) > 1
    theirs, ours = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "alone"))
    assert theirs.keys() == ours.keys()
    del ours["seconds"]
    for key in ("boundary", "mean_boundary"):  # floating-point sums, whose last bits depend on the order
        ours[key] = pytest.approx(ours[key], rel=1e-12)
    for key, value in ours.items():
        assert theirs[key] == value


def test_if_one_process_fails_all_do(start: Callable[..., Any], tmp_path: Path) -> None:
    started = start(2, "fails")
    assert all("made to fail" in text for text in errors(started))
    assert all(process.returncode != 0 for process in started)
    assert not (tmp_path / "out" / "report.json").exists()
    assert (tmp_path / "out" / "progress-0.json").exists()  # what the other counted is kept


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 2)])
def test_a_killed_run_resumes_with_any_number_of_processes(
    start: Callable[..., Any],
    tmp_path: Path,
    model: Any,
    cityscapes: datasets.SegmentationDataset,
    before: int,
    after: int,
) -> None:
    expected = quick_evaluate(model, cityscapes)
    started = start(before, "stuck")
    deadline = time.monotonic() + 300
    while _counted(tmp_path).count(0) or len(_counted(tmp_path)) < before:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.02)
    for process in started:
        process.kill()
    errors(started)
    assert not (tmp_path / "out" / "report.json").exists()
    counted = {
        row[0] for path in (tmp_path / "out").glob("progress-*.json") for row in json.loads(path.read_text())["images"]
    }
    assert 0 < len(counted) < len(cityscapes)
    for path in tmp_path.glob("reads-*"):
        path.unlink()
    for result in answers(start(after), tmp_path):
        assert result["confusion"] == expected.confusion.tolist()
    shares = reads(tmp_path)
    shares[0] = shares[0][: -len(expected.worst)]
    assert sorted([*counted, *chain(*shares)]) == list(range(len(cityscapes)))  # what was counted is not read again
    assert list((tmp_path / "out").glob("progress-*.json")) == []


def _counted(tmp_path: Path) -> list[int]:
    """How many images each process has counted."""
    return [len(json.loads(path.read_text())["images"]) for path in (tmp_path / "out").glob("progress-*.json")]


def test_a_resumed_run_replaces_only_what_it_wrote(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    dataset, call = interrupted(model, cityscapes, tmp_path)
    other = tmp_path / "maps" / f"{dataset.keys[5]}.png"
    other.write_bytes(b"somebody else's")
    for _ in range(2):
        with pytest.raises(OutputError, match="is not what this evaluation writes"):
            quick_evaluate(model, dataset, **call)
        assert other.read_bytes() == b"somebody else's"
    other.unlink()
    report = quick_evaluate(model, dataset, **call)
    assert torch.equal(report.confusion, quick_evaluate(model, cityscapes).confusion)


def test_images_of_somebody_elses_are_neither_replaced_nor_removed(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    other = tmp_path / "out" / "worst" / "01_holiday_image.jpg"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody else's")
    for _ in range(2):
        with pytest.raises(OutputError, match="worst exists and was kept"):
            quick_evaluate(model, cityscapes, output=tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [other]


@pytest.mark.parametrize(
    "change", ["pipe", "folder", "large", "nested", "infinite", "negative", "unknown image", "list"]
)
def test_counts_that_are_no_counts_are_kept_and_named(
    model: Any,
    cityscapes: datasets.SegmentationDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    dataset, output = InterruptedCityscapes(cityscapes.root, "val"), tmp_path / "out"
    dataset.at = 3
    with pytest.raises(KeyboardInterrupt):
        quick_evaluate(model, dataset, output=output)
    dataset.at = -1
    path = output / "progress-0.json"
    document = json.loads(path.read_text())
    if change == "unknown image":
        document["images"][0][0] = 10**9
    elif change == "negative":
        document["confusion"][0][0] = -1
    elif change == "infinite":
        document["images"][0][0] = float("inf")
    path.write_text({"nested": "[" * 100_000, "list": "[1]"}.get(change) or json.dumps(document))
    if change == "large":
        monkeypatch.setattr("isanet.evaluation.counting.MAX_PROGRESS_BYTES", 100)
    elif change in ("pipe", "folder"):
        path.unlink()
        (os.mkfifo if change == "pipe" else os.mkdir)(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OutputError, match=r"progress-0.json cannot be read .* and was kept"):
        quick_evaluate(model, dataset, output=output)
    assert (path.read_bytes() if path.is_file() else None) == before
