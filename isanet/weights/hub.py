"""Model folders, and the Hugging Face Hub that they are pushed to and fetched from.

A model folder is `config.json`, `model.safetensors` and a model card (`README.md`). What is written here comes as a
state dict, the arguments of `isanet.ISANet` and facts about where the weights came from; no network is needed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import torch
from torch import Tensor

from isanet._files import atomic_write_all, given_path
from isanet._progress import bar_class, shows_bars
from isanet._text import clean, shortened
from isanet.config import config_json
from isanet.errors import (
    CacheError,
    CheckpointError,
    CheckpointFormatError,
    IntegrityError,
    IsanetError,
    NetworkError,
    OfflineError,
    OutputError,
)
from isanet.weights import cache, checkpoint, download
from isanet.weights.card import model_card
from isanet.weights.manifest import load_manifest, packaged_path
from isanet.weights.partfile import Limits
from isanet.weights.url import is_loopback, redacted

CACHE_IS_UNWRITABLE = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}
"""What the operating system says when huggingface_hub's cache cannot be written, permissions aside."""

MAX_ANSWER = 1 << 20
"""Most bytes, unpacked, that the Hub may answer where it does not send a file."""

_THREAD = threading.local()
"""Its `calls` is whether this thread calls huggingface_hub from here."""


class Pushed(NamedTuple):
    """A repository's address, and the commit that has what was pushed."""

    address: str
    revision: str


class RemoteFile(NamedTuple):
    """A large file on the Hub: the commit that it was found in, its sha256 and its size."""

    revision: str
    sha256: str
    size: int


def fetch(
    repo_id: str,
    name: str,
    *,
    revision: str | None,
    token: str | bool | None,
    max_size: int,
    limits: Limits | None = None,
) -> Path:
    """The path of a repository's file in huggingface_hub's cache, fetched if necessary; its folder is its commit.

    Args:
        repo_id: `org/name`.
        name: Of the file.
        revision: Branch, tag or commit; None takes the main branch.
        token: For a private repository; None takes what huggingface_hub finds.
        max_size: A larger file is refused before any of it is asked for.
        limits: None takes `Limits()`.

    Raises:
        ValueError: `repo_id` is not a name that the Hub allows.
        DownloadError: There is no such repository or revision, or the Hub cannot be reached; the message says which.
        IntegrityError: The file is too large, or more comes than was announced.
        CacheError: huggingface_hub's cache cannot be written.
        CheckpointFormatError: The repository has no such file.
    """
    limits, local = limits or Limits(), bool(download.offline())
    with _our_errors(f"{repo_id} at revision {revision or 'main'}"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import tqdm

        _prepare_client()
        where: Any = {"revision": revision, "token": token, "local_files_only": local}
        with _time_limit(limits.window):
            size = hf_hub_download(repo_id, name, dry_run=True, **where).file_size
        if size is None or size < 0:
            raise NetworkError(f"the Hub does not say how long {name} is")
        if size > max_size:
            raise IntegrityError(f"{name} has {size} bytes, more than the {max_size} allowed")
        limit = 2 * size  # twice, because after a broken connection it may start again

        class Bar(tqdm):
            """Counts what comes: the client compares sizes only at the end."""

            received = 0.0

            def __init__(self, *arguments: Any, disable: bool | None = None, **options: Any) -> None:
                super().__init__(*arguments, disable=not shows_bars() if disable is None else disable, **options)  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> bool | None:
                self.received += n or 0
                if self.received > limit:
                    raise IntegrityError(f"sends more than the {size} bytes that were announced for {name}; stopped")
                return super().update(n)

        with _time_limit(min(limits.deadline, limits.window * (1 + size / limits.window_bytes))):
            path = hf_hub_download(repo_id, name, tqdm_class=Bar, **where)
    return Path(path)


def _prepare_client() -> None:
    """Have huggingface_hub's answers looked at, its log cleaned, and loopback addresses kept from proxies."""
    from huggingface_hub import close_session, constants, set_client_factory
    from huggingface_hub.utils import _http  # nothing public tells which factory is set

    factory: Any = _http._GLOBAL_CLIENT_FACTORY
    if not isinstance(factory, partial) or factory.func is not _guarded_client:
        set_client_factory(partial(_guarded_client, factory))  # not one client, because failures replace it
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_clean_record)
    host, proxies = urlsplit(constants.ENDPOINT).hostname or "", getproxies_environment()
    if is_loopback(host) and proxies.keys() - {"no"} and host not in proxies.get("no", "").split(","):
        os.environ["no_proxy"] = f"{proxies.get('no', '')},{host}"  # it knows no other exceptions
        close_session()  # its client has read the environment


def _guarded_client(factory: Callable[[], Any]) -> Any:
    client = factory()
    client.event_hooks["response"].append(_check_answer)
    return client


def _check_answer(response: Any) -> None:
    """Refuse what huggingface_hub would use as it comes, in this thread's calls from here.

    It stores files under whatever ETag it is given, and reads whole, unpacked, the bodies of refusals, of redirects and
    of answers to what it posts. Files that are offered by Xet too come by plain HTTP, so that what is held here holds
    for them.
    """
    if not getattr(_THREAD, "calls", False):
        return
    headers, head = response.headers, response.request.method == "HEAD"
    headers.pop("X-Xet-Hash", None)
    tag = headers.get("X-Linked-ETag") or headers.get("ETag", "")
    if head and not re.fullmatch(r'(?:W/)?"?[0-9A-Za-z_.+=-]{0,200}"?', tag):
        raise NetworkError(f"refused: the ETag {shortened(tag)!r} is no name for a file")
    if head or (response.request.method == "GET" and response.status_code < 300):
        return
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise NetworkError(f"answered {response.status_code} with over {MAX_ANSWER:,} bytes")
    response._content = body  # where its read() leaves it


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Around calls of huggingface_hub, which wait for ever where bytes trickle: then its connections are closed."""
    from huggingface_hub import close_session

    done, late = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(seconds):  # again and again, because it tries again
            late.set()
            close_session()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except Exception:
        if late.is_set():
            raise NetworkError(f"gave up: not done within {seconds:.0f} s") from None
        raise
    finally:
        done.set()


@contextmanager
def _our_errors(what: str) -> Iterator[None]:
    """Around calls of huggingface_hub: its errors, and those of the HTTP library below it, as ours.

    They are raised `from None`, because the originals quote whole addresses: of proxies with passwords, of redirects
    with signatures.
    """
    bar_class()  # tqdm's warnings, if it has any, are silenced here: huggingface_hub imports it too
    from huggingface_hub import errors

    what, _THREAD.calls = shortened(what, 300), True
    try:
        yield
    except IsanetError as error:
        raise type(error)(f"{what}: {error}") from None
    except errors.LocalEntryNotFoundError as error:
        if variable := download.offline():
            raise OfflineError(
                f"{what} is not a folder here and not in huggingface_hub's cache, and {variable} is set; load it once "
                "online, or copy the folder of its files here and pass its path"
            ) from None
        raise NetworkError(
            f"{what}: the Hub cannot be reached, and the file is not cached ({_message(error)})"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise OfflineError(f"{what}: HF_HUB_OFFLINE is set") from None
    except errors.RevisionNotFoundError:
        raise NetworkError(f"{what}: the repository has no such branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise NetworkError(
            f"{what}: no such folder here and no such repository, or a private one; then set HF_TOKEN, or pass token="
        ) from None
    except errors.EntryNotFoundError:
        raise CheckpointFormatError(
            f"{what}: the repository has no config.json or no model.safetensors; save_pretrained writes both"
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(f"{what}: {_message(error)}") from None
    except Exception as error:  # whatever the client and its HTTP library raise
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in CACHE_IS_UNWRITABLE:
            raise CacheError(
                f"{what}: cannot write to huggingface_hub's cache ({_message(error)}); free some space, or set "
                "HF_HUB_CACHE to another folder"
            ) from None
        raise NetworkError(f"{what}: {_message(error)}") from None
    finally:
        _THREAD.calls = False


def _message(error: Exception | str) -> str:
    """One line of what the client says, without tokens and the secrets of addresses in it, well-formed or not."""
    text = re.sub(r"(?<=Bearer ).*", "…", clean(str(error)[:5000]))
    text = re.sub(r"\S+@", "…@", re.sub(r"(?<=://).*@", "", text))
    text = re.sub(r"\w{1,20}://[^\s'\"<>)]+", lambda url: redacted(url[0]), text)
    return shortened(text, 500) or type(error).__name__


def _clean_record(record: logging.LogRecord) -> bool:
    """A filter of the client's own log, which quotes servers and signed addresses."""
    record.msg, record.args = _message(record.getMessage()), ()
    return True


def save_pretrained(
    folder: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, str],
    *,
    new_card: bool = False,
    repo_id: str = "ORG/NAME",
) -> None:
    """Write a model folder: config.json, model.safetensors and, if there is none yet, a model card (README.md).

    All files are written before the first takes its place; each appears whole or not at all.

    Args:
        folder: Created if missing.
        state: The model's state dict; floating-point tensors are written as float32.
        config: The arguments of `isanet.ISANet`, as `model.config`.
        provenance: Where the weights came from, as `model.provenance`.
        new_card: Replace the card too.
        repo_id: The repository that the card's example loads.

    Raises:
        OutputError: The folder cannot be written; earlier files are unchanged.
    """
    path = given_path(folder, OutputError)
    files = {
        "model.safetensors": serialized(state, config, provenance),
        "config.json": (config_json(config, indent=1) + "\n").encode(),
    }
    if new_card or not (path / "README.md").exists():
        verified = is_released(state, config, provenance.get("name", ""))
        files["README.md"] = model_card(config, provenance, repo_id, verified=verified).encode()
    try:
        path.mkdir(parents=True, exist_ok=True)
        atomic_write_all((path / name, data) for name, data in files.items())
    except OSError as error:
        raise OutputError(f"cannot write the model to {path}: {error.strerror}; earlier files are unchanged") from error


def push_to_hub(
    repo_id: str,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, str],
    *,
    private: bool | None = None,
    token: str | None = None,
) -> Pushed:
    """Publish a model folder as a repository on the Hugging Face Hub, created if missing.

    Args:
        repo_id: `org/name`.
        state: As of `save_pretrained`, and so `config` and `provenance`.
        config: The arguments of `isanet.ISANet`.
        provenance: Where the weights came from.
        private: Whether a new repository is private; None takes the account's default.
        token: With permission to write; None takes what huggingface_hub finds.

    Raises:
        ValueError: `repo_id` is not a name that the Hub allows.
        OfflineError: The environment forbids sockets.
        NetworkError: The Hub refused, or cannot be reached.
        OutputError: The temporary folder cannot be written.
    """
    if variable := download.offline():
        raise OfflineError(f"cannot push to {repo_id}: {variable} is set")
    with _our_errors(repo_id):
        from huggingface_hub import HfApi

        _prepare_client()
        api = HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        kept = ["README.md"] if api.file_exists(repo_id, "README.md") else None  # somebody may have edited it
    with TemporaryDirectory() as folder:
        save_pretrained(folder, state, config, provenance, repo_id=repo_id)
        with _our_errors(repo_id):
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=kept)
    return Pushed(address, commit.oid)


def valid_token() -> str:
    """The token that huggingface_hub finds (HF_TOKEN, or that of `hf auth login`), if the Hub knows it.

    Raises:
        OfflineError: The environment forbids sockets.
        NetworkError: There is none, or the Hub refuses it, or cannot be reached.
    """
    if variable := download.offline():
        raise OfflineError(f"cannot push: {variable} is set")
    with _our_errors("the token for the Hugging Face Hub"):
        from huggingface_hub import HfApi, get_token

        _prepare_client()
        if (token := get_token()) is None:
            raise NetworkError("there is none; set HF_TOKEN to one with permission to write, or run `hf auth login`")
        HfApi(token=token).whoami()
    return str(token)


def look_up(repo_id: str, name: str, *, revision: str = "main", token: str | bool | None) -> RemoteFile | None:
    """What the Hub says of a file without sending it; None if it has none, or not for who has this token.

    Args:
        repo_id: `org/name`.
        name: Of the file.
        revision: Branch, tag or commit.
        token: False: as for those who have none.

    Raises:
        ValueError: `repo_id` is not a name that the Hub allows.
        OfflineError: The environment forbids sockets.
        NetworkError: The Hub cannot be reached.
    """
    if variable := download.offline():
        raise OfflineError(f"cannot ask for {repo_id}: {variable} is set")
    with _our_errors(f"{repo_id} at revision {revision}"):
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

        _prepare_client()
        try:
            with _time_limit(Limits().window):
                found = get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision), token=token)
        except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return None
    return RemoteFile(found.commit_hash or "", found.etag or "", found.size or 0)


def serialized(state: Mapping[str, Tensor], config: Mapping[str, Any], provenance: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with a model's tensors in float32, its config and its provenance."""
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return checkpoint.serialize(tensors, {**provenance, "config": config_json(config)})


def is_released(state: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> bool:
    """Whether tensors and config are those of a released model: of its verified file in the cache or package."""
    released = load_manifest().get(name)
    if released is None:
        return False
    record, path = cache.read_record(name), cache.cached_file(name)
    expected = record.file_sha256 if record and record.source_sha256.startswith(released.known_digits) else None
    if released.packaged:
        path, expected = packaged_path(name), released.sha256
    try:
        file = checkpoint.read_file(path) if path and expected else None
        if file is None or file.sha256 != expected:
            return False
        tensors, _ = checkpoint.read_safetensors(file)
    except (OSError, CheckpointError):
        return False
    same = {**released.architecture, "preprocessing": released.preprocessing, "label_space": released.label_space}
    return (
        tensors.keys() == state.keys()
        and all(torch.equal(state[key].cpu().to(value.dtype), value) for key, value in tensors.items())
        and all(config.get(key) == value for key, value in same.items())
    )
