"""From a name, a file, a folder to a model; see test_hub.py for repositories and test_r50.py for full size."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import isanet
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.weights import checkpoint, convert
from isanet.zoo import pretrained as zoo
from isanet.zoo import released
from tests.helpers import stand_in, tiny_zoo
from tests.helpers.disk import full_at
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]


def upstream_file(folder: Path, **architecture: Any) -> Path:
    path = folder / "checkpoint.pth"
    path.write_bytes(tiny_zoo.saved({"model": tiny_zoo.upstream_state(**architecture)}))
    return path


def logits(model: ISANet) -> Tensor:
    with torch.inference_mode():
        return model(stand_in.image(40, 50))


def expected_logits() -> Tensor:
    state = tiny_zoo.upstream_state()
    model = ISANet(**tiny_zoo.ARCHITECTURE)
    model.load_state_dict(convert.convert(state, "sssegmentation"))
    return logits(model.eval())


def test_every_kind_of_source_gives_the_same_model(tiny: FileServer, tmp_path: Path) -> None:
    released = isanet.from_pretrained(tiny_zoo.NAME)
    assert not released.training
    assert {p.dtype for p in released.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in released.parameters())
    assert released.classes == LABEL_SPACES["voc21"].classes
    assert released.palette == LABEL_SPACES["voc21"].palette
    torch.testing.assert_close(logits(released), expected_logits(), rtol=0, atol=0)
    released.save_pretrained(tmp_path / "folder")
    zoo.convert_file(upstream_file(tmp_path), tmp_path / "one.safetensors")
    sources = [
        tmp_path / "folder",
        str(tmp_path / "folder"),
        tmp_path / "checkpoint.pth",
        str(tmp_path / "one.safetensors"),
    ]
    for source in [*sources, tmp_path / "folder" / "model.safetensors"]:
        model = isanet.from_pretrained(source)
        assert torch.equal(logits(model), logits(released)), source
        assert model.config == released.config, source


def test_a_bare_safetensors_file_tells_its_architecture(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tiny_zoo.upstream_state(), tmp_path / "bare.safetensors")
    assert torch.equal(logits(isanet.from_pretrained(tmp_path / "bare.safetensors")), expected_logits())


@pytest.mark.parametrize(
    ("count", "space", "edge"), [(21, "voc21", 512), (150, "ade20k150", 512), (19, "cityscapes19", 1024)]
)
def test_a_bare_file_with_known_classes_gets_their_space(
    count: int, space: str, edge: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isanet")
    model = isanet.from_pretrained(upstream_file(tmp_path, num_classes=count))
    assert model.label_space == space
    assert model.classes == LABEL_SPACES[space].classes
    assert model.preprocessing["short_edge"] == edge
    assert space in caplog.text


def test_a_bare_file_with_unknown_classes_numbers_them_or_takes_names(tmp_path: Path) -> None:
    path = upstream_file(tmp_path, num_classes=3)
    model = isanet.from_pretrained(path)
    assert model.classes == ("class 0", "class 1", "class 2")
    assert model.label_space is None
    assert len(set(model.palette)) == 3
    model.save_pretrained(tmp_path / "numbered")
    for source in (path, tmp_path / "numbered"):
        named = isanet.from_pretrained(source, classes=["road", "car", "sky"])
        assert named.classes == ("road", "car", "sky")
        assert torch.equal(logits(named), logits(model))
    other = isanet.from_pretrained(path, classes=["class 2", "class 1", "class 0", "sky"])  # numbers are no names
    assert not torch.equal(other.classifier.weight[1], model.classifier.weight[1])


def test_a_cached_model_is_built_once_and_nothing_is_drawn(tiny: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    isanet.from_pretrained(tiny_zoo.NAME)
    built = []
    initialize = ISANet._initialize

    def counted(model: ISANet) -> None:
        built.append(model.classifier.weight.is_meta)
        initialize(model)

    monkeypatch.setattr(ISANet, "_initialize", counted)
    random = torch.get_rng_state()
    isanet.from_pretrained(tiny_zoo.NAME)
    assert built == [True]
    assert torch.equal(torch.get_rng_state(), random)


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
        assert torch.equal(logits(model), expected_logits())
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
        assert model.align_corners is align_corners
        assert (model.config["value_bias"], model.config["fusion_kernel"]) == (True, 1)


def test_new_classes_by_number(tiny: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isanet")
    released = isanet.from_pretrained(tiny_zoo.NAME)
    model = isanet.from_pretrained(tiny_zoo.NAME, num_classes=21)  # as many as before, yet all new
    assert model.classes[:2] == ("class 0", "class 1")
    assert model.label_space is None
    assert len(set(model.palette)) == 21
    before, after = released.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias", "aux_classifier.weight", "aux_classifier.bias"}
    lines = [record.message for record in caplog.records if "new classes" in record.message]
    assert len(lines) == 1
    assert all(name in lines[0] for name in changed)


def test_new_classes_by_name_keep_the_rows_they_know(tiny: FileServer) -> None:
    released = isanet.from_pretrained(tiny_zoo.NAME)
    model = isanet.from_pretrained(tiny_zoo.NAME, classes=["road", "person", "cat"])
    assert model.classes == ("road", "person", "cat")
    assert logits(model).shape[1] == 3
    for head in ("classifier", "aux_classifier"):
        old, new = getattr(released, head), getattr(model, head)
        for name in ("person", "cat"):
            here, there = model.classes.index(name), released.classes.index(name)
            assert torch.equal(new.weight[here], old.weight[there])
            assert torch.equal(new.bias[here], old.bias[there])
            assert model.palette[here] == released.palette[there]
        assert not any(torch.equal(new.weight[0], row) for row in old.weight)
    torch.manual_seed(1)
    first = isanet.from_pretrained(tiny_zoo.NAME, classes=["road"]).classifier.weight
    torch.manual_seed(1)
    assert torch.equal(first, isanet.from_pretrained(tiny_zoo.NAME, classes=["road"]).classifier.weight)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("isanet_tiny_vox", {}, "did you mean isanet_tiny_voc"),
        ("resnet", {}, "there are isanet_tiny_voc"),
        ("no/such/folder", {}, "no file or folder"),
        ("missing.pth", {}, "no file or folder"),
        (tiny_zoo.NAME, {"revision": "v1"}, "Hugging Face Hub"),
        (tiny_zoo.NAME, {"num_classes": 2, "classes": ["one"]}, "contradicts"),
        (tiny_zoo.NAME, {"num_classes": 0}, "from 1 to"),
        (tiny_zoo.NAME, {"num_classes": 2.0}, "whole number"),
        (tiny_zoo.NAME, {"num_classes": "5"}, "whole number"),
        ("", {}, "empty"),
        ("~/no.pth", {}, "no file or folder"),
        (tiny_zoo.NAME, {"classes": ["one", "one"]}, "different names"),
        (tiny_zoo.NAME, {"classes": "person"}, "list of names"),
    ],
)
def test_wrong_calls_are_named(tiny: FileServer, source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        isanet.from_pretrained(source, **options)


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
    zoo.convert_file(upstream_file(tmp_path), tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text(config)
    with pytest.raises(isanet.CheckpointError, match=message):
        isanet.from_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").unlink()
    with pytest.raises(isanet.CheckpointError, match=r"config\.json"):
        isanet.from_pretrained(tmp_path / "folder")


def spoiled(state: dict[str, Tensor], change: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in {**state, **change}.items() if value is not None}


class Calls:
    """A pickle that would run a command when it is loaded freely."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch was_run",)


STATE = tiny_zoo.upstream_state()
WRONG_FILES: dict[str, tuple[bytes, str]] = {
    "missing tensor": (tiny_zoo.saved(spoiled(STATE, {"decoder.1.bias": None})), "classifier.bias is missing"),
    "extra tensor": (tiny_zoo.saved(spoiled(STATE, {"decoder.9.bias": torch.ones(1)})), "decoder.9.bias"),
    "extra of ours": (
        tiny_zoo.saved(spoiled(STATE, {"in_conv.0.bias": torch.ones(16)})),
        "reduce.conv.bias is not part",
    ),
    "other class count": (tiny_zoo.saved(tiny_zoo.upstream_state(num_classes=20)), r"shape \(20, 16, 1, 1\)"),
    "not a number": (tiny_zoo.saved(spoiled(STATE, {"decoder.1.bias": torch.full((21,), torch.nan)})), "not finite"),
    "negative variance": (
        tiny_zoo.saved(spoiled(STATE, {"in_conv.1.running_var": torch.full((16,), -1.0)})),
        "negative variance",
    ),
    "half precision": (tiny_zoo.saved({name: value.half() for name, value in STATE.items()}), "kind|bytes|float"),
    "a pickle that calls": (tiny_zoo.saved({"model": STATE, "meta": Calls()}), r"posix\.system"),
    "truncated": (tiny_zoo.saved(STATE)[:-1000], "truncated"),
    "a web page": (b"<!DOCTYPE html><title>Log in</title>", "HTML"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
    "empty": (b"", "empty|0 bytes"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_refused_and_nothing_is_cached(
    tiny: FileServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data, message = WRONG_FILES[case]
    tiny.files[f"/{tiny_zoo.FILE_NAME}"] = data
    with pytest.raises(isanet.MirrorsExhaustedError, match=message):
        isanet.from_pretrained(tiny_zoo.NAME)
    assert {path.name for path in home.iterdir()} <= {f"{tiny_zoo.NAME}.lock"}
    assert not Path("was_run").exists()
    # A good copy under the second name heals it
    tiny.files["/isanet_tiny.pth"] = tiny_zoo.saved({"model": STATE})
    assert torch.equal(logits(isanet.from_pretrained(tiny_zoo.NAME)), expected_logits())


@pytest.mark.parametrize("case", sorted(set(WRONG_FILES) - {"half precision", "other class count"}))
def test_a_wrong_file_on_disk_has_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    data, message = WRONG_FILES[case]
    Path("wrong.pth").write_bytes(data)
    error = isanet.UnsafeCheckpointError if "calls" in case else isanet.CheckpointError
    with pytest.raises(error, match=message.replace("HTML", "web page")):
        isanet.from_pretrained("wrong.pth")
    assert not Path("was_run").exists()


@pytest.mark.parametrize("environment", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}])
@pytest.mark.parametrize(
    "contents",
    [
        {"epoch": 60, "model": STATE, "optimizer": stand_in.sgd_state(STATE)},
        {
            "cur_epoch": 60,
            "cur_iter": 1,
            "model": STATE,
            "optimizer": {},
            "model_ema": STATE,
            "grad_scaler": {"scale": 1.0},
        },
        {"model": STATE},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
        STATE,
    ],
    ids=["2021", "2023", "weights", "module", "bare"],
)
def test_upstreams_layouts(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch, contents: object, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for zipped in (True, False):
        tiny.files[f"/{tiny_zoo.FILE_NAME}"] = tiny_zoo.saved(contents, _use_new_zipfile_serialization=zipped)
        network, _ = released.load_cached(isanet.model_info(tiny_zoo.NAME), force=True) if zipped else forgotten()
        state = network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in convert.convert(STATE, "sssegmentation").items())


def forgotten() -> released.Loaded:
    from isanet.weights import cache

    cache.clear(tiny_zoo.NAME, forget=True)
    return released.load_cached(isanet.model_info(tiny_zoo.NAME))


def test_a_saved_model_says_where_it_came_from(tiny: FileServer, tmp_path: Path) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    assert model.provenance["source"] == f"{tiny.url}/{tiny_zoo.FILE_NAME}"
    assert model.provenance["source_sha256"]
    model.save_pretrained(tmp_path / "mine")
    again = isanet.from_pretrained(tmp_path / "mine")
    assert again.provenance == model.provenance
    card = (tmp_path / "mine" / "README.md").read_text()
    for words in (
        "library_name: isanet",
        "pipeline_tag: image-segmentation",
        "76.99 %",
        "Apache-2.0",
        "Segmenter",
        "PASCAL VOC",
    ):
        assert words in card
    (tmp_path / "mine" / "README.md").write_text("my own words")
    again.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my own words"
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == model.config


def test_a_failed_save_changes_no_file(tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    isanet.from_pretrained(tiny_zoo.NAME, classes=["a", "b"]).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full_at(monkeypatch, file=2)
    with pytest.raises(isanet.OutputError, match="No space left"):
        isanet.from_pretrained(tiny_zoo.NAME, classes=["b", "a"]).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_same_model_is_saved_as_the_same_bytes(tiny: FileServer, tmp_path: Path) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")}) == 1


def test_saving_where_nothing_can_be_written_is_named(tiny: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(isanet.OutputError, match="earlier files are unchanged"):
        isanet.from_pretrained(tiny_zoo.NAME).save_pretrained(tmp_path / "file" / "folder")


def test_a_half_precision_model_is_saved_as_float32(tiny: FileServer, tmp_path: Path) -> None:
    isanet.from_pretrained(tiny_zoo.NAME).half().save_pretrained(tmp_path / "half")
    again = isanet.from_pretrained(tmp_path / "half")
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32, torch.int64}
    np.testing.assert_allclose(logits(again), expected_logits(), atol=0.05 * float(expected_logits().abs().max()))


@pytest.mark.parametrize("kind", ["num_classes", "classes", "neither"])
def test_builders_without_weights(kind: str) -> None:
    options: dict[str, Any] = {
        "num_classes": {"num_classes": 3},
        "classes": {"classes": ["a", "cat", "b"]},
        "neither": {},
    }[kind]
    with torch.device("meta"):
        model = zoo.isanet_r50_voc(pretrained=False, **options)
    assert len(model.classes) == (21 if kind == "neither" else 3)
    assert model.preprocessing["short_edge"] == 512
    with pytest.raises(TypeError, match="revision"):
        zoo.isanet_r50_voc(pretrained=False, revision="main")
    with pytest.raises(ValueError, match="list of names"):
        zoo.isanet_r50_voc(pretrained=False, classes="person")
    with pytest.raises(ValueError, match="contradicts"):
        zoo.isanet_r50_voc(pretrained=False, num_classes=5, classes=["a", "b"])


def test_pinning_writes_what_was_measured(tiny: FileServer, tmp_path: Path) -> None:
    isanet.from_pretrained(tiny_zoo.NAME)
    record = released.verify(isanet.model_info(tiny_zoo.NAME))
    manifest = tmp_path / "weights.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()), indent=1) + "\n")
    before = manifest.read_text().splitlines()
    released.pin({tiny_zoo.NAME: record}, manifest)
    changed = [line for line in manifest.read_text().splitlines() if line not in before]
    assert len(changed) == 2
    weights = isanet.model_info(tiny_zoo.NAME)
    assert weights.sha256 == record.source_sha256
    assert weights.size == len(tiny.files[f"/{tiny_zoo.FILE_NAME}"])  # type: ignore[arg-type]
