"""export writes what it promises, compares it with the model, and leaves nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import isanet
from isanet.exporting import whole, write
from isanet.inference.runtimes import packages
from isanet.inference.runtimes.openvino import core
from isanet.toystreets import draw_scene
from isanet.weights.manifest import model_info
from tests.helpers.precisions import needs_new_torch
from tests.helpers.published import KINDS, network

NANO = "isanet_nano_toystreets"
NORMAL = {"mean": [115.0] * 3, "std": [60.0] * 3, "short_edge": 64, "long_edge": 128}


KEYS = ("config", "classes", "provenance", "license", "precision", "whole")


def metadata(path: Path) -> dict[str, str]:
    """What a file says of itself, as others read it."""
    if path.suffix == ".onnx":
        return {each.key: each.value for each in onnx.load(path).metadata_props}
    if path.suffix == ".pt2":
        found = dict.fromkeys(KEYS, "")
        torch.export.load(path, extra_files=found)
        return found
    info = core().read_model(path)
    return {key: str(info.get_rt_info(["isanet", key]).value) for key in KEYS if info.has_rt_info(["isanet", key])}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in KINDS for name in ("model.onnx", "model.xml")),
        *(pytest.param(kind, "model.pt2", marks=needs_new_torch) for kind in ("sssegmentation", "everything")),
    ],
)
def test_every_kind_of_network_in_every_format(kind: str, name: str, tmp_path: Path) -> None:
    exported = isanet.export(network(kind, preprocessing=NORMAL).float(), tmp_path / name)
    assert exported.agreement > 0.9999
    assert exported.path == tmp_path / name
    assert set(tmp_path.iterdir()) - {tmp_path / "home"} == set(exported.files)
    assert len(exported.files) == (2 if name == "model.xml" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_in_half_precision(kind: str, tmp_path: Path) -> None:
    model = network(kind, preprocessing=NORMAL).float()
    assert 0.99 < isanet.export(model, tmp_path / "model.xml", precision="float16").agreement < 1


@needs_new_torch
@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2"])
def test_a_file_says_what_it_is(name: str, tmp_path: Path) -> None:
    model = isanet.from_pretrained(NANO)
    isanet.export(model, tmp_path / name)
    found = metadata(tmp_path / name)
    assert json.loads(found["config"]) == model.config
    assert json.loads(found["classes"]) == list(model.classes)
    assert json.loads(found["provenance"])["source_sha256"] == model_info(NANO).sha256
    assert found["license"] == model_info(NANO).license
    assert (found["precision"], found["whole"]) == ("float32", "false")


def test_no_license_is_stated_of_other_weights(tmp_path: Path) -> None:
    model = isanet.from_pretrained(NANO)
    with torch.no_grad():
        model.classifier.bias[0] += 1
    isanet.export(model, tmp_path / "model.onnx")
    assert "license" not in metadata(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["whole.onnx", "whole.xml"])
def test_the_whole_job_of_the_packaged_model(name: str, tmp_path: Path) -> None:
    street = np.asarray(draw_scene(1, (100, 180))[0])
    isanet.export(NANO, tmp_path / name, whole=True)
    expected = isanet.Segmenter(NANO, "cpu", precision="float32")(street).labels
    if name.endswith("onnx"):
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        (labels,) = session.run(None, {"image": street})
    else:
        compiled = core().compile_model(tmp_path / name, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        labels = compiled(street)["labels"]
    assert (labels == expected).mean() > 0.9999
    assert metadata(tmp_path / name)["whole"] == "true"


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    full, half = (isanet.export(NANO, tmp_path / f"{each}.xml", precision=each) for each in ("float32", "float16"))
    sizes = [each.files[1].stat().st_size for each in (full, half)]
    assert sizes[1] < 0.52 * sizes[0]
    assert half.agreement > 0.999


@pytest.mark.parametrize("whole_job", [False, True])
def test_int8_is_calibrated_on_a_folder_and_compared_on_it(whole_job: bool, tmp_path: Path) -> None:
    streets = tmp_path / "streets"
    streets.mkdir()
    for seed in range(3):
        draw_scene(seed, (128, 192))[0].save(streets / f"{seed}.png")
    path = tmp_path / "street.xml"
    exported = isanet.export(NANO, path, precision="int8", whole=whole_job, calibration=streets)
    assert 0.97 < exported.agreement < 1  # the logits are others, if only by rounding to 8 bits
    assert exported.images == "the first images for calibration"
    assert "FakeQuantize" in path.read_text()
    assert metadata(path)["precision"] == "int8"


def test_int8_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8 needs a few images like those to come"):
        isanet.export(NANO, tmp_path / "street.xml", precision="int8")
    assert not (tmp_path / "street.xml").exists()


def test_a_file_that_disagrees_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = whole._resize_logits
    monkeypatch.setattr(
        whole, "_resize_logits", lambda graph, logits, size, how: resize(graph, logits, size, "corners")
    )
    (tmp_path / "model.onnx").write_text("earlier")
    with pytest.raises(isanet.IsanetError, match=r"gave 9\d\.\d\d % of the model's own labels, less than 99\.50 %"):
        isanet.export(NANO, tmp_path / "model.onnx", whole=True, overwrite=True)
    assert (tmp_path / "model.onnx").read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} <= {"model.onnx", "home"}


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("earlier")
    with pytest.raises(isanet.OutputError, match=r"exists and was kept; --force \(overwrite=True\) replaces it"):
        isanet.export(NANO, tmp_path / "model.onnx")
    isanet.export(NANO, tmp_path / "model.onnx", overwrite=True)
    assert onnx.load(tmp_path / "model.onnx").producer_name == "isanet"


def test_the_weights_of_another_model_are_kept(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("earlier")
    with pytest.raises(isanet.OutputError, match=r"model\.bin exists and was kept"):
        isanet.export(NANO, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").read_text() == "earlier"
    assert not (tmp_path / "model.xml").exists()


def test_a_folder_in_the_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.bin").mkdir()
    with pytest.raises(isanet.OutputError, match=r"model\.bin is a folder"):
        isanet.export(NANO, tmp_path / "model.xml", overwrite=True)
    assert not (tmp_path / "model.xml").exists()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = network("sssegmentation").float()
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match="weights that are not finite"):
        isanet.export(model, tmp_path / "model.onnx")


def test_what_a_library_raises_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such operator\nat line 7")

    monkeypatch.setattr(write, "_opened_onnx", fails)
    with pytest.raises(isanet.IsanetError, match=r"model\.onnx cannot be written, or not be run: no such operator at"):
        isanet.export(NANO, tmp_path / "model.onnx")


@needs_new_torch
def test_a_double_model_becomes_a_program_in_float32(tmp_path: Path) -> None:
    assert isanet.export(network("sssegmentation"), tmp_path / "model.pt2").agreement > 0.999


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = network("sssegmentation").float().train()
    model.backbone.eval()  # as of frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    isanet.export(model, tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_in_float64_is_written_in_float32(tmp_path: Path) -> None:
    exported = isanet.export(network("sssegmentation"), tmp_path / "model.onnx")
    assert exported.agreement > 0.999
    assert {each.data_type for each in onnx.load(tmp_path / "model.onnx").graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.ts", {}, "torch has deprecated TorchScript; write a .pt2 file"),
        ("model.pth", {}, r"must end in \.onnx, \.xml, \.pt2, got 'model\.pth'"),
        ("model", {}, "must end in"),
        ("model.onnx", {"precision": "int8"}, r"a \.onnx file is written in float32, not 'int8'"),
        ("model.xml", {"precision": "bfloat16"}, r"in float32 or float16 or int8, not 'bfloat16'"),
        ("model.pt2", {"whole": True}, r"the whole job is written as \.onnx or \.xml"),
    ],
)
def test_wrong_arguments(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        isanet.export(NANO, tmp_path / name, **options)
    assert not (tmp_path / name).exists()


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    model = network("sssegmentation").float()
    with pytest.raises(ValueError, match="does not say how its images are prepared"):
        isanet.export(model, tmp_path / "model.onnx", whole=True)
    model.classifier = nn.Sequential(model.classifier)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="cannot be exported: its part 'classifier' is Sequential"):
        isanet.export(model, tmp_path / "model.onnx")


def test_a_folder_that_does_not_exist_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(isanet.OutputError, match=r"cannot write .*missing"):
        isanet.export(NANO, tmp_path / "missing" / "model.onnx")


def absent(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a module were not installed: it cannot be imported either."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(packages, "why_absent", packages.why_absent.__wrapped__)  # without what it remembers


@pytest.mark.parametrize(("module", "name"), [("onnx", "model.onnx"), ("openvino", "model.xml"), ("nncf", "model.xml")])
def test_the_extra_of_an_absent_library_is_named(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(module, monkeypatch)
    with pytest.raises(ValueError, match=rf"this needs the package {module} .*: pip install 'isanet\["):
        isanet.export(NANO, tmp_path / name, precision="int8" if module == "nncf" else "float32")
    assert not (tmp_path / name).exists()


def test_openvino_runs_the_onnx_file_where_onnxruntime_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent("onnxruntime", monkeypatch)
    assert write.export(NANO, tmp_path / "model.onnx").agreement > 0.9999
