"""From a name, a file or a folder to a model; tests/weights/test_hub.py has repositories, test_r50.py full size."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import isanet
from isanet.labels import LABEL_SPACES
from isanet.weights import checkpoint, convert
from isanet.zoo.pretrained import convert_file
from tests.helpers import stand_in, tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.wrong_files import STATE, WRONG_FILES

ROOT = Path(__file__).parents[2]


def test_every_kind_of_source_gives_the_same_model(tiny: FileServer, tmp_path: Path) -> None:
    released = isanet.from_pretrained(tiny_zoo.NAME)
    assert not released.training
    assert {p.dtype for p in released.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in released.parameters())
    assert released.classes == LABEL_SPACES["voc21"].classes
    assert released.palette == LABEL_SPACES["voc21"].palette
    torch.testing.assert_close(tiny_zoo.logits(released), tiny_zoo.expected_logits(), rtol=0, atol=0)
    released.save_pretrained(tmp_path / "folder")
    convert_file(tiny_zoo.upstream_file(tmp_path), tmp_path / "one.safetensors")
    sources = [
        tmp_path / "folder",
        str(tmp_path / "folder"),
        tmp_path / "checkpoint.pth",
        str(tmp_path / "one.safetensors"),
    ]
    for source in [*sources, tmp_path / "folder" / "model.safetensors"]:
        model = isanet.from_pretrained(source)
        assert torch.equal(tiny_zoo.logits(model), tiny_zoo.logits(released)), source
        assert model.config == released.config, source


def test_a_bare_safetensors_file_tells_its_architecture(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tiny_zoo.upstream_state(), tmp_path / "bare.safetensors")
    assert torch.equal(
        tiny_zoo.logits(isanet.from_pretrained(tmp_path / "bare.safetensors")), tiny_zoo.expected_logits()
    )


@pytest.mark.parametrize(
    ("count", "space", "edge"), [(21, "voc21", 512), (150, "ade20k150", 512), (19, "cityscapes19", 1024)]
)
def test_a_bare_file_with_known_classes_gets_their_space(
    count: int, space: str, edge: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isanet")
    model = isanet.from_pretrained(tiny_zoo.upstream_file(tmp_path, num_classes=count))
    assert model.label_space == space
    assert model.classes == LABEL_SPACES[space].classes
    assert model.preprocessing["short_edge"] == edge
    assert space in caplog.text


def test_a_bare_file_with_unknown_classes_numbers_them_or_takes_names(tmp_path: Path) -> None:
    path = tiny_zoo.upstream_file(tmp_path, num_classes=3)
    model = isanet.from_pretrained(path)
    assert model.classes == ("class 0", "class 1", "class 2")
    assert model.label_space is None
    assert len(set(model.palette)) == 3
    model.save_pretrained(tmp_path / "numbered")
    for source in (path, tmp_path / "numbered"):
        named = isanet.from_pretrained(source, classes=["road", "car", "sky"])
        assert named.classes == ("road", "car", "sky")
        assert torch.equal(tiny_zoo.logits(named), tiny_zoo.logits(model))
    other = isanet.from_pretrained(path, classes=["class 2", "class 1", "class 0", "sky"])  # numbers are no names
    assert not torch.equal(other.classifier.weight[1], model.classifier.weight[1])


def test_loading_does_not_wait_for_torchs_tracer(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from isanet.zoo.pretrained import from_pretrained\n"
        "before = set(sys.modules)\n"
        "from_pretrained('isanet_nano_toystreets')\n"
        "added = set(sys.modules) - before\n"
        "assert len(added) < 20, sorted(added)\n"  # initializing meta tensors imports sympy: 900 modules, seconds
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_defaults_change_nothing(tiny: FileServer, dtype: torch.dtype) -> None:
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            first = isanet.from_pretrained(tiny_zoo.NAME)
            swapped = isanet.from_pretrained(tiny_zoo.NAME, num_classes=3)
    finally:
        torch.set_default_dtype(torch.float32)
    for model in (first, isanet.from_pretrained(tiny_zoo.NAME)):
        assert torch.equal(tiny_zoo.logits(model), tiny_zoo.expected_logits())
    for model in (first, swapped):
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
        assert {value.device.type for value in model.state_dict().values()} == {"cpu"}


def test_a_model_does_not_keep_its_optimizers_memory(tmp_path: Path) -> None:
    path = tmp_path / "trained.pth"
    path.write_bytes(tiny_zoo.saved({"model": STATE, "optimizer": stand_in.sgd_state(STATE)}))
    file = checkpoint.read_file(path)
    inside = range(file.data.ctypes.data, file.data.ctypes.data + len(file.data))
    state = convert.unwrap(checkpoint.read_checkpoint(file)[0])
    assert all(value.data_ptr() in inside for value in state.values() if value.numel() > 1)
    assert not any(value.data_ptr() in inside for value in checkpoint.release_file_buffer(state, file).values())


def test_mmsegmentations_files_and_their_notes(tmp_path: Path) -> None:
    state = tiny_zoo.upstream_state("mmsegmentation")
    for notes, align_corners in (("align_corners=False", False), ("decode_head=dict(align_corners=True)", True)):
        path = tmp_path / "mm.pth"
        path.write_bytes(tiny_zoo.saved({"meta": {"config": notes, "CLASSES": ["a"]}, "state_dict": state}))
        model = isanet.from_pretrained(path)
        assert (model.logits_resize == "corners") is align_corners
        assert (model.config["value_bias"], model.config["fusion_kernel"]) == (True, 1)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("isanet_tiny_vox", {}, "did you mean isanet_tiny_voc"),
        ("resnet", {}, "`isanet list` shows all"),
        ("no/such/folder", {}, "no file or folder"),
        ("missing.pth", {}, "no file or folder"),
        (tiny_zoo.NAME, {"revision": "v1"}, "Hugging Face Hub"),
        (tiny_zoo.NAME, {"num_classes": 2, "classes": ["one"]}, "contradicts"),
        (tiny_zoo.NAME, {"num_classes": 0}, "from 1 to"),
        (tiny_zoo.NAME, {"num_classes": 2.0}, "whole number"),
        (tiny_zoo.NAME, {"num_classes": "5"}, "whole number"),
        ("", {}, "empty"),
        ("~/no.pth", {}, "no file or folder"),
        ("a" * 300, {}, "no model"),
        ("a\0b/c d", {}, "no file or folder"),
        (tiny_zoo.NAME, {"classes": ["one", "one"]}, "different names"),
        (tiny_zoo.NAME, {"classes": "person"}, "list of names"),
    ],
)
def test_wrong_calls_are_named(tiny: FileServer, source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        isanet.from_pretrained(source, **options)


@pytest.mark.parametrize("form", ["torch", "folder"])
def test_more_classes_than_any_label_space_has_are_refused(tmp_path: Path, form: str) -> None:
    """A few MB of classifier would keep a single image busy for many minutes."""
    state = tiny_zoo.upstream_state()
    heads = ("decoder.1.weight", "decoder.1.bias", "auxiliary_decoder.4.weight", "auxiliary_decoder.4.bias")
    state |= {name: torch.zeros(65536, *state[name].shape[1:]) for name in heads}
    path = tmp_path / "many.pth"
    path.write_bytes(tiny_zoo.saved(state))
    if form == "folder":
        convert_file(tiny_zoo.upstream_file(tmp_path), path := tmp_path / "folder")
        config = json.loads((path / "config.json").read_text())
        del config["classes"], config["palette"]
        (path / "config.json").write_text(json.dumps({**config, "num_classes": 65536}))
    with pytest.raises(isanet.CheckpointError, match=r"from 1 to 4096, got 65536: .* would take 4\.3 GB"):
        isanet.from_pretrained(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "config.json"),
        ("[]", "object"),
        ("{}", "num_classes"),
        ('{"num_classes": 21, "surprise": 1}', "surprise"),
        ('{"num_classes": 1000000000}', "from 1 to"),
        ('{"num_classes": 21, "width": "wide"}', "configuration of an ISANet"),
        ('{"num_classes": 20}', "is missing"),
        ("[" * 100_000, "configuration"),
    ],
)
def test_a_broken_folder_is_named(tmp_path: Path, config: str, message: str) -> None:
    convert_file(tiny_zoo.upstream_file(tmp_path), tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text(config)
    with pytest.raises(isanet.CheckpointError, match=message):
        isanet.from_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").unlink()
    with pytest.raises(isanet.CheckpointError, match=r"config\.json"):
        isanet.from_pretrained(tmp_path / "folder")


@pytest.mark.parametrize("case", sorted(set(WRONG_FILES) - {"half precision", "other class count"}))
def test_a_wrong_file_on_disk_has_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    data, message = WRONG_FILES[case]
    Path("wrong.pth").write_bytes(data)
    error = isanet.UnsafeCheckpointError if "calls" in case else isanet.CheckpointError
    with pytest.raises(error, match=message.replace("HTML", "web page")):
        isanet.from_pretrained("wrong.pth")
    assert not Path("was_run").exists()


@pytest.mark.filterwarnings("ignore:the file does not say")
@pytest.mark.parametrize("order", [["short_range", "long_range"], ["long_range"], ["short_range"]])
def test_another_order_of_attention_comes_back_from_a_folder_a_file_and_bare_weights(
    order: list[str], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "backbone": "resnet14",
        "width": 8,
        "head_channels": 8,
        "key_channels": 4,
        "aux_channels": 8,
    }
    model = isanet.ISANet(num_classes=3, attention_order=order, **arguments).eval()
    model.save_pretrained(tmp_path / "model")
    torch.save({"model": model.state_dict()}, tmp_path / "bare.pth")
    images = torch.randn(1, 3, 70, 90)
    for source in ("model", "model/model.safetensors", "bare.pth"):
        again = isanet.from_pretrained(tmp_path / source).eval()
        if source != "bare.pth" or len(order) == 1:  # nothing in bare weights tells the order of two
            assert list(again.attention_order) == order
            with torch.inference_mode():
                torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    assert isanet.from_pretrained(tmp_path / "model", classes=["one", "two"]).config["attention_order"] == order
