"""doctor; demo, selftest and benchmark are in tests/tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer


@pytest.mark.parametrize("offline", [False, True])
def test_doctor(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, offline: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ISANET_MIRROR", f"http://user:secret@{tiny.url.removeprefix('http://')}/?key=secret")
    if offline:
        monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for words in ("torch 2", f"cache: {home} (writable", "free)", "HTTPS_PROXY is set", "REQUESTS_CA_BUNDLE="):
        assert words in out
    assert "secret" not in out
    if offline:
        assert "not asked" in out
        assert not tiny.requests
    else:
        assert f"{tiny.url}/{tiny_zoo.FILE_NAME}: answers 200" in out
        assert "https://127.0.0.1:1/isanet_tiny.pth: FAILED" in out


@pytest.mark.parametrize(
    "mirror", ["u:pssst@127.0.0.1:9", "https:u:pssst@h", "https://u:pssst@[::1", "https://u:ps/sst@h"]
)
def test_doctor_shows_no_password_of_a_malformed_address(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mirror: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", mirror)
    run("doctor")
    monkeypatch.setenv("ISANET_MIRROR", mirror)
    assert run("doctor") == 1
    shown = "".join(capsys.readouterr())
    assert "HF_ENDPOINT=an unreadable address" in shown
    assert "error: ISANET_MIRROR must be https://" in shown
    assert "sst" not in shown
