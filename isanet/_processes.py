"""Several processes that work on one task together, or a single one; and signals that end them cleanly."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from isanet.errors import IsanetError

T = TypeVar("T")

log = logging.getLogger("isanet")


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
