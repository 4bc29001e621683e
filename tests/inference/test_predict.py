from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.config import LogitsResize
from isanet.errors import ImageError, IsanetError
from isanet.images.preprocess import content_size, preprocess
from isanet.inference.logits import resized_bands, stored
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import Prepared, label_map, logits_maps, not_finite, predict, prepare, window_starts
from isanet.model import ISANet
from isanet.protocols import PROTOCOLS, Protocol, protocol
from isanet.weights import convert
from tests.helpers import stand_in, tiny_zoo

PREPROCESSING: dict[str, Any] = {"short_edge": 50, "long_edge": 200, "mean": (127.5,) * 3, "std": (60.0,) * 3}
PADDED: dict[str, Any] = {"pad_to": (64, 96), "pad_color": (200, 100, 0), "mean": (127.5,) * 3, "std": (60.0,) * 3}
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
        logits = model.coarse_logits(prepare(random_image(), PREPROCESSING).tensors[0][None].double())
        spread, mean = torch.std_mean(logits, dim=(0, 2, 3))
        model.classifier.weight /= spread[:, None, None, None]
        model.classifier.bias.copy_((model.classifier.bias - mean) / spread)
    return model


def random_image(height: int = 45, width: int = 70, seed: int = 0) -> np.ndarray:
    patches = np.random.default_rng(seed).integers(0, 256, (height // 15 + 1, width // 15 + 1, 3), dtype=np.uint8)
    return patches.repeat(15, axis=0).repeat(15, axis=1)[:height, :width]


def doubles(image: np.ndarray, how: Protocol, preprocessing: dict[str, Any] = PREPROCESSING) -> Prepared:
    prepared = prepare(image, preprocessing, how)
    return prepared._replace(tensors=tuple(tensor.double() for tensor in prepared.tensors))


def result_of(
    model: ISANet,
    image: np.ndarray,
    how: Protocol,
    preprocessing: dict[str, Any] = PREPROCESSING,
    last: LogitsResize | None = None,
    band_bytes: int = 0,
) -> Tensor:
    """(K, H, W) averaged logits or probabilities, as labels are made of them."""
    (maps,) = logits_maps(EagerNetwork(model), [doubles(image, how, preprocessing)], how)
    assert maps is not None
    average = how.framework == "mmsegmentation"
    size = image.shape[0], image.shape[1]
    bands = resized_bands(maps, size, last or model.logits_resize, average_probabilities=average, band_bytes=band_bytes)
    return torch.cat([band for _, band in bands], dim=1)


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
    corners = model.logits_resize == "corners"
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
            output = F.interpolate(
                logits, size=image.shape[:2], mode="bilinear", align_corners=model.logits_resize == "corners"
            )
            probabilities = output.softmax(dim=1)
            results.append(probabilities.flip(3) if flip else probabilities)
    return torch.stack(results).mean(dim=0)[0]


@torch.inference_mode()
def reference_paddleseg(model: ISANet, image: np.ndarray, how: Protocol, preprocessing: dict[str, Any]) -> Tensor:
    prepared = preprocess(image, **preprocessing)[None].double()
    size, total = prepared.shape[2:], torch.zeros(())
    for scale in how.scales:
        scaled = F.interpolate(prepared, size=[int(side * scale + 0.5) for side in size], mode="bilinear")
        for flip in (False, True)[: 1 + how.flip]:
            seen = scaled.flip(3) if flip else scaled
            logits = slide(model, seen, how.window, how.stride) if how.window else model(seen)  # type: ignore[arg-type]
            logits = logits.flip(3) if flip else logits
            total = total + F.interpolate(logits, size=size, mode="bilinear")
    height, width = content_size(*image.shape[:2], preprocessing)
    total = total[:, :, :height, :width]
    if (height, width) != image.shape[:2]:
        total = F.interpolate(total, size=image.shape[:2], mode="bilinear")
    return total[0] / len(how.scales) / (1 + how.flip)


REFERENCES = {"sssegmentation": reference_sssegmentation, "mmsegmentation": reference_mmsegmentation}
VARIANTS = [
    Protocol("a", **windows, scales=scales, flip=flip, framework=framework)
    for framework in REFERENCES
    for windows in ({}, WINDOWS)
    for scales, flip in (((1.0,), False), ((1.0,), True), (SCALES, True))
]


@pytest.mark.parametrize("logits_resize", ["half_pixel", "corners"])
@pytest.mark.parametrize("how", VARIANTS, ids=lambda how: how.text)
def test_results_equal_the_frameworks(how: Protocol, logits_resize: LogitsResize) -> None:
    model, image = tiny(logits_resize=logits_resize), random_image()
    expected = REFERENCES[how.framework](model, image, how)
    assert (result_of(model, image, how) - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())
    check_labels(model, doubles(image, how), how, expected)


def check_labels(model: ISANet, prepared: Prepared, how: Protocol, expected: Tensor) -> None:
    assert len(expected.argmax(0).unique()) > 3
    ((labels, confidence),) = predict(EagerNetwork(model), [prepared], how, confidence=True)  # type: ignore[misc]
    assert torch.equal(labels, expected.argmax(0).to(torch.uint8))
    shares = expected if how.framework == "mmsegmentation" else expected.softmax(0)
    torch.testing.assert_close(confidence, shares.amax(0).float(), rtol=1e-5, atol=1e-6)


PADDLESEG = [
    Protocol("b", **windows, scales=scales, flip=flip, framework="paddleseg")
    for windows in ({}, WINDOWS)
    for scales, flip in (((1.0,), False), (SCALES, True))
]


@pytest.mark.parametrize("logits_resize", ["half_pixel", "corners", "asymmetric"])
@pytest.mark.parametrize(
    "how", [*PADDLESEG, PROTOCOLS["whole"], PROTOCOLS["flip"], Protocol("c", **WINDOWS)], ids=lambda how: how.text
)
def test_padded_images_are_cut_out_of_logits_as_by_paddleseg(how: Protocol, logits_resize: LogitsResize) -> None:
    model = tiny(logits_resize=logits_resize)
    # One that fits, one as large as the padded size, two that are resized to fit, one of them without padding
    for size in ((45, 70), (64, 96), (90, 140), (128, 192)):
        image = random_image(*size)
        expected = reference_paddleseg(model, image, how, PADDED)
        given = result_of(model, image, how, PADDED, last="half_pixel")
        assert (given - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())
        check_labels(model, doubles(image, how, PADDED), how, expected)


def test_asymmetric_logits_have_the_inputs_size_first_even_without_padding() -> None:
    """PaddleSeg, which alone has them, resizes them nowhere else, and a mirrored map of them differs elsewhere too."""
    model, image = tiny(logits_resize="asymmetric"), random_image()
    for how in (PROTOCOLS["whole"], PROTOCOLS["flip"]):
        expected = reference_paddleseg(model, image, how, PREPROCESSING)
        check_labels(model, doubles(image, how), how, expected)


def test_padding_grows_with_the_scale_where_a_framework_resizes_the_image() -> None:
    how = Protocol("d", scales=(0.5, 1.0), framework="mmsegmentation")
    prepared = prepare(random_image(90, 140), PADDED, how)
    assert [tuple(tensor.shape) for tensor in prepared.tensors] == [(3, 32, 48), (3, 64, 96)]
    assert prepared.contents == ((31, 48), (62, 96))
    assert prepared.size == (90, 140)
    (result,) = predict(EagerNetwork(tiny().float()), [prepared], how)
    assert result is not None
    assert result[0].shape == (90, 140)


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
    (maps,) = logits_maps(
        EagerNetwork(model), [Prepared((101, 117), tuple(stand_in.image(101, 117)), ())], how, batch_size=3
    )
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
    torch.testing.assert_close(
        result_of(model, image, how, band_bytes=60_000), whole, rtol=0, atol=1e-12
    )  # three rows at a time


@pytest.mark.parametrize("how", [one for one in VARIANTS if one.scales == SCALES], ids=lambda how: how.text)
def test_batches_do_not_matter(how: Protocol) -> None:
    model = tiny()
    seen = shapes_seen(model)
    images = [random_image(seed=0), random_image(50, 50, seed=1), random_image(seed=2), random_image(90, 140, seed=3)]
    prepared = [doubles(image, how) for image in images]
    alone = [predict(EagerNetwork(model), [one], how, confidence=True) for one in prepared]
    # 0, 2 and 3 have one size when prepared
    for batch_size, largest in ((1, 1), (None, 3), (7, 3 if how.window is None else 7)):
        seen.clear()
        together = predict(EagerNetwork(model), prepared, how, confidence=True, batch_size=batch_size)
        assert max(shape[0] for shape in seen) == largest
        for one, (other,), image in zip(together, alone, images, strict=True):
            assert one is not None
            assert other is not None
            assert one[0].shape == image.shape[:2]
            assert torch.equal(one[0], other[0])
            torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-6)


# --- labels


@pytest.mark.parametrize(
    ("count", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int32), (300, torch.int32)]
)
def test_label_type_holds_every_class(count: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(count, 2, 2)
    logits[count - 1] = 1
    labels, probabilities = label_map([stored(logits)], (5, 6), "half_pixel")
    assert labels.dtype == dtype
    assert (labels == count - 1).all()
    assert probabilities is None


@pytest.mark.parametrize("framework", REFERENCES)
def test_only_classes_that_are_kept_are_predicted(framework: Any) -> None:
    model, image = tiny(), random_image()
    how = Protocol("a", **WINDOWS, scales=(1.0, 1.3), flip=True, framework=framework)
    keep = [20, 3, 7, 11]
    ((labels, confidence),) = predict(  # type: ignore[misc]
        EagerNetwork(model), [doubles(image, how)], how, keep=keep, confidence=True
    )
    # As if the network had no other classes
    few = ISANet(**{**model.config, "num_classes": 4, "classes": [model.classes[i] for i in keep], "palette": None})
    state = model.state_dict()
    for name in ("classifier.weight", "classifier.bias", "aux_classifier.weight", "aux_classifier.bias"):
        state[name] = state[name][keep]
    few.load_state_dict(state)
    ((few_labels, few_confidence),) = predict(  # type: ignore[misc]
        EagerNetwork(few.double().eval()), [doubles(image, how)], how, confidence=True
    )
    assert labels.dtype == torch.uint8
    assert len(labels.unique()) > 1
    assert torch.equal(labels.long(), torch.tensor(keep)[few_labels.long()])
    torch.testing.assert_close(confidence, few_confidence)
    ((everything, _),) = predict(EagerNetwork(model), [doubles(image, how)], how)  # type: ignore[misc]
    assert not set(everything.unique().tolist()) <= set(keep)


@pytest.mark.parametrize("keep", [[], [21], [-1], [1, 1]])
def test_wrong_classes_to_keep_are_refused(keep: Sequence[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.20"):
        predict(EagerNetwork(tiny()), [prepare(random_image(), PREPROCESSING)], keep=keep)


def test_labels_may_be_worked_on_in_place() -> None:
    ((labels, _),) = predict(EagerNetwork(tiny()), [prepare(random_image(), PREPROCESSING)])  # type: ignore[misc]
    labels[labels == labels[0, 0]] = 255
    assert labels[0, 0] == 255


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", [Protocol("whole"), *VARIANTS[-2:-1]], ids=lambda how: how.text)
def test_an_image_whose_logits_are_not_finite_has_no_labels(how: Protocol, value: float) -> None:
    model = tiny()
    images = [random_image(seed=0), random_image(seed=1), random_image(seed=2)]
    prepared = [doubles(image, how) for image in images]
    expected = predict(EagerNetwork(model), prepared, how)
    # A single cell, of a class that is not kept, wherever the mark of the second image is seen
    prepared[1].tensors[-1][:, :, :8] = 1e3

    def spoil(_module: object, inputs: tuple[Tensor], output: Tensor) -> None:
        output[inputs[0].amax(dim=(1, 2, 3)) > 900, 5, -1, -1] = value

    shown: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[0]))
    model.classifier.register_forward_hook(lambda module, _inputs, output: spoil(module, (shown[-1],), output))
    for keep in (None, [1, 2]):
        first, second, third = predict(EagerNetwork(model), prepared, how, keep=keep)
        assert second is None
        assert first is not None
        assert third is not None
    first, _, third = predict(EagerNetwork(model), prepared, how)
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
        ((labels, _),) = predict(EagerNetwork(model), [Prepared(size, (torch.zeros(3, *size),), ())], how)  # type: ignore[misc]
        assert labels.shape == size


# --- protocols


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_named_protocol_runs(name: str) -> None:
    model, images = tiny(), [random_image(), random_image(60, 31)]
    prepared = [prepare(image, PREPROCESSING, name) for image in images]
    for image, result in zip(images, predict(EagerNetwork(model), prepared, name), strict=True):
        assert result is not None
        assert result[0].shape == image.shape[:2]
    assert protocol(name) is PROTOCOLS[name] is protocol(PROTOCOLS[name])
    assert PROTOCOLS[name].name == name


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'slide'.*whole, flip, slide-512"):
        protocol("slide")
    with pytest.raises(ValueError, match="unknown protocol"):
        predict(EagerNetwork(tiny()), [], "slide")


def test_images_are_prepared_once_or_for_each_scale() -> None:
    image = random_image()
    one = prepare(image, PREPROCESSING, "multiscale-flip")
    assert one.contents == ()
    assert torch.equal(one.tensors[0], preprocess(image, **PREPROCESSING))
    several = prepare(image, PREPROCESSING, "mmseg-multiscale-flip")
    assert [tuple(tensor.shape[1:]) for tensor in several.tensors] == [
        (25, 39),
        (37, 58),
        (50, 78),
        (62, 96),
        (75, 117),
        (87, 135),
    ]
    assert torch.equal(several.tensors[1], preprocess(image, **(PREPROCESSING | {"short_edge": 37, "long_edge": 150})))
    with pytest.raises(ImageError, match="uint8"):
        prepare(image.astype(float), PREPROCESSING, "multiscale-flip")
    with pytest.raises(ValueError, match="not prepared for"):
        predict(EagerNetwork(tiny()), [several], "whole")
    with pytest.raises(ValueError, match="not prepared for"):
        predict(EagerNetwork(tiny()), [one], "mmseg-multiscale-flip")
    with pytest.raises(ValueError, match="at least 1"):
        predict(EagerNetwork(tiny()), [one], batch_size=0)
