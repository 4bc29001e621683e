"""Networks run by ONNX Runtime, on whatever its build supports."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isanet._text import listed
from isanet.inference.runtimes.network import Run

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""What ONNX Runtime calls a device."""

_ALIASES = {"dml": "directml", "mps": "coreml", "gpu": "cuda"}
_BEST = ("cuda", "directml", "coreml", "cpu")  # without TensorRT, which builds its engines for minutes
_PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "directml": "onnxruntime-directml"}


def provider(device: str | torch.device) -> tuple[str, dict[str, Any]]:
    """The name and options of the provider for a device such as "cpu", "cuda:1" or "directml"; "auto": the best.

    Raises:
        ValueError: Unknown, or this build of ONNX Runtime lacks it.
    """
    import onnxruntime  # type: ignore[import-untyped]

    available = onnxruntime.get_available_providers()
    here = [name for name, provider in PROVIDERS.items() if provider in available]
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", str(device))
    name = _ALIASES.get(match[1], match[1]) if match else ""
    if name == "auto":
        name = next(name for name in _BEST if name in here)
    if match is None or name not in here:
        package = _PACKAGES.get(name)
        advice = f"; pip install {package} in place of onnxruntime has it" if package else ""
        raise ValueError(f"this onnxruntime cannot use device {str(device)!r}; it has {listed(here)}{advice}")
    return PROVIDERS[name], {"device_id": int(match[2])} if match[2] else {}


def session(graph: bytes, device: str | torch.device) -> tuple[Run, str]:
    """A function that runs an ONNX model, in as many threads as torch has, and the providers that it uses."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    name, settings = provider(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # its errors are raised too
    if name == "DmlExecutionProvider":
        options.enable_mem_pattern = False  # as that provider asks
    more = [] if name == "CPUExecutionProvider" else ["CPUExecutionProvider"]
    made = onnxruntime.InferenceSession(graph, options, providers=[(name, settings), *more])
    used: list[str] = made.get_providers()
    if device != "auto" and name not in used:
        raise ValueError(f"{name} cannot be started here: its libraries or its driver are missing")

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = made.run(None, {"images": images})[0]
        return logits

    return run, ", ".join(used)
