"""Transfer from the packaged model: 20 harbor scenes, fine-tuned and trained from scratch with the same recipe.

    python -m tests.benchmarks.transfer

Prints the mIoU of both on 20 other harbor scenes, for three seeds of scenes, crops and new classifiers.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import isanet
from isanet.datasets import Folder

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))  # one example imports the other
    example = runpy.run_path(str(EXAMPLES / "finetune_harbor.py"))
    write = runpy.run_path(str(EXAMPLES / "harbor.py"))["write"]

    print("seed   from scratch   from isanet_nano_toystreets   margin   (mIoU in %)")
    margins = []
    for seed in range(options.seeds):
        with TemporaryDirectory() as name:
            folder = Path(name)
            write(folder / "train", 20, 10_000 * seed)
            write(folder / "val", 20, 10_000 * seed + 5_000)
            train, val = Folder(folder / "train"), Folder(folder / "val")
            recipe = replace(example["RECIPE"], epochs=options.epochs, validate_every=options.epochs, seed=seed)
            torch.manual_seed(seed)
            pretrained = isanet.from_pretrained("isanet_nano_toystreets", classes=train.classes)
            pretrained.preprocessing["short_edge"] = 256
            scratch = isanet.ISANet(**pretrained.config)
            figures = []
            for start, model in (("scratch", scratch), ("pretrained", pretrained)):
                run = isanet.finetune(model, train, val, recipe, folder / start, progress=False)
                figures.append(100 * (run.best or 0.0))
        margins.append(figures[1] - figures[0])
        print(f"{seed:4}   {figures[0]:12.1f}   {figures[1]:27.1f}   {margins[-1]:6.1f}", flush=True)
    print(f"mean margin {sum(margins) / len(margins):.1f} points, smallest {min(margins):.1f}")


if __name__ == "__main__":
    main()
