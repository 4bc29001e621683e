"""How fast a model is on the machine at hand: every precision and size against the plain way, in one run.

The plain way is what one writes without this package: the network as it was loaded in float32, logits resized to the
image's size all at once, argmax, colors. What is timed begins with the prepared image and ends with the colored
label map; reading and preparing the image are the same for all.
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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from isanet.images.reading import RGBImage
from isanet.inference.predict import prepare
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter

if TYPE_CHECKING:
    from isanet.model import ISANet


class Row(NamedTuple):
    """One way at one size.

    Attributes:
        size: (height, width) of the images, which go through the network as they are.
        way: "plain", a precision, or a precision with " compiled".
        seconds: Of one image, in ascending order: one for each repetition and image.
        first: Seconds from the loaded model to the first labels: weights made over, and compiled if asked for.
        memory: Peak bytes above those before the first image; None where the system does not tell.
        agreement: Share of pixels with the labels of the plain way, over all images.
    """

    size: tuple[int, int]
    way: str
    seconds: tuple[float, ...]
    first: float
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
) -> list[Row]:
    """Time, memory and labels of each precision at each size; ways take turns, so that a busy machine is fair to all.

    Args:
        model: An ISANet.
        images: RGB, cropped to the shape of each size and resized; for int8 they also are what it is calibrated on.
        sizes: (height, width) each.
        precisions: As of `isanet.Segmenter`.
        compile: Time every precision compiled too.
        device: As of `isanet.Segmenter`.
        repeats: How often each image is segmented, after once for warming up.
        progress: Show a progress bar; None shows it on a terminal.

    Returns:
        Rows by size, the plain way first.

    Raises:
        ValueError: There are no images, or what `isanet.Segmenter` raises.
    """
    if not images or repeats < 1:
        raise ValueError(f"a benchmark needs at least one image and one repetition, got {len(images)} and {repeats}")
    ways = [(precision, False) for precision in precisions]
    ways += [(precision, True) for precision in precisions if compile and precision != "int8"]
    rows: list[Row] = []
    own = model.preprocessing
    bar: Any = tqdm(
        total=len(sizes) * (len(ways) + 1) * len(images) * (repeats + 1),
        unit="image",
        disable=None if progress is None else not progress,
        leave=False,
    )
    try:
        with bar:
            for height, width in sizes:
                shaped = [np.asarray(ImageOps.fit(Image.fromarray(image), (width, height))) for image in images]
                model.preprocessing = {**(own or {}), "short_edge": min(height, width), "long_edge": max(height, width)}
                rows += _of_size(model, shaped, ways, device, repeats, bar)
    finally:
        model.preprocessing = own
    return rows


def _of_size(
    model: ISANet,
    images: Sequence[RGBImage],
    ways: Sequence[tuple[str, bool]],
    device: str,
    repeats: int,
    bar: Any,
) -> list[Row]:
    plain = Segmenter(model, device=device, precision="float32")
    prepared = [prepare(image, model.preprocessing or {}) for image in images]

    def plainly(index: int) -> NDArray[np.uint8]:
        with torch.inference_mode():
            (tensor,) = prepared[index]
            logits = model(tensor[None].to(plain.device), size=images[index].shape[:2])
            small = torch.uint8 if logits.shape[1] <= 256 else torch.int32
            labels: NDArray[np.uint8] = logits.argmax(1)[0].to(small).cpu().numpy()
        _colored(plain, labels, images[index])
        return labels

    def optimized(precision: str, compiled: bool) -> Callable[[int], NDArray[np.uint8]]:
        segmenter = Segmenter(model, device=device, precision=precision, compile=compiled, calibration=list(images[:8]))

        def run(index: int) -> NDArray[np.uint8]:
            with torch.inference_mode():
                (prediction,) = segmenter.predict([prepared[index]], [images[index].shape[:2]])
            if prediction is None:
                raise ValueError(f"in {precision} the network gives values that are not finite")
            labels: NDArray[np.uint8] = prediction[0].cpu().numpy()
            _colored(segmenter, labels, images[index])
            return labels

        return run

    runs: list[Callable[[int], NDArray[np.uint8]]] = []
    seconds: list[list[float]] = []
    first, memory, agreement = [], [], []
    labels: list[NDArray[np.uint8]] = []
    for way in (None, *ways):
        started = time.perf_counter()
        run = plainly if way is None else optimized(*way)
        run(0)
        first.append(time.perf_counter() - started)
        before = _start_of_peak(plain.device)
        given = []
        for index in range(len(images)):
            given.append(run(index))
            bar.update()
        memory.append(None if before is None else max(0, _peak(plain.device) - before))
        labels = labels or given
        agreement.append(float(np.mean([np.mean(one == other) for one, other in zip(given, labels, strict=True)])))
        runs.append(run)
        seconds.append([])
    for _ in range(repeats):
        for index in range(len(images)):
            for run, own in zip(runs, seconds, strict=True):
                started = time.perf_counter()
                run(index)
                own.append(time.perf_counter() - started)
                bar.update()
    names = ["plain", *(precision + " compiled" * compiled for precision, compiled in ways)]
    height, width = images[0].shape[:2]
    facts = zip(names, seconds, first, memory, agreement, strict=True)
    return [Row((height, width), name, tuple(sorted(own)), *rest) for name, own, *rest in facts]  # type: ignore[arg-type]


def _colored(segmenter: Segmenter, labels: NDArray[np.uint8], image: RGBImage) -> None:
    Segmentation(labels, segmenter.model.classes, segmenter.model.palette, image).colored().convert("RGB")


def _start_of_peak(device: torch.device) -> int | None:
    """Bytes in use, from which on the peak is counted anew; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):  # else what was freed earlier would hide what is taken now
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def machine() -> str:
    """What the figures were measured on, in a line."""
    name = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name}, torch {torch.__version__}"


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows of text, the head first: times in seconds an image, ratios to the plain way of the same size."""
    lines: list[tuple[str, ...]] = [("SIZE", "WAY", "MEDIAN s", "MIN", "MAX", "SPEED", "FIRST s", "MEMORY", "LABELS")]
    for row in rows:
        plain = next(other for other in rows if other.size == row.size and other.way == "plain")
        lines.append(
            (
                f"{row.size[0]}x{row.size[1]}",
                row.way,
                *(f"{value:.3f}" for value in (row.median, row.seconds[0], row.seconds[-1])),
                f"{plain.median / row.median:.2f}x",
                f"{row.first:.1f}",
                "-" if row.memory is None else f"{row.memory / 2**20:,.0f} MiB",
                f"{row.agreement:.2%}",
            )
        )
    return lines
