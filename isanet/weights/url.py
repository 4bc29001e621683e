"""Addresses of files: which are allowed, and how they are written into messages."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit, urlunsplit


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
    loopback = parts.hostname == "localhost"
    with suppress(ValueError):
        loopback = loopback or ip_address(parts.hostname).is_loopback
    return parts.scheme == "https" or (plain and parts.scheme == "http" and loopback)


def redacted(url: str) -> str:
    """An address without user name, password, query and fragment: that of a signed redirect is a key."""
    parts = split(url)
    if parts is None:
        return "an unreadable address"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def file_name(url: str) -> str:
    """The last part of an address's path."""
    parts = split(url)
    return "" if parts is None else parts.path.rpartition("/")[2]
