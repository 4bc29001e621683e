"""Networks and segmenters that were pickled whole keep everything, and nothing in their files is run."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isanet
from isanet.model import ISANet
from isanet.weights.pickles import MAX_DESCRIPTION_BYTES
from isanet.zoo.pretrained import MAX_VALUES
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.precisions import PRECISIONS

PREPROCESSING = {"short_edge": 64, "long_edge": 128, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
ARGUMENTS: dict[str, Any] = {
    **tiny_zoo.ARCHITECTURE,
    "num_classes": 3,
    "classes": ["road", "person", "sky"],
    "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    "preprocessing": PREPROCESSING,
    "logits_resize": "corners",
    "residual_first": True,
    "block_size": 4,
}
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)


class Task(nn.Module):
    """What a training framework pickles: a network beside a loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.config = {"epochs": 3}
        self.network = network
        self.loss = nn.CrossEntropyLoss(torch.ones(3))


def own(**changes: Any) -> ISANet:
    torch.manual_seed(0)
    model = ISANet(**{**ARGUMENTS, **changes}).eval()
    model.provenance = {"name": "mine", "started_from": "isanet_r50_voc"}
    return model


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")  # pickled as with any other, which would be imported first


def labels(model: Any, **options: Any) -> Any:
    return isanet.Segmenter(model, device="cpu", precision="float32", **options)(IMAGE).labels


def saved(folder: Path, contents: object, **options: Any) -> Path:
    path = folder / "whole.pth"
    torch.save(contents, path, **options)
    return path


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(lambda model: model, id="bare"),
        pytest.param(lambda model: {"epoch": 3, "model": model}, id="in a container"),
        pytest.param(nn.DataParallel, id="DataParallel"),
        pytest.param(compiled, id="compiled"),
        pytest.param(lambda model: Task(compiled(model)), id="part of another"),
        pytest.param(lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(model.train()), id="SyncBatchNorm"),
        pytest.param(lambda model: isanet.Segmenter(model, device="cpu"), id="Segmenter"),
        pytest.param(
            lambda model: {"config": model.config, "provenance": model.provenance, "state_dict": model.state_dict()},
            id="config beside a state dict",
        ),
        pytest.param(lambda model: {"model": model, "ema": own(classes=["a", "b", "c"])}, id="beside an average"),
    ],
)
def test_a_file_of_a_whole_model_keeps_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, around: Callable[[ISANet], object]
) -> None:
    model = own()
    path = saved(tmp_path, around(copy.deepcopy(model)))
    loaded = isanet.from_pretrained(path)
    assert loaded.config == model.config
    assert loaded.provenance == model.provenance
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert "assumed" not in caplog.text
    expected = labels(model)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(labels(path), expected)
    assert run("convert", path, tmp_path / "folder") == 0
    assert isanet.from_pretrained(tmp_path / "folder").config == model.config
    assert np.array_equal(labels(tmp_path / "folder"), expected)


@pytest.mark.parametrize("options", [{"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}])
def test_every_way_to_pickle_keeps_everything(tmp_path: Path, options: dict[str, Any]) -> None:
    for each in (own(), isanet.Segmenter(own(), device="cpu")):
        assert isanet.from_pretrained(saved(tmp_path, each, **options)).config == own().config


def test_a_parameter_with_attributes_is_read(tmp_path: Path) -> None:
    model = own()
    model.classifier.weight.shared = True  # type: ignore[attr-defined]
    assert torch.equal(isanet.from_pretrained(saved(tmp_path, model)).classifier.weight, model.classifier.weight)


def test_a_config_from_before_logits_resize_is_ours_too(tmp_path: Path) -> None:
    model = own()
    config = {name: value for name, value in model.config.items() if name != "logits_resize"}
    path = saved(tmp_path, {"config": {**config, "align_corners": True}, "state_dict": model.state_dict()})
    assert isanet.from_pretrained(path).config == model.config


LAUGHS: list[Any] = ["ha"]
for _ in range(60):
    LAUGHS = [LAUGHS, LAUGHS]
DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]
ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": LAUGHS}, f"over {MAX_DESCRIPTION_BYTES:,} bytes, or {MAX_VALUES:,} values"),
        ({"classes": "x" * MAX_DESCRIPTION_BYTES}, "over"),
        ({"classes": DEEP}, "must be 3 different names|must be texts"),
        ({"classes": ITSELF}, "Circular reference"),
        ({"classes": [Path("a"), "b", "c"]}, "Opaque is not JSON"),
        ({"classes": ["a\x1b[2J", "a\x1b[2J", "c"]}, r"3 different names, got 3: a\S*2J, "),
        ({"num_classes": 1 << 40}, "from 1 to 4096"),
        ({"palette": [[1, 2, "x"]] * 3}, "invalid literal"),
        ({"preprocessing": {**PREPROCESSING, "std": [0, 0, 0]}}, "preprocessing must have"),
        ({"width": 1 << 40}, "is not the configuration"),
        ({"classes": ["a", "b"], "num_classes": 2, "palette": None}, "classifier.weight has shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_in_a_pickle_is_checked_as_any_other(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = own()
    model.config |= change
    with pytest.raises(isanet.CheckpointError, match=message) as caught:
        isanet.from_pretrained(saved(tmp_path, model))
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_notes_that_are_not_ours_are_not_taken_for_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = own()
    for config in ({"classes": ["a"], "preprocessing": None, "lr": 1}, {"num_classes": 9}, ["a"], None):
        caplog.clear()
        loaded = isanet.from_pretrained(saved(tmp_path, {"config": config, "state_dict": model.state_dict()}))
        assert loaded.classes == ("class 0", "class 1", "class 2")
        assert "assumed a short edge" in caplog.text
    model.provenance = {"name": 3}  # type: ignore[dict-item]
    assert set(isanet.from_pretrained(saved(tmp_path, model)).provenance) >= {"source", "source_sha256"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copied_segmenter_gives_the_same_labels(precision: str) -> None:
    made = isanet.Segmenter(own(), device="cpu", precision=precision, calibration=[IMAGE], protocol="slide-512")
    for again in (lambda each: pickle.loads(pickle.dumps(each)), copy.deepcopy, copy.copy):
        other = again(made)
        assert (other.device, other.precision, other.protocol) == (made.device, made.precision, made.protocol)
        assert np.array_equal(other(IMAGE).labels, made(IMAGE).labels)  # the second and third have run


def _labels_of(segmenter: isanet.Segmenter) -> Any:
    return segmenter(IMAGE).labels


def test_a_segmenter_can_be_passed_to_a_spawned_process() -> None:
    segmenter = isanet.Segmenter(own(), device="cpu", precision="float32")
    expected = segmenter(IMAGE).labels
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(_labels_of, (segmenter,)), expected)
