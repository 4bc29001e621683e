"""The arguments of `isanet.ISANet`: declared, documented and checked here, and nowhere else.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from isanet.labels import LABEL_SPACES

BACKBONES: dict[str, tuple[int, int, int, int]] = {
    "resnet14": (1, 1, 1, 1),
    "resnet26": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Bottleneck blocks in each of the four stages; a depth counts three convolutions a block, and two more."""

EXPANSION = 4
"""Output channels of a bottleneck, in multiples of its inner width."""

PREPROCESSING = {"short_edge", "long_edge", "mean", "std"}
"""What `isanet.images.preprocess.preprocess` must be told."""

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
        width: Channels of the stem's output; 64 in all published models, fewer make a small network.
        head_channels: Channels of the attention and of the fused map.
        key_channels: Channels of keys and queries.
        aux_channels: Hidden channels of the auxiliary head: 512 (sssegmentation) or 256 (mmsegmentation).
        value_bias: Whether the value projection has a bias (mmsegmentation).
        fusion_kernel: Kernel size of the convolution over context and residual: 3 (sssegmentation) or 1.
        residual_first: Concatenate `[residual, context]` (openseg.pytorch), not `[context, residual]`.
        align_corners: How logits are resized; True for mmsegmentation's 769x769 models and openseg.pytorch.
        block_size: Positions of a block along each axis.
        attention_order: One or both of `ATTENTIONS`, in the order in which they are applied; each of them has weights
            only if it is named.
        dropout: Probability of dropping a channel before each classifier, in training.
        gradient_checkpointing: In training, keep only the borders of blocks for the backward pass: less memory,
            about a third more time, the same gradients.
        classes: Names of the classes; "class 0", "class 1", ... if left out.
        palette: One (red, green, blue) of 0..255 for each class; a gray ramp if left out.
        label_space: Name of the known label space of exactly these classes, a key of `isanet.labels.LABEL_SPACES`.
        preprocessing: Arguments of `isanet.images.preprocess.preprocess`: `short_edge`, `long_edge`, `mean`, `std`.

    Raises:
        ValueError: An argument is out of its range, or two contradict each other.
        TypeError: An unknown argument.
    """

    num_classes: int = _DERIVED
    backbone: str = "resnet50"
    width: int = 64
    head_channels: int = 512
    key_channels: int = 256
    aux_channels: int = 512
    value_bias: bool = False
    fusion_kernel: int = 3
    residual_first: bool = False
    align_corners: bool = False
    block_size: int = 8
    attention_order: Sequence[str] = ATTENTIONS
    dropout: float = 0.1
    gradient_checkpointing: bool = False
    classes: Sequence[str] = _DERIVED
    palette: Sequence[Sequence[int]] = _DERIVED
    label_space: str | None = None
    preprocessing: Mapping[str, Any] | None = None

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
        if not all(isinstance(name, str) for name in (*names, self.backbone, self.label_space or "")):
            raise ValueError("classes, backbone and label_space must be texts")
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
        channels = (self.width, self.head_channels, self.key_channels, self.aux_channels)
        sizes = (*channels, self.fusion_kernel, self.block_size)
        if any(type(size) is not int for size in sizes):
            raise ValueError(f"width, channel counts, fusion_kernel and block_size must be whole numbers, got {sizes}")
        flags = (self.value_bias, self.residual_first, self.align_corners, self.gradient_checkpointing)
        if any(type(flag) is not bool for flag in flags) or not 0 <= self.dropout <= 1:
            raise ValueError(f"flags must be true or false and dropout from 0 to 1, got {flags} and {self.dropout!r}")
        order = self.attention_order
        if not isinstance(order, list | tuple) or tuple(order) not in (ATTENTIONS, ATTENTIONS[::-1], *zip(ATTENTIONS)):
            raise ValueError(f"attention_order must be a list of {' and '.join(ATTENTIONS)}, or of one, got {order!r}")
        if self.fusion_kernel < 1 or self.fusion_kernel % 2 != 1:
            raise ValueError(f"fusion_kernel must be a positive odd number, got {self.fusion_kernel}")
        if self.preprocessing is not None and set(self.preprocessing) != PREPROCESSING:
            given = sorted(self.preprocessing)
            raise ValueError(f"preprocessing must have exactly {sorted(PREPROCESSING)}, got {given}")
        if self.width % 2 or min(*channels, self.block_size) < 1:
            raise ValueError("width must be even, and all channel counts and block_size positive")
        if (block := self.block_size) > MAX_BLOCK:
            raise ValueError(f"block_size must be at most {MAX_BLOCK}, got {block}: maps are padded to whole blocks")

    def to_dict(self) -> dict[str, Any]:
        """The arguments, ready for JSON, in the order in which they are declared; the caller may change them.

        `attention_order` is left out unless it was changed, so that earlier versions of isanet read the file too.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {
            "attention_order": list(self.attention_order),
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
            "preprocessing": None if self.preprocessing is None else dict(self.preprocessing),
        }
        if tuple(self.attention_order) == ATTENTIONS:
            del values["attention_order"]
        return values


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
