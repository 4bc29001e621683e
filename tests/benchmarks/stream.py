"""Throughput on many images, relative to the network alone: `python -m tests.benchmarks.stream [NANO [R50]]`.

A folder of NANO photographs (default 200; R50 of them, default 6, for the large model) is segmented by the packaged
model, and by a full-size model with stand-in weights. In turn: the baseline, which is `predict` by the eager network on
images that were decoded and prepared before; `Segmenter.stream`; and `isanet segment` with overlays, without its
start-up. The photographs are scikit-image's (`pip install scikit-image`), as JPEG in sizes of cameras and phones.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from PIL import Image

import isanet
from isanet.cli import run as cli
from isanet.images import images_in, read_image
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import predict, prepare
from tests.helpers import stand_in

SIZES = ((640, 480), (500, 375), (480, 640), (1024, 768), (1280, 960), (800, 600))
REPEATS = 3


def photographs(folder: Path, count: int) -> None:
    from skimage import data

    sources = [Image.fromarray(image()) for image in (data.astronaut, data.cat, data.coffee, data.rocket)]
    folder.mkdir()
    for index in range(count):
        image = sources[index % len(sources)].resize(SIZES[index % len(SIZES)], Image.Resampling.LANCZOS)
        image.save(folder / f"{index:03}.jpg", quality=92)


def forwards(segmenter: isanet.Segmenter, folder: Path) -> float:
    """Seconds of the eager network and its label maps, one image after the other, with nothing in parallel."""
    network = EagerNetwork(segmenter.model, getattr(torch, segmenter.precision))
    total = 0.0
    for path in images_in(folder):
        image = read_image(path)
        prepared = prepare(image, segmenter.model.preprocessing, segmenter.protocol)
        start = time.perf_counter()
        with torch.inference_mode():
            ((labels, _),) = predict(network, [prepared])  # type: ignore[misc]
            labels.cpu()
        total += time.perf_counter() - start
    return total


def reading(segmenter: isanet.Segmenter, folder: Path) -> float:
    """Seconds of decoding and preparing alone."""
    start = time.perf_counter()
    for path in images_in(folder):
        prepare(read_image(path), segmenter.model.preprocessing, segmenter.protocol)
    return time.perf_counter() - start


def stream(segmenter: isanet.Segmenter, folder: Path, memory: dict[int, int] | None = None) -> float:
    start = time.perf_counter()
    for count, result in enumerate(segmenter.stream(folder), 1):
        assert result.path is not None
        if memory is not None and count % 20 == 0:
            memory[count] = resident()
    return time.perf_counter() - start


def command(segmenter: isanet.Segmenter, folder: Path) -> float:
    """Seconds of `isanet segment`, with a model that is already loaded."""
    with (
        tempfile.TemporaryDirectory() as output,
        mock.patch("isanet.inference.segmenter.Segmenter", return_value=segmenter),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        start = time.perf_counter()
        assert cli.main(["segment", str(folder), "--model", "loaded", "--output", output, "--quiet"]) == 0
        return time.perf_counter() - start


def resident() -> int:
    """Current memory of this process in MiB; Linux only."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def measure(name: str, segmenter: isanet.Segmenter, folder: Path, count: int) -> None:
    cases: dict[str, Callable[[isanet.Segmenter, Path], float]] = {
        "baseline: forwards alone": forwards,
        "decoding and preparing alone": reading,
        "Segmenter.stream": stream,
        "isanet segment": command,
    }
    memory: dict[int, int] = {}
    stream(segmenter, folder, memory)  # warms up, too
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(REPEATS):
        for case, run in cases.items():
            seconds[case].append(run(segmenter, folder))
    print(f"{name}, {count} photographs; on {segmenter.device} in {segmenter.precision}")
    baseline = seconds["baseline: forwards alone"]
    for case, values in seconds.items():
        middle = statistics.median(values)
        per = " ".join(f"{1000 * value / count:8.1f}" for value in (min(values), middle, max(values)))
        ratios = (
            f"{min(values) / min(baseline):.2f}x the baseline (medians {middle / statistics.median(baseline):.2f}x)"
        )
        print(f"  {case:30} {per} ms an image, {ratios}")
    print("  memory " + ", ".join(f"at image {count} {size} MiB" for count, size in memory.items()), flush=True)


def main(nano: int, r50: int) -> None:
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}; min, median, max of {REPEATS} rounds"
    )
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name, "small"), Path(name, "large")
        photographs(small, nano)
        photographs(large, r50)
        measure("isanet_nano_toystreets", isanet.Segmenter("isanet_nano_toystreets"), small, nano)
        checkpoint = Path(name, "r50.pth")
        torch.save({"model": stand_in.state_dict("sssegmentation_r50_voc")}, checkpoint)
        measure("ResNet-50, stand-in weights", isanet.Segmenter(checkpoint), large, r50)


if __name__ == "__main__":
    counts = [int(argument) for argument in sys.argv[1:]]
    main(*(counts + [200, 6][len(counts) :]))
