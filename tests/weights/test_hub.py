"""Model folders, and repositories: through huggingface_hub itself, against a Hub on loopback (see conftest.py)."""

from __future__ import annotations

import json
import re
import traceback
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HTTPError

import isanet
from isanet.model import ISANet
from isanet.weights import checkpoint
from isanet.weights.hub import model_card
from tests.helpers import tiny_zoo
from tests.helpers.disk import full_at
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


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (HTTPError("no route"), isanet.NetworkError, "no route"),
        (HTTPError("http://user:secret@proxy:1 refused"), isanet.NetworkError, "proxy:1"),
        (ValueError("Unknown scheme for proxy URL URL('socks9://user:secret@proxy')"), isanet.NetworkError, "socks9"),
        (RuntimeError("https://cdn/file?signature=secret answered 403\n\x1b[2J"), isanet.NetworkError, "answered 403"),
        (PermissionError(13, "Permission denied"), isanet.CacheError, "HF_HUB_CACHE"),
        (OSError(28, "No space left on device"), isanet.CacheError, "HF_HUB_CACHE"),
    ],
)
def test_errors_of_the_client_arrive_as_ours_and_without_secrets(
    repo_id: str, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    for call in (lambda: isanet.from_pretrained(repo_id), lambda: tiny_model().push_to_hub(repo_id)):
        with pytest.raises(kind, match=said) as caught:
            call()
        shown = "".join(traceback.format_exception(caught.value))
        assert "secret" not in shown.splitlines()[-1]
        assert caught.value.__suppress_context__
        assert str(caught.value).isprintable()


def test_a_card_shows_untrusted_texts_literally() -> None:
    model = tiny_model(classes=['a"b', "<script>x</script>", "[link](http://x)", "```\n# Title", "\x1b[2J"])
    facts = {"trained_on": "<b>`x`</b>\n# y", "measured": "*much*", "recipe": '{"a": "```\\n<i>"}', "started_from": "`"}
    for provenance in (facts, {"source": "``` <script>"}, {"backbone_source": "`<script>"}):
        card = model_card(model.config, provenance)
        assert "\x1b" not in card
        assert card.count("```") == (4 if "recipe" in provenance else 2)
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", card, flags=re.DOTALL)
        assert re.findall(r"(?<!\\)<(?!/?(?:details|summary)>)", prose) == []
        assert not re.search(r"^# (?!ISANet)", prose, re.MULTILINE)
        assert r"\[link\](http://x)" in prose
        assert r'{"a\"b": 0.41, ...}' in card


# --- model folders


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
    np.testing.assert_allclose(
        tiny_zoo.logits(again), tiny_zoo.expected_logits(), atol=0.05 * float(tiny_zoo.expected_logits().abs().max())
    )
