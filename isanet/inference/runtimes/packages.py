"""The optional packages of runtimes."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

NEEDED = {"openvino": ("openvino", "onnx"), "onnxruntime": ("onnxruntime", "onnx"), "torch": ()}
"""The packages of each runtime; an extra of its name installs them."""


_REPORTS = "openvino_telemetry"
"""OpenVINO's package that tells its makers of every import, and of calls. Where it is absent, nothing is told."""


def load(package: str) -> Any:
    """Import a package, unless it is imported already, as if OpenVINO's telemetry were not installed."""
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
