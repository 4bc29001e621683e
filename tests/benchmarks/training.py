"""Time per step of `isanet.finetune`, compared with bare training loops.

    python -m tests.benchmarks.training
    python -m tests.benchmarks.training --model isanet_r50_voc --crop 512 512 --batch-size 16 --device auto

Three variants, in turn, repeated several times: `finetune` (channels last, checks, moving average of the weights,
history); a bare loop with the same network in channels last; and the baseline, a bare loop in float32 NCHW. All read
the same images with the same loader. Only steps are timed, not the setup before the first or the work after the last.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.data import DataLoader

import isanet
from isanet.datasets import ToyStreets
from isanet.training import Recipe, optimizer_and_schedule, segmentation_loss
from isanet.training.augment import augmentation
from isanet.training.batches import Batches, Samples, collate

SKIPPED_STEPS = 3
"""First steps, in which memory is allocated."""


def model_for(name: str, scenes: ToyStreets) -> isanet.ISANet:
    """A network of the zoo, randomly initialized: the weights do not matter for the time."""
    weights = isanet.model_info(name)
    return isanet.ISANet(
        **{**weights.architecture, "num_classes": len(scenes.classes)},
        classes=scenes.classes,
        palette=scenes.palette,
        preprocessing=dict(weights.preprocessing),
    )


def time_finetune(model: isanet.ISANet, scenes: ToyStreets, recipe: Recipe, workers: int, device: str) -> list[float]:
    with TemporaryDirectory() as folder:
        run = isanet.finetune(
            model, scenes, None, recipe, Path(folder, "run"), workers=workers, device=device, progress=False
        )
    return [recipe.batch_size / float(row["images_per_second"] or 1) for row in run.history][SKIPPED_STEPS:]


def time_bare_loop(
    model: isanet.ISANet, scenes: ToyStreets, recipe: Recipe, workers: int, device: str, memory: torch.memory_format
) -> list[float]:
    batches = Batches(len(scenes), recipe)
    samples = Samples(scenes, augmentation(recipe, model.preprocessing), recipe.seed)
    pinned = device == "cuda"
    loader = DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pinned)
    model = model.to(device).to(memory_format=memory).train()
    optimizer, schedule = optimizer_and_schedule(model, recipe, steps=batches.steps)
    kind = torch.device(device).type
    precision = torch.bfloat16 if recipe.precision == "bfloat16" else None
    times, before = [], time.perf_counter()
    for images, masks in loader:
        images = images.to(device, memory_format=memory, non_blocking=True)
        masks = masks.to(device, non_blocking=True)
        with torch.autocast(kind, precision, enabled=precision is not None):
            logits, aux = model(images, aux=True)
        loss = segmentation_loss(logits, aux, masks, aux_weight=recipe.aux_weight)
        loss.backward()
        if recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
        loss.item()  # every training loop shows the loss
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return times[SKIPPED_STEPS:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isanet_nano_toystreets")
    parser.add_argument("--crop", type=int, nargs=2, default=(192, 256))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--ema", type=float, help="decay of a moving average of the weights; the bare loops have none")
    parser.add_argument("--device", default="cpu", choices=("cpu", "auto"))
    options = parser.parse_args()
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu"

    scenes = ToyStreets(count=options.steps * options.batch_size, size=(192, 256))
    recipe = Recipe(
        epochs=1, batch_size=options.batch_size, crop=tuple(options.crop), precision=options.precision, lr=1e-4,
        photometric=0.0, clip_grad_norm=5.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = model_for(options.model, scenes)
    variants = {
        "finetune": lambda: time_finetune(
            model, scenes, replace(recipe, ema=options.ema), options.workers, options.device
        ),
        "bare loop, channels last": lambda: time_bare_loop(
            model, scenes, recipe, options.workers, device, torch.channels_last
        ),
        "baseline (bare loop, float32 NCHW)": lambda: time_bare_loop(
            model, scenes, replace(recipe, precision="float32"), options.workers, device, torch.contiguous_format
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, measure in variants.items():
            times[name].append(statistics.median(measure()))
    bare = statistics.median(times["bare loop, channels last"])
    print(
        f"{options.model}, {options.batch_size} images of {options.crop[0]}x{options.crop[1]}, {options.precision}, "
        f"{options.steps - SKIPPED_STEPS} steps, {options.repeats} repeats, {options.workers} workers, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, values in times.items():
        low, middle, high = 1000 * min(values), 1000 * statistics.median(values), 1000 * max(values)
        times_ms = f"{low:8.1f} {middle:8.1f} {high:8.1f} ms per step (min, median, max)"
        print(f"{name:34}  {times_ms}  {middle / bare / 1000:.3f}")


if __name__ == "__main__":
    main()
