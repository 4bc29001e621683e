"""How the model in the package was trained: isanet_nano_toystreets, from nothing, in two stages, on two cores of a CPU.

    python examples/train_nano.py runs/nano
    torchrun --nproc-per-node 2 examples/train_nano.py runs/nano    # the same on several processes, or GPUs

It goes on where it stopped when it is called again. The weights are in `runs/nano/fine`.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import isanet
from isanet.datasets import Folder, ToyStreets

TRAINING, VALIDATION = 3000, 50
"""Scenes. They are drawn once and written to the disk, because drawing takes longer than reading."""

NETWORK = {
    "backbone": "resnet14",
    "width": 16,
    "head_channels": 64,
    "key_channels": 32,
    "aux_channels": 32,
    "fusion_kernel": 3,
    "dropout": 0.0,
}

COARSE = {"short_edge": 256, "long_edge": 2048, "mean": [115.0, 115.0, 115.0], "std": [60.0, 60.0, 60.0]}
"""Pictures as they are drawn, in which nearly everything is learned."""

FINE = COARSE | {"short_edge": 512}
"""Twice as large: a position of the network is then 4 pixels wide, as thin things need it."""

SHARES = (0.260, 0.072, 0.314, 0.013, 0.0012, 0.0069, 0.072, 0.021, 0.148, 0.0093, 0.083)
"""Of the classes, in the training scenes: `isanet finetune` shows them."""

RECIPE = isanet.Recipe(
    optimizer="adamw",
    lr=0.005,
    weight_decay=0.01,
    warmup=300,
    epochs=18,
    batch_size=4,
    crop=(192, 256),
    scale_range=(0.75, 2.0),
    photometric=0.0,  # the scenes have weather and light of their own
    max_class_share=1.0,
    class_weights=tuple(share**-0.25 for share in SHARES),
    ema=0.998,
    clip_grad_norm=5.0,
    precision="bfloat16",
    sync_batch_norm=False,
)


def draw(folder: Path, count: int, split: str) -> Folder:
    """The scenes as a folder of pictures and masks."""
    scenes = ToyStreets(count=count, split=split)
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "masks" / split).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        mask_path = folder / "masks" / split / f"{index:06}.png"
        if not mask_path.exists():
            image, mask = scenes.read(index)
            Image.fromarray(image).save(folder / "images" / split / f"{index:06}.png", compress_level=1)
            Image.fromarray(mask).save(mask_path, compress_level=1)
    return Folder(folder, split, classes=scenes.classes)


def main(output: Path) -> None:
    """Draws, and trains both stages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if os.environ.get("RANK", "0") == "0":
        draw(output / "scenes", TRAINING, "train")
        draw(output / "scenes", VALIDATION, "val")
    train, val = draw(output / "scenes", TRAINING, "train"), draw(output / "scenes", VALIDATION, "val")

    torch.manual_seed(0)
    scenes = ToyStreets()
    model = isanet.ISANet(**NETWORK, classes=scenes.classes, palette=scenes.palette, preprocessing=COARSE)
    coarse = isanet.finetune(model, train, val, RECIPE, output / "coarse", workers=0)

    model = isanet.ISANet(**(coarse.model.config | {"preprocessing": FINE}))
    model.load_state_dict(coarse.model.state_dict())
    recipe = replace(RECIPE, lr=0.002, epochs=8, crop=(256, 512), scale_range=(0.75, 1.25))
    fine = isanet.finetune(model, train, val, recipe, output / "fine", workers=0)
    print(fine.report)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
