"""Progress bars, on terminals and in notebooks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows images and widgets."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def shows_bars() -> bool:
    """Whether bars are seen, unless the caller says: on a terminal and in a notebook, which is none."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def bar_class() -> Any:
    """Tqdm's class of bars: widgets in a notebook that has ipywidgets, else text."""
    if not in_notebook():
        from tqdm import tqdm

        return tqdm
    with warnings.catch_warnings():  # without ipywidgets it warns, but text does
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm as notebook_tqdm
    return notebook_tqdm


def progress_bar(items: Iterable[Any] | None = None, *, show: bool | None, **options: Any) -> Any:
    """A bar of tqdm, around `items` or updated by the caller.

    Args:
        items: What to iterate over.
        show: None: see `shows_bars`.
        options: As tqdm takes them.
    """
    return bar_class()(items, disable=not (shows_bars() if show is None else show), **options)
