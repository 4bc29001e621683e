"""Attention maps drawn over an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from isanet import viz
from isanet.attention import AttentionMaps
from isanet.viz.heatmap import GRID, WIDTH
from tests.model.test_model import ORDERS, tiny

HEADER, GAP = 26, 8


def maps_of(product: torch.Tensor, **fields: object) -> AttentionMaps:
    height, width = product.shape[1:]
    inside, position = (slice(1, height - 1), slice(2, width - 2)), (1, 2)
    return AttentionMaps(**{
        **AttentionMaps(product, product, product, inside, position, 4)._asdict(), **fields
    })  # fmt: skip


def panel(sheet: Image.Image, number: int, size: tuple[int, int]) -> np.ndarray:
    left, top = GAP + number % 2 * (WIDTH + GAP), number // 2 * (size[1] + HEADER) + HEADER
    return np.asarray(sheet.crop((left, top, left + size[0], top + size[1]))).astype(int)


def test_the_largest_weight_is_the_brightest_and_padding_is_cut_off() -> None:
    product = torch.zeros(2, 10, 20)
    product[1, 4, 12], product[1, 0, 0] = 0.5, 1.0  # the second lies in the padding
    sheet = viz.attention(np.full((64, 128, 3), 90, np.uint8), maps_of(product), index=1)
    both = panel(sheet, 3, (WIDTH, WIDTH // 2)).sum(-1)
    bright = np.argwhere(both > 500)
    cell = WIDTH // 16  # 16 x 8 cells lie inside, and this one is the third of its rows and the tenth of its columns
    inner = [
        (row, column) for row, column in bright
        if not (row <= cell and column <= cell)  # the frame of the position itself
    ]  # fmt: skip
    rows, columns = zip(*inner, strict=True)
    assert (min(rows), max(rows)) == (3 * cell, 4 * cell - 1)
    assert (min(columns), max(columns)) == (10 * cell, 11 * cell - 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(64, 96), (101, 37), (1, 1)])
def test_draws_what_a_model_gives(order: tuple[str, ...], size: tuple[int, int]) -> None:
    model = tiny(attention_order=order)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    maps = model.attention(torch.randn(2, 3, *size), (size[0] // 2, size[1] // 2))
    before = image.copy()
    sheet = viz.attention(image, maps)
    rows = 2 if len(order) == 2 else 1
    height = round(size[0] * WIDTH / max(size))
    assert sheet.mode == "RGB"
    assert sheet.height == rows * (height + HEADER) + GAP
    assert (image == before).all()
    assert viz.attention(Image.fromarray(image), maps).tobytes() == sheet.tobytes()


def test_borders_of_blocks_are_drawn_for_each_range_and_not_for_both() -> None:
    nothing = torch.zeros(1, 10, 20)
    for maps, bordered in ((maps_of(nothing), [1, 2]), (maps_of(nothing, short_range=None), [1])):
        sheet = viz.attention(Image.new("RGB", (128, 64)), maps)
        cell = WIDTH // 16
        middles = {number: panel(sheet, number, (WIDTH, WIDTH // 2))[5 * cell // 2] for number in (1, 2, 3)}
        if len(bordered) == 1:
            middles = {1: middles[1]}
        for number, row in middles.items():
            columns = np.flatnonzero((row == GRID[0]).all(-1)).tolist()
            # Blocks of 4 cells begin in the padding, two cells left of the image
            assert columns == ([(2 + 4 * block) * cell for block in range(4)] if number in bordered else [])


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (3, 2)])
def test_images_of_any_shape(size: tuple[int, int]) -> None:
    sheet = viz.attention(Image.new("RGB", size), maps_of(torch.full((1, 10, 20), 1 / 200)))
    assert max(sheet.size) < 3 * WIDTH


def test_half_precision_and_gradients() -> None:
    product = torch.full((1, 10, 20), 1 / 200, dtype=torch.bfloat16, requires_grad=True)
    assert viz.attention(Image.new("RGB", (40, 30)), maps_of(product)).width > 2 * WIDTH
