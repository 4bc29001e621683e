"""Progress bars, on terminals and in notebooks."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Report = Callable[[str, float, float | None], object]
"""Takes what a bar is about, how far it is, and of how much if that is known."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)


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
    if (report := _report.get()) is not None:
        return _reporting(report)(items, file=io.StringIO(), **options)
    return bar_class()(items, disable=not (shows_bars() if show is None else show), **options)


@contextmanager
def reported_bars(report: Report) -> Iterator[None]:
    """In the body, bars are not shown: they tell a function how far they are, every tenth of a second."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def _reporting(report: Report) -> Any:
    from tqdm import tqdm

    class Reporting(tqdm):  # type: ignore[type-arg]
        def display(self, *_: Any, **__: Any) -> None:
            """Called when the bar would be drawn."""
            report(self.desc, self.n, self.total)

    return Reporting
