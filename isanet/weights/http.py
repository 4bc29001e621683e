"""One file over https: resumed against the same object only, every wait bounded.

A server that trickles must end in a bounded error, but a socket's timeout starts again with each byte. So each read
from the socket, of headers, chunk sizes and body alike, is preceded by a check of the clock (`_session`). For the TLS
handshake and for each TLS record the timeout holds as a whole.

Network errors are raised `from None`: the exceptions of requests quote whole addresses, which may hold secrets.
"""

from __future__ import annotations

import http.client
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from isanet._text import shortened
from isanet._version import __version__
from isanet.errors import IntegrityError, IsanetError, NetworkError
from isanet.weights.partfile import WEB_PAGE, PartFile, RetryError
from isanet.weights.url import is_allowed, is_loopback, local_path, redacted

if TYPE_CHECKING:
    import requests

log = logging.getLogger("isanet")

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 10
MAX_WAIT = 120.0
"""Most seconds between two tries; if a server asks for more by Retry-After, our own backoff is kinder."""

PROBE_SECONDS = 10.0

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})


def probe(url: str) -> str:
    """Ask one address whether it answers, without downloading; returns its answer in a few words.

    Raises:
        NetworkError: It cannot be reached within ten seconds, or refuses.
    """
    if url.startswith("file:"):
        if (path := local_path(url)) is None or not path.exists():
            raise NetworkError("is not there")
        return "is there"
    if not is_allowed(url, plain=True):
        raise NetworkError("refused: only https is supported")
    end = time.monotonic() + PROBE_SECONDS

    def check_time() -> None:
        if time.monotonic() > end:
            raise NetworkError(f"did not answer within {PROBE_SECONDS:g} s")

    with _session(check_time) as session:
        try:
            response = session.head(url, allow_redirects=False, timeout=PROBE_SECONDS)
        except IsanetError:
            raise
        except Exception as error:  # as in `download`
            raise NetworkError(f"cannot be reached: {type(error).__name__}") from None
        return shortened(f"answers {response.status_code} {response.reason or ''}".rstrip(), 100)


def download(url: str, part: PartFile) -> None:
    """Download an address into a part file, with retries and resumes as long as they may help.

    Raises:
        NetworkError: It is not https (http on loopback), cannot be reached, breaks off, stalls or refuses.
        IntegrityError: It sends other bytes.
        CacheError: The file cannot be written.
    """
    if not is_allowed(url, plain=True):
        raise NetworkError("refused: only https is supported")
    limits, fruitless = part.limits, 0
    with _session(part.check_pace) as session:
        while True:
            part.seconds_left()
            reached, wait = part.max_reached, None
            try:
                part.start_window()
                return _attempt(session, url, part)
            except RetryError as retry:
                cause, wait = str(retry), retry.wait
            except IsanetError:
                raise
            except Exception as error:  # whatever requests and those below it raise: TypeError for a proxy without host
                cause = _retry_cause(error, url, part)
            fruitless = 0 if part.max_reached >= reached + limits.window_bytes else fruitless + 1
            if fruitless > limits.retries:
                raise NetworkError(f"{cause}; gave up after {fruitless} attempts")
            if wait is None or not 0 <= wait <= min(MAX_WAIT, part.seconds_left()):
                wait = min(limits.backoff * 2 ** max(fruitless - 1, 0), MAX_WAIT)
                wait *= 1 + random.random() / 4  # noqa: S311 - jitter, so that many clients do not come back together
            log.warning("%s: %s; trying again in %.1f s, %d bytes so far", redacted(url), cause, wait, part.size)
            time.sleep(min(wait, part.seconds_left()))


def _attempt(session: requests.Session, url: str, part: PartFile) -> None:
    """One request and its body; it resumes where the part file ends if the object can be recognized."""
    if not part.validator:
        part.restart()
    resumes = part.size > 0
    wanted = {"Range": f"bytes={part.size}-", "If-Range": part.validator} if resumes else {}
    with _get(session, url, wanted, part) as response:
        status, headers = response.status_code, response.headers
        if status in RETRIED_STATUSES:
            raise RetryError(f"answered {status}", _retry_after(headers.get("Retry-After", "")))
        if status == 416 and resumes:
            part.restart()
            raise RetryError("answered 416 to a resume, starting again from zero")
        if status != 200 and not (status == 206 and resumes):
            raise NetworkError(f"answered {status}")
        if (coding := headers.get("Content-Encoding", "").strip().lower()) not in {"", "identity"}:
            raise NetworkError(f"refused: sends the content encoding {shortened(coding)!r}, which was not asked for")
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() in {"text/html", "application/xhtml+xml"}:
            raise IntegrityError(WEB_PAGE)
        total = _announced_total(headers, part)
        if status == 206:
            total = _resumed_total(headers, part)
        else:
            part.restart()
            part.validator = _validator(headers, part)
        part.expect(total)
        part.write(iter(lambda: response.raw.read1(CHUNK_BYTES, decode_content=False), b""))
    if part.total is not None and part.size < part.total:
        raise RetryError(f"broke off after {part.size} of {part.total} bytes")


def _get(session: requests.Session, url: str, headers: dict[str, str], part: PartFile) -> requests.Response:
    """The response at the end of the redirects; plain http is followed only from loopback to loopback."""
    plain, target = not is_allowed(url, plain=False), url
    for _ in range(MAX_REDIRECTS + 1):
        left = part.seconds_left()
        timeout = (min(part.limits.connect, left), min(part.limits.read, left))
        response = session.get(target, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
        location = response.headers.get("Location")
        if location is None or response.status_code not in {301, 302, 303, 307, 308}:
            return response
        response.close()
        with suppress(ValueError):
            location = urljoin(target, location)
        if not is_allowed(target := location, plain=plain):
            raise NetworkError(f"refused: redirects to {redacted(target)!r}, and only https is followed")
    raise NetworkError(f"redirects more than {MAX_REDIRECTS} times")


# --- headers


def _announced_total(headers: Mapping[str, str], part: PartFile) -> int | None:
    """The length of a whole body; None where its chunks tell the end."""
    coding, length = (headers.get(name, "").strip() for name in ("Transfer-Encoding", "Content-Length"))
    if (coding and length) or coding.lower() not in {"", "chunked"} or not re.fullmatch("[0-9]{0,18}", length):
        given = f"Content-Length {shortened(length)!r}, Transfer-Encoding {shortened(coding)!r}"
        raise NetworkError(f"refused: its headers do not tell where the body ends ({given})")
    if length:
        return int(length)
    if not coding and part.expected_size is None:
        raise NetworkError("refused: does not say how long the file is")
    return None if coding else part.expected_size


def _resumed_total(headers: Mapping[str, str], part: PartFile) -> int:
    """The whole length that a 206 names, if it resumes the same object exactly where `part` ends."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", headers.get("Content-Range", "").strip())
    first, total = (int(found[1]), int(found[2])) if found else (-1, -1)
    accepted = {part.validator} if part.expected_sha256 is None else {part.validator, ""}
    if first == part.size and part.total in (None, total) and _validator(headers, part) in accepted:
        return total
    part.restart()
    raise RetryError("answered a resume with another range or object, starting again from zero")


def _validator(headers: Mapping[str, str], part: PartFile) -> str:
    """What recognizes the object in If-Range: a strong ETag, else, if its hash is known, the time of its last change.

    Within one second an object may change and keep its time: only a hash shows that two of them were stitched.
    """
    tag = headers.get("ETag", "").strip()
    if tag.startswith('"'):
        return tag
    return "" if part.expected_sha256 is None else headers.get("Last-Modified", "").strip()


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After asks for, given as seconds or as a date; None for garbage."""
    from email.utils import parsedate_to_datetime

    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# --- the connection


def _session(check: Callable[[], None]) -> requests.Session:
    """A session with the user's proxies and certificates, but no credentials and no redirects of its own.

    `check` is called before each read from a socket; what it raises ends the request.
    """
    import requests
    import requests.adapters

    class Response(http.client.HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            raw: Any = self.fp.raw
            receive: Callable[[Any], int | None] = raw.readinto

            def checked_receive(buffer: Any) -> int | None:
                check()
                return receive(buffer)

            raw.readinto = checked_receive

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
            if is_loopback(urlsplit(request.url or "").hostname or ""):
                kwargs["proxies"] = {}
            return super().send(request, *args, **kwargs)

        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            pool.ConnectionCls = type("Connection", (type(pool).ConnectionCls,), {"response_class": Response})
            return pool

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """None: requests would read the whole body of a redirect, however long."""

    session = Session()
    session.mount("https://", Adapter())
    session.mount("http://", Adapter())
    session.auth = lambda request: request  # else requests takes credentials from the address or .netrc
    session.headers.update({"User-Agent": f"isanet/{__version__}", "Accept-Encoding": "identity"})
    return session


def _retry_cause(error: Exception, url: str, part: PartFile) -> str:
    """The cause of a failed request in words, if another try may help; else raises it as NetworkError."""
    import ssl
    from urllib.request import getproxies_environment

    import requests.exceptions as of_requests
    import urllib3.exceptions as of_urllib3

    root: BaseException = error
    while inner := [e for e in (getattr(root, "reason", None), *root.args) if isinstance(e, BaseException)]:
        root = inner[0]
    if isinstance(root, ssl.SSLCertVerificationError):
        advice = "if your own network presents it, name its CA bundle in REQUESTS_CA_BUNDLE"
        raise NetworkError(f"refused: its certificate is not valid ({root.verify_message}); {advice}") from None
    quotes_address = isinstance(root, of_requests.RequestException | ValueError | TypeError)
    cause = type(root).__name__ if quotes_address else shortened(str(root), 200) or type(root).__name__
    temporary = (of_requests.ConnectionError, of_requests.Timeout, of_urllib3.HTTPError)
    handshake = (of_requests.ProxyError, of_requests.ConnectTimeout, of_requests.SSLError)
    never_there = of_urllib3.NewConnectionError | of_urllib3.LocationValueError
    unreached = isinstance(error, handshake) or isinstance(root, never_there)
    # After progress, a lost network may return
    if isinstance(error, temporary) and (part.max_reached or not unreached):
        return cause
    proxied = getproxies_environment().keys() - {"no"} and not is_loopback(urlsplit(url).hostname or "")
    raise NetworkError(f"cannot be reached: {cause}{'; a proxy is set: check HTTPS_PROXY' * bool(proxied)}") from None
