"""Images in, label maps out: sources, devices, precisions, threads, streams."""

from __future__ import annotations

import contextlib
import logging
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

import isanet
from isanet import protocols
from isanet.config import LogitsResize
from isanet.errors import ImageError, IsanetError
from isanet.images.preprocess import preprocess
from isanet.images.reading import MAX_PIXELS
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import predict, prepare
from isanet.inference.runtimes import choice
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.protocols import Protocol
from tests.helpers import processes

CLASSES = ("night", "fire", "grass", "water", "snow")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


class NearestColor(nn.Module):
    """A network whose answer is known: of each 8x8 cell, the class whose color is nearest to the mean."""

    classes = CLASSES
    palette = PALETTE
    label_space = "colors"
    logits_resize, protocol = "half_pixel", "whole"

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


def solid(index: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), PALETTE[index], np.uint8)


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
    assert isinstance(results, list)
    assert [result.labels.shape for result in results] == [(64, 96), (32, 48)]
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
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    model: Any = isanet.ISANet(num_classes=2, backbone="resnet14", width=2) if known else NearestColor()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    device = choice.find_device("auto")
    assert (device.type, choice.auto_precision(device, "auto", model)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "auto, float32, bfloat16, float16, int8"),
        ({"precision": "int8"}, "it is a NearestColor"),
        ({"compile": True}, "it is a NearestColor"),
        ({"device": "gpu"}, r"did you mean 'cuda'\?\); valid here are auto, cpu"),
        ({"device": "GPU:1"}, r"did you mean 'cuda:1'\?"),
        ({"device": "nvidia"}, r"did you mean 'cuda'\?"),
        ({"device": "cuda0"}, r"did you mean 'cuda:0'\?"),
        ({"device": "CPU"}, r"did you mean 'cpu'\?"),
        ({"device": "vulcan"}, r"vulcan' cannot be used \(Expected one of cpu"),
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


def test_the_device_may_be_the_second_argument_and_a_segmenter_says_what_it_is() -> None:
    segmenter = Segmenter("isanet_nano_toystreets", "cpu", precision="float32")
    assert segmenter.classes == segmenter.model.classes
    classes = "11 classes: road, sidewalk, building, …"
    assert repr(segmenter) == f"Segmenter(isanet_nano_toystreets: {classes}; cpu, float32, {segmenter.runtime})"
    own = Segmenter(isanet.from_pretrained("isanet_nano_toystreets", classes=["a\x1b[2J" + "b" * 99]), "cpu")
    own.model.provenance.clear()
    assert repr(own).startswith("Segmenter(ISANet: 1 class: a\ufffd[2Jbbb")
    assert len(repr(own)) < 100


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
        assert segmenter.protocol_reason == "as asked"
        assert f"by protocol {segmenter.protocol.name}: {segmenter.protocol.text} (as asked)" in caplog.messages[-1]
        prepared = [prepare(image, model.preprocessing, how)]
        ((labels, confidence),) = predict(EagerNetwork(model), prepared, how, confidence=True)  # type: ignore[misc,arg-type]
        model.batches.clear()
        results = segmenter([image, image], confidence=True)
        np.testing.assert_array_equal(results[1].labels, labels.numpy())
        np.testing.assert_allclose(results[1].confidence, confidence.numpy(), atol=1e-6)
        assert len(model.batches) > 1
    for own in ("whole", "mmseg-slide-769"):
        model.protocol = own
        with caplog.at_level(logging.INFO, logger="isanet"):
            assert make(model).protocol is protocols.PROTOCOLS[own]
        text = f"by protocol {own}: {protocols.PROTOCOLS[own].text} (the model's own)"
        assert (text in caplog.messages[-1]) is (own != "whole")  # which needs no words
        assert make(model, protocol="whole").protocol.name == "whole"
    assert next(make(model, protocol=windows).stream([image, image], batch_size=2)).labels.shape == (40, 50)
    with pytest.raises(ValueError, match="whole, flip, slide-512"):
        make(model, protocol="sliding")


def test_max_pixels_is_passed_on() -> None:
    assert make().max_pixels == MAX_PIXELS
    with pytest.raises(ImageError, match="limit of 100"):
        make(max_pixels=100)(halves())


def test_bytes_and_open_files_are_images(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(halves()).save(path)
    segmenter, expected = make(), make()(path).labels
    with path.open("rb") as file:
        for source in (path.read_bytes(), file):
            for result in (segmenter(source), *segmenter.stream(source), *segmenter([source, source])):  # type: ignore[arg-type]
                np.testing.assert_array_equal(result.labels, expected)
                assert result.path is None


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
    images = [solid(index, *size) for index, size in order]
    results = list(make().stream(iter(images), batch_size=batch_size))
    assert [(int(result.labels[0, 0]), result.labels.shape) for result in results] == order
    assert all((result.labels == result.labels[0, 0]).all() for result in results)
    assert not reading_threads()


def test_equal_sizes_go_through_the_model_together() -> None:
    model = NearestColor()
    sizes = [(16, 16), (16, 16), (16, 32), (32, 32), (16, 16)]  # 32x32 and 16x16 both become 64x64
    results = list(make(model).stream([solid(1, *size) for size in sizes], batch_size=4))
    assert [result.labels.shape for result in results] == sizes
    assert model.batches == [(3, 3, 64, 64), (1, 3, 64, 128), (1, 3, 64, 64)]


def test_batches_do_not_change_labels() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(6)]
    for one, many in zip(make().stream(images), make().stream(images, batch_size=3), strict=True):
        assert (one.labels != many.labels).mean() < 1e-3


@pytest.mark.parametrize("logits_resize", ["half_pixel", "corners", "asymmetric"])
def test_padded_images_in_batches_and_windows(logits_resize: LogitsResize) -> None:
    """The optimized network against the loaded one at full size; the content is cut out of the padding."""
    model = isanet.from_pretrained("isanet_nano_toystreets")
    model.logits_resize = logits_resize
    model.preprocessing = {
        **{name: model.preprocessing[name] for name in ("mean", "std")}, "pad_to": [192, 320], "pad_color": [9, 99, 200]
    }  # fmt: skip
    streets = [np.asarray(image) for image, _ in isanet.datasets.ToyStreets(2, split="test")]
    images = [streets[0], streets[0][100:190, :301], streets[1], streets[1][60:250, 5:200], streets[0].repeat(3, 0)]
    segmenter = make(model, precision="float32")
    results = list(segmenter.stream(images, batch_size=3))
    for image, result in zip(images, results, strict=True):
        prepared = prepare(image, model.preprocessing)
        (height, width), full = prepared.contents[0], prepared.tensors[0]
        with torch.inference_mode():
            logits = model(full[None])[..., :height, :width]
            expected = F.interpolate(logits, image.shape[:2], mode="bilinear").argmax(1)[0].numpy()
        assert len(np.unique(expected)) > 3
        assert (result.labels != expected).mean() < 1e-3
    network: Any = segmenter.network()
    segmenter.max_memory = network._bytes_at_once(1, 192 // 8, 320 // 8) * 2 // 3
    for whole, windows in zip(results, segmenter.stream(images, batch_size=3), strict=True):
        # Attention sees less in a window; a part cut out in another place would change nearly all
        assert 0 < (whole.labels != windows.labels).mean() < 0.4


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_stream_reads_no_further_than_a_batch_ahead(batch_size: int) -> None:
    pulled = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal pulled
        while True:  # endless: only a lazy reader comes back
            pulled += 1
            yield solid(pulled % 5)

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
        buffer = solid(0)
        for index in range(5):
            buffer[:] = PALETTE[index]
            yield buffer

    assert [int(result.labels[0, 0]) for result in make().stream(camera(), batch_size=2)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_images_are_reported_and_skipped(tmp_path: Path, batch_size: int) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("text")
    sources = [solid(1), bad, solid(2), solid(3), tmp_path / "missing.png", solid(4)]
    failed: list[tuple[object, IsanetError]] = []
    results = list(
        make().stream(sources, batch_size=batch_size, on_error=lambda source, error: failed.append((source, error)))
    )
    assert [int(result.labels[0, 0]) for result in results] == [1, 2, 3, 4]
    assert [source for source, _ in failed] == [bad, tmp_path / "missing.png"]
    assert all(isinstance(error, ImageError) for _, error in failed)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_image_raises_after_the_results_before_it(tmp_path: Path, batch_size: int) -> None:
    stream = make().stream([solid(1), solid(2), tmp_path / "missing.png", solid(3)], batch_size=batch_size)
    assert [int(next(stream).labels[0, 0]) for _ in range(2)] == [1, 2]
    with pytest.raises(ImageError, match="missing"):
        next(stream)
    assert not reading_threads()


ONEDNN = "could not create a primitive"
OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "error", [RuntimeError(OUT_OF_MEMORY), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_an_image_that_takes_more_memory_than_there_is_fails_alone(batch_size: int, error: Exception) -> None:
    class Full(NearestColor):
        def coarse_logits(self, images: Tensor) -> Tensor:
            if (images.mean(dim=(1, 2, 3)) > 0.99).any():  # class 4, white
                raise error
            return super().coarse_logits(images)

    sources, failed = [solid(1), solid(4), solid(2), solid(3)], []
    stream = make(Full()).stream(sources, batch_size=batch_size, on_error=lambda *failure: failed.append(failure))
    assert [int(result.labels[0, 0]) for result in stream] == [1, 2, 3]
    ((source, reason),) = failed
    assert source is sources[1]
    assert str(reason).startswith("there is not enough memory for this image; ")
    with pytest.raises(IsanetError, match="not enough memory"):
        make(Full())(solid(4))


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken(NearestColor):
        def coarse_logits(self, images: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(make(Broken()).stream([solid(1)], on_error=lambda *_: None))


def test_reading_without_memory_is_the_failure_of_that_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        Image.fromarray(solid(number, 16 + number)).save(tmp_path / f"{number}.png")
    load = Image.Image.load

    def full(image: Image.Image) -> Any:
        if image.height == 17:
            raise MemoryError
        return load(image)

    monkeypatch.setattr(Image.Image, "load", full)
    failed: list[Any] = []
    results = list(make().stream(tmp_path, on_error=lambda *failure: failed.append(failure)))
    assert [result.labels.shape[0] for result in results] == [16, 18]
    ((source, reason),) = failed
    assert str(reason).startswith(f"there is not enough memory to read {source}; ")


def test_a_process_forked_after_use_does_not_hang() -> None:
    code = """
import os, signal
import torch
from tests.inference.test_segmenter import make, solid
torch.set_num_threads(2)
segmenter = make()
segmenter(solid(1, 600, 800))
if not (child := os.fork()):
    signal.alarm(20)
    segmenter(solid(1, 600, 800))
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    process = processes.python(code, OMP_NUM_THREADS="2")
    out, err = process.communicate(timeout=120)
    assert out == "0\n"
    assert "forked after a network had run" in err


def test_a_row_too_wide_for_the_memory_is_refused() -> None:
    segmenter = make(max_memory=12 * len(CLASSES) * 300)
    assert segmenter(solid(1, 2, 300)).labels.shape == (2, 300)
    with pytest.raises(ImageError, match=r"301 pixels wide.*max_memory"):
        segmenter(solid(1, 2, 301))


def test_one_image_that_overflows_does_not_spoil_its_batch() -> None:
    class Overflowing(NearestColor):
        def coarse_logits(self, images: Tensor) -> Tensor:
            logits = super().coarse_logits(images)
            return torch.where(images.mean(dim=(1, 2, 3), keepdim=True) > 0.99, torch.nan, logits)

    failed: list[object] = []
    sources = [solid(1), solid(4), solid(2)]  # 4: white
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
    Image.fromarray(solid(2)).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(solid(2))):
        (result,) = make().stream(source)  # type: ignore[arg-type]
        assert (result.labels == 2).all()


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(solid(1, 300, 300)).save(path)
    segmenter = make()
    peaks = []
    for count in (5, 60):
        tracemalloc.start()
        for _ in segmenter.stream([path] * count, batch_size=2):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 1_000_000  # 60 images are 16 MB


# --- saving


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
