"""The optional packages of runtimes."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

NEEDED = {"openvino": ("openvino", "onnx"), "onnxruntime": ("onnxruntime", "onnx"), "torch": ()}
"""The packages of each runtime; an extra of its name installs them."""


_REPORTS = "openvino_telemetry"
"""OpenVINO's package that tells its makers of every import, and of calls. Where it is absent, nothing is told."""


def load(package: str) -> Any:
    """Import a package, unless it is imported already, as if OpenVINO's telemetry were not installed."""
    with _importing:
        if (imported := sys.modules.get(package)) is not None:
            return imported
        before = sys.modules.get(_REPORTS)
        sys.modules[_REPORTS] = None  # type: ignore[assignment]
        try:
            return importlib.import_module(package)
        finally:
            del sys.modules[_REPORTS]
            if before is not None:
                sys.modules[_REPORTS] = before


_importing = RLock()


@cache
def why_absent(package: str) -> str:
    """Why a package cannot be imported; empty if it can."""
    try:
        load(package)
    except Exception as error:  # a broken one raises what it likes
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def check_installed(package: str, extra: str) -> None:
    """Raise a ValueError that names the extra, unless a package can be imported."""
    if reason := why_absent(package):
        raise ValueError(f"this needs the package {package} ({reason}): pip install 'isanet[{extra}]'")


def is_installed(runtime: str) -> bool:
    """Whether all packages of a runtime can be imported."""
    return not any(map(why_absent, NEEDED[runtime]))


class _Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Signal handlers of this thread run on the same stack before and after.

    OpenVINO's plugin for CPUs gives the thread that starts it another stack, which is freed with the plugin. Of two
    that overlap in time, the first frees the stack that the second goes back to, and the next signal with a handler
    (Ctrl-C, the end of a process of a DataLoader) ends the process.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
