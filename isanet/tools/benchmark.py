"""How fast a model is on this machine: every precision and size against a baseline, in one run.

The baseline is what one writes without this package: the network as loaded, in eager float32, logits resized to the
image's size all at once, argmax, colors. Timing begins with the prepared image and ends with the colored label map;
reading and preparing images is the same for all.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from isanet.datasets import ToyStreets
from isanet.images.reading import RGBImage
from isanet.inference.fast.optimize import has_bfloat16
from isanet.inference.predict import prepare
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.model import ISANet

BASELINE = "baseline"

_Labels = NDArray[np.uint8] | NDArray[np.int32]
_RunImage = Callable[[int], _Labels]


class Measurement(NamedTuple):
    """One variant at one size.

    Attributes:
        size: (height, width) of the images, which go through the network as they are.
        variant: "baseline" (eager float32), a precision, or a precision with " compiled".
        seconds: Of one image, in ascending order: one for each repetition and image.
        startup: Seconds from the loaded model to the first labels, optimization and compilation included.
        memory: Peak bytes above those before the first image; None where the system does not tell.
        agreement: Share of pixels with the labels of the baseline, over all images.
    """

    size: tuple[int, int]
    variant: str
    seconds: tuple[float, ...]
    startup: float
    memory: int | None
    agreement: float

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def benchmark(
    model: ISANet,
    images: Sequence[RGBImage],
    *,
    sizes: Sequence[tuple[int, int]] = ((512, 512), (1024, 2048)),
    precisions: Sequence[str] = ("float32", "bfloat16", "int8"),
    compile: bool = False,
    device: str = "auto",
    repeats: int = 3,
    progress: bool | None = None,
) -> list[Measurement]:
    """Time, memory and labels of each precision at each size. Variants take turns, so that a busy machine is fair.

    Args:
        model: An ISANet.
        images: RGB, cropped to the shape of each size and resized; int8 is calibrated on them too.
        sizes: (height, width) each.
        precisions: As of `isanet.Segmenter`.
        compile: Measure every precision but int8 compiled too.
        device: As of `isanet.Segmenter`.
        repeats: How often each image is segmented, after once for warming up.
        progress: Show a progress bar; None shows it on a terminal.

    Returns:
        Measurements by size, the baseline first.

    Raises:
        ValueError: There are no images, labels cannot be computed in a precision, or what `isanet.Segmenter` raises.
    """
    if not images or repeats < 1:
        raise ValueError(f"a benchmark needs at least one image and one repetition, got {len(images)} and {repeats}")
    variants = [(precision, False) for precision in precisions]
    variants += [(precision, True) for precision in precisions if compile and precision != "int8"]
    measured: list[Measurement] = []
    preprocessing = model.preprocessing
    bar: Any = tqdm(
        total=len(sizes) * (len(variants) + 1) * len(images) * (repeats + 1),
        unit="image",
        disable=None if progress is None else not progress,
        leave=False,
    )
    try:
        with bar:
            for height, width in sizes:
                resized = [np.asarray(ImageOps.fit(Image.fromarray(image), (width, height))) for image in images]
                edges = {"short_edge": min(height, width), "long_edge": max(height, width)}
                model.preprocessing = {**(preprocessing or {}), **edges}
                measured += _measure(model, resized, variants, device, repeats, bar)
    finally:
        model.preprocessing = preprocessing
    return measured


def suitable_precisions(device: torch.device) -> list[str]:
    """The precisions worth measuring on a device: float32, a half precision that it computes in, int8 on the CPU."""
    half = ["bfloat16"] if has_bfloat16(device) else ["float16"] if device.type != "cpu" else []
    return ["float32", *half, *(["int8"] if device.type == "cpu" else [])]


def drawn_images() -> list[RGBImage]:
    """Two images of `isanet.datasets.ToyStreets`, for those who have none at hand."""
    streets = ToyStreets(2, split="test")
    return [np.asarray(streets[index][0]) for index in range(2)]


def _measure(
    model: ISANet,
    images: Sequence[RGBImage],
    variants: Sequence[tuple[str, bool]],
    device: str,
    repeats: int,
    bar: Any,
) -> list[Measurement]:
    """Measures the baseline and the variants at one size."""
    eager = Segmenter(model, device=device, precision="float32")
    prepared = [prepare(image, model.preprocessing or {}) for image in images]
    runs: list[_RunImage] = []
    startup, memory, agreement = [], [], []
    expected: list[_Labels] = []
    for variant in (None, *variants):
        started = time.perf_counter()
        if variant is None:
            run = _baseline(eager, images, prepared)
        else:
            precision, compiled = variant
            segmenter = Segmenter(
                model, device=device, precision=precision, compile=compiled, calibration=list(images[:8])
            )
            run = _optimized(segmenter, images, prepared)
        run(0)
        startup.append(time.perf_counter() - started)
        before = _start_of_peak(eager.device)
        labels = []
        for index in range(len(images)):
            labels.append(run(index))
            bar.update()
        memory.append(None if before is None else max(0, _peak(eager.device) - before))
        expected = expected or labels
        agreement.append(float(np.mean([np.mean(one == other) for one, other in zip(labels, expected, strict=True)])))
        runs.append(run)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for index in range(len(images)):
            for run, own in zip(runs, seconds, strict=True):
                started = time.perf_counter()
                run(index)
                own.append(time.perf_counter() - started)
                bar.update()
    names = [BASELINE, *(precision + " compiled" * compiled for precision, compiled in variants)]
    height, width = images[0].shape[:2]
    return [
        Measurement((height, width), name, tuple(sorted(seconds[i])), startup[i], memory[i], agreement[i])
        for i, name in enumerate(names)
    ]


def _baseline(segmenter: Segmenter, images: Sequence[RGBImage], prepared: Sequence[tuple[Tensor, ...]]) -> _RunImage:
    def run(index: int) -> _Labels:
        with torch.inference_mode():
            (tensor,) = prepared[index]
            logits = segmenter.model(tensor[None].to(segmenter.device), size=images[index].shape[:2])
            dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int32
            labels: _Labels = logits.argmax(1)[0].to(dtype).cpu().numpy()
        _color(segmenter, labels, images[index])
        return labels

    return run


def _optimized(segmenter: Segmenter, images: Sequence[RGBImage], prepared: Sequence[tuple[Tensor, ...]]) -> _RunImage:
    def run(index: int) -> _Labels:
        with torch.inference_mode():
            (prediction,) = segmenter.predict([prepared[index]], [images[index].shape[:2]])
        if prediction is None:
            raise ValueError(f"in {segmenter.precision} the network gives values that are not finite; use another one")
        labels: _Labels = prediction[0].cpu().numpy()
        _color(segmenter, labels, images[index])
        return labels

    return run


def _color(segmenter: Segmenter, labels: _Labels, image: RGBImage) -> None:
    Segmentation(labels, segmenter.model.classes, segmenter.model.palette, image).colored().convert("RGB")


def _start_of_peak(device: torch.device) -> int | None:
    """Bytes in use, from which on a new peak is measured; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):  # else memory that was freed earlier would hide new allocations
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _proc_status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _proc_status("VmHWM")


def _proc_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def machine() -> str:
    """What was measured on, in a line: threads, instruction set, GPU, version of torch."""
    name = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name}, torch {torch.__version__}"


def table(measured: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """Rows of text, the head first: times in seconds per image, speed relative to the baseline of the same size."""
    rows: list[tuple[str, ...]] = [
        ("SIZE", "VARIANT", "MEDIAN s", "MIN", "MAX", "SPEED", "STARTUP s", "MEMORY", "LABELS")
    ]
    for each in measured:
        baseline = next(other for other in measured if other.size == each.size and other.variant == BASELINE)
        rows.append(
            (
                f"{each.size[0]}x{each.size[1]}",
                each.variant,
                f"{each.median:.3f}",
                f"{each.seconds[0]:.3f}",
                f"{each.seconds[-1]:.3f}",
                f"{baseline.median / each.median:.2f}x",
                f"{each.startup:.1f}",
                "-" if each.memory is None else f"{each.memory / 2**20:,.0f} MiB",
                f"{each.agreement:.2%}",
            )
        )
    return rows
