"""Several processes that work on one task together, or a single one; and signals that end them cleanly."""

from __future__ import annotations

import ast
import linecache
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pickle import PicklingError
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from isanet._text import clean
from isanet.errors import IsanetError

T = TypeVar("T")

log = logging.getLogger("isanet")


GUARD = 'in a script, put the calls under `if __name__ == "__main__":`, or pass workers=0'


def checked_workers(workers: int | None) -> int | None:
    """The number of worker processes that was asked for, None for the default; 0 where they could not start.

    Where processes are not forked, each imports the script, and without `if __name__ == "__main__":` it would come to
    this same call instead of reading images.

    Raises:
        ValueError: The number is negative, or worker processes are asked for and could not start.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if workers == 0 or (method := multiprocessing.get_start_method()) == "fork" or not _is_unguarded():
        return workers
    if workers:
        raise ValueError(f"worker processes ({method}) would run this script again from its start: {GUARD}")
    log.info("no worker processes: %s would run this script again from its start; %s", method, GUARD)
    return 0


def _is_unguarded() -> bool:
    """Whether a process that imports the main module would come to the line that is running now."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name.rpartition(".")[2] == "__main__":  # `python -m package`: is not imported
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_globals is not vars(main) or frame.f_code.co_name != "<module>"):
        frame = frame.f_back
    if frame is None or not (lines := linecache.getlines(frame.f_code.co_filename)):  # a thread; a prompt, a notebook
        return False
    try:
        nodes = ast.walk(ast.parse("".join(lines)))
    except (SyntaxError, ValueError):  # the file was changed since it was started
        return False
    return not any(
        isinstance(node, ast.If | ast.IfExp)
        and "__name__" in ast.unparse(node.test)
        and node.lineno <= frame.f_lineno <= (node.end_lineno or 0)
        for node in nodes
    )


@contextmanager
def read_ahead(dataset: Dataset[Any], *, workers: int, **options: Any) -> Iterator[Iterator[Any]]:
    """Items of a `DataLoader`, whose worker processes end with the block.

    Raises:
        IsanetError: A worker process could not start, or has ended.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # the error below says it
            items: Any = iter(DataLoader(dataset, num_workers=workers, worker_init_fn=leave_signals, **options))
    except (PicklingError, AttributeError, TypeError) as error:
        raise IsanetError(
            f"what reads the images cannot be sent to worker processes ({clean(str(error))}): define its functions and "
            "classes at the top of a module, or pass workers=0"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise IsanetError(f"worker processes cannot start ({clean(str(error)) or 'they ended'}); {GUARD}") from None
    try:
        yield items
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        first = str(error.__cause__ or "")  # a signal, or the exit code
        reason = clean((first if first.startswith("DataLoader worker") else str(error)).partition(". ")[0])
        forked = multiprocessing.get_start_method() == "fork"
        advice = "if memory ran out, use fewer workers, or workers=0" if forked else GUARD
        raise IsanetError(f"a process that reads images has ended ({reason}); {advice}") from None
    finally:
        # Whoever holds the error holds the iterator too; and at exit multiprocessing waits for workers, for ever if
        # they leave SIGTERM alone
        if workers:
            items._shutdown_workers()


def leave_signals(worker: int = 0) -> None:
    """For `DataLoader(worker_init_fn=...)`: leave Ctrl-C and SIGTERM to the process that the worker reads for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _silent_on_lost_connections


def _silent_on_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print nothing when the process that a worker reads for has ended in the middle of a batch."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


class DeferredSignals:
    """Holds back Ctrl-C and SIGTERM until a step is complete; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self.handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.restore()
            signal.raise_signal(number)
        self.received = number
        log.warning("stopping after this step and its validation; once more stops at once")

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


class Processes:
    """The processes of the current `torch.distributed` group, or this one alone.

    They communicate through a gloo group of their own: it needs no GPU, and waits while one of them has more to do.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1
        self.group: Any = None
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
            self.group = distributed.new_group(backend="gloo", timeout=timedelta(days=30))

    def loader_workers(self, device: torch.device) -> int:
        """Number of loader workers for this process: enough to keep the model busy, too few to slow it down."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        return max(1, min(share // 4 if device.type == "cpu" else share, 8))

    def close(self) -> None:
        """Leave the group."""
        if self.group is not None:
            distributed.destroy_process_group(self.group)

    def gather(self, value: T) -> list[T]:
        """The value of each process, in all processes."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Call it in each process; if it fails in one, it fails in all, so that no rank deadlocks.

        Raises:
            IsanetError: It failed in another process; the message names it.
        """
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
            if self.world_size > 1:  # logged now, because the others may take long
                log.error("process %d of %d: %s", self.rank, self.world_size, error)
        try:
            failures = self.gather(None if failure is None else str(failure) or type(failure).__name__)
        except Exception:
            if failure is None:
                raise
        if failure is not None:
            raise failure
        for rank, text in enumerate(failures):
            if text is not None:
                raise IsanetError(f"process {rank} of {self.world_size} failed: {text}")
        return result

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Call it in the first process only; all get the result."""
        result = self.run_on_all(lambda: work() if self.rank == 0 else None)
        return cast(T, self.gather(result)[0])
