"""Addresses of files: which are allowed, and how they are written into messages."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TypeGuard
from urllib.parse import SplitResult, urlsplit, urlunsplit

from isanet._text import shortened


def split(url: str) -> SplitResult | None:
    """The parts of an address; None for one that libraries may read in different ways."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if not re.search(r"[\\\x00-\x1f\x7f]", url) and parts.port != 0:
            return parts
    return None


def is_allowed(url: str, *, plain: bool) -> bool:
    """Whether an address is https, or, with `plain`, http on loopback."""
    parts = split(url)
    if parts is None or not parts.hostname:
        return False
    return parts.scheme == "https" or (plain and parts.scheme == "http" and is_loopback(parts.hostname))


def is_address(source: object) -> TypeGuard[str]:
    """Whether it is text that starts as an address of the web does, allowed or not."""
    return isinstance(source, str) and source[:8].lower().startswith(("https://", "http://"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def redacted(url: str) -> str:
    """An address without user name, password, query and fragment: that of a signed redirect is a key."""
    parts = split(url)
    if parts is None or "@" in parts.path:  # a password may be before it
        return "an unreadable address"
    return shortened(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")), 500)


def file_name(url: str) -> str:
    """The last part of an address's path."""
    parts = split(url)
    return "" if parts is None else parts.path.rpartition("/")[2]


def hub_url(repo: str, revision: str, name: str = "model.safetensors") -> str:
    """The address of a file in a commit of a repository on the Hugging Face Hub, or on `HF_ENDPOINT`."""
    endpoint = os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co"
    return f"{endpoint.rstrip('/')}/{repo}/resolve/{revision}/{name}"


def local_path(url: str) -> Path | None:
    """The path of a file:// address; None for another machine's."""
    from urllib.request import url2pathname

    parts = split(url)
    return Path(url2pathname(parts.path)) if parts and parts.netloc in {"", "localhost"} else None
