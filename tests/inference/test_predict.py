from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.errors import ImageError, IsanetError
from isanet.images.preprocess import preprocess
from isanet.inference.logits import LogitsMap, averaged, resized, resized_bands, stored
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import label_map, logits_maps, not_finite, predict, prepare, window_starts
from isanet.model import ISANet
from isanet.protocols import PROTOCOLS, Protocol, protocol
from isanet.weights import convert, manifest
from tests.helpers import stand_in, tiny_zoo

PREPROCESSING: dict[str, Any] = {"short_edge": 50, "long_edge": 200, "mean": (127.5,) * 3, "std": (60.0,) * 3}
SCALES = (0.75, 1.0, 1.3)
WINDOWS: dict[str, Any] = {"window": (40, 53), "stride": (25, 41)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of so little work in each step, several threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(**architecture: Any) -> ISANet:
    """Stand-in weights, in float64; no class is the likeliest everywhere."""
    state = tiny_zoo.upstream_state()
    model = ISANet(**{**tiny_zoo.ARCHITECTURE, "preprocessing": PREPROCESSING, **architecture})
    model.load_state_dict(convert.convert(state, convert.detect_layout(state)))
    model.double().eval()
    with torch.no_grad():
        logits = model.coarse_logits(prepare(random_image(), PREPROCESSING)[0][None].double())
        spread, mean = torch.std_mean(logits, dim=(0, 2, 3))
        model.classifier.weight /= spread[:, None, None, None]
        model.classifier.bias.copy_((model.classifier.bias - mean) / spread)
    return model


def random_image(height: int = 45, width: int = 70, seed: int = 0) -> np.ndarray:
    patches = np.random.default_rng(seed).integers(0, 256, (height // 15 + 1, width // 15 + 1, 3), dtype=np.uint8)
    return patches.repeat(15, axis=0).repeat(15, axis=1)[:height, :width]


def doubles(image: np.ndarray, how: Protocol) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in prepare(image, PREPROCESSING, how))


def result_of(model: ISANet, image: np.ndarray, how: Protocol, band_bytes: int = 0, **options: Any) -> Tensor:
    """(K, H, W) averaged logits or probabilities, as labels are made of them."""
    (maps,) = logits_maps(EagerNetwork(model), [doubles(image, how)], how, **options)
    assert maps is not None
    arithmetic = {
        "align_corners": model.align_corners,
        "average_probabilities": how.framework == "mmsegmentation",
        "band_bytes": band_bytes,
    }
    bands = list(resized_bands(maps, image.shape[:2], **arithmetic))
    assert [row for rows, _ in bands for row in range(image.shape[0])[rows]] == list(range(image.shape[0]))
    return torch.cat([band for _, band in bands], dim=1)


# --- the frameworks' own arithmetic: everything at full size, one after the other


def slide(model: ISANet, images: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    height, width = images.shape[2:]
    total, count = torch.zeros(1, 21, height, width, dtype=images.dtype), torch.zeros(height, width)
    for row in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            crop = model(images[:, :, top:bottom, left:right])
            total += F.pad(crop, (left, width - right, top, height - bottom))
            count[top:bottom, left:right] += 1
    assert count.min() >= 1
    return total / count


@torch.inference_mode()
def reference_sssegmentation(model: ISANet, image: np.ndarray, how: Protocol) -> Tensor:
    corners = model.align_corners
    prepared = preprocess(image, **PREPROCESSING)[None].double()
    results = []
    for scale in how.scales:
        scaled = F.interpolate(prepared, scale_factor=scale, mode="bilinear", align_corners=corners)
        for flip in (False, True)[: 1 + how.flip]:
            seen = scaled.flip(3) if flip else scaled
            logits = slide(model, seen, how.window, how.stride) if how.window else model.coarse_logits(seen)  # type: ignore[arg-type]
            logits = logits.flip(3) if flip else logits
            results.append(F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=corners))
    return torch.stack(results).mean(dim=0)[0]


@torch.inference_mode()
def reference_mmsegmentation(model: ISANet, image: np.ndarray, how: Protocol) -> Tensor:
    results = []
    for ratio in how.scales:
        edges = {edge: int(PREPROCESSING[edge] * ratio) for edge in ("short_edge", "long_edge")}
        prepared = preprocess(image, **(PREPROCESSING | edges))[None].double()
        for flip in (False, True)[: 1 + how.flip]:
            seen = prepared.flip(3) if flip else prepared
            logits = slide(model, seen, how.window, how.stride) if how.window else model(seen)  # type: ignore[arg-type]
            output = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=model.align_corners)
            probabilities = output.softmax(dim=1)
            results.append(probabilities.flip(3) if flip else probabilities)
    return torch.stack(results).mean(dim=0)[0]


REFERENCES = {"sssegmentation": reference_sssegmentation, "mmsegmentation": reference_mmsegmentation}
VARIANTS = [
    Protocol("a", **windows, scales=scales, flip=flip, framework=framework)
    for framework in REFERENCES
    for windows in ({}, WINDOWS)
    for scales, flip in (((1.0,), False), ((1.0,), True), (SCALES, True))
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("how", VARIANTS, ids=lambda how: how.text)
def test_results_equal_the_frameworks(how: Protocol, align_corners: bool) -> None:
    model, image = tiny(align_corners=align_corners), random_image()
    expected = REFERENCES[how.framework](model, image, how)
    assert len(expected.argmax(0).unique()) > 5
    assert (result_of(model, image, how) - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())
    ((labels, confidence),) = predict(
        EagerNetwork(model), [doubles(image, how)], [image.shape[:2]], how, confidence=True
    )  # type: ignore[misc]
    assert torch.equal(labels, expected.argmax(0).to(torch.uint8))
    shares = expected if how.framework == "mmsegmentation" else expected.softmax(0)
    torch.testing.assert_close(confidence, shares.amax(0).float(), rtol=1e-5, atol=1e-6)


def test_sliding_windows_are_upstreams() -> None:
    listing = "mmsegmentation_r50_voc12aug_512x512"
    state = stand_in.state_dict(listing)
    converted = convert.convert(state, convert.detect_layout(state))
    with torch.device("meta"):
        model = ISANet(**convert.infer_architecture(converted))
    model.load_state_dict(converted, assign=True)
    model.double().eval()
    expected = load_file(stand_in.DATA / f"{listing}_101x117.safetensors")["slide"][0]
    how = Protocol("slide-65", (65, 65), (43, 43), framework="mmsegmentation")
    (maps,) = logits_maps(EagerNetwork(model), [tuple(stand_in.image(101, 117))], how, batch_size=3)
    assert maps is not None
    (full,) = maps
    assert full.shape == (21, 101, 117)
    # 1e-6 in float64 leaves room only for the float32 in which the reference is stored (measured: 4e-8)
    difference = (full.rows(0, 101)[:, ::7, ::7] - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-6


@pytest.mark.parametrize(
    ("size", "window", "stride", "starts"),
    [
        (100, 100, 50, [0]),
        (101, 100, 50, [0, 1]),
        (150, 100, 50, [0, 50]),
        (151, 100, 50, [0, 50, 51]),
        (40, 100, 50, [0]),
        (1, 100, 100, [0]),
        (10, 3, 3, [0, 3, 6, 7]),
        (2048, 769, 513, [0, 513, 1026, 1279]),
        (1024, 769, 513, [0, 255]),
    ],
)
def test_windows_begin_where_upstreams_do(size: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(size, window, stride) == starts


def test_an_image_smaller_than_a_window_is_one_window() -> None:
    model, image = tiny(), random_image()
    seen = shapes_seen(model)
    large = Protocol("large", (400, 400), (300, 300), framework="mmsegmentation")
    whole = Protocol("whole", framework="mmsegmentation")
    torch.testing.assert_close(result_of(model, image, large), result_of(model, image, whole), rtol=0, atol=1e-12)
    partly = Protocol("partly", (400, 40), (300, 20))
    assert result_of(model, image, partly).shape == (21, 45, 70)
    assert {shape[2:] for shape in seen} == {(50, 78), (50, 40)}


def shapes_seen(model: ISANet) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    model.backbone.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


# --- what must not matter


@pytest.mark.parametrize(
    "how", [one for one in VARIANTS if one.flip and one.scales == SCALES], ids=lambda how: how.text
)
def test_bands_do_not_matter(how: Protocol) -> None:
    model, image = tiny(), random_image()
    whole = result_of(model, image, how, band_bytes=1 << 40)
    torch.testing.assert_close(result_of(model, image, how, 60_000), whole, rtol=0, atol=1e-12)  # three rows at a time


@pytest.mark.parametrize("how", [one for one in VARIANTS if one.scales == SCALES], ids=lambda how: how.text)
def test_batches_do_not_matter(how: Protocol) -> None:
    model = tiny()
    seen = shapes_seen(model)
    images = [random_image(seed=0), random_image(50, 50, seed=1), random_image(seed=2), random_image(90, 140, seed=3)]
    prepared, sizes = [doubles(image, how) for image in images], [image.shape[:2] for image in images]
    alone = [
        predict(EagerNetwork(model), [one], [size], how, confidence=True)
        for one, size in zip(prepared, sizes, strict=True)
    ]
    # 0, 2 and 3 have one size when prepared
    for batch_size, largest in ((1, 1), (None, 3), (7, 3 if how.window is None else 7)):
        seen.clear()
        together = predict(EagerNetwork(model), prepared, sizes, how, confidence=True, batch_size=batch_size)
        assert max(shape[0] for shape in seen) == largest
        for one, (other,), size in zip(together, alone, sizes, strict=True):
            assert one is not None
            assert other is not None
            assert one[0].shape == size
            assert torch.equal(one[0], other[0])
            torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("coarse", "size"),
    [((8, 12), (64, 96)), ((64, 86), (1000, 150)), ((13, 15), (101, 117)), ((64, 64), (20, 20)), ((1, 1), (9, 5)),
     ((1, 32), (1, 500)), ((32, 1), (500, 1)), ((5, 7), (1, 1)), ((128, 3), (9001, 5))],
)  # fmt: skip
def test_bands_equal_the_whole(coarse: tuple[int, int], size: tuple[int, int], align_corners: bool) -> None:
    logits = torch.randn(6, *coarse, generator=torch.Generator().manual_seed(0)) * 10
    for dtype, heights in ((torch.float32, (1, 7, 10**6)), (torch.float64, (10**6,))):
        logits = logits.to(dtype)
        bound = rounding(logits)
        whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=align_corners)[0]
        for rows_per_band in heights:
            band_bytes = logits.element_size() * 6 * size[1] * rows_per_band
            bands = list(resized_bands([stored(logits)], size, align_corners=align_corners, band_bytes=band_bytes))
            assert [row for rows, _ in bands for row in range(size[0])[rows]] == list(range(size[0]))
            together = torch.cat([band for _, band in bands], dim=1)
            assert (together - whole).abs().max() <= bound


def rounding(logits_KHW: Tensor) -> float:
    """How much two bilinear resizings of the same logits may differ by rounding alone, in their precision.

    A position in the source is (i + 0.5) * scale - 0.5, which CPUs with fused multiply-add may round once less. With
    three roundings of half the spacing of numbers each, two ways differ by at most 1.5 spacings at the largest
    position. So far apart, values differ by as much of the largest difference between neighbors. Blending a row and
    a column of two values each rounds four times, by at most half an epsilon of the largest value, in both ways.
    """
    eps, bound = torch.finfo(logits_KHW.dtype).eps, 0.0
    for dim in (1, 2):
        last = logits_KHW.shape[dim] - 1
        if last:
            spacing = eps * 2.0 ** math.floor(math.log2(last))
            bound += 1.5 * spacing * float(logits_KHW.diff(dim=dim).abs().max())
    return bound + 4 * eps * float(logits_KHW.abs().max())


def test_bands_bound_the_memory() -> None:
    """60 classes at 1500x1500 are 540 MB of logits; what one band takes is a small part of that."""
    bands = resized_bands([stored(torch.randn(60, 8, 8))], (1500, 1500), align_corners=False)
    assert max(band.nbytes for _, band in bands) <= 8 << 20


def test_bands_bound_the_memory_of_the_steps_between_too() -> None:
    """A thumbnail that is prepared at a much larger size."""
    taken: list[int] = []

    def spied(source: LogitsMap) -> LogitsMap:
        def rows(start: int, stop: int) -> Tensor:
            result = source.rows(start, stop)
            taken.append(result.nbytes)
            return result

        return source._replace(rows=rows)

    prepared = resized(stored(torch.randn(10, 60, 60)), (480, 480), align_corners=False)
    for between in (prepared, averaged([(0, 0, prepared)], (480, 480))):
        taken.clear()
        bands = resized_bands([spied(between)], (24, 24), align_corners=False, band_bytes=10 * 4 * 480 * 60)
        assert len(list(bands)) == len(taken) == 8  # 3 rows, made of 60
        assert max(taken) <= 10 * 4 * 480 * 62


@pytest.mark.parametrize("align_corners", [False, True])
def test_mirroring_and_resizing_commute(align_corners: bool) -> None:
    logits = torch.randn(3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = resized(stored(logits), (31, 50), align_corners=align_corners).rows(0, 31).flip(2)
    before = resized(stored(logits.flip(2)), (31, 50), align_corners=align_corners).rows(0, 31)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-13)


# --- labels


@pytest.mark.parametrize(
    ("count", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int32), (300, torch.int32)]
)
def test_label_type_holds_every_class(count: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(count, 2, 2)
    logits[count - 1] = 1
    labels, probabilities = label_map([stored(logits)], (5, 6), align_corners=False)
    assert labels.dtype == dtype
    assert (labels == count - 1).all()
    assert probabilities is None


@pytest.mark.parametrize("framework", REFERENCES)
def test_only_classes_that_are_kept_are_predicted(framework: Any) -> None:
    model, image = tiny(), random_image()
    how = Protocol("a", **WINDOWS, scales=(1.0, 1.3), flip=True, framework=framework)
    keep = [20, 3, 7, 11]
    ((labels, confidence),) = predict(  # type: ignore[misc]
        EagerNetwork(model), [doubles(image, how)], [image.shape[:2]], how, keep=keep, confidence=True
    )
    # As if the network had no other classes
    few = ISANet(**{**model.config, "num_classes": 4, "classes": [model.classes[i] for i in keep], "palette": None})
    state = model.state_dict()
    for name in ("classifier.weight", "classifier.bias", "aux_classifier.weight", "aux_classifier.bias"):
        state[name] = state[name][keep]
    few.load_state_dict(state)
    ((few_labels, few_confidence),) = predict(  # type: ignore[misc]
        EagerNetwork(few.double().eval()), [doubles(image, how)], [image.shape[:2]], how, confidence=True
    )
    assert labels.dtype == torch.uint8
    assert len(labels.unique()) > 1
    assert torch.equal(labels.long(), torch.tensor(keep)[few_labels.long()])
    torch.testing.assert_close(confidence, few_confidence)
    ((everything, _),) = predict(EagerNetwork(model), [doubles(image, how)], [image.shape[:2]], how)  # type: ignore[misc]
    assert not set(everything.unique().tolist()) <= set(keep)


@pytest.mark.parametrize("keep", [[], [21], [-1], [1, 1]])
def test_wrong_classes_to_keep_are_refused(keep: Sequence[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.20"):
        predict(EagerNetwork(tiny()), [prepare(random_image(), PREPROCESSING)], [(45, 70)], keep=keep)


def test_labels_may_be_worked_on_in_place() -> None:
    ((labels, _),) = predict(EagerNetwork(tiny()), [prepare(random_image(), PREPROCESSING)], [(45, 70)])  # type: ignore[misc]
    labels[labels == labels[0, 0]] = 255
    assert labels[0, 0] == 255


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", [Protocol("whole"), *VARIANTS[-2:-1]], ids=lambda how: how.text)
def test_an_image_whose_logits_are_not_finite_has_no_labels(how: Protocol, value: float) -> None:
    model = tiny()
    images = [random_image(seed=0), random_image(seed=1), random_image(seed=2)]
    prepared = [doubles(image, how) for image in images]
    expected = predict(EagerNetwork(model), prepared, [(45, 70)] * 3, how)
    # A single cell, of a class that is not kept, wherever the mark of the second image is seen
    prepared[1][-1][:, :, :8] = 1e3

    def spoil(_module: object, inputs: tuple[Tensor], output: Tensor) -> None:
        output[inputs[0].amax(dim=(1, 2, 3)) > 900, 5, -1, -1] = value

    shown: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[0]))
    model.classifier.register_forward_hook(lambda module, _inputs, output: spoil(module, (shown[-1],), output))
    for keep in (None, [1, 2]):
        first, second, third = predict(EagerNetwork(model), prepared, [(45, 70)] * 3, how, keep=keep)
        assert second is None
        assert first is not None
        assert third is not None
    first, _, third = predict(EagerNetwork(model), prepared, [(45, 70)] * 3, how)
    for one, other in ((first, expected[0]), (third, expected[2])):
        assert one is not None
        assert other is not None
        assert torch.equal(one[0], other[0])


def test_the_error_says_what_to_do() -> None:
    error = not_finite("a.jpg", "float16")
    assert isinstance(error, IsanetError)
    assert "not finite for a.jpg, computing in float16" in str(error)
    assert "precision='float32'" in str(error)
    assert "isanet verify" in str(not_finite("a.jpg", "float32"))


@pytest.mark.parametrize(("precision", "dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_logits_are_widened_before_anything_is_made_of_them(precision: torch.dtype, dtype: torch.dtype) -> None:
    model = tiny().float()
    seen: list[torch.dtype] = []
    model.classifier.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    (maps,) = logits_maps(EagerNetwork(model, precision), [prepare(random_image(), PREPROCESSING)], protocol("whole"))
    assert seen == [dtype]
    assert maps is not None
    assert maps[0].like.dtype == torch.float32
    (maps,) = logits_maps(
        EagerNetwork(model.to(torch.bfloat16)), [prepare(random_image(), PREPROCESSING)], protocol("whole")
    )
    assert maps is not None
    assert maps[0].like.dtype == torch.float32


def test_a_line_of_pixels_can_be_seen_at_half_its_size() -> None:
    model = tiny()
    how = Protocol("half", scales=(0.5,), flip=True)
    for size in ((1, 40), (40, 1), (1, 1)):
        ((labels, _),) = predict(EagerNetwork(model), [(torch.zeros(3, *size),)], [size], how)  # type: ignore[misc]
        assert labels.shape == size


# --- protocols


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_named_protocol_runs(name: str) -> None:
    model, images = tiny(), [random_image(), random_image(60, 31)]
    prepared = [prepare(image, PREPROCESSING, name) for image in images]
    for image, result in zip(
        images, predict(EagerNetwork(model), prepared, [i.shape[:2] for i in images], name), strict=True
    ):
        assert result is not None
        assert result[0].shape == image.shape[:2]
    assert protocol(name) is PROTOCOLS[name] is protocol(PROTOCOLS[name])
    assert PROTOCOLS[name].name == name


def test_published_figures_name_their_protocol() -> None:
    assert {weights.metrics["protocol"] for weights in manifest.load_manifest().values()} == {"whole"}
    assert PROTOCOLS["whole"] == Protocol("whole", None, None, (1.0,), False, "sssegmentation")


def test_protocols_in_words() -> None:
    assert PROTOCOLS["whole"].text == "whole image, single scale, no flip"
    assert (
        PROTOCOLS["mmseg-slide-769-multiscale-flip"].text
        == "windows of 769x769 at stride 513x513, scales 0.5, 0.75, 1, 1.25, 1.5, 1.75, flip, as mmsegmentation"
    )
    assert Protocol("half", scales=(0.5,)).text == "whole image, scale 0.5, no flip"
    assert len({known.text for known in PROTOCOLS.values()}) == len(PROTOCOLS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (0, 5), "stride": (1, 1)}, "window must be two positive"),
        ({"window": (5, 5.0), "stride": (1, 1)}, "window must be two positive"),
        ({"window": (5,), "stride": (1, 1)}, "window must be two positive"),
        ({"window": (5, 5), "stride": (0, 1)}, "stride must be two positive"),
        ({"window": (5, 5), "stride": (5, 6)}, "gaps"),
        ({"window": (5, 5)}, "together"),
        ({"stride": (5, 5)}, "together"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, 0.0)}, "positive"),
        ({"scales": (-1.0,)}, "positive"),
        ({"scales": (float("nan"),)}, "positive"),
        ({"scales": (float("inf"),)}, "positive"),
        ({"framework": "detectron"}, "sssegmentation, mmsegmentation"),
    ],
)
def test_protocols_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PROTOCOLS["whole"], **changes)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'slide'.*whole, slide-512"):
        protocol("slide")
    with pytest.raises(ValueError, match="unknown protocol"):
        predict(EagerNetwork(tiny()), [], [], "slide")


def test_images_are_prepared_once_or_for_each_scale() -> None:
    image = random_image()
    (one,) = prepare(image, PREPROCESSING, "multiscale-flip")
    assert torch.equal(one, preprocess(image, **PREPROCESSING))
    several = prepare(image, PREPROCESSING, "mmseg-multiscale-flip")
    assert [tuple(tensor.shape[1:]) for tensor in several] == [
        (25, 39),
        (37, 58),
        (50, 78),
        (62, 96),
        (75, 117),
        (87, 135),
    ]
    assert torch.equal(several[1], preprocess(image, **(PREPROCESSING | {"short_edge": 37, "long_edge": 150})))
    with pytest.raises(ImageError, match="uint8"):
        prepare(image.astype(float), PREPROCESSING, "multiscale-flip")
    with pytest.raises(ValueError, match="not prepared for"):
        predict(EagerNetwork(tiny()), [several], [(45, 70)], "whole")
    with pytest.raises(ValueError, match="not prepared for"):
        predict(EagerNetwork(tiny()), [(one,)], [(45, 70)], "mmseg-multiscale-flip")
    with pytest.raises(ValueError, match="at least 1"):
        predict(EagerNetwork(tiny()), [(one,)], [(45, 70)], batch_size=0)


def test_protocols_do_not_need_torch() -> None:
    command = "import isanet.protocols, isanet.weights.manifest, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
