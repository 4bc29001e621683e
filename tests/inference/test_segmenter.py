from __future__ import annotations

import contextlib
import io
import logging
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

import isanet
from isanet import protocols
from isanet.errors import ImageError, IsanetError, OutputError
from isanet.images.preprocess import preprocess
from isanet.images.reading import MAX_PIXELS
from isanet.inference import predict as inference
from isanet.inference import segmenter as module
from isanet.inference.network import EagerNetwork
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.labels import label_space
from isanet.protocols import Protocol

CLASSES = ("night", "fire", "grass", "water", "snow")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


class NearestColor(nn.Module):
    """A network whose answer is known: of each 8x8 cell, the class whose color is nearest to the mean."""

    classes = CLASSES
    palette = PALETTE
    label_space = "colors"
    align_corners = False

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.preprocessing: dict[str, Any] = {
            "short_edge": 64, "long_edge": 256, "mean": (127.5,) * 3, "std": (127.5,) * 3
        }  # fmt: skip
        colors = torch.tensor(PALETTE) / 127.5 - 1
        self.conv = nn.Conv2d(3, len(CLASSES), 1)
        self.conv.weight.data = gain * 2 * colors[:, :, None, None]
        self.conv.bias.data = -gain * colors.square().sum(dim=1)
        self.batches: list[tuple[int, ...]] = []  # shapes that were asked for

    def coarse_logits(self, images: Tensor) -> Tensor:
        assert not self.training
        self.batches.append(tuple(images.shape))
        logits: Tensor = self.conv(F.avg_pool2d(images, 8, ceil_mode=True))
        return logits

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.coarse_logits(images), size=size, mode="bilinear", align_corners=False)


def make(model: nn.Module | None = None, **options: Any) -> Segmenter:
    return Segmenter(model or NearestColor(), device="cpu", **options)  # type: ignore[arg-type]


def halves(height: int = 64, width: int = 96, left: int = 1, right: int = 3) -> np.ndarray:
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = PALETTE[left], PALETTE[right]
    return image


def plain(index: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), PALETTE[index], np.uint8)


def result_of(labels: np.ndarray, **changes: Any) -> Segmentation:
    image = np.full((*labels.shape, 3), 200, np.uint8)
    return Segmentation(**({"labels": labels, "classes": CLASSES, "palette": PALETTE, "image": image} | changes))


# --- labels


def test_labels_are_where_the_colors_are() -> None:
    result = make()(halves())
    assert result.labels.dtype == np.uint8
    assert result.labels.shape == (64, 96)
    assert (result.labels[:, :44] == 1).all()
    assert (result.labels[:, 52:] == 3).all()
    np.testing.assert_array_equal(result.image, halves())
    assert (result.classes, result.palette, result.label_space) == (CLASSES, PALETTE, "colors")
    assert result.path is None
    assert result.confidence is None


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 13), (300, 40), (64, 96), (130, 257)])
def test_labels_have_the_size_of_the_image_and_the_values_of_the_full_size_logits(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    model = NearestColor()
    result = make(model)(image)
    assert result.labels.shape == size
    tensor = preprocess(image, **model.preprocessing)[None]
    with torch.no_grad():
        logits = model(tensor, size=size)[0]
    top = logits.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-4).numpy()  # where rounding cannot decide
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result.labels[clear], logits.argmax(0).numpy()[clear])


def test_confidence_is_the_softmax_probability_of_the_label() -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    model = NearestColor()
    result = make(model)(image, confidence=True)
    with torch.no_grad():
        logits = model(preprocess(image, **model.preprocessing)[None], size=(70, 90))[0]
    assert result.confidence is not None
    assert result.confidence.dtype == np.float32
    np.testing.assert_allclose(result.confidence, logits.softmax(0).amax(0).numpy(), atol=1e-5)
    assert result.confidence.max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_make_no_mask(value: float) -> None:
    model = NearestColor()
    model.conv.bias.data[2] = value
    with pytest.raises(IsanetError, match=r"not finite.*float32"):
        make(model)(halves())


# --- the segmenter and its model


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(halves()).save(path)
    segmenter = make()
    expected = segmenter(halves()).labels
    for source in (path, str(path), Image.fromarray(halves())):
        np.testing.assert_array_equal(segmenter(source).labels, expected)
    assert segmenter(str(path)).path == path
    results = segmenter([path, halves(32, 48)])
    assert [type(results), *(result.labels.shape for result in results)] == [list, (64, 96), (32, 48)]
    assert len(segmenter((path,))) == 1
    assert segmenter([]) == []


def test_folder_is_taken_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", ".hidden.png"):
        Image.fromarray(halves()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "deeper").mkdir()
    Image.fromarray(halves()).save(tmp_path / "deeper" / "d.png")
    names = ["a.JPG", "b.png", "c.webp"]
    assert [result.path.name for result in make()(tmp_path)] == names
    assert [result.path and result.path.name for result in make().stream(str(tmp_path))] == names
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in the folder"):
        make()(tmp_path / "empty")


def test_image_turned_by_exif_has_upright_labels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: the left half is shown on top
    Image.fromarray(halves()).save(tmp_path / "a.png", exif=exif)
    result = make()(tmp_path / "a.png")
    assert result.labels.shape == (96, 64)
    assert (result.labels[:44] == 1).all()
    assert (result.labels[52:] == 3).all()


def test_model_keeps_its_weights_and_is_put_into_evaluation_mode() -> None:
    model = NearestColor().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segmenter = make(model, precision="bfloat16")
    assert segmenter.model is model  # type: ignore[comparison-overlap]
    assert not model.training
    model.train()  # a training step in between must not change what images give
    result = segmenter(halves())
    assert not model.training
    assert (result.labels[:, :44] == 1).all()
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_is_that_of_the_computation(precision: str) -> None:
    seen: list[torch.dtype] = []
    model = NearestColor()
    model.conv.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    result = make(model, precision=precision)(halves(), confidence=True)
    assert seen == [getattr(torch, precision)]
    assert (result.labels[:, :44] == 1).all()
    assert result.confidence is not None
    assert result.confidence.dtype == np.float32


def test_automatic_choices_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="isanet"):
        segmenter = Segmenter(NearestColor(), precision="float32")  # type: ignore[arg-type]
        make()
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert segmenter.device.type == best
    assert f"segmenting on {best} (the best available) in float32 (as asked)" in caplog.messages
    assert "segmenting on cpu (as asked) in float32 (the default for this device)" in caplog.messages


@pytest.mark.parametrize(
    ("cuda", "mps", "bf16", "known", "expected"),
    [
        (True, True, True, True, ("cuda", "bfloat16")),
        (True, False, True, False, ("cuda", "bfloat16")),
        (True, False, False, True, ("cuda", "float16")),
        (False, True, False, True, ("mps", "float32")),
        (False, False, True, True, ("cpu", "bfloat16")),
        (False, False, True, False, ("cpu", "float32")),
        (False, False, False, True, ("cpu", "float32")),
    ],
)
def test_automatic_device_and_precision(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, bf16: bool, known: bool, expected: tuple[str, str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    model: Any = isanet.ISANet(num_classes=2, backbone="resnet14", width=2) if known else NearestColor()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    device = module._device("auto")
    assert (device.type, module._auto_precision(device, model)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "auto, float32, bfloat16, float16, int8"),
        ({"precision": "int8"}, "it is a NearestColor"),
        ({"compile": True}, "it is a NearestColor"),
        ({"device": "gpu"}, "valid here are auto, cpu"),
        ({"device": "cuda:99"}, "valid here are auto, cpu"),
        ({"device": None}, "valid here are auto, cpu"),
    ],
)
def test_wrong_choices_name_the_valid_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter(NearestColor(), **options)  # type: ignore[arg-type]


def test_model_without_preprocessing_is_refused() -> None:
    model = NearestColor()
    model.preprocessing = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="short_edge"):
        make(model)


def test_name_of_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NearestColor()
    asked: list[object] = []
    monkeypatch.setattr("isanet.zoo.pretrained.from_pretrained", lambda name: asked.append(name) or model)
    assert Segmenter("isanet_r50_voc", device="cpu").model is model  # type: ignore[comparison-overlap]
    assert asked == ["isanet_r50_voc"]


def test_protocol_is_followed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    model = NearestColor()
    windows = Protocol("windows", (48, 48), (30, 20))
    for how in ("mmseg-multiscale-flip", "multiscale-flip", windows):
        with caplog.at_level(logging.INFO, logger="isanet"):
            segmenter = make(model, protocol=how)
        assert segmenter.protocol == protocols.protocol(how)
        assert f"by protocol {segmenter.protocol.name}: {segmenter.protocol.text}" in caplog.messages[-1]
        prepared = [inference.prepare(image, model.preprocessing, how)]
        ((labels, confidence),) = inference.predict(EagerNetwork(model), prepared, [(40, 50)], how, confidence=True)  # type: ignore[misc,arg-type]
        model.batches.clear()
        results = segmenter([image, image], confidence=True)
        np.testing.assert_array_equal(results[1].labels, labels.numpy())
        np.testing.assert_allclose(results[1].confidence, confidence.numpy(), atol=1e-6)
        assert len(model.batches) > 1
    with caplog.at_level(logging.INFO, logger="isanet"):
        assert make(model).protocol.name == "whole"
    assert "protocol" not in caplog.messages[-1]
    assert next(make(model, protocol=windows).stream([image, image], batch_size=2)).labels.shape == (40, 50)
    with pytest.raises(ValueError, match="whole, slide-512"):
        make(model, protocol="sliding")


def test_max_pixels_is_passed_on() -> None:
    assert make().max_pixels == MAX_PIXELS
    with pytest.raises(ImageError, match="limit of 100"):
        make(max_pixels=100)(halves())


# --- threads


@pytest.mark.parametrize("known", [True, False])
def test_threads_may_share_a_segmenter(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, (48, 40 + 8 * i, 3), dtype=np.uint8) for i in range(6)]

    def segmenter() -> Segmenter:
        return Segmenter("isanet_nano_toystreets" if known else NearestColor(), device="cpu")  # type: ignore[arg-type]

    sequential = segmenter()
    expected = [sequential(image, confidence=True) for image in sources]
    made: list[object] = []
    make_network = Segmenter._make_network
    monkeypatch.setattr(Segmenter, "_make_network", lambda self: made.append(self) or make_network(self))
    shared, start = segmenter(), threading.Barrier(len(sources))

    def run(index: int) -> list[Segmentation]:
        start.wait(60)  # the first use in all at once
        return [shared(sources[index], confidence=True) for _ in range(5)]

    with ThreadPoolExecutor(len(sources)) as pool:
        results = list(pool.map(run, range(len(sources))))
    assert len(made) == 1
    for one, several in zip(expected, results, strict=True):
        for other in several:
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.confidence, other.confidence)


# --- streams


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("isanet-read")]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_stream_keeps_the_order_whatever_the_sizes(batch_size: int) -> None:
    order = [(i % 5, (16, 16) if i % 3 else (16, 24)) for i in range(13)]
    images = [plain(index, *size) for index, size in order]
    results = list(make().stream(iter(images), batch_size=batch_size))
    assert [(int(result.labels[0, 0]), result.labels.shape) for result in results] == order
    assert all((result.labels == result.labels[0, 0]).all() for result in results)
    assert not reading_threads()


def test_equal_sizes_go_through_the_model_together() -> None:
    model = NearestColor()
    sizes = [(16, 16), (16, 16), (16, 32), (32, 32), (16, 16)]  # 32x32 and 16x16 both become 64x64
    results = list(make(model).stream([plain(1, *size) for size in sizes], batch_size=4))
    assert [result.labels.shape for result in results] == sizes
    assert model.batches == [(3, 3, 64, 64), (1, 3, 64, 128), (1, 3, 64, 64)]


def test_batches_do_not_change_labels() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(6)]
    for one, many in zip(make().stream(images), make().stream(images, batch_size=3), strict=True):
        assert (one.labels != many.labels).mean() < 1e-3


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_stream_reads_no_further_than_a_batch_ahead(batch_size: int) -> None:
    pulled = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal pulled
        while True:  # endless: only a lazy reader comes back
            pulled += 1
            yield plain(pulled % 5)

    stream = make().stream(images(), batch_size=batch_size)
    assert pulled == 0
    for count in range(1, 20):
        next(stream)
        assert pulled <= count + 2 * batch_size
    assert len(reading_threads()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert not reading_threads()


def test_stream_takes_one_buffer_filled_again_and_again() -> None:
    def camera() -> Iterator[np.ndarray]:
        buffer = plain(0)
        for index in range(5):
            buffer[:] = PALETTE[index]
            yield buffer

    assert [int(result.labels[0, 0]) for result in make().stream(camera(), batch_size=2)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_images_are_reported_and_skipped(tmp_path: Path, batch_size: int) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("text")
    sources = [plain(1), bad, plain(2), plain(3), tmp_path / "missing.png", plain(4)]
    failed: list[tuple[object, IsanetError]] = []
    results = list(
        make().stream(sources, batch_size=batch_size, on_error=lambda source, error: failed.append((source, error)))
    )
    assert [int(result.labels[0, 0]) for result in results] == [1, 2, 3, 4]
    assert [source for source, _ in failed] == [bad, tmp_path / "missing.png"]
    assert all(isinstance(error, ImageError) for _, error in failed)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_image_raises_after_the_results_before_it(tmp_path: Path, batch_size: int) -> None:
    stream = make().stream([plain(1), plain(2), tmp_path / "missing.png", plain(3)], batch_size=batch_size)
    assert [int(next(stream).labels[0, 0]) for _ in range(2)] == [1, 2]
    with pytest.raises(ImageError, match="missing"):
        next(stream)
    assert not reading_threads()


def test_one_image_that_overflows_does_not_spoil_its_batch() -> None:
    class Overflowing(NearestColor):
        def coarse_logits(self, images: Tensor) -> Tensor:
            logits = super().coarse_logits(images)
            return torch.where(images.mean(dim=(1, 2, 3), keepdim=True) > 0.99, torch.nan, logits)

    failed: list[object] = []
    sources = [plain(1), plain(4), plain(2)]  # 4: white
    results = list(
        make(Overflowing()).stream(sources, batch_size=3, on_error=lambda source, _error: failed.append(source))
    )
    assert [int(result.labels[0, 0]) for result in results] == [1, 2]
    assert len(failed) == 1
    assert failed[0] is sources[1]


def test_wrong_batch_size_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make().stream([], batch_size=0)


def test_stream_of_a_single_source(tmp_path: Path) -> None:
    Image.fromarray(plain(2)).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(plain(2))):
        (result,) = make().stream(source)  # type: ignore[arg-type]
        assert (result.labels == 2).all()


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(plain(1, 300, 300)).save(path)
    segmenter = make()
    peaks = []
    for count in (5, 60):
        tracemalloc.start()
        for _ in segmenter.stream([path] * count, batch_size=2):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 1_000_000  # 60 images are 16 MB


# --- what can be made of a result


def test_areas_are_sorted_and_sum_to_one() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:6], labels[6:9] = 3, 1
    areas = result_of(labels).areas()
    assert list(areas.items()) == [("water", 0.6), ("fire", 0.3), ("night", 0.1)]
    odd = np.random.default_rng(0).integers(0, 5, (2100, 2101)).astype(np.uint8)  # counted in more than one part
    assert sum(result_of(odd).areas().values()) == pytest.approx(1, abs=1e-12)
    assert result_of(odd).areas()["fire"] == pytest.approx((odd == 1).mean(), abs=1e-12)


def test_text() -> None:
    labels = np.array([[0, 1, 2, 3]] * 2, np.uint8)
    assert repr(result_of(labels)) == "Segmentation(4x2: night 0.25, fire 0.25, grass 0.25, …)"
    assert str(result_of(labels[:, :1])) == "Segmentation(1x2: night 1.00)"


def many_classes(count: int, labels: np.ndarray) -> Segmentation:
    palette = tuple((i % 256, i // 256, 7) for i in range(count))
    return result_of(labels, classes=tuple(f"class {i}" for i in range(count)), palette=palette)


def test_colored() -> None:
    labels = np.array([[0, 1], [3, 4]], np.uint8)
    image = result_of(labels).colored()
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(PALETTE)[labels])
    many = many_classes(300, np.array([[299, 0]], np.int32)).colored()
    assert many.mode == "RGB"
    assert many.getpixel((0, 0)) == (43, 1, 7)


def test_overlay_blends_at_the_size_of_the_image() -> None:
    labels = np.array([[0, 1], [3, 4]], np.uint8)
    result = result_of(labels)
    np.testing.assert_array_equal(np.asarray(result.overlay(0, legend=False)), result.image)
    np.testing.assert_array_equal(np.asarray(result.overlay(1, legend=False)), np.array(PALETTE)[labels])
    half = np.asarray(result.overlay(0.5, legend=False)).astype(int)
    assert np.abs(half - (200 + np.array(PALETTE)[labels]) / 2).max() <= 1
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            result.overlay(alpha)


@pytest.mark.parametrize("count", [1, 5, 60, 150, 300])
@pytest.mark.parametrize(
    "size", [(1, 1), (20, 20), (300, 451), (100, 2000), (2000, 100), (1, 500), (500, 1), (1500, 2250)]
)
def test_overlay_with_legend_is_whole_on_any_image(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int
) -> None:
    labels = (np.arange(size[0] * size[1]) % count).reshape(size).astype(np.uint8 if count <= 256 else np.int32)
    result = many_classes(count, labels)
    drawn: list[tuple[tuple[float, float, float, float], str]] = []
    plain_text = ImageDraw.ImageDraw.text

    def text(self: Any, position: tuple[float, float], words: str, **options: Any) -> None:
        assert options["font"].size >= 13
        drawn.append((self.textbbox(position, words, font=options["font"], anchor=options["anchor"]), words))
        plain_text(self, position, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    overlay = result.overlay()
    assert overlay.mode == "RGB"
    # the image itself, enlarged by a whole factor if tiny, is at the top left, untouched by the legend
    factor = max(1, -(-240 // max(size)))
    body = np.asarray(result.overlay(legend=False)).repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(np.asarray(overlay)[: body.shape[0], : body.shape[1]], body)
    # every class is named once, with its share; no text overlaps another, leaves the canvas or covers the image
    present = len(np.unique(labels))
    assert [words for _, words in drawn[::2]] == [f"class {index}" for index in range(present)]
    assert all(words.endswith("%") for _, words in drawn[1::2])
    boxes = np.array([box for box, _ in drawn])
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= overlay.width).all()
    assert (boxes[:, 3] <= overlay.height).all()
    assert ((boxes[:, 0] >= body.shape[1]) | (boxes[:, 1] >= body.shape[0])).all()
    for index, box in enumerate(boxes):
        rest = boxes[index + 1 :]
        apart = (rest[:, 0] >= box[2]) | (rest[:, 2] <= box[0]) | (rest[:, 1] >= box[3]) | (rest[:, 3] <= box[1])
        assert apart.all()


def test_legend_swatch_has_the_color_of_the_class() -> None:
    overlay = np.asarray(result_of(np.full((300, 400), 2, np.uint8)).overlay())
    panel = overlay[300:]
    assert (panel == PALETTE[2]).all(axis=-1).sum() > 50
    assert (panel == 255).all(axis=-1).mean() > 0.5  # plain background


def test_legend_takes_odd_names() -> None:
    result = result_of(np.zeros((30, 40), np.uint8), classes=("x" * 500 + "\n", "", "б", "a\nb", " "))
    assert result.overlay().width < 2000
    assert result_of(np.ones((30, 40), np.uint8), classes=result.classes).overlay().mode == "RGB"


def test_notebook_image_is_bounded() -> None:
    result = result_of(np.zeros((20, 4000), np.uint8))
    with Image.open(io.BytesIO(result._repr_png_())) as image:
        assert image.format == "PNG"
        assert max(image.size) == 1600


# --- other label spaces


def known(space: str, labels: np.ndarray, **changes: Any) -> Segmentation:
    names = label_space(space)
    return result_of(labels, classes=names.classes, palette=names.palette, label_space=space, **changes)


@pytest.mark.parametrize(
    ("space", "ids", "values"),
    [
        ("cityscapes19", "cityscapes-ids", {0: 7, 1: 8, 13: 26, 18: 33}),
        ("ade20k150", "ade20k-ids", {0: 1, 149: 150}),
        ("voc21", "voc-ids", {0: 0, 20: 20}),
    ],
)
def test_official_ids_and_back(space: str, ids: str, values: dict[int, int]) -> None:
    labels = np.arange(len(label_space(space)), dtype=np.uint8).reshape(1, -1)
    confidence = np.ones(labels.shape, np.float32)
    result = known(space, labels, path=Path("a.jpg"), confidence=confidence)
    official = result.to(ids)
    assert official.labels.dtype == np.uint8
    assert {index: int(official.labels[0, index]) for index in values} == values
    assert official.label_space == ids
    assert (official.classes, official.palette) == (label_space(ids).classes, label_space(ids).palette)
    assert official.path == Path("a.jpg")
    assert official.image is result.image
    assert official.confidence is confidence
    assert official.areas() == result.areas()  # the names are the same
    np.testing.assert_array_equal(
        np.asarray(official.colored().convert("RGB")), np.asarray(result.colored().convert("RGB"))
    )
    again = official.to(space)
    np.testing.assert_array_equal(again.labels, labels)
    assert (again.label_space, again.classes) == (space, result.classes)


def test_a_label_without_counterpart_is_named() -> None:
    result = known("cityscapes-ids", np.array([[7, 0, 0, 4]], np.uint8))
    with pytest.raises(ValueError, match=r"2 pixels are 'unlabeled' .*cityscapes-ids.*cityscapes19"):
        result.to("cityscapes19")
    assert known("cityscapes-ids", np.array([[7, 8]], np.uint8)).to("cityscapes19").labels.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="1 pixels are 'sky'"):
        known("cityscapes19", np.array([[0, 10]], np.uint8)).to({"sky": None})


def test_spaces_that_do_not_translate_are_named() -> None:
    with pytest.raises(ValueError, match=r"voc21.*cityscapes-ids"):
        known("voc21", np.zeros((1, 1), np.uint8)).to("cityscapes-ids")
    with pytest.raises(ValueError, match=r"custom \(5 classes.*voc21"):
        result_of(np.zeros((1, 1), np.uint8)).to("voc21")
    with pytest.raises(ValueError, match="unknown label space 'voc'"):
        known("voc21", np.zeros((1, 1), np.uint8)).to("voc")


def test_classes_are_merged() -> None:
    labels = np.array([[0, 13, 14, 15, 18]], np.uint8)
    result = known("cityscapes19", labels).to({"vehicle": ["car", "truck", "bus"]})
    assert [result.classes[index] for index in result.labels[0]] == ["road", "vehicle", "vehicle", "vehicle", "bicycle"]
    assert len(result.classes) == len(result.palette) == 17
    assert result.palette[result.classes.index("vehicle")] == (0, 0, 142)
    assert result.label_space is None
    assert result.labels.dtype == np.uint8
    own = result_of(np.arange(5, dtype=np.uint8).reshape(1, 5)).to({"nature": ["grass", "water"]})
    assert own.labels.tolist() == [[0, 1, 2, 2, 3]]
    assert own.classes == ("night", "fire", "nature", "snow")
    with pytest.raises(ValueError, match=r"'gras'.*did you mean 'grass'"):
        result_of(labels).to({"nature": ["gras", "water"]})


@pytest.mark.parametrize(("members", "dtype"), [(44, np.int32), (45, np.uint8)])
def test_merged_labels_have_the_type_that_holds_them(members: int, dtype: type) -> None:
    labels = np.arange(300, dtype=np.int32).reshape(1, -1)
    result = many_classes(300, labels).to({"first": [f"class {i}" for i in range(members)]})
    assert result.labels.dtype == dtype
    assert len(result.classes) == 301 - members
    assert result.labels[0].tolist() == [0] * members + list(range(1, 301 - members))


# --- saving


@pytest.mark.parametrize(("space", "ids"), [("cityscapes19", "cityscapes-ids"), ("ade20k150", "ade20k-ids")])
def test_ids_are_saved_as_the_servers_take_them(tmp_path: Path, space: str, ids: str) -> None:
    labels = np.arange(len(label_space(space)), dtype=np.uint8).reshape(1, -1)
    known(space, labels).to(ids).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image)[0], label_space(space).official_ids)
    known("voc21", np.array([[20, 0]], np.uint8)).to("voc-ids").save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[20, 0]]


def test_saved_labels_come_back(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (30, 41)).astype(np.uint8)
    path = tmp_path / "labels.PNG"
    result_of(labels).save(str(path))
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        np.testing.assert_array_equal(np.asarray(image), labels)
        palette = image.getpalette()
        assert palette is not None
        assert palette[:15] == [value for color in PALETTE for value in color]
    assert list(tmp_path.iterdir()) == [path]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode  # readable by those who may read other new files


@pytest.mark.parametrize("count", [2, 16, 17, 256, 300])
def test_saved_labels_come_back_for_any_number_of_classes(tmp_path: Path, count: int) -> None:
    labels = np.arange(count).reshape(1, -1).astype(np.uint8 if count <= 256 else np.int32)
    many_classes(count, labels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("P" if count <= 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize("name", ["a.jpg", "a.gif", "a.tif", "a", "a.png.webp"])
def test_only_png_is_saved(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.png only"):
        result_of(np.zeros((2, 2), np.uint8)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere does not exist"):
        result_of(np.zeros((2, 2), np.uint8)).save(tmp_path / "nowhere" / "a.png")


def test_failed_save_keeps_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    result_of(np.zeros((2, 2), np.uint8)).save(path)
    earlier = path.read_bytes()

    def full(self: Image.Image, target: BinaryIO, **_: Any) -> None:
        target.write(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OutputError, match="No space"):
            result_of(np.ones((2, 2), np.uint8)).save(path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
    result_of(np.ones((2, 2), np.uint8)).save(path)  # replaced
    assert path.read_bytes() != earlier


def test_the_image_itself_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(halves()).save(path)
    (tmp_path / "link.png").symlink_to(path)
    before = path.read_bytes()
    result = make()(path)
    for target in (path, tmp_path / "link.png"):
        with pytest.raises(ValueError, match="another name"):
            result.save(target)
    assert path.read_bytes() == before
