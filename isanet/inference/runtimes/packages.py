"""The optional packages of runtimes."""

from __future__ import annotations

import importlib
from functools import cache

NEEDED = {"openvino": ("openvino", "onnx"), "onnxruntime": ("onnxruntime", "onnx"), "torch": ()}
"""The packages of each runtime; an extra of its name installs them."""


@cache
def why_absent(package: str) -> str:
    """Why a package cannot be imported; empty if it can."""
    try:
        importlib.import_module(package)
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
