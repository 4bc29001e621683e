"""A small Hugging Face Hub on the loopback interface, for tests with the real `huggingface_hub` client.

It imitates, in memory and for model repositories named `owner/name`, what the client asks of https://huggingface.co:
creating a repository, uploading (small files inside the commit, large ones by Git LFS), tagging, listing, and
downloading with `ETag`, `X-Repo-Commit`, `HEAD` and `Range`. Refusals carry the `X-Error-Code` that the client turns
into its exceptions. One token may write and sees private repositories; to anyone else those do not exist. Not imitated:
Xet, pull requests, datasets, spaces, and the redirect of large files to another host.

    with HubServer() as hub:
        hub.add_repo("org/model", {"config.json": b"{}"}, private=True)
        hf_hub_download("org/model", "config.json", endpoint=hub.url, token=hub.token)

The client reads `HF_ENDPOINT` once, when it is imported. Recent versions upload large files by Xet without asking
whether the server has it, so a process that uploads needs `HF_HUB_DISABLE_XET=1`, again before the import.
"""

import base64
import hashlib
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npz", ".zip")
LFS_SIZE = 10_000_000  # larger files are stored by Git LFS whatever they are called
USER = "tester"  # who the token belongs to


def uses_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


class Reply(NamedTuple):
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reply = _json({"error": message}, status, headers)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class Blob:
    """A file's content, with its hashes in Git and Git LFS."""

    def __init__(self, path: str, data: bytes) -> None:
        self.data, self.lfs, stored = data, uses_lfs(path, len(data)), data
        self.sha256 = hashlib.sha256(data).hexdigest()
        if self.lfs:
            stored = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
            )
        self.oid, self.stored_size = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest(), len(stored)
        self.etag = self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict[str, object]:
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.data)}
        lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": self.stored_size}
        return {**entry, "lfs": lfs} if self.lfs else entry


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", {"X-Error-Code": "RevisionNotFound"})
        return sha

    def commit(self, branch: str, tree: dict[str, Blob], message: str) -> str:
        content = [self.branches.get(branch), message, sorted((path, blob.oid) for path, blob in tree.items())]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = tree, sha
        return sha


class HubServer:
    """The server and its repositories: a context manager, or `start()` and `close()`.

    Attributes:
        token: The one token that may write and that sees private repositories.
        url: Where the server listens, known once it has started.
        requests: The requests so far, as "METHOD /path", quoted as sent, without the query.
        faults: What answers instead, by method and file name; it gets the handler, whose connection is closed then; the
            client, if it goes on, has to be told so by `Connection: close`.
    """

    def __init__(self, token: str = "hf_loopback") -> None:
        self.token, self.url = token, ""
        self.requests: list[str] = []
        self.faults: dict[tuple[str, str], Callable[[Any], object]] = {}
        self._lock = threading.Lock()  # held while a reply is made, not while its bytes travel
        self._repos: dict[str, Repo] = {}
        self._objects: dict[str, bytes | None] = {}  # Git LFS objects by sha256; None: announced, not yet uploaded
        self._server: _Server | None = None

    def start(self) -> Self:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_repo(self, repo_id: str, files: dict[str, bytes], private: bool = False, revision: str = "main") -> str:
        """Commit `files` as the whole content of a branch, creating the repository if need be; returns the commit."""
        with self._lock:
            repo = self._repos.setdefault(repo_id, Repo(private))
            repo.private = private
            sha = repo.commit(revision, {path: Blob(path, data) for path, data in files.items()}, "add_repo")
            repo.branches.setdefault("main", sha)
            return sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return every file of a branch, tag or commit. A repository that a client created has `.gitattributes`."""
        with self._lock:
            repo = self._repos[repo_id]
            return {path: blob.data for path, blob in repo.commits[repo.resolve(revision)].items()}

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        path, _, query = target.partition("?")
        with self._lock:
            self.requests.append(f"{method} {path}")
            try:
                return self._route(method.replace("HEAD", "GET"), path, parse_qs(query), headers, body)
            except Refusal as refusal:
                return refusal.reply
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                return Refusal(400, f"Malformed request: {error!r}").reply

    def _route(
        self, method: str, path: str, query: dict[str, list[str]], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        authorized = headers.get("Authorization") == f"Bearer {self.token}"
        recursive = query.get("recursive", [""])[0].lower() == "true"

        def find(owner: str, name: str, write: bool = False) -> Repo:
            repo = self._repos.get(f"{owner}/{name}")
            if repo is None or (repo.private and not authorized):
                raise Refusal(404 if authorized else 401, "Repository not found", {"X-Error-Code": "RepoNotFound"})
            if write and not authorized:
                raise Refusal(401, "Invalid username or password.")
            return repo

        match method, *map(unquote, path.removeprefix("/").split("/")):
            case ("GET", "api", "whoami-v2") | ("POST", "api", "repos", "create") if not authorized:
                raise Refusal(401, "Invalid username or password.")
            case "GET", "api", "whoami-v2":
                return _json({"type": "user", "name": USER, "fullname": USER, "orgs": []})
            case "POST", "api", "repos", "create":
                return self._create(json.loads(body))
            case "POST", "api", "validate-yaml":  # asked before a README.md is uploaded
                return _json({"errors": [], "warnings": []})
            case "GET", "api", "models", owner, name:
                return self._info(f"{owner}/{name}", find(owner, name), "main")
            case "GET", "api", "models", owner, name, "revision", revision:
                return self._info(f"{owner}/{name}", find(owner, name), revision)
            case "GET", "api", "models", owner, name, "tree", revision if recursive:
                repo = find(owner, name)
                return _json([blob.entry(file) for file, blob in sorted(repo.commits[repo.resolve(revision)].items())])
            case "POST", "api", "models", owner, name, "tag", revision:
                repo, tag = find(owner, name, write=True), json.loads(body)["tag"]
                if tag in repo.tags:
                    raise Refusal(409, f"Tag {tag} exists already")
                repo.tags[tag] = repo.resolve(revision)
                return _json({})
            case "POST", "api", "models", owner, name, "preupload", revision:
                repo = find(owner, name, write=True)
                return self._preupload(repo.commits[repo.resolve(revision)], json.loads(body)["files"])
            case "POST", "api", "models", owner, name, "commit", branch if "create_pr" not in query:
                sha = self._commit(find(owner, name, write=True), branch, body)
                return _json(
                    {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{owner}/{name}/commit/{sha}"}
                )
            case "POST", owner, git, "info", "lfs", "objects", "batch":
                find(owner, git.removesuffix(".git"), write=True)
                return self._lfs_batch(json.loads(body)["objects"])
            case "PUT", "lfs", oid:  # without a token, like the signed addresses that the Hub gives out
                if oid not in self._objects or hashlib.sha256(body).hexdigest() != oid:
                    raise Refusal(403, "the object was not announced, or its content does not have this sha256")
                self._objects[oid] = body
                return _json({})
            case "GET", owner, name, "resolve", revision, *parts:
                repo = find(owner, name)
                return self._download(repo, repo.resolve(revision), "/".join(parts), headers.get("Range", ""))
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _create(self, request: dict[str, Any]) -> Reply:
        name = f"{request.get('organization') or USER}/{request['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if request.get("type", "model") != "model":
            raise Refusal(400, "only model repositories are imitated")
        if name in self._repos:
            return _json({**answer, "error": "You already created this model repo"}, 409)
        repo = self._repos[name] = Repo(request.get("visibility") == "private" or bool(request.get("private")))
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.commit("main", {".gitattributes": Blob(".gitattributes", attributes.encode())}, "initial commit")
        return _json(answer)

    def _info(self, repo_id: str, repo: Repo, revision: str) -> Reply:
        sha = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        return _json({"id": repo_id, "sha": sha, "private": repo.private, "siblings": siblings})

    def _preupload(self, tree: dict[str, Blob], files: list[dict[str, Any]]) -> Reply:
        def plan(path: str, size: int) -> dict[str, object]:
            mode = "lfs" if uses_lfs(path, size) else "regular"
            oid = tree[path].etag if path in tree else None  # lets the client leave out what has not changed
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return _json({"files": [plan(file["path"], file["size"]) for file in files]})

    def _lfs_batch(self, objects: list[dict[str, Any]]) -> Reply:
        def plan(oid: str, size: int) -> dict[str, object]:
            upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{oid}"}}}
            missing = self._objects.setdefault(oid, None) is None
            return {"oid": oid, "size": size, **(upload if missing else {})}

        return _json({"transfer": "basic", "objects": [plan(each["oid"], each["size"]) for each in objects]})

    def _commit(self, repo: Repo, branch: str, body: bytes) -> str:
        head, summary = repo.resolve(branch), ""
        tree = dict(repo.commits[head])
        for step in map(json.loads, body.splitlines()):
            value: dict[str, str] = step["value"]
            match step["key"]:
                case "header" if branch in repo.branches and head.startswith(value.get("parentCommit", "")):
                    summary = value["summary"]
                case "header":
                    raise Refusal(412, "not a branch, or a commit has happened since")
                case "file":
                    tree[value["path"]] = Blob(value["path"], base64.b64decode(value["content"]))
                case "lfsFile" if (data := self._objects.get(value["oid"])) is not None:
                    tree[value["path"]] = Blob(value["path"], data)
                case "deletedFile" if value["path"] in tree:
                    del tree[value["path"]]
                case key:
                    raise Refusal(400, f"cannot commit {key} {value}")
        return repo.commit(branch, tree, summary)

    def _download(self, repo: Repo, sha: str, path: str, range_header: str) -> Reply:
        if (blob := repo.commits[sha].get(path)) is None:
            raise Refusal(404, "Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        size = len(blob.data)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "X-Repo-Commit": sha}
        headers["ETag"] = f'"{blob.etag}"'
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(size)}
        bounds = re.fullmatch(r"bytes=(\d*)-(\d*)", range_header)
        if bounds is None or not any(bounds.groups()):
            return Reply(blob.data, 200, headers)
        first, last = bounds.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= stop:
            raise Refusal(416, "Range not satisfiable", {"Content-Range": f"bytes */{size}"})
        return Reply(blob.data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def _serve(self) -> None:
        headers = {name.title(): value for name, value in self.headers.items()}
        if fault := self.server.hub.faults.get((self.command, self.path.rpartition("/")[2])):
            self.close_connection = True
            self._body()  # a connection closed with bytes unread may lose the answer
            with suppress(OSError):  # the client has disconnected, as most tests want
                fault(self)
            return
        reply = self.server.hub.answer(self.command, self.path, headers, self._body())
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that the base class looks up

    def _body(self) -> bytes:
        """Read all of the body, whatever the answer will be: the connection is reused."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = [b""]
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self.connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would also look up its own name

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.connections[thread] = request
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Stop listening, and end the connections that clients keep open, so that no socket is left behind."""
        self.shutdown()
        self.server_close()
        for thread, connection in self.connections.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
