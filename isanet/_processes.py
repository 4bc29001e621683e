"""Several processes that do one thing together, or a single one."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from isanet.errors import IsanetError

T = TypeVar("T")

log = logging.getLogger("isanet")


def leave_signals(worker: int = 0) -> None:
    """For `DataLoader(worker_init_fn=...)`: what is to stop a group of processes, the one that waits for them hears."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _unless_left


def _unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Nothing is said where the process that was being handed a batch has stopped in the middle of it."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


class Processes:
    """The processes of the group, or this one alone.

    They speak through a group of their own, on gloo: it needs no GPU, and waits while one of them has more to do.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1
        self.group: Any = None
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
            self.group = distributed.new_group(backend="gloo", timeout=timedelta(days=30))

    def loader_workers(self, device: torch.device) -> int:
        """How many processes should read for this one: enough to keep the model busy, not so many that they slow it."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        return max(1, min(own // 4 if device.type == "cpu" else own, 8))

    def close(self) -> None:
        """Leave the group."""
        if self.group is not None:
            distributed.destroy_process_group(self.group)

    def gather(self, value: T) -> list[T]:
        """The value of each process."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Do it in each process; if it fails in one, it fails in all: none waits for what never comes."""
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
            if self.world_size > 1:  # said now, because the others may take long
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
        """Do it in the first process alone; all have the result."""
        result = self.run_on_all(lambda: work() if self.rank == 0 else None)
        return cast(T, self.gather(result)[0])
