"""A server on loopback that fails on demand, for the tests of everything that downloads.

    with FileServer() as server:
        server.files["/name.pth"] = b"..."               # or a Path, which is served by chunks
        server.plan["/name.pth"] = [cut(1000), "silent"]  # one fault per request, then normal service
        fetch([server.url + "/name.pth"], ...)
        server.requests                                   # [("GET", "/name.pth", {"Range": ...}), ...]
        server.sent["/name.pth"]                          # bytes of bodies handed to the network

Ranges, If-Range, ETag and Last-Modified work as RFC 9110 says. Standard library only.
"""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import io
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

CHANGED = email.utils.formatdate(1_600_000_000, usegmt=True)


class Handler(BaseHTTPRequestHandler):
    """One request: `serve` is normal service; its keywords are faults."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    owner: FileServer  # set on a subclass per server

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        with self.owner.lock:
            self.owner.requests.append((self.command, self.path, dict(self.headers.items())))
            plan = self.owner.plan.get(path, [])
            fault = plan.pop(0) if plan else Handler.serve
        if isinstance(fault, str):
            fault = NAMED[fault]
        with suppress(OSError):  # the client has disconnected, as most tests want
            fault(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def open(self) -> tuple[BinaryIO, int, str] | None:
        """The stream, size and ETag of the requested file."""
        content = self.owner.files.get(self.path.partition("?")[0])
        if content is None:
            return None
        if isinstance(content, Path):
            info = content.stat()
            return content.open("rb"), info.st_size, f'"{info.st_mtime_ns:x}-{info.st_size:x}"'
        return io.BytesIO(content), len(content), f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def serve(
        self,
        *,
        limit: int | None = None,  # send only so many bytes of the body
        shift: int = 0,  # added to the start in Content-Range
        grow: int = 0,  # added to the total in Content-Range
        ranges: bool = True,
        validators: bool = True,
        framing: str = "length",  # or "chunked", or "close"
        extra: bytes = b"",  # after the body, inside its chunks or before the close
        announce: int = 0,  # added to Content-Length
        pace: tuple[int, float] | None = None,  # so many bytes every so many seconds
        ignore_if_range: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        found = self.open()
        if found is None:
            return self.reply(404)
        stream, size, tag = found
        with stream:
            start = self.range_start(size, tag, ignore_if_range) if ranges else 0
            if start >= size and start:
                return self.reply(416, {"Content-Range": f"bytes */{size}"})
            self.send_response(206 if start else 200)
            if validators:
                self.send_header("ETag", tag)
                self.send_header("Last-Modified", CHANGED)
            if start:
                self.send_header("Content-Range", f"bytes {start + shift}-{size - 1}/{size + grow}")
            if framing == "length":
                self.send_header("Content-Length", str(size - start + announce))
            elif framing == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
            for name, value in (headers or {"Content-Type": "application/octet-stream"}).items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return None
            stream.seek(start)
            left = size - start if limit is None else min(limit, size - start)
            while left and (piece := stream.read(min(left, pace[0] if pace else 1 << 18))):
                left -= len(piece)
                self.send_piece(piece, framing)
                if pace and self.owner.closing.wait(pace[1]):
                    return None
            if limit is None:
                self.send_piece(extra, framing)
                if framing == "chunked":
                    self.wfile.write(b"0\r\n\r\n")
        return None

    def range_start(self, size: int, tag: str, ignore_if_range: bool) -> int:
        wanted = self.headers.get("Range", "")
        same = ignore_if_range or self.headers.get("If-Range", tag) in {tag, CHANGED}
        return int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and same else 0

    def send_piece(self, piece: bytes, framing: str) -> None:
        if piece:
            with self.owner.lock:  # counted first: the client may be done before this thread goes on
                self.owner.sent[self.path.partition("?")[0]] += len(piece)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if framing == "chunked" else piece)

    def reply(self, code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are in `FileServer.requests`."""


Fault = Callable[[Handler], None]


def serving(**how: Any) -> Fault:
    """Service with keywords of `Handler.serve`."""
    return lambda handler: handler.serve(**how)


def cut(n: int, **how: Any) -> Fault:
    """All headers, then only `n` bytes of the body."""
    return serving(limit=n, **how)


def reset(n: int = 0) -> Fault:
    """The connection is reset after `n` bytes of the body."""

    def act(handler: Handler) -> None:
        handler.serve(limit=n)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return act


def stall(n: int) -> Fault:
    """`n` bytes of the body, then silence until the server closes."""

    def act(handler: Handler) -> None:
        handler.serve(limit=n)
        handler.owner.closing.wait()

    return act


def trickle(n: int = 1, seconds: float = 0.02, **how: Any) -> Fault:
    """`n` bytes every `seconds`."""
    return serving(pace=(n, seconds), **how)


def _drip(start: bytes, drop: bytes) -> Fault:
    def act(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.owner.closing.wait(0.02):
            handler.wfile.write(drop)

    return act


def endless(handler: Handler) -> None:
    """A body without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not handler.owner.closing.is_set():
        handler.send_piece(b"x" * 65536, "chunked")


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """An answer with this code; `Retry_After="1"` is the header Retry-After."""
    return lambda handler: handler.reply(code, {k.replace("_", "-"): v for k, v in headers.items()}, body)


def raw(answer: bytes) -> Fault:
    """An answer of these bytes, status line and headers included."""
    return lambda handler: void(handler.wfile.write(answer))


def redirect(to: str, code: int = 302) -> Fault:
    return status(code, Location=to)


def html(content_type: str = "text/html; charset=utf-8") -> Fault:
    page = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
    return status(200, page, Content_Type=content_type)


def changed(content: bytes) -> Fault:
    """From now on another object is at this path."""

    def act(handler: Handler) -> None:
        handler.owner.files[handler.path] = content
        handler.serve()

    return act


def zipped(handler: Handler) -> None:
    """A content encoding that was not asked for."""
    content = handler.owner.files[handler.path]
    assert isinstance(content, bytes)
    handler.reply(200, {"Content-Encoding": "gzip"}, gzip.compress(content))


NAMED: dict[str, Fault] = {
    "silent": lambda handler: void(handler.owner.closing.wait()),
    "trickle": trickle(),
    "trickling headers": _drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "trickling chunk size": _drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "endless": endless,
    "reset": reset(),
    "html": html(),
    "gzip": zipped,
}


def void(_: object) -> None:
    """Turns an expression into a fault."""


class FileServer:
    """A server on 127.0.0.1, as a context manager; `tls` is a (certificate, key) pair of PEM files."""

    def __init__(self, tls: tuple[Path, Path] | None = None, host: str = "127.0.0.1") -> None:
        self.files: dict[str, bytes | Path] = {}
        self.plan: dict[str, list[Fault | str]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent: defaultdict[str, int] = defaultdict(int)
        self.lock = threading.Lock()
        self.closing: threading.Event = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = type("Server", (ThreadingHTTPServer,), {"address_family": family})
        self._server = kind((host, 0), type("Bound", (Handler,), {"owner": self}))
        self._server.daemon_threads = False  # so that closing waits for them
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
