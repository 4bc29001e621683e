"""Fetch files from the first address that has the right bytes: decide which addresses to try, then fetch from one.

    failures = Failures("name", "name.pth", folder)
    deadline = deadline_from_now()
    for url in addresses(urls):
        with failures.of(url), fetch(url, folder, sha256=sha256, max_size=max_size, deadline=deadline) as fetched:
            return use(fetched.file)
    raise failures.error()

Nothing here trusts the other side: whole files are hashed while they are written, sizes are bounded before and during
the transfer, every wait has an end, and a call that fails leaves no file. Addresses are written into messages and logs
without user names, passwords and query strings.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlunsplit

from isanet._progress import progress_bar
from isanet.errors import (
    CheckpointError,
    DownloadError,
    IntegrityError,
    MirrorsExhaustedError,
    NetworkError,
    OfflineError,
)
from isanet.weights import http
from isanet.weights.cache import create_shared_folder, write_error
from isanet.weights.partfile import Limits, PartFile
from isanet.weights.url import file_name, is_allowed, local_path, redacted, split

log = logging.getLogger("isanet")


@dataclass(frozen=True)
class Fetched:
    """A complete, verified file.

    Attributes:
        path: The temporary file.
        file: The same, still open; another user who may write to the folder can put something else at its path.
        url: Where it came from, redacted.
        sha256: Its hash.
        size: Its size in bytes.
    """

    path: Path
    file: io.FileIO
    url: str
    sha256: str
    size: int


def offline() -> str:
    """Which variable, ISANET_OFFLINE or HF_HUB_OFFLINE, says never to open a socket; empty if none does."""
    for name in ("ISANET_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}:
            return name
    return ""


def addresses(urls: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """The addresses to try, in order: `<ISANET_MIRROR>/<file name>` where a mirror is set, then `urls`.

    Args:
        urls: Those of the manifest.
        names: Names of the file on a mirror; those in `urls` if left out.

    Raises:
        DownloadError: The mirror is neither https://, nor file://, nor http:// on loopback.
    """
    mirror = os.environ.get("ISANET_MIRROR", "").strip()
    if not mirror:
        return list(dict.fromkeys(urls))
    parts = split(mirror)
    if parts is None or not (parts.scheme == "file" or is_allowed(mirror, plain=True)):
        raise DownloadError(
            f"ISANET_MIRROR must be https://, file://, or http:// on loopback, not {redacted(mirror)!r}"
        )
    names = [file_name(url) for url in urls] if names is None else names
    names = [name for name in dict.fromkeys(names) if name not in {"", ".", ".."}]
    copies = (urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")) for name in names)
    return list(dict.fromkeys([*copies, *urls]))


def deadline_from_now(limits: Limits | None = None) -> float:
    """The end, on the clock of `time.monotonic`, of a download that starts now, all its addresses together."""
    return time.monotonic() + (limits or Limits()).deadline


@contextmanager
def fetch(
    url: str,
    folder: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    max_size: int,
    deadline: float | None = None,
    progress: bool | None = None,
    limits: Limits | None = None,
) -> Iterator[Fetched]:
    """Download one address into a temporary file, which is removed after the body unless it was renamed.

    Only https is supported (http on loopback; file:// is copied), also after redirects. No credentials are ever sent,
    neither those in an address nor those in a .netrc.

    Args:
        url: Retried as long as that may help.
        folder: Of the temporary file; created if missing.
        sha256: 64 hex digits; None accepts the bytes that TLS protected.
        size: Exact number of bytes; None accepts what the server announces.
        max_size: Number of bytes never to exceed.
        deadline: Of all addresses together, from `deadline_from_now`; None sets a new one.
        progress: Show a progress bar on standard error; None shows it on a terminal and in a notebook.
        limits: None takes `Limits()`.

    Raises:
        OfflineError: The environment forbids sockets; raised before one is opened.
        NetworkError: The address could not be reached, broke off, stalled or refused.
        IntegrityError: It sent other bytes.
        CacheError: `folder` cannot be written: no space, no permission.
    """
    limits = limits or Limits()
    local = url.startswith("file:")
    if not local and (variable := offline()):
        raise OfflineError(f"not tried, because {variable} is set")
    deadline = deadline_from_now(limits) if deadline is None else deadline
    log.info("downloading %s", redacted(url))
    with _temporary_file(folder) as (file, path):
        with progress_bar(desc=file_name(url), total=size, unit="B", unit_scale=True, show=progress) as bar:
            part = PartFile(file, folder, sha256, size, max_size, limits, deadline, bar)
            (_copy if local else http.download)(url, part)
            part.verify()
        yield Fetched(path, file, redacted(url), part.digest.hexdigest(), part.size)


class Failures:
    """Why no address had a usable file, for messages.

    Args:
        model: What was asked for.
        name: Of its file.
        folder: Where the user could put it by hand.
        state: Why what is there already is not enough.
        pages: Addresses of it that only a person can open, each with a note.
    """

    def __init__(
        self,
        model: str,
        name: str,
        folder: Path,
        state: str = "is not there",
        pages: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.model = model
        self.name = name
        self.folder = folder
        self.state = state
        self.pages = " or ".join(f"{page['url']} ({page['note']})" for page in pages)
        self.causes: list[tuple[str, Exception]] = []

    @contextmanager
    def of(self, url: str) -> Iterator[None]:
        """Collect and log the error that the body raises about this address, so that the next one is tried.

        Errors that no other address can cure, such as a CacheError, are not caught.
        """
        try:
            yield
        except (NetworkError, IntegrityError, OfflineError, CheckpointError) as error:
            if not offline():
                log.warning("%s: %s", redacted(url), error)
            self.causes.append((url, error))

    def error(self) -> DownloadError | IntegrityError | CheckpointError:
        """The error that stands for all failures, with each address, its cause and the next step.

        Returns:
            OfflineError where the environment says to stay offline, MirrorsExhaustedError for several addresses, and
            for a single one an error of the same class as its own.
        """
        if not (self.causes or self.pages):
            return DownloadError("there is no address to download from")
        lines = [f"{redacted(url)}: {error}" for url, error in self.causes]
        listed = "".join(f"\n  {line}" for line in lines)
        put = f"put {self.name} into {self.folder} by hand"
        if self.pages:
            put = f"open {self.pages} in a browser and put the file as {self.name} into {self.folder}"
        install = f"pass `isanet install` an archive that `isanet pack {self.model}` wrote on another machine"
        variable = offline()
        if not self.causes:
            kind = OfflineError if variable else DownloadError
            return kind(
                f"{self.model} {self.state}, and only a person can download it: {put}, set ISANET_MIRROR to a "
                f"copy's folder, or {install}"
            )
        if variable:
            return OfflineError(
                f"{self.model} {self.state}, and {variable} is set; unset it, {put}, or {install}:{listed}"
            )
        advice = f"try again later, set ISANET_MIRROR to a copy's folder, {put}, or {install}"
        if len(lines) > 1:
            return MirrorsExhaustedError(f"{self.model}: no address gave {self.name}; {advice}:{listed}")
        only = self.causes[0][1]
        assert isinstance(only, DownloadError | IntegrityError | CheckpointError)
        error = type(only)(f"{self.model}: {lines[0]}; {advice}")
        error.__cause__ = only
        return error


def _copy(url: str, part: PartFile) -> None:
    """Copy a file:// address; a link is followed there, because the user chose it."""
    source = local_path(url)
    try:
        if source is None or not source.is_file():  # a pipe would block for ever
            raise NetworkError("there is no such file")
        with source.open("rb") as stream:
            part.expect(os.fstat(stream.fileno()).st_size)
            part.write(iter(lambda: stream.read(http.CHUNK_BYTES), b""))
    except OSError as error:
        raise NetworkError(f"cannot be read: {error.strerror}") from error


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[io.FileIO, Path]]:
    """A new file in `folder`, removed after the body unless it was renamed."""
    try:  # mkstemp creates exclusively, with an unpredictable name: a planted link is never followed
        create_shared_folder(folder)
        descriptor, name = tempfile.mkstemp(prefix=".isanet-", suffix=".part", dir=folder)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        with io.FileIO(descriptor, "rb+") as file:  # unbuffered: a full disk shows at the write
            yield file, Path(name)
    finally:
        with suppress(OSError):
            Path(name).unlink()
