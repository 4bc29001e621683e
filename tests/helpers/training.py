"""A tiny network, a small dataset, and training runs on them in this process or in others."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from isanet.datasets import Folder
from isanet.labels import IGNORED
from isanet.model import ISANet
from isanet.training import Recipe
from isanet.training.finetune import finetune

ROOT = Path(__file__).parents[2]

TINY: dict[str, Any] = {"backbone": "resnet14", "width": 8, "head_channels": 16, "key_channels": 8, "aux_channels": 8}

PREPROCESSING = {"short_edge": 32, "long_edge": 512, "mean": [127.5] * 3, "std": [127.5] * 3}

CLASSES = ("grass", "rust", "sea")

COLORS = ((60, 160, 70), (170, 80, 50), (50, 90, 180))

RECIPE = Recipe(lr=0.02, epochs=2, batch_size=3, crop=(32, 32), scale_range=(0.8, 1.25), max_class_share=1.0)


def tiny(**arguments: Any) -> ISANet:
    torch.manual_seed(0)
    return ISANet(**TINY, classes=CLASSES, palette=COLORS, preprocessing=PREPROCESSING, **arguments)


def write_data(root: Path, count: int = 7, val: int = 3) -> Path:
    """Images of three noisy colors in bands, and their masks; a border is ignored."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            mask = np.repeat(rng.integers(0, 3, (5, 1)), 8, axis=0).repeat(48, axis=1).astype(np.uint8)
            pixels = np.array(COLORS)[mask] + rng.normal(0, 25, (*mask.shape, 3))
            mask[0] = IGNORED
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def train(model: Any, sets: tuple[Folder, Folder], output: Path, recipe: Recipe = RECIPE, **arguments: Any) -> Any:
    return finetune(model, *sets, recipe, output, **{"device": "cpu", "workers": 0, "progress": False, **arguments})


def history_of(output: Path) -> list[dict[str, str]]:
    """The history without speeds, which differ."""
    with (output / "history.csv").open(newline="") as file:
        return [{name: row[name] for name in row if name != "images_per_second"} for row in csv.DictReader(file)]


def same_bytes(*folders: Path) -> bool:
    return len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


SCRIPT = """
import json, logging, os, sys
from pathlib import Path
import torch
from isanet.training import loop, plan
from isanet.training.finetune import finetune
from isanet.datasets import Folder
from tests.helpers.training import tiny
from isanet.training import Recipe
root, output, recipe, save_every = sys.argv[1:5]
logging.basicConfig(level=logging.WARNING)
loop.SAVE_EVERY = float(save_every)
second = os.environ.get("RANK") == "1"
if sys.argv[7] == "an error in one" and second:
    plan.loss_weight = None
sets = Folder(root, "train"), Folder(root, "val")
model = tiny(dropout=float(sys.argv[5]), gradient_checkpointing=True)
if sys.argv[7] == "another model in one" and second:
    torch.nn.init.normal_(model.classifier.weight)
run = finetune(model, *sets, Recipe.from_json(recipe), output, device="cpu",
               workers=int(sys.argv[6]), progress=False)
print("done", run.best)
"""


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """What the process showed; `code`: as of subprocess, a signal below zero."""
    shown, errors = process.communicate(timeout=200)
    if code == -signal.SIGINT and process.returncode == 1:  # which it becomes where torch has imported tabulate
        assert errors.rstrip().endswith("KeyboardInterrupt")
    else:
        assert process.returncode == code, errors
    return shown + errors


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(FileNotFoundError):
            if len((output / "history.csv").read_text().splitlines()) > step:
                return
        time.sleep(0.005)
    raise AssertionError(f"no step {step}: {process.communicate()}")
