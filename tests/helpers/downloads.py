"""Files fetched and kept, as `isanet.zoo.released` fetches what it converts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isanet.weights.download import Failures, Fetched, Limits, addresses, deadline_from_now, fetch


def fetch_first(
    urls: Sequence[str],
    folder: Path,
    *,
    check: Callable[[Path], None] = lambda path: None,
    limits: Limits | None = None,
    **how: Any,
) -> Fetched:
    """The first file that passes `check`, renamed so that it stays."""
    name = urls[0].partition("?")[0].rpartition("/")[2]
    failures = Failures(name, name, folder)
    deadline = deadline_from_now(limits)
    for url in addresses(urls):
        with failures.of(url), fetch(url, folder, deadline=deadline, limits=limits, **how) as fetched:
            check(fetched.path)
            return replace(fetched, path=fetched.path.replace(fetched.path.with_suffix(".kept")))
    raise failures.error()
