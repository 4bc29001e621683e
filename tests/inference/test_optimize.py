"""An inference-optimized network gives the labels of the model that it is a copy of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import Tensor, nn

import isanet
from isanet.backbone import BasicBlock, Bottleneck
from isanet.datasets.toystreets import ToyStreets
from isanet.inference import predict as inference
from isanet.inference.fast import layers as fused
from isanet.inference.fast.network import FastISANet
from isanet.inference.fast.optimize import optimize, why_not_optimizable
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import predict, prepare
from isanet.inference.runtimes.network import RuntimeNetwork
from isanet.inference.segmenter import Segmenter
from isanet.weights import convert
from isanet.zoo.networks import model_config
from tests.helpers import stand_in
from tests.helpers.published import KINDS, network

NANO = "isanet_nano_toystreets"


def tiny(**changes: Any) -> isanet.ISANet:
    """A small network in which every batch norm does something."""
    torch.manual_seed(0)
    options = {"num_classes": 5, "backbone": "resnet26", "width": 4, "head_channels": 12, "key_channels": 6}
    model = isanet.ISANet(**{**options, "aux_channels": 4, **changes}).eval()
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)
            nn.init.normal_(module.bias, 0, 0.1, generator=random)
    nn.init.normal_(model.classifier.weight, generator=random)
    return model


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, expected: Tensor, bound: float) -> None:
    error = float((got - expected).abs().max() / expected.abs().max())
    assert got.shape == expected.shape
    assert error <= bound, error


VARIANTS: dict[str, dict[str, Any]] = {
    **KINDS,
    "small blocks": {"block_size": 3, "backbone": "resnet14"},
    "short range first": {"attention_order": ["short_range", "long_range"], "backbone": "resnet14"},
    "long range alone": {"attention_order": ["long_range"], "backbone": "resnet14"},
}


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 200), (130, 97), (192, 256)])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_float64_is_the_same_but_for_rounding(variant: str, size: tuple[int, int]) -> None:
    # All that is done is exact algebra; 16 blocks of float64 leave 1e-13.
    model, x = tiny(**VARIANTS[variant]).double(), images(2, 3, *size)
    fast = optimize(model)
    close(fast.coarse_logits(x), model.coarse_logits(x), 1e-11)
    close(fast(x), model(x), 1e-11)


@pytest.mark.parametrize("band", [4, 5, 9, 16])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_bands_of_rows_give_what_the_whole_gives(variant: str, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(**VARIANTS[variant]).double()
    monkeypatch.setattr(fused, "PART_BYTES", 20_000)  # attention in parts too, down to single queries
    fast = optimize(model, max_memory=0)
    monkeypatch.setattr(fast, "_band_rows", lambda _n, _w: band)
    for size in ((1, 70), (7, 9), (65, 40), (202, 131), (256, 64)):
        x = images(2, 3, *size)
        close(fast.coarse_logits(x), model.coarse_logits(x), 1e-11)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"stride": 2, "average_pool": True}) for kind in (Bottleneck, BasicBlock)),
        *((kind, {"stride": stride}) for kind in (Bottleneck, BasicBlock) for stride in (1, 2)),
    ],
)
@torch.inference_mode()
def test_a_block_in_bands_of_any_height_is_the_block(kind: Any, options: dict[str, Any], rows: int) -> None:
    for channels in (8, 12):  # a shortcut of stride 1 is a convolution only where the width changes
        torch.manual_seed(0)
        block = kind(channels, 12 if kind is BasicBlock else 2, **{"dilation": 2, **options}).double().eval()
        fast = fused.Block(block)
        for height in range(1, 12):
            x = images(2, channels, height, 7)
            expected = block(x)
            close(fast(x.clone()), expected, 1e-13)
            bands = (x[:, :, top : top + rows] for top in range(0, height, rows))
            close(torch.cat(list(fused.block_rows(fast, bands)), 2), expected, 1e-13)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("ceil", [False, True])
@torch.inference_mode()
def test_the_stems_pooling_in_bands_of_any_height_is_the_pooling(ceil: bool, rows: int) -> None:
    layer = fused.MaxPool(ceil)
    for height in range(1, 12):
        x = images(1, 2, height, 8).relu()
        bands = (x[:, :, top : top + rows] for top in range(0, height, rows))
        got = torch.cat(list(fused.conv_rows(layer, bands)), 2)
        assert torch.equal(got, nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=ceil))


@pytest.mark.parametrize("ceil", [False, True])
@torch.inference_mode()
def test_map_sizes_are_known_before(ceil: bool) -> None:
    model = tiny(backbone="resnet14", maxpool_ceil=ceil)
    fast = optimize(model, max_memory=0)
    for side in range(1, 42):
        x = torch.zeros(1, 3, side, 16)
        assert fast.coarse_logits(x).shape == model.coarse_logits(x).shape
        assert model.coarse_logits(x).shape[2:] == (fast.map_size(side), fast.map_size(16))


@pytest.mark.parametrize(
    ("options", "precision", "expected"),
    [
        ({}, "float32", 4 * (1024 + 512 + 512 + 2048 + 2048)),  # first block of stage 4: input, three outputs, shortcut
        ({}, "bfloat16", 2 * (1024 + 512 + 512 + 2048 + 2048)),
        # The stem's pooling, 16 and 4 positions in a cell, always float32; its indices have 8 bytes
        ({"backbone": "resnet18"}, "float32", 64 * (16 * 4 + 4 * (4 + 8))),
        ({"backbone": "resnet18"}, "bfloat16", 64 * (16 * 4 + 4 * (4 + 8))),
        ({"stem_channels": [64, 64, 128]}, "bfloat16", 128 * (16 * 4 + 4 * (4 + 8))),
    ],
)
def test_memory_is_estimated_by_the_layer_that_needs_most(
    options: dict[str, Any], precision: str, expected: int
) -> None:
    with torch.device("meta"):
        fast = optimize(isanet.ISANet(num_classes=2, **options), precision)
    assert fast._cell_bytes == expected
    assert fast._bytes_at_once(1, 100, 100) - fast._head_bytes(1, 100, 100) == 10_000 * expected


def calm(kind: str) -> isanet.ISANet:
    """A network whose attention is not sharp: by random weights it is, and blows up rounding as no trained one does."""
    model = network(kind)
    with torch.no_grad():
        for attention in (model.long_range, model.short_range):
            for parameter in attention.query_project[1].bn.parameters():
                parameter.mul_(0.01)
    return model


ERRORS = {"float32": 5e-6, "bfloat16": 0.06, "float16": 0.006}
"""Root mean square of the error of logits over that of the logits, after 30 layers; twice the largest measured."""


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(kind, precision) for kind in KINDS for precision in ("float32", "bfloat16", "float16")],
)
@torch.inference_mode()
def test_every_kind_in_every_precision(kind: str, precision: str) -> None:
    model, x = calm(kind), images(1, 3, 120, 135)
    expected = model.coarse_logits(x)
    model.float()
    for max_memory in (4 << 30, 0):
        fast = optimize(model, precision, max_memory=max_memory)
        got = fast.coarse_logits(x.float()).double()
        assert got.shape == expected.shape
        error = float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        assert error <= ERRORS[precision], error


@torch.inference_mode()
def test_bands_in_16_bits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(), images(1, 3, 202, 131).float()
    fast = optimize(model, "bfloat16")
    whole = fast.coarse_logits(x)
    fast.max_memory = 0
    monkeypatch.setattr(fast, "_band_rows", lambda _n, _w: 5)
    close(fast.coarse_logits(x), whole, 1e-5)  # the same kernels see the same rows


@pytest.mark.parametrize(
    ("listing", "height", "width"),
    [
        ("sssegmentation_r50_voc", 128, 192),
        ("sssegmentation_r50_voc", 101, 117),
        ("mmsegmentation_r50_voc12aug_512x512", 101, 117),
    ],
)
@torch.inference_mode()
def test_logits_are_upstreams(listing: str, height: int, width: int) -> None:
    reference = load_file(stand_in.DATA / f"{listing}_{height}x{width}.safetensors")["logits"].double()
    state = stand_in.state_dict(listing)
    layout = convert.detect_layout(state)
    state = convert.convert(state, layout)
    model = isanet.ISANet(**convert.infer_architecture(state))
    model.load_state_dict(state)
    x = stand_in.image(height, width)
    close(optimize(model.eval().double()).coarse_logits(x.double()), reference, 1e-6)  # stored in float32
    model.float()
    for max_memory in (4 << 30, 0):
        close(optimize(model, max_memory=max_memory).coarse_logits(x).double(), reference, 2e-4)
    # The stand-in weights are random and the image is noise, so that attention is sharp and errors grow as they never
    # do on an image: here the bounds only keep out mistakes, labels are compared below.
    given = optimize(model, "bfloat16").coarse_logits(x).double()
    assert float((given - reference).square().mean().sqrt() / reference.square().mean().sqrt()) <= 0.15


# Promised shares of labels kept; float32 differs in rounding alone.
KEPT = {"float32": 0.999, "bfloat16": 0.995}
# Of photographs by the packaged model, which knows drawn streets alone and is confident of little there
KEPT_OF_THE_UNKNOWN = {"float32": 0.999, "bfloat16": 0.985}


def r50() -> isanet.ISANet:
    model = isanet.ISANet(**model_config(isanet.model_info("isanet_r50_voc")))
    model.load_state_dict(convert.convert(stand_in.state_dict("sssegmentation_r50_voc"), "sssegmentation"))
    return model.eval()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_labels_of_an_image_are_upstreams(precision: str) -> None:
    image, truth = (stand_in.DATA / name for name in ("image_187x250.png", "image_187x250.voc_r50_labels.png"))
    segmenter = Segmenter(r50(), device="cpu", precision=precision, calibration=[image])
    with Image.open(truth) as labels:
        same = np.mean(segmenter(image).labels == np.asarray(labels))
    assert same >= KEPT[precision]


def photographs() -> list[np.ndarray[Any, Any]]:
    return [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]


def kept(model: isanet.ISANet, images: list[Any]) -> dict[str, float]:
    """For each precision the share of labels that the loaded model gives too."""
    inputs = [prepare(np.asarray(image), model.preprocessing or {}) for image in images]
    expected = [labels for labels, _ in predict(EagerNetwork(model), inputs)]  # type: ignore[misc]
    result = {}
    for precision in KEPT:
        fast = optimize(model, precision)
        given = [labels for labels, _ in predict(fast, inputs)]  # type: ignore[misc]
        same = [float((a == b).double().mean()) for a, b in zip(given, expected, strict=True)]
        result[precision] = float(np.mean(same))
    return result


@pytest.mark.parametrize("images", ["streets", "photographs"])
def test_labels_of_images_are_kept(images: str) -> None:
    streets = ToyStreets(6, split="test")
    shown = [streets[index][0] for index in range(6)] if images == "streets" else photographs()
    shares = kept(isanet.from_pretrained(NANO), shown)
    least = KEPT if images == "streets" else KEPT_OF_THE_UNKNOWN
    assert all(share >= least[precision] for precision, share in shares.items()), shares


def test_labels_of_photographs_are_kept_at_full_size() -> None:
    shares = kept(r50(), photographs())
    assert all(share >= KEPT[precision] for precision, share in shares.items()), shares


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.inference_mode()
def test_neither_model_nor_images_change(precision: str) -> None:
    model, x = tiny(), images(1, 3, 70, 90).float()
    state, before = {name: value.clone() for name, value in model.state_dict().items()}, x.clone()
    fast = optimize(model, precision)
    first = fast.coarse_logits(x)
    assert torch.equal(fast.coarse_logits(x), first)
    assert torch.equal(x, before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast.coarse_logits(x), first)  # weights as they were


def test_what_was_changed_is_not_optimized() -> None:
    class Other(isanet.ISANet):
        pass

    hooked, synced, half = tiny(), nn.SyncBatchNorm.convert_sync_batchnorm(tiny()), tiny().half()
    hooked.fuse.register_forward_hook(lambda *_: None)
    wrapped = tiny()
    wrapped.fuse.conv = nn.Sequential(wrapped.fuse.conv)  # type: ignore[assignment]
    biased, reflected, not_affine = tiny(), tiny(), tiny()
    biased.fuse.conv = nn.Conv2d(24, 12, 3, padding=1)
    reflected.reduce.conv.padding_mode = "reflect"
    not_affine.reduce.bn = nn.BatchNorm2d(12, affine=False)
    pooled, plain, sloped, floored = (network(kind) for kind in ("sssegmentation", "paddleseg", "openseg", "openseg"))
    pooled.backbone.layer2[0].pool = nn.AvgPool2d(2)
    plain.backbone.layer2[0].pool = nn.AvgPool2d(2, count_include_pad=False)
    sloped.fuse.relu = nn.LeakyReLU(0.02, inplace=True)
    floored.backbone.maxpool.ceil_mode = False
    for model, reason in (
        (pooled, "'backbone.layer2.0.pool' is AvgPool2d, not NoneType"),
        (plain, "'backbone.layer2.0.pool' has ceil_mode=False, not True"),
        (sloped, "'fuse.relu' has negative_slope=0.02, not 0.01"),
        (floored, "'backbone.maxpool' has ceil_mode=False, not True"),
        (biased, "'fuse.conv' has bias=(12,), not None"),
        (reflected, "'reduce.conv' has padding_mode='reflect', not 'zeros'"),
        (not_affine, "'reduce.bn' has affine=False, not True"),
        (Other(num_classes=2, backbone="resnet14", width=2), "it is a Other, not an ISANet"),
        (hooked, "its part 'fuse' has hooks"),
        (synced, "is SyncBatchNorm, not BatchNorm2d"),
        (half, "its weights are torch.float16"),
        (wrapped, "'fuse.conv' is Sequential, not Conv2d"),
    ):
        assert reason in why_not_optimizable(model)
        with pytest.raises(ValueError, match="cannot be optimized"):
            optimize(model)
    assert not any(why_not_optimizable(network(kind)) for kind in KINDS)


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="valid are float32, bfloat16, float16"):
        optimize(tiny(), "int4")


CAPABILITIES = """
import torch
from isanet.inference.fast.optimize import has_bfloat16
print(has_bfloat16(torch.device("cpu")))
"""


@pytest.mark.parametrize("isa", ["ALL", "AVX512_CORE_VNNI", "AVX2"])
def test_what_the_processor_cannot_do_natively_is_not_chosen(isa: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    call = [sys.executable, "-c", CAPABILITIES]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True, timeout=120)
    bfloat16 = done.stdout.strip()
    can = torch.cpu.get_capabilities()
    if isa == "AVX2" and can["architecture"] == "x86_64":
        assert bfloat16 == "False"
    elif can["architecture"] == "x86_64":
        assert bfloat16 == str(bool(can.get("avx512_bf16") or can.get("amx_bf16")))


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8)]
)
def test_wrong_images(x: Tensor) -> None:
    with pytest.raises(ValueError, match="expected normalized floating-point images"):
        optimize(tiny()).coarse_logits(x)


# --- by the segmenter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["torch", "openvino", "onnxruntime"])
def test_the_segmenter_follows_weights_that_change(runtime: str) -> None:
    model = tiny(preprocessing={"short_edge": 40, "long_edge": 99, "mean": [0] * 3, "std": [255] * 3})
    segmenter, image = Segmenter(model, device="cpu", precision="float32", runtime=runtime), data.astronaut()[:60, :80]
    before = segmenter(image).labels
    network = segmenter.network()
    assert segmenter.network() is network
    with torch.no_grad():
        model.classifier.weight.zero_()
        assert model.classifier.bias is not None
        model.classifier.bias.copy_(torch.tensor([0.0, 0, 0, 1, 0]))
    assert not (before == 3).all()
    assert (segmenter(image).labels == 3).all()
    model.load_state_dict(tiny().state_dict())
    assert np.array_equal(segmenter(image).labels, before)
    network = segmenter.network()
    segmenter.max_memory = 2 << 30
    assert segmenter.network() is network
    assert isinstance(network, FastISANet if runtime == "torch" else RuntimeNetwork)
    assert network.max_memory == 2 << 30
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as a swap of averaged weights does
    assert segmenter.network() is not network


def test_a_senseless_limit_of_memory_is_an_error() -> None:
    segmenter = Segmenter(NANO, device="cpu", max_memory=100_000)
    with pytest.raises(ValueError, match="it is in bytes"):
        segmenter(data.astronaut())


def test_windows_that_fade_show_no_seam() -> None:
    model = isanet.from_pretrained(NANO)
    image = np.asarray(ToyStreets(1, split="test")[0][0])
    inputs = [prepare(image, model.preprocessing or {})]
    height, width = inputs[0].tensors[0].shape[1:]
    inputs = [inputs[0]._replace(size=(height, width))]
    fast = optimize(model)
    ((whole, _),) = predict(fast, inputs)  # type: ignore[misc]
    fast.max_memory = fast._bytes_at_once(1, height // 8, width // 8) * 2 // 3
    assert not fast.fits((1, 3, height, width))
    window = inference._largest_window(fast, height, width)
    assert fast.fits((1, 3, *window))
    assert window != (height, width)
    ((labels, _),) = predict(fast, inputs)  # type: ignore[misc]
    same = labels == whole
    # Attention sees less in a window, so that labels differ, but no more so where windows meet than elsewhere
    assert same.float().mean() > 0.9
    starts = inference.window_starts(width, window[1], window[1] - window[1] // 4)
    assert len(starts) > 1
    edges = [edge for start in starts for edge in (start, start + window[1]) if 0 < edge < width]
    jumps = (labels[:, 1:] != labels[:, :-1]).float().mean(0)
    assert max(float(jumps[edge - 1]) for edge in edges) <= 2 * float(jumps.max())
    assert min(float(same[:, edge - 2 : edge + 2].float().mean()) for edge in edges) > 0.8


PEAK = """
import sys, torch
from pathlib import Path
from isanet import from_pretrained
from isanet.inference.fast import optimize
torch.set_num_threads(1)
limit, height, width = map(int, sys.argv[1:])
fast = optimize.optimize(from_pretrained("isanet_nano_toystreets"), max_memory=limit)
x = torch.zeros(1, 3, height, width)
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
with torch.inference_mode():
    fast.coarse_logits(x[:, :, :256, :256])
    before = status("VmRSS:")
    fast.coarse_logits(x)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_bounded() -> None:
    height, width = 3072, 4096
    limit = 600 << 20
    peaks = []
    for allowed in (limit, 1 << 40):
        call = [sys.executable, "-c", PEAK, str(allowed), str(height), str(width)]
        peaks.append(int(subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout))
    assert peaks[0] <= limit + (32 << 20), peaks  # what the allocator holds on to
    assert peaks[1] > limit, peaks


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.compile's own parts
def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, x = tiny(backbone="resnet14"), images(1, 3, 64, 72).float()
    with torch.inference_mode():
        close(optimize(model, compile=True).coarse_logits(x), model.coarse_logits(x), 2e-4)
