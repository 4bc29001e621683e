"""Every test runs offline, in its own folders, with the settings of the machine out of sight."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from tests.helpers import stand_in, tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer

# huggingface_hub reads its settings once, when it is imported: before any test, for all of them.
_HUB = HubServer()
_HUB_CACHE = TemporaryDirectory()


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Shells start background jobs with interrupts ignored, and children inherit that; tests interrupt children
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _HUB.start()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(name, None)
    os.environ |= {
        "HF_ENDPOINT": _HUB.url,
        "HF_HOME": _HUB_CACHE.name,
        "HF_HUB_DISABLE_XET": "1",  # the other way of storing files would need a second kind of server
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def pytest_unconfigure() -> None:
    _HUB.close()
    _HUB_CACHE.cleanup()


@pytest.fixture
def hub() -> HubServer:
    return _HUB


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the test, empty, and none of the caller's settings."""
    for name in [name for name in os.environ if name.startswith("ISANET_")]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("ISANET_HOME", str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> FileServer:
    """A zoo of one tiny model, whose file a mirror on loopback serves; gives the server."""
    path = tiny_zoo.manifest_of_one(tmp_path / "weights.json")
    monkeypatch.setattr("isanet.weights.manifest.manifest_path", lambda: path)
    server.files[f"/{tiny_zoo.FILE_NAME}"] = tiny_zoo.saved({"epoch": 60, "model": tiny_zoo.upstream_state()})
    monkeypatch.setenv("ISANET_MIRROR", server.url)
    return server


@pytest.fixture(scope="session")
def r50_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-size checkpoint in upstream's oldest layout, optimizer included, under the second published name."""
    state = stand_in.state_dict("sssegmentation_r50_voc")
    path = tmp_path_factory.mktemp("r50") / "isanet_resnet50os8_voc.pth"
    torch.save({"epoch": 60, "model": state, "optimizer": stand_in.sgd_state(state)}, path)
    return path


@pytest.fixture(scope="session")
def r50_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests of the full-size model share, so that it is converted once."""
    return tmp_path_factory.mktemp("r50_home")


@pytest.fixture
def r50(r50_file: Path, r50_home: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The real manifest, and a mirror on loopback that has isanet_r50_voc under its second name alone."""
    server.files[f"/{r50_file.name}"] = r50_file
    monkeypatch.setenv("ISANET_MIRROR", server.url)
    monkeypatch.setenv("ISANET_HOME", str(r50_home))
    return server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
