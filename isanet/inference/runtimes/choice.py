"""Device, precision and runtime that a network runs by, where the caller leaves them open."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from isanet.errors import CheckpointMismatchError
from isanet.inference.fast.network import FastISANet
from isanet.inference.fast.optimize import has_bfloat16, optimize, why_not_optimizable
from isanet.inference.runtimes import onnxruntime, openvino
from isanet.inference.runtimes.exported import ExportedModel
from isanet.inference.runtimes.graph import network_file
from isanet.inference.runtimes.network import Run, RuntimeNetwork
from isanet.inference.runtimes.packages import NEEDED, check_installed, is_installed
from isanet.model import ISANet

RUNTIMES = ("torch", "openvino", "onnxruntime")
"""What networks run by. torch is the reference, and needs no further packages."""

FASTEST = {
    "float32": ("openvino", "onnxruntime"),
    "bfloat16": ("openvino",),
    "int8": ("openvino",),
}
"""What is faster than torch on CPUs, by precision, the fastest first.

Measured on 2026-11-29 on two cores of an AMD EPYC of the fifth generation (AVX512, VNNI, bfloat16), in turns: ResNet-50
at 512x512, alone, medians (tests/benchmarks/runtimes.py): float32 OpenVINO 0.69 s, ONNX Runtime 0.72 s, torch 0.75 s;
bfloat16 OpenVINO 0.345 s, torch 0.368 s. The packaged model, shared with others, minima, at 512x1024: float32 OpenVINO
43 ms, ONNX Runtime 44 ms, torch 75 ms; bfloat16 OpenVINO 18 ms, torch 27 ms; at 128x256: float32 ONNX Runtime 3.3 ms,
OpenVINO 3.8 ms, torch 5.3 ms.
"""


def checked_runtime(runtime: str, precision: str, *, compile: bool) -> str:
    """The runtime where the other arguments leave no choice; else as it is.

    Raises:
        ValueError: It is unknown, not installed, or cannot do what else was asked for.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise ValueError(f"unknown runtime {runtime!r}; valid are auto, {', '.join(RUNTIMES)}")
    if compile and (runtime not in ("auto", "torch") or precision == "int8"):
        raise ValueError("compile=True is torch's alone, and not in int8; leave one of them out")
    if runtime == "onnxruntime" and precision in ("bfloat16", "float16"):
        raise ValueError(f"onnxruntime computes in float32, not in {precision}; use runtime='openvino' or 'torch'")
    if compile:
        return "torch"
    for package in NEEDED.get(runtime, ()):
        check_installed(package, runtime)
    return runtime


def choose_runtime(
    runtime: str, precision: str, device: torch.device, model: ISANet | ExportedModel, *, compile: bool
) -> str:
    """The runtime of a model, where `checked_runtime`, or `exported_runtime`, has found none of the arguments wrong.

    Raises:
        ValueError: The model cannot be optimized, or that runtime does not compute it so.
    """
    if isinstance(model, ExportedModel):
        return runtime
    reason = why_not_optimizable(model)
    if not reason and model.classifier.weight.dtype == torch.float64 and not compile:
        reason = "its weights are in float64"
    if reason and (precision == "int8" or compile or runtime not in ("auto", "torch")):
        raise ValueError(f"this network cannot be optimized, as int8, compile and other runtimes need: {reason}")
    if precision == "int8":
        if runtime not in ("auto", "openvino"):
            raise ValueError(f"int8 is computed by openvino, not by {runtime}; leave runtime out")
        if device.type != "cpu":
            raise ValueError(f"int8 is for the CPU, not for {device}; there, use 'bfloat16' or 'float16'")
        for package in (*NEEDED["openvino"], "nncf"):
            check_installed(package, "openvino")
        return "openvino"
    if runtime != "auto":
        return runtime
    faster = () if reason or device.type != "cpu" else FASTEST.get(precision, ())
    return next((name for name in faster if is_installed(name)), "torch")


def exported_runtime(model: ExportedModel, runtime: str, precision: str, device: str | torch.device) -> str:
    """The runtime of an exported file.

    Raises:
        ValueError: The file is not for that runtime or precision, or its runtime is not installed.
    """
    if precision not in ("auto", model.precision) and "int8" in (precision, model.precision):
        raise ValueError(f"{model.path} is in {model.precision}, not in {precision}; leave the precision out")
    if model.path.suffix.lower() == ".xml":
        able = ["openvino"]
    elif precision in ("bfloat16", "float16"):
        able = ["openvino"]  # the only one that converts
    elif str(device) not in ("auto", "cpu") or (
        is_installed("onnxruntime") and onnxruntime.provider("auto")[0] != onnxruntime.PROVIDERS["cpu"]
    ):
        able = ["onnxruntime", "openvino"]
    else:
        able = ["openvino", "onnxruntime"]
    if runtime != "auto" and runtime not in able:
        raise ValueError(f"{model.path} runs by {' or '.join(able)}, not by {runtime}; leave the runtime out")
    chosen = next((name for name in able if is_installed(name)), able[0]) if runtime == "auto" else runtime
    check_installed(chosen, chosen)  # onnx was needed before, to check an .onnx
    return chosen


def image_device(wanted: str | torch.device, runtime: str) -> torch.device:
    """Where images lie for a runtime on a device: another than torch moves them itself.

    Raises:
        ValueError: There is no such device.
    """
    if runtime == "onnxruntime":
        onnxruntime.provider(wanted)
    elif runtime == "openvino":
        if str(wanted) not in ("auto", "cpu"):
            raise ValueError(f"openvino is used on the CPU here, not on {wanted}; leave the device or the runtime out")
    else:
        return find_device(wanted)
    return torch.device("cpu")


def find_device(wanted: str | torch.device) -> torch.device:
    """The device of a name, or with "auto" the best that there is; a ValueError lists the valid names."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except Exception as error:  # each backend raises its own when it is absent
        there = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).partition("\n")[0]
        meant = re.sub(r"^(gpu|nvidia|cuda):?(?=\d|$)", "cuda:", str(wanted).lower()).rstrip(":")
        if meant != str(wanted) and meant.partition(":")[0] in ("auto", "cpu", "cuda", "mps"):
            reason = f"did you mean {meant!r}?"  # instead of torch's list of twenty kinds of devices
        raise ValueError(f"device {wanted!r} cannot be used ({reason}); valid here are {', '.join(there)}") from error
    return device


def auto_precision(device: torch.device, runtime: str, model: ISANet | ExportedModel) -> str:
    """The default precision."""
    if isinstance(model, ExportedModel) and model.precision == "int8":
        return "int8"
    if runtime == "onnxruntime":
        return "float32"
    if device.type == "cpu":  # there, autocast of an eager network gains little
        eager = not isinstance(model, ExportedModel) and why_not_optimizable(model)
        return "bfloat16" if has_bfloat16(device) and not eager else "float32"
    if has_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def runtime_network(
    model: ISANet,
    runtime: str,
    precision: str,
    *,
    device: str | torch.device = "cpu",
    images: Sequence[Tensor] = (),
    max_memory: int = 4 << 30,
) -> RuntimeNetwork | FastISANet:
    """A copy of a model that another runtime runs.

    If weights are not finite it is torch's, by which logits are not finite either: some runtimes take them for zeros.

    Args:
        model: One that can be optimized, on the CPU.
        runtime: "openvino" or "onnxruntime".
        precision: One that this runtime has.
        device: For onnxruntime, see `isanet.inference.runtimes.onnxruntime.provider`.
        images: For int8, to calibrate it.
        max_memory: Bytes for maps; an image that would take more goes through torch's copy in bands of rows.

    Raises:
        ValueError: int8 without images.
        IsanetError: The runtime does not take the network.
    """
    if precision == "int8" and not images:
        raise ValueError("int8 needs a few images like those to come, to calibrate the range of every map; got none")
    fast = optimize(model, max_memory=max_memory)
    if not all(bool(tensor.isfinite().all()) for tensor in fast.state_dict().values()):
        return fast

    def make() -> tuple[Run, str]:
        graph = b"".join(network_file(fast))
        if runtime == "openvino":
            return openvino.session(graph, None, precision, images), ""
        return onnxruntime.session(graph, device)

    def in_bands() -> FastISANet:
        half = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
        return optimize(model, half if precision == "int8" else precision, max_memory=max_memory)

    return RuntimeNetwork(runtime, make, model, fast, in_bands, max_memory)


def exported_network(
    model: ExportedModel, runtime: str, precision: str, *, device: str | torch.device, max_memory: int
) -> RuntimeNetwork:
    """The network of an exported file.

    Raises:
        CheckpointMismatchError: Its metadata are of another network, or it was changed since it was checked.
        IsanetError: The runtime does not take it.
    """
    graph, weights = model.content()

    def make() -> tuple[Run, str]:
        if runtime == "openvino":
            return openvino.session(graph, weights, precision), ""
        return onnxruntime.session(graph, device)

    with torch.device("meta"):
        network = ISANet(**model.config)
    parameters = sum(each.numel() for name, each in network.named_parameters() if not name.startswith("aux_"))
    if parameters > 2 * (len(graph) if weights is None else len(weights)):  # of at least a byte each; some are merged
        raise CheckpointMismatchError(
            f"{model.path}: its metadata are of a network of {parameters:,} weights, for which it is too small; export "
            "the model again by isanet.export"
        )
    sizes = FastISANet(network.to_empty(device="cpu"), max_memory)  # on "meta", arithmetic imports torch's compiler
    return RuntimeNetwork(runtime, make, model, sizes, None, max_memory)
