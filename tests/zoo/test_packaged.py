"""A model whose file is inside the package: it works like any other, without a network and without a cache."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isanet
from isanet import datasets, toystreets
from isanet.cli import run as cli
from isanet.config import config_json
from isanet.model import ISANet
from isanet.toystreets.draw import CAR
from isanet.weights import checkpoint
from isanet.weights.manifest import load_manifest, packaged_path
from isanet.zoo import builders, publish, released
from isanet.zoo.pretrained import imagenet_preprocessing
from tests.helpers import stand_in, tiny_zoo

ROOT = Path(__file__).parents[2]
NAME = "isanet_stand_in_toystreets"
FACTS: dict[str, Any] = {
    "gmacs": 0.25,
    "metrics": {"dataset": "ToyStreets", "split": "test", "miou": 0.5, "protocol": "whole"},
    "recipe": {"train_split": "train", "optimizer": "SGD", "schedule": "poly", "ignore_index": 255},
    "license": "Apache-2.0",
}


def trained(**options: Any) -> ISANet:
    """A tiny model of street scenes, whose batch-norm counters and statistics are not the initial ones."""
    arguments: dict[str, Any] = {**tiny_zoo.ARCHITECTURE, "num_classes": 11, "label_space": "toystreets"}
    arguments |= {"classes": toystreets.CLASSES, "palette": toystreets.SPACE.palette}
    arguments["preprocessing"] = imagenet_preprocessing() | {"short_edge": 64}
    model = ISANet(**arguments | options)
    state = model.state_dict()
    model.load_state_dict({name: stand_in.tensor(name, tuple(value.shape)) for name, value in state.items()})
    return model.eval()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the installed package: a manifest of two models, and the file of the packaged one.

    Nothing answers on the network, and every connection fails the test.
    """
    folder = tmp_path / "package"
    (folder / "assets").mkdir(parents=True)
    tiny_zoo.manifest_of_one(folder / "weights.json")
    monkeypatch.setattr("isanet.weights.manifest.PACKAGE", folder)
    publish.package_model(trained(), NAME, **FACTS)

    def refuse(*_: object) -> None:
        pytest.fail("a socket was opened")

    for call in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, call, refuse)
    return folder


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def logits(model: ISANet) -> torch.Tensor:
    with torch.inference_mode():
        return model(stand_in.image(40, 50))


# --- loading ------------------------------------------------------------------------------------------------


def test_it_loads_like_any_other_model_without_network_or_cache(package: Path, home: Path) -> None:
    model, original = isanet.from_pretrained(NAME), trained()
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    assert not model.training
    assert model.config == original.config
    for name, value in original.state_dict().items():
        stored = value.half().float() if value.is_floating_point() else value
        assert torch.equal(model.state_dict()[name], stored), name
    torch.testing.assert_close(logits(model), logits(original), rtol=0, atol=0.02 * float(logits(original).std()))
    assert not home.exists()


def test_it_says_where_it_came_from(package: Path) -> None:
    data = packaged_path(NAME).read_bytes()
    weights = isanet.model_info(NAME)
    assert weights.packaged
    assert (weights.sha256, weights.size) == (sha256(data).hexdigest(), len(data))
    assert isanet.from_pretrained(NAME).provenance == {
        "name": NAME,
        "source": f"{NAME}.safetensors, inside the package",
        "source_sha256": weights.sha256,
        "layout": "isanet",
        "converter_version": "1",
        "isanet_version": isanet.__version__,
    }


def test_the_file_is_small_and_tells_its_own_architecture(package: Path) -> None:
    path = packaged_path(NAME)
    tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(path))
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.int64}
    assert metadata["config"] == config_json(trained().config)
    assert torch.equal(logits(isanet.from_pretrained(path)), logits(isanet.from_pretrained(NAME)))


def test_new_classes(package: Path) -> None:
    model, new = isanet.from_pretrained(NAME), isanet.from_pretrained(NAME, classes=["car", "lorry"])
    assert torch.equal(new.classifier.weight[0], model.classifier.weight[CAR])
    assert logits(isanet.from_pretrained(NAME, num_classes=3)).shape[1] == 3


def test_it_is_evaluated_and_described_as_what_it_is(package: Path, tmp_path: Path) -> None:
    isanet.from_pretrained(NAME).save_pretrained(tmp_path / "mine")
    assert "50.00 %" in (tmp_path / "mine" / "README.md").read_text()
    scenes = datasets.ToyStreets(2, size=(64, 64), split="test")
    report = isanet.evaluate(NAME, scenes, workers=0)
    assert report.published == FACTS["metrics"]
    assert not any("weights are not the released ones" in reason for reason in report.incomparable)


def test_its_recipe_is_a_recipe(package: Path) -> None:
    assert isanet.Recipe.published(NAME) == isanet.Recipe()


def test_a_builder(package: Path, home: Path) -> None:
    build = builders._builder(NAME)
    assert torch.equal(logits(build()), logits(isanet.from_pretrained(NAME)))
    assert build(pretrained=False, num_classes=3).classes == ("class 0", "class 1", "class 2")
    assert not home.exists()


def test_torch_hub_offers_it_with_one_line_in_builders_and_hubconf(package: Path, tmp_path: Path, home: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "isanet", checkout / "isanet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(packaged_path(NAME), checkout / "isanet" / "assets")
    shutil.copy(package / "weights.json", checkout)
    with (checkout / "isanet" / "zoo" / "builders.py").open("a") as file:
        file.write(f'\n{NAME} = _builder("{NAME}")\n')
    shutil.copy(ROOT / "hubconf.py", checkout)
    with (checkout / "hubconf.py").open("a") as file:
        file.write(f"\nfrom isanet.zoo.builders import {NAME}\n")
    code = (
        "import torch\n"
        f"model = torch.hub.load({str(checkout)!r}, {NAME!r}, source='local')\n"
        "import isanet\n"
        f"assert isanet.__file__.startswith({str(checkout)!r})\n"
        "print(len(model.classes), float(model.classifier.weight.detach().sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"11 {float(isanet.from_pretrained(NAME).classifier.weight.detach().sum())}\n"
    assert not home.exists()


# --- a package that is not what it was ----------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a bit": (flip, isanet.IntegrityError, "expected"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), isanet.IntegrityError, "expected"),
    "empty": (lambda path: path.write_bytes(b""), isanet.IntegrityError, "expected"),
    "missing": (Path.unlink, isanet.CheckpointError, "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_before_it_is_parsed(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    change, error, message = DAMAGES[damage]
    change(packaged_path(NAME))
    monkeypatch.setattr(checkpoint, "read_checkpoint", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(error, match=message) as caught:
        isanet.from_pretrained(NAME)
    assert str(packaged_path(NAME)) in str(caught.value)
    assert "install isanet again" in str(caught.value)
    assert run("verify") == 1
    assert f"{NAME}: FAILED" in capsys.readouterr().out
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert run("doctor") == 1
    assert f"{NAME}, FAILED" in capsys.readouterr().out


def test_the_bytes_that_were_hashed_are_those_that_are_parsed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, read = logits(isanet.from_pretrained(NAME)), checkpoint.read_file
    places = []

    def read_then_swap(path: Path) -> Any:
        places.append(path)
        file = read(path)
        path.write_bytes(b"swapped")
        return file

    monkeypatch.setattr(checkpoint, "read_file", read_then_swap)
    assert torch.equal(logits(isanet.from_pretrained(NAME)), expected)
    assert places == [packaged_path(NAME)]


@pytest.mark.parametrize(
    ("change", "message"), [({"tensors": 1}, "expected 1 of"), ({"payload": 1}, "of 1"), ({"sha256": "0" * 64}, "000")]
)
def test_a_file_that_does_not_match_the_manifest_is_refused(
    package: Path, change: dict[str, Any], message: str
) -> None:
    document = json.loads((package / "weights.json").read_text())
    document["weights"][NAME] |= change
    (package / "weights.json").write_text(json.dumps(document))
    with pytest.raises(isanet.IntegrityError, match=message):
        isanet.from_pretrained(NAME)


# --- the command line ---------------------------------------------------------------------------------------


def test_list_and_info(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    head, _, row = capsys.readouterr().out.partition("ToyStreets test: ")[2].splitlines()[:3]
    assert head == "1 model (--dataset toystreets)"
    assert (row.split()[:2], row.split()[-1]) == ([NAME, "50.00"], "packaged")
    assert run("info", NAME) == 0
    out = capsys.readouterr().out
    for words in (str(packaged_path(NAME)), isanet.model_info(NAME).sha256, "not needed", "Label space toystreets"):
        assert str(words) in out


def test_download_verify_and_cache_have_nothing_to_do(
    package: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ((), ("--force", "--keep")):
        assert run("download", NAME, *options) == 0
        assert f"{NAME} is in the package: {packaged_path(NAME)}" in capsys.readouterr().out
    for names in ((), (NAME,)):
        assert run("verify", *names) == 0
        out = capsys.readouterr().out
        assert f"{NAME}: good. In the package" in out
        assert f"{isanet.model_info(NAME).sha256} (as in the manifest)" in out
    before = (package / "weights.json").read_text()
    assert run("verify", "--pin") == 0
    assert "pinned nothing" in capsys.readouterr().out
    assert json.loads((package / "weights.json").read_text()) == json.loads(before)
    assert run("cache", "list") == 0
    assert "nothing is cached" in capsys.readouterr().out
    assert run("cache", "clear", NAME) == 0
    assert not home.exists()
    home.mkdir()
    assert run("cache", "clear", NAME) == 0
    assert "freed 0 MB" in capsys.readouterr().out
    assert not list(home.iterdir())
    assert packaged_path(NAME).exists()


def test_doctor(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert "cached: nothing" in out
    assert f"in the package: {NAME}, good" in out


def test_doctor_asks_the_first_model_that_has_addresses(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((package / "weights.json").read_text())
    document["weights"] = dict(reversed(document["weights"].items()))
    (package / "weights.json").write_text(json.dumps(document))
    assert isanet.list_models()[0] == NAME
    monkeypatch.setattr("isanet.weights.http.probe", lambda url: "answers")
    assert run("doctor") == 0
    assert tiny_zoo.FILE_NAME in capsys.readouterr().out


def test_segment(package: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toystreets.draw_scene(1, (64, 96))[0].save("street.png")
    assert run("segment", "street.png", "--model", NAME, "--labels", "--areas") == 0
    with Image.open("segmented/street_labels.png") as image:
        assert image.size == (96, 64)
    assert set(json.loads(Path("segmented/street_areas.json").read_text())) <= set(toystreets.CLASSES)
    assert run("segment", "street.png", "--model", NAME, "--ids") == 1  # there is no server
    assert not home.exists()


# --- putting one into the package ---------------------------------------------------------------------------


def wide() -> ISANet:
    return trained(head_channels=256)


def with_custom_classes() -> ISANet:
    return trained(label_space=None)


def recolored() -> ISANet:
    return trained(palette=[(0, 0, 0)] * 11)


def beyond_half() -> ISANet:
    model = trained()
    with torch.no_grad():
        model.classifier.weight[0] = 1e6
    return model


@pytest.mark.parametrize(
    ("make", "name", "facts", "message"),
    [
        (wide, "new", {}, "at most 3,000,000"),
        (with_custom_classes, "new", {}, "of a label space"),
        (recolored, "new", {}, "of a label space"),
        (beyond_half, "new", {}, "classifier.weight has values that are not finite"),
        (trained, "new", {"metrics": {"miou": 0.5}}, "new.metrics: expected"),
        (trained, NAME, {"license": ""}, f"{NAME}.license: expected"),
        (trained, "../new", {}, "lower-case"),
    ],
)
def test_what_cannot_be_packaged_changes_nothing(
    package: Path, make: Callable[[], ISANet], name: str, facts: dict[str, Any], message: str
) -> None:
    before = {path: path.read_bytes() for path in package.parent.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        publish.package_model(make(), name, **{**FACTS, **facts})
    assert {path: path.read_bytes() for path in package.parent.rglob("*") if path.is_file()} == before


def test_packaging_leaves_the_model_alone_and_replaces_the_entry(package: Path) -> None:
    model = trained()
    with torch.no_grad():
        model.classifier.bias += 1 / 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = publish.package_model(model, NAME, **{**FACTS, "metrics": {**FACTS["metrics"], "miou": 0.25}})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert weights == isanet.model_info(NAME)
    assert weights.metrics["miou"] == 0.25
    assert isanet.list_models() == [tiny_zoo.NAME, NAME]
    assert torch.equal(isanet.from_pretrained(NAME).classifier.bias, model.classifier.bias.half().float())
    text = (package / "weights.json").read_text()
    assert json.dumps(json.loads(text), indent=1) + "\n" == text


def test_the_packages_own_packaged_models_are_what_its_manifest_says() -> None:
    packaged = {name: weights for name, weights in load_manifest().items() if weights.packaged}
    assert {path.stem for path in (ROOT / "isanet" / "assets").glob("*.safetensors")} == set(packaged)
    for name, weights in packaged.items():
        assert weights.size == packaged_path(name).stat().st_size <= publish.MAX_PACKAGED_BYTES
        assert released.verify(weights) is None
        model = isanet.from_pretrained(name)
        assert sum(value.numel() for value in model.parameters()) == weights.parameters
        assert hasattr(builders, name)
