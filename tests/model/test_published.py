"""The arguments that tell the published kinds of network apart, each against its definition; what all kinds can do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.attention import ConvBNReLU
from isanet.backbone import BasicBlock, Block, Bottleneck
from isanet.config import LogitsResize
from isanet.model import ISANet, resize_logits
from tests.helpers.precisions import needs_new_torch
from tests.helpers.published import KINDS, network


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, expected: Tensor, bound: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= bound * expected.abs().max()


# --- each argument against its definition -------------------------------------------------------------------------


def sampled_position(x: int, length: int, target: int, how: str) -> float:
    """Where position x of `target` samples `length` positions."""
    if how == "half_pixel":
        return max((x + 0.5) * length / target - 0.5, 0.0)
    if how == "corners":
        return x * (length - 1) / (target - 1) if target > 1 else 0.0
    return x * length / target


@pytest.mark.parametrize("how", ["half_pixel", "corners", "asymmetric"])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (6, 7), (19, 4), (40, 56)])
def test_resize_of_logits_is_the_definition_at_every_pixel(size: tuple[int, int], how: LogitsResize) -> None:
    logits = images(1, 2, 6, 7)
    expected = np.empty((2, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            row, column = sampled_position(y, 6, size[0], how), sampled_position(x, 7, size[1], how)
            top, left = math.floor(row), math.floor(column)
            bottom, right = min(top + 1, 5), min(left + 1, 6)
            corners = logits[0, :, [top, top, bottom, bottom], [left, right, left, right]].numpy()
            down, across = row - top, column - left
            weights = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
            expected[:, y, x] = corners @ weights
    close(resize_logits(logits, size, how)[0], torch.from_numpy(expected), 1e-12)


def test_asymmetric_resize_knows_positions_in_half_precision_too() -> None:
    # bfloat16 has 8 bits: positions computed in it would be off by up to 8 of 2049 pixels
    logits = (torch.arange(300) % 2)[None, None, None].expand(1, 1, 2, 300)
    got = resize_logits(logits.bfloat16(), (2, 2049), "asymmetric").double()
    assert (got - resize_logits(logits.double(), (2, 2049), "asymmetric")).abs().max() <= 2**-8


def test_asymmetric_resize_has_gradients() -> None:
    logits = images(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize_logits(x, (7, 9), "asymmetric"), (logits,))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (7, 5), (6, 8)])
def test_the_pooled_shortcut_averages_over_what_exists(size: tuple[int, int]) -> None:
    block = Bottleneck(8, 4, stride=2, dilation=1, average_pool=True).double().eval()
    x = images(1, 8, *size)
    windows = [[x[..., i : i + 2, j : j + 2] for j in range(0, size[1], 2)] for i in range(0, size[0], 2)]
    means = torch.stack([torch.stack([window.mean((2, 3)) for window in row], -1) for row in windows], -2)
    assert block.downsample is not None
    with torch.inference_mode():
        close(block.shortcut(x), block.downsample(means))
        assert block.shortcut(x).shape == block(x).shape
    # The same by torch, with the padding written out and not counted
    rows, columns = size[0] % 2, size[1] % 2
    counts = F.avg_pool2d(F.pad(torch.ones_like(x), (0, columns, 0, rows)), 2)
    assert block.pool is not None
    close(block.pool(x), F.avg_pool2d(F.pad(x, (0, columns, 0, rows)), 2) / counts)


def test_only_the_block_of_stride_2_pools_its_shortcut() -> None:
    blocks = {name: part for name, part in network("paddleseg").named_modules() if isinstance(part, Block)}
    assert [name for name, block in blocks.items() if block.pool is not None] == ["backbone.layer2.0"]
    for name, block in blocks.items():
        assert (block.downsample is not None) == name.endswith(".0")
        if isinstance(block.downsample, nn.Sequential):
            assert block.downsample[0].stride == (1, 1)
    plain = network("sssegmentation").backbone.layer2[0]
    assert plain.pool is None
    assert plain.downsample[0].stride == (2, 2)


# (stride, dilation) of the 3x3 convolutions of stages 1 to 4, block by block
HALF = [[(1, 1), (1, 1)], [(2, 1), (1, 1)], [(1, 1), (1, 2)], [(1, 2), (1, 4)]]
FULL = [[(1, 1), (1, 1)], [(2, 1), (1, 1)], [(1, 2), (1, 2)], [(1, 4), (1, 4)]]


@pytest.mark.parametrize("kind", KINDS)
def test_strides_and_dilations_are_upstreams(kind: str) -> None:
    backbone, full = network(kind).backbone, kind in ("paddleseg", "everything")
    stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    names = ("conv1", "conv2") if kind in ("bpkd", "everything") else ("conv2",)
    found = [[[getattr(block, name) for name in names] for block in stage] for stage in stages]
    for stage, expected in zip(found, FULL if full else HALF, strict=True):
        assert [(conv.stride[0], conv.dilation[0]) for conv, *_ in stage] == expected
        for conv, *rest in stage:
            assert conv.kernel_size == (3, 3)
            assert conv.padding == conv.dilation
            assert all((second.stride, second.dilation, second.padding) == ((1, 1),) * 3 for second in rest)


def test_a_basic_block_is_two_convolutions_and_a_shortcut() -> None:
    torch.manual_seed(0)
    block, x = BasicBlock(4, 6, stride=2, dilation=2).double().eval(), images(2, 4, 9, 12)
    assert block.downsample is not None
    with torch.inference_mode():
        y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=2, dilation=2)))
        y = block.bn2(F.conv2d(y, block.conv2.weight, padding=1))
        close(block(x), F.relu(y + block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))))


def test_widths_of_stages_follow_the_kind_of_block_and_the_stem() -> None:
    with torch.device("meta"):
        basic = ISANet(num_classes=2, backbone="resnet18", head_channels=128, key_channels=256, aux_channels=64)
        deep = ISANet(num_classes=2, backbone="resnet101", stem_channels=[64, 64, 128])
    x = torch.empty(1, 3, 32, 32, device="meta")
    assert [stage.shape[1] for stage in basic.backbone.stages(x)] == [64, 128, 256, 512]
    assert [stage.shape[1] for stage in deep.backbone.stages(x)] == [256, 512, 1024, 2048]
    assert [conv.weight.shape[:2] for conv in basic.backbone.stem[::3]] == [(32, 3), (32, 32), (64, 32)]
    assert [conv.weight.shape[:2] for conv in deep.backbone.stem[::3]] == [(64, 3), (64, 64), (128, 64)]
    assert deep.backbone.layer1[0].conv1.weight.shape[:2] == (64, 128)
    assert (basic.reduce.conv.in_channels, basic.aux_reduce.conv.in_channels) == (512, 256)
    assert basic.long_range.query_project[1].conv.weight.shape[:2] == (256, 256)
    assert basic.long_range.value_project.weight.shape[:2] == (128, 128)


@pytest.mark.parametrize("ceil", [False, True])
def test_ceil_mode_gives_larger_maps_where_the_stems_output_is_even(ceil: bool) -> None:
    with torch.device("meta"):
        model = ISANet(num_classes=2, backbone="resnet14", width=2, head_channels=2, key_channels=2, maxpool_ceil=ceil)
    model.eval()
    for side in (*range(1, 42), 1024, 2048):
        stem = (side - 1) // 2 + 1  # 3x3, stride 2, padding 1
        pooled = (math.ceil((stem - 1) / 2) if ceil else (stem - 1) // 2) + 1
        expected = (pooled - 1) // 2 + 1
        assert model.coarse_logits(torch.empty(1, 3, side, 8, device="meta")).shape[2] == expected
        assert expected == ((side + 1) // 8 + 1 if ceil else math.ceil(side / 8))  # as the docstrings say
    x = torch.empty(1, 3, 1024, 2048, device="meta")
    assert model.coarse_logits(x).shape[2:] == ((129, 257) if ceil else (128, 256))


def test_leaky_activations_are_those_of_both_heads_and_of_no_other() -> None:
    model = network("openseg")
    parts = {name: part for name, part in model.named_modules() if isinstance(part, ConvBNReLU)}
    assert len(parts) == 3 + 2 * 5  # reduce, fuse, aux_reduce; two of queries and of keys, and the output, twice
    assert all(type(part.relu) is nn.LeakyReLU and part.relu.negative_slope == 0.01 for part in parts.values())
    assert all(
        type(part.relu) is nn.ReLU
        for name, part in model.named_modules()
        if name.startswith("backbone.layer")
        if isinstance(part, Block)
    )
    assert [type(part) for part in model.backbone.stem[2::3]] == [nn.ReLU] * 3
    part, x = ConvBNReLU(3, 4, 1, 0.25).double().eval(), images(1, 3, 5, 6)
    with torch.inference_mode():
        before = part.bn(part.conv(x))
        assert (before < 0).any()
        assert torch.equal(part(x), torch.where(before < 0, 0.25 * before, before))


@pytest.mark.parametrize(
    ("kind", "argument", "other"),
    [
        ("paddleseg", "full_dilation", False),
        ("paddleseg", "average_pool_shortcut", False),
        ("paddleseg", "logits_resize", "half_pixel"),
        ("paddleseg", "logits_resize", "corners"),
        ("openseg", "maxpool_ceil", False),
        ("openseg", "leaky_slope", 0.0),
        ("openseg", "residual_first", False),
        ("openseg", "logits_resize", "half_pixel"),
    ],
)
def test_an_argument_that_is_ignored_shows_in_the_logits(kind: str, argument: str, other: Any) -> None:
    model, without = network(kind), network(kind, **{argument: other})
    without.load_state_dict(model.state_dict())
    x = images(1, 3, 64, 77)
    with torch.inference_mode():
        expected, got = model(x), without(x)
    assert (got - expected).abs().max() > 0.005 * expected.abs().max()


# --- what all kinds can do ----------------------------------------------------------------------------------------

SIZES = ((1, 1, 1), (2, 7, 9), (1, 16, 15), (3, 64, 64), (2, 101, 67), (1, 72, 136), (1, 8, 200))
"""Batch, height and width; some sides are 8n or 8n - 1, where ceil mode gives larger maps, some pooled ones are odd."""


@pytest.mark.parametrize("size", [(1, 1), (64, 95), (33, 70)])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_features_are_those_behind_the_logits(kind: str, size: tuple[int, int]) -> None:
    model, x = network(kind), images(2, 3, *size)
    expected = model.coarse_logits(x)
    stages, residual, context = model.features(x)
    both = (residual, context) if kind in ("openseg", "everything") else (context, residual)
    close(model.classifier(model.fuse(torch.cat(both, 1))), expected)
    assert {tuple(part.shape[2:]) for part in (*stages[1:], residual, context)} == {tuple(expected.shape[2:])}
    maps = model.attention(x, (size[0] - 1, size[1] // 2))
    assert tuple(part.stop - part.start for part in maps.inside) == expected.shape[2:]
    torch.testing.assert_close(maps.product.sum((1, 2)), torch.ones(2, dtype=torch.float64))


@needs_new_torch
@pytest.mark.parametrize("kind", KINDS)
def test_exports_with_sizes_from_one_up(kind: str) -> None:
    from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec

    model = network(kind)
    shape = TensorSpec([ShapeVar("batch", min=1), 3, ShapeVar("height", min=1), ShapeVar("width", min=1)])
    spec = ShapesSpec(params=ParamsSpec({"images": shape}))
    program = torch.export.export(model, (images(2, 3, 101, 128),), dynamic_shapes=spec, strict=False)
    exported = program.module()
    with torch.inference_mode():
        for batch, height, width in SIZES:
            x = images(batch, 3, height, width)
            close(exported(x), model(x), 1e-11)  # the same but for rounding in float64


@needs_new_torch
@pytest.mark.parametrize("kind", ["mmsegmentation", "everything"])
def test_exports_with_dims(kind: str) -> None:
    Dim = torch.export.Dim
    model = network(kind)
    shapes = {"images": {0: Dim("batch"), 2: Dim("height", min=65), 3: Dim("width", min=65)}}
    exported = torch.export.export(model, (images(2, 3, 101, 130),), dynamic_shapes=shapes, strict=True).module()
    with torch.inference_mode():
        for shape in ((2, 3, 65, 72), (3, 3, 128, 101), (1, 3, 257, 199)):
            close(exported(images(*shape)), model(images(*shape)), 1e-11)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_holds_for_all_sizes(kind: str) -> None:
    model = network(kind)
    traced = torch.jit.trace(model, images(2, 3, 65, 96), check_trace=False)
    with torch.inference_mode():
        for batch, height, width in SIZES:
            x = images(batch, 3, height, width)
            close(traced(x), model(x), 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_with_gradient_checkpointing_is_the_same_step(kind: str) -> None:
    def step(gradient_checkpointing: bool) -> dict[str, Tensor]:
        model = network(kind, dropout=0.0, gradient_checkpointing=gradient_checkpointing).train()
        logits, aux_logits = model(images(2, 3, 64, 56), aux=True)
        target = torch.randint(5, (2, 64, 56), generator=torch.Generator().manual_seed(1))
        (F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(aux_logits, target)).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in gradients.values()), gradients
        return {f"gradient of {name}": grad for name, grad in gradients.items() if grad is not None} | dict(
            model.named_buffers()
        )

    torch.testing.assert_close(step(True), step(False), rtol=1e-9, atol=1e-12)
