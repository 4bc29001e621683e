"""Networks run by OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet.inference.runtimes.network import Run
from isanet.inference.runtimes.packages import load, signal_stack_kept

_NOTHING = np.float32(-3e38)
"""What logits are until they are computed: out of memory, OpenVINO may end without an error and leave those before."""

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}


def core() -> Any:
    """A new core of OpenVINO, whose plugin for CPUs has started."""
    with signal_stack_kept():
        made = load("openvino").Core()
        made.get_property("CPU", "FULL_DEVICE_NAME")
    return made


def session(graph: bytes, weights: NDArray[np.uint8] | None, precision: str, images: Sequence[Tensor] = ()) -> Run:
    """A function that runs a graph, in as many threads as torch has. No file is read or written.

    Args:
        graph: An ONNX model, or with `weights` an OpenVINO IR (.xml).
        weights: The weights of an IR (.bin).
        precision: float32, bfloat16, float16, or int8: quantized by `images`, or before.
        images: (N, 3, H, W), normalized, to quantize the network by; none: it is as it is to be.
    """
    openvino = load("openvino")
    ours = core()
    model = ours.read_model(graph) if weights is None else ours.read_model(graph, openvino.Tensor(weights))
    if images:
        from isanet.inference.runtimes.quantize import quantized

        model = quantized(model, images)
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
    }
    request = ours.compile_model(model, "CPU", settings).create_infer_request()
    lock = Lock()  # one image at a time takes all threads anyway

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with lock:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.get_output_tensor().data.fill(_NOTHING)
            request.infer()
            logits: NDArray[np.float32] = request.get_output_tensor().data.copy()  # the request overwrites its own
        if (logits == _NOTHING).all():
            raise MemoryError
        return logits

    return run
