from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isanet import datasets
from isanet.errors import DatasetError, ImageError, IsanetError, OutputError
from isanet.evaluation import run as run_module
from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.inference.segmenter import Segmenter
from isanet.labels import LABEL_SPACES
from isanet.protocols import Protocol
from tests.helpers import replicas
from tests.helpers.color_model import ColorModel
from tests.helpers.evaluating import KINDS, confusion_by_pixel, quick_evaluate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (2, 1), (0, 3)])
def test_the_confusion_matrix_equals_the_reference(tmp_path: Path, kind: str, workers: int, batch_size: int) -> None:
    getattr(replicas, kind)(tmp_path)
    dataset = datasets.open_dataset(tmp_path)
    model: Any = ColorModel(LABEL_SPACES[KINDS[kind]])
    report = quick_evaluate(model, dataset, workers=workers, batch_size=batch_size)
    expected = confusion_by_pixel(model, dataset)
    np.testing.assert_array_equal(report.confusion.numpy(), expected)
    assert report.confusion.dtype == torch.int64
    correct, union = expected.diagonal(), expected.sum(0) + expected.sum(1) - expected.diagonal()
    present = union > 0
    assert report.miou == pytest.approx((correct[present] / union[present]).mean(), abs=1e-12)
    assert 0.01 < report.miou < 1  # the model errs at edges, so that a wrong count shows
    assert list(report.iou) == list(dataset.classes)
    assert (report.num_images, report.dataset_size) == (len(dataset), len(dataset))
    assert (report.dataset, report.split) == (dataset.name, "val")
    assert report.ignored_pixels == sum(int((np.asarray(mask) == 255).sum()) for _, mask in dataset) > 0


def test_the_worst_images_have_the_lowest_miou(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    report = quick_evaluate(model, cityscapes)
    scores = []
    for index, key in enumerate(cityscapes.keys):
        matrix = ConfusionMatrix(19)
        matrix.matrix += torch.from_numpy(confusion_by_pixel(model, cityscapes, [index]))
        scores.append((matrix.miou(), key))
    assert [(sample.miou, sample.key) for sample in report.worst] == sorted(scores)[: run_module.NUM_WORST]


def test_limit_is_spread_over_the_dataset(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    report = quick_evaluate(model, cityscapes, limit=2)
    indices = [0, len(cityscapes) // 2]
    np.testing.assert_array_equal(report.confusion.numpy(), confusion_by_pixel(model, cityscapes, indices))
    assert (report.num_images, report.dataset_size) == (2, len(cityscapes))
    assert quick_evaluate(model, cityscapes, limit=10**6).num_images == len(cityscapes)


def test_boundary_score(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    report = quick_evaluate(model, cityscapes, boundary=True)
    score = BoundaryScore(19)
    for image, mask in cityscapes:
        score.update(Segmenter(model, device="cpu")(image).labels, np.asarray(mask))
    assert report.boundary is not None
    assert list(report.boundary) == list(cityscapes.classes)
    np.testing.assert_array_equal(list(report.boundary.values()), score.per_class().numpy())
    assert quick_evaluate(model, cityscapes).boundary is None


def test_a_protocol_is_applied(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    protocol = Protocol("mine", scales=(0.5, 1.0), flip=True)
    report = quick_evaluate(model, cityscapes, protocol=protocol)
    segmenter = Segmenter(model, device="cpu", protocol=protocol)
    matrix = ConfusionMatrix(19)
    for image, mask in cityscapes:
        matrix.update(segmenter(image).labels, np.asarray(mask))
    assert torch.equal(report.confusion, matrix.matrix)
    assert not torch.equal(report.confusion, quick_evaluate(model, cityscapes).confusion)
    assert (report.protocol, report.protocol_text) == ("mine", protocol.text)


# --- masks of one class


def black_and_white(root: Path) -> tuple[Any, datasets.Folder]:
    """A model that predicts only background, and masks of 0 and 255: everything that is not ignored is right."""
    for kind, size in (("images", (40, 48, 3)), ("masks", (40, 48))):
        (root / kind).mkdir(parents=True)
        for number in range(3):
            pixels = np.zeros(size, np.uint8)
            pixels[:, 24:] = 255
            Image.fromarray(pixels).save(root / kind / f"{number}.png")
    (root / "classes.txt").write_text("background\ncat")
    model = ColorModel(datasets.Folder(root).label_space)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    return model, datasets.Folder(root)


def test_one_class_and_255_are_refused_before_the_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dataset = black_and_white(tmp_path / "data")
    for options in ({}, {"limit": 1}, {"output": tmp_path / "out"}, {"predictions": tmp_path / "maps"}):
        with pytest.raises(DatasetError, match=r"ids=\(0, 255\), ignore=\(\) \(--ids 0,255 --ignore none\)"):
            quick_evaluate(model, dataset, **options)
    assert model.seen == 0
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["data"], "nothing was written"
    right = quick_evaluate(model, datasets.Folder(tmp_path / "data", ids=(0, 255), ignore=()))
    assert right.miou == pytest.approx(0.25)
    part: Any = torch.utils.data.Subset(dataset, [0, 2])
    with pytest.raises(DatasetError, match="--ids 0,255 --ignore none"):
        quick_evaluate(model, part)


def test_absent_classes_may_be_allowed_and_are_told(tmp_path: Path) -> None:
    model, dataset = black_and_white(tmp_path / "data")
    report = quick_evaluate(model, dataset, allow_absent=True)
    assert (report.miou, report.measured_classes) == (1, 1)
    assert "1 of 2 classes measured" in str(report)


def test_an_earlier_report_survives_masks_of_one_class(tmp_path: Path) -> None:
    model, dataset = black_and_white(tmp_path / "data")
    output = tmp_path / "out"
    quick_evaluate(model, dataset, allow_absent=True, output=output)
    with pytest.raises(DatasetError, match="only one of 2 classes"):
        quick_evaluate(model, dataset, output=output, overwrite=True)
    assert (output / "report.json").exists()


def test_a_part_with_one_class_is_measured_if_the_dataset_has_more(tmp_path: Path) -> None:
    model, dataset = black_and_white(tmp_path / "data")
    Image.fromarray(np.ones((40, 48), np.uint8)).save(tmp_path / "data" / "masks" / "2.png")
    assert quick_evaluate(model, dataset, limit=1).measured_classes == 1
    assert quick_evaluate(model, dataset).measured_classes == 2


def test_masks_that_are_all_ignored_are_refused(tmp_path: Path) -> None:
    model, dataset = black_and_white(tmp_path / "data")
    for path in (tmp_path / "data" / "masks").iterdir():
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(path)
    with pytest.raises(DatasetError, match=r"all pixels .* are ignored, so nothing can be learned or measured"):
        quick_evaluate(model, dataset)
    assert "nothing was measured" in str(quick_evaluate(model, dataset, allow_absent=True))


# --- errors


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_mask_is_named(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path, workers: int
) -> None:
    mask = cityscapes.mask_path(2)
    assert mask is not None
    values = np.array(Image.open(mask))
    values[0, 0] = 77
    Image.fromarray(values).save(mask)
    with pytest.raises(DatasetError, match="77") as caught:
        quick_evaluate(model, cityscapes, workers=workers)
    assert str(mask) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_bad_image_is_named(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    cityscapes.image_path(1).write_bytes(b"<html>")
    with pytest.raises(ImageError, match=cityscapes.image_path(1).name):
        quick_evaluate(model, cityscapes)


def test_logits_that_are_not_finite_are_an_error(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    with torch.no_grad():
        model.bias[3] = float("nan")
    with pytest.raises(IsanetError, match=f"not finite for {cityscapes.keys[0]}"):
        quick_evaluate(model, cityscapes)


def test_a_split_without_masks_is_refused(model: Any, tmp_path: Path) -> None:
    replicas.cityscapes(tmp_path)
    if not (tmp_path / "leftImg8bit" / "test").exists():
        (tmp_path / "leftImg8bit" / "val").rename(tmp_path / "leftImg8bit" / "test")
    with pytest.raises(DatasetError, match="no masks to compare with"):
        quick_evaluate(model, datasets.Cityscapes(tmp_path, "test"))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"limit": 0}, {"workers": -1}, {"protocol": "hole"}])
def test_wrong_arguments_are_refused(model: Any, cityscapes: datasets.SegmentationDataset, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"at least|unknown protocol"):
        quick_evaluate(model, cityscapes, **wrong)


def test_a_model_in_training_mode_stays_in_it(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    model.frozen = torch.nn.BatchNorm2d(3).eval()
    model.train()
    model.frozen.eval()
    quick_evaluate(model, cityscapes)
    assert model.training
    assert not model.frozen.training


# --- label maps for evaluation servers


def test_the_cityscapes_evaluator_reads_our_label_maps_and_agrees(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    report = quick_evaluate(model, cityscapes, predictions=tmp_path / "predictions")
    args = scripts.args
    args.predictionPath, args.predictionWalk = str(tmp_path / "predictions"), None
    args.quiet, args.JSONOutput, args.evalInstLevelScore, args.avgClassSize = True, False, False, {}
    masks = [str(cityscapes.mask_path(index)) for index in range(len(cityscapes))]
    found = [scripts.getPrediction(args, mask) for mask in masks]
    assert [Path(path).name for path in found] == [f"{key}.png" for key in cityscapes.keys]
    theirs = scripts.evaluateImgLists(found, masks, args)["classScores"]
    for name, iou in report.iou.items():
        assert theirs[name] == pytest.approx(iou, abs=1e-12, nan_ok=True)
    with Image.open(found[0]) as image:
        assert image.mode == "L"


@pytest.mark.parametrize(("kind", "mode"), [("voc", "P"), ("ade20k", "L")])
def test_label_maps_are_in_the_form_of_each_server(tmp_path: Path, kind: str, mode: str) -> None:
    getattr(replicas, kind)(tmp_path / "data")
    dataset = datasets.open_dataset(tmp_path / "data")
    model: Any = ColorModel(LABEL_SPACES[KINDS[kind]])
    quick_evaluate(model, dataset, predictions=tmp_path / "predictions")
    official = np.array(LABEL_SPACES[KINDS[kind]].official_ids)
    for index, key in enumerate(dataset.keys):
        labels = Segmenter(model, device="cpu")(dataset.image_path(index)).labels
        with Image.open(tmp_path / "predictions" / f"{key}.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), official[labels])
            if mode == "P":
                assert image.getpalette()[:63] == [value for color in model.palette for value in color]


def test_label_maps_of_merged_classes_are_refused(
    model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="without a mapping"):
        quick_evaluate(model, cityscapes, mapping={"road": None}, predictions=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_existing_label_maps_are_kept(model: Any, cityscapes: datasets.SegmentationDataset, tmp_path: Path) -> None:
    path = tmp_path / "predictions" / f"{cityscapes.keys[1]}.png"
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists and was kept"):
        quick_evaluate(model, cityscapes, predictions=path.parent)
    assert path.read_text() == "mine"
    assert model.seen == 0
    quick_evaluate(model, cityscapes, predictions=path.parent, overwrite=True)
    with Image.open(path) as image:
        assert image.mode == "L"
