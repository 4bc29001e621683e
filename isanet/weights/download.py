"""Resumable, verified, atomic fetch of one file.

Nothing here trusts the other side: whole files are hashed while they are written, sizes are
bounded before and during the transfer, every wait has an end, and a call that fails leaves no
file. Addresses are written into messages and logs without user names, passwords and query
strings, because the address of a signed redirect is a key. For the same reason network errors
are raised `from None`: the exceptions of requests quote whole addresses.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from isanet.errors import (
    CacheError,
    CheckpointError,
    DownloadError,
    IntegrityError,
    MirrorsExhaustedError,
    NetworkError,
    OfflineError,
)

if TYPE_CHECKING:
    import requests

log = logging.getLogger("isanet")

_CHUNK = 256 * 1024
_REDIRECTS = 10
_LONGEST_WAIT = 120.0  # seconds that a server may ask for by Retry-After; beyond that our own backoff is kinder
_TRY_LATER = frozenset({429, 500, 502, 503, 504})
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!--|\?xml|(?:!doctype|html|head|body|script|title|meta)\b)", re.IGNORECASE
)
_HTML_CAME = "an HTML page came instead of the file (a parked domain, a captive portal?)"


@dataclass(frozen=True)
class Limits:
    """How long to be patient, in seconds and bytes."""

    connect: float = 10.0
    read: float = 30.0  # without a single byte
    window: float = 60.0  # every window must bring `window_bytes`, so that a trickling server cannot hold us
    window_bytes: int = 64 * 1024
    retries: int = 5  # per address, in a row without `window_bytes` of progress
    backoff: float = 1.0  # doubled by every retry
    deadline: float = 6 * 3600.0  # for all addresses together


@dataclass(frozen=True)
class Fetched:
    """A complete file, which from now on belongs to the caller.

    `url` is the address that gave it: as listed, or without secrets where it is a mirror's.
    """

    path: Path
    url: str
    sha256: str
    size: int


class _AgainError(Exception):
    """This address may do better at the next try; `wait` is what the server asked for, in seconds."""

    def __init__(self, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.wait = wait


def offline() -> bool:
    """Whether ISANET_OFFLINE or HF_HUB_OFFLINE says never to open a socket."""
    values = (os.environ.get(name, "") for name in ("ISANET_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in {"1", "true", "yes", "on"} for value in values)


def addresses(urls: Sequence[str]) -> list[str]:
    """The addresses to try, in order: `<ISANET_MIRROR>/<file name>` where a mirror is set, then `urls`.

    Raises:
        DownloadError: The mirror is neither https://, nor file://, nor http:// on loopback.
    """
    mirror = os.environ.get("ISANET_MIRROR", "").strip()
    if not mirror:
        return list(dict.fromkeys(urls))
    parts = _split(mirror)
    if parts is None or not (parts.scheme == "file" or _allowed(mirror, plain=True)):
        raise DownloadError(
            f"ISANET_MIRROR must be https://, file://, or http:// on loopback, not {redacted(mirror)!r}"
        )
    names = dict.fromkeys(name for url in urls if (name := _file_name(url)) not in {"", ".", ".."})
    copies = (urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")) for name in names)
    return list(dict.fromkeys([*copies, *urls]))


def fetch(
    urls: Sequence[str],
    folder: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    max_size: int,
    check: Callable[[Path], None] | None = None,
    progress: bool | None = None,
    limits: Limits | None = None,
) -> Fetched:
    """Downloads the first address that gives the right bytes into a temporary file in `folder`.

    The caller owns the temporary file and moves or deletes it; on any exception it is gone.
    Only https is spoken (http on loopback; file:// is copied), also after redirects, and no
    credentials are ever sent, neither those of an address nor those of a .netrc.

    Args:
        urls: Addresses of the same file. Those of `addresses(urls)` are tried in turn.
        folder: Made if missing; should be on the file system where the file will stay.
        sha256: 64 hex digits; None accepts the bytes that TLS protected, and measures.
        size: Exact number of bytes; None accepts what the server announces.
        max_size: Number of bytes never to exceed.
        check: Called with the complete file; what it raises counts as this address's failure.
        progress: Bar on standard error; None shows it on a terminal and in a notebook.
        limits: Patience; None takes `Limits()`.

    Raises:
        OfflineError: The environment forbids sockets; raised before one is opened.
        NetworkError: The only address could not be reached, broke off, stalled or refused.
        IntegrityError: The only address gave other bytes.
        CheckpointError: What `check` raised about the only address.
        MirrorsExhaustedError: Several addresses failed; each cause is listed.
        CacheError: `folder` cannot be written: no space, no permission.
    """
    from tqdm import tqdm

    tried = addresses(urls)
    if not tried:
        raise DownloadError("there is no address to download from")
    name, stay_offline, limits = _file_name(tried[0]), offline(), limits or Limits()
    deadline = time.monotonic() + limits.deadline
    failures: list[tuple[str, Exception]] = []
    if progress is None:  # a notebook is no terminal, but somebody is looking
        progress = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=not progress, file=sys.stderr) as bar:
        for url in tried:
            local = url.startswith("file:")
            try:
                if stay_offline and not local:
                    raise OfflineError("not tried, because ISANET_OFFLINE or HF_HUB_OFFLINE is set")
                log.info("downloading %s", redacted(url))
                with _temporary_file(folder) as (file, path):
                    part = _Part(file, folder, sha256, size, max_size, limits, deadline, bar)
                    (_from_disk if local else _from_web)(url, part)
                    part.finish()
                    file.close()  # before others open it: Windows is strict
                    if check is not None:
                        check(path)
                return Fetched(path, url if url in urls else redacted(url), part.digest.hexdigest(), part.have)
            except (NetworkError, IntegrityError, OfflineError, CheckpointError) as error:
                if not stay_offline:
                    log.warning("%s: %s", redacted(url), error)
                failures.append((url, error))
    _give_up(failures, name, folder, stay_offline)


def probe(url: str) -> str:
    """Asks one address whether it answers, without downloading; gives what it says, in a few words.

    Raises:
        NetworkError: It cannot be reached within ten seconds, or refuses.
    """
    from urllib.request import url2pathname

    import requests

    if url.startswith("file:"):
        if not Path(url2pathname(urlsplit(url).path)).exists():
            raise NetworkError("is not there")
        return "is there"
    if not _allowed(url, plain=True):
        raise NetworkError("refused: only https is spoken")
    with _session([]) as session:
        try:
            response = session.head(url, allow_redirects=False, timeout=10)
        except (requests.RequestException, OSError) as error:
            raise NetworkError(f"cannot be reached: {type(error).__name__}") from None
        return f"answers {response.status_code} {response.reason or ''}".rstrip()


def _give_up(failures: list[tuple[str, Exception]], name: str, folder: Path, stay_offline: bool) -> NoReturn:
    """Raises the error that stands for all failures, with each address, its cause and the next step."""
    causes = [f"{redacted(url)}: {error}" for url, error in failures]
    listed = "".join(f"\n  {cause}" for cause in causes)
    if stay_offline:
        raise OfflineError(f"{name} is needed; unset the variable, or put the file into {folder} by hand:{listed}")
    advice = f"try again later, set ISANET_MIRROR to a copy's folder, or put {name} into {folder} by hand"
    if len(failures) > 1:
        raise MirrorsExhaustedError(f"no address gave {name}; {advice}:{listed}")
    raise type(failures[0][1])(f"{causes[0]}; {advice}") from failures[0][1]


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[io.FileIO, Path]]:
    """A new file in `folder` that survives only success.

    mkstemp creates exclusively and with a name that nobody can foresee: a planted link is never followed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".isanet-", suffix=".part", dir=folder)
    except OSError as error:
        advice = "set ISANET_HOME to a folder that you may write to"
        raise CacheError(f"cannot write to {folder}: {error.strerror}; {advice}") from error
    try:
        with io.FileIO(descriptor, "wb") as file:  # unbuffered: a full disk shows at the write
            yield file, Path(name)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


@dataclass
class _Part:
    """The file being written and what it must become; `digest` covers exactly the `have` bytes in it."""

    file: io.FileIO
    folder: Path
    sha256: str | None
    size: int | None
    max_size: int
    limits: Limits
    deadline: float  # on the clock of time.monotonic
    bar: Any
    have: int = 0
    best: int = 0  # the most that this address ever gave
    received: int = 0  # bytes from the network, restarts included; the watchdog reads it
    total: int | None = None  # what the object's length is to be, as far as it is known
    validator: str = ""  # of the object that the bytes come from, for If-Range
    head: bytes = b""
    digest: Any = field(default_factory=hashlib.sha256)

    def restart(self) -> None:
        """Forgets all bytes."""
        self.file.seek(0)
        self.file.truncate()
        self.have, self.total, self.validator, self.head, self.digest = 0, None, "", b"", hashlib.sha256()

    def expect(self, total: int | None) -> None:
        """Takes an announced length, or refuses it before a byte of the body is read."""
        if total is not None and self.size not in (None, total):
            raise IntegrityError(f"announces {total} bytes, expected {self.size}")
        if total is not None and total > self.max_size:
            raise IntegrityError(f"announces {total} bytes, more than the {self.max_size} allowed")
        self.total = total
        self.bar.total = needed = total if total is not None else self.size
        if needed is not None and needed - self.have > shutil.disk_usage(self.folder).free:
            raise self.full()

    def write(self, pieces: Iterable[bytes]) -> None:
        """Writes and hashes the pieces."""
        most = next(limit for limit in (self.total, self.size, self.max_size) if limit is not None)
        for piece in pieces:
            self.received += len(piece)
            if self.have + len(piece) > most:
                raise IntegrityError(f"gives more than the {most} bytes expected; stopped")
            if len(self.head) < 512:
                self.head += piece[: 512 - len(self.head)]
                if _HTML.match(self.head):
                    raise IntegrityError(_HTML_CAME)
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self.file.write(rest) :]
            except OSError as error:
                raise self.full(error) from error
            self.digest.update(piece)
            self.have += len(piece)
            self.best = max(self.best, self.have)
            self.bar.update(self.have - self.bar.n)
            self.remaining()

    def finish(self) -> None:
        """Verifies the complete file and brings it to the disk."""
        if not self.have or self.size not in (None, self.have):
            raise IntegrityError(f"gave {self.have} bytes, expected {self.size or 'at least one'}")
        if self.sha256 is not None and self.digest.hexdigest() != self.sha256.lower():
            raise IntegrityError(f"wrong bytes: sha256 {self.digest.hexdigest()}, expected {self.sha256.lower()}")
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self.full(error) from error

    def full(self, error: OSError | None = None) -> CacheError:
        """The error for a file that the disk, a quota or a limit on sizes does not let grow."""
        needed = self.total or self.size or f"up to {self.max_size}"
        free = shutil.disk_usage(self.folder).free + self.have  # as it will be without the partial file
        cause = error.strerror if error else "not enough space"
        return CacheError(
            f"cannot write to {self.folder}: {cause}; {needed} bytes needed, {free} free; nothing was kept; "
            "free some space, or set ISANET_HOME to a folder on another disk"
        )

    def remaining(self) -> float:
        """Seconds until the deadline."""
        if (left := self.deadline - time.monotonic()) <= 0:
            raise NetworkError(f"gave up: the deadline of {self.limits.deadline:g} s for the whole download has passed")
        return left


def _from_disk(url: str, part: _Part) -> None:
    """Copies a file:// address; a link is followed there, because the user chose it."""
    from urllib.request import url2pathname

    parts = _split(url)
    source = Path(url2pathname(parts.path)) if parts and parts.netloc in {"", "localhost"} else None
    try:
        if source is None or not source.is_file():  # a pipe would block for ever
            raise NetworkError("there is no such file")
        with source.open("rb") as stream:
            part.expect(os.fstat(stream.fileno()).st_size)
            part.write(iter(lambda: stream.read(_CHUNK), b""))
    except OSError as error:
        raise NetworkError(f"cannot be read: {error.strerror}") from error


def _from_web(url: str, part: _Part) -> None:
    """Downloads one address, coming back to it with a resume while that has a prospect."""
    import requests
    import urllib3

    if not _allowed(url, plain=True):
        raise NetworkError("refused: only https is spoken")
    limits, fruitless, sockets = part.limits, 0, list[Any]()
    with _session(sockets) as session:
        while True:
            part.remaining()
            mark, wait = part.best, None
            try:
                with _watchdog(part, sockets):
                    return _attempt(session, url, part)
            except _AgainError as again:
                cause, wait = str(again), again.wait
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                cause = _retry_cause(error, part)
            fruitless = 0 if part.best >= mark + limits.window_bytes else fruitless + 1
            if fruitless > limits.retries:
                raise NetworkError(f"{cause}; gave up after {fruitless} attempts")
            if wait is None or not 0 <= wait <= min(_LONGEST_WAIT, part.remaining()):
                wait = min(limits.backoff * 2 ** max(fruitless - 1, 0), _LONGEST_WAIT)
                wait *= 1 + random.random() / 4  # noqa: S311 - jitter, so that many clients do not come back together
            log.warning("%s: %s; trying again in %.1f s with %d bytes at hand", redacted(url), cause, wait, part.have)
            time.sleep(min(wait, part.remaining()))


def _attempt(session: requests.Session, url: str, part: _Part) -> None:
    """One request, resuming where the part file ends if the object can be recognized, and its body."""
    if not part.validator:
        part.restart()
    resumes = part.have > 0
    wanted = {"Range": f"bytes={part.have}-", "If-Range": part.validator} if resumes else {}
    with _get(session, url, wanted, part) as response:
        status, headers = response.status_code, response.headers
        if status in _TRY_LATER:
            raise _AgainError(f"answered {status}", _retry_after(headers.get("Retry-After", "")))
        if status == 416 and resumes:
            part.restart()
            raise _AgainError("answered 416 to a resume, starting again from zero")
        if status != 200 and not (status == 206 and resumes):
            raise NetworkError(f"answered {status}")
        if (coding := headers.get("Content-Encoding", "").strip().lower()) not in {"", "identity"}:
            raise NetworkError(f"refused: sends the content encoding {coding!r}, which was not asked for")
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() in {"text/html", "application/xhtml+xml"}:
            raise IntegrityError(_HTML_CAME)
        if status == 206:
            part.expect(_continued(headers, part))
        else:
            part.restart()
            part.validator = _validator(headers)
            part.expect(_announced(headers, part))
        part.write(iter(lambda: response.raw.read1(_CHUNK, decode_content=False), b""))
    if part.total is not None and part.have < part.total:
        raise _AgainError(f"broke off after {part.have} of {part.total} bytes")


def _announced(headers: Mapping[str, str], part: _Part) -> int | None:
    """The length of a whole body; None where its chunks tell the end."""
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    if re.fullmatch("[0-9]{1,18}", length := headers.get("Content-Length", "")):
        return int(length)
    if part.size is None:
        raise NetworkError("refused: does not say how long the file is")
    return part.size


def _continued(headers: Mapping[str, str], part: _Part) -> int:
    """The whole length that a 206 names, if it goes on with the same object exactly where `part` ends."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", headers.get("Content-Range", "").strip())
    first, total = (int(found[1]), int(found[2])) if found else (-1, -1)
    if first == part.have and part.total in (None, total) and _validator(headers) in {"", part.validator}:
        return total
    part.restart()
    raise _AgainError("answered a resume with another range or object, starting again from zero")


def _validator(headers: Mapping[str, str]) -> str:
    """What recognizes the object in If-Range: a strong ETag, else the time of its last change, else nothing."""
    tag = headers.get("ETag", "").strip()
    return tag if tag.startswith('"') else headers.get("Last-Modified", "").strip()


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After asks for, given as seconds or as a date; None for garbage."""
    from email.utils import parsedate_to_datetime

    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _get(session: requests.Session, url: str, wanted: dict[str, str], part: _Part) -> requests.Response:
    """The response at the end of the redirects; plain http is followed only from loopback to loopback."""
    plain, target = not _allowed(url, plain=False), url
    for _ in range(_REDIRECTS + 1):
        left = part.remaining()
        patience = (min(part.limits.connect, left), min(part.limits.read, left))
        response = session.get(target, headers=wanted, stream=True, allow_redirects=False, timeout=patience)
        location = response.headers.get("Location")
        if location is None or response.status_code not in {301, 302, 303, 307, 308}:
            return response
        response.close()
        with suppress(ValueError):
            location = urljoin(target, location)
        if not _allowed(target := location, plain=plain):
            raise NetworkError(f"refused: redirects to {redacted(target)!r}, and only https is followed")
    raise NetworkError(f"redirects more than {_REDIRECTS} times")


def _session(sockets: list[Any]) -> requests.Session:
    """A session with the user's proxies and certificates, but no credentials and no redirects of its own.

    It notes its sockets in `sockets` for the watchdog: nothing public leads from a response to its socket.
    """
    import requests
    import requests.adapters

    import isanet

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)

            class Connection(type(pool).ConnectionCls):  # type: ignore[misc]
                def connect(self) -> None:
                    super().connect()
                    sockets.append(self.sock)

            pool.ConnectionCls = Connection
            return pool

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """None: requests would read the whole body of a redirect, however long."""

    session = Session()
    session.mount("https://", Adapter())
    session.mount("http://", Adapter())
    session.auth = lambda request: request  # else requests takes credentials from the address or .netrc
    version = getattr(isanet, "__version__", "0")
    session.headers.update({"User-Agent": f"isanet/{version}", "Accept-Encoding": "identity"})
    return session


@contextmanager
def _watchdog(part: _Part, sockets: list[Any]) -> Iterator[None]:
    """Shuts the sockets down unless every window brings its bytes.

    A timeout of the socket restarts with each byte, so headers and chunk sizes could trickle for years.
    """
    limits, done, late = part.limits, threading.Event(), threading.Event()

    def watch() -> None:
        seen = part.received
        while not done.wait(limits.window):
            if part.received - seen < limits.window_bytes:
                late.set()
                for each in sockets:
                    with suppress(OSError, TypeError):  # no longer connected; TLS inside TLS is no socket
                        socket.socket.shutdown(each, socket.SHUT_RDWR)
            seen = part.received

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except CacheError:
        raise
    except Exception:
        if not late.is_set():
            raise
    finally:
        done.set()
        thread.join()
    if late.is_set():  # also after an apparent success: a broken chunk size can look like the end
        raise _AgainError(f"slower than {limits.window_bytes} bytes in {limits.window:g} s")


def _retry_cause(error: Exception, part: _Part) -> str:
    """The cause of a failed request in words, if another try has a prospect; else raises it as NetworkError."""
    import ssl

    import requests.exceptions as of_requests
    import urllib3.exceptions as of_urllib3

    root: BaseException = error
    while inner := [e for e in (getattr(root, "reason", None), *root.args) if isinstance(e, BaseException)]:
        root = inner[0]
    if isinstance(root, ssl.SSLCertVerificationError):
        advice = "if your own network presents it, name its CA bundle in REQUESTS_CA_BUNDLE"
        raise NetworkError(f"refused: its certificate is not valid ({root.verify_message}); {advice}") from None
    quotes_address = isinstance(root, of_requests.RequestException | of_urllib3.LocationValueError)
    cause = type(root).__name__ if quotes_address else str(root) or type(root).__name__
    passing = (of_requests.ConnectionError, of_requests.Timeout, of_urllib3.HTTPError)
    handshake = (of_requests.ProxyError, of_requests.ConnectTimeout, of_requests.SSLError)
    unreached = isinstance(error, handshake) or isinstance(root, of_urllib3.NewConnectionError)
    if not isinstance(error, passing) or (unreached and not part.best):  # a lost network may come back
        raise NetworkError(f"cannot be reached: {cause}") from None
    return cause


def _split(url: str) -> SplitResult | None:
    """The parts of an address; None for one that libraries may read in different ways."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if not re.search(r"[\\\x00-\x1f\x7f]", url) and parts.port != 0:
            return parts
    return None


def _allowed(url: str, *, plain: bool) -> bool:
    """Whether the address is https, or, with `plain`, http on loopback."""
    parts = _split(url)
    if parts is None or not parts.hostname:
        return False
    loopback = parts.hostname == "localhost"
    with suppress(ValueError):
        loopback = loopback or ip_address(parts.hostname).is_loopback
    return parts.scheme == "https" or (plain and parts.scheme == "http" and loopback)


def redacted(url: str) -> str:
    """The address without user name, password and query."""
    parts = _split(url)
    if parts is None:
        return "an unreadable address"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _file_name(url: str) -> str:
    """The last part of an address's path."""
    parts = _split(url)
    return "" if parts is None else parts.path.rpartition("/")[2]
