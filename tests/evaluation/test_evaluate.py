from __future__ import annotations

import json
import os
import re
import shutil
import signal
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
from PIL import Image

import isanet
from isanet import datasets
from isanet.errors import CacheError, DatasetError, ImageError, IsanetError
from isanet.evaluation import evaluate as evaluation
from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.counting import Count, Store
from isanet.evaluation.evaluate import evaluate, match_classes
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.evaluation.report import Report
from isanet.inference.segmenter import Segmenter
from isanet.labels import LABEL_SPACES, custom_space, label_space
from isanet.protocols import Protocol
from tests.helpers import replicas, tiny_zoo
from tests.helpers.color_model import ColorModel
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]
KINDS = {"voc": "voc21", "ade20k": "ade20k150", "cityscapes": "cityscapes19"}


def run(model: Any, dataset: datasets.SegmentationDataset, **options: Any) -> Report:
    return evaluate(model, dataset, **{"workers": 0, "device": "cpu", "progress": False, **options})


@pytest.fixture
def cityscapes(tmp_path: Path) -> datasets.SegmentationDataset:
    replicas.cityscapes(tmp_path / "data", val=7)
    return datasets.Cityscapes(tmp_path / "data", "val")


@pytest.fixture
def model() -> Any:
    return ColorModel(LABEL_SPACES["cityscapes19"])


def the_plain_way(model: Any, dataset: datasets.SegmentationDataset, places: list[int] | None = None) -> np.ndarray:
    """One image after the other, one pixel after the other."""
    segmenter = Segmenter(model, device="cpu")
    confusion = np.zeros((len(dataset.classes),) * 2, np.int64)
    for place in range(len(dataset)) if places is None else places:
        image, mask = dataset[place]
        labels = segmenter(image).labels
        truth = np.asarray(mask)
        counts = truth != 255
        np.add.at(confusion, (truth[counts], labels[counts]), 1)
    return confusion


# --- one process


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (2, 1), (0, 3)])
def test_it_counts_what_the_plain_way_counts(tmp_path: Path, kind: str, workers: int, batch_size: int) -> None:
    getattr(replicas, kind)(tmp_path)
    dataset = datasets.open_dataset(tmp_path)
    model: Any = ColorModel(LABEL_SPACES[KINDS[kind]])
    report = run(model, dataset, workers=workers, batch_size=batch_size)
    expected = the_plain_way(model, dataset)
    np.testing.assert_array_equal(report.confusion.numpy(), expected)
    assert report.confusion.dtype == torch.int64
    both, union = expected.diagonal(), expected.sum(0) + expected.sum(1) - expected.diagonal()
    there = union > 0
    assert report.miou == pytest.approx((both[there] / union[there]).mean(), abs=1e-12)
    assert 0.01 < report.miou < 1  # the model errs at edges, so that a wrong count would show
    assert list(report.iou) == list(dataset.classes)
    assert (report.samples, report.total) == (len(dataset), len(dataset))
    assert (report.dataset, report.split) == (dataset.name, "val")
    assert report.ignored == sum(int((np.asarray(mask) == 255).sum()) for _, mask in dataset) > 0


def test_the_worst_images_are_those_of_lowest_miou(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    report = run(model, cityscapes)
    scores = []
    for place, key in enumerate(cityscapes.keys):
        matrix = ConfusionMatrix(19)
        matrix.matrix += torch.from_numpy(the_plain_way(model, cityscapes, [place]))
        scores.append((matrix.miou(), key))
    assert [(sample.miou, sample.key) for sample in report.worst] == sorted(scores)[: evaluation.NUM_WORST]


def test_limit_spreads_over_the_dataset(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    report = run(model, cityscapes, limit=2)
    places = [0, len(cityscapes) // 2]
    np.testing.assert_array_equal(report.confusion.numpy(), the_plain_way(model, cityscapes, places))
    assert (report.samples, report.total) == (2, len(cityscapes))
    assert run(model, cityscapes, limit=10**6).samples == len(cityscapes)


@pytest.mark.parametrize("sizes", [[(3, 4), (4, 3), (3, 4), (3, 4), (5, 5), (4, 3)], [(i, 9) for i in range(1, 20)]])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_have_equal_sizes_and_hold_every_sample_once(sizes: list[tuple[int, int]], batch_size: int) -> None:
    def loader() -> Any:
        for place, size in enumerate(sizes):
            waiting.append(place)
            yield evaluation._Sample(place, (torch.zeros(3, *size),), torch.zeros(size))

    waiting: list[int] = []
    seen: list[int] = []
    for batch in evaluation._batches(loader(), batch_size):
        assert 1 <= len(batch) <= batch_size
        assert len({sample.truth.shape for sample in batch}) == 1
        assert len(waiting) - len(seen) <= 2 * batch_size
        seen += [sample.place for sample in batch]
    assert sorted(seen) == list(range(len(sizes)))


def test_images_of_one_size_go_through_the_network_together(
    model: Any, cityscapes: datasets.SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    original = model.coarse_logits
    monkeypatch.setattr(model, "coarse_logits", lambda images: batches.append(len(images)) or original(images))
    run(model, cityscapes, batch_size=4)  # seven images, of fewer sizes
    assert max(batches) > 1
    assert sum(batches) == len(cityscapes)


def test_the_bar_shows_the_running_miou_and_only_when_wanted(
    model: Any, cityscapes: datasets.SegmentationDataset, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(evaluation.time, "monotonic", lambda: float(next(ticks)))  # a second between any two looks
    report = run(model, cityscapes, progress=True)
    error = capsys.readouterr().err
    assert f"{len(cityscapes)}/{len(cityscapes)}" in error
    assert f"mIoU {100 * report.miou:.2f}" in error
    run(model, cityscapes, progress=None)  # standard error is no terminal here
    run(model, cityscapes, progress=False)
    assert capsys.readouterr().err == ""


def test_boundary_score(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    report = run(model, cityscapes, boundary=True)
    score = BoundaryScore(19)
    for image, mask in cityscapes:
        score.update(Segmenter(model, device="cpu")(image).labels, np.asarray(mask))
    assert report.boundary is not None
    assert list(report.boundary) == list(cityscapes.classes)
    np.testing.assert_array_equal(list(report.boundary.values()), score.per_class().numpy())
    assert run(model, cityscapes).boundary is None


def test_a_protocol_is_applied(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    protocol = Protocol("mine", scales=(0.5, 1.0), flip=True)
    report = run(model, cityscapes, protocol=protocol)
    segmenter = Segmenter(model, device="cpu", protocol=protocol)
    matrix = ConfusionMatrix(19)
    for image, mask in cityscapes:
        matrix.update(segmenter(image).labels, np.asarray(mask))
    assert torch.equal(report.confusion, matrix.matrix)
    assert not torch.equal(report.confusion, run(model, cityscapes).confusion)
    assert (report.protocol, report.protocol_text) == ("mine", protocol.text)


# --- label spaces


def test_another_label_space_is_an_error_that_names_both(cityscapes: datasets.SegmentationDataset) -> None:
    model: Any = ColorModel(LABEL_SPACES["voc21"])
    with pytest.raises(ValueError, match=r"voc21 \(21 classes.*cityscapes19 \(19 classes.*mapping"):
        run(model, cityscapes)
    assert model.seen == 0


def test_equal_numbers_of_other_classes_are_no_match(cityscapes: datasets.SegmentationDataset) -> None:
    space = LABEL_SPACES["cityscapes19"]
    other: Any = ColorModel(custom_space(space.classes[::-1], space.palette[::-1]))
    with pytest.raises(ValueError, match="custom"):
        run(other, cityscapes)
    numbered: Any = ColorModel(custom_space([f"class {i}" for i in range(19)], space.palette))
    with pytest.raises(ValueError, match=r"no names.*classes="):
        run(numbered, cityscapes)
    straight = run(ColorModel(space), cityscapes)
    assert torch.equal(run(other, cityscapes, mapping={}).confusion, straight.confusion)  # by name


def test_merged_classes_are_one_on_both_sides(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    plain = run(model, cityscapes).confusion.numpy()
    names = cityscapes.classes
    report = run(model, cityscapes, mapping={"flat": ["road", "sidewalk"], "sky": None})
    assert report.classes[0] == "flat"
    assert "road" not in report.classes
    assert "sky" not in report.classes
    assert len(report.classes) == 17
    flat = [names.index("road"), names.index("sidewalk")]
    # The sky cannot be predicted any more, so other columns may grow; what was flat for flat stays
    assert report.confusion[0, 0] >= plain[np.ix_(flat, flat)].sum()
    assert report.confusion.sum() == plain.sum() - plain[names.index("sky")].sum()
    assert any("sky" in note for note in report.notes)


def test_a_model_of_more_classes_measures_a_folder_of_fewer(tmp_path: Path, model: Any) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    space = LABEL_SPACES["cityscapes19"]
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 20:40], truth[:, 40:] = 1, 2
    names = {"ground": "road", "vehicle": "bus", "sky": "sky"}
    colors = np.array([space.palette[space.classes.index(name)] for name in names.values()], np.uint8)
    Image.fromarray(colors[truth]).save(tmp_path / "images" / "a.png")
    Image.fromarray(truth).save(tmp_path / "masks" / "a.png")
    dataset = datasets.Folder(tmp_path, classes=list(names))
    groups = {"ground": ["road", "sidewalk"], "vehicle": ["car", "bus", "truck"]}
    report = run(model, dataset, mapping=groups)
    assert report.classes == ("ground", "vehicle", "sky")
    assert report.miou > 0.8
    assert report.confusion.sum() == truth.size
    keep = match_classes(model, dataset.label_space, groups).keep
    assert keep is not None
    assert {space.classes[index] for index in keep} == {"road", "sidewalk", "car", "bus", "truck", "sky"}


def test_more_classes_than_a_byte_can_tell_apart(tmp_path: Path) -> None:
    """255 is the value of ignored pixels in a mask, and an ordinary class of a model."""
    names = [f"c{index:03}" for index in range(300)]
    space = custom_space(["c000", "c255", "c256"], [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    colors = [(90, 90, 90)] * 300
    for name, color in zip(space.classes, space.palette, strict=True):
        colors[names.index(name)] = color
    replicas.folder(tmp_path / "data", classes=space.classes, count=2)
    dataset = datasets.Folder(tmp_path / "data")
    for place in range(2):
        mask = np.asarray(Image.open(dataset.mask_path(place)))  # type: ignore[arg-type]
        Image.fromarray(replicas.paint(mask, space)).save(dataset.image_path(place))
    report = run(ColorModel(custom_space(names, colors)), dataset, mapping={})
    assert min(report.iou.values()) > 0.3
    assert "297 of the model's classes" in report.notes[0]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"vehicle": ["car", "buss"]}, "no class 'buss'.*did you mean 'bus'"),
        ({"a": ["car"], "b": ["car"]}, "'car' is in two groups"),
        ({"road": ["car"]}, "'road' is a class already"),
        ({"vehicle": "car"}, "list of names"),
        (dict.fromkeys(LABEL_SPACES["cityscapes19"].classes), "all classes"),
    ],
)
def test_a_mapping_that_makes_no_sense(
    model: Any, cityscapes: datasets.SegmentationDataset, mapping: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, cityscapes, mapping=mapping)


def test_a_class_that_the_model_has_not_must_be_ignored_on_purpose(tmp_path: Path) -> None:
    replicas.ade20k(tmp_path)
    dataset = datasets.ADE20K(tmp_path)
    model: Any = ColorModel(LABEL_SPACES["cityscapes19"])
    with pytest.raises(ValueError, match=r"dataset's classes are none of the model's.*None to ignore"):
        run(model, dataset, mapping={})
    rest = [name for name in dataset.classes if name not in model.classes]
    assert set(run(model, dataset, mapping=dict.fromkeys(rest)).classes) <= set(model.classes)


# --- going on


class Stopping(datasets.Cityscapes):
    """Counts its reads, and fails at one of them."""

    at = -1
    error: BaseException = KeyboardInterrupt()

    def read(self, index: Any) -> Any:
        self.reads = [*getattr(self, "reads", []), index]
        if len(self.reads) == self.at:
            raise self.error
        return super().read(index)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DatasetError("the mask x is damaged"), RuntimeError("boom")])
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("boundary", [False, True])
def test_an_interrupted_run_goes_on(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, error: BaseException, at: int, boundary: bool
) -> None:
    dataset = Stopping(cityscapes.root, "val")
    dataset.at, dataset.error = at, error
    expected = run(model, cityscapes, boundary=boundary)
    output = tmp_path / "out"
    with pytest.raises(type(error)):
        run(model, dataset, output=output, boundary=boundary)
    assert not (output / "report.json").exists()
    (state,) = output.glob("progress-*.json")
    assert len(json.loads(state.read_text())["rows"]) == at - 1
    dataset.at, dataset.reads = -1, []
    report = run(model, dataset, output=output, boundary=boundary)
    assert sorted(dataset.reads[: len(cityscapes) - at + 1]) == list(range(at - 1, len(cityscapes)))
    assert torch.equal(report.confusion, expected.confusion)
    assert report.worst == expected.worst
    assert report.ignored == expected.ignored
    assert report.boundary == pytest.approx(expected.boundary, nan_ok=True)
    assert list(output.glob("progress-*.json")) == []
    assert Report.load(output).miou == report.miou


def test_what_another_run_counted_is_not_mixed_in(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    dataset = Stopping(cityscapes.root, "val")
    dataset.at = 3
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(model, dataset, output=output)
    dataset.at = -1
    (state,) = output.glob("progress-*.json")
    kept = state.read_bytes()
    with torch.no_grad():
        model.bias[0] += 1e-6
    with pytest.raises(ValueError, match=r"another run.*--force"):
        run(model, dataset, output=output)
    with torch.no_grad():
        model.bias.copy_(ColorModel(LABEL_SPACES["cityscapes19"]).bias)
    for changed in ({"limit": 2}, {"protocol": "multiscale-flip"}, {"mapping": {"sky": None}}, {"boundary": True}):
        with pytest.raises(ValueError, match=r"another run.*--force"):
            run(model, dataset, output=output, **changed)
    assert state.read_bytes() == kept
    assert run(model, dataset, output=output, overwrite=True, limit=2).samples == 2


def test_masks_that_are_read_otherwise_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sky", "land", "water", "house")
    for home in ("x", "y"):
        replicas.folder(tmp_path / home / "data", classes=names, count=4, seed=ord(home))
    model: Any = ColorModel(custom_space(names))
    root, output = tmp_path / "x" / "data", tmp_path / "out"
    shutil.copytree(root / "masks", root / "masks2")

    def interrupted(dataset: Any) -> None:
        read, calls = dataset.read, []

        def failing(place: int) -> Any:
            calls.append(place)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return read(place)

        dataset.read = failing
        with pytest.raises(KeyboardInterrupt):
            run(model, dataset, output=output, overwrite=True)

    interrupted(datasets.Folder(root, ids=[1, 0, 3, 2]))
    for dataset in (datasets.Folder(root), datasets.Folder(root, ids=[1, 0, 3, 2], masks="masks2")):
        with pytest.raises(ValueError, match="another run"):
            run(model, dataset, output=output)
    interrupted(datasets.Folder(root))
    mask = root / "masks" / f"{datasets.Folder(root).keys[-1]}.png"
    os.utime(mask, (1, 1))
    with pytest.raises(ValueError, match="another run"):
        run(model, datasets.Folder(root), output=output)
    monkeypatch.chdir(tmp_path / "x")
    interrupted(datasets.Folder("data"))
    assert run(model, datasets.Folder(root), output=output).samples == 4  # the same files
    interrupted(datasets.Folder("data"))
    monkeypatch.chdir(tmp_path / "y")
    with pytest.raises(ValueError, match="another run"):
        run(model, datasets.Folder("data"), output=output)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"run": 1}', b"\xff"])
def test_a_damaged_count_is_said(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, damage: bytes
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "progress-0.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"progress-0.json cannot be read|another run"):
        run(model, cityscapes, output=output)
    assert run(model, cityscapes, output=output, overwrite=True).samples == len(cityscapes)


def test_a_finished_report_is_kept(model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(model, cityscapes, output=output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {"report.json", "index.html", "confusion.png", "classes.png"} <= {path.name for path in before}
    with pytest.raises(ValueError, match="has a report already"):
        run(model, cityscapes, output=output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert run(model, cityscapes, output=output, overwrite=True, limit=1).samples == 1


def test_an_interrupted_start_over_goes_on_without_force(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(model, cityscapes, output=output)
    dataset = Stopping(cityscapes.root, "val")
    dataset.at = 3
    with pytest.raises(KeyboardInterrupt):
        run(model, dataset, output=output, overwrite=True)
    assert not (output / "report.json").exists()
    dataset.at, dataset.reads = -1, []
    run(model, dataset, output=output)
    assert dataset.reads[: len(cityscapes) - 2] == list(range(2, len(cityscapes)))


def test_label_maps_are_all_written_when_a_run_goes_on(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    dataset = Stopping(cityscapes.root, "val")
    dataset.at = 4
    call: dict[str, Any] = {"output": tmp_path / "out", "predictions": tmp_path / "maps"}
    with pytest.raises(KeyboardInterrupt):
        run(model, dataset, **call)
    dataset.at = -1
    for changed in ({"predictions": None}, {"predictions": tmp_path / "other"}):
        with pytest.raises(ValueError, match="another run"):
            run(model, dataset, **{**call, **changed})
    run(model, dataset, **call)
    assert sorted(path.stem for path in (tmp_path / "maps").iterdir()) == sorted(dataset.keys)


def test_a_run_that_died_before_anything_was_saved_goes_on(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {"output": tmp_path / "out", "predictions": tmp_path / "maps"}
    dataset = Stopping(cityscapes.root, "val")
    dataset.at = 3
    with monkeypatch.context() as patch:
        patch.setattr(Count, "whole", property(lambda self: not self.rows, lambda self, value: None))  # as if killed
        with pytest.raises(KeyboardInterrupt):
            run(model, dataset, **call)
    dataset.at = -1
    report = run(model, dataset, **call)
    assert torch.equal(report.confusion, run(model, cityscapes).confusion)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DatasetError("the mask x is damaged")])
def test_a_full_disk_does_not_hide_what_happened(
    model: Any,
    cityscapes: datasets.SegmentationDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    dataset = Stopping(cityscapes.root, "val")
    dataset.at, dataset.error = 4, error

    def full(store: Store, count: Count) -> None:
        if count.rows:
            raise CacheError("cannot write progress-0.json: No space left on device")

    monkeypatch.setattr(Store, "save", full)
    with pytest.raises(type(error)):
        run(model, dataset, output=tmp_path / "out")
    assert "No space left" in caplog.text


def test_ctrl_c_in_the_middle_of_a_image_counts_it_once(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(model, cityscapes)
    monkeypatch.setattr(evaluation, "SAVE_EVERY", 0.0)
    merge, calls = ConfusionMatrix.merge, []

    def interrupted(self: ConfusionMatrix, other: ConfusionMatrix) -> None:
        merge(self, other)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ConfusionMatrix, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, cityscapes, output=tmp_path / "out")
    report = run(model, cityscapes, output=tmp_path / "out")
    assert torch.equal(report.confusion, expected.confusion)


def test_a_folder_that_cannot_be_written_is_said_before_the_first_image(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CacheError, match="out"):
        run(model, cityscapes, output=tmp_path / "out")
    assert model.seen == 0


# --- errors


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_mask_stops_it_by_name(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, workers: int
) -> None:
    mask = cityscapes.mask_path(2)
    assert mask is not None
    values = np.array(Image.open(mask))
    values[0, 0] = 77
    Image.fromarray(values).save(mask)
    with pytest.raises(DatasetError, match="77") as caught:
        run(model, cityscapes, workers=workers)
    assert str(mask) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_bad_image_stops_it_by_name(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    cityscapes.image_path(1).write_bytes(b"<html>")
    with pytest.raises(ImageError, match=cityscapes.image_path(1).name):
        run(model, cityscapes)


def test_values_that_are_not_finite_stop_it_by_name(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    with torch.no_grad():
        model.bias[3] = float("nan")
    with pytest.raises(IsanetError, match=f"not finite for {cityscapes.keys[0]}"):
        run(model, cityscapes)


def test_a_split_without_truth(model: Any, tmp_path: Path) -> None:
    replicas.cityscapes(tmp_path)
    if not (tmp_path / "leftImg8bit" / "test").exists():
        (tmp_path / "leftImg8bit" / "val").rename(tmp_path / "leftImg8bit" / "test")
    with pytest.raises(DatasetError, match="no masks to compare with"):
        run(model, datasets.Cityscapes(tmp_path, "test"))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"limit": 0}, {"workers": -1}, {"protocol": "hole"}])
def test_wrong_arguments(model: Any, cityscapes: datasets.SegmentationDataset, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"at least|unknown protocol"):
        run(model, cityscapes, **wrong)


def test_a_part_of_a_dataset_is_asked_for_by_limit(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    part: Any = torch.utils.data.Subset(cityscapes, [0, 1])
    with pytest.raises(ValueError, match=r"got Subset.*limit"):
        run(model, part)


def test_a_model_in_training_goes_on_training(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    model.frozen = torch.nn.BatchNorm2d(3).eval()
    model.train()
    model.frozen.eval()
    run(model, cityscapes)
    assert model.training
    assert not model.frozen.training


def test_float32_is_float32_on_cuda() -> None:
    """Only what is switched can be seen without one."""
    convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolution.fp32_precision
    for device, precision, inside in (
        ("cuda", "float32", "ieee"),
        ("cuda", "bfloat16", before),
        ("cpu", "float32", before),
    ):
        segmenter: Any = SimpleNamespace(device=torch.device(device), precision=precision)
        with evaluation._exact_float32(segmenter):
            assert convolution.fp32_precision == inside
        assert convolution.fp32_precision == before


# --- published figures


@pytest.mark.parametrize("by", ["name", "object"])
def test_published_and_measured_stand_side_by_side(tiny: FileServer, tmp_path: Path, by: str) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    model: Any = tiny_zoo.NAME if by == "name" else isanet.from_pretrained(tiny_zoo.NAME)
    report = run(model, dataset)
    assert report.model == tiny_zoo.NAME
    assert report.published == dict(isanet.model_info(tiny_zoo.NAME).metrics)
    assert report.incomparable == (f"{len(dataset)} images, where the official split has 1449",)
    dataset.official_size = len(dataset)
    assert run(model, dataset).incomparable == ()
    text = str(run(model, dataset))
    assert "76.99" in text
    assert "whole image, single scale, no flip" in text


def test_each_difference_is_said(tiny: FileServer, tmp_path: Path) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    dataset.official_size = len(dataset)
    model = isanet.from_pretrained(tiny_zoo.NAME)

    def reasons(**options: Any) -> str:
        return "; ".join(run(model, dataset, **options).incomparable)

    assert reasons() == ""
    assert reasons(limit=1) == f"1 of {len(dataset)} images"
    assert "'whole', measured by 'mmseg-whole'" in reasons(protocol="mmseg-whole")
    assert "bfloat16" in reasons(precision="bfloat16")
    assert "merged" in reasons(mapping={"bus": None})
    train = datasets.VOC2012(tmp_path / "voc", "train")
    assert any("VOC 2012 train" in reason for reason in run(model, train).incomparable)


def test_a_model_that_was_trained_further_is_not_the_released_one(tiny: FileServer, tmp_path: Path) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    dataset.official_size = len(dataset)
    model = isanet.from_pretrained(tiny_zoo.NAME)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6  # type: ignore[operator]
    assert "not the released ones" in run(model, dataset).incomparable[0]
    model.save_pretrained(tmp_path / "mine")
    assert "not the released ones" in run(isanet.from_pretrained(tmp_path / "mine"), dataset).incomparable[0]
    assert run(str(tmp_path / "mine"), dataset).published is None


def test_a_folder_by_the_name_of_a_dataset_is_not_that_dataset(tiny: FileServer, tmp_path: Path) -> None:
    names = LABEL_SPACES["voc21"].classes
    replicas.folder(tmp_path / "PASCAL VOC 2012", classes=names, splits=("val",))
    report = run(tiny_zoo.NAME, datasets.Folder(tmp_path / "PASCAL VOC 2012", "val", classes="voc21"))
    (reason,) = report.incomparable
    assert reason == f"PASCAL VOC 2012 val in {tmp_path / 'PASCAL VOC 2012'} is not the official dataset"


def test_a_model_that_was_given_other_classes_has_no_published_figure(tiny: FileServer, tmp_path: Path) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    names = [*dataset.classes[:20], "television"]
    model = isanet.from_pretrained(tiny_zoo.NAME, classes=names)
    report = run(model, dataset, mapping={"tvmonitor": None, "television": None})
    assert report.published is None


# --- label maps for the servers


def test_cityscapes_own_evaluator_reads_ours_and_agrees(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    report = run(model, cityscapes, predictions=tmp_path / "predictions")
    args = scripts.args
    args.predictionPath, args.predictionWalk = str(tmp_path / "predictions"), None
    args.quiet, args.JSONOutput, args.evalInstLevelScore, args.avgClassSize = True, False, False, {}
    masks = [str(cityscapes.mask_path(place)) for place in range(len(cityscapes))]
    found = [scripts.getPrediction(args, mask) for mask in masks]
    assert [Path(path).name for path in found] == [f"{key}.png" for key in cityscapes.keys]
    theirs = scripts.evaluateImgLists(found, masks, args)["classScores"]
    for name, iou in report.iou.items():
        assert theirs[name] == pytest.approx(iou, abs=1e-12, nan_ok=True)
    with Image.open(found[0]) as image:
        assert image.mode == "L"


@pytest.mark.parametrize(("kind", "mode"), [("voc", "P"), ("ade20k", "L")])
def test_label_maps_in_the_form_of_each_server(tmp_path: Path, kind: str, mode: str) -> None:
    getattr(replicas, kind)(tmp_path / "data")
    dataset = datasets.open_dataset(tmp_path / "data")
    model: Any = ColorModel(LABEL_SPACES[KINDS[kind]])
    run(model, dataset, predictions=tmp_path / "predictions")
    official = np.array(LABEL_SPACES[KINDS[kind]].official_ids)
    for place, key in enumerate(dataset.keys):
        labels = Segmenter(model, device="cpu")(dataset.image_path(place)).labels
        with Image.open(tmp_path / "predictions" / f"{key}.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), official[labels])
            if mode == "P":
                assert image.getpalette()[:63] == [value for color in model.palette for value in color]


def test_label_maps_of_some_classes_are_none_for_a_server(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="without a mapping"):
        run(model, cityscapes, mapping={"road": None}, predictions=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_predictions_are_not_replaced_unasked(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    path = tmp_path / "predictions" / f"{cityscapes.keys[1]}.png"
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists and was kept"):
        run(model, cityscapes, predictions=path.parent)
    assert path.read_text() == "mine"
    assert model.seen == 0
    run(model, cityscapes, predictions=path.parent, overwrite=True)
    with Image.open(path) as image:
        assert image.mode == "L"


# --- several processes

SCRIPT = """
import json, os, sys, time
import torch
from isanet import datasets
from isanet.evaluation import evaluate as evaluation
from isanet.labels import LABEL_SPACES
from tests.helpers.color_model import ColorModel

root, output, log, behavior = sys.argv[1:]
evaluation.SAVE_EVERY = 0.0
rank = int(os.environ.get("RANK", "0"))

class Watched(datasets.Cityscapes):
    def read(self, index):
        self.reads = getattr(self, "reads", 0) + 1
        if behavior == "stuck" and self.reads == 3:
            time.sleep(600)
        if behavior == "fails" and rank == 1:
            raise evaluation.DatasetError("made to fail")
        with open(f"{log}-{rank}", "a") as file:
            print(index, file=file)
        return super().read(index)

if "WORLD_SIZE" in os.environ:
    torch.distributed.init_process_group("gloo")
torch.set_num_threads(1)
report = evaluation.evaluate(
    ColorModel(LABEL_SPACES["cityscapes19"]),
    Watched(root, "val"), output=output, workers=0, device="cpu", boundary=True, progress=True,
)
with open(f"{log}-answer-{rank}", "w") as file:
    json.dump({"confusion": report.confusion.tolist(), "rank": rank}, file)
if "WORLD_SIZE" in os.environ:
    torch.distributed.destroy_process_group()
"""


@pytest.fixture
def start(tmp_path: Path, cityscapes: datasets.SegmentationDataset) -> Callable[..., subprocess.Popen[str]]:
    """Starts the script: `start(processes, behavior)`."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def go(processes: int, behavior: str = "plain") -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        arguments = [str(cityscapes.root), str(tmp_path / "out"), str(tmp_path / "reads"), behavior]
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), str(tmp_path / "script.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return go


def answers(process: subprocess.Popen[str], tmp_path: Path) -> list[dict[str, Any]]:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (tmp_path / "stderr.txt").write_text(err)
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("reads-answer-*"))]


def reads(tmp_path: Path) -> list[list[int]]:
    """Which images each process has read, in order; the first reads the worst ones again for the page."""
    return [[int(line) for line in path.read_text().split()] for path in sorted(tmp_path.glob("reads-[0-9]"))]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(
    start: Callable[..., Any], tmp_path: Path, model: Any, cityscapes: datasets.SegmentationDataset, processes: int
) -> None:
    assert len(cityscapes) % processes  # the shares are uneven
    expected = run(model, cityscapes, output=tmp_path / "alone", boundary=True)
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


def test_if_one_process_fails_all_of_them_do(start: Callable[..., Any], tmp_path: Path) -> None:
    process = start(2, "fails")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "made to fail" in err
    assert not (tmp_path / "out" / "report.json").exists()
    assert (tmp_path / "out" / "progress-0.json").exists()  # what the other counted is kept


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_any_number_of_processes(
    start: Callable[..., Any],
    tmp_path: Path,
    model: Any,
    cityscapes: datasets.SegmentationDataset,
    before: int,
    after: int,
) -> None:
    expected = run(model, cityscapes)
    process = start(before, "stuck")
    deadline = time.monotonic() + 60
    while _counted(tmp_path).count(0) or len(_counted(tmp_path)) < before:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in _children(str(tmp_path / "script.py")):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "out" / "report.json").exists()
    counted = {
        row[0] for path in (tmp_path / "out").glob("progress-*.json") for row in json.loads(path.read_text())["rows"]
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
    return [len(json.loads(path.read_text())["rows"]) for path in (tmp_path / "out").glob("progress-*.json")]


def _children(script: str) -> list[int]:
    """Processes that run the script: torchrun's workers have groups of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if script in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def test_counts_that_were_gathered_and_not_yet_deleted_are_not_taken_twice(
    start: Callable[..., Any], tmp_path: Path, model: Any, cityscapes: datasets.SegmentationDataset
) -> None:
    dataset = Stopping(cityscapes.root, "val")
    dataset.at = 4
    with pytest.raises(KeyboardInterrupt):
        run(model, dataset, output=tmp_path / "out")
    state = json.loads((tmp_path / "out" / "progress-0.json").read_text())
    part = {**state, "rows": state["rows"][:1], "confusion": the_plain_way(model, cityscapes, [0]).tolist()}
    (tmp_path / "out" / "progress-1.json").write_text(json.dumps(part))
    report = run(model, cityscapes, output=tmp_path / "out")
    assert torch.equal(report.confusion, run(model, cityscapes).confusion)


def test_the_label_space_of_official_ids_is_not_that_of_the_model(tmp_path: Path, model: Any) -> None:
    """Label ids read as classes: 34 of them, which no model of 19 can be measured on."""
    replicas.cityscapes(tmp_path)
    folder = tmp_path / "folder"
    for part, source, suffix in (("images", "leftImg8bit", ""), ("masks", "gtFine", "_labelIds")):
        (folder / part).mkdir(parents=True)
        for number, path in enumerate(sorted((tmp_path / source / "val").rglob(f"*{suffix}.png"))):
            (folder / part / f"{number}.png").write_bytes(path.read_bytes())
    wrong = datasets.Folder(folder, classes="cityscapes-ids")
    assert wrong.label_space == label_space("cityscapes-ids")
    with pytest.raises(ValueError, match=r"cityscapes19 .*cityscapes-ids"):
        run(model, wrong)
    right = datasets.Folder(folder, classes="cityscapes19", ids="official", ignore="rest")
    straight = run(model, datasets.Cityscapes(tmp_path))
    assert torch.equal(run(model, right).confusion, straight.confusion)
