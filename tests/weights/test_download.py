"""The network and file paragraphs of the failure contract, as far as one file is concerned."""

from __future__ import annotations

import email.utils
import hashlib
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from isanet.errors import (
    CacheError,
    CheckpointFormatError,
    DownloadError,
    IntegrityError,
    IsanetError,
    MirrorsExhaustedError,
    NetworkError,
    OfflineError,
)
from isanet.weights import download, http
from isanet.weights.download import Fetched, Limits, fetch
from tests.helpers.downloads import fetch_first
from tests.helpers.file_server import (
    FileServer,
    changed,
    cut,
    html,
    raw,
    redirect,
    reset,
    serving,
    stall,
    status,
    trickle,
)

NAME = "/name.pth"
BODY = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = Limits(connect=2, read=0.4, window=0.8, window_bytes=50_000, retries=2, backoff=0.01, deadline=20)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("ISANET_", "HF_")) or name.lower().endswith(("_proxy", "_pack")):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files[NAME] = BODY
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def get(server: FileServer, folder: Path, **how: Any) -> Fetched:
    """Fetches NAME with all that is known about it, unless told otherwise."""
    urls = how.pop("urls", [server.url + NAME])
    how = {"sha256": SHA, "size": len(BODY), "max_size": 1_000_000, "limits": QUICK, **how}
    return fetch_first(urls, folder, **how)


def left_over(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def assert_whole(fetched: Fetched, folder: Path, body: bytes = BODY) -> None:
    assert fetched.path.read_bytes() == body
    assert (fetched.sha256, fetched.size) == (hashlib.sha256(body).hexdigest(), len(body))
    assert left_over(folder) == [fetched.path]


def ranges(server: FileServer) -> list[str | None]:
    return [headers.get("Range") for _, _, headers in server.requests]


# --- the good path


def test_a_file_arrives_whole_and_quietly(server: FileServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetched = get(server, folder)
    assert_whole(fetched, folder)
    assert fetched.url == server.url + NAME
    (_, _, headers) = server.requests[0]
    assert headers["User-Agent"].startswith("isanet/")
    assert headers["Accept-Encoding"] == "identity"
    assert capsys.readouterr() == ("", "")


def test_a_large_file_is_served_from_disk_and_measured(server: FileServer, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(BODY * 20)
    server.files[NAME] = source
    assert_whole(get(server, folder, sha256=None, size=None, max_size=10_000_000), folder, BODY * 20)


def test_chunks_tell_the_end_where_there_is_no_length(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [serving(framing="chunked")]
    assert_whole(get(server, folder, sha256=None, size=None), folder)


def test_a_known_size_tells_the_end_where_nothing_else_does(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [serving(framing="close"), serving(framing="close")]
    assert_whole(get(server, folder), folder)
    with pytest.raises(NetworkError, match="how long"):
        get(server, folder, size=None)


def test_the_bar_counts_every_byte_once(server: FileServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.plan[NAME] = [cut(100_000), cut(50_000, ranges=False)]
    get(server, folder, progress=True)
    assert "name.pth" in (shown := capsys.readouterr().err)
    assert "300k/300k" in shown.rpartition("\r")[2]


def test_importing_it_is_cheap() -> None:
    code = "import sys, isanet.weights.download as _; "
    code += "print([m for m in ('torch', 'requests', 'urllib3', 'tqdm') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# --- cut short, reset: resume against the same object, and only then


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_resume_asks_only_for_what_is_missing(server: FileServer, folder: Path, framing: str) -> None:
    server.plan[NAME] = [cut(100_000, framing=framing), cut(120_000, framing=framing)]
    assert_whole(get(server, folder), folder)
    assert ranges(server) == [None, "bytes=100000-", "bytes=220000-"]
    assert server.requests[1][2]["If-Range"].startswith('"')
    assert server.sent[NAME] == len(BODY)


def test_a_reset_connection_is_resumed(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = ["reset", reset(100_000)]
    assert_whole(get(server, folder), folder)


def test_a_stalled_body_is_resumed(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [stall(200_000)]
    assert_whole(get(server, folder), folder)
    assert server.sent[NAME] == len(BODY)


@pytest.mark.parametrize("fault", [cut(1000), "reset", cut(1000, validators=False), status(503)])
def test_a_body_that_never_comes_whole_is_a_bounded_network_error(server: FileServer, folder: Path, fault: Any) -> None:
    server.plan[NAME] = [fault] * 50
    with pytest.raises(NetworkError, match="gave up after 3 attempts") as caught:
        get(server, folder)
    assert len(server.requests) == QUICK.retries + 1
    assert server.url + NAME in str(caught.value)
    assert "ISANET_MIRROR" in str(caught.value)
    assert left_over(folder) == []


def test_progress_resets_the_retries(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [cut(50_000)] * 5
    assert_whole(get(server, folder), folder)
    assert server.sent[NAME] == len(BODY)


@pytest.mark.parametrize(
    ("again", "in_one"),
    [
        (serving(ranges=False), True),  # a 200 brings the whole file itself
        (serving(shift=7), False),  # another range
        (serving(grow=7), False),  # another total
        (status(416), False),
        (status(206), False),  # no Content-Range at all
        (serving(ignore_if_range=True, validators=False, headers={"ETag": '"other"'}), False),
    ],
)
def test_anything_but_the_asked_range_starts_from_zero(
    server: FileServer, folder: Path, again: Any, in_one: bool
) -> None:
    server.plan[NAME] = [cut(100_000), again]
    assert_whole(get(server, folder), folder)
    asked = [None, "bytes=100000-", None]
    assert ranges(server) == (asked[:2] if in_one else asked)


@pytest.mark.parametrize("length", [len(BODY), 120_000, 50_000])
def test_a_changed_object_is_never_stitched_to_the_old_one(server: FileServer, folder: Path, length: int) -> None:
    other = bytes(reversed(BODY))[:length]
    server.plan[NAME] = [cut(100_000), changed(other)]
    assert_whole(get(server, folder, sha256=None, size=None), folder, other)


def test_a_server_that_ignores_if_range_is_noticed_by_its_etag(server: FileServer, folder: Path) -> None:
    other = bytes(reversed(BODY))

    def swap(handler: Any) -> None:
        server.files[NAME] = other
        handler.serve(ignore_if_range=True)

    server.plan[NAME] = [cut(100_000), swap]
    assert_whole(get(server, folder, sha256=None), folder, other)


DATE = {"Last-Modified": "Sun, 13 Sep 2020 12:26:40 GMT"}


@pytest.mark.parametrize(
    ("headers", "pinned", "resumes"),
    [
        ({"ETag": 'W/"weak"'}, True, False),
        ({"ETag": 'W/"weak"', **DATE}, True, True),
        ({}, True, False),
        (DATE, False, False),
        ({"ETag": 'W/"weak"', **DATE}, False, False),
        ({"ETag": '"strong"', **DATE}, False, True),
    ],
)
def test_only_a_strong_validator_allows_a_resume_and_a_date_only_where_the_hash_is_known(
    server: FileServer, folder: Path, headers: dict[str, str], pinned: bool, resumes: bool
) -> None:
    how: Any = {"validators": False, "headers": {"X-Any": "1", **headers}, "ignore_if_range": True}
    server.plan[NAME] = [cut(100_000, **how), serving(**how)]
    assert_whole(get(server, folder, sha256=SHA if pinned else None), folder)
    assert ranges(server) == [None, "bytes=100000-" if resumes else None]


@pytest.mark.parametrize("again", [{}, {"ETag": 'W/"weak"'}])
def test_an_unpinned_body_is_never_stitched_to_one_with_the_same_date(
    server: FileServer, folder: Path, again: dict[str, str]
) -> None:
    other = bytes(reversed(BODY))

    def swap(handler: Any) -> None:
        server.files[NAME] = other
        handler.serve(ignore_if_range=True, validators=False, headers={**DATE, **again})

    server.plan[NAME] = [cut(100_000, validators=False, headers={**DATE, **again}), swap]
    assert_whole(get(server, folder, sha256=None), folder, other)
    server.files[NAME] = BODY
    shutil.rmtree(folder)
    server.plan[NAME] = [cut(100_000), swap]  # a strong tag at first, none in the answer to the resume
    assert_whole(get(server, folder, sha256=None), folder, other)


def test_the_next_address_starts_from_zero(server: FileServer, folder: Path) -> None:
    server.files["/other/name.pth"] = BODY
    server.plan[NAME] = [cut(1000)] * 3
    fetched = get(server, folder, urls=[server.url + NAME, server.url + "/other/name.pth"])
    assert_whole(fetched, folder)
    assert fetched.url.endswith("/other/name.pth")
    assert ranges(server)[-1] is None


# --- wrong bytes


def flipped(body: bytes) -> bytes:
    return body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]


WRONG = {
    "a flipped bit": (flipped(BODY), serving(), "sha256"),
    "short": (BODY[:-1], serving(), "299999"),
    "long": (BODY + b"x", serving(), "300001"),
    "short in chunks": (BODY[:-1], serving(framing="chunked"), "299999"),
    "long in chunks": (BODY, serving(framing="chunked", extra=b"x"), "more than"),
    "long until the close": (BODY, serving(framing="close", extra=b"x"), "more than"),
    "an HTML page": (BODY, html(), "HTML"),
    "an HTML page in disguise": (BODY, html("application/octet-stream"), "HTML|announces"),
    "nothing": (b"", serving(), "0 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_bytes_lead_to_the_next_address(server: FileServer, folder: Path, case: str) -> None:
    body, fault, words = WRONG[case]
    server.files["/good/name.pth"] = BODY
    server.files[NAME] = body
    server.plan[NAME] = [fault, fault]
    with pytest.raises(IntegrityError, match=words):
        get(server, folder)
    assert left_over(folder) == []
    assert_whole(get(server, folder, urls=[server.url + NAME, server.url + "/good/name.pth"]), folder)
    assert len(server.requests) == 3  # no address was asked twice


@pytest.mark.parametrize(
    "start", [b"\xef\xbb\xbf  <!doctype HTML>", b"\n<html lang=en>", b"<!-- moved -->", b"<head><title>"]
)
def test_an_html_page_is_recognized_by_its_first_bytes_however_they_arrive(
    server: FileServer, folder: Path, start: bytes
) -> None:
    server.files[NAME] = start + bytes(100)
    server.plan[NAME] = [trickle(5)]
    with pytest.raises(IntegrityError, match="HTML"):
        get(server, folder, sha256=None, size=None)


def test_an_endless_body_is_stopped_at_the_limit(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = ["endless"]
    with pytest.raises(IntegrityError, match="more than the 1000000"):
        get(server, folder, size=None)
    assert server.sent[NAME] < 20_000_000
    assert left_over(folder) == []


def test_too_large_a_content_length_is_refused_before_the_body(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [serving(announce=10**12, limit=0)]
    with pytest.raises(IntegrityError, match="announces"):
        get(server, folder, size=None)


def test_a_content_encoding_is_refused(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = ["gzip"]
    with pytest.raises(NetworkError, match="encoding 'gzip'"):
        get(server, folder)


@pytest.mark.parametrize("error", [IntegrityError, CheckpointFormatError])
def test_what_the_caller_raises_counts_as_a_failure_of_the_address(
    server: FileServer, folder: Path, error: type[IsanetError]
) -> None:
    server.files["/good/name.pth"] = BODY
    seen: list[bytes] = []

    def check(path: Path) -> None:
        seen.append(path.read_bytes())
        if len(seen) == 1:
            raise error("not one of ours")

    urls = [server.url + NAME, server.url + "/good/name.pth"]
    assert get(server, folder, urls=urls, check=check).url == urls[1]
    assert seen == [BODY, BODY]
    seen.clear()
    with pytest.raises(error, match="not one of ours"):
        get(server, folder, check=check)
    assert len(left_over(folder)) == 1


def framed(*headers: bytes, body: bytes = BODY) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"", body])


GARBLED = {
    "a negative length": (framed(b"Content-Length: -5"), "refused: its headers do not tell.*'-5'"),
    "a length of 10**30": (framed(b"Content-Length: 1%s" % (b"0" * 30)), "refused: its headers do not tell"),
    "a length of 60 kB": (framed(b"Content-Length: 1%s" % (b"0" * 60_000)), "refused: its headers do not tell"),
    "a length in words": (framed(b"Content-Length: abc"), "refused: its headers do not tell.*'abc'"),
    "two lengths": (framed(b"Content-Length: 3", b"Content-Length: 5"), "cannot be reached"),
    "xchunked": (framed(b"Transfer-Encoding: xchunked"), "refused: its headers do not tell.*'xchunked'"),
    "gzip, chunked": (framed(b"Transfer-Encoding: gzip, chunked"), "refused: its headers do not tell"),
    "chunks and a length": (
        framed(b"Transfer-Encoding: chunked", b"Content-Length: 300000", body=b"3\r\nabc\r\n0\r\n\r\n"),
        "refused: its headers do not tell",
    ),
    "a chunk size in words": (framed(b"Transfer-Encoding: chunked", body=b"ZZ\r\nabc"), "IncompleteRead"),
    "a chunk size of 60 kB": (framed(b"Transfer-Encoding: chunked", body=b"0" * 70_000), "chunk size"),
    "a header without end": (framed(b"X: " + b"a" * 1_000_000), "65536"),
    "ten thousand headers": (framed(*[b"X: a"] * 10_000), "100 headers"),
    "a status line of 60 kB": (b"HTTP/1.1 " + b"4" * 60_000 + b"\r\n\r\n", "HTTP/1.1 444.*…"),
    "a version of 60 kB": (b"HTTP/" + b"9" * 60_000 + b" 200 OK\r\n\r\n", "HTTP/999.*…"),
    "terminal escapes": (b"\x1b[2J\x1b[31m\xe2\x80\xaegarbage\r\n\r\n", "garbage"),
    "a reason of 60 kB": (b"HTTP/1.1 403 " + b"R" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n", "answered 403;"),
    "an encoding of 60 kB": (framed(b"Content-Encoding: " + b"e" * 60_000), "content encoding 'eee.*…'"),
    "a redirect of 60 kB": (
        b"HTTP/1.1 302 Found\r\nLocation: http://evil/" + b"e" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
        "redirects to 'http://evil/e+…'",
    ),
    "nothing": (b"", "without response"),
}


@pytest.mark.parametrize("case", GARBLED)
@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_garbled_answer_is_one_short_line(
    server: FileServer, folder: Path, caplog: pytest.LogCaptureFixture, case: str, size: int | None
) -> None:
    answer, words = GARBLED[case]
    server.plan[NAME] = [raw(answer)] * 9
    with pytest.raises(NetworkError, match=words) as caught:
        get(server, folder, sha256=None, size=size)
    for message in (str(caught.value), *(record.getMessage() for record in caplog.records)):
        assert message.isprintable()
        assert len(message) < 1000
    assert left_over(folder) == []
    server.plan[NAME] = [raw(answer)]
    with suppress(NetworkError):
        assert len(http.probe(server.url + NAME)) <= 100


# --- answers that are errors


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451, 204, 206, 304])
def test_a_final_answer_leads_to_the_next_address_at_once(server: FileServer, folder: Path, code: int) -> None:
    server.files["/good/name.pth"] = BODY
    server.plan[NAME] = [status(code)]
    assert_whole(get(server, folder, urls=[server.url + NAME, server.url + "/good/name.pth"]), folder)
    assert len(server.requests) == 2


def test_all_exhausted_lists_each_cause_and_the_next_step(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [status(403)]
    server.plan["/b.pth"] = [html()]
    urls = [server.url + NAME, server.url + "/b.pth", server.url + "/c.pth"]
    with pytest.raises(MirrorsExhaustedError) as caught:
        get(server, folder, urls=urls)
    text = str(caught.value)
    for words in (*urls, "403", "HTML", "404", "ISANET_MIRROR", "name.pth", str(folder)):
        assert words in text
    assert left_over(folder) == []


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_temporary_answer_is_retried(server: FileServer, folder: Path, code: int) -> None:
    server.plan[NAME] = [status(code), status(code)]
    assert_whole(get(server, folder), folder)
    assert len(server.requests) == 3


def in_two_seconds() -> str:
    return email.utils.formatdate(time.time() + 2, usegmt=True)


@pytest.mark.parametrize("value", ["1", in_two_seconds])
def test_retry_after_is_obeyed(server: FileServer, folder: Path, value: Any) -> None:
    server.plan[NAME] = [status(503, Retry_After=value() if callable(value) else value)]
    started = time.monotonic()
    get(server, folder)
    assert 0.9 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    "value", ["-5", "soon", "", "1e3", "999999", "9" * 5000, "Fri, 01 Jan 2199 00:00:00 GMT", "Fri, 99 Jan 20 x", "18"]
)
def test_garbage_and_huge_retry_after_are_ignored(
    server: FileServer, folder: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.plan[NAME] = [status(503, Retry_After=value)]
    get(server, folder, limits=Limits(deadline=10 if value == "18" else 1e10))
    assert 1 <= waits[0] <= 1.25  # our own backoff


def test_the_backoff_doubles(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.plan[NAME] = [status(503)] * 5
    get(server, folder, limits=Limits())
    assert len(waits) == 5
    assert all(2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits))


def test_one_deadline_holds_for_all_addresses(server: FileServer, folder: Path) -> None:
    server.plan = {f"/{i}.pth": [trickle(2000, 0.05)] for i in range(3)}
    server.files = {f"/{i}.pth": BODY for i in range(3)}
    started = time.monotonic()
    with pytest.raises(MirrorsExhaustedError, match="deadline of 1 s"):
        get(server, folder, urls=[f"{server.url}/{i}.pth" for i in range(3)], limits=Limits(deadline=1))
    assert time.monotonic() - started < 3
    assert len(server.requests) == 1
    assert left_over(folder) == []


@pytest.mark.parametrize("fault", ["silent", "trickle", "trickling headers", "trickling chunk size"])
def test_silence_and_trickling_are_bounded(server: FileServer, folder: Path, fault: str) -> None:
    server.plan[NAME] = [fault] * 9
    started = time.monotonic()
    with pytest.raises(NetworkError, match="timed out" if fault == "silent" else "slower than 50000 bytes in 0.8 s"):
        get(server, folder)
    assert time.monotonic() - started < 8
    assert left_over(folder) == []


def test_a_dead_address_is_given_up_at_once(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}{NAME}"
    started = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be reached"):
        fetch_first([url], folder, max_size=10, limits=Limits(backoff=5))
    assert time.monotonic() - started < 3


# --- redirects, schemes, secrets


def test_redirects_are_followed_and_counted(server: FileServer, folder: Path) -> None:
    server.plan["/start"] = [redirect("/second", 307)] * 2
    server.plan["/second"] = [redirect(server.url + NAME + "?key=1", 301)]
    assert_whole(get(server, folder, urls=[server.url + "/start"]), folder)
    server.plan["/loop"] = [redirect("/loop")] * 50
    server.requests.clear()
    with pytest.raises(NetworkError, match="more than 10"):
        get(server, folder, urls=[server.url + "/loop"])
    assert len(server.requests) == 11


@pytest.mark.parametrize(
    "target",
    [
        "http://example.com/name.pth",
        "http://10.0.0.1/name.pth",
        "file:///etc/passwd",
        "ftp://127.0.0.1/name.pth",
        "http://example.com\\@127.0.0.1/name.pth",
        "http://127.0.0.1.example.com/",
        "http://[bad/",
        "http://127.0.0.1:99999/",
    ],
)
def test_a_redirect_away_from_https_is_refused(server: FileServer, folder: Path, target: str) -> None:
    server.plan[NAME] = [redirect(target)]
    with pytest.raises(NetworkError, match="refused: redirects to"):
        get(server, folder)
    assert left_over(folder) == []


def test_the_body_of_a_redirect_is_not_read(server: FileServer, folder: Path) -> None:
    def endless_redirect(handler: Any) -> None:
        handler.wfile.write(f"HTTP/1.1 302 Found\r\nLocation: {NAME}\r\nContent-Length: 99999999\r\n\r\n".encode())
        server.closing.wait()

    server.plan["/start"] = [endless_redirect]
    assert_whole(get(server, folder, urls=[server.url + "/start"]), folder)
    assert len(server.requests) == 2


@pytest.mark.parametrize("url", ["http://example.com/name.pth", "ftp://example.com/name.pth", "name.pth", "https:///x"])
def test_only_https_is_spoken(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    with pytest.raises(NetworkError, match="refused: only https"):
        fetch_first([url], folder, max_size=10)


def test_no_credentials_are_sent_or_shown(
    server: FileServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password pssst\n")
    monkeypatch.setenv("NETRC", str(netrc))
    secret = server.url.replace("//", "//user:pssst@") + "/gone.pth?signature=pssst#pssst"
    server.plan["/gone.pth"] = [redirect(NAME + "x?signature=pssst")] * 50
    server.files[NAME + "x"] = BODY
    server.plan[NAME + "x"] = [reset()] * 50
    with caplog.at_level(logging.INFO, logger="isanet"), pytest.raises(NetworkError) as caught:
        get(server, folder, urls=[secret])
    assert len(server.requests) > 2
    assert not any("authorization" in name.lower() for _, _, headers in server.requests for name in headers)
    assert "gone.pth" in caplog.text
    assert "pssst" not in caplog.text + str(caught.value) + repr(caught.value.__cause__)


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_loopback_is_never_sent_to_a_proxy(
    server: FileServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate: tuple[Path, Path],
    scheme: str,
    host: str,
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, server.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with pytest.raises(NetworkError, match="Tunnel connection failed: 501"):  # others are
        fetch_first(["https://example.com/name.pth"], folder, max_size=10, limits=QUICK)
    try:
        loopback = FileServer(certificate if scheme == "https" else None, host)
    except OSError:
        pytest.skip("this address is not there")
    with loopback as target:
        target.files[NAME] = BODY
        if scheme == "https" and host != "127.0.0.1":
            with pytest.raises(NetworkError, match="certificate"):  # it was reached
                get(target, folder)
        else:
            assert_whole(get(target, folder), folder)
            assert http.probe(target.url + NAME) == "answers 200 OK"
    assert server.requests == []


@pytest.mark.parametrize(
    "proxy",
    [
        "garbage", "://", "http://", "http:///x", "http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:port",
        "http://.:80", f"http://{'a' * 300}.example:80", "http://\x1b[2J:80", "ftp://host:1", "socks5://127.0.0.1:9",
        "socks9://u:pssst@h:1", "u:pssst@h:1", "http://u:pssst@", "http://u:pssst@[::1", "http://u:ps/sst@h:1",
        "http://u:pssst@h:99999", "http://u:pssst@h h:80", "http://u:pssst@127.0.0.1:9",
    ],
)  # fmt: skip
def test_a_malformed_proxy_is_named_without_its_password(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, proxy: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    url = "https://example.com/name.pth"
    with pytest.raises(
        NetworkError, match=r"example\.com/name\.pth: .*; a proxy is set: check HTTPS_PROXY; try again"
    ) as caught:
        fetch_first([url], folder, max_size=10, limits=QUICK)
    with pytest.raises(NetworkError, match="cannot be reached") as probed:
        http.probe(url)
    shown = f"{caught.value}{probed.value}{caught.value.__cause__!r}{caplog.text}"
    assert "pssst" not in shown
    assert "sst@" not in shown
    assert str(caught.value).isprintable()


# --- certificates


def test_a_bad_certificate_is_refused_until_it_is_trusted(
    folder: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    with FileServer(tls=certificate) as secure:
        secure.files[NAME] = BODY
        with pytest.raises(NetworkError, match=r"certificate.*REQUESTS_CA_BUNDLE"):
            get(secure, folder)
        assert secure.requests == []  # neither downgraded nor asked
        assert_whole(get(secure, folder, urls=[secure.url + NAME, server.url + NAME]), folder)  # next address
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
        shutil.rmtree(folder)
        secure.plan[NAME] = [cut(100_000), "trickling headers"]
        assert_whole(get(secure, folder), folder)
        secure.plan[NAME] = [redirect(server.url + NAME)]
        with pytest.raises(NetworkError, match="refused: redirects to"):  # https to http, loopback or not
            get(secure, folder)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "missing.pem"))
        with pytest.raises(NetworkError, match=r"missing\.pem"):
            get(secure, folder)


# --- offline and mirrors


def unknown_host(*_: Any, **__: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def forbidden(*_: Any, **__: Any) -> None:
    raise BaseException("a socket was opened")


@pytest.mark.parametrize(
    ("name", "value"), [("ISANET_OFFLINE", "1"), ("HF_HUB_OFFLINE", "True"), ("ISANET_OFFLINE", "on")]
)
def test_offline_opens_no_socket(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for opens in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, opens, forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setenv(name, value)
    urls = ["https://example.com/name.pth", "https://example.org/name.pth"]
    with pytest.raises(OfflineError) as caught:
        fetch_first(urls, folder, max_size=10)
    for words in (*urls, str(folder), name):
        assert words in str(caught.value)
    assert not folder.exists()


def test_a_mirror_on_a_shared_disk_works_offline(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "a shared disk"
    shared.mkdir()
    (shared / "name.pth").write_bytes(BODY)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    monkeypatch.setenv("ISANET_MIRROR", shared.as_uri() + "/")
    how: Any = {"max_size": 10**6, "size": len(BODY), "sha256": SHA}
    fetched = fetch_first(["https://example.com/name.pth"], folder, **how)
    assert_whole(fetched, folder)
    assert fetched.url == (shared / "name.pth").as_uri()
    (shared / "name.pth").write_bytes(flipped(BODY))
    with pytest.raises(OfflineError, match="sha256"):
        fetch_first(["https://example.com/name.pth"], folder, **how)
    (shared / "name.pth").unlink()
    with pytest.raises(OfflineError, match="no such file"):
        fetch_first(["https://example.com/name.pth"], folder, **how)
    assert left_over(folder) == [fetched.path]


@pytest.mark.parametrize(
    ("name", "value"), [("ISANET_OFFLINE", "0"), ("HF_HUB_OFFLINE", "false"), ("ISANET_OFFLINE", "")]
)
def test_false_values_do_not_mean_offline(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not download.offline()


def test_the_mirror_comes_first_and_the_addresses_remain(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/mirror/name.pth"] = BODY
    monkeypatch.setenv("ISANET_MIRROR", server.url + "/mirror/")
    urls = [server.url + NAME, "https://example.com/deep/name.pth?x=1"]
    assert download.addresses(urls) == [server.url + "/mirror/name.pth", *urls]
    assert_whole(fetched := get(server, folder), folder)
    assert fetched.url == server.url + "/mirror/name.pth"
    fetched.path.unlink()
    del server.files["/mirror/name.pth"]
    assert get(server, folder).url == server.url + NAME


@pytest.mark.parametrize(
    "mirror",
    [
        "http://example.com", "ftp://127.0.0.1", "/mnt/share", "http://u:pssst@evil", "http://[x", "u:pssst@evil",
        "https:u:pssst@evil", "https:/u:pssst@evil", "https:///u:pssst@evil", "https//u:pssst@evil",
        "https://u:pssst@[evil", "https://u:pssst@evil:99999", "https://u:pssst@e\\vil", "https://u:ps/pssst@evil",
        "https://u:pssst@", "ftp://u:1/pssst@evil",
    ],
)  # fmt: skip
def test_an_unsafe_mirror_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv("ISANET_MIRROR", mirror)
    with pytest.raises(DownloadError, match="ISANET_MIRROR must be") as caught:
        fetch_first(["https://example.com/name.pth"], folder, max_size=10)
    assert "pssst" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]"])
def test_a_mirror_on_loopback_may_be_plain(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ISANET_MIRROR", f"http://{host}:8000/m")
    assert download.addresses(["https://example.com/a/n.pth"])[0] == f"http://{host}:8000/m/n.pth"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_a_pipe_as_file_address_does_not_block(tmp_path: Path, folder: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(NetworkError, match="no such file"):
        fetch_first([(tmp_path / "pipe.pth").as_uri()], folder, max_size=10)


# --- files


def run(code: str, *args: str) -> subprocess.Popen[str]:
    """Python in a process of its own, for what cannot be tried in this one."""
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_no_space_is_noticed_before_the_body(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1234))
    with pytest.raises(CacheError, match=r"300000 bytes needed, 1234 free.*ISANET_HOME"):
        get(server, folder, urls=[server.url + NAME, server.url + "/other.pth"])
    assert len(server.requests) == 1
    assert left_over(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is of POSIX")
def test_a_disk_that_fills_up_is_a_cache_error(server: FileServer, folder: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from tests.helpers.downloads import fetch_first
        from isanet.errors import CacheError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            fetch_first([sys.argv[1], sys.argv[1] + "?again"], Path(sys.argv[2]), max_size=10**6)
        except CacheError as error:
            print(error)
    """
    with run(code, server.url + NAME, str(folder)) as process:
        shown, errors = process.communicate(timeout=30)
    assert "300000 bytes needed" in shown, errors
    assert "ISANET_HOME" in shown
    assert len(server.requests) == 1
    assert left_over(folder) == []


def test_a_folder_that_cannot_be_made_names_the_way_out(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="ISANET_HOME"):
        get(server, tmp_path / "file" / "cache")
    assert server.requests == []


@pytest.mark.parametrize("number", ["EACCES", "EROFS"])
def test_a_read_only_folder_names_the_way_out(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    import errno
    import tempfile

    def refuse(**_: Any) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(CacheError, match="ISANET_HOME"):
        get(server, folder)


def test_a_planted_link_is_never_followed(
    server: FileServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one whose name was guessed."""
    import tempfile

    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder.mkdir()
    (folder / ".isanet-guessed.part").symlink_to(victim)
    (folder / ".isanet-dangling.part").symlink_to(tmp_path / "nowhere")
    names = iter(["guessed", "dangling", "fresh"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    with fetch(server.url + NAME, folder, max_size=10**6) as fetched:
        assert fetched.path.name == ".isanet-fresh.part"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
def test_ctrl_c_leaves_no_half_file(server: FileServer, folder: Path) -> None:
    server.plan[NAME] = [trickle(1000, 0.02)]
    code = """
        import sys
        from pathlib import Path
        from tests.helpers.downloads import fetch_first
        fetch_first([sys.argv[1]], Path(sys.argv[2]), max_size=10**6)
    """
    with run(code, server.url + NAME, str(folder)) as process:
        until = time.monotonic() + 20
        while not any(path.stat().st_size for path in left_over(folder)) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(left_over(folder)) == 1  # it was interrupted in the middle
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert left_over(folder) == []


def test_earlier_files_stay_as_they_were(server: FileServer, folder: Path) -> None:
    folder.mkdir()
    (folder / "name.pth").write_bytes(b"earlier")
    server.plan[NAME] = [status(404)]
    with pytest.raises(NetworkError):
        get(server, folder)
    get(server, folder)
    assert (folder / "name.pth").read_bytes() == b"earlier"


@pytest.mark.parametrize("fault", ["silent", "trickling headers"])
def test_asking_whether_an_address_answers_is_bounded(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(http, "PROBE_SECONDS", 0.5)
    server.plan[NAME] = [fault]
    started = time.monotonic()
    with pytest.raises(NetworkError, match=r"cannot be reached|did not answer within 0\.5 s"):
        http.probe(server.url + NAME)
    assert time.monotonic() - started < 5
    assert http.probe(server.url + NAME) == "answers 200 OK"
