"""A model whose converted file is on the Hugging Face Hub is fetched from there, if the bytes are the pinned ones."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import isanet
from isanet.weights import cache, checkpoint
from isanet.zoo import released
from isanet.zoo.plan import ConvertFile, Fetch, plan
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer

NAME = tiny_zoo.NAME
Publish = Callable[..., str]


@pytest.fixture
def publish(tiny: FileServer, hub: HubServer, home: Path, tmp_path: Path) -> Publish:
    """Puts the tiny model on the Hub and empties the cache; the result is the address. Upstream has to be switched off.

    `metadata` and `tensors` change what is published, `entry` the manifest's entry, `served` the bytes on the Hub.
    """

    def act(
        *,
        metadata: dict[str, str] | None = None,
        tensors: dict[str, torch.Tensor] | None = None,
        entry: dict[str, Any] | None = None,
        served: Callable[[bytes], bytes] = lambda data: data,
    ) -> str:
        isanet.from_pretrained(NAME)
        record, file = released.read_verified(isanet.model_info(NAME))
        state, facts = checkpoint.read_safetensors(file)
        data = checkpoint.serialize({**state, **(tensors or {})}, {**facts, **(metadata or {})})
        repo = f"org/isanet-{uuid.uuid4().hex[:8]}"
        commit = hub.add_repo(repo, {"model.safetensors": served(data)})
        manifest = tmp_path / "weights.json"
        document = json.loads(manifest.read_text())
        place = {"repo": repo, "revision": commit, "sha256": sha256(data).hexdigest(), "size": len(data)}
        document["weights"][NAME] |= {"sha256": record.source_sha256, "size": record.source_size, "hub": place}
        document["weights"][NAME] |= entry or {}
        manifest.write_text(json.dumps(document))
        cache.clear(NAME, forget=True)
        tiny.requests.clear()
        return f"{hub.url}/{repo}/resolve/{commit}/model.safetensors"

    return act


def test_it_comes_from_the_hub_as_it_would_from_upstream(
    publish: Publish, tiny: FileServer, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = publish()
    monkeypatch.delenv("ISANET_MIRROR")
    model = isanet.from_pretrained(NAME)
    assert torch.equal(tiny_zoo.logits(model), tiny_zoo.expected_logits())
    record = released.verify(isanet.model_info(NAME))
    assert record is not None
    assert record.source == f"{tiny.url}/{tiny_zoo.FILE_NAME} (by {address})"
    assert model.provenance["source_sha256"] == record.source_sha256 == isanet.model_info(NAME).sha256
    asked = len(hub.requests)
    assert isanet.from_pretrained(NAME).provenance == model.provenance
    assert len(hub.requests) == asked
    assert run("pack", NAME, "-o", str(tmp_path / "one.zip")) == 0
    cache.clear(NAME, forget=True)
    assert run("install", str(tmp_path / "one.zip")) == 0
    assert tiny.requests == []


def test_the_hub_is_asked_after_the_mirror_and_before_upstream(
    publish: Publish, tiny: FileServer, hub: HubServer
) -> None:
    address = publish()
    weights = isanet.model_info(NAME)
    fetch = Fetch((address, *weights.urls), weights.sha256)
    assert plan(weights, None, set()) == [fetch]
    assert plan(weights, None, {tiny_zoo.FILE_NAME}) == [ConvertFile(tiny_zoo.FILE_NAME, weights.sha256), fetch]
    asked = len(hub.requests)
    isanet.from_pretrained(NAME)
    assert len(tiny.requests) == 1
    assert len(hub.requests) == asked
    tiny.files.clear()
    released.load(weights, force=True)
    assert hub.requests[asked:] == [f"GET {address.removeprefix(hub.url)}"]


def test_the_released_file_itself_is_not_on_the_hub(publish: Publish, home: Path, tiny: FileServer) -> None:
    publish()
    weights = isanet.model_info(NAME)
    assert plan(weights, None, set(), keep=True) == [Fetch(weights.urls, weights.sha256)]
    released.load(weights, keep=True)
    assert (home / tiny_zoo.FILE_NAME).read_bytes() == tiny.files[f"/{tiny_zoo.FILE_NAME}"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another byte": ({"served": lambda data: data[:-1] + bytes([data[-1] ^ 1])}, "sha256"),
    "a longer file": ({"served": lambda data: data + b"x"}, "size|bytes"),
    "a page": ({"served": lambda data: b"<!DOCTYPE html><html></html>"}, "size|bytes|page"),
    "another model": ({"metadata": {"name": "isanet_r50_voc"}}, "another origin or converter"),
    "another released file": ({"metadata": {"source_sha256": "1" * 64}}, "another origin or converter"),
    "another converter": ({"metadata": {"converter_version": "2"}}, "another origin or converter"),
    "no source": ({"metadata": {"source": ""}}, "another origin or converter"),
    "more metadata": ({"metadata": {"evil": "x"}}, "not as isanet writes it"),
    "another tensor": ({"tensors": {"more": torch.ones(1)}}, "more"),
    "another shape": ({"tensors": {"classifier.bias": torch.ones(3)}}, r"classifier\.bias"),
    "not a number": ({"tensors": {"classifier.bias": torch.full((21,), torch.nan)}}, r"classifier\.bias"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_by_name_and_upstream_is_taken(
    publish: Publish,
    tiny: FileServer,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    changes, said = WRONG[kind]
    address = publish(**changes)
    monkeypatch.delenv("ISANET_MIRROR")
    upstream = f"{tiny.url}/{tiny_zoo.FILE_NAME}"
    caplog.clear()
    released.load(replace(isanet.model_info(NAME), urls=(upstream,)))  # http, which the manifest does not take
    warning = next(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith(f"{address}: ")
    assert re.search(said, warning)
    record = released.verify(isanet.model_info(NAME))
    assert record is not None
    assert record.source == upstream
    assert not list(home.glob("*.part"))


def test_what_only_a_person_can_fetch_upstream_comes_from_the_hub(
    publish: Publish, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"url": "https://pan.baidu.com/s/1x", "note": "Baidu"}
    publish(entry={"urls": [], "file_name": tiny_zoo.FILE_NAME, "pages": [page]})
    monkeypatch.delenv("ISANET_MIRROR")
    (home / tiny_zoo.FILE_NAME).write_bytes(b"not it")
    assert torch.equal(tiny_zoo.logits(isanet.from_pretrained(NAME)), tiny_zoo.expected_logits())


@pytest.mark.parametrize("variable", ["ISANET_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_hub_is_not_asked(
    publish: Publish, hub: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    address = publish()
    asked = len(hub.requests)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(isanet.OfflineError, match=f"{variable} is set") as caught:
        isanet.from_pretrained(NAME)
    assert address in str(caught.value)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("endpoint", ["http://example.com", "u:pssst@h:9", "https://u:pssst@[::1", "ftp://h"])
def test_a_malformed_endpoint_does_not_keep_a_model_from_its_other_addresses(
    publish: Publish, tiny: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, endpoint: str
) -> None:
    publish()
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    tiny.files.clear()
    with pytest.raises(isanet.MirrorsExhaustedError) as caught:
        isanet.from_pretrained(NAME)
    assert tiny_zoo.FILE_NAME in str(caught.value)
    assert "pssst" not in str(caught.value) + caplog.text
