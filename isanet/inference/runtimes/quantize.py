"""8-bit networks, by NNCF.

Only wide convolutions are computed in 8 bits, which are nearly all of the work of a large network: weights with a scale
for each output channel, their inputs with one for the map, from calibration images. All else stays in float32: the
stem, narrow layers, attention, whose softmax multiplies errors, the classifier, and the additions of shortcuts, whose
rounding would add up from block to block. The same file is for processors with and without VNNI.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from isanet.inference.runtimes.packages import load, signal_stack_kept

MIN_CHANNELS = 96
"""Of a convolution's input and output, for it to be in 8 bits.

Measured on 2026-11-29 on 12 photographs, each by a network that was calibrated on others: labels of float32 kept by the
packaged model 98.8 %, by a ResNet-50 with stand-in weights 98.8 % (98.7 % with `ONEDNN_MAX_CPU_ISA=AVX2`). Five of them
were what this was chosen by; on these the ResNet-50 keeps 98.3 % (98.0 %), calibrated on two images alone 96.9 %, and
97.7 % with 64 here, in the same time. The packaged model keeps 98.8 % of these, 97.5 % with bfloat16 for the rest, and
67 % of four of them and another with all layers in 8 bits.
"""


def quantized(model: Any, inputs: Iterable[Tensor]) -> Any:
    """An `openvino.Model` with its wide convolutions in 8 bits; to be run with the precision hint f32.

    Args:
        model: In float32; it is not changed.
        inputs: A few inputs like those to come, as the model takes them: the ranges of maps are calibrated on them.

    Raises:
        ValueError: There are no inputs, or weights or maps are not finite.
    """
    arrays = [tensor.numpy() for tensor in inputs]
    if not arrays:
        raise ValueError("int8 needs a few images like those to come, to calibrate the range of every map; got none")
    _check_finite(model, "weights")
    with _silence(), signal_stack_kept():
        nncf = load("nncf")
        result = inspect.unwrap(nncf.quantize)(  # unwrapped: the wrapper reports each call to its makers
            model,
            nncf.Dataset(arrays),
            subset_size=len(arrays),
            ignored_scope=nncf.IgnoredScope([op.get_friendly_name() for op in model.get_ops() if not _is_wide(op)]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),  # it changes nothing
        )
    _check_finite(result, "maps")
    return result


def _is_wide(op: Any) -> bool:
    if op.get_type_name() != "Convolution":
        return False
    out, into = list(op.input_value(1).get_shape())[:2]
    return bool(min(out, into) >= MIN_CHANNELS)


def _check_finite(model: Any, what: str) -> None:
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and op.get_element_type().is_real() and not np.isfinite(op.data).all():
            raise ValueError(f"the network has {what} that are not finite: its weights are damaged or not trained")


@contextmanager
def _silence() -> Iterator[None]:
    """NNCF logs to standard output, draws progress bars, and imports its part for torch, which logs and warns."""
    from rich import get_console

    kind = logging.getLoggerClass()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load("nncf")  # which makes its logger, and its class of loggers everyone's
    logging.setLoggerClass(kind)
    console, loggers = get_console(), [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    before = console.quiet, [logger.disabled for logger in loggers]
    console.quiet = True
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console.quiet = before[0]
        for logger, disabled in zip(loggers, before[1], strict=True):
            logger.disabled = disabled
