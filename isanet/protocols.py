"""Protocols: in which scales, flips and windows an image goes through the network, and how the results are averaged.

A metric is only comparable under the protocol that it was measured by. Besides their options, the frameworks that
published ISANets differ in these ways:

* `sssegmentation` resizes the logits of a whole image once, straight to the image's own size; scales the prepared
  tensor; averages logits.
* `mmsegmentation` (0.x) resizes the logits of a whole image to the prepared size first and from there to the
  image's own; resizes and normalizes the image again for each scale; and averages probabilities.
* `paddleseg` resizes the logits to the size of the scaled tensor, then (pixel centers aligned) to that of the prepared
  one; scales the prepared tensor, its padding included, and rounds its size half up; averages logits.

openseg.pytorch puts the whole image through the network, as sssegmentation does. Images that are padded go through any
protocol: logits become as large as the padded image, and what is padding is cut off.

Sources: sssegmentation's `BaseSegmentor.inference` and `auginference` (`ssseg/modules/models/segmentors/base/base.py`),
mmsegmentation 0.x's `EncoderDecoder` (`mmseg/models/segmentors/encoder_decoder.py`) and `MultiScaleFlipAug`,
PaddleSeg's `aug_inference` (`paddleseg/core/infer.py`, since 2023-02).

Standard library only, so that `isanet info` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Framework = Literal["sssegmentation", "mmsegmentation", "paddleseg"]


@dataclass(frozen=True)
class Protocol:
    """How an image is put through the network.

    Attributes:
        name: Its name; those in `PROTOCOLS` can be passed instead of the object.
        window: (height, width) of sliding windows, in pixels of the prepared image; None: the whole image at once.
        stride: (down, right) steps from window to window, none larger than the window; None without windows.
        scales: Factors by which the image is resized; the results are averaged.
        flip: Also run the image mirrored left-right, at each scale.
        framework: Whose arithmetic is followed; see the head of `isanet.protocols`.

    Raises:
        ValueError: A size or a scale is not positive, a stride is larger than its window or without one, or the
            framework is unknown.
    """

    name: str
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    framework: Framework = "sssegmentation"

    def __post_init__(self) -> None:
        for name, pair in (("window", self.window), ("stride", self.stride)):
            if pair is not None and (len(pair) != 2 or not all(type(size) is int and size > 0 for size in pair)):
                raise ValueError(f"{name} must be two positive whole numbers (height, width), got {pair!r}")
        if (self.window is None) != (self.stride is None):
            raise ValueError(f"window and stride go together, got {self.window!r} and {self.stride!r}")
        if self.window and self.stride and any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(f"strides {self.stride} larger than the windows {self.window} would leave gaps")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales must be positive numbers, at least one, got {self.scales!r}")
        if self.framework not in get_args(Framework):
            raise ValueError(f"framework must be one of {', '.join(get_args(Framework))}, got {self.framework!r}")

    @property
    def text(self) -> str:
        """The protocol in words: "whole image, single scale, no flip"."""
        parts = ["whole image"]
        if self.window and self.stride:
            parts = ["windows of {}x{} at stride {}x{}".format(*self.window, *self.stride)]
        numbers = ", ".join(f"{scale:g}" for scale in self.scales)
        scales = "scales" if len(self.scales) > 1 else "scale"
        parts.append("single scale" if tuple(self.scales) == (1,) else f"{scales} {numbers}")
        parts.append("flip" if self.flip else "no flip")
        if self.framework != "sssegmentation":
            parts.append(f"as {self.framework}")
        return ", ".join(parts)


_PUBLISHED_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

PROTOCOLS: dict[str, Protocol] = {
    known.name: known
    for known in (
        Protocol("whole"),
        Protocol("flip", flip=True),
        # Windows of the size of training crops, two thirds of a window apart
        Protocol("slide-512", (512, 512), (341, 341)),
        Protocol("slide-512x1024", (512, 1024), (341, 683)),
        Protocol("multiscale-flip", scales=_PUBLISHED_SCALES, flip=True),
        Protocol("mmseg-whole", framework="mmsegmentation"),
        Protocol("mmseg-slide-769", (769, 769), (513, 513), framework="mmsegmentation"),
        Protocol("mmseg-multiscale-flip", scales=_PUBLISHED_SCALES, flip=True, framework="mmsegmentation"),
        Protocol("mmseg-slide-769-multiscale-flip", (769, 769), (513, 513), _PUBLISHED_SCALES, True, "mmsegmentation"),
        # The scales of its guide's example: those of its figures are not stated
        Protocol("paddleseg-multiscale-flip", scales=(0.75, 1.0, 1.25), flip=True, framework="paddleseg"),
    )
}
"""The named protocols, by name."""


def protocol(which: str | Protocol, own: str = "whole") -> Protocol:
    """Look up a protocol by its name; a `Protocol` is returned as it is.

    >>> protocol("auto", own="flip").text
    'whole image, single scale, flip'

    Args:
        which: A name in `PROTOCOLS`, "auto", or a `Protocol`.
        own: What "auto" stands for: the protocol by which a model is meant to be run, as its configuration names it.

    Raises:
        ValueError: There is no protocol of that name; the message lists the names.
    """
    if isinstance(which, Protocol):
        return which
    name = own if which == "auto" else which
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; the known ones are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
