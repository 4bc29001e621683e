"""The arguments of `isanet.ISANet`: declared, documented and checked here, and nowhere else.

Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from isanet.labels import LABEL_SPACES
from isanet.protocols import PROTOCOLS


class Blocks(NamedTuple):
    """The blocks of a ResNet.

    Attributes:
        expansion: Output channels of a block, in multiples of its inner width: 4 of bottlenecks, 1 of basic blocks.
        counts: Blocks in each of the four stages.
    """

    expansion: int
    counts: tuple[int, int, int, int]


BACKBONES: dict[str, Blocks] = {
    "resnet14": Blocks(4, (1, 1, 1, 1)),
    "resnet18": Blocks(1, (2, 2, 2, 2)),
    "resnet26": Blocks(4, (2, 2, 2, 2)),
    "resnet50": Blocks(4, (3, 4, 6, 3)),
    "resnet101": Blocks(4, (3, 4, 23, 3)),
}
"""A depth counts three convolutions a bottleneck, two a basic block, and two more."""

LogitsResize = Literal["half_pixel", "corners", "asymmetric"]
"""How logits are resized to an image, bilinearly; see `isanet.model.resize_logits`."""

MAX_INPUT_PIXELS = 2**25
"""Most pixels of a preprocessed image that a configuration may ask for: they need about a gigabyte."""

MAX_EDGE = 2**14
"""Longest edge in pixels to which a configuration may resize or pad images; the published models have 2049."""

MAX_BLOCK = 128
"""Largest block, in positions along an axis: 1024 pixels. A map is padded to whole blocks, so it bounds memory too."""

MAX_CLASSES = 4096
"""The largest known label space, ADE20K-Full, has 3,688. Time and memory of an image grow with the classes, which cost
a file only a few numbers each: 65,536 in 5 MB kept one image of 512 x 512 busy for over 40 seconds.
"""

ATTENTIONS = ("long_range", "short_range")
"""The two groupings of interlaced attention, in the order of all published models."""

_DERIVED: Any = None  # the default of what is derived from other arguments


@dataclass(frozen=True, kw_only=True)
class ISANetConfig:
    """The arguments of one ISANet, checked; plain values that survive JSON.

    Published ISANets differ as networks, and every difference is an argument.

    Args:
        num_classes: K, the number of classes; may be left out if `classes` is given.
        backbone: A key of `BACKBONES`.
        width: Inner width of the first stage; 64 in all published models, fewer make a small network.
        stem_channels: Channels of the stem's three convolutions; half, half and all of `width` if left out. 64, 64 and
            128 in openseg.pytorch.
        maxpool_ceil: Whether the stem's pooling is in ceil mode (openseg.pytorch): an axis of 8n or 8n - 1 pixels has
            n + 1 positions then, n otherwise.
        full_dilation: Whether the first block of a dilated stage has all of its dilation (PaddleSeg), not half.
        average_pool_shortcut: Whether the shortcut of a block of stride 2 averages 2x2 positions before a 1x1
            convolution (PaddleSeg's ResNet-vd), which has the stride itself otherwise.
        head_channels: Channels of the attention and of the fused map.
        key_channels: Channels of keys and queries.
        aux_channels: Hidden channels of the auxiliary head: 512 (sssegmentation), 256 (mmsegmentation) or 64 (BPKD).
        leaky_slope: Slope below zero of the activations of both heads: 0 is ReLU, 0.01 openseg.pytorch's InPlaceABN.
        value_bias: Whether the value projection has a bias (mmsegmentation).
        fusion_kernel: Kernel size of the convolution over context and residual: 3 (sssegmentation) or 1.
        residual_first: Concatenate `[residual, context]` (openseg.pytorch), not `[context, residual]`.
        logits_resize: How logits are resized: "half_pixel"; "corners" aligned (mmsegmentation's 769x769 models,
            openseg.pytorch, PaddleSeg's for VOC); or "asymmetric" (PaddleSeg's for Cityscapes).
        block_size: Positions of a block along each axis.
        attention_order: One or both of `ATTENTIONS`, in the order in which they are applied; each of them has weights
            only if it is named.
        dropout: Probability of dropping a channel before each classifier, in training.
        gradient_checkpointing: In training, keep only the borders of blocks for the backward pass: less memory,
            about a third more time, the same gradients.
        classes: Names of the classes; "class 0", "class 1", ... if left out.
        palette: One (red, green, blue) of 0..255 for each class; a gray ramp if left out.
        label_space: Name of the known label space of exactly these classes, a key of `isanet.labels.LABEL_SPACES`.
        preprocessing: Arguments of `isanet.images.preprocess.preprocess`; see `check_preprocessing`.
        protocol: The protocol that the model is meant for, by which its figure was measured: a key of
            `isanet.protocols.PROTOCOLS`.

    Raises:
        ValueError: An argument is out of its range, or two contradict each other.
        TypeError: An unknown argument.
    """

    num_classes: int = _DERIVED
    backbone: str = "resnet50"
    width: int = 64
    stem_channels: Sequence[int] = _DERIVED
    maxpool_ceil: bool = False
    full_dilation: bool = False
    average_pool_shortcut: bool = False
    head_channels: int = 512
    key_channels: int = 256
    aux_channels: int = 512
    leaky_slope: float = 0.0
    value_bias: bool = False
    fusion_kernel: int = 3
    residual_first: bool = False
    logits_resize: LogitsResize = "half_pixel"
    block_size: int = 8
    attention_order: Sequence[str] = ATTENTIONS
    dropout: float = 0.1
    gradient_checkpointing: bool = False
    classes: Sequence[str] = _DERIVED
    palette: Sequence[Sequence[int]] = _DERIVED
    label_space: str | None = None
    preprocessing: Mapping[str, Any] | None = None
    protocol: str = "whole"

    def __post_init__(self) -> None:
        self._check_classes()
        self._check_architecture()

    def _check_classes(self) -> None:
        """Check the arguments about the classes, and derive what is left out."""
        count, names, palette = self.num_classes, self.classes, self.palette
        if count is None and names is None:
            raise ValueError("ISANet needs num_classes or classes")
        if isinstance(names, str):
            raise ValueError(f"classes must be a list of names, not the single text {names!r}")
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(f"num_classes must be a whole number from 1 to {MAX_CLASSES}, got {count!r}")
        check_class_count(len(names or ()) if count is None else count)
        names = numbered_classes(count or 0) if names is None else list(names)
        count = len(names) if count is None else count
        if not all(isinstance(name, str) for name in (*names, self.backbone, self.protocol, self.label_space or "")):
            raise ValueError("classes, backbone, protocol and label_space must be texts")
        if not 1 <= len(names) == count or len(set(names)) != count:
            what = "classes" if len(names) == count else f"num_classes={count} contradicts classes, which"
            raise ValueError(f"{what} must be {count} different names, got {len(names)}: {', '.join(names)}")
        space = LABEL_SPACES.get(self.label_space or "")
        if self.label_space is not None and (space is None or list(space.classes) != names):
            known = ", ".join(LABEL_SPACES)
            raise ValueError(
                f"label_space {self.label_space!r} is not that of the classes; it is one of {known}, or none"
            )
        if palette is None:
            palette = [(i * 255 // max(count - 1, 1),) * 3 for i in range(count)]
        colors = [[int(red), int(green), int(blue)] for red, green, blue in palette]
        if len(colors) != count or any(not 0 <= value <= 255 for color in colors for value in color):
            raise ValueError(f"palette must be {count} colors of three values 0..255, got {len(colors)}")
        for field, value in (("num_classes", count), ("classes", names), ("palette", colors)):
            object.__setattr__(self, field, value)

    def _check_architecture(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone!r}; known are {', '.join(BACKBONES)}")
        if self.stem_channels is None and type(self.width) is int:
            object.__setattr__(self, "stem_channels", [self.width // 2, self.width // 2, self.width])
        stem = self.stem_channels if isinstance(self.stem_channels, list | tuple) else []
        channels = (self.width, *stem, self.head_channels, self.key_channels, self.aux_channels)
        sizes = (*channels, self.fusion_kernel, self.block_size)
        if len(stem) != 3 or any(type(size) is not int for size in sizes):
            raise ValueError(
                f"width, three stem_channels, channel counts, fusion_kernel and block_size must be whole numbers, got "
                f"{sizes}"
            )
        flags = [self.value_bias, self.residual_first, self.gradient_checkpointing, self.maxpool_ceil]
        flags += [self.full_dilation, self.average_pool_shortcut]
        if any(type(flag) is not bool for flag in flags) or not 0 <= self.dropout <= 1:
            raise ValueError(f"flags must be true or false and dropout from 0 to 1, got {flags} and {self.dropout!r}")
        if type(self.leaky_slope) not in (int, float) or not 0 <= self.leaky_slope < 1:
            raise ValueError(f"leaky_slope must be from 0 (ReLU) to below 1, got {self.leaky_slope!r}")
        if self.logits_resize not in get_args(LogitsResize):
            raise ValueError(f"logits_resize must be {', '.join(get_args(LogitsResize))}, got {self.logits_resize!r}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        order = self.attention_order
        if not isinstance(order, list | tuple) or tuple(order) not in (ATTENTIONS, ATTENTIONS[::-1], *zip(ATTENTIONS)):
            raise ValueError(f"attention_order must be a list of {' and '.join(ATTENTIONS)}, or of one, got {order!r}")
        if self.fusion_kernel < 1 or self.fusion_kernel % 2 != 1:
            raise ValueError(f"fusion_kernel must be a positive odd number, got {self.fusion_kernel}")
        if self.preprocessing is not None and (wanted := check_preprocessing(self.preprocessing)):
            raise ValueError(f"preprocessing must have {wanted}, got {self.preprocessing!r}")
        given, scales = self.preprocessing or {}, PROTOCOLS[self.protocol].scales
        sides = (given.get("short_edge", 0), given.get("long_edge", 0)), given.get("pad_to", (0, 0))
        pixels = max(map(math.prod, sides)) * sum(scale * scale for scale in scales)
        if pixels > MAX_INPUT_PIXELS:
            raise ValueError(
                f"preprocessing asks for {pixels:,.0f} pixels at the scales of {self.protocol}, which is more than "
                f"{MAX_INPUT_PIXELS:,}"
            )
        if self.width % 2 or min(*channels, self.block_size) < 1:
            raise ValueError("width must be even, and all channel counts and block_size positive")
        if (block := self.block_size) > MAX_BLOCK:
            raise ValueError(f"block_size must be at most {MAX_BLOCK}, got {block}: maps are padded to whole blocks")

    def to_dict(self) -> dict[str, Any]:
        """The arguments, ready for JSON, in the order in which they are declared; the caller may change them."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "stem_channels": list(self.stem_channels),
            "attention_order": list(self.attention_order),
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
            "preprocessing": None if self.preprocessing is None else dict(self.preprocessing),
        }


def config_json(config: Mapping[str, Any], indent: int | None = None) -> str:
    """What a file has of a network's arguments: those that differ from their default, as JSON.

    >>> config_json({"num_classes": 2, "backbone": "resnet101", "width": 64, "stem_channels": [32, 32, 64]})
    '{"num_classes": 2, "backbone": "resnet101"}'

    Args:
        config: As `ISANetConfig.to_dict` gives it.
        indent: As of `json.dumps`.
    """
    width = config["width"]
    defaults = {field.name: field.default for field in fields(ISANetConfig)}
    defaults |= {"stem_channels": [width // 2, width // 2, width], "attention_order": [*ATTENTIONS]}
    return json.dumps({name: value for name, value in config.items() if value != defaults[name]}, indent=indent)


def check_preprocessing(value: object) -> str:
    """What is wrong with the arguments of `isanet.images.preprocess.preprocess`, as what is expected; empty if nothing.

    >>> check_preprocessing({"short_edge": 512, "long_edge": 2048, "mean": [0, 0, 0], "std": [1, 1, 1]})
    ''
    >>> check_preprocessing({"mean": [0, 0, 0], "std": [1, 1, 0]})
    "'std' of three positive numbers"
    """
    if not isinstance(value, Mapping):
        return "'mean' and 'std', in an object"
    if unknown := sorted(map(str, set(value) - {"mean", "std", "channels", *_EDGES, *_PADDING})):
        return f"no {unknown[0][:80]!r}; known are mean, std, channels, short_edge, long_edge, pad_to and pad_color"
    if not _is_triple(value.get("mean"), -1e6, 1e6):
        return "'mean' of three numbers"
    if not _is_triple(value.get("std"), 0, 1e6) or min(value["std"]) <= 0:
        return "'std' of three positive numbers"
    if value.get("channels", "RGB") not in ("RGB", "BGR"):
        return "'channels' that are 'RGB' or 'BGR'"
    sizes: Any
    for names, sizes in ((_EDGES, [value.get(name) for name in _EDGES]), (_PADDING, value.get("pad_to"))):
        given = [name for name in names if name in value]
        if not given:
            continue
        whole = isinstance(sizes, list | tuple) and len(sizes) == 2 and all(type(size) is int for size in sizes)
        if len(given) == 1 or not whole or not 0 < min(sizes) <= max(sizes) <= MAX_EDGE:
            return f"{names[0]!r} and {names[1]!r} together, of whole sizes from 1 to {MAX_EDGE:,} pixels"
        if math.prod(sizes) > MAX_INPUT_PIXELS:
            return f"sizes of at most {MAX_INPUT_PIXELS:,} pixels together"
    if "pad_color" in value and not _is_triple(value["pad_color"], 0, 255):
        return "'pad_color' of three numbers 0..255"
    return ""


_EDGES, _PADDING = ("short_edge", "long_edge"), ("pad_to", "pad_color")


def _is_triple(value: object, low: float, high: float) -> bool:
    """Whether it is three finite numbers in a range."""
    whole = isinstance(value, list | tuple) and len(value) == 3
    return whole and all(type(x) in (int, float) and low <= x <= high for x in value)  # type: ignore[attr-defined]


def check_class_count(count: int) -> None:
    """Refuse more than `MAX_CLASSES`, with a ValueError that says what they would cost."""
    if count > MAX_CLASSES:
        raise ValueError(
            f"num_classes must be a whole number from 1 to {MAX_CLASSES}, got {count}: at {4 * 128 * 128:,} bytes each "
            f"(1/8 of 1024 x 1024, float32), the logits of one image would take {count * 4 * 128 * 128 / 1e9:.1f} GB"
        )


def numbered_classes(count: int) -> list[str]:
    """Names for classes that have none: "class 0", "class 1", ..."""
    return [f"class {i}" for i in range(count)]


def are_numbered(classes: Sequence[str]) -> bool:
    """Whether classes have no names but those of `numbered_classes`."""
    return list(classes) == numbered_classes(len(classes))
