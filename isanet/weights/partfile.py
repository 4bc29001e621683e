"""The file that a download writes: hashed while it is written, bounded in size and time."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isanet._files import is_web_page
from isanet.errors import CacheError, IntegrityError, NetworkError
from isanet.weights.cache import write_error

WEB_PAGE = "an HTML page came instead of the file (a parked domain, a captive portal?)"


@dataclass(frozen=True)
class Limits:
    """How long to wait, in seconds and bytes."""

    connect: float = 10.0
    read: float = 30.0  # without a single byte
    window: float = 60.0  # at least `window_bytes` must arrive in each, so that a server cannot trickle for hours
    window_bytes: int = 64 * 1024
    retries: int = 5  # per address, in a row without `window_bytes` of progress
    backoff: float = 1.0  # doubled by every retry
    deadline: float = 6 * 3600.0  # for all addresses together


class RetryError(Exception):
    """This address may do better at the next try; `wait` is what the server asked for, in seconds."""

    def __init__(self, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.wait = wait


@dataclass
class PartFile:
    """A file being downloaded and what it must become; `digest` covers exactly the `size` bytes in it."""

    file: io.FileIO
    folder: Path
    expected_sha256: str | None
    expected_size: int | None
    max_size: int
    limits: Limits
    deadline: float  # on the clock of time.monotonic
    bar: Any
    size: int = 0
    max_reached: int = 0  # the largest `size` so far
    received: int = 0  # bytes of bodies, restarts included
    total: int | None = None  # the length that the server announced
    validator: str = ""  # of the object that the bytes come from, for If-Range
    head: bytes = b""
    digest: Any = field(default_factory=hashlib.sha256)
    window_start: float = 0.0  # on the clock of time.monotonic
    window_received: int = 0  # `received` at that time

    def restart(self) -> None:
        """Discard all bytes."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self.total, self.validator, self.head, self.digest = 0, None, "", b"", hashlib.sha256()

    def expect(self, total: int | None) -> None:
        """Accept the announced length, or refuse it before a byte of the body is read."""
        if total is not None and self.expected_size not in (None, total):
            raise IntegrityError(f"announces {total} bytes, expected {self.expected_size}")
        if total is not None and total > self.max_size:
            raise IntegrityError(f"announces {total} bytes, more than the {self.max_size} allowed")
        self.total = total
        self.bar.total = needed = total if total is not None else self.expected_size
        if needed is not None and needed - self.size > shutil.disk_usage(self.folder).free:
            raise self.disk_error()

    def write(self, chunks: Iterable[bytes]) -> None:
        """Write and hash the chunks."""
        largest = next(limit for limit in (self.total, self.expected_size, self.max_size) if limit is not None)
        for chunk in chunks:
            self.received += len(chunk)
            if self.size + len(chunk) > largest:
                raise IntegrityError(f"sends more than the {largest} bytes expected; stopped")
            if len(self.head) < 512:
                self.head += chunk[: 512 - len(self.head)]
                if is_web_page(self.head):
                    raise IntegrityError(WEB_PAGE)
            try:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[self.file.write(rest) :]
            except OSError as error:
                raise self.disk_error(error) from error
            self.digest.update(chunk)
            self.size += len(chunk)
            self.max_reached = max(self.max_reached, self.size)
            self.bar.update(self.size - self.bar.n)
            self.seconds_left()

    def verify(self) -> None:
        """Compare the complete file with what is expected, and flush it to the disk."""
        if not self.size or self.expected_size not in (None, self.size):
            raise IntegrityError(f"sent {self.size} bytes, expected {self.expected_size or 'at least one'}")
        if self.expected_sha256 is not None and self.digest.hexdigest() != self.expected_sha256.lower():
            raise IntegrityError(
                f"wrong bytes: sha256 {self.digest.hexdigest()}, expected {self.expected_sha256.lower()}"
            )
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self.disk_error(error) from error

    def disk_error(self, error: OSError | None = None) -> CacheError:
        """The error for a file that cannot be written, or would not fit."""
        needed = self.total or self.expected_size or f"up to {self.max_size}"
        return write_error(self.folder, error, needed, partial=self.size)

    # --- time

    def seconds_left(self) -> float:
        """Seconds until the deadline; raises NetworkError when it has passed."""
        if (left := self.deadline - time.monotonic()) <= 0:
            raise NetworkError(f"gave up: the deadline of {self.limits.deadline:g} s for the whole download has passed")
        return left

    def start_window(self) -> None:
        """Start the first window of a request."""
        self.window_start, self.window_received = time.monotonic(), self.received

    def check_pace(self) -> None:
        """Raise RetryError if a window has ended without its bytes, NetworkError if the deadline has passed."""
        self.seconds_left()
        if time.monotonic() - self.window_start >= self.limits.window:
            if self.received - self.window_received < self.limits.window_bytes:
                raise RetryError(f"slower than {self.limits.window_bytes} bytes in {self.limits.window:g} s")
            self.start_window()
