"""The ONNX graph of a network gives the network's logits, in both runtimes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from isanet.inference.fast.optimize import optimize
from isanet.inference.runtimes.graph import network_file
from isanet.inference.runtimes.openvino import core
from tests.helpers.published import KINDS, network

SIZES = [(1, 1), (2, 2), (7, 9), (64, 64), (65, 97), (129, 255), (257, 300)]
"""In this order: what a runtime compiles for the smallest, of one block of attention, must do for larger ones."""


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_every_kind_of_network_in_every_size(kind: str) -> None:
    model = network(kind).double()
    fast = optimize(network(kind).float())
    file = b"".join(network_file(fast, {"classes": "[]"}))
    proto = onnx.load_model_from_string(file)
    onnx.checker.check_model(proto, full_check=True)
    assert {prop.key: prop.value for prop in proto.metadata_props} == {"classes": "[]"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    made = core()
    compiled = made.compile_model(made.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    generator = torch.Generator().manual_seed(0)
    for count, size in enumerate(SIZES, 1):
        images = torch.randn(1 + count % 2, 3, *size, generator=generator)
        with torch.no_grad():
            expected = model.coarse_logits(images.double()).numpy()
            # Each rounds to 24 bits in another order, and softmax close to a tie multiplies rounding errors:
            # torch's own, in float32, is the measure
            rounding = np.abs(fast.coarse_logits(images).numpy() - expected).max()
        for logits in (session.run(None, {"images": images.numpy()})[0], compiled(images.numpy())[0]):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=8 * rounding + 1e-6 * np.abs(expected).max())
