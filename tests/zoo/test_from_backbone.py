"""A new model on an ImageNet backbone, which is fetched, verified and cached as models are."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import isanet
from isanet.cli import run as cli
from isanet.labels import LABEL_SPACES, generic_palette
from isanet.weights import cache
from tests.helpers import stand_in, tiny_zoo
from tests.helpers.file_server import FileServer

STATE = tiny_zoo.backbone_state()
NAME = "resnet14_v1c"
SMALL = {"head_channels": 16, "key_channels": 8, "aux_channels": 8}


@pytest.fixture
def publish(tiny: FileServer, tmp_path: Path) -> Callable[[bytes], str]:
    """Puts a backbone's file on the mirror and its entry into the manifest; returns the file's name."""
    return lambda data: tiny_zoo.publish_backbone(tmp_path / "weights.json", tiny.files, data)


@pytest.fixture
def good(publish: Callable[[bytes], str]) -> str:
    return publish(tiny_zoo.saved(STATE))


def model_of(**options: Any) -> isanet.ISANet:
    return isanet.from_backbone("resnet14", **{"num_classes": 3, **SMALL, **options})


def has_the_backbone(model: isanet.ISANet, state: dict[str, Tensor] = STATE) -> bool:
    own = model.backbone.state_dict()
    return own.keys() == {name for name in state if not name.startswith("fc.")} and all(
        torch.equal(value, state[name]) for name, value in own.items()
    )


# --- the model ----------------------------------------------------------------------------------------------


def test_a_file_of_full_size(tiny: FileServer, tmp_path: Path) -> None:
    state = tiny_zoo.backbone_state("resnet50")
    data = tiny_zoo.saved({"state_dict": state})
    tiny_zoo.publish_backbone(tmp_path / "weights.json", tiny.files, data, "resnet50")
    model = isanet.from_backbone("resnet50", label_space="cityscapes19")
    assert has_the_backbone(model, state)
    assert model.config["backbone"] == "resnet50"


def test_the_backbone_is_trained_and_the_head_is_new(good: str) -> None:
    torch.manual_seed(0)
    model = model_of()
    assert has_the_backbone(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.manual_seed(0)
    new = isanet.ISANet(backbone="resnet14", num_classes=3, **SMALL).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, new[name]) != name.startswith("backbone.") or "num_batches" in name, name
    assert model(stand_in.image(33, 40).repeat(2, 1, 1, 1)).shape == (2, 3, 33, 40)


def test_classes_and_preprocessing(good: str) -> None:
    model = model_of()
    assert model.classes == ("class 0", "class 1", "class 2")
    assert model.palette == generic_palette(3)
    assert model.preprocessing == isanet.model_info(tiny_zoo.NAME).preprocessing
    model = model_of(num_classes=None, classes=["road", "sky"], palette=[(1, 2, 3), (4, 5, 6)])
    assert (model.classes, model.palette) == (("road", "sky"), ((1, 2, 3), (4, 5, 6)))
    own = {**model.preprocessing, "short_edge": 128}
    model = model_of(num_classes=None, label_space="toystreets", preprocessing=own, aux_channels=4)
    space = LABEL_SPACES["toystreets"]
    assert (model.classes, model.palette, model.label_space) == (space.classes, space.palette, "toystreets")
    assert model.preprocessing == own
    assert model.config["aux_channels"] == 4
    assert json.loads(json.dumps(model.config)) == model.config
    model.preprocessing["mean"][0] = 0.0
    assert model_of().preprocessing["mean"][0] == 123.675


def test_it_says_where_the_backbone_came_from(good: str, tiny: FileServer, tmp_path: Path) -> None:
    model = model_of()
    assert model.provenance["backbone_name"] == NAME
    assert model.provenance["backbone_source"] == f"{tiny.url}/{good}"
    assert model.provenance["backbone_source_sha256"].startswith(good[-12:-4])
    model.save_pretrained(tmp_path / "mine")
    assert isanet.from_pretrained(tmp_path / "mine").provenance == model.provenance
    assert f"started from the backbone in `{tiny.url}/{good}`" in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet26"}, ValueError, "no trained backbone 'resnet26'; there are resnet14"),
        ({"width": 32}, ValueError, "has a width of 64, got 32"),
        ({"num_classes": None}, ValueError, "needs num_classes or classes"),
        ({"num_classes": 0}, ValueError, "from 1 to"),
        ({"num_classes": 2, "classes": ["a"]}, ValueError, "contradicts"),
        ({"num_classes": None, "classes": "road"}, ValueError, "list of names"),
        ({"num_classes": None, "label_space": "voc"}, ValueError, "unknown label space 'voc'"),
        ({"label_space": "voc21"}, ValueError, "3 different names"),
        ({"num_classes": None, "label_space": "voc21", "classes": ["a"]}, ValueError, "leave out"),
        ({"palette": [(0, 0, 0)]}, ValueError, "3 colors"),
        ({"preprocessing": {"mean": 0}}, ValueError, "preprocessing must have"),
        ({"heads": 2}, TypeError, "heads"),
    ],
)
def test_a_wrong_call_fetches_nothing(
    good: str, tiny: FileServer, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        isanet.from_backbone(**{"backbone": "resnet14", "num_classes": 3, **SMALL, **options})
    assert not tiny.requests


# --- the file -----------------------------------------------------------------------------------------------


def without(*names: str) -> dict[str, Tensor]:
    return {name: value for name, value in STATE.items() if not name.endswith(names)}


@pytest.mark.parametrize(
    ("contents", "zipped"),
    [
        (STATE, True),
        (STATE, False),
        ({"state_dict": STATE, "meta": {"epoch": 1}}, True),
        ({"state_dict": {f"module.{name}": value for name, value in STATE.items()}}, True),
        (without("fc.weight", "fc.bias"), True),
    ],
    ids=["bare", "legacy", "wrapped", "module", "no classifier"],
)
def test_every_form_of_file(publish: Callable[[bytes], str], contents: object, zipped: bool) -> None:
    publish(tiny_zoo.saved(contents, _use_new_zipfile_serialization=zipped))
    assert has_the_backbone(model_of())


def test_a_file_without_counters_counts_from_zero(publish: Callable[[bytes], str]) -> None:
    publish(tiny_zoo.saved(without("num_batches_tracked")))
    zeros = {name: torch.tensor(0) for name in STATE if name.endswith("num_batches_tracked")}
    assert has_the_backbone(model_of(), {**STATE, **zeros})


class Calls:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch was_run",)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (lambda: without("layer1.0.conv2.weight"), "layer1.0.conv2.weight is missing"),
    "a counter missing": (lambda: without("stem.1.num_batches_tracked"), "stem.1.num_batches_tracked is missing"),
    "extra": (lambda: {**STATE, "layer1.0.conv2.bias": torch.ones(64)}, "layer1.0.conv2.bias is not part"),
    "of another network": (lambda: {**STATE, "conv1.weight": torch.ones(1)}, "not part of a ResNet in mmcv_v1c's"),
    "another shape": (lambda: {**STATE, "stem.0.weight": torch.ones(64, 3, 3, 3)}, r"expected \(32, 3, 3, 3\)"),
    "not a number": (lambda: {**STATE, "stem.1.bias": torch.full((32,), torch.nan)}, "stem.1.bias has values"),
    "negative variance": (lambda: {**STATE, "stem.1.running_var": -torch.ones(32)}, "negative variance"),
    "half precision": (lambda: {name: value.half() for name, value in STATE.items()}, "float16|bytes"),
    "double precision": (lambda: {**STATE, "stem.1.bias": torch.zeros(32, dtype=torch.float64)}, "bytes"),
    "a whole model": (lambda: tiny_zoo.upstream_state(), "not part of a ResNet"),
    "a pickle that calls": (lambda: {"state_dict": {**STATE, "meta": Calls()}}, r"posix\.system"),
    "no tensors": (lambda: {"state_dict": {}}, "state dict"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_not_the_backbone_is_refused_and_nothing_is_cached(
    publish: Callable[[bytes], str], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    contents, message = WRONG[case]
    publish(tiny_zoo.saved(contents()))
    with pytest.raises(isanet.MirrorsExhaustedError, match=message):
        model_of()
    assert {path.name for path in home.iterdir()} <= {f"{NAME}.lock"}  # which filelock 3 removes
    assert not Path("was_run").exists()


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_whose_hash_is_not_the_one_in_its_name_is_refused(
    good: str, tiny: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    other = tiny_zoo.saved({**STATE, "fc.bias": torch.zeros(1000)})  # the same backbone, another file
    digits, found = good[-12:-4], sha256(other).hexdigest()
    tiny.files[f"/{good}"] = other
    if by_hand:
        home.mkdir()
        (home / good).write_bytes(other)
        monkeypatch.setenv("ISANET_OFFLINE", "1")
    error = isanet.IntegrityError if by_hand else isanet.MirrorsExhaustedError
    with pytest.raises(error, match=rf"has sha256 {found}, expected {digits}\.\.\."):
        model_of()
    assert cache.cached_file(NAME) is None


def test_it_is_fetched_once_and_then_needs_no_network(
    good: str, tiny: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model_of()
    assert "nobody has published its hash beyond 8 digits" in caplog.text
    assert [path for _, path, _ in tiny.requests] == [f"/{good}"]
    assert {path.suffix for path in home.iterdir()} - {".lock"} == {".json", ".safetensors"}
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert has_the_backbone(model_of())
    path = cache.cached_file(NAME)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(isanet.OfflineError, match=good):
        model_of()


def test_a_file_put_there_by_hand(good: str, tiny: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / good).write_bytes(bytes(tiny.files[f"/{good}"]))
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert has_the_backbone(model_of())


def test_a_broken_transfer_is_resumed(good: str, tiny: FileServer) -> None:
    from tests.helpers.file_server import cut

    tiny.plan[f"/{good}"] = [cut(1_000_000)]
    assert has_the_backbone(model_of())
    assert [headers.get("Range") for _, _, headers in tiny.requests] == [None, "bytes=1000000-"]


def test_a_later_copy_must_match_the_whole_recorded_hash(good: str, home: Path) -> None:
    model_of()
    digits = good[-12:-4]
    record = json.loads((home / f"{NAME}.json").read_text())
    assert record["source_sha256"].startswith(digits)
    # As if the first copy had been another file of the same 8 digits
    (home / f"{NAME}.json").write_text(json.dumps({**record, "source_sha256": digits + "0" * 56}))
    cache.clear(NAME)
    with pytest.raises(isanet.DownloadError, match="wrong bytes") as caught:
        model_of()
    assert f"`isanet cache clear {NAME} --forget`" in str(caught.value)
    assert cli.main(["cache", "clear", NAME, "--forget"]) == 0
    assert has_the_backbone(model_of())


def test_a_pinned_hash_overrules_what_is_cached(good: str, tmp_path: Path) -> None:
    model_of()
    document = json.loads((tmp_path / "weights.json").read_text())
    document["backbones"][NAME]["sha256"] = good[-12:-4] + "0" * 56
    (tmp_path / "weights.json").write_text(json.dumps(document))
    with pytest.raises(isanet.DownloadError, match="wrong bytes"):
        model_of()


def test_the_command_line_knows_it(
    good: str, tiny: FileServer, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download", NAME]) == 0
    assert f"{NAME} is ready" in capsys.readouterr().out
    assert cli.main(["list"]) == 0
    assert NAME not in capsys.readouterr().out, "it is no model"
    assert cli.main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert NAME in out
    assert f"{tiny.url}/{good}" in out
    assert cli.main(["verify", "--pin", "--manifest", str(tmp_path / "weights.json")]) == 0
    assert f"{NAME}: good" in capsys.readouterr().out
    pinned = json.loads((tmp_path / "weights.json").read_text())["backbones"][NAME]
    assert pinned["sha256"] == sha256(bytes(tiny.files[f"/{good}"])).hexdigest()
    assert cli.main(["cache", "clear"]) == 0
    assert cache.cached_file(NAME) is None
    assert cli.main(["verify", NAME]) == 1
    assert "not cached" in capsys.readouterr().out
