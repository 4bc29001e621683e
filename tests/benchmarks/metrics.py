"""Times ConfusionMatrix and BoundaryScore: `python -m tests.benchmarks.metrics`."""

from __future__ import annotations

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix

HEIGHT, WIDTH = 1024, 2048
REPEATS = 15


def image(num_classes: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A prediction and its ground truth: wavy regions, shifted by some pixels; 5 % of the cells are ignored."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, num_classes, (HEIGHT // 64 + 2, WIDTH // 64 + 2)).astype(np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)

    def regions(cells: NDArray[np.uint8], shift: float) -> NDArray[np.uint8]:
        rows = (y + 32 + 20 * np.sin(x / 37) + shift * np.sin(y / 23)) // 64
        columns = (x + 32 + 20 * np.sin(y / 41) + shift * np.sin(x / 19)) // 64
        return cells[rows.astype(np.int64), columns.astype(np.int64)]

    target, wrong = cells.copy(), cells.copy()
    target[rng.random(cells.shape) < 0.05] = 255
    errors = rng.random(cells.shape) < 0.1
    wrong[errors] = rng.integers(0, num_classes, int(errors.sum()))
    return regions(wrong, 6), regions(target, 0)


def with_numpy(prediction: NDArray[Any], target: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """The usual few lines of numpy, without checks."""
    mask = target != 255
    codes = num_classes * target[mask].astype(np.int64) + prediction[mask]
    return np.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)


def measure(variants: dict[str, Callable[[], Any]], synchronize: Callable[[], None], repeats: int) -> None:
    """Prints milliseconds of each variant, run in turns, and the ratio of its median to that of the first."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 2):
        for name, variant in variants.items():
            synchronize()
            start = time.perf_counter()
            variant()
            synchronize()
            if repeat >= 2:  # warm-up
                times[name].append(1000 * (time.perf_counter() - start))
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:44} {min(values):9.2f} {median:9.2f} {max(values):9.2f} {median / first:8.2f}x")


def counting(device: str, synchronize: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import may warn of missing optional packages
        from torchmetrics.classification import MulticlassConfusionMatrix
    for num_classes in (19, 150):
        for dtype in ("uint8", "int64"):
            prediction, target = (labels.astype(dtype) for labels in image(num_classes, seed=num_classes))
            ours = ConfusionMatrix(num_classes, device=device)
            theirs = {
                check: MulticlassConfusionMatrix(num_classes, ignore_index=255, validate_args=check).to(device)
                for check in (True, False)
            }
            tensors = torch.from_numpy(prediction).to(device), torch.from_numpy(target).to(device)
            expected = torch.from_numpy(with_numpy(prediction, target, num_classes))
            variants: dict[str, Callable[[], Any]] = {
                "ConfusionMatrix.update": lambda ours=ours, tensors=tensors: ours.update(*tensors),
                "numpy, no check (CPU)": lambda p=prediction, t=target, k=num_classes: with_numpy(p, t, k),
                "torchmetrics, validate_args=True": lambda m=theirs[True], tensors=tensors: m.update(*tensors),
                "torchmetrics, validate_args=False": lambda m=theirs[False], tensors=tensors: m.update(*tensors),
            }
            variants["ConfusionMatrix.update"]()
            for metric in theirs.values():
                metric.update(*tensors)
                assert torch.equal(metric.compute().cpu(), expected)
                metric.reset()
            assert torch.equal(ours.matrix.cpu(), expected)
            print(f"\nConfusion matrix, {HEIGHT}x{WIDTH} {dtype}, K={num_classes}, {device}")
            measure(variants, synchronize, REPEATS)


def boundaries(device: str, synchronize: Callable[[], None]) -> None:
    prediction, target = (torch.from_numpy(labels).to(device) for labels in image(19, seed=19))
    noise = torch.randint(0, 19, target.shape, generator=torch.Generator().manual_seed(0)).to(device)
    score = BoundaryScore(19, device=device)
    print(f"\nBoundary score, {HEIGHT}x{WIDTH}, K=19, tolerance 0.0075 (17 pixels), {device}")
    measure({"BoundaryScore.update": lambda: score.update(prediction, target)}, synchronize, REPEATS)
    measure({"random prediction": lambda: score.update(noise, target)}, synchronize, 1)


def main() -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, numpy {np.__version__}; {REPEATS} interleaved repeats"
    )
    print(f"  {'milliseconds':44} {'min':>9} {'median':>9} {'max':>9} {'ratio':>9}")
    devices: dict[str, Callable[[], None]] = {"cpu": lambda: None}
    if torch.cuda.is_available():
        print(f"  cuda is {torch.cuda.get_device_name()}")
        devices["cuda"] = torch.cuda.synchronize
    for device, synchronize in devices.items():
        counting(device, synchronize)
        boundaries(device, synchronize)


if __name__ == "__main__":
    main()
