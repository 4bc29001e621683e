"""A file of the whole job gives the labels that the model gives, in both runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from isanet.exporting import whole
from isanet.images import preprocess
from isanet.inference.fast.optimize import optimize
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import predict, prepare
from isanet.inference.runtimes.graph import Graph, tensor_type
from isanet.inference.runtimes.openvino import core
from isanet.protocols import PROTOCOLS, Protocol
from isanet.toystreets import draw_scene
from tests.helpers.published import KINDS, network

NORMAL = {"mean": [120.0, 110.0, 100.0], "std": [58.0, 57.0, 56.0]}
EDGES, PADDED = {"short_edge": 64, "long_edge": 128}, {"pad_to": [100, 140], "pad_color": [127.5, 120.0, 110.0]}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "sssegmentation": {**NORMAL, **EDGES},
    "mmsegmentation": {**NORMAL, "short_edge": 65, "long_edge": 130},
    "bpkd": NORMAL,
    "paddleseg": {**NORMAL, **PADDED},
    "openseg": {**NORMAL, "channels": "BGR"},
    "everything": {**NORMAL, **EDGES, **PADDED, "channels": "BGR"},
}
SIZES = [(1, 1), (97, 61), (128, 256), (33, 130), (200, 180)]

Run = Callable[..., NDArray[Any]]


def runtimes(parts: Iterator[bytes]) -> list[Run]:
    """The file as ONNX Runtime and as OpenVINO run it."""
    file = b"".join(parts)
    onnx.checker.check_model(onnx.load_model_from_string(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    made = core()
    compiled = made.compile_model(made.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [
        lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0],
        lambda *arrays: compiled(list(arrays))[0],
    ]


def street(height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(draw_scene(1, (256, 512))[0].resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        *((kind, PROTOCOLS[name]) for kind in KINDS for name in ("whole", "mmseg-whole")),
        ("paddleseg", Protocol("as paddleseg", framework="paddleseg")),
        ("mmsegmentation", Protocol("windows", (48, 40), (32, 29), framework="mmsegmentation")),
        ("everything", Protocol("windows", (48, 40), (32, 29))),
        ("everything", Protocol("many windows", (48, 40), (11, 40))),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_labels_are_those_of_the_model(kind: str, protocol: Protocol) -> None:
    model = network(kind, preprocessing=PREPROCESSING[kind]).float()
    runs = runtimes(whole.whole_file(optimize(model), protocol, {}))
    wrong = total = 0
    for size in SIZES:
        image = street(*size)
        (prediction,) = predict(EagerNetwork(model), [prepare(image, PREPROCESSING[kind], protocol)], protocol)
        assert prediction is not None
        for run in runs:
            labels = run(image)
            assert labels.dtype == np.uint8
            assert labels.shape == size
            wrong, total = wrong + int((labels != prediction[0].numpy()).sum()), total + labels.size
    assert wrong <= 1e-4 * total  # where two logits are equal but for the rounding of float32


def test_more_classes_than_a_byte_has() -> None:
    model = network("sssegmentation", num_classes=300, preprocessing=PREPROCESSING["sssegmentation"]).float()
    image = street(60, 50)
    (prediction,) = predict(EagerNetwork(model), [prepare(image, PREPROCESSING["sssegmentation"])])
    assert prediction is not None
    for run in runtimes(whole.whole_file(optimize(model), PROTOCOLS["whole"], {})):
        labels = run(image)
        assert labels.dtype == np.int32
        assert labels.max() > 255
        assert (labels == prediction[0].numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((187, 250), (512, 683)),
        ((1, 1), (5, 7)),
        ((375, 500), (375, 500)),
        ((1500, 2003), (512, 684)),
        ((2999, 4001), (1024, 1366)),
        ((5, 4300), (7, 1024)),
    ],
)
def test_pixels_are_resized_as_opencv_does_exactly(size: tuple[int, int], target: tuple[int, int]) -> None:
    graph = Graph()
    own, sides = graph.sizes("image", 3)[:2], graph.several("Split", "size", graph.ints(1, 1), outputs=2, axis=0)
    pixels = whole._resize_pixels(graph, graph("Cast", "image", to=tensor_type(np.int32)), own, sides)
    inputs = {"image": (np.uint8, ["H", "W", 3]), "size": (np.int64, [2])}
    parts = graph.file(inputs, {"pixels": (pixels, np.int32, ["h", "w", 3])}, {})  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for run in runtimes(parts):
        np.testing.assert_array_equal(run(image, np.array(target)), preprocess._resize(image, *target))


@pytest.mark.parametrize("edges", [(512, 2048), (1024, 2048), (1025, 2049), (520, 2048), (320, 2048)])
def test_sizes_are_those_of_the_preprocessing(edges: tuple[int, int]) -> None:
    graph = Graph()
    own = graph.several("Split", "size", graph.ints(1, 1), outputs=2, axis=0)
    both = graph("Concat", *whole._fit_edges(graph, own, *edges), axis=0)
    file = b"".join(graph.file({"size": (np.int64, [2])}, {"both": (both, np.int64, [2])}, {}))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for size in random.integers(1, 8000, (2000, 2)):
        expected = preprocess.target_size(*size.tolist(), short_edge=edges[0], long_edge=edges[1])
        (found,) = session.run(None, {"size": size})
        exact = size * min(edges[1] / size.max(), edges[0] / size.min())
        is_half = np.isclose(exact % 1, 0.5, rtol=0, atol=1e-9).any()  # a half is rounded up here, in float64 there
        assert is_half or tuple(found) == expected


@pytest.mark.parametrize("name", ["flip", "multiscale-flip", "mmseg-slide-769-multiscale-flip"])
def test_protocols_of_several_passes_are_refused(name: str) -> None:
    model = network("sssegmentation", preprocessing=NORMAL).float()
    with pytest.raises(ValueError, match=rf"the protocol {name} is .*; export it without whole \(--whole\)"):
        whole.whole_file(optimize(model), PROTOCOLS[name], {})


def test_sizes_of_more_than_32_bits_are_refused() -> None:
    model = network("sssegmentation", preprocessing={**NORMAL, "short_edge": 64, "long_edge": 4097}).float()
    with pytest.raises(ValueError, match="at most 4,096 pixels a side"):
        whole.whole_file(optimize(model), PROTOCOLS["whole"], {})
