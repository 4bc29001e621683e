"""Time and memory of one call, measured in a process of its own. Linux with glibc only."""

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
    """Seconds that a call of what `build(*arguments)` gives takes, and bytes by which its process grows at most.

    The seconds are the processor's, on one thread: what else the machine does hardly changes them, and on an idle
    machine they are those of the clock. What `build` makes, such as weights and input, is not counted; the result of
    the call is. `build` is a function of a module, and should have made a small call itself, so that what the first one
    loads is not counted either.
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
    del result  # lived until here
    return seconds, after - before


def _status(name: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
