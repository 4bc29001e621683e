"""Train the packaged model isanet_nano_toystreets: from scratch, in two stages, on one CPU core.

    python examples/train_nano.py runs/nano                   # about an hour; the model is in runs/nano/fine
    python examples/train_nano.py runs/nano --into-package    # also evaluates it and writes it into this checkout

An interrupted run resumes when it is called again. On glibc, MALLOC_MMAP_THRESHOLD_=8000000000 and
MALLOC_TRIM_THRESHOLD_=16000000000 in the environment save a third of the time: otherwise the kernel allocates
and clears large tensors again at each step.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import isanet
from isanet.datasets import Folder, ToyStreets
from isanet.toystreets import NUM_TEST_SCENES
from isanet.zoo.publish import package_model

TRAINING, VALIDATION = 3000, 50
"""Numbers of scenes, which are drawn once and written to the disk, because drawing is slower than reading."""

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
"""Images at the size at which they are drawn; nearly everything is learned at this size."""

FINE = COARSE | {"short_edge": 384}
"""Upscaled: a position of the feature map then covers 5.3 pixels of the image, which thin objects need."""

USED = COARSE | {"short_edge": 320}
"""For inference: the best size on the validation scenes, with an mIoU of 0.633.

0.596 at 384, and 0.543, 0.582, 0.614, 0.513, 0.546 at 272, 288, 304, 336, 352. At multiples of 64 pixels (a block is 8
positions of 8 pixels) nothing is padded, and training crops of 192 pixels showed the network little more at once.
"""

SHARES = (0.260, 0.072, 0.314, 0.013, 0.0012, 0.0069, 0.072, 0.021, 0.148, 0.0093, 0.083)
"""Share of each class in the pixels of the training scenes, as `isanet finetune` logs it."""

RECIPE = isanet.Recipe(
    optimizer="adamw",
    lr=0.005,
    weight_decay=0.01,
    warmup=300,
    epochs=10,
    batch_size=4,
    crop=(192, 256),
    scale_range=(0.75, 2.0),
    photometric=0.0,  # the scenes vary in weather and light already
    max_class_share=1.0,
    class_weights=tuple(share**-0.25 for share in SHARES),
    ema=0.998,
    clip_grad_norm=5.0,
    precision="bfloat16",
    sync_batch_norm=False,
)

RECIPE_FINE = replace(RECIPE, lr=0.003, epochs=6, crop=(192, 384), scale_range=(0.8, 1.25))


def draw(folder: Path, count: int, split: str) -> Folder:
    """Write the scenes as a folder of images and masks."""
    scenes = ToyStreets(count=count, split=split)
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        mask_path = folder / "masks" / split / f"{index:06}.png"
        if not mask_path.exists():
            image, mask = scenes.read(index)
            Image.fromarray(image).save(folder / "images" / split / f"{index:06}.png", compress_level=1)
            Image.fromarray(mask).save(mask_path, compress_level=1)
    return Folder(folder, split, classes="toystreets")


def train(output: Path) -> isanet.ISANet:
    """Draw the scenes, and train both stages."""
    data = draw(output / "scenes", TRAINING, "train")
    val = draw(output / "scenes", VALIDATION, "val")

    torch.manual_seed(0)
    space = data.label_space
    model = isanet.ISANet(
        **NETWORK, classes=space.classes, palette=space.palette, label_space=space.name, preprocessing=COARSE
    )
    coarse = isanet.finetune(model, data, val, RECIPE, output / "coarse")

    model = isanet.ISANet(**(coarse.model.config | {"preprocessing": FINE}))
    model.load_state_dict(coarse.model.state_dict())
    fine = isanet.finetune(model, data, val, RECIPE_FINE, output / "fine").model
    model = isanet.ISANet(**(fine.config | {"preprocessing": USED})).eval()
    model.load_state_dict(fine.state_dict())
    model.provenance = fine.provenance
    return model


def put_into_package(model: isanet.ISANet) -> None:
    """Evaluate the model on the test scenes, as it will be packaged, and write its file and manifest entry."""
    report = isanet.evaluate(model.half().float(), ToyStreets(count=NUM_TEST_SCENES, split="test"))
    print(report)
    stages = {
        "train_split": "train",
        "schedule": "poly",
        "ignore_index": 255,
        "started_from": "a first stage at short_edge 256: see examples/train_nano.py",
    }
    package_model(
        model,
        "isanet_nano_toystreets",
        metrics={"dataset": "ToyStreets", "split": "test", "miou": round(report.miou, 4), "protocol": "whole"},
        recipe=json.loads(RECIPE_FINE.to_json()) | stages,
        license="Apache-2.0; the scenes behind it are drawn by isanet",
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trained = train(Path(sys.argv[1]))
    if "--into-package" in sys.argv:
        put_into_package(trained)
