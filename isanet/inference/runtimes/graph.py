"""The inference-optimized network as an ONNX graph, written node by node.

No tracer runs: a graph takes seconds, reads like the network, and its sizes are free, from 1x1 pixels and any number of
images. `isanet.export` writes it to files, and the other runtimes are fed with it in memory.

Shape legend as in `isanet.model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isanet.inference.fast.layers import Attention, AveragePool, Block, Conv, MaxPool
from isanet.inference.fast.network import FastISANet

OPSET, IR_VERSION = 17, 8
"""Of the operators and of the file: of 2022, so that runtimes on old devices read them."""


class Graph:
    """Nodes and constants of an ONNX graph; a value is known by its name.

    >>> graph = Graph()
    >>> graph("Add", "x", graph.ints(1))
    'Add_0'
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and give its name."""
        return self.several(op, *inputs, outputs=1, **attributes)[0]

    def several(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        names = [f"{op}_{len(self.nodes)}" + f"_{index}" * (outputs > 1) for index in range(outputs)]
        self.nodes.append((op, list(inputs), names, attributes))
        return names

    def constant(self, value: NDArray[Any] | Tensor | np.generic, name: str = "") -> str:
        """Add an array by a name, or a small one by its value."""
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        name = name or f"{array.dtype}{list(array.shape)}:{','.join(map(str, array.ravel().tolist()))}"
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        """A constant (N,) int64."""
        return self.constant(np.array(values, np.int64))

    def sizes(self, x: str, dims: int) -> list[str]:
        """All sizes of a value of so many dimensions, (1,) int64 each."""
        return self.several("Split", self("Shape", x), self.ints(*[1] * dims), outputs=dims, axis=0)

    def file(
        self,
        inputs: dict[str, tuple[type, list[int | str]]],
        outputs: dict[str, tuple[str, type, list[int | str]]],
        metadata: dict[str, str],
    ) -> Iterator[bytes]:
        """The parts, one after the other, of an ONNX file; no two copies of the constants are in memory at once.

        Args:
            inputs: dtype and shape by name; a size that is free has a name.
            outputs: For each name the value, its dtype and shape.
            metadata: Text by key.
        """
        import onnx
        from onnx import helper

        from isanet._version import __version__

        model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="isanet", producer_version=__version__)
        model.opset_import.add(version=OPSET)
        helper.set_model_props(model, metadata)
        graph = onnx.GraphProto(name="isanet")
        for op, into, out, more in self.nodes:
            graph.node.append(helper.make_node(op, into, out, name=out[0], **more))
        for name, (dtype, shape) in inputs.items():
            graph.input.append(helper.make_tensor_value_info(name, tensor_type(dtype), shape))
        for name, (value, dtype, shape) in outputs.items():
            graph.node.append(helper.make_node("Identity", [value], [name], name=name))
            graph.output.append(helper.make_tensor_value_info(name, tensor_type(dtype), shape))

        def constants() -> Iterator[bytes]:
            for name, array in self.constants.items():
                tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=tensor_type(array.dtype))
                tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
                yield _field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, tensor.SerializeToString())

        # The model is a message in which the graph is the last field, and in that the constants
        start = graph.SerializeToString()
        length = len(start) + sum(map(len, constants()))
        yield model.SerializeToString() + _field(onnx.ModelProto.GRAPH_FIELD_NUMBER, start, length)
        yield from constants()


def _field(number: int, content: bytes, length: int | None = None) -> bytes:
    """A field of a protocol buffer (https://protobuf.dev/programming-guides/encoding), or its beginning."""

    def varint(value: int) -> bytes:
        digits = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
        return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])

    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content


def tensor_type(dtype: Any) -> int:
    """ONNX's number of a numpy dtype."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def network_file(network: FastISANet, metadata: dict[str, str] | None = None) -> Iterator[bytes]:
    """An ONNX file, in parts, from normalized images to coarse logits.

    "images" (N, 3, H, W) -> "logits" (N, K, h, w), float32.

    Args:
        network: Made of a model by `isanet.inference.fast.optimize.optimize`, in float32.
        metadata: What the file says of itself.
    """
    graph = Graph()
    logits = coarse_logits(graph, network, "images")
    return graph.file(
        {"images": (np.float32, ["N", 3, "H", "W"])},
        {"logits": (logits, np.float32, ["N", len(network.classes), "h", "w"])},
        metadata or {},
    )


def coarse_logits(graph: Graph, network: FastISANet, images: str) -> str:
    """`FastISANet.coarse_logits` as nodes of a graph."""
    x = images
    for number, module in enumerate(network.layers):
        x = _layer(graph, module, x, f"layers.{number}")
    block = graph.ints(network.block_size)
    N, _, h, w = graph.sizes(x, 4)
    P, Q = (graph("Div", graph("Add", size, graph.ints(network.block_size - 1)), block) for size in (h, w))
    H, W = graph("Mul", P, block), graph("Mul", Q, block)
    (top, bottom), (left, right) = (_margins(graph, whole, size) for whole, size in ((H, h), (W, w)))
    y_NHWC = graph("Transpose", x, perm=[0, 2, 3, 1])
    none = graph.ints(0)  # of all dimensions: onnxruntime's optimizer confuses those of a Pad that names its axes
    y_NHWC = graph("Pad", y_NHWC, graph("Concat", none, top, left, none, none, bottom, right, none, axis=0))
    for number, attention in enumerate(network.attentions):
        assert isinstance(attention, Attention)
        y_NHWC = _attention(graph, attention, y_NHWC, (N, P, Q), f"attentions.{number}")
    start = graph("Concat", top, left, axis=0)
    end = graph("Add", start, graph("Concat", h, w, axis=0))
    y_NHWC = graph("Slice", y_NHWC, start, end, graph.ints(1, 2))
    y = graph("Transpose", y_NHWC, perm=[0, 3, 1, 2])
    y = graph("Concat", *((x, y) if network.residual_first else (y, x)), axis=1)
    return _layer(graph, network.classifier, _layer(graph, network.fuse, y, "fuse"), "classifier")


def _margins(graph: Graph, whole: str, size: str) -> tuple[str, str]:
    """Zeros before and after that make a map whole blocks; as `isanet.attention.block_padding`."""
    missing = graph("Sub", whole, size)
    before = graph("Div", missing, graph.ints(2))
    return before, graph("Sub", missing, before)


def _layer(graph: Graph, module: nn.Module, x: str, name: str) -> str:
    match module:
        case Conv():
            return _conv(graph, module, x, name)
        case MaxPool():
            return graph(
                "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=int(module.ceil)
            )
        case AveragePool():
            # One more row and column, which do not count, are what ceil mode sees of odd sizes, and nothing of even
            # ones; OpenVINO's own ceil mode gives an empty map for one pixel
            return graph("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1], count_include_pad=0)
        case Block():
            shortcut = x
            for number, part in enumerate(module.shortcut):
                shortcut = _layer(graph, part, shortcut, f"{name}.shortcut.{number}")
            for number, part in enumerate(module.convs):
                last = number == len(module.convs) - 1
                assert isinstance(part, Conv)
                x = _conv(graph, part, x, f"{name}.convs.{number}", shortcut if last else "")
            return x
    raise AssertionError(f"{name} is a {type(module).__name__}")


def _conv(graph: Graph, conv: Conv, x: str, name: str, shortcut: str = "") -> str:
    parts = list(conv.weights)
    weight = graph.constant(torch.cat(parts, 1) if len(parts) > 1 else parts[0], f"{name}.weight")
    bias = graph.constant(conv.bias, f"{name}.bias")
    pads = [*conv.padding, *conv.padding]
    x = graph("Conv", x, weight, bias, strides=conv.stride, pads=pads, dilations=conv.dilation)
    x = graph("Add", x, shortcut) if shortcut else x
    return x if conv.slope is None else _relu(graph, x, conv.slope)


def _relu(graph: Graph, x: str, slope: float) -> str:
    return graph("LeakyRelu", x, alpha=slope) if slope else graph("Relu", x)


def _attention(graph: Graph, attention: Attention, x_NHWC: str, sizes: tuple[str, str, str], name: str) -> str:
    """(N, P*R, Q*S, C) -> the same."""
    N, P, Q = sizes
    C, D = attention.bias.shape[0], attention.query.shape[0]
    block, slope = graph.ints(attention.block_size), attention.slope

    def linear(x: str, part: str) -> str:
        weight, bias = getattr(attention, part), getattr(attention, f"{part}_bias")
        product = graph("MatMul", x, graph.constant(weight.T, f"{name}.{part}"))
        return graph("Add", product, graph.constant(bias, f"{name}.{part}_bias"))

    split = graph("Concat", N, P, block, Q, block, graph.ints(C), axis=0)
    x = graph("Transpose", graph("Reshape", x_NHWC, split), perm=attention.order)
    regrouped = graph("Shape", x)
    positions, blocks = graph.ints(attention.block_size**2), graph("Mul", P, Q)
    G, L = (positions, blocks) if attention.long_range else (blocks, positions)
    x_NGLC = graph("Reshape", x, graph("Concat", N, G, L, graph.ints(C), axis=0))
    first = attention.query.shape[1]
    query, key, value = graph.several("Split", linear(x_NGLC, "first"), graph.ints(first, first, C), outputs=3, axis=-1)
    query, key = (
        _relu(graph, linear(_relu(graph, x, slope), part), slope) for x, part in ((query, "query"), (key, "key"))
    )
    query = graph("Mul", query, graph.constant(np.float32(D**-0.5)))
    weights = graph("Softmax", graph("MatMul", query, graph("Transpose", key, perm=[0, 1, 3, 2])), axis=-1)
    # All of them. OpenVINO (2026.4) would compile attention as one kernel for the size of the first image, which after
    # an image of one block is wrong for larger ones
    weights = graph("Slice", weights, graph.ints(0), L, graph.ints(3))
    context = graph("Add", graph("MatMul", weights, value), graph.constant(attention.bias, f"{name}.bias"))
    x = graph("Reshape", _relu(graph, context, slope), regrouped)
    x = graph("Transpose", x, perm=[attention.order.index(dim) for dim in range(6)])
    return graph(
        "Reshape", x, graph("Concat", N, graph("Mul", P, block), graph("Mul", Q, block), graph.ints(C), axis=0)
    )
