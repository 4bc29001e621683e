"""A network's whole job as one ONNX graph: the image as it is goes in, the label of every pixel comes out.

Around the network stand the steps of `isanet.images.preprocess` and `isanet.inference.predict`, with the numbers of the
model. Positions and pixels are whole numbers throughout, which no runtime computes in half precision. Pixels stay below
2**24, and so do positions up to 2,896 pixels a side: they are exact even where a runtime divides by way of float32.

Shape legend as in `isanet.model`; H and W are those of the image, h and w of what the network sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from isanet.config import LogitsResize
from isanet.inference.fast.network import FastISANet
from isanet.inference.predict import last_resize
from isanet.inference.runtimes.graph import Graph, coarse_logits, tensor_type
from isanet.protocols import Protocol

MAX_SIDE = 4096
"""Of a resized image, in pixels: positions of longer ones need more than 32 bits, which OpenVINO does not have."""

_BITS = 2048  # the weights of OpenCV's resize have 11 bits


def whole_file(network: FastISANet, protocol: Protocol, metadata: dict[str, str]) -> Iterator[bytes]:
    """An ONNX file, in parts, from an image to its labels.

    "image" (H, W, 3) uint8 RGB -> "labels" (H, W), uint8 (int32 for K > 256).

    Args:
        network: In float32, of a model that has preprocessing.
        protocol: Whole images or windows; a single scale without flip.
        metadata: What the file says of itself.

    Raises:
        ValueError: The protocol has several scales, or flips, or images are resized to more than `MAX_SIDE`.
    """
    if protocol.scales != (1,) or protocol.flip:
        raise ValueError(
            f"a file of the whole job runs the network once for each image, and the protocol {protocol.name} is "
            f"{protocol.text}; export it without whole (--whole)"
        )
    sides = [network.config["preprocessing"].get(name) for name in ("short_edge", "long_edge", "pad_to")]
    if max([0, *(sides[:2] if sides[0] else ()), *(sides[2] or ())]) > MAX_SIDE:
        raise ValueError(
            f"a file of the whole job resizes to at most {MAX_SIDE:,} pixels a side; export it without whole"
        )
    graph = Graph()
    own, K = graph.sizes("image", 3)[:2], len(network.classes)
    images, content = _prepared(graph, network, own)
    size = graph.sizes(images, 4)[2:]
    how, pad_to = network.logits_resize, network.config["preprocessing"].get("pad_to")
    if protocol.window and protocol.stride:
        logits = _windows(graph, network, images, size, protocol.window, protocol.stride)
    else:
        logits = coarse_logits(graph, network, images)
        if protocol.framework != "sssegmentation" or pad_to or how == "asymmetric":  # else resized once
            logits = _resize_logits(graph, logits, size, how)
    if pad_to:
        logits = graph("Slice", logits, graph.ints(0, 0), graph("Concat", *content, axis=0), graph.ints(2, 3))
    logits = _resize_logits(graph, logits, own, last_resize(how, protocol, padded=bool(pad_to)))
    dtype = np.uint8 if K <= 256 else np.int32
    labels = graph("Squeeze", graph("ArgMax", logits, axis=1, keepdims=0), graph.ints(0))
    labels = graph("Cast", labels, to=tensor_type(dtype))
    return graph.file({"image": (np.uint8, ["H", "W", 3])}, {"labels": (labels, dtype, ["H", "W"])}, metadata)


# --- as isanet.images.preprocess


def _prepared(graph: Graph, network: FastISANet, own: list[str]) -> tuple[str, list[str]]:
    """The network's input (1, 3, h, w), and the size of what is not padding in it."""
    preprocessing = network.config["preprocessing"]
    short_edge, long_edge, pad_to = map(preprocessing.get, ("short_edge", "long_edge", "pad_to"))
    size = own
    if short_edge:
        size = _fit_edges(graph, size, short_edge, long_edge)
    if pad_to:
        size = _fit_inside(graph, size, pad_to)
    pixels = graph("Cast", "image", to=tensor_type(np.int32))
    if size is not own:
        pixels = _resize_pixels(graph, pixels, own, size)
    if preprocessing.get("channels") == "BGR":
        pixels = graph("Gather", pixels, graph.ints(2, 1, 0), axis=2)
    mean, std = (np.array(preprocessing[name], np.float64) for name in ("mean", "std"))
    x = graph("Sub", graph("Cast", pixels, to=tensor_type(np.float32)), graph.constant(mean.astype(np.float32)))
    x = graph("Transpose", graph("Mul", x, graph.constant((1 / std).astype(np.float32))), perm=[2, 0, 1])
    x = graph("Unsqueeze", x, graph.ints(0))
    if pad_to:
        missing = graph("Sub", graph.ints(*pad_to), graph("Concat", *size, axis=0))
        ends = graph("Concat", graph.ints(*[0] * 6), missing, axis=0)
        colors = ((np.array(preprocessing["pad_color"]) - mean) / std).astype(np.float32)
        channels = graph.several("Split", x, graph.ints(1, 1, 1), outputs=3, axis=1)
        padded = [
            graph("Pad", channel, ends, graph.constant(color)) for channel, color in zip(channels, colors, strict=True)
        ]
        x = graph("Concat", *padded, axis=1)
    return x, size


def _fit_edges(graph: Graph, size: list[str], short_edge: int, long_edge: int) -> list[str]:
    """`isanet.images.preprocess.target_size`, but that exact halves are always rounded up."""
    longer, shorter = graph("Max", *size), graph("Min", *size)
    by_long = graph(
        "LessOrEqual",
        graph("Mul", shorter, graph.ints(long_edge)),
        graph("Mul", longer, graph.ints(short_edge)),
    )
    numerator = graph("Where", by_long, graph.ints(long_edge), graph.ints(short_edge))
    return _times(graph, size, numerator, graph("Where", by_long, longer, shorter))


def _fit_inside(graph: Graph, size: list[str], pad_to: Sequence[int]) -> list[str]:
    """The largest size of the same shape in the padded one, where that is smaller."""
    (height, width), (most_rows, most_columns) = size, (graph.ints(side) for side in pad_to)
    by_height = graph(
        "LessOrEqual",
        graph("Mul", most_rows, width),
        graph("Mul", most_columns, height),
    )
    fits = graph("And", graph("LessOrEqual", height, most_rows), graph("LessOrEqual", width, most_columns))
    numerator = graph("Where", by_height, most_rows, most_columns)
    denominator = graph("Where", by_height, height, width)
    return _times(
        graph, size, graph("Where", fits, graph.ints(1), numerator), graph("Where", fits, graph.ints(1), denominator)
    )


def _times(graph: Graph, size: list[str], numerator: str, denominator: str) -> list[str]:
    """A size times a fraction, rounded half up, at least 1."""
    scaled = []
    for side in size:
        product = graph("Mul", side, numerator)
        rest = graph("Mul", graph("Mod", product, denominator), graph.ints(2))
        rounded = graph("Add", graph("Div", product, denominator), graph("Div", rest, denominator))
        scaled.append(graph("Max", rounded, graph.ints(1)))
    return scaled


def _resize_pixels(graph: Graph, pixels: str, own: list[str], size: list[str]) -> str:
    """`isanet.images.preprocess.resize`: (H, W, 3) int32 -> (h, w, 3)."""
    (top, bottom, bottom_weight), (left, right, right_weight) = (
        _taps(graph, length, target) for length, target in zip(own, size, strict=True)
    )
    # At the border, one pixel has all the weight horizontally; vertically its row is read twice
    right_weight = graph("Where", graph("Equal", left, right), graph.ints(0), right_weight)
    whole = graph.constant(np.int32(_BITS))
    down, across = (graph("Cast", weight, to=tensor_type(np.int32)) for weight in (bottom_weight, right_weight))
    down = graph("Unsqueeze", down, graph.ints(1, 2))
    across = graph("Unsqueeze", across, graph.ints(1))

    def divided(x: str, by: int) -> str:
        return graph("Div", x, graph.constant(np.int32(by)))

    def rows(y: str, weight: str) -> str:
        picked = graph("Gather", pixels, y, axis=0)
        first, second = (graph("Gather", picked, x, axis=1) for x in (left, right))
        row = divided(graph("Add", graph("Mul", first, graph("Sub", whole, across)), graph("Mul", second, across)), 16)
        # row * weight // 2**16, in two parts that stay below 2**24
        high = divided(row, 256)
        low = graph("Sub", row, graph("Mul", high, graph.constant(np.int32(256))))
        return divided(graph("Add", graph("Mul", high, weight), divided(graph("Mul", low, weight), 256)), 256)

    both = graph("Add", rows(top, graph("Sub", whole, down)), rows(bottom, down))
    return divided(graph("Add", both, graph.constant(np.int32(2))), 4)


def _taps(graph: Graph, length: str, target: str) -> tuple[str, str, str]:
    """For each of `target` positions: the two positions of `length`, and the weight of the second, of 2048.

    Position x lies at (2x + 1) length / (2 target) - 1/2. Its whole part and its rest are found apart, as the product
    could be too large. OpenCV has it in float32, so its rest is rounded to the bits which that leaves, and then to 11.
    """
    one, two = graph.ints(1), graph.ints(2)
    zero, limit, step = (graph.constant(np.int64(0)), graph("Squeeze", target), graph.constant(np.int64(1)))
    odd = graph("Add", graph("Mul", graph("Range", zero, limit, step), two), one)
    rest = graph("Mul", odd, graph("Mod", length, target))
    # Twice the position, and 2 more so that nothing is negative, is `halves` + rest % target / target
    halves = graph(
        "Add", graph("Mul", odd, graph("Div", length, target)), graph("Add", graph("Div", rest, target), one)
    )
    second, last = graph("Div", halves, two), graph("Sub", length, one)
    first = graph("Sub", second, one)
    both = graph("Mul", target, two)
    share = graph("Add", graph("Mul", graph("Mod", halves, two), target), graph("Mod", rest, target))  # of `both`
    share = graph("Mul", share, graph.ints(_BITS))
    powers = np.arange(2, 13)
    doublings = graph("GreaterOrEqual", graph("Unsqueeze", first, one), graph.constant(2**powers))
    doublings = graph("ReduceSum", graph("Cast", doublings, to=tensor_type(np.int64)), one, keepdims=0)
    # Steps that float32 has in a weight
    finer = graph("Gather", graph.constant(2 ** (12 - np.arange(1, 13))), doublings)
    steps = _rounded(graph, graph("Mul", graph("Mod", share, both), finer), both, None)
    weight = _rounded(graph, steps, finer, graph("Div", share, both))
    first = graph("Min", graph("Max", first, graph.ints(0)), last)
    return first, graph("Min", second, last), weight


def _rounded(graph: Graph, numerator: str, denominator: str, whole: str | None) -> str:
    """A fraction, plus a whole number, rounded to the nearest; halves to even."""
    quotient = graph("Div", numerator, denominator)
    total = quotient if whole is None else graph("Add", quotient, whole)
    twice = graph("Mul", graph("Mod", numerator, denominator), graph.ints(2))
    is_odd = graph("Mod", total, graph.ints(2))
    up = graph("Greater", graph("Add", twice, is_odd), denominator)
    return graph("Add", total, graph("Cast", up, to=tensor_type(np.int64)))


# --- as isanet.inference.predict


def _resize_logits(graph: Graph, logits: str, size: Sequence[str], how: LogitsResize) -> str:
    """`isanet.model.resize_logits`."""
    sizes = graph("Concat", *graph.sizes(logits, 4)[:2], *size, axis=0)
    coordinates = {"half_pixel": "half_pixel", "corners": "align_corners", "asymmetric": "asymmetric"}[how]
    return graph("Resize", logits, "", "", sizes, mode="linear", coordinate_transformation_mode=coordinates)


def _windows(
    graph: Graph, network: FastISANet, images: str, size: list[str], window: tuple[int, int], stride: tuple[int, int]
) -> str:
    """Logits (1, K, h, w) of overlapping windows, which go through the network together, averaged."""
    axes = [_Axis(graph, *each) for each in zip(size, window, stride, strict=True)]
    for dim, axis in zip((2, 4), axes, strict=True):
        images = graph(
            "Gather", images, graph("Add", graph("Unsqueeze", axis.starts, graph.ints(1)), axis.inside), axis=dim
        )
    # Rows of windows, columns of windows, 1, 3, and theirs
    images = graph("Transpose", images, perm=[2, 4, 0, 1, 3, 5])
    sides = [axis.length for axis in axes]
    images = graph("Reshape", images, graph("Concat", graph.ints(-1, 3), *sides, axis=0))
    logits = _resize_logits(graph, coarse_logits(graph, network, images), sides, network.logits_resize)
    (rows, height), (columns, width) = ((axis.count, axis.length) for axis in axes)
    K = graph.ints(len(network.classes))
    logits = graph("Reshape", logits, graph("Concat", rows, columns, K, height, width, axis=0))
    logits = graph("Transpose", logits, perm=[2, 0, 3, 1, 4])
    sizes = graph("Concat", graph.ints(1), K, graph("Mul", rows, height), graph("Mul", columns, width), axis=0)
    logits = graph("Reshape", logits, sizes)
    for dim, axis in zip((2, 3), axes, strict=True):
        parts = [
            graph(
                "Mul",
                graph("Gather", logits, index, axis=dim),
                graph("Unsqueeze", share, graph.ints(1)) if dim == 2 else share,
            )
            for index, share in axis.shares()
        ]
        logits = reduce(lambda total, part: graph("Add", total, part), parts)
    return logits


class _Axis:
    """Windows along one axis, as `isanet.inference.predict.window_starts` places them."""

    def __init__(self, graph: Graph, size: str, window: int, stride: int) -> None:
        self.graph, self.size, self.stride = graph, size, graph.ints(stride)
        self.most = -(-window // stride) + 1  # windows that a position may lie in: the last one is shifted back
        self.length = graph("Min", graph.ints(window), size)
        beyond = graph("Max", graph("Sub", size, graph.ints(window - stride + 1)), graph.ints(0))
        self.count = graph("Add", graph("Div", beyond, self.stride), graph.ints(1))
        self.starts = graph("Min", graph("Mul", self._range(self.count), self.stride), graph("Sub", size, self.length))
        self.inside = self._range(self.length)

    def _range(self, count: str) -> str:
        zero, one = (self.graph.constant(np.int64(number)) for number in (0, 1))
        return self.graph("Range", zero, self.graph("Squeeze", count), one)

    def shares(self) -> list[tuple[str, str]]:
        """For each of the windows that a position may lie in: where it is among all of them, and its share there."""
        graph, x = self.graph, self._range(self.size)
        zero, one = graph.ints(0), graph.ints(1)
        first = graph("Max", graph("Add", graph("Sub", x, self.length), self.stride), zero)
        first, last = graph("Div", first, self.stride), graph("Sub", self.count, one)
        found, inside = [], []
        for number in range(self.most):
            window = graph("Add", first, graph.ints(number))
            is_one = graph("LessOrEqual", window, last)
            window = graph("Min", window, last)
            position = graph("Sub", x, graph("Gather", self.starts, window))
            covers = graph("And", graph("GreaterOrEqual", position, zero), graph("Less", position, self.length))
            inside.append(graph("Cast", graph("And", is_one, covers), to=tensor_type(np.float32)))
            position = graph("Min", graph("Max", position, zero), graph("Sub", self.length, one))
            found.append(graph("Add", graph("Mul", window, self.length), position))
        total = reduce(lambda total, each: graph("Add", total, each), inside)
        return [(index, graph("Div", each, total)) for index, each in zip(found, inside, strict=True)]
