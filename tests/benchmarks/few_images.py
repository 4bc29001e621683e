"""Twenty images: the recipe that is chosen for few images, upstream's defaults, and a recipe tuned by hand.

    python -m tests.benchmarks.few_images --output runs

Three made datasets of 640x480 images, each hard in one way: a rare class (weeds among crops, about 3 % of the pixels),
thin structures (cracks in concrete, 2 to 4 pixels wide), and two similar classes (leaves, healthy or speckled). Each
recipe trains the packaged model on 20 images for about the same seconds of computing, and is measured on 20 others.
Prints a line for each run, and a table of mIoU in %: mean, smallest and largest over the seeds; finished runs are kept
in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

import isanet
from isanet._text import aligned
from isanet.datasets import Folder
from isanet.training.recipe import Recipe

MODEL = "isanet_nano_toystreets"
WIDTH, HEIGHT = 640, 480
Random = np.random.Generator
Scene = tuple[Image.Image, Image.Image]


def _ground(random: Random, color: tuple[int, int, int], contrast: float) -> Image.Image:
    """Noise of several sizes around a color."""
    total = np.zeros((HEIGHT, WIDTH))
    for cell in (4, 16, 80):
        noise = Image.fromarray(random.normal(size=(HEIGHT // cell + 1, WIDTH // cell + 1)).astype(np.float32))
        total += np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    light = 1 + contrast * total[..., None] + 0.1 * random.normal()
    pixels = np.array(color) * light + random.normal(scale=5, size=(HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _tinted(random: Random, color: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(value + random.integers(-spread, spread + 1), 0, 255)) for value in color)
    return red, green, blue


def _leaf(
    random: Random, center: tuple[float, float], length: float, width: float, angle: float
) -> list[tuple[float, float]]:
    along = np.linspace(0, 1, 12)
    side = width * np.sin(np.pi * along) / 2
    outline = np.concatenate([np.stack([along * length, side], 1), np.stack([along * length, -side], 1)[::-1]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [(float(x), float(y)) for x, y in outline @ turn + np.array(center)]


def field(random: Random) -> Scene:
    """Rows of crops, and weeds: small rosettes of narrow leaves in almost the same green."""
    image, mask = _ground(random, _tinted(random, (120, 88, 60), 15), 0.12), Image.new("L", (WIDTH, HEIGHT))
    draw, labels = ImageDraw.Draw(image), ImageDraw.Draw(mask)

    def plant(
        center: tuple[float, float], leaves: int, size: float, slim: float, color: tuple[int, int, int], label: int
    ) -> None:
        first = random.uniform(0, 7)
        for number in range(leaves):
            angle = first + 2 * np.pi * number / leaves + random.normal(scale=0.15)
            outline = _leaf(random, center, size * random.uniform(0.8, 1.1), size * slim, angle)
            draw.polygon(outline, fill=_tinted(random, color, 14))
            labels.polygon(outline, fill=label)

    for row in range(80, HEIGHT, 150):
        for x in range(50, WIDTH, 110):
            center = (x + random.normal(scale=12), row + random.normal(scale=10))
            plant(center, int(random.integers(4, 7)), random.uniform(38, 55), 0.55, (62, 130, 50), 1)
    for _ in range(int(random.integers(6, 15))):
        center = (random.uniform(0, WIDTH), random.uniform(0, HEIGHT))
        plant(center, int(random.integers(6, 11)), random.uniform(16, 30), 0.22, (78, 138, 58), 2)
    return image.filter(ImageFilter.GaussianBlur(0.6)), mask


def concrete(random: Random) -> Scene:
    """Cracks of 2 to 4 pixels, and straight shadows that are none."""
    image, mask = _ground(random, _tinted(random, (150, 148, 142), 12), 0.06), Image.new("L", (WIDTH, HEIGHT))
    draw, labels = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    for _ in range(int(random.integers(1, 4))):
        start, end = random.uniform(0, 1, (2, 2)) * (WIDTH, HEIGHT)
        draw.line([*start, *end], fill=_tinted(random, (105, 103, 100), 8), width=int(random.integers(3, 7)))
    for _ in range(int(random.integers(2, 5))):
        position, angle = random.uniform(0, 1, 2) * (WIDTH, HEIGHT), random.uniform(0, 2 * np.pi)
        path, width = [tuple(position)], int(random.integers(2, 5))
        for _ in range(int(random.integers(30, 90))):
            angle += random.normal(scale=0.45)
            position = position + random.uniform(4, 10) * np.array([np.cos(angle), np.sin(angle)])
            path.append(tuple(position))
        draw.line(path, fill=_tinted(random, (70, 66, 62), 12), width=width)
        labels.line(path, fill=1, width=width)
    return image.filter(ImageFilter.GaussianBlur(0.7)), mask


def leaves(random: Random) -> Scene:
    """Leaves on straw; the sick ones differ by small pale speckles and a slightly yellower green."""
    image, mask = _ground(random, _tinted(random, (176, 156, 110), 15), 0.1), Image.new("L", (WIDTH, HEIGHT))
    for _ in range(int(random.integers(9, 15))):
        sick = bool(random.integers(2))
        center = (random.uniform(0, WIDTH), random.uniform(0, HEIGHT))
        outline = _leaf(random, center, random.uniform(90, 190), random.uniform(45, 90), random.uniform(0, 7))
        shape = Image.new("L", (WIDTH, HEIGHT))
        ImageDraw.Draw(shape).polygon(outline, fill=255)
        paint = _ground(random, _tinted(random, (74, 124, 52) if not sick else (80, 124, 52), 12), 0.06)
        if sick:
            dots = ImageDraw.Draw(paint)
            xs, ys = zip(*outline, strict=True)
            area = (max(xs) - min(xs)) * (max(ys) - min(ys))
            for _ in range(int(area / 110)):
                x, y, r = random.uniform(min(xs), max(xs)), random.uniform(min(ys), max(ys)), random.uniform(1, 2.6)
                dots.ellipse([x - r, y - r, x + r, y + r], fill=_tinted(random, (150, 150, 84), 14))
        image.paste(paint, mask=shape)
        mask.paste(1 + sick, mask=shape)
    return image.filter(ImageFilter.GaussianBlur(0.6)), mask


DATASETS: dict[str, tuple[Callable[[Random], Scene], tuple[str, ...]]] = {
    "rare class": (field, ("soil", "crop", "weed")),
    "thin structures": (concrete, ("concrete", "crack")),
    "similar classes": (leaves, ("straw", "healthy", "sick")),
}


def write(folder: Path, draw: Callable[[Random], Scene], classes: tuple[str, ...], seed: int, count: int = 20) -> None:
    """A plain folder of images, masks and classes.txt."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = draw(np.random.default_rng([seed, number]))
        image.save(folder / "images" / f"{number:02}.png")
        mask.save(folder / "masks" / f"{number:02}.png")
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")


RECIPES: dict[str, Recipe | dict[str, Any]] = {
    "chosen": {"epochs": 40},
    "upstream's": Recipe(epochs=20),
    "by hand": Recipe(
        optimizer="adamw", lr=0.004, weight_decay=0.05, warmup=10, head_lr_multiple=2.0, epochs=60, batch_size=8,
        crop=(256, 256), scale_range=(0.8, 1.4), max_class_share=1.0, photometric=0.3, freeze_batch_norm=True,
    ),
}  # fmt: skip
"""The recipe that is chosen for few images, upstream's, and one tuned by hand; epochs that take about equally long."""


def measure(folder: Path, dataset: str, name: str, seed: int, epochs: float) -> dict[str, Any]:
    """Train the packaged model on twenty images and measure it on twenty others; `epochs`: a factor for all recipes."""
    draw, classes = DATASETS[dataset]
    train, test = (folder / f"{dataset} {seed} {part}".replace(" ", "_") for part in ("train", "test"))
    for part, number in ((train, 2 * seed), (test, 2 * seed + 1)):
        if not (part / "classes.txt").exists():
            write(part, draw, classes, number)
    recipe = RECIPES[name]
    if isinstance(recipe, dict):
        recipe = recipe | {"seed": seed, "epochs": round(epochs * recipe["epochs"]), "validate_every": 1000}
    else:
        weights: Any = "balanced" if name == "by hand" else None
        number = round(epochs * recipe.epochs)
        recipe = replace(recipe, seed=seed, epochs=number, validate_every=1000, class_weights=weights)
    model: Any = MODEL
    if name == "by hand":
        torch.manual_seed(seed)
        model = isanet.from_pretrained(MODEL, classes=classes)
        model.preprocessing |= {"short_edge": 480, "long_edge": 960}
    with TemporaryDirectory() as output:
        started = time.process_time()
        run = isanet.finetune(
            model, Folder(train), Folder(test), recipe, Path(output) / "run", device="cpu", workers=0, progress=False
        )
        seconds = time.process_time() - started
    assert run.report is not None
    iou = {key: round(100 * value, 1) for key, value in run.report.iou.items()}
    return {"dataset": dataset, "recipe": name, "seed": seed, "epochs": epochs, "miou": 100 * run.report.miou,
            "iou": iou, "steps": len(run.history), "seconds": seconds}  # fmt: skip


def main() -> None:
    """Measure what is not in the folder yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for data and finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0, help="factor for the epochs of all recipes")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "runs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(options.seeds):
        for dataset in DATASETS:
            for name in options.recipes:
                wanted = {"dataset": dataset, "recipe": name, "seed": seed, "epochs": options.epochs}
                if not any(wanted.items() <= row.items() for row in rows):
                    rows.append(measure(options.output, dataset, name, seed, options.epochs))
                    with path.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(rows[-1], flush=True)
    table = [["dataset", *options.recipes]]
    for dataset in DATASETS:
        cells = []
        for name in options.recipes:
            known = [
                row for row in rows if (row["dataset"], row["recipe"], row["epochs"]) == (dataset, name, options.epochs)
            ]
            figures = [row["miou"] for row in known if row["seed"] < options.seeds]
            spread = f"{min(figures):.1f} to {max(figures):.1f}"
            cells.append(f"{sum(figures) / len(figures):.1f} ({spread}; {known[0]['seconds']:.0f} s of CPU)")
        table.append([dataset, *cells])
    print(*aligned(table), sep="\n")


if __name__ == "__main__":
    main()
