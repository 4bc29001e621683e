"""Soak: hundreds of downloads from a server that fails at random, by a plan that is the same for the same seed."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from isanet.errors import DownloadError, IntegrityError, NetworkError
from isanet.weights import http
from isanet.weights.download import Limits
from tests.helpers.downloads import fetch_first
from tests.helpers.file_server import (
    Fault,
    FileServer,
    changed,
    cut,
    html,
    redirect,
    reset,
    serving,
    stall,
    status,
    trickle,
)

SEED, DOWNLOADS, AT_ONCE = 20, 400, 8
SIZE = 100_000
LIMITS = Limits(connect=2, read=0.2, window=0.4, window_bytes=10_000, retries=2, backoff=0.01, deadline=6)
SLACK = 10.0  # seconds beyond the deadline, for a busy machine


def offset(numbers: random.Random) -> int:
    return numbers.randrange(1, SIZE)


# Name: how often, and the fault
BROKEN_OFF: dict[str, tuple[int, Callable[[random.Random], Fault | str]]] = {
    "cut": (6, lambda numbers: cut(offset(numbers))),
    "cut in chunks": (2, lambda numbers: cut(offset(numbers), framing="chunked")),
    "reset": (4, lambda numbers: reset(offset(numbers))),
    "short": (2, lambda numbers: serving(announce=numbers.randrange(1, 99), limit=offset(numbers))),
    "stall": (2, lambda numbers: stall(offset(numbers))),
}
"""What a resume mends."""

FAULTS: dict[str, tuple[int, Callable[[random.Random], Fault | str]]] = BROKEN_OFF | {
    "reset at once": (1, lambda _: "reset"),
    "silence": (1, lambda _: "silent"),
    "trickle": (1, lambda _: trickle(200, 0.05)),
    "wrong range": (2, lambda numbers: serving(shift=numbers.choice([-1, 1, 7000]))),
    "wrong total": (1, lambda _: serving(grow=7)),
    "no ranges": (1, lambda _: serving(ranges=False)),
    "416": (1, lambda _: status(416)),
    "429": (2, lambda numbers: status(429, Retry_After=numbers.choice(["0", "1", "99999", "soon"]))),
    "5xx": (2, lambda numbers: status(numbers.choice([500, 502, 503, 504]))),
    "4xx": (1, lambda numbers: status(numbers.choice([403, 404, 410]))),
    "HTML": (1, lambda _: html()),
    "HTML in disguise": (1, lambda _: html("application/octet-stream")),
    "changed object": (2, lambda numbers: changed(numbers.randbytes(SIZE))),
    "too long": (1, lambda _: serving(framing="close", extra=b"x")),
    "endless": (1, lambda _: "endless"),
    "gzip": (1, lambda _: "gzip"),
    "to plain http": (1, lambda _: redirect("http://example.com/x")),
}


class Case(NamedTuple):
    """One download: its file, what goes wrong in turn, and whether the hash is known before."""

    path: str
    body: bytes
    names: list[str]
    faults: list[Fault | str]
    known: bool


def planned(number: int) -> Case:
    numbers = random.Random(f"{SEED} {number}")
    kinds = BROKEN_OFF if number % 3 == 0 else FAULTS
    names = numbers.choices(list(kinds), [often for often, _ in kinds.values()], k=numbers.randrange(5))
    return Case(
        f"/{number}.pth",
        numbers.randbytes(SIZE),
        names,
        [kinds[name][1](numbers) for name in names],
        numbers.random() < 0.7,
    )


class Outcome(NamedTuple):
    error: DownloadError | None
    sent: int
    seconds: float


def soaked(folder: Path) -> list[Outcome]:
    """Runs all downloads, several at a time; fails on anything but a verified file or a named error."""
    cases = [planned(number) for number in range(DOWNLOADS)]
    with FileServer() as server:
        for case in cases:
            server.files[case.path], server.plan[case.path] = case.body, list(case.faults)

        def one(case: Case) -> Outcome:
            sha256 = hashlib.sha256(case.body).hexdigest() if case.known else None
            started, error = time.monotonic(), None
            try:
                found = fetch_first(
                    [server.url + case.path], folder, sha256=sha256, size=SIZE, max_size=4 * SIZE, limits=LIMITS
                )
                data = found.path.read_bytes()
                assert data == server.files[case.path], "neither the old object nor the new one"
                assert hashlib.sha256(data).hexdigest() == found.sha256 == (sha256 or found.sha256)
                found.path.unlink()
            except (NetworkError, IntegrityError) as caught:
                error = caught
                assert server.url + case.path in str(error)
            return Outcome(error, server.sent[case.path], time.monotonic() - started)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(one, cases))


def test_the_same_seed_gives_the_same_plan() -> None:
    for number in range(DOWNLOADS):
        assert (case := planned(number))[:3] == (again := planned(number))[:3]
        assert case.known == again.known
    assert {name for number in range(DOWNLOADS) for name in planned(number).names} == set(FAULTS)


def test_every_download_ends_in_a_verified_file_or_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = soaked(tmp_path / "resuming")
    assert list((tmp_path / "resuming").iterdir()) == []
    longest = max(outcome.seconds for outcome in outcomes)
    assert longest < LIMITS.deadline + SLACK
    kinds = Counter("verified file" if each.error is None else type(each.error).__name__ for each in outcomes)
    assert set(kinds) == {"verified file", "NetworkError", "IntegrityError"}
    assert kinds["verified file"] > DOWNLOADS / 2
    assert min(kinds.values()) > DOWNLOADS / 50

    # The same plan again, by a client that never resumes
    monkeypatch.setattr(http, "_validator", lambda *_: "")
    plain = soaked(tmp_path / "plain")
    mended = [
        number
        for number in range(DOWNLOADS)
        if outcomes[number].error is plain[number].error is None and set(planned(number).names) <= {*BROKEN_OFF}
    ]
    resumed = sum(outcomes[number].sent for number in mended)
    whole = sum(plain[number].sent for number in mended)
    assert sum(bool(planned(number).names) for number in mended) > DOWNLOADS / 20
    assert resumed < 1.1 * SIZE * len(mended), "a byte is sent once, but for those lost in a reset"
    assert whole > 1.25 * SIZE * len(mended), "the plan has something to save"
    print(f"{DOWNLOADS} downloads: {dict(kinds)}; the longest took {longest:.1f} s")
    print(f"bytes sent: {resumed:,} with resuming, {whole:,} without, {SIZE * len(mended):,} at least")
