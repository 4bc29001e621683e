"""An image with its label map drawn over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from isanet.viz.legend import Entry, with_legend

MIN_SIDE = 240
"""Images whose longer side has fewer pixels are enlarged where a legend is added, or the legend would dwarf them."""


def draw_overlay(
    image: Image.Image,
    labels: Image.Image,
    painted: Image.Image | None = None,
    *,
    alpha: float = 0.5,
    legend: Sequence[Entry] = (),
) -> Image.Image:
    """Blend an image with the colors of its label map, and add a legend.

    Args:
        image: Mode RGB.
        labels: The label map in its palette's colors, of the same size; any mode that converts to RGB.
        painted: The pixels to blend, mode 1, of the same size; None: all. The others stay as the image has them.
        alpha: Weight of the colors, 0 (the image alone) to 1 (the colors alone).
        legend: An entry of each class, see `with_legend`; empty: no legend.

    Returns:
        Mode RGB. Without a legend, exactly of the image's size; with one, images below `MIN_SIDE` pixels are enlarged
        by a whole factor.

    Raises:
        ValueError: `alpha` is not in 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    blend = Image.blend(image, labels.convert("RGB"), alpha)
    if painted is not None:
        blend = Image.composite(blend, image, painted)
    if not legend:
        return blend
    factor = math.ceil(MIN_SIDE / max(blend.size))
    if factor > 1:
        blend = blend.resize((blend.width * factor, blend.height * factor), Image.Resampling.NEAREST)
    return with_legend(blend, legend)
