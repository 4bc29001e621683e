"""Model folders, and repositories: through huggingface_hub itself, against a Hub on loopback (see conftest.py)."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
import threading
import time
import traceback
import tracemalloc
import uuid
import zlib
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HTTPError

import isanet
from isanet.config import config_json
from isanet.model import ISANet
from isanet.weights import checkpoint
from isanet.weights.card import model_card
from isanet.weights.hub import fetch
from isanet.weights.partfile import Limits
from tests.helpers import tiny_zoo
from tests.helpers.disk import full_at
from tests.helpers.file_server import FileServer, raw
from tests.helpers.hub_server import HubServer, Reply
from tests.helpers.processes import python
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


def test_the_network_is_built_once(hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().push_to_hub(repo_id, token=hub.token)
    built: list[isanet.ISANet] = []
    initialize = isanet.ISANet._initialize

    def counted(model: isanet.ISANet) -> None:
        built.append(model)
        initialize(model)

    monkeypatch.setattr(isanet.ISANet, "_initialize", counted)
    isanet.from_pretrained(repo_id)
    assert len(built) == 1


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
    with pytest.raises(isanet.NetworkError, match="private one; then set HF_TOKEN, or pass token="):
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
    with pytest.raises(isanet.OfflineError, match=f"^org/never-seen .*, and {variable} is set; load it once online"):
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


# --- a Hub that fails in the middle

OK = b"HTTP/1.1 200 OK\r\n"
LONG = 60_000
BOMB = gzip.compress(bytes(30_000_000))


def cut_off(handler: Any, after: str = "close") -> None:
    handler.wfile.write(OK + b"Content-Length: 5000\r\n\r\nabc")
    handler.wfile.flush()
    if after == "reset":
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
    elif after == "silence":
        threading.Event().wait(0.5)


def endless(handler: Any) -> None:
    handler.wfile.write(OK + b"\r\n")
    for _ in range(500):
        handler.wfile.write(bytes(1 << 17))


def moved(to: bytes) -> Any:
    return raw(b"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % to)


FAULTS: dict[str, Any] = {
    "cut": cut_off,
    "reset": partial(cut_off, after="reset"),
    "stall": partial(cut_off, after="silence"),
    "nothing": lambda handler: None,
    "garbage": raw(b"\0\xff\x1b[2Jgarbage\r\n\r\n"),
    "a header bomb": raw(OK + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(1000)) + b"\r\n"),
    "a header without end": raw(OK + b"X: " + b"a" * 1_000_000),
    "bad gzip": raw(OK + b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n0123456789"),
    "a gzip bomb": raw(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB),
    "a body without end": endless,
    "a bad chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc"),
    "xchunked": raw(OK + b"Transfer-Encoding: xchunked\r\n\r\nabc"),
    "chunks and a length": raw(OK + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    "a negative length": raw(OK + b"Content-Length: -5\r\n\r\nabc"),
    "a length of 10**30": raw(OK + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\nabc"),
    "a refusal of 60 kB": raw(b"HTTP/1.1 403 No\r\nX-Error-Message: " + b"R" * LONG + b"\r\nContent-Length: 0\r\n\r\n"),
    "a refusal with escapes": raw(b"HTTP/1.1 403 No\r\nX-Error-Message: \x1b[31mx\r\nContent-Length: 0\r\n\r\n"),
    "a reason of 60 kB": raw(b"HTTP/1.1 500 " + b"R" * LONG + b"\r\nContent-Length: 0\r\n\r\n"),
    "a status of 999": raw(b"HTTP/1.1 999 Foo\r\nContent-Length: 0\r\n\r\n"),
    "a loop of redirects": lambda handler: moved(handler.path.encode())(handler),
    "a redirect to a file": moved(b"file:///etc/passwd"),
    "a redirect to nowhere": moved(b"http://u:pssst@[::1"),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for a fifth of a second, and not at all between its tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.parametrize(
    ("method", "name"), [("HEAD", "config.json"), ("GET", "config.json"), ("GET", "model.safetensors")]
)
@pytest.mark.parametrize("kind", FAULTS)
def test_whatever_the_hub_does_is_one_line_and_leaves_no_part(
    hub: HubServer,
    repo_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    impatient: None,
    kind: str,
    method: str,
    name: str,
) -> None:
    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    monkeypatch.setitem(hub.faults, (method, name), FAULTS[kind])
    longer = kind in ("a body without end", "a gzip bomb") and method == "GET"
    with pytest.raises(isanet.IntegrityError if longer else isanet.NetworkError) as caught:
        isanet.from_pretrained(repo_id)
    assert re.fullmatch(f"{repo_id} at revision [0-9a-z]+: .{{5,700}}", str(caught.value))
    assert str(caught.value).isprintable()
    assert caught.value.__suppress_context__
    assert "pssst" not in str(caught.value)
    if longer:
        assert "that were announced for" in str(caught.value)
    logged = capfd.readouterr().err  # by the client
    assert "pssst" not in logged
    assert all(line.isprintable() and len(line) < 1000 for line in logged.splitlines())
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}")
    assert [path for path in folder.rglob("*") if path.suffix == ".incomplete"] == []
    hub.faults.clear()
    huggingface_hub.close_session()  # the server may be about to close a connection that the client would use again
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 20)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 20)
    isanet.from_pretrained(repo_id)


@pytest.mark.parametrize("step", ["create", "main"])
@pytest.mark.parametrize(
    "kind", ["cut", "reset", "nothing", "garbage", "a header bomb", "bad gzip", "a refusal of 60 kB"]
)
def test_whatever_the_hub_does_while_a_model_is_pushed_is_one_line(
    hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch, impatient: None, kind: str, step: str
) -> None:
    monkeypatch.setitem(hub.faults, ("POST", step), FAULTS[kind])
    with pytest.raises(isanet.NetworkError) as caught:
        tiny_model().push_to_hub(repo_id, token=hub.token)
    assert re.fullmatch(f"{repo_id}: .{{5,600}}", str(caught.value))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("method", "name"), [("HEAD", "config.json"), ("GET", "model.safetensors")])
def test_a_hub_that_trickles_is_given_up(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    over = threading.Event()

    def trickle(handler: Any) -> None:
        handler.wfile.write(OK if method == "HEAD" else OK + b"Content-Length: 753112\r\n\r\n")
        while not over.wait(0.05):
            handler.wfile.write(b"X: y\r\n")

    monkeypatch.setitem(hub.faults, (method, name), trickle)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    limits = Limits(window=0.4, window_bytes=10**9)
    with pytest.raises(isanet.NetworkError, match=f"{repo_id} at revision main: gave up: not done within 0 s"):
        fetch(repo_id, name, revision=None, token=None, max_size=10**6, limits=limits)
    over.set()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_too_large_is_refused_before_any_of_it_is_asked_for(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = files_of(tiny_model(), tmp_path / "model")
    hub.add_repo(repo_id, {**files, name: files[name] + bytes(6_000_000)})
    asked = len(hub.requests)
    with pytest.raises(
        isanet.IntegrityError, match=rf"{repo_id} at .*: {name} has 6\d+ bytes, more than the \d+ allowed"
    ):
        isanet.from_pretrained(repo_id)
    assert [request for request in hub.requests[asked:] if request.startswith("GET") and request.endswith(name)] == []


@pytest.mark.parametrize("good_at_first", [False, True])
@pytest.mark.parametrize(
    "tag", ["../../../../../../../../../..{}/planted", "{}/planted", "..", "a/b", "x" * 300, "a\\b"]
)
def test_a_hub_that_names_a_file_elsewhere_is_refused(
    hub: HubServer,
    repo_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
    tag: str,
    good_at_first: bool,
) -> None:
    files = files_of(tiny_model(), tmp_path / "model")
    commit = hub.add_repo(repo_id, files)
    before = sorted(tmp_path.rglob("*"))
    head = "HTTP/1.1 200 OK\r\nConnection: close\r\n"
    head += f"X-Repo-Commit: {commit}\r\nContent-Length: {len(files['config.json'])}\r\nETag: "
    good, asked = raw(f'{head}"x"\r\n\r\n'.encode()), []

    def lie(handler: Any) -> None:
        asked.append(1)
        (good if good_at_first and len(asked) == 1 else raw(f'{head}"{tag.format(tmp_path)}"\r\n\r\n'.encode()))(
            handler
        )

    monkeypatch.setitem(hub.faults, ("HEAD", "config.json"), lie)
    with pytest.raises(isanet.IsanetError) as caught:
        isanet.from_pretrained(repo_id)
    if tag != "..":
        assert "is no name for a file" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_xet_offers_too_comes_by_http(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    hub.add_repo(repo_id, files_of(model := tiny_model(), tmp_path / "model"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    answer = hub.answer

    def offers_xet(method: str, target: str, *rest: Any) -> Reply:
        reply = answer(method, target, *rest)
        xet = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{server.url}/token"}
        return reply._replace(headers={**reply.headers, **xet}) if target.endswith("model.safetensors") else reply

    monkeypatch.setattr(hub, "answer", offers_xet)
    assert same(isanet.from_pretrained(repo_id), model)
    assert server.requests == []


def test_only_our_calls_are_guarded(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    isanet.from_pretrained(repo_id)
    client = huggingface_hub.get_session()
    assert len(client.event_hooks["response"]) == 1
    monkeypatch.setitem(hub.faults, ("HEAD", "config.json"), raw(b'HTTP/1.1 200 OK\r\nETag: "a/b"\r\n\r\n'))
    assert client.head(f"{hub.url}/{repo_id}/resolve/main/config.json").headers["ETag"] == '"a/b"'
    hub.faults.clear()
    isanet.from_pretrained(repo_id)
    assert len(huggingface_hub.get_session().event_hooks["response"]) == 1


@pytest.mark.parametrize("status", [302, 403, 500])
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 1000000000\r\n"])
def test_a_refusal_without_end_is_not_read(
    hub: HubServer,
    repo_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
    status: int,
    framing: bytes,
) -> None:
    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    sent = []

    def act(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 %d No\r\nLocation: /x\r\n%s\r\n" % (status, framing))
        while len(sent) < 1000:
            handler.wfile.write(bytes(1 << 17))
            sent.append(1)

    monkeypatch.setitem(hub.faults, ("GET", "model.safetensors"), act)
    with pytest.raises(isanet.NetworkError, match=f"answered {status}"):
        isanet.from_pretrained(repo_id)
    hub.faults.clear()
    assert len(sent) < 200  # what the buffers of the system hold


@pytest.mark.parametrize("framing", ["chunked", "gzip"])
def test_a_repository_that_exists_is_pushed_to_however_the_hub_frames_that(
    hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    tiny_model().push_to_hub(repo_id, token=hub.token)
    body = json.dumps({"url": f"{hub.url}/{repo_id}", "error": "You already created this model repo"}).encode()
    if framing == "chunked":
        sent = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        sent = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(data := gzip.compress(body)), data)
    monkeypatch.setitem(hub.faults, ("POST", "create"), raw(b"HTTP/1.1 409 Conflict\r\nConnection: close\r\n" + sent))
    tiny_model().push_to_hub(repo_id, token=hub.token)


def test_a_refusal_that_expands_is_not_unpacked(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    head = b"HTTP/1.1 403 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    monkeypatch.setitem(hub.faults, ("GET", "model.safetensors"), raw(head + bomb))
    tracemalloc.start()
    try:
        with pytest.raises(isanet.NetworkError, match="answered 403 with over"):
            isanet.from_pretrained(repo_id)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20  # one piece of it, of 64 kB, is unpacked
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", ["", "Content-Length: -1\r\n", "X-Linked-Size: -1\r\n", "X-Linked-Size: 1e3\r\n"])
def test_a_hub_that_does_not_say_how_long_a_file_is_is_refused(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, length: str
) -> None:
    commit = hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    head = f'HTTP/1.1 200 OK\r\nETag: "x"\r\nX-Repo-Commit: {commit}\r\n{length}\r\n'
    monkeypatch.setitem(hub.faults, ("HEAD", "config.json"), raw(head.encode()))
    asked = len(hub.requests)
    with pytest.raises(isanet.NetworkError, match=repo_id):
        isanet.from_pretrained(repo_id)
    assert not any(request.startswith("GET") for request in hub.requests[asked:])


def test_a_hub_on_loopback_is_never_asked_through_a_proxy(
    hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    hub.add_repo(repo_id, files_of(tiny_model(), tmp_path / "model"))
    huggingface_hub.close_session()
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.setenv("NO_PROXY", "example.com")
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, server.url)
    isanet.from_pretrained(repo_id)
    assert server.requests == []
    assert os.environ["no_proxy"] == "example.com,127.0.0.1"
    huggingface_hub.close_session()


PROXIES = (
    "garbage",
    "http://u:pssst@[::1",
    "socks5://u:pssst@h:1",
    "http://u:pssst@",
    "http://u:ps'sst@h:9",
    "http://",
)
ENDPOINTS = (
    *("https://u:pssst@[::1", "https://u:pssst@h:99999", "u:pssst@h:9", "https://", "https://u:ps/sst@h"),
    "http://u:pssst@127.0.0.1:9",
)
ASK = """
import json, os, socket, sys, time
from isanet.errors import DownloadError
from isanet.weights import hub
def unknown(*_, **__): raise socket.gaierror(socket.EAI_NONAME, "unknown")
time.sleep = lambda _: None
for settings in json.load(sys.stdin):
    if os.fork() == 0:  # the client reads its settings when it is imported
        if not settings.pop("resolves", ""): socket.getaddrinfo = unknown
        os.environ.update(settings)
        try: hub.fetch("org/name", "config.json", revision=None, token=None, max_size=9)
        except DownloadError as error: print(error, flush=True)
        os._exit(0)
while True:
    try: os.wait()
    except ChildProcessError: break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_malformed_proxies_and_endpoints_are_one_line_without_their_passwords(tmp_path: Path) -> None:
    calls = [{"HTTPS_PROXY": proxy, "HF_ENDPOINT": "https://192.0.2.1"} for proxy in PROXIES]
    calls += [{"HF_ENDPOINT": endpoint} for endpoint in ENDPOINTS]
    with python(ASK, HF_HOME=str(tmp_path), NO_PROXY="") as process:
        shown = "".join(process.communicate(json.dumps(calls), timeout=60))
    lines = shown.splitlines()
    assert sum(line.startswith("org/name at revision main: ") for line in lines) == len(calls), shown
    assert "sst" not in shown
    assert all(line.isprintable() for line in lines)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_loopback_address_of_a_hub_is_asked_through_a_proxy(tmp_path: Path, server: FileServer) -> None:
    with ExitStack() as stack:
        hubs = []
        for host in ("127.0.0.1", "127.8.9.10", "localhost", "::1"):
            with suppress(OSError):  # not every machine has every one
                hubs.append(stack.enter_context(FileServer(host=host)))
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), server.url)
        calls = [{"HF_ENDPOINT": each.url, "resolves": "1", **proxies} for each in hubs]
        with python(ASK, HF_HOME=str(tmp_path), NO_PROXY="example.com") as process:
            shown = "".join(process.communicate(json.dumps(calls), timeout=60))
        assert shown.count("org/name at revision main: ") == len(hubs) > 1, shown
        assert all(each.requests for each in hubs)
        assert server.requests == []


@pytest.mark.parametrize("token", ["hf_pssst\n", "hf_pssst ", "hf_pssst\r\nX: y", "hf_pssst\0", "hf_psssté"])
def test_a_malformed_token_is_not_shown(hub: HubServer, repo_id: str, token: str) -> None:
    for call in (isanet.from_pretrained, tiny_model().push_to_hub):
        with pytest.raises(isanet.NetworkError, match=repo_id) as caught:
            call(repo_id, token=token)
        assert "pssst" not in str(caught.value)
    with pytest.raises(isanet.NetworkError) as caught:
        isanet.from_pretrained(repo_id, revision="\x1b[2J" * 1000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


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
        assert r"\[link\](http\://x)" in prose
        assert r'{"a\"b": 0.41, ...}' in card


LINES = (
    "```\n# T",
    "</pre><img src=x>",
    "\n---\nlicense: mit\n---\n",
    "[x](javascript:alert)",
    "\u202egnp",
    "~~~",
    "| a |",
)


@pytest.mark.parametrize("seed", range(20))
def test_no_untrusted_text_becomes_markup(seed: int) -> None:
    random = np.random.default_rng(seed)

    def text() -> str:
        return "".join(random.choice(LINES, 1 + random.integers(6))) + "x" * int(random.choice([0, 60_000]))

    keys = ("trained_on", "measured", "recipe", "started_from", "source", "backbone_source", "name")
    provenance = {key: text() for key in random.choice(keys, 4, replace=False)}
    card = model_card({**tiny_model().config, "classes": [text() for _ in range(3)]}, provenance)
    assert len(card) < 30_000
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license" not in front
    assert all(char.isprintable() for char in card.replace("\n", ""))
    assert card.count("```") == (4 if "```json" in body else 2)
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[<>]", re.sub("<(details|/?summary|/details)>", "", prose))
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    assert not re.search(r"^(#+ (?!ISANet)|---|~~~|===)", prose, re.MULTILINE)


def test_no_untrusted_address_becomes_a_link_or_a_mention() -> None:
    texts = ["https://evil.example", "www.evil.example", "WWW.evil.example", "me@evil.example", "x](http://e)", "@me"]
    card = model_card({**tiny_model().config, "classes": texts[:3]}, {"trained_on": " ".join(texts)})
    prose = re.sub(r"```.*?```|`[^`\n]*`|\(https://arxiv[^)]*\)", "", card, flags=re.DOTALL)
    assert "evil" in prose
    assert not re.search(r"(?<!\\)(://|(?i:www\.)|@)", prose)


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
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == json.loads(config_json(model.config))


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
