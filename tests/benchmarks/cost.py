"""Time and memory of one call, measured in its own process. Linux with glibc only."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def cost(build: Callable[..., Callable[[], Any]], *arguments: Any) -> tuple[float, int]:
    """CPU seconds of calling what `build(*arguments)` returns, and the bytes by which its process grows at most.

    The seconds are CPU time on one thread, so that other load on the machine hardly changes them; on an idle machine
    they equal wall-clock time. What `build` creates, such as weights and input, is not counted; the result of the call
    is. `build` is a module-level function, and should make a small call itself, so that what the first call loads is
    not counted either.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_cost, build, *arguments).result()


def _cost(build: Callable[..., Callable[[], Any]], *arguments: Any) -> tuple[float, int]:
    torch.set_num_threads(1)
    run = build(*arguments)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what `build` has freed but the heap still holds would be used first, uncounted
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the high-water mark, starts again from VmRSS
    before, start = _status("VmRSS"), time.process_time()
    result = run()
    seconds, after = time.process_time() - start, _status("VmHWM")
    del result  # alive until here
    return seconds, after - before


def _status(name: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
