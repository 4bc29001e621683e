"""What evaluate() costs beyond decoding, and where the time goes: `python -m tests.benchmarks.evaluation [N]`.

N images (default 200) of 1024x2048 in Cityscapes' layout are evaluated with a trivial model, so that reading,
preparing, resizing logits, argmax and counting remain. Baseline, in the same run: as many workers only read the same
files and return nothing. Then each step is timed alone, in one process, image by image. There are ten different images,
so that all files are in memory after the first round and no disk is measured.

First, labels of 1024x2048 from coarse logits of 19 and 150 classes: of scenes, and of noise, the worst case. Baseline,
in turns: the argmax of all logits. Processor time is shown beside wall time, for machines that are shared.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isanet import datasets
from isanet.evaluation.evaluate import evaluate
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.inference.logits import resized_bands, stored
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import label_map, logits_maps, prepare
from isanet.inference.segmentation import Segmentation
from isanet.labels import LABEL_SPACES, OFFICIAL_SPACES
from isanet.protocols import PROTOCOLS

SPACE = LABEL_SPACES["cityscapes19"]
NUM_DIFFERENT = 10


class Trivial(nn.Module):
    """Predicts the nearest class color of each 8x8 cell."""

    classes, palette, label_space = SPACE.classes, SPACE.palette, SPACE.name
    logits_resize, protocol = "half_pixel", "whole"
    preprocessing = {"short_edge": 1024, "long_edge": 2048, "mean": (127.5,) * 3, "std": (127.5,) * 3}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"backbone": "none"}
        self.provenance: dict[str, str] = {}
        colors = torch.tensor(SPACE.palette) / 127.5 - 1
        self.weight = nn.Parameter(2 * colors[:, :, None, None])
        self.bias = nn.Parameter(-colors.square().sum(dim=1))

    def coarse_logits(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.avg_pool2d(images, 8), self.weight, self.bias)


def write_dataset(root: Path, number: int) -> None:
    """Writes a few images with structure and noise, whose PNG files are as large as photographs; the rest are links."""
    random = np.random.default_rng(0)
    ids = OFFICIAL_SPACES["cityscapes-ids"]
    folders = [root / part / "val" / "made" for part in ("leftImg8bit", "gtFine")]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(number):
        stem = f"made_{index:06}_000000"
        paths = [folders[0] / f"{stem}_leftImg8bit.png", folders[1] / f"{stem}_gtFine_labelIds.png"]
        if index >= NUM_DIFFERENT:
            for path in paths:
                os.link(path.with_name(path.name.replace(stem, f"made_{index % NUM_DIFFERENT:06}_000000")), path)
            continue
        cells = Image.fromarray(random.integers(0, len(ids), (16, 32), dtype=np.uint8))
        mask = cells.resize((2048, 1024), Image.Resampling.NEAREST).filter(ImageFilter.ModeFilter(15))
        colors = np.array(ids.palette, np.float32)[np.asarray(mask)]
        noisy = np.clip(colors + random.normal(0, 6, (1024, 2048, 1)) + random.normal(0, 2, colors.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(paths[0])
        mask.save(paths[1])


class _ReadOnly(Dataset[int]):
    def __init__(self, dataset: datasets.SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        image, mask = self.dataset.read(index)
        assert mask is not None
        return int(image[0, 0, 0]) + int(mask[0, 0])


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def scene(num_classes: int, regions: int, seed: int = 0) -> Tensor:
    """(K, 128, 256) logits: a class is far above the others in each of some regions, and edges are smooth."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(256), indexing="ij")
    centers = torch.rand(regions, 2, generator=generator) * torch.tensor([128, 256])
    nearest = (torch.stack([y, x], dim=2)[:, :, None] - centers).square().sum(dim=3).argmin(dim=2)
    own = torch.randint(num_classes, (regions,), generator=generator)[nearest]
    logits = torch.randn(num_classes, 128, 256, generator=generator) / 2
    logits.scatter_add_(0, own[None], torch.full((1, 128, 256), 6.0))
    return nn.functional.avg_pool2d(logits[None], 3, 1, 1, count_include_pad=False)[0]


def labels_of_all_logits(logits_KHW: Tensor) -> Tensor:
    """The baseline of `label_map`."""
    bands = resized_bands([stored(logits_KHW)], (1024, 2048), "half_pixel")
    return torch.cat([band.max(dim=0).indices.to(torch.uint8) for _, band in bands])


def compare_labels(rounds: int = 9) -> None:
    print(f"labels of 1024x2048, {torch.get_num_threads()} threads, least of {rounds}: ms, and ms of processor time")
    for K in (19, 150):
        cases = {f"scene of {number} regions": scene(K, number) for number in (60, 250)}
        cases["noise"] = torch.randn(K, 128, 256, generator=torch.Generator().manual_seed(0))
        for name, logits in cases.items():
            ways: dict[str, Callable[[], Tensor]] = {
                "label_map": lambda logits=logits: label_map([stored(logits)], (1024, 2048), "half_pixel")[0],
                "all logits": lambda logits=logits: labels_of_all_logits(logits),
            }
            labels = [run() for run in ways.values()]
            seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, run in ways.items():
                    before = time.process_time()
                    wall = timed(run)
                    seconds[way].append((wall, time.process_time() - before))
            least = [
                f"{way} {' '.join(f'{1e3 * min(values):6.1f}' for values in zip(*each, strict=True))}"
                for way, each in seconds.items()
            ]
            different = int((labels[0] != labels[1]).sum())
            print(f"  {K:3} classes, {name:<20} {', '.join(least)}, {different} labels differ")


def main(number: int) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        writer = multiprocessing.Process(
            target=write_dataset, args=(root, number)
        )  # so that its memory is not measured
        writer.start()
        writer.join()
        dataset = datasets.Cityscapes(root, "val")
        size = sum(dataset.image_path(index).stat().st_size for index in range(NUM_DIFFERENT)) / NUM_DIFFERENT
        cores = os.cpu_count() or 1
        model: Any = Trivial()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        workers = cores if device == "cuda" else max(1, cores // 4)  # the default of evaluate()
        print(f"{number} images of 1024x2048, {size / 1e6:.1f} MB each; {platform.processor() or platform.machine()}")
        print(f"{cores} cores, {workers} workers, {device}, torch {torch.__version__}")

        peaks = []
        for limit in (number // 4, number):
            evaluate(model, dataset, device=device, workers=workers, progress=False, limit=limit)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
        print(f"peak memory after {number // 4} images {peaks[0]} MiB, after {number} more {peaks[1]} MiB")

        only_read, whole = [], []
        for _ in range(3):
            loader = DataLoader(_ReadOnly(dataset), batch_size=None, num_workers=workers)
            only_read.append(timed(lambda loader=loader: sum(loader)))
            whole.append(timed(lambda: evaluate(model, dataset, device=device, workers=workers, progress=False)))
        for name, seconds in (("only read", only_read), ("evaluate", whole)):
            low, middle, high = (
                1e3 * value / number for value in (min(seconds), statistics.median(seconds), max(seconds))
            )
            print(f"  {name:<14} {low:6.1f} {middle:6.1f} {high:6.1f} ms per image (min, median, max of 3)")
        print(f"  ratio of the medians {statistics.median(whole) / statistics.median(only_read):.2f}")

        steps: dict[str, list[float]] = {}
        model = model.to(device).eval()
        matrix = ConfusionMatrix(len(SPACE), device=device)
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

        def step(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
            start = time.perf_counter()
            result = run(*arguments)
            synchronize()
            steps.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
            return result

        for index in range(min(2 * NUM_DIFFERENT, number)):
            image, mask = step("decode (image, mask, ids)", dataset.read, index)
            prepared = step("prepare", prepare, image, model.preprocessing)
            images = prepared.tensors[0][None].to(device)
            with torch.no_grad():
                step("(network alone)", model.coarse_logits, images)
            (maps,) = step("network", logits_maps, EagerNetwork(model), [prepared], PROTOCOLS["whole"])
            labels, _ = step("labels", label_map, maps, mask.shape, "half_pixel")
            ground_truth = torch.from_numpy(mask).to(device)
            step("metric", matrix.update, labels, ground_truth)
            result = Segmentation(labels.cpu().numpy(), model.classes, model.palette, image)
            step("(colors)", lambda result=result: result.colored().convert("RGB"))
            step("(overlay, no legend)", result.overlay, 0.5, False)
        medians = {name: statistics.median(values) for name, values in steps.items()}
        total = sum(milliseconds for name, milliseconds in medians.items() if not name.startswith("("))
        print("each step alone, median:")
        for name, milliseconds in medians.items():
            spread = f"{min(steps[name]):.1f} to {max(steps[name]):.1f}"
            print(f"  {name:<28} {milliseconds:7.1f} ms {milliseconds / total:6.1%}   {spread}")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    compare_labels()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
