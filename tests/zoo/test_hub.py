"""Through huggingface_hub itself, against a Hub on loopback (conftest.py sets HF_ENDPOINT)."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch

import isanet
from isanet.model import ISANet
from isanet.weights import checkpoint
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer
from tests.model.test_model import tiny as tiny_model

# huggingface_hub uploads large files through a call that its HTTP library has begun to discourage.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def repo_id() -> str:
    """A new name for each test: huggingface_hub's cache is one for the whole session."""
    return f"org/isanet-{uuid.uuid4().hex[:8]}"


def same(one: ISANet, other: ISANet) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return one.config == other.config and all(torch.equal(ours[name], theirs[name]) for name in ours)


def files_of(model: ISANet, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pushed_and_loaded_again(hub: HubServer, repo_id: str) -> None:
    model = tiny_model(classes=["road", "car", "sky", "tree", "person"])
    address = model.push_to_hub(repo_id, token=hub.token)
    assert address.endswith(repo_id)
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files(repo_id))
    assert f'Segmenter("{repo_id}")' in hub.files(repo_id)["README.md"].decode()
    loaded = isanet.from_pretrained(repo_id)
    assert same(loaded, model)
    assert loaded.provenance["source"] == f"hf://{repo_id}@main"
    assert isanet.from_pretrained(repo_id, classes=["car", "bus"]).classes == ("car", "bus")


def test_pushing_again_keeps_a_model_card_that_was_edited(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    files = files_of(tiny_model(), tmp_path / "first")
    hub.add_repo(repo_id, {**files, "README.md": b"my own words"})
    tiny_model(dropout=0.5).push_to_hub(repo_id, token=hub.token)
    assert hub.files(repo_id)["README.md"] == b"my own words"
    assert b'"dropout": 0.5' in hub.files(repo_id)["config.json"]


def test_revisions(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    first, second = tiny_model(), tiny_model(dropout=0.3)
    commit = hub.add_repo(repo_id, files_of(first, tmp_path / "first"))
    hub.add_repo(repo_id, files_of(second, tmp_path / "second"))
    assert same(isanet.from_pretrained(repo_id, revision=commit), first)
    assert same(isanet.from_pretrained(repo_id, revision="main"), second)
    with pytest.raises(isanet.NetworkError, match=f"{repo_id} at revision v9.*no such branch, tag or commit"):
        isanet.from_pretrained(repo_id, revision="v9")


def test_a_private_repository_needs_its_token(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    model = tiny_model()
    hub.add_repo(repo_id, files_of(model, tmp_path / "model"), private=True)
    with pytest.raises(isanet.NetworkError, match="private one; then pass token="):
        isanet.from_pretrained(repo_id)
    with pytest.raises(isanet.NetworkError, match=repo_id):
        isanet.from_pretrained(repo_id, token="hf_wrong")
    assert same(isanet.from_pretrained(repo_id, token=hub.token), model)


def test_a_repository_that_lacks_a_tensor_is_refused(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    model = tiny_model()
    files = files_of(model, tmp_path / "model")
    state = {name: value for name, value in model.state_dict().items() if name != "classifier.bias"}
    hub.add_repo(repo_id, {**files, "model.safetensors": checkpoint.serialize(state, {})})
    with pytest.raises(isanet.CheckpointMismatchError, match=r"classifier\.bias is missing"):
        isanet.from_pretrained(repo_id)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_that_lacks_a_file_is_refused(hub: HubServer, repo_id: str, tmp_path: Path, missing: str) -> None:
    files = files_of(tiny_model(), tmp_path / "model")
    del files[missing]
    hub.add_repo(repo_id, files)
    with pytest.raises(isanet.CheckpointFormatError, match=missing):
        isanet.from_pretrained(repo_id)


def test_no_such_repository(hub: HubServer, repo_id: str) -> None:
    with pytest.raises(isanet.NetworkError, match="no such repository"):
        isanet.from_pretrained(repo_id)


@pytest.mark.parametrize("variable", ["ISANET_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, server: FileServer
) -> None:
    model = tiny_model()
    hub.add_repo(repo_id, files_of(model, tmp_path / "model"))
    isanet.from_pretrained(repo_id)
    monkeypatch.setenv(variable, "1")
    asked = len(hub.requests)
    assert same(isanet.from_pretrained(repo_id), model)
    with pytest.raises(isanet.OfflineError, match="load it once online"):
        isanet.from_pretrained("org/never-seen")
    with pytest.raises(isanet.OfflineError, match="cannot push"):
        model.push_to_hub(repo_id, token=hub.token)
    assert len(hub.requests) == asked


def test_a_damaged_file_in_huggingface_hubs_cache_is_noticed(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    isanet.from_pretrained(repo_id)
    stored = Path(hf_hub_download(repo_id, "model.safetensors")).resolve()
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    with pytest.raises(isanet.IntegrityError, match="was damaged; delete it"):
        isanet.from_pretrained(repo_id)
    stored.unlink()
    isanet.from_pretrained(repo_id)


def test_pushing_without_permission_is_named(hub: HubServer, repo_id: str) -> None:
    with pytest.raises(isanet.NetworkError, match=repo_id):
        tiny_model().push_to_hub(repo_id, token="hf_wrong")
