"""8-bit networks keep labels, say nothing, and leave everything else in the process as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

import isanet
from isanet.inference.fast.optimize import optimize
from isanet.inference.runtimes.choice import choose_runtime
from isanet.inference.runtimes.graph import network_file
from isanet.inference.runtimes.openvino import core
from isanet.inference.runtimes.quantize import MIN_CHANNELS, quantized
from isanet.inference.segmenter import Segmenter
from isanet.weights import convert
from isanet.zoo.networks import model_config
from tests.helpers import stand_in

NANO = "isanet_nano_toystreets"


def ir(model: isanet.ISANet) -> Any:
    return core().read_model(b"".join(network_file(optimize(model))))


def inputs(count: int = 2) -> list[Tensor]:
    return [torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def constants(model: Any) -> list[np.ndarray[Any, Any]]:
    return [op.data.copy() for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]


def r50() -> isanet.ISANet:
    model = isanet.ISANet(**model_config(isanet.model_info("isanet_r50_voc")))
    model.load_state_dict(convert.convert(stand_in.state_dict("sssegmentation_r50_voc"), "sssegmentation"))
    return model.eval()


@pytest.mark.parametrize("model", [lambda: isanet.from_pretrained(NANO), r50], ids=["packaged", "r50"])
def test_labels_of_photographs_that_it_was_not_calibrated_on_are_kept(model: Callable[[], isanet.ISANet]) -> None:
    # The packaged model knows drawn streets alone, and is confident of little in a photograph: it shows that all but
    # the convolutions is in float32, also on processors with bfloat16, in which no more than 98 % are kept.
    exact = Segmenter(model(), "cpu", precision="float32", runtime="torch")
    fast = Segmenter(exact.model, "cpu", precision="int8", calibration=[data.coffee(), data.chelsea()])
    kept = [np.mean(fast(image).labels == exact(image).labels) for image in (data.astronaut(), data.rocket())]
    assert np.mean(kept) >= 0.985, kept


def test_a_folder_calibrates_as_its_images_do(tmp_path: Path) -> None:
    images = [data.coffee(), data.chelsea()]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    by_folder, by_list = (Segmenter(NANO, "cpu", precision="int8", calibration=each) for each in (tmp_path, images))
    assert np.array_equal(by_folder(data.rocket()).labels, by_list(data.rocket()).labels)


def test_it_is_for_the_cpu() -> None:
    model, meta = isanet.from_pretrained(NANO), torch.device("meta")
    with pytest.raises(ValueError, match="int8 is for the CPU, not for meta"):
        choose_runtime("auto", "int8", meta, model, compile=False)


def test_wide_convolutions_alone_are_in_8_bits() -> None:
    model = ir(isanet.from_pretrained(NANO))
    wide = {
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() == "Convolution" and min(list(op.input_value(1).get_shape())[:2]) >= MIN_CHANNELS
    }
    before = constants(model)
    ops = quantized(model, inputs()).get_ops()
    into = {
        target.get_node().get_friendly_name()
        for op in ops
        if op.get_type_name() == "FakeQuantize"
        for target in op.output(0).get_target_inputs()
    }
    assert into == wide
    assert wide
    assert all(map(np.array_equal, constants(model), before))  # the model itself is as it was


def test_the_same_images_give_the_same_network() -> None:
    model = ir(isanet.from_pretrained(NANO))
    first, second = (constants(quantized(model, inputs())) for _ in range(2))
    assert len(first) == len(second)
    assert all(map(np.array_equal, first, second))


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="int8 needs a few images like those to come"):
        quantized(ir(isanet.from_pretrained(NANO)), [])


@pytest.mark.parametrize("part", ["backbone.stem.0", "backbone.layer1.0.conv2", "reduce.conv", "fuse.conv"])
@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(part: str, damage: float) -> None:
    model = isanet.from_pretrained(NANO)
    with torch.no_grad():
        model.get_submodule(part).weight[0] = damage
    with pytest.raises(ValueError, match="the network has weights that are not finite: its weights are damaged"):
        quantized(ir(model), inputs())


def test_maps_that_overflow_are_refused() -> None:
    model = isanet.from_pretrained(NANO)
    with torch.no_grad():
        model.backbone.stem[1].weight.fill_(1e38)
    with pytest.raises(ValueError, match="the network has maps that are not finite"):
        quantized(ir(model), inputs())


PROCESS = """
import logging, sys, types, warnings
import numpy as np, torch
sent = []
class Telemetry:
    def __init__(self, app_name=None, **options): self.name = app_name
    def __getattr__(self, method): return lambda *args, **options: sent.append((self.name, method, args))
sys.modules["openvino_telemetry"] = types.ModuleType("openvino_telemetry")
sys.modules["openvino_telemetry"].Telemetry = Telemetry
from isanet import from_pretrained
from isanet.inference.fast.optimize import optimize
from isanet.inference.runtimes.choice import choose_runtime
from isanet.inference.runtimes.graph import network_file
from isanet.inference.runtimes.quantize import quantized
import openvino
def state():
    places = torch, torch.nn.functional, torch.Tensor, torch.nn.Module, torch.jit
    members = {(str(place), name): value for place in places for name, value in vars(place).items()}
    kept = {key: value for key, value in members.items() if callable(value)}
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed()
    return kept, settings, logging.getLoggerClass(), list(logging.root.handlers), warnings.filters[:]
model = openvino.Core().read_model(b"".join(network_file(optimize(from_pretrained("isanet_nano_toystreets")))))
before = state()
quantized(model, [torch.zeros(1, 3, 64, 64)])
after = state()
assert [key for key, value in before[0].items() if after[0].get(key) is not value] == []
assert before[1:] == after[1:]
import rich
assert not rich.get_console().quiet and not logging.getLogger("nncf").disabled
assert [event for event in sent if event[0] == "nncf"] == [], sent
"""


def test_nothing_is_printed_or_sent_and_torch_stays_as_it_is(tmp_path: Path) -> None:
    call = [sys.executable, "-W", "error::DeprecationWarning:isanet", "-c", PROCESS]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
