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
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from isanet._progress import progress_bar
from isanet.datasets import ToyStreets
from isanet.images.reading import RGBImage
from isanet.inference.fast.optimize import has_bfloat16
from isanet.inference.predict import Prepared, prepare
from isanet.inference.runtimes.choice import find_device
from isanet.inference.runtimes.packages import NEEDED, why_absent
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.model import ISANet

BASELINE = "baseline"

_Labels = NDArray[np.uint8] | NDArray[np.int32]


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
    precisions: Sequence[str] | None = None,
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
        precisions: As of `isanet.Segmenter`; by default float32, a half precision that the device computes in, and
            int8 on CPUs with OpenVINO and NNCF.
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
    if precisions is None:
        precisions = _suitable_precisions(find_device(device))
    variants = [(precision, False) for precision in precisions]
    variants += [(precision, True) for precision in precisions if compile and precision != "int8"]
    measured: list[Measurement] = []
    total = len(sizes) * (len(variants) + 1) * len(images) * (repeats + 1)
    preprocessing = model.preprocessing
    sizing = {"short_edge", "long_edge", "pad_to", "pad_color"}
    model.preprocessing = {name: value for name, value in (preprocessing or {}).items() if name not in sizing}
    try:
        with progress_bar(total=total, unit="image", show=progress, leave=False) as bar:
            for height, width in sizes:
                resized = [np.asarray(ImageOps.fit(Image.fromarray(image), (width, height))) for image in images]
                measured += _measure(model, resized, variants, device, repeats, bar)
    finally:
        model.preprocessing = preprocessing
    return measured


def _suitable_precisions(device: torch.device) -> list[str]:
    half = ["bfloat16"] if has_bfloat16(device) else ["float16"] if device.type != "cpu" else []
    int8 = device.type == "cpu" and not any(map(why_absent, (*NEEDED["openvino"], "nncf")))
    return ["float32", *half, *(["int8"] if int8 else [])]


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
    """Measures the baseline and the variants (precision, compiled) at one size."""
    inputs = [(image, prepare(image, model.preprocessing or {})) for image in images]
    runs: list[partial[_Labels]] = []
    startup, memory, agreement = [], [], []
    expected: list[_Labels] = []
    for variant in (None, *variants):
        started = time.perf_counter()
        precision, compiled = variant or ("float32", False)
        segmenter = Segmenter(
            model, device=device, precision=precision, protocol="whole", compile=compiled, calibration=images
        )
        run = partial(_colored_labels, segmenter, variant is not None)
        run(*inputs[0])
        startup.append(time.perf_counter() - started)
        before = _start_of_peak(segmenter.device)
        labels = []
        for each in inputs:
            labels.append(run(*each))
            bar.update()
        memory.append(None if before is None else max(0, _peak(segmenter.device) - before))
        expected = expected or labels
        agreement.append(float(np.mean([np.mean(one == other) for one, other in zip(labels, expected, strict=True)])))
        runs.append(run)
    seconds: list[list[float]] = [[] for _ in runs]
    for each in inputs * repeats:
        for run, own in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run(*each)
            own.append(time.perf_counter() - started)
            bar.update()
    names = [BASELINE, *(precision + " compiled" * compiled for precision, compiled in variants)]
    height, width = images[0].shape[:2]
    return [
        Measurement((height, width), name, tuple(sorted(seconds[i])), startup[i], memory[i], agreement[i])
        for i, name in enumerate(names)
    ]


def _colored_labels(segmenter: Segmenter, optimized: bool, image: RGBImage, prepared: Prepared) -> _Labels:
    """The labels of an image, after they were colored too."""
    with torch.inference_mode():
        if optimized:
            (prediction,) = segmenter.predict([prepared])
            if prediction is None:
                raise ValueError(
                    f"in {segmenter.precision} the network returned values that are not finite; use another one"
                )
            labels: _Labels = prediction[0].cpu().numpy()
        else:
            assert isinstance(segmenter.model, ISANet)
            logits = segmenter.model(prepared.tensors[0][None].to(segmenter.device), size=prepared.size)
            labels = logits.argmax(1)[0].to(torch.uint8 if logits.shape[1] <= 256 else torch.int32).cpu().numpy()
    Segmentation(labels, segmenter.model.classes, segmenter.model.palette, image).colored().convert("RGB")
    return labels


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
        size = f"{each.size[0]}x{each.size[1]}"
        times = [f"{seconds:.3f}" for seconds in (each.median, each.seconds[0], each.seconds[-1])]
        speed = f"{baseline.median / each.median:.2f}x"
        memory = "-" if each.memory is None else f"{each.memory / 2**20:,.0f} MiB"
        rows.append((size, each.variant, *times, speed, f"{each.startup:.1f}", memory, f"{each.agreement:.2%}"))
    return rows
