"""8-bit networks, by NNCF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def quantized(model: Any, inputs: Sequence[Tensor]) -> Any:
    """An OpenVINO model in 8 bits, calibrated on inputs (N, 3, H, W) as it takes them."""
    import nncf  # type: ignore[import-untyped]

    dataset = nncf.Dataset([tensor.numpy() for tensor in inputs])
    return nncf.quantize(model, dataset, subset_size=len(inputs))
