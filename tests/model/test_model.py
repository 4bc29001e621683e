import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from isanet.attention import block_padding
from isanet.model import ISANet
from isanet.weights import convert
from tests.helpers import stand_in
from tests.helpers.precisions import needs_new_torch

TINY: dict[str, Any] = {"backbone": "resnet14", "width": 8, "head_channels": 16, "key_channels": 8, "aux_channels": 8}


def tiny(**arguments: Any) -> ISANet:
    """A small network with weights and statistics that are neither zero nor one."""
    torch.manual_seed(0)
    model = ISANet(**{**TINY, "num_classes": 5, **arguments})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    nn.init.normal_(model.classifier.weight)
    return model.eval()


def upstream(listing: str) -> ISANet:
    state = stand_in.state_dict(listing)
    converted = convert.convert(state, convert.detect_layout(state))
    with torch.device("meta"):
        model = ISANet(**convert.infer_architecture(converted))
    model.load_state_dict(converted, assign=True)
    return model.eval()


@pytest.mark.parametrize(
    ("listing", "height", "width"),
    [
        ("sssegmentation_r50_voc", 128, 192),
        ("sssegmentation_r50_voc", 101, 117),
        ("mmsegmentation_r50_voc12aug_512x512", 101, 117),
    ],
)
def test_logits_are_upstreams(listing: str, height: int, width: int) -> None:
    reference = load_file(stand_in.DATA / f"{listing}_{height}x{width}.safetensors")
    model = upstream(listing)
    image = stand_in.image(height, width)
    # 1e-6 in float64 leaves room only for the float32 in which the reference is stored (measured: 5e-8); float32
    # arithmetic over a hundred layers is allowed 2e-4, as the reference itself asks.
    for dtype, bound in ((torch.float32, 2e-4), (torch.float64, 1e-6)):
        model.to(dtype)
        with torch.inference_mode():
            logits, aux_logits = model.coarse_logits(image.to(dtype), aux=True)
        for name, ours in (("logits", logits), ("aux_logits", aux_logits)):
            expected = reference[name].to(dtype)
            assert (ours - expected).abs().max() <= bound * expected.abs().max(), (name, dtype)
    if "full" in reference:
        full = model.resize(logits, (height, width))[..., ::7, ::7]
        assert (full - reference["full"]).abs().max() <= 1e-6 * reference["full"].abs().max()


def dense_reference(model: ISANet, attention: nn.Module, x_NCHW: Tensor, same_group: Tensor) -> Tensor:
    """Dense attention over all positions, with a mask instead of groups: the definition, at full cost."""
    query, key, value = (
        project(x_NCHW).flatten(2).transpose(1, 2)
        for project in (attention.query_project, attention.key_project, attention.value_project)  # type: ignore[operator]
    )
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~same_group, -torch.inf).softmax(dim=-1)
    context: Tensor = attention.output_project((weights @ value).transpose(1, 2).reshape(x_NCHW.shape))  # type: ignore[operator]
    return context


@pytest.mark.parametrize("block_size", [2, 8])
def test_interlaced_attention_is_masked_dense_attention(block_size: int) -> None:
    model = tiny(block_size=block_size).double()
    x = torch.randn(
        2, 16, 2 * block_size, 3 * block_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    row, column = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    phase = ((row % block_size) * block_size + column % block_size).flatten()
    block = ((row // block_size) * 1000 + column // block_size).flatten()
    with torch.inference_mode():
        for attention, group in ((model.long_range, phase), (model.short_range, block)):
            expected = dense_reference(model, attention, x, group[:, None] == group[None, :])
            torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


ORDERS = [("long_range", "short_range"), ("short_range", "long_range"), ("long_range",), ("short_range",)]


@pytest.mark.parametrize("order", ORDERS)
def test_attention_is_applied_in_the_order_given(order: tuple[str, ...]) -> None:
    model = tiny(attention_order=order, block_size=4).double()
    assert {key.partition(".")[0] for key in model.state_dict()} & {*ORDERS[0]} == {*order}
    x = expected = torch.randn(2, 16, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        for name in order:
            expected = getattr(model, name)(expected)
        torch.testing.assert_close(model.attend(x), expected, rtol=1e-12, atol=1e-12)


def test_a_seed_gives_the_same_weights_in_either_order() -> None:
    one, other = tiny(attention_order=ORDERS[0]).state_dict(), tiny(attention_order=ORDERS[1]).state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("size", [(1, 1), (64, 128), (101, 130)])
def test_features_are_those_behind_the_logits(size: tuple[int, int]) -> None:
    model = tiny().double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    height, width = (-(-side // 8) for side in size)
    with torch.inference_mode():
        stages, residual, context = features = model.features(images)
        both = torch.cat((context, residual), 1)
        torch.testing.assert_close(model.classifier(model.fuse(both)), model.coarse_logits(images))
    assert [stage.shape for stage in stages] == [
        (2, 32, -(-size[0] // 4), -(-size[1] // 4)),
        *((2, channels, height, width) for channels in (64, 128, 256)),
    ]
    assert residual.shape == context.shape == (2, 16, height, width)
    assert features.context is context
    model.features(images).context.sum().backward()
    assert model.backbone.stem[0].weight.grad is not None


@pytest.mark.parametrize("size", [(64, 96), (101, 75)])  # with and without padding
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("openseg", [{}, {"maxpool_ceil": True, "leaky_slope": 0.01}], ids=["", "openseg"])
def test_attention_maps_are_rows_of_the_matrices_and_of_their_product(
    order: tuple[str, ...], size: tuple[int, int], openseg: dict[str, Any]
) -> None:
    model = tiny(attention_order=order, block_size=4, **openseg).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    with torch.inference_mode():
        maps = model.attention(images, (size[0] - 1, size[1] // 2))
        (rows, columns), (row, column), (N, H, W) = maps.inside, maps.position, maps.product.shape
        x = torch.zeros(N, 16, H, W, dtype=torch.float64)
        x[:, :, rows, columns] = residual = model.features(images).residual
        assert ((size[0] - 1) // 8, size[1] // 16) == (row - rows.start, column - columns.start)
        assert residual.shape[2:] == (rows.stop - rows.start, columns.stop - columns.start)
        i, j = (index.flatten() for index in torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij"))
        groups = {"long_range": i % 4 * 4 + j % 4, "short_range": i // 4 * 1000 + j // 4}
        expected, product = {}, torch.eye(H * W, dtype=torch.float64).expand(N, -1, -1)
        for name in order:
            attention = getattr(model, name)
            query, key = (
                project(x).flatten(2).transpose(1, 2) for project in (attention.query_project, attention.key_project)
            )
            scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
            expected[name] = scores.masked_fill(groups[name][:, None] != groups[name], -torch.inf).softmax(-1)
            product, x = expected[name] @ product, attention(x)
        for name, matrix in {**expected, "product": product}.items():
            torch.testing.assert_close(getattr(maps, name).flatten(1), matrix[:, row * W + column], rtol=0, atol=1e-12)
            torch.testing.assert_close(getattr(maps, name).sum((1, 2)), torch.ones(N, dtype=torch.float64))
    assert [getattr(maps, name) is None for name in ORDERS[0]] == [name not in order for name in ORDERS[0]]


@pytest.mark.parametrize("position", [(-1, 0), (40, 0), (0, 50)])
def test_a_position_outside_of_the_images_is_named(position: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixel of 40 rows x 50 columns"):
        tiny().attention(torch.zeros(1, 3, 40, 50), position)


@pytest.mark.parametrize(
    ("size", "expected"), [(1, (3, 4, 1)), (8, (0, 0, 1)), (9, (3, 4, 2)), (15, (0, 1, 2)), (65, (3, 4, 9))]
)
def test_block_padding(size: int, expected: tuple[int, int, int]) -> None:
    assert block_padding(size, 8) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 3), (64, 64), (97, 130)])
def test_any_size_and_batches_agree_with_single_images(size: tuple[int, int]) -> None:
    model = tiny().double()
    images = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        together = model(images)
        assert together.shape == (3, 5, *size)
        torch.testing.assert_close(
            together, torch.cat([model(image[None]) for image in images]), rtol=1e-10, atol=1e-10
        )
        logits, aux = model(images, aux=True)
        assert torch.equal(logits, together)
        assert aux.shape == together.shape
        assert model(images, size=(7, 9)).shape == (3, 5, 7, 9)


def test_channels_last_gives_the_same() -> None:
    model = tiny().double()
    image = torch.randn(2, 3, 97, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(image)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(image.to(memory_format=torch.channels_last)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions(dtype: torch.dtype) -> None:
    model = tiny()
    image = torch.randn(1, 3, 97, 130, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = model(image)
        logits = model.to(dtype)(image.to(dtype))
    assert logits.dtype == dtype
    # The coarser of the two has 8 bits; twenty layers deep its relative error is some percent.
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_compiles_in_one_graph(gradient_checkpointing: bool) -> None:
    results = []
    for compiles in (False, True):
        model = tiny(gradient_checkpointing=gradient_checkpointing, dropout=0.0).double()
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiles else model
        image = torch.randn(2, 3, 65, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            logits = run(image)
        model.train()
        run(image).square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({"logits": logits, **dict(model.named_buffers()), **gradients})
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


SIZES = ((1, 1, 1), (3, 1, 1), (3, 17, 33), (1, 64, 64), (3, 101, 67), (2, 8, 200), (1, 257, 130))
"""Batch, height and width of images that an exported network must take."""


def agrees(exported: Callable[[Tensor], Tensor], model: ISANet, sizes: Iterable[tuple[int, int, int]]) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.inference_mode():
        for batch, height, width in sizes:
            images = torch.randn(batch, 3, height, width, generator=generator)
            torch.testing.assert_close(exported(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("size", [(2, 3, 65, 96), (1, 3, 64, 64)])
def test_a_trace_holds_for_all_sizes(size: tuple[int, ...]) -> None:
    model = tiny()
    agrees(torch.jit.trace(model, torch.randn(size)), model, SIZES)  # without a TracerWarning, which would be an error


@needs_new_torch
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_scripts_alone_and_inside_of_another_module(tmp_path: Path) -> None:
    model = tiny()
    agrees(torch.jit.script(model), model, SIZES)
    torch.jit.save(torch.jit.script(nn.Sequential(model, nn.Softmax2d()).eval()), tmp_path / "model.pt")
    agrees(torch.jit.load(tmp_path / "model.pt"), nn.Sequential(model, nn.Softmax2d()), SIZES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        torch.jit.script(model.train())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@needs_new_torch
@pytest.mark.parametrize(("example", "strict"), [((2, 101, 128), True), ((1, 64, 64), False)])
def test_exports_with_sizes_from_one_up(example: tuple[int, int, int], strict: bool) -> None:
    from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec

    model, (batch, *size) = tiny(), example
    shape = TensorSpec([ShapeVar("batch", min=1), 3, ShapeVar("height", min=1), ShapeVar("width", min=1)])
    spec = ShapesSpec(params=ParamsSpec({"images": shape}))
    program = torch.export.export(model, (torch.randn(batch, 3, *size),), dynamic_shapes=spec, strict=strict)
    agrees(program.module(), model, SIZES)


def dims(**bounds: int) -> dict[str, dict[int, Any]]:
    Dim = torch.export.Dim
    return {"images": {0: Dim("batch"), 2: Dim("height", **bounds), 3: Dim("width", **bounds)}}


@needs_new_torch
@pytest.mark.parametrize(
    ("shapes", "strict"),
    [
        (dims(min=65, max=4096), False),
        (dims(min=65), True),
        ({"images": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}, False),
        ({"images": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}, False),
    ],
    ids=["from 65 to 4096", "from 65", "AUTO", "DYNAMIC"],
)
def test_exports_with_dims_above_one_block(shapes: dict[str, Any], strict: bool) -> None:
    # With Dim, torch takes what may be one for a constant, and 64 pixels are one block
    model = tiny()
    program = torch.export.export(model, (torch.randn(2, 3, 101, 130),), dynamic_shapes=shapes, strict=strict)
    agrees(program.module(), model, ((2, 65, 65), (3, 128, 101), (2, 513, 257)))


@needs_new_torch
@pytest.mark.parametrize("bounds", [{}, {"min": 64}])
def test_a_wrong_bound_of_a_dim_is_answered_with_the_right_one(bounds: dict[str, int]) -> None:
    with pytest.raises(torch._dynamo.exc.UserError, match=r"Suggested fixes:\n  width = Dim\('width', min=65"):
        torch.export.export(tiny(), (torch.randn(2, 3, 96, 128),), dynamic_shapes=dims(**bounds))


@needs_new_torch
def test_exports_both_heads_by_position() -> None:
    model, images = tiny(), torch.randn(2, 3, 96, 128)
    module = torch.export.export(model, (images, True)).module()
    with torch.inference_mode():
        torch.testing.assert_close(module(images, True), model(images, True), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    def step(gradient_checkpointing: bool) -> tuple[dict[str, Tensor | None], dict[str, Tensor], int]:
        model = tiny(dropout=0.0, gradient_checkpointing=gradient_checkpointing).double().train()
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
        saved: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits, aux_logits = model(images, aux=True)
            loss = logits.square().mean() + aux_logits.square().mean()
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers()), sum(saved)

    gradients, statistics, memory = step(False)
    gradients_again, statistics_again, less_memory = step(True)
    assert less_memory < memory / 2
    torch.testing.assert_close(gradients_again, gradients, rtol=1e-9, atol=1e-12)
    for name, value in statistics.items():
        assert torch.equal(statistics_again[name], value), f"{name} was counted twice"


def test_batch_norm_is_plain_and_can_become_synchronized() -> None:
    model = tiny()
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert list(nn.SyncBatchNorm.convert_sync_batchnorm(model).state_dict()) == list(tiny().state_dict())


def test_config_survives_json() -> None:
    model = tiny(
        classes=["road", "car", "sky", "tree", "person"],
        palette=[(i, 2 * i, 3 * i) for i in range(5)],
        preprocessing={"short_edge": 512, "long_edge": 2048, "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]},
        value_bias=True,
        fusion_kernel=1,
        residual_first=True,
        logits_resize="corners",
    )
    again = ISANet(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert (again.classes, again.palette) == (model.classes, model.palette)
    again.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 40, 50)
    with torch.inference_mode():
        assert torch.equal(again.eval()(image), model(image))


def test_order_of_concatenation_is_a_swap_of_the_fusion_kernels_halves() -> None:
    model, other = tiny(), tiny(residual_first=True)
    other.load_state_dict(model.state_dict())
    first, second = model.fuse.conv.weight.detach().chunk(2, dim=1)
    other.fuse.conv.weight.data = torch.cat((second, first), dim=1)
    image = torch.randn(1, 3, 40, 50)
    with torch.inference_mode():
        torch.testing.assert_close(other(image), model(image))


def test_align_corners_keeps_the_corners() -> None:
    model = tiny(logits_resize="corners")
    image = torch.randn(1, 3, 64, 80)
    with torch.inference_mode():
        coarse, full = model.coarse_logits(image), model(image)
    torch.testing.assert_close(full[..., [0, 0, -1, -1], [0, -1, 0, -1]], coarse[..., [0, 0, -1, -1], [0, -1, 0, -1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_classes or classes"),
        ({"num_classes": 0}, "from 1 to"),
        ({"num_classes": 10**9}, "from 1 to"),
        ({"classes": [f"class {i}" for i in range(4097)]}, r"got 4097: .* would take 0\.3 GB"),
        ({"classes": []}, "different names"),
        ({"num_classes": 2, "classes": ["one"]}, "2 different names"),
        ({"classes": ["one", "one"]}, "different names"),
        ({"classes": "road"}, "list of names"),
        ({"num_classes": 2, "palette": [(0, 0, 0)]}, "palette"),
        ({"num_classes": 1, "palette": [(0, 0, 256)]}, "palette"),
        ({"num_classes": 2, "backbone": "resnet152"}, "resnet50, resnet101"),
        ({"num_classes": 2, "fusion_kernel": 2}, "odd"),
        ({"num_classes": 2, "width": 7}, "even"),
        ({"num_classes": 2, "fusion_kernel": -1}, "odd"),
        ({"num_classes": 2, "preprocessing": {"size": 512}}, "long_edge"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        ISANet(**arguments)


@pytest.mark.parametrize("image", ["a.jpg", ["a.jpg"], Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), "u1"), None])
def test_what_is_no_tensor_is_said_to_be_for_a_segmenter(image: Any) -> None:
    kind = type(image).__name__
    for call in (tiny(), tiny().coarse_logits):
        with pytest.raises(TypeError, match=rf"got {kind}; isanet\.Segmenter\(model\)\(image\) takes"):
            call(image)


def test_tensors_that_are_not_normalized_are_said_to_be_for_a_segmenter() -> None:
    with pytest.raises(ValueError, match=r"of torch.uint8; isanet\.Segmenter\(model\)\(image\) takes"):
        tiny()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_printing_a_network_shows_its_classes() -> None:
    assert repr(tiny(classes=["a", "b"], num_classes=2)).splitlines()[1] == "  2 classes: a, b"


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32, 3), (1, 4, 32, 32)])
def test_wrong_inputs_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="normalized"):
        tiny()(torch.zeros(shape))
    with pytest.raises(ValueError, match="uint8"):
        tiny()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
