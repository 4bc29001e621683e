"""publish: from upstream, through every check, onto the Hub and into the manifest; then to others from there."""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isanet
from isanet.config import ISANetConfig, config_json
from isanet.tools import publish as tool
from isanet.weights import cache, checkpoint
from isanet.weights.pickles import File
from tests.helpers import replicas, tiny_zoo
from tests.helpers.commands import run
from tests.helpers.disk import full_at
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer
from tests.helpers.processes import output, python
from tests.zoo.test_families import DOTTED, OTHER_FILE, PLAIN, entry, mmsegmentation, zoo_of

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DRAWN = "isanet_nano_toystreets"


@pytest.fixture
def org(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new organization, whose token is in HF_TOKEN."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return f"org-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def pair(tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of two models, of which upstream's files are on a mirror; gives the manifest."""
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path), DOTTED: mmsegmentation(tmp_path)})
    tiny.files["/mmseg.pth"] = tiny_zoo.saved({"meta": {}, "state_dict": OTHER_FILE})
    return tmp_path / "weights.json"


def entries(manifest: Path) -> dict[str, Any]:
    return json.loads(manifest.read_text())["weights"]


def publish(org: str, *arguments: object) -> int:
    return run("publish", *(arguments or ("*",)), "--repo", f"{org}/{{name}}", "--device", "cpu")


def change(manifest: Path, name: str, **fields: Any) -> None:
    document = json.loads(manifest.read_text())
    document["weights"][name] |= fields
    manifest.write_text(json.dumps(document))


LOAD = """
import hashlib, json, sys
from pathlib import Path
import isanet, isanet.weights.manifest
isanet.weights.manifest.manifest_path = lambda: Path(sys.stdin.readline().strip())
from isanet.tools.selftest import street
for name in isanet.list_models():
    labels = isanet.Segmenter(name, device="cpu", precision="float32")(street()).labels
    print(name, hashlib.sha256(labels.tobytes()).hexdigest())
"""


def test_a_model_of_default_arguments_is_pushed_with_its_config_and_card(hub: HubServer, org: str) -> None:
    preprocessing = isanet.model_info("isanet_r50_voc").preprocessing
    config = ISANetConfig(num_classes=21, preprocessing=preprocessing).to_dict()
    metadata = {"config": config_json(config), "source": "https://example.org/weights.pth"}
    data = checkpoint.serialize({"classifier.bias": torch.zeros(21)}, metadata)
    file = File("weights.safetensors", np.frombuffer(bytearray(data), np.uint8), "")
    place = tool._push(file, f"{org}/defaults", token=hub.token, overwrite=False, say=print)
    assert place is not None
    files = hub.files(place["repo"])
    assert ISANetConfig(**json.loads(files["config.json"])).to_dict() == config
    assert b"resnet50, 21 classes" in files["README.md"]


def test_what_is_published_is_what_another_machine_gets_without_upstream(
    pair: Path, tiny: FileServer, hub: HubServer, org: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(org) == 0
    out = capsys.readouterr().out
    for name, weights in entries(pair).items():
        data = tiny.files[f"/{weights['urls'][0].rpartition('/')[2]}"]
        assert (weights["sha256"], weights["size"]) == (tool.sha256(data).hexdigest(), len(data))
        place = weights["hub"]
        files = hub.files(f"{org}/{name}", place["revision"])
        assert (place["repo"], place["size"]) == (f"{org}/{name}", len(files["model.safetensors"]))
        assert place["sha256"] == tool.sha256(files["model.safetensors"]).hexdigest()
        assert json.loads(files["config.json"])["num_classes"] == 21
        card = files["README.md"].decode()
        assert f"`{name}`, published by {weights['family']}, trained on PASCAL VOC 2012" in card
        assert f'Segmenter("{org}/{name}")' in card
        address = f"{hub.url}/{org}/{name}/resolve/{place['revision']}/model.safetensors"
        steps = [line.split(": ")[1] for line in out.splitlines() if line.startswith(f"{name}: ")]
        kinds = [step.split(" ")[0] for step in steps]
        assert kinds == ["verified", "self-test", "not", "pushed", "pinned"]
        figures = [
            weights["sha256"][:8],
            *f"{len(data) / 1e6:.0f} MB -".split(),
            f"{100 * weights['metrics']['miou']:.2f}",
        ]
        assert [name, *figures, address] in [line.split() for line in out.splitlines()]
        assert run("info", name) == 0
        assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("address")] == [
            address,
            *weights["urls"],
        ]
    assert hub.token not in out
    settings = {"HF_TOKEN": "", "ISANET_MIRROR": "", "OMP_NUM_THREADS": "1", "ISANET_HOME": str(tmp_path / "new")}
    other = {k: v for k, v in os.environ.items() if k in ("HF_ENDPOINT", "NO_PROXY")}
    tiny.files.clear()
    process = python(LOAD.replace("sys.stdin.readline().strip()", repr(str(pair))), **settings, **other)
    there = dict(line.split() for line in output(process).splitlines())
    image = isanet.tools.selftest.street()
    for name in entries(pair):
        labels = isanet.Segmenter(name, device="cpu", precision="float32")(image).labels
        assert there[name] == tool.sha256(labels.tobytes()).hexdigest()
        repository = isanet.from_pretrained(f"{org}/{name}", revision=entries(pair)[name]["hub"]["revision"])
        assert repository.config == isanet.from_pretrained(name).config
    record = json.loads((tmp_path / "new" / f"{PLAIN}.json").read_text())
    assert record["source"].endswith(
        f"/{org}/{PLAIN}/resolve/{entries(pair)[PLAIN]['hub']['revision']}/model.safetensors)"
    )


def test_a_repeated_call_does_nothing(
    pair: Path, tiny: FileServer, hub: HubServer, org: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(org, PLAIN) == 0
    before, repo, asked = pair.read_bytes(), hub._repos[f"{org}/{PLAIN}"], len(tiny.requests)
    commits, requests = dict(repo.commits), len(hub.requests)
    cache.clear(PLAIN, forget=True)
    capsys.readouterr()
    assert publish(org, PLAIN) == 0
    out = capsys.readouterr().out
    assert f"{PLAIN}: already published at {hub.url}/{org}/{PLAIN}/resolve/" in out
    assert out.count(f"{PLAIN}: ") == 1
    assert (pair.read_bytes(), repo.commits, len(tiny.requests)) == (before, commits, asked)
    assert {request.split()[0] for request in hub.requests[requests:]} == {"GET", "HEAD"}


def test_one_that_fails_does_not_stop_the_others_and_can_be_repeated(
    pair: Path, tiny: FileServer, hub: HubServer, org: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, before = tiny.files["/isanet_tiny_train.pth"], entries(pair)
    tiny.files["/isanet_tiny_train.pth"] = b"not a checkpoint"
    assert publish(org, PLAIN, DOTTED) == 1
    out = capsys.readouterr().out
    assert f"{PLAIN}: FAILED: {PLAIN}: no address gave" in out
    assert out.endswith(f"1 of 2 failed: {PLAIN}; the same call goes on with them\n")
    after = entries(pair)
    assert after[PLAIN] == before[PLAIN]
    assert after[DOTTED]["hub"]["repo"] == f"{org}/{DOTTED}"
    assert f"{org}/{PLAIN}" not in hub._repos
    tiny.files["/isanet_tiny_train.pth"] = good
    assert publish(org, PLAIN, DOTTED) == 0
    out = capsys.readouterr().out
    assert f"{DOTTED}: already published" in out
    assert f"{PLAIN}: pinned" in out
    assert entries(pair)[DOTTED] == after[DOTTED]


@pytest.mark.parametrize("moment", ["before the push", "after the push"])
def test_an_interrupted_call_leaves_the_manifest_and_is_resumed(
    pair: Path, hub: HubServer, org: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before = pair.read_bytes()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            tool.hub if "before" in moment else tool, "push_to_hub" if "before" in moment else "pin", interrupt
        )
        assert publish(org, PLAIN) == 130
    assert json.loads(pair.read_bytes()) == json.loads(before)
    pushed = f"{org}/{PLAIN}" in hub._repos
    assert pushed == ("after" in moment)
    commits = dict(hub._repos[f"{org}/{PLAIN}"].commits) if pushed else {}
    assert publish(org, PLAIN) == 0
    revision = entries(pair)[PLAIN]["hub"]["revision"]
    assert revision in hub._repos[f"{org}/{PLAIN}"].commits
    assert not pushed or hub._repos[f"{org}/{PLAIN}"].commits == commits


@pytest.mark.parametrize("token", ["hf_pssst", "hf_pssst\n", "hf_pssst\r\nX: y", None])
def test_without_a_valid_token_nothing_is_fetched(
    pair: Path,
    tiny: FileServer,
    org: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    assert publish(org) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("isanet: error: the token for the Hugging Face Hub: ")
    assert "pssst" not in err
    assert token or "set HF_TOKEN" in err
    assert tiny.requests == []


def test_a_full_disk_is_found_before_anything_is_fetched(
    pair: Path, tiny: FileServer, org: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pair.read_bytes()
    full_at(monkeypatch, file=1)
    assert publish(org) == 1
    assert f"{pair}" in capsys.readouterr().err
    assert (pair.read_bytes(), tiny.requests) == (before, [])


def test_another_model_in_the_repository_is_kept(
    pair: Path, hub: HubServer, org: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"model.safetensors": b"theirs", "README.md": b"their words", "notes.txt": b"notes"}
    hub.add_repo(f"{org}/{PLAIN}", theirs)
    assert publish(org, PLAIN) == 1
    assert f"{org}/{PLAIN} has another model.safetensors, of sha256 " in (out := capsys.readouterr().out)
    assert "or replace it with --force;" in out.replace("\n", ";")
    assert hub.files(f"{org}/{PLAIN}") == theirs
    assert entries(pair)[PLAIN]["hub"] is None
    assert publish(org, PLAIN, "--force") == 0
    files = hub.files(f"{org}/{PLAIN}")
    assert entries(pair)[PLAIN]["hub"]["sha256"] == tool.sha256(files["model.safetensors"]).hexdigest()
    assert (files["README.md"], files["notes.txt"]) == (b"their words", b"notes")


def test_other_files_in_the_repository_stay(pair: Path, hub: HubServer, org: str) -> None:
    hub.add_repo(f"{org}/{PLAIN}", {"notes.txt": b"notes"})
    assert publish(org, PLAIN) == 0
    assert {"notes.txt", "model.safetensors", "config.json", "README.md"} == set(hub.files(f"{org}/{PLAIN}"))


def test_what_only_some_can_read_is_not_written_into_the_manifest(
    pair: Path, hub: HubServer, org: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo(f"{org}/{PLAIN}", {"notes.txt": b"notes"}, private=True)
    assert publish(org, PLAIN) == 1
    assert f"{org}/{PLAIN} cannot be read without a token; make it public" in capsys.readouterr().out
    assert entries(pair)[PLAIN]["hub"] is entries(pair)[PLAIN]["sha256"] is None
    hub._repos[f"{org}/{PLAIN}"].private = False
    assert publish(org, PLAIN) == 0


def test_a_hub_that_gives_other_bytes_than_were_pushed_is_not_believed(
    pair: Path, hub: HubServer, org: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push = tool.hub.push_to_hub

    def swapped(repo_id: str, *arguments: Any, **options: Any) -> Any:
        pushed = push(repo_id, *arguments, **options)
        return pushed._replace(revision=hub.add_repo(repo_id, {"model.safetensors": b"other"}))

    monkeypatch.setattr(tool.hub, "push_to_hub", swapped)
    assert publish(org, PLAIN) == 1
    assert "has a model.safetensors of 5 bytes and sha256 " in capsys.readouterr().out
    assert entries(pair)[PLAIN]["hub"] is None


@pytest.mark.parametrize("option", [("--dry-run",), ("--limit", 1)])
def test_a_trial_needs_no_token_and_changes_nothing(
    pair: Path,
    hub: HubServer,
    org: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: tuple[object, ...],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    before = pair.read_bytes()
    assert publish(org, PLAIN, *option) == 0
    assert f"{PLAIN}: not pushed to {org}/{PLAIN}, and the manifest is unchanged: a trial" in capsys.readouterr().out
    assert pair.read_bytes() == before
    assert f"{org}/{PLAIN}" not in hub._repos


# --- the checks


@pytest.fixture
def measured(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], tuple[object, ...]]:
    """Sets the published mIoU so far from the measured one, in points; gives the arguments of the dataset."""
    replicas.voc(tmp_path / "voc", val=4)
    monkeypatch.setattr(isanet.datasets.VOC2012, "_val_size", 4)
    dataset = isanet.datasets.VOC2012(tmp_path / "voc", "val")
    miou = isanet.evaluate(PLAIN, dataset, workers=0, device="cpu", progress=False).miou

    def act(points: float) -> tuple[object, ...]:
        change(pair, PLAIN, metrics={**entries(pair)[PLAIN]["metrics"], "miou": miou + points / 100})
        return "--data", f"voc={tmp_path / 'voc'}"

    return act


@pytest.mark.parametrize("points", [0.0, 0.45])
def test_a_model_that_measures_as_published_is_published(
    measured: Callable[[float], tuple[object, ...]],
    pair: Path,
    org: str,
    capsys: pytest.CaptureFixture[str],
    points: float,
) -> None:
    data = measured(points)
    assert publish(org, PLAIN, *data) == 0
    out = capsys.readouterr().out
    figures = re.search(r"evaluated: mIoU measured (\S+), published (\S+), on 4 images of PASCAL VOC 2012 val", out)
    assert figures is not None
    assert f" {figures[1]}  " in out.splitlines()[-1]
    assert abs(float(figures[1]) + points - float(figures[2])) < 0.011
    assert entries(pair)[PLAIN]["hub"] is not None


def test_a_model_that_measures_otherwise_is_not_published_but_tried(
    measured: Callable[[float], tuple[object, ...]],
    pair: Path,
    hub: HubServer,
    org: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = measured(0.55)
    assert publish(org, PLAIN, *data) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"FAILED: mIoU measured \d+\.\d\d, published \d+\.\d\d, on PASCAL VOC 2012 val: more than 0.5", out
    )
    assert publish(org, PLAIN, *data, "--limit", 2) == 0
    assert "on 2 images of PASCAL VOC 2012 val" in capsys.readouterr().out
    measured(0.0)
    monkeypatch.setattr(isanet.datasets.VOC2012, "_val_size", 1449)
    assert publish(org, PLAIN, *data) == 1
    out = capsys.readouterr().out
    assert "which cannot be compared: 4 images, where the official split has 1449" in out
    assert entries(pair)[PLAIN]["hub"] is None
    assert f"{org}/{PLAIN}" not in hub._repos


def test_a_model_that_fails_its_self_test_is_not_published(
    pair: Path, hub: HubServer, org: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    selftest = tool.selftest
    monkeypatch.setattr(tool, "selftest", lambda *a, **k: selftest(*a, **k)._replace(fault="red and blue are swapped"))
    assert publish(org, PLAIN) == 1
    assert f"{PLAIN}: FAILED: the self-test failed on cpu: red and blue are swapped" in capsys.readouterr().out
    assert f"{org}/{PLAIN}" not in hub._repos


def test_a_license_against_commercial_use_is_said_and_on_the_card(
    pair: Path, hub: HubServer, org: str, caplog: pytest.LogCaptureFixture
) -> None:
    isanet.from_pretrained(PLAIN)
    change(pair, PLAIN, commercial=False, license="For academic use (see there)")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "isanet"):
        assert publish(org, PLAIN) == 0
    assert f"the weights of {PLAIN} are not for commercial use" in caplog.text
    card = hub.files(f"{org}/{PLAIN}")["README.md"].decode()
    assert "\nlicense: other\nlicense_name: for-academic-use\n" in card
    assert "**Not for commercial use.**" in card


def test_no_path_of_this_machine_is_published(
    pair: Path, tiny: FileServer, hub: HubServer, org: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / tiny_zoo.FILE_NAME).write_bytes(tiny.files[f"/{tiny_zoo.FILE_NAME}"])  # type: ignore[arg-type]
    monkeypatch.setenv("ISANET_MIRROR", folder.as_uri())
    assert publish(org, PLAIN) == 0
    for data in hub.files(f"{org}/{PLAIN}").values():
        assert str(tmp_path).encode() not in data
    assert publish(org, PLAIN) == 0  # published already


# --- wrong calls


def test_several_models_need_a_repository_each(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("publish", "*", "--repo", "org/one")
    assert caught.value.code == 2
    assert "2 models need a --repo with {name} in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("isanet_tiny_vox",), "did you mean"),
        ((PLAIN, "--data", "voc"), "--data takes LAYOUT=DIR with a layout of voc, ade20k, cityscapes"),
        ((PLAIN, "--data", "folder=x"), "got 'folder=x'"),
        ((PLAIN, "--data", "voc=nowhere"), "nowhere"),
    ],
)
def test_a_wrong_call_is_named_before_anything_is_asked(
    pair: Path, hub: HubServer, org: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    asked = len(hub.requests)
    assert publish(org, *arguments) == 1
    assert said in capsys.readouterr().err
    assert len(hub.requests) == asked


def test_a_name_that_the_hub_does_not_allow_is_of_its_model_alone(
    pair: Path, hub: HubServer, org: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("publish", PLAIN, "--repo", "a/b/{name}") == 1
    assert f"{PLAIN}: FAILED: a/b/{PLAIN}" in capsys.readouterr().out


def test_a_packaged_model_needs_no_publishing(hub: HubServer, org: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(org, DRAWN) == 0
    assert f"{DRAWN}: is in the package" in capsys.readouterr().out
