"""Other runtimes give torch's labels, in its limits of memory and with its errors; files need no torch network."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import isanet
from isanet.errors import CheckpointMismatchError, IsanetError
from isanet.inference.fast.network import FastISANet
from isanet.inference.fast.optimize import has_bfloat16, optimize
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import prepare
from isanet.inference.runtimes import choice, packages
from isanet.inference.runtimes import network as running
from isanet.inference.runtimes.network import RuntimeNetwork
from isanet.inference.segmenter import Segmenter
from tests.helpers import processes
from tests.helpers.exported import export, model
from tests.helpers.published import KINDS

NANO = "isanet_nano_toystreets"
RUNTIMES = ["openvino", "onnxruntime"]
PROTOCOLS = ["whole", "flip", "mmseg-slide-769", "paddleseg-multiscale-flip"]
"""One of each framework, in windows too."""


def images(count: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sizes = [(60, 70), (60, 70), (37, 91)]
    return [random.integers(0, 256, (*sizes[index % 3], 3), np.uint8) for index in range(count)]


def agree(got: np.ndarray, expected: np.ndarray, least: float = 0.999) -> None:
    assert got.shape == expected.shape
    assert (got == expected).mean() >= least  # where two classes tie, rounding decides


def reference(made: isanet.ISANet, **options: Any) -> Segmenter:
    return Segmenter(copy.deepcopy(made), "cpu", precision="float32", runtime="torch", **options)


# --- labels


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_torchs_for_every_kind_of_network_by_every_framework(kind: str, runtime: str) -> None:
    made = model(kind)
    for protocol in PROTOCOLS:
        segmenter = Segmenter(made, "cpu", precision="float32", runtime=runtime, protocol=protocol)
        assert type(segmenter.network()) is RuntimeNetwork
        expected = reference(made, protocol=protocol)(images())
        for batch_size in (1, 3):
            for got, want in zip(segmenter.stream(images(), batch_size=batch_size), expected, strict=True):
                agree(got.labels, want.labels)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_labels_of_their_model(kind: str, suffix: str, tmp_path: Path) -> None:
    made = model(kind, protocol="flip", classes=["a", "b", "c", "d", "é"], palette=[[i, 0, 255 - i] for i in range(5)])
    path = export(made, tmp_path / f"model{suffix}")
    expected = reference(made)(images())
    for runtime in RUNTIMES if suffix == ".onnx" else ["openvino"]:
        segmenter = Segmenter(path, "cpu", precision="float32", runtime=runtime)
        assert (segmenter.runtime, segmenter.precision, segmenter.protocol.name) == (runtime, "float32", "flip")
        assert segmenter.model.config == made.config
        assert segmenter.model.provenance == made.provenance
        for name in ("classes", "palette", "label_space", "preprocessing", "protocol", "logits_resize"):
            assert getattr(segmenter.model, name) == getattr(made, name)
        assert repr(segmenter).endswith(f"cpu, float32, {runtime})")
        for got, want in zip(segmenter.stream(images(), batch_size=2), expected, strict=True):
            agree(got.labels, want.labels)
            assert (got.classes, got.palette) == (want.classes, want.palette)
    assert Segmenter(str(path)).runtime == "openvino"


def test_half_precision_and_files_of_half_the_size(tmp_path: Path) -> None:
    made = isanet.from_pretrained(NANO)
    image = np.asarray(isanet.datasets.ToyStreets(1, split="test")[0][0])
    expected = reference(made)(image).labels
    for precision in ("bfloat16", "float16"):
        segmenter = Segmenter(copy.deepcopy(made), "cpu", precision=precision, runtime="openvino")
        agree(segmenter(image).labels, expected, 0.99)
    path = export(made, tmp_path / "model.xml", precision="float16")
    assert path.with_suffix(".bin").stat().st_size < 2.2 * sum(weight.numel() for weight in made.parameters())
    agree(Segmenter(path, precision="float32")(image).labels, expected, 0.99)


# --- what "auto" takes


def test_auto_takes_what_is_fastest_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cpu = model(), torch.device("cpu")

    def chosen(precision: str, device: torch.device = cpu, compile: bool = False) -> str:
        return choice.choose_runtime("auto", precision, device, made, compile=compile)

    assert [chosen(precision) for precision in ("float32", "bfloat16", "float16")] == ["openvino", "openvino", "torch"]
    assert chosen("float32", torch.device("cuda")) == chosen("float32", torch.device("mps")) == "torch"
    missing = {"openvino"}
    monkeypatch.setattr(packages, "why_absent", lambda package: f"no {package}" if package in missing else "")
    assert [chosen(precision) for precision in ("float32", "bfloat16")] == ["onnxruntime", "torch"]
    missing.add("onnx")
    assert chosen("float32") == "torch"
    assert choice.choose_runtime("auto", "float32", cpu, made.double(), compile=False) == "torch"


def test_auto_is_torch_for_what_cannot_be_optimized_and_for_compiling() -> None:
    made = model()
    made.backbone.layer1[0].conv1.register_forward_hook(lambda *_: None)
    segmenter = Segmenter(made, "cpu", precision="float32")
    assert (segmenter.runtime, type(segmenter.network())) == ("torch", EagerNetwork)
    assert choice.checked_runtime("auto", "float32", compile=True) == "torch"


def test_a_runtime_that_fails_leaves_the_work_to_torch(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Exception from plugin.cpp:1:\nno such instruction")

    monkeypatch.setattr(choice.openvino, "session", fail)
    made = model()
    with pytest.raises(IsanetError, match=r"openvino cannot run this network .*no such instruction.*; use runtime"):
        Segmenter(made, "cpu", precision="float32", runtime="openvino")
    segmenter = Segmenter(made, "cpu", precision="float32")
    agree(segmenter(images()[0]).labels, reference(made)(images()[0]).labels)
    assert segmenter.runtime == "torch"
    assert "no such instruction" in caplog.text


def test_what_is_in_use_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="isanet"):
        assert repr(Segmenter(NANO, "cpu", precision="float32")).endswith("; cpu, float32, openvino)")
        Segmenter(NANO, precision="float32", runtime="onnxruntime")
    assert "segmenting on cpu (as asked) in float32 (as asked) by openvino" in caplog.messages
    assert "onnxruntime runs on CPUExecutionProvider" in caplog.messages


# --- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tensorflow"}, "valid are auto, torch, openvino, onnxruntime"),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "computes in float32, not in bfloat16; use runtime='op"),
        ({"runtime": "onnxruntime", "precision": "float16"}, "computes in float32"),
        ({"runtime": "onnxruntime", "precision": "int8"}, "int8 is computed by openvino, not by onnxruntime"),
        ({"runtime": "torch", "precision": "int8"}, "int8 is computed by openvino, not by torch"),
        ({"precision": "int8"}, "int8 needs a few images"),
        ({"runtime": "openvino", "device": "cuda"}, "openvino is used on the CPU here, not on cuda"),
        ({"runtime": "onnxruntime", "device": "tpu"}, "cannot use device 'tpu'; it has .*cpu"),
        ({"runtime": "openvino", "compile": True}, "compile=True is torch's alone"),
    ],
)
def test_wrong_choices_say_what_is_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter(NANO, **{"device": "cpu", **options})


@pytest.mark.parametrize("change", ["hook", "float64"])
def test_a_runtime_needs_a_network_that_can_be_optimized(change: str) -> None:
    made = model()
    if change == "hook":
        made.fuse.register_forward_hook(lambda *_: None)
    else:
        made.double()
    with pytest.raises(ValueError, match=r"cannot be optimized, .*(hooks|float64)"):
        Segmenter(made, "cpu", precision="float32", runtime="openvino")


@pytest.mark.parametrize(
    ("options", "package", "extra"),
    [
        ({"runtime": "openvino"}, "openvino", "openvino"),
        ({"runtime": "onnxruntime"}, "onnxruntime", "onnxruntime"),
        ({"runtime": "onnxruntime"}, "onnx", "onnxruntime"),
        ({"precision": "int8"}, "nncf", "openvino"),
    ],
)
def test_an_absent_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    packages.why_absent.cache_clear()
    try:
        with pytest.raises(ValueError, match=rf"needs the package {package} .*pip install 'isanet\[{extra}\]'"):
            Segmenter(NANO, "cpu", **options)
    finally:
        packages.why_absent.cache_clear()


@pytest.mark.parametrize("device", ["cuda:1", "gpu", "tensorrt", "directml", "dml", "coreml", "mps"])
def test_devices_of_onnxruntime(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    name, settings = {
        "cuda:1": ("CUDAExecutionProvider", {"device_id": 1}),
        "gpu": ("CUDAExecutionProvider", {}),
        "tensorrt": ("TensorrtExecutionProvider", {}),
        **dict.fromkeys(("directml", "dml"), ("DmlExecutionProvider", {})),
        **dict.fromkeys(("coreml", "mps"), ("CoreMLExecutionProvider", {})),
    }[device]
    from isanet.inference.runtimes.onnxruntime import PROVIDERS, provider

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=rf"cannot use device '{device}'; it has cpu") as error:
        Segmenter(NANO, device, runtime="onnxruntime")
    package = {"cuda:1": "gpu", "gpu": "gpu", "tensorrt": "gpu", "directml": "directml", "dml": "directml"}.get(device)
    assert ("pip install" in str(error.value)) == (package is not None)
    assert f"onnxruntime-{package}" in str(error.value) or package is None
    assert provider("auto") == ("CPUExecutionProvider", {})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*PROVIDERS.values()])
    assert provider(device) == (name, settings)
    assert provider("auto")[0] == "CUDAExecutionProvider"


# --- weights, threads, processes


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_that_are_not_finite_are_the_same_error_as_by_torch(runtime: str) -> None:
    made = model()
    made.reduce.conv.weight.data[0, 0, 0, 0] = torch.nan  # a ReLU that takes the larger of two would hide it
    segmenter = Segmenter(made, "cpu", precision="float32", runtime=runtime)
    with pytest.raises(IsanetError, match="not finite for this image, computing in float32"):
        segmenter(images()[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_share_one_and_copies_are_their_own(runtime: str, tmp_path: Path) -> None:
    made = model()
    expected = [result.labels for result in reference(made)(images(12))]
    path = export(made, tmp_path / "model.onnx")
    for segmenter in (Segmenter(made, "cpu", precision="float32", runtime=runtime),
                      Segmenter(path, precision="float32", runtime=runtime)):  # fmt: skip
        with ThreadPoolExecutor(4) as threads:
            for got, want in zip(threads.map(segmenter, images(12)), expected, strict=True):
                agree(got.labels, want)
        for another in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
            assert another.network() is not segmenter.network()
            agree(another(images()[0]).labels, expected[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["sssegmentation", "everything"])
def test_sizes_do_not_depend_on_those_before(kind: str, runtime: str) -> None:
    """OpenVINO fuses attention into a kernel for the first size, which is wrong for others."""
    made = model(kind)
    fast, network = optimize(made), choice.runtime_network(made, runtime, "float32")
    for size in ((64, 64), (512, 256), (65, 1000), (1, 1), (7, 9), (128, 128)):
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        expected = fast.coarse_logits(x)
        assert float((network.coarse_logits(x) - expected).abs().max()) < 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_results_keep_their_memory(runtime: str) -> None:
    network = choice.runtime_network(model(), runtime, "float32")
    x = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    first = network.coarse_logits(x)
    before = first.clone()
    network.coarse_logits(-x)
    assert torch.equal(first, before)
    with pytest.raises(TypeError, match="expected a tensor"):
        network.coarse_logits(x.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected normalized"):
        network.coarse_logits(x[:, :2])


FORKED = """
import os, signal
import numpy as np, torch
path, runtime = os.environ["MODEL"], os.environ["RUNTIME"]
from isanet.inference.segmenter import Segmenter
torch.set_num_threads(2)
segmenter = Segmenter(path, "cpu", precision="float32", runtime=runtime)
image = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
expected = segmenter(image).labels
if not (child := os.fork()):
    signal.alarm(60)
    same = (segmenter(image).labels == expected).mean()
    os._exit(0 if same > 0.999 else 3)
print(os.waitpid(child, 0)[1], (segmenter(image).labels == expected).all())
"""


@pytest.mark.parametrize("source", ["model", "file"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_forked_process_does_not_hang(runtime: str, source: str, tmp_path: Path) -> None:
    path = str(export(isanet.from_pretrained(NANO), tmp_path / "model.onnx")) if source == "file" else NANO
    process = processes.python(FORKED, MODEL=path, RUNTIME=runtime, OMP_NUM_THREADS="2")
    out, err = process.communicate(timeout=120)
    assert out == "0 True\n", err
    assert "forked after a network had run" in err


# --- memory


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_does_not_fit_at_once_goes_in_bands_by_torch(runtime: str, caplog: pytest.LogCaptureFixture) -> None:
    made = model(preprocessing={"mean": [120] * 3, "std": [60] * 3})
    image = np.random.default_rng(0).integers(0, 256, (600, 200, 3), np.uint8)
    expected = reference(made)(image).labels
    segmenter = Segmenter(made, "cpu", precision="float32", runtime=runtime)
    agree(segmenter(image).labels, expected)
    network: Any = segmenter.network()
    assert network._torch is None
    segmenter.max_memory = network._bytes_at_once(1, 75, 25) - 1
    assert network.fits((1, 3, 600, 200))
    with caplog.at_level(logging.INFO, logger="isanet"):
        for _ in range(2):
            agree(segmenter(image).labels, expected)
    assert type(network._torch) is FastISANet
    assert caplog.text.count("bands of rows") == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_that_does_not_fit_goes_through_a_file_in_windows(runtime: str, tmp_path: Path, caplog: Any) -> None:
    made = isanet.from_pretrained(NANO)
    path = export(made, tmp_path / "model.onnx")
    image = np.asarray(isanet.datasets.ToyStreets(1, split="test")[0][0])
    segmenter = Segmenter(path, precision="float32", runtime=runtime)
    expected = segmenter(image).labels
    network: Any = segmenter.network()
    H, W = prepare(image, made.preprocessing or {}).tensors[0].shape[1:]
    segmenter.max_memory = network._bytes_at_once(1, H // 8, W // 8) // 2
    with caplog.at_level(logging.INFO, logger="isanet"):
        labels = segmenter(image).labels
    assert "more than max_memory" in caplog.text
    agree(labels, expected, 0.8)  # attention sees less in a window


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by setrlimit")
def test_too_little_memory_is_the_failure_of_that_image(runtime: str) -> None:
    code = """
import os, resource
import numpy as np
from isanet import IsanetError, from_pretrained
from isanet.inference.segmenter import Segmenter
model = from_pretrained("isanet_nano_toystreets")
model.preprocessing = {name: model.preprocessing[name] for name in ("mean", "std")}
segmenter = Segmenter(model, "cpu", precision="float32", runtime=os.environ["RUNTIME"], max_memory=1 << 40)
small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((3000, 4000, 3), np.uint8)
segmenter(small)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20),) * 2)
failed = []
print(len(list(segmenter.stream([small, large, small], on_error=lambda _, error: failed.append(str(error))))), failed)
"""
    process = processes.python(code, RUNTIME=runtime)
    out, err = process.communicate(timeout=120)
    assert out.startswith("2 ['there is not enough memory for this image;"), (out, err)


# --- files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a"]}, "classes: not for an exported file"),
        ({"weights": "ema"}, "weights: not for"),
        ({"compile": True}, "compile: not for"),
        ({"calibration": [np.zeros((8, 8, 3), np.uint8)]}, "calibration: not for"),
        ({"runtime": "torch"}, "runs by openvino or onnxruntime, not by torch"),
        ({"precision": "int8"}, "is in float32, not in int8"),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "computes in float32"),
        ({"runtime": "openvino", "device": "cuda"}, "on the CPU here"),
    ],
)
def test_arguments_that_make_no_sense_for_a_file(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = export(model(), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message):
        Segmenter(path, **options)
    if options == {"runtime": "torch"}:
        with pytest.raises(ValueError, match="runs by openvino, not by onnxruntime"):
            Segmenter(export(model(), tmp_path / "model.xml"), runtime="onnxruntime")


def test_a_file_that_was_changed_since_is_noticed(tmp_path: Path) -> None:
    made = model()
    segmenter = Segmenter(export(made, tmp_path / "model.onnx"), precision="float32")
    torch.nn.init.zeros_(made.classifier.weight)
    export(made, tmp_path / "model.onnx")
    segmenter(images()[0])  # what is loaded stays
    with pytest.raises(CheckpointMismatchError, match="was changed since it was loaded"):
        copy.copy(segmenter)(images()[0])


def test_a_file_without_onnx_in_openvino_alone(tmp_path: Path) -> None:
    """An .xml needs one package."""
    path = export(model(), tmp_path / "model.xml")
    code = f"""
import sys
sys.modules["onnx"] = sys.modules["onnxruntime"] = sys.modules["nncf"] = None
import numpy as np
from isanet import Segmenter
print(Segmenter({str(path)!r})(np.zeros((30, 40, 3), np.uint8)).labels.shape)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "(30, 40)\n"
    )


def test_evaluating_a_file_and_by_a_runtime(tmp_path: Path) -> None:
    made = isanet.from_pretrained(NANO)
    dataset = isanet.datasets.ToyStreets(2, size=(64, 128))
    path = export(made, tmp_path / "model.onnx")
    reports = {
        "torch": isanet.evaluate(made, dataset, workers=0, device="cpu", progress=False),
        "openvino": isanet.evaluate(path, dataset, workers=0, progress=False, output=tmp_path / "report"),
        "onnxruntime": isanet.evaluate(made, dataset, workers=0, progress=False, runtime="onnxruntime"),
    }
    assert [report.device for report in reports.values()] == ["cpu", "cpu, openvino", "cpu, onnxruntime"]
    for report in reports.values():
        assert report.miou == pytest.approx(reports["torch"].miou, abs=1e-3)  # a few pixels of 16,384 may tie
    assert isanet.evaluate(path, dataset, workers=0, progress=False, precision="auto").precision == (
        "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    )


def test_logits_of_another_size_than_the_model_has_are_refused() -> None:
    made = model()
    fast = optimize(made)

    def make() -> Any:
        return lambda x: fast.coarse_logits(torch.from_numpy(x)).numpy()[..., 1:], ""

    network = running.RuntimeNetwork("openvino", make, made, optimize(made), None, 1 << 30)
    with pytest.raises(CheckpointMismatchError, match="logits of shape"):
        network.coarse_logits(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_nothing_is_printed_or_told_to_the_makers_of_a_runtime(precision: str) -> None:
    code = f"""
import sys
import numpy
import isanet
image = numpy.zeros((64, 64, 3), numpy.uint8)
isanet.Segmenter({NANO!r}, "cpu", precision={precision!r}, runtime="openvino", calibration=[image])(image)
assert "openvino_telemetry" not in sys.modules
"""
    assert processes.output(processes.python(code)) == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sigaltstack by way of the C library")
def test_signals_keep_their_stack_whatever_is_freed() -> None:
    code = f"""
import ctypes
import gc
import numpy
import isanet

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def address():
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.address

image = numpy.zeros((64, 64, 3), numpy.uint8)
segmenters = [isanet.Segmenter({NANO!r}, "cpu", precision="float32", runtime="openvino") for _ in range(2)]
for segmenter in segmenters:
    segmenter(image)
before = address()
isanet.Segmenter({NANO!r}, "cpu", precision="int8", runtime="openvino", calibration=[image])(image)
while segmenters:
    del segmenters[0]
    del segmenter
    segmenter = gc.collect()
assert address() == before
"""
    assert processes.output(processes.python(code)) == ""
