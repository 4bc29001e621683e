"""Throughput of a video, 1280x720, with the packaged model: all of it vs the sum of its parts, each by itself.

    python -m tests.benchmarks.video [--frames 60] [--rounds 3] [--output drive_overlay.mp4]
    python -m tests.benchmarks.video --memory 10000

Decoding is `frames`, forward a Segmenter on the decoded frames (resizing, network, labels), encoding `write_video` of
the results (drawing and H.264). The parts and the whole take turns; minima of the rounds are compared. With `--memory`,
so many small frames are segmented and written, and the memory of the process is printed at ten places.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import torch

import isanet
from isanet.datasets import ToyStreets
from isanet.inference.segmentation import Segmentation
from isanet.inference.video import frames, write_video
from tests.helpers.videos import make_video


def seconds(work: Callable[[], object]) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


def drive(path: Path, count: int, size: tuple[int, int]) -> None:
    """A camera that pans over a drawn street."""
    height, width = size
    wide, _ = ToyStreets(1, seed=7, size=(height, 2 * width)).read(0)
    places = np.abs((np.arange(count) * 4) % (2 * width) - width)
    make_video(path, [np.ascontiguousarray(wide[:, place : place + width]) for place in places], sound="aac")


def throughput(folder: Path, count: int, rounds: int, output: Path) -> None:
    path = folder / "drive.mp4"
    drive(path, count, (720, 1280))
    segmenter = isanet.Segmenter("isanet_nano_toystreets", "cpu")
    print(f"{segmenter}; {torch.get_num_threads()} threads; {count} frames of 1280x720")
    images = [frame.image for frame in frames(path)]
    results = [segmenter(image) for image in images]  # warm
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in (
            ("decode", lambda: [None for _ in frames(path)]),
            ("forward", lambda: [segmenter(image) for image in images]),
            ("encode", lambda: write_video(results, folder / "parts.mp4")),
            ("whole", lambda: write_video(segmenter.stream(path), output)),
        ):
            times.setdefault(name, []).append(seconds(work))
    least = {name: min(each) for name, each in times.items()}
    for name, each in least.items():
        print(f"{name:8} {each:7.2f} s  {count / each:7.1f} frames/s")
    total = least["decode"] + least["forward"] + least["encode"]
    print(f"whole / (decode + forward + encode) = {least['whole'] / total:.3f}")


def memory(folder: Path, count: int) -> None:
    path = folder / "long.mp4"
    drive(path, count, (96, 160))
    segmenter = isanet.Segmenter("isanet_nano_toystreets", "cpu")
    step = count // 10

    def watched() -> Iterator[Segmentation]:
        for number, result in enumerate(segmenter.stream(path), 1):
            yield result
            if number % step == 0:
                print(f"{number:6,} frames: {psutil.Process().memory_info().rss / 1e6:,.0f} MB", flush=True)

    write_video(watched(), folder / "overlay.mp4", folder / "labels.mkv")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            memory(Path(folder), options.memory)
        else:
            output = options.output or Path(folder) / "whole.mp4"
            throughput(Path(folder), options.frames, options.rounds, output)


if __name__ == "__main__":
    main()
