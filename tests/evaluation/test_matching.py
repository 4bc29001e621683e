from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet import datasets
from isanet.evaluation.matching import match_classes
from isanet.labels import LABEL_SPACES, custom_space, label_space
from tests.helpers import replicas, tiny_zoo
from tests.helpers.color_model import ColorModel
from tests.helpers.evaluating import quick_evaluate
from tests.helpers.file_server import FileServer

# --- classes


def test_different_label_spaces_are_an_error_that_names_both(cityscapes: datasets.SegmentationDataset) -> None:
    model: Any = ColorModel(LABEL_SPACES["voc21"])
    with pytest.raises(ValueError, match=r"voc21 \(21 classes.*cityscapes19 \(19 classes.*mapping"):
        quick_evaluate(model, cityscapes)
    assert model.seen == 0


def test_equally_many_different_classes_do_not_match(cityscapes: datasets.SegmentationDataset) -> None:
    space = LABEL_SPACES["cityscapes19"]
    other: Any = ColorModel(custom_space(space.classes[::-1], space.palette[::-1]))
    with pytest.raises(ValueError, match="custom"):
        quick_evaluate(other, cityscapes)
    numbered: Any = ColorModel(custom_space([f"class {i}" for i in range(19)], space.palette))
    with pytest.raises(ValueError, match=r"no names.*classes="):
        quick_evaluate(numbered, cityscapes)
    expected = quick_evaluate(ColorModel(space), cityscapes)
    assert torch.equal(quick_evaluate(other, cityscapes, mapping={}).confusion, expected.confusion)  # by name


def test_classes_are_merged_on_both_sides(model: Any, cityscapes: datasets.SegmentationDataset) -> None:
    unmerged = quick_evaluate(model, cityscapes).confusion.numpy()
    names = cityscapes.classes
    report = quick_evaluate(model, cityscapes, mapping={"flat": ["road", "sidewalk"], "sky": None})
    assert report.classes[0] == "flat"
    assert "road" not in report.classes
    assert "sky" not in report.classes
    assert len(report.classes) == 17
    flat = [names.index("road"), names.index("sidewalk")]
    # The sky cannot be predicted any more, so that other columns may grow; flat predicted as flat stays
    assert report.confusion[0, 0] >= unmerged[np.ix_(flat, flat)].sum()
    assert report.confusion.sum() == unmerged.sum() - unmerged[names.index("sky")].sum()
    assert any("sky" in note for note in report.notes)


def test_a_model_with_more_classes_is_measured_on_a_folder_with_fewer(tmp_path: Path, model: Any) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    space = LABEL_SPACES["cityscapes19"]
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 20:40], mask[:, 40:] = 1, 2
    names = {"ground": "road", "vehicle": "bus", "sky": "sky"}
    colors = np.array([space.palette[space.classes.index(name)] for name in names.values()], np.uint8)
    Image.fromarray(colors[mask]).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    dataset = datasets.Folder(tmp_path, classes=list(names))
    groups = {"ground": ["road", "sidewalk"], "vehicle": ["car", "bus", "truck"]}
    report = quick_evaluate(model, dataset, mapping=groups)
    assert report.classes == ("ground", "vehicle", "sky")
    assert report.miou > 0.8
    assert report.confusion.sum() == mask.size
    keep = match_classes(model, dataset.label_space, groups).keep
    assert keep is not None
    assert {space.classes[index] for index in keep} == {"road", "sidewalk", "car", "bus", "truck", "sky"}


def test_more_classes_than_a_byte_can_hold(tmp_path: Path) -> None:
    """255 is the value of ignored pixels in a mask, and an ordinary class of a model."""
    names = [f"c{index:03}" for index in range(300)]
    space = custom_space(["c000", "c255", "c256"], [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    colors = [(90, 90, 90)] * 300
    for name, color in zip(space.classes, space.palette, strict=True):
        colors[names.index(name)] = color
    replicas.folder(tmp_path / "data", classes=space.classes, count=2)
    dataset = datasets.Folder(tmp_path / "data")
    for index in range(2):
        mask = np.asarray(Image.open(dataset.mask_path(index)))  # type: ignore[arg-type]
        Image.fromarray(replicas.paint(mask, space)).save(dataset.image_path(index))
    report = quick_evaluate(ColorModel(custom_space(names, colors)), dataset, mapping={})
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
def test_an_invalid_mapping_is_refused(
    model: Any, cityscapes: datasets.SegmentationDataset, mapping: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quick_evaluate(model, cityscapes, mapping=mapping)


def test_a_class_that_the_model_lacks_must_be_ignored_explicitly(tmp_path: Path) -> None:
    replicas.ade20k(tmp_path)
    dataset = datasets.ADE20K(tmp_path)
    model: Any = ColorModel(LABEL_SPACES["cityscapes19"])
    with pytest.raises(ValueError, match=r"dataset's classes are none of the model's.*None to ignore"):
        quick_evaluate(model, dataset, mapping={})
    rest = [name for name in dataset.classes if name not in model.classes]
    assert set(quick_evaluate(model, dataset, mapping=dict.fromkeys(rest)).classes) <= set(model.classes)


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
        quick_evaluate(model, wrong)
    right = datasets.Folder(folder, classes="cityscapes19", ids="official", ignore="rest")
    expected = quick_evaluate(model, datasets.Cityscapes(tmp_path))
    assert torch.equal(quick_evaluate(model, right).confusion, expected.confusion)


# --- published figures


@pytest.mark.parametrize("by", ["name", "object"])
def test_published_and_measured_figures_are_compared(tiny: FileServer, tmp_path: Path, by: str) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    model: Any = tiny_zoo.NAME if by == "name" else isanet.from_pretrained(tiny_zoo.NAME)
    report = quick_evaluate(model, dataset)
    assert report.model == tiny_zoo.NAME
    assert report.published == dict(isanet.model_info(tiny_zoo.NAME).metrics)
    assert report.incomparable == (f"{len(dataset)} images, where the official split has 1449",)
    dataset.official_size = len(dataset)
    assert quick_evaluate(model, dataset).incomparable == ()
    text = str(quick_evaluate(model, dataset))
    assert "76.99" in text
    assert "whole image, single scale, no flip" in text


def test_each_difference_is_named(tiny: FileServer, tmp_path: Path) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    dataset.official_size = len(dataset)
    model = isanet.from_pretrained(tiny_zoo.NAME)

    def reasons(**options: Any) -> str:
        return "; ".join(quick_evaluate(model, dataset, **options).incomparable)

    assert reasons() == ""
    assert reasons(limit=1) == f"1 of {len(dataset)} images"
    assert "'whole', measured by 'mmseg-whole'" in reasons(protocol="mmseg-whole")
    assert "bfloat16" in reasons(precision="bfloat16")
    assert "merged" in reasons(mapping={"bus": None})
    train = datasets.VOC2012(tmp_path / "voc", "train")
    assert any("VOC 2012 train" in reason for reason in quick_evaluate(model, train).incomparable)


def test_the_published_figure_is_the_one_by_the_same_protocol_if_there_are_several(
    tiny: FileServer, tmp_path: Path
) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    dataset.official_size = len(dataset)
    manifest = json.loads((tmp_path / "weights.json").read_text())
    manifest["weights"][tiny_zoo.NAME]["metrics"] |= {"protocol": "mmseg-whole", "others": {"flip": 0.8054}}
    (tmp_path / "weights.json").write_text(json.dumps(manifest))
    model = isanet.from_pretrained(tiny_zoo.NAME)
    own, flip, whole = (quick_evaluate(model, dataset, protocol=name) for name in ("auto", "flip", "whole"))
    assert (own.protocol, own.protocol_reason, own.incomparable) == ("mmseg-whole", "the model's own", ())
    assert "(the model's own)" in str(own)
    assert own.published is not None
    assert (own.published["miou"], own.published["protocol"]) == (0.7699, "mmseg-whole")
    assert flip.published is not None
    assert (flip.published["miou"], flip.published["protocol"], flip.incomparable) == (0.8054, "flip", ())
    assert flip.protocol_reason == "as asked"
    assert "80.54" in str(flip)
    assert "'mmseg-whole', measured by 'whole'" in whole.incomparable[0]


def test_a_model_trained_further_is_not_the_released_one(tiny: FileServer, tmp_path: Path) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    dataset.official_size = len(dataset)
    model = isanet.from_pretrained(tiny_zoo.NAME)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6  # type: ignore[operator]
    model.save_pretrained(tmp_path / "mine")
    assert "76.99" not in (tmp_path / "mine" / "README.md").read_text()
    assert "Apache" not in (tmp_path / "mine" / "README.md").read_text()
    for each in (model, isanet.from_pretrained(tmp_path / "mine")):
        report = quick_evaluate(each, dataset)
        assert report.published is None
        assert "not the released ones" in report.notes[0]
        assert "76.99" not in str(report)
    assert quick_evaluate(str(tmp_path / "mine"), dataset).published is None


def test_a_folder_with_the_name_of_a_dataset_is_not_that_dataset(tiny: FileServer, tmp_path: Path) -> None:
    names = LABEL_SPACES["voc21"].classes
    replicas.folder(tmp_path / "PASCAL VOC 2012", classes=names, splits=("val",))
    report = quick_evaluate(tiny_zoo.NAME, datasets.Folder(tmp_path / "PASCAL VOC 2012", "val", classes="voc21"))
    (reason,) = report.incomparable
    assert reason == f"PASCAL VOC 2012 val in {tmp_path / 'PASCAL VOC 2012'} is not the official dataset"


def test_a_folder_without_splits_is_named_without_one(tiny: FileServer, tmp_path: Path) -> None:
    replicas.folder(tmp_path / "pets", classes=LABEL_SPACES["voc21"].classes)
    report = quick_evaluate(tiny_zoo.NAME, datasets.Folder(tmp_path / "pets", classes="voc21"))
    assert report.incomparable[0] == "published on PASCAL VOC 2012 val, measured on pets"


def test_a_model_with_other_classes_has_no_published_figure(tiny: FileServer, tmp_path: Path) -> None:
    replicas.voc(tmp_path / "voc")
    dataset = datasets.VOC2012(tmp_path / "voc")
    names = [*dataset.classes[:20], "television"]
    model = isanet.from_pretrained(tiny_zoo.NAME, classes=names)
    report = quick_evaluate(model, dataset, mapping={"tvmonitor": None, "television": None})
    assert report.published is None
