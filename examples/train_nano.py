"""Train the packaged model isanet_nano_toystreets, on CPU cores.

    python examples/train_nano.py runs/nano                          # one core
    torchrun --nproc-per-node=2 examples/train_nano.py runs/nano     # two cores
    python examples/train_nano.py runs/nano --into-package           # also evaluates it and writes it into the package

An interrupted run resumes when it is called again. First the rate is constant for `--steps` steps, the first 1,600 of
them at half the pixels; then it falls to zero in `--cooldown` further ones. steady.pt keeps the end of the first part,
so that a later call with more steps repeats the second part alone. What this cost is in docs/training.md.

`isanet finetune` would learn the same more slowly. Here whole scenes of the size for prediction take the place of
scaled crops; the loss is taken at every second pixel of every second row, beginning at one of the four at random; to
cross entropy a Jaccard loss is added, in which a small thing counts as much as a large one; and matrices are updated by
Muon (https://kellerjordan.github.io/posts/muon/), everything else by AdamW.

On glibc, MALLOC_MMAP_THRESHOLD_=8000000000 and MALLOC_TRIM_THRESHOLD_=16000000000 in the environment save time:
otherwise large tensors come from the kernel, which clears them, at every step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

import isanet
from isanet.datasets import ToyStreets
from isanet.inference.fast.optimize import has_bfloat16
from isanet.labels import LABEL_SPACES
from isanet.metrics import ConfusionMatrix
from isanet.tools.flops import image_gmacs
from isanet.toystreets.draw import WEATHERS, Scene
from isanet.toystreets.scene import NUM_TEST_SCENES, SIZE, scene_seed
from isanet.training.optim import update_average
from isanet.zoo.publish import package_model

SCENES, BLOCK = 10_500, 500
"""Drawn once, and written to the disk in blocks: 5.5 GB. A step takes any of them, mirrored or not."""

COARSE_STEPS = 1600
"""At the beginning, with images as they are drawn, 256 pixels high."""

NETWORK = {
    "backbone": "resnet26",
    "width": 12,
    "head_channels": 64,
    "key_channels": 32,
    "aux_channels": 32,
    "fusion_kernel": 3,
    "dropout": 0.0,
}
MEAN, STD = 115.0, 60.0
PREPROCESSING: dict[str, Any] = {"short_edge": 320, "long_edge": 2048, "mean": [MEAN] * 3, "std": [STD] * 3}

SHARES = (0.260, 0.072, 0.314, 0.013, 0.0012, 0.0069, 0.072, 0.021, 0.148, 0.0093, 0.083)
"""Of the classes, in the training scenes."""

RECIPE: dict[str, Any] = {
    "optimizer": "muon, and adamw for vectors and classifiers",
    "lr": 0.004,
    "momentum": 0.95,
    "weight_decay": 0.05,
    "warmup": 100,
    "batch_size": 8,
    "class_weights": [share**-0.25 for share in SHARES],
    "jaccard_weight": 0.5,
    "aux_weight": 0.4,
    "ema": 0.998,
    "clip_grad_norm": 5.0,
    "precision": "bfloat16",
    "seed": 0,
}


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal, scaled so that a rate of AdamW's suits it.

    torch.optim.Muon takes no convolutions. And it multiplies the long matrix in each iteration; here that is done once,
    at the end, with the product of the small square ones.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "wd": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                average = self.state[parameter].setdefault("b", torch.zeros_like(grad))
                average.lerp_(grad, 1 - group["momentum"])
                update = orthogonal(grad.lerp(average, group["momentum"]).flatten(1)).view_as(grad)
                parameter.mul_(1 - group["lr"] * group["wd"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(grad.flatten(1).shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix: five Newton-Schulz iterations, with Keller Jordan's coefficients."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    matrix = matrix / (matrix.norm() + 1e-7)
    square = matrix @ matrix.T
    product = identity = torch.eye(len(square))
    for _ in range(5):
        factor = 3.4445 * identity - 4.7750 * square + 2.0315 * square @ square
        product, square = factor @ product, factor @ square @ factor
    return product @ matrix


def blocks(folder: Path, rank: int, world_size: int) -> list[NDArray[np.uint8]]:
    """The training scenes, (BLOCK, height, width, 4): red, green, blue, class. Missing ones are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = ToyStreets(count=SCENES, split="train")
    paths = [folder / f"train{number:03}.npy" for number in range(SCENES // BLOCK)]
    for number in range(rank, len(paths), world_size):
        if not paths[number].exists():
            block = np.empty((BLOCK, *SIZE, 4), np.uint8)
            for index, drawn in enumerate(block):
                drawn[..., :3], drawn[..., 3] = scenes.read(number * BLOCK + index)
            temporary = paths[number].with_suffix(".part.npy")
            np.save(temporary, block)
            temporary.replace(paths[number])
    if world_size > 1:
        dist.barrier()
    return [np.load(path, mmap_mode="r") for path in paths]


def batch(data: list[NDArray[np.uint8]], step: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """The part of a step's scenes that is this process's, chosen by the number of the step alone."""
    random = np.random.Generator(np.random.PCG64([RECIPE["seed"], step]))
    indices, mirrored = random.integers(0, SCENES, RECIPE["batch_size"]), random.random(RECIPE["batch_size"]) < 0.5
    scenes = []
    for index, mirror in list(zip(indices, mirrored, strict=True))[rank::world_size]:
        scene = data[index // BLOCK][index % BLOCK]
        scenes.append(torch.from_numpy(np.array(scene[:, ::-1] if mirror else scene)))
    both = torch.stack(scenes)
    images = (both[..., :3].permute(0, 3, 1, 2).float() - MEAN) / STD
    if step >= COARSE_STEPS:
        images = F.interpolate(images, scale_factor=PREPROCESSING["short_edge"] / SIZE[0], mode="bilinear")
    return images.to(memory_format=torch.channels_last), both[..., 3]


def rows(size: int, coarse: int, first: int, every: int) -> Tensor:
    """The matrix, (positions, coarse), of bilinear resizing to `size`, at first, first + every, ... alone."""
    at = ((torch.arange(first, size, every) + 0.5) * coarse / size - 0.5).clamp(0, coarse - 1)
    return (1 - (at[:, None] - torch.arange(coarse)).abs()).clamp(min=0)


def loss_of(logits: Tensor, masks: Tensor, weights: Tensor, every: int, jaccard: float) -> Tensor:
    """Weighted cross entropy, and 1 - IoU of each class in each scene that has it, at some pixels of a grid."""
    (height, width), (first, left) = masks.shape[1:], torch.randint(every, (2,)).tolist()
    above, beside = rows(height, logits.shape[2], first, every), rows(width, logits.shape[3], left, every)
    scores = above @ (logits.float().contiguous() @ beside.T)
    target = masks[:, first::every, left::every].long()[:, None]
    logarithms = scores - scores.logsumexp(1, keepdim=True)
    weight = weights[target]
    loss = -(weight * logarithms.gather(1, target)).sum() / weight.sum()
    if jaccard:
        predicted = logarithms.exp().flatten(2)
        ground_truth = torch.zeros_like(predicted).scatter_(1, target.flatten(2), 1.0)
        both, present = (predicted * ground_truth).sum(2), ground_truth.sum(2)
        iou = both / (predicted.sum(2) + present - both + 1e-6)
        loss = loss + jaccard * (1 - iou)[present > 0].mean()
    return loss


def train(output: Path, steps: int, cooldown: int, start_from: Path | None = None) -> isanet.ISANet:
    """Draws the scenes, and trains both parts."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo")
    data = blocks(output / "scenes", rank, world_size)

    torch.manual_seed(RECIPE["seed"])
    space = LABEL_SPACES["toystreets"]
    model = isanet.ISANet(
        **NETWORK, classes=space.classes, palette=space.palette, label_space=space.name, preprocessing=PREPROCESSING
    )
    if start_from is not None:
        model.load_state_dict(isanet.from_pretrained(start_from).state_dict())
    model = model.to(memory_format=torch.channels_last).train()
    average = deepcopy(model).eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    by_muon = [name for name, value in parameters.items() if value.ndim == 4 and "classifier" not in name]
    sizes = [value.numel() for value in parameters.values()]
    lr, decay = RECIPE["lr"], RECIPE["weight_decay"]
    optimizers = [
        Muon([parameters[name] for name in by_muon], lr, RECIPE["momentum"], decay),
        torch.optim.AdamW([value for name, value in parameters.items() if name not in by_muon], lr, weight_decay=decay),
    ]
    weights = torch.tensor(RECIPE["class_weights"])

    def save(path: Path) -> None:
        state = {
            "model": model.state_dict(),
            "ema": average.state_dict(),
            "opt": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    steady, cooled = output / "steady.pt", output / f"cooled-{steps}-{cooldown}.pt"
    step, saved, seen = 0, time.monotonic(), []
    start = next((path for path in (cooled, steady) if path.exists()), None)
    if start is not None:
        state = torch.load(start, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["ema"])
        for optimizer, part in zip(optimizers, state["opt"], strict=True):
            optimizer.load_state_dict(part)
        step = state["step"]
        if step > steps and start == steady:
            raise SystemExit(f"{steady} is of step {step}: give --steps {step} or more")

    while step < steps + cooldown:
        images, masks = batch(data, step, rank, world_size)
        torch.manual_seed(step * world_size + rank)
        rate = lr * min(1, (step + 1) / RECIPE["warmup"], (steps + cooldown - step) / max(cooldown, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            logits, aux = model.coarse_logits(images, aux=True)
        loss = loss_of(logits, masks, weights, 2, RECIPE["jaccard_weight"])
        loss = loss + RECIPE["aux_weight"] * loss_of(aux, masks, weights, 4, 0.0)
        loss.backward()
        if world_size > 1:
            together = torch.cat([value.grad.flatten() for value in parameters.values()]) / world_size
            dist.all_reduce(together)
            for value, part in zip(parameters.values(), together.split(sizes), strict=True):
                value.grad.copy_(part.view_as(value))
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip_grad_norm"])
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        model.zero_grad()
        step += 1
        update_average(average, model, RECIPE["ema"], step)
        seen.append(loss.item())
        if step % 50 == 0 and rank == 0:
            print(f"step {step} of {steps + cooldown}: loss {sum(seen[-50:]) / len(seen[-50:]):.3f}, rate {rate:.2g}")
        if rank == 0 and (step in (steps, steps + cooldown) or time.monotonic() - saved > 60):
            save(steady if step <= steps else cooled)
            saved = time.monotonic()

    average.provenance = {"source": "examples/train_nano.py", "step": f"{step}", "recipe": json.dumps(RECIPE)}
    if rank == 0:
        average.save_pretrained(output / "model")
    return average


def put_into_package(model: isanet.ISANet, steps: int, cooldown: int) -> None:
    """Measures the model as the package will hold it, on scenes of its own, and writes file and manifest entry."""
    segmenter = isanet.Segmenter(model.half().float(), device="cpu", precision="float32")
    scenes = ToyStreets(count=NUM_TEST_SCENES, split="test")
    matrices = {weather: ConfusionMatrix(len(model.classes)) for weather in ("all", *WEATHERS)}
    for index in range(len(scenes)):
        image, mask = scenes.read(index)
        labels = torch.from_numpy(segmenter(image).labels)
        drawn = Scene(Random(scene_seed(0, "test", index)), *SIZE).weather  # noqa: S311 - nothing secret
        weather = next(name for name, each in WEATHERS.items() if each is drawn)
        for matrix in (matrices["all"], matrices[weather]):
            matrix.update(labels, torch.from_numpy(mask))
    miou = {weather: round(matrix.miou(), 4) for weather, matrix in matrices.items()}
    iou = dict(zip(model.classes, matrices["all"].iou().tolist(), strict=True))
    print(f"mIoU {miou}", f"IoU {iou}", sep="\n")
    stages = {"train_split": "train", "steps": steps, "cooldown": cooldown, "ignore_index": 255}
    package_model(
        model,
        "isanet_nano_toystreets",
        gmacs=image_gmacs(model.config),
        metrics={
            "dataset": "ToyStreets",
            "split": "test",
            "miou": miou.pop("all"),
            "subsets": miou,
            "protocol": "whole",
        },
        recipe=RECIPE | stages,
        license="Apache-2.0; the scenes behind it are drawn by isanet",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains the model in the package.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=12_363, help="at a constant rate")
    parser.add_argument("--cooldown", type=int, default=3000, help="at a rate that falls to zero")
    parser.add_argument("--weights", type=Path, help="model folder with weights to start from")
    parser.add_argument("--into-package", action="store_true")
    given = parser.parse_args()
    trained = train(given.output, given.steps, given.cooldown, given.weights)
    if given.into_package and int(os.environ.get("RANK", 0)) == 0:
        put_into_package(trained, given.steps, given.cooldown)
