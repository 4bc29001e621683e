"""Exported models: .onnx and .xml files as `isanet.export` writes them, checked before a runtime sees them.

A runtime is a large program in C++ that trusts its files: it follows the names of other files in them, loads custom
operators, and allocates what they declare. So a file is read once, here, and refused unless it has only the operators
of a network, all weights inside and of the size that they declare, numbers of a moderate size, and a graph without
circles. What remains are the bytes that were checked.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from isanet._files import given_path, looks_like
from isanet._text import clean, listed, shortened
from isanet.config import ISANetConfig, LogitsResize
from isanet.errors import CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError
from isanet.weights.checkpoint import read_file, unique_keys
from isanet.weights.url import is_address

if TYPE_CHECKING:
    import onnx

SUFFIXES = (".onnx", ".xml")

ONNX_OPERATORS = """
    Add AveragePool Cast Clip Concat Constant ConstantOfShape Conv DequantizeLinear Div Expand Gather Gemm
    GlobalAveragePool Identity LeakyRelu MatMul Max MaxPool Min Mod Mul Pad QuantizeLinear Relu Reshape Shape Slice
    Softmax Split Squeeze Sub Transpose Unsqueeze
"""
IR_OPERATORS = """
    Add AvgPool Broadcast Clamp Concat Const Convert Convolution Divide FakeConvert FakeQuantize Floor FloorMod Gather
    Identity MatMul MaxPool Maximum Minimum Mod Multiply PReLU Pad Parameter ReLU ReduceMean Reshape Result
    ScatterElementsUpdate ShapeOf Slice SoftMax Softmax Split Squeeze StridedSlice Subtract Transpose Unsqueeze
    VariadicSplit
"""
"""What a network is made of, quantized or not; nothing that loops, keeps a state or reads."""

MAX_BYTES, MAX_XML_BYTES = 2**31 - 1, 32 << 20
MAX_METADATA = 1 << 20
MAX_NODES = 20_000
MAX_NUMBER = 1 << 20
"""Largest whole number in a graph, such as a size or a margin."""

_MAX_DEPTH, _MAX_ELEMENTS = 16, 1_000_000  # of XML; 7 and 60,000 were seen
_AGAIN = "export the model again by isanet.export"
_IR_TYPES = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i64": np.int64, "i32": np.int32,
    "i16": np.int16, "i8": np.int8, "u64": np.uint64, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8,
    "boolean": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """What an exported file says of its model; it has the attributes of an `isanet.ISANet`, but no network.

    Attributes:
        path: The file.
        config, provenance: As of an ISANet, and so are the following but the last two.
        precision: Of its weights: "float32", "float16" or "int8".
        sha256: Of the file, and of the weights beside an .xml.
    """

    path: Path
    config: dict[str, Any]
    provenance: dict[str, str]
    precision: str
    sha256: str
    classes: tuple[str, ...] = field(init=False)
    palette: tuple[tuple[int, int, int], ...] = field(init=False)
    label_space: str | None = field(init=False)
    preprocessing: dict[str, Any] = field(init=False)
    protocol: str = field(init=False)
    logits_resize: LogitsResize = field(init=False)

    def __post_init__(self) -> None:
        checked = ISANetConfig(**self.config)
        values = checked.to_dict()
        if not values["preprocessing"]:
            raise ValueError("it does not say how images are prepared")
        object.__setattr__(self, "config", values)
        object.__setattr__(self, "classes", tuple(checked.classes))
        object.__setattr__(self, "palette", tuple((red, green, blue) for red, green, blue in checked.palette))
        for name in ("label_space", "preprocessing", "protocol", "logits_resize"):
            object.__setattr__(self, name, values[name])

    def content(self) -> tuple[bytes, NDArray[np.uint8] | None]:
        """The bytes of the file, and of the weights beside an .xml.

        Raises:
            CheckpointMismatchError: They are not those that were checked.
        """
        graph, weights, digest = _read(self.path)
        if digest != self.sha256:
            raise CheckpointMismatchError(f"{self.path} was changed since it was loaded: make a new Segmenter of it")
        return graph, weights


def is_exported(model: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether it is the path of a file that `read_exported` is for, by its ending."""
    return (
        isinstance(model, str | os.PathLike)
        and not is_address(model)
        and os.path.splitext(os.fspath(model))[1].lower() in SUFFIXES  # noqa: PTH122  Path's fails on some names
    )


def read_exported(source: str | os.PathLike[str]) -> ExportedModel:
    """Read and check an exported file; see the head of this file.

    Args:
        source: An .onnx; or an .xml, with its weights in a .bin of the same name beside it.

    Raises:
        ValueError: There is no such file, or a package is missing that reads it.
        CheckpointFormatError: It is not what its ending says, damaged, or not of `isanet.export`.
        UnsafeCheckpointError: It asks for more than a network needs; nothing of it was run.
        CheckpointMismatchError: Weights are not finite, or are others than the file or its metadata say.
    """
    path = given_path(os.path.expanduser(os.fspath(source)), CheckpointFormatError)  # noqa: PTH111  as in from_pretrained
    if not os.path.lexists(path):
        raise ValueError(f"there is no file {str(path)!r}")
    graph, weights, digest = _read(path)
    try:
        metadata, num_classes = _check_onnx(graph) if weights is None else _check_ir(graph, weights)
        model = _described(path, metadata, digest)
    except (CheckpointFormatError, UnsafeCheckpointError, CheckpointMismatchError) as error:
        raise type(error)(f"{path}: {clean(str(error))}") from error
    if num_classes != len(model.classes):
        raise CheckpointMismatchError(
            f"{path}: its metadata name {len(model.classes)} classes, and its network has {num_classes}; {_AGAIN}"
        )
    return model


def _read(path: Path) -> tuple[bytes, NDArray[np.uint8] | None, str]:
    """The content of a file, of the weights beside an .xml, and a hash of both."""
    is_ir = path.suffix.lower() == ".xml"
    beside = path.with_suffix(".bin")
    try:
        file = read_file(path, MAX_XML_BYTES if is_ir else MAX_BYTES)
        weights = read_file(beside, MAX_BYTES) if is_ir else None
    except FileNotFoundError as error:
        raise CheckpointFormatError(
            f"{path}: its weights, {beside.name}, are not beside it; copy both files, or {_AGAIN}"
        ) from error
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror}") from error
    return file.data.tobytes(), weights and weights.data, file.sha256 + (weights.sha256 if weights else "")


def _described(path: Path, metadata: Mapping[str, str], digest: str) -> ExportedModel:
    if metadata.get("precision") not in ("float32", "float16", "int8"):
        raise CheckpointFormatError(f"its metadata have no precision of its weights; {_AGAIN}")
    try:
        config, provenance = (_object(metadata.get(key, "{}")) for key in ("config", "provenance"))
        texts = {name: text for name, text in provenance.items() if isinstance(text, str)}
        return ExportedModel(path, config, texts, metadata["precision"], digest)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise CheckpointFormatError(
            f"its metadata are not those of an ISANet: {shortened(str(error), 300)}; {_AGAIN}"
        ) from error


def _check_purpose(metadata: Mapping[str, str]) -> None:
    if "config" not in metadata:
        raise CheckpointFormatError(
            "not exported by isanet: it has no metadata of a model; run it by the runtime itself, or export a model by "
            "isanet.export"
        )
    if metadata.get("whole") == "true":
        raise CheckpointFormatError(
            "it does the whole job, from the image to its labels, so a Segmenter has nothing to add: run it by the "
            "runtime itself, or export the model without whole (--whole)"
        )


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_METADATA:
        raise ValueError(f"{len(text):,} characters; none has over {MAX_METADATA:,}")
    value = json.loads(text, object_pairs_hook=unique_keys)
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def _check_array(name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CheckpointMismatchError(f"{name} has values that are not finite: it is damaged, or was not trained")
    if array.dtype in (np.int64, np.uint64) and array.size and max(-int(array.min()), int(array.max())) > MAX_NUMBER:
        raise UnsafeCheckpointError(f"{name} has numbers above {MAX_NUMBER:,}: no network has such sizes")


def _check_operators(operators: Iterable[str], known: str) -> None:
    names = list(operators)
    if unknown := sorted({*names} - {*known.split()}):
        raise UnsafeCheckpointError(f"it has operators that are not of a network: {listed(map(shortened, unknown))}")
    if not 0 < len(names) <= MAX_NODES:
        raise UnsafeCheckpointError(f"it has {len(names):,} nodes; a network has up to {MAX_NODES:,}, and at least one")


# --- ONNX


def _check_onnx(content: bytes) -> tuple[dict[str, str], int]:
    """The metadata, and the number of classes, of an ONNX model that is safe to load."""
    from isanet.inference.runtimes.packages import check_installed

    check_installed("onnx", "onnxruntime")
    import onnx

    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's own
        raise CheckpointFormatError(f"not an ONNX file: it looks like {looks_like(content[:4096])}") from error
    if not (model.graph.node and model.graph.output and model.opset_import):
        raise CheckpointFormatError(f"not an ONNX file: it looks like {looks_like(content[:4096])}")
    graph = model.graph
    texts: list[str | bytes] = [each.name for each in (*graph.initializer, *graph.input, *graph.output)]
    for node in graph.node:
        texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
        texts += [text for each in node.attribute for text in (each.name, each.ref_attr_name)]
    texts += [text for each in model.metadata_props for text in (each.key, each.value)]
    if any(isinstance(text, bytes) for text in (*texts, *(each.domain for each in model.opset_import))):
        raise CheckpointFormatError(f"damaged: it has names that are not text; {_AGAIN}")
    metadata = {each.key: each.value for each in model.metadata_props}
    _check_purpose(metadata)
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise UnsafeCheckpointError("it has functions, training steps or sparse tensors, which no network needs")
    if domains := {each.domain for each in (*model.opset_import, *graph.node)} - {"", "ai.onnx"}:
        raise UnsafeCheckpointError(f"it has custom operators, of {listed(map(shortened, sorted(domains)))}")
    _check_operators((node.op_type for node in graph.node), ONNX_OPERATORS)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    known = {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    for node in graph.node:
        for attribute in node.attribute:
            _check_attribute(node, attribute)
        if missing := [name for name in node.input if name not in known]:
            raise CheckpointFormatError(f"damaged: {shortened(missing[0])} is used and not computed before; {_AGAIN}")
        known |= {*node.output}
    return metadata, _check_values(graph)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    from onnx import TensorProto, helper, numpy_helper

    name = shortened(tensor.name or "a constant")
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        raise UnsafeCheckpointError(f"{name} is said to lie in another file, which is not read; export into one file")
    try:
        itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        numbers = tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data
        size, values = math.prod(tensor.dims), sum(map(len, numbers))
        if min(tensor.dims, default=0) < 0 or tensor.string_data or tensor.HasField("segment"):
            raise ValueError("it has a negative size, or is no whole array of numbers")
        if (len(tensor.raw_data) != size * itemsize) if not values else (values != size or tensor.raw_data):
            raise ValueError(f"{size:,} values are declared, and there are others")
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # KeyError, TypeError, ...: it is onnx that reads
        raise CheckpointFormatError(f"damaged: {name}: {shortened(str(error), 100)}; {_AGAIN}") from error
    _check_array(name, np.asarray(array))


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    if attribute.HasField("t"):
        _check_tensor(attribute.t)
    others = attribute.g, attribute.tp, attribute.sparse_tensor
    if (
        any(other.ByteSize() for other in others)
        or attribute.tensors
        or attribute.graphs
        or attribute.type_protos
        or attribute.sparse_tensors
        or attribute.ref_attr_name
    ):
        raise UnsafeCheckpointError(f"{shortened(node.name)} has a part that no network needs")
    if max(map(abs, (attribute.i, *attribute.ints))) > MAX_NUMBER:
        raise UnsafeCheckpointError(f"{shortened(node.name)} has numbers above {MAX_NUMBER:,}: no network has")


def _check_values(graph: onnx.GraphProto) -> int:
    """The number of classes, if images go in and logits come out."""
    values = [(value.name, value.type.tensor_type) for value in (*graph.input, *graph.output)]
    shapes = [[size.dim_value for size in kind.shape.dim] for _, kind in values]
    if (
        [name for name, _ in values] != ["images", "logits"]
        or any(kind.elem_type != 1 for _, kind in values)  # float32
        or [len(shape) for shape in shapes] != [4, 4]
        or shapes[0][1] != 3
    ):
        raise CheckpointFormatError("not exported by isanet: it is not from images (N, 3, H, W) to logits, in float32")
    return int(shapes[1][1])


# --- OpenVINO's IR


class _Tree(ElementTree.TreeBuilder):
    """A tree whose depth and size are bounded: runtimes walk through it recursively."""

    depth = elements = 0

    def start(self, tag: Any, attrs: Any, /) -> Any:
        self.depth, self.elements = self.depth + 1, self.elements + 1
        if self.depth > _MAX_DEPTH or self.elements > _MAX_ELEMENTS:
            raise UnsafeCheckpointError("it is nested deeper, or has more elements, than any network")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Any:
        self.depth -= 1
        return super().end(tag)


def _xml(content: bytes) -> ElementTree.Element:
    if b"<!" in content:
        raise UnsafeCheckpointError("it declares entities or has comments, which no exported file has")
    try:
        content.decode()
        parser = ElementTree.XMLParser(target=_Tree(), encoding="utf-8")  # noqa: S314  nothing is declared
        parser.feed(content)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        if isinstance(error, UnsafeCheckpointError):
            raise
        what = looks_like(content[:4096])
        reason = "damaged" if content.startswith(b"<?xml") else f"it looks like {what}"
        raise CheckpointFormatError(f"not an XML file: {reason} ({error}); {_AGAIN}") from error
    if root.tag != "net":
        raise CheckpointFormatError(f"not a network of OpenVINO, but XML of {shortened(root.tag)!r}")
    return root


def _check_ir(content: bytes, weights: NDArray[np.uint8]) -> tuple[dict[str, str], int]:
    """The metadata, and the number of classes, of an IR that is safe to load."""
    root = _xml(content)
    info = root.find("rt_info/isanet")
    metadata = {} if info is None else {each.tag: each.get("value", "") for each in info}
    _check_purpose(metadata)
    layers = root.findall("layers/layer")
    _check_operators((layer.get("type", "") for layer in layers), IR_OPERATORS)
    if len(list(root.iter("layer"))) != len(layers) or any(
        not re.fullmatch(r"opset\d{1,2}", layer.get("version", "")) for layer in layers
    ):
        raise UnsafeCheckpointError("it has networks in its network, or custom operators")
    end = 0
    for layer in layers:
        data = layer.find("data")
        attributes = {} if data is None else data.attrib
        if layer.get("type") == "Const":
            end = max(end, _check_constant(layer.get("name", ""), attributes, weights))
        elif any(int(number) > MAX_NUMBER for text in attributes.values() for number in re.findall(r"\d{7,}", text)):
            raise UnsafeCheckpointError(f"{shortened(layer.get('name', ''))} has numbers above {MAX_NUMBER:,}")
    if end != len(weights):
        raise CheckpointMismatchError(
            f"the .bin beside it has {len(weights):,} bytes, and {end:,} are its weights: it is of another file, or "
            f"damaged; copy both files, or {_AGAIN}"
        )
    _check_edges(root, layers)
    return metadata, _check_ends(layers)


def _check_constant(name: str, attributes: Mapping[str, str], weights: NDArray[np.uint8]) -> int:
    """Where a constant ends in the weights."""
    name = shortened(name)
    try:
        offset, size = (int(attributes[key]) for key in ("offset", "size"))
        shape = [int(side) for side in attributes["shape"].split(",") if side.strip()]
        dtype = np.dtype(_IR_TYPES[attributes["element_type"]])
        if min(offset, *shape, 0) < 0 or size != math.prod(shape) * dtype.itemsize or offset + size > len(weights):
            raise ValueError("its size is wrong, or it lies outside of the .bin file")
    except (KeyError, ValueError) as error:
        reason = shortened(str(error), 100)
        raise CheckpointFormatError(
            f"damaged, or the .bin beside it is too short: {name}: {reason}; {_AGAIN}"
        ) from error
    _check_array(name, np.frombuffer(weights.data, dtype, math.prod(shape), offset))
    return offset + size


def _check_edges(root: ElementTree.Element, layers: list[ElementTree.Element]) -> None:
    ids = [layer.get("id", "") for layer in layers]
    edges = [(edge.get("from-layer", ""), edge.get("to-layer", "")) for edge in root.findall("edges/edge")]
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for start, end in edges:
        sorter.add(end, start)
    try:
        sorter.prepare()
    except CycleError as error:
        raise UnsafeCheckpointError("its network goes in a circle") from error
    if len({*ids}) != len(ids) or not {place for edge in edges for place in edge} <= {*ids}:
        raise CheckpointFormatError(f"damaged: its layers or edges are not those of a network; {_AGAIN}")


def _check_ends(layers: list[ElementTree.Element]) -> int:
    """The number of classes, if images go in and logits come out."""
    inputs = [layer for layer in layers if layer.get("type") == "Parameter"]
    results = [layer for layer in layers if layer.get("type") == "Result"]
    data = inputs[0].find("data") if inputs else None
    sizes = [size.text or "" for size in results[0].findall("input/port/dim")] if results else []
    if (
        [layer.get("name") for layer in inputs] != ["images"]
        or len(results) != 1
        or data is None
        or data.get("shape", "").replace(" ", "") != "?,3,?,?"
        or data.get("element_type") != "f32"
        or len(sizes) != 4
        or not sizes[1].isdecimal()
    ):
        raise CheckpointFormatError("not exported by isanet: it is not from images (N, 3, H, W) to logits, in float32")
    return int(sizes[1])
