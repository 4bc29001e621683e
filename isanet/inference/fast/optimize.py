"""The same labels, faster: an inference-optimized copy of a loaded network.

What `optimize` does, and why labels are kept:

* Batch norm scales and shifts the output of the convolution before it, so it is folded into its weights.
* The auxiliary head, which only training needs, is left out.
* The first projections of queries, keys and values see the same map: one matrix product makes all three.
* The value projection and the output projection are merged into one matrix: attention's weights sum to one, so a
  value's bias passes through.
* Maps lie in memory with channels last, as matrix products want them.
* bfloat16 and float16 halve what is computed and moved. The stem stays in float32: it sees the image itself, costs
  little, and its rounding would affect every layer behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from isanet.inference.fast.network import FastISANet
from isanet.model import ISANet

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of precisions, and the dtype of most of the computation."""


def optimize(
    model: ISANet,
    precision: str = "float32",
    *,
    compile: bool = False,
    max_memory: int = 4 << 30,
) -> FastISANet:
    """Make an inference-optimized copy of a model, which predicts the same labels faster; the model is not changed.

    Args:
        model: An ISANet as it was built, on the device that it will run on. Its weights are taken as they are now.
        precision: "float32" (the model's own, if that is float64), "bfloat16" or "float16".
        compile: Compile with `torch.compile` what goes through at once, not in bands: the first image, and the first
            of another size, then take a minute.
        max_memory: Bytes for maps, beyond weights, input and result. An image that would need more goes through the
            network in bands of rows, with the same labels up to rounding. See `FastISANet.fits`.

    Raises:
        ValueError: The model is not an ISANet as it was built, or an unknown precision.
    """
    if reason := why_not_optimizable(model):
        raise ValueError(f"this network cannot be optimized: {reason}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; valid are {', '.join(PRECISIONS)}")
    with torch.no_grad():
        fast = FastISANet(model, max_memory)
        if precision != "float32":
            fast.convert_to(PRECISIONS[precision])
    fast.eval().requires_grad_(False)
    if compile:
        fast._at_once = torch.compile(fast._at_once)  # type: ignore[method-assign]
    return fast


def why_not_optimizable(model: nn.Module) -> str:
    """Why a network cannot be optimized; empty if it can."""
    if type(model) is not ISANet:
        return f"it is a {type(model).__name__}, not an ISANet"
    with torch.device("meta"):
        as_built = dict(ISANet(**model.config).named_modules())
    parts = dict(model.named_modules())
    for name in as_built | parts:
        expected, part = as_built.get(name), parts.get(name)
        if expected is None or part is None or type(expected) is not type(part):
            return f"its part {name!r} is {type(part).__name__}, not {type(expected).__name__}"
        settings = _settings(part)
        for setting, value in _settings(expected).items() if name else ():  # its own attributes are taken as they are
            if settings.get(setting) != value:
                return f"its part {name!r} has {setting}={settings.get(setting)!r}, not {value!r}"
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return f"its part {name!r} has hooks"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if not dtypes <= {torch.float32} and not dtypes <= {torch.float64}:
        return f"its weights are {', '.join(sorted(map(str, dtypes)))}"
    return ""


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module was built with: its public attributes, and the shapes of its own parameters and buffers."""
    attributes = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
    tensors = {**module._parameters, **module._buffers}
    return attributes | {name: None if x is None else tuple(x.shape) for name, x in tensors.items()}


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively, not by converting to float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
        if not native or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # not where ONEDNN_MAX_CPU_ISA forbids it
    return False
