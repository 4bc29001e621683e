"""Fine-tuning by example: a small model of streets learns harbours from 20 pictures, in half a minute on a CPU.

python examples/finetune_harbour.py

Writes harbour_scenes/ (pictures and masks) and runs/harbour/ (the model, curves.png, overlays.png, new_scene.png).
finetune_harbour.ipynb has the same steps, with words and pictures.

On a GPU, and with pictures of your own, take a large model instead:

    model = isanet.from_pretrained("isanet_r50_voc", classes=train.classes)  # VOC has boats: that row is kept
    run = isanet.finetune(model, train, val, recipe=isanet.Recipe(lr=0.005, epochs=100), output="runs/harbour_r50")

The same from the command line:

    isanet finetune harbour_scenes/train --val-data harbour_scenes/val --model isanet_r50_voc --set lr=0.005 epochs=100
"""

import harbour
import torch

import isanet
from isanet.datasets import Folder

# Not the defaults, which are upstream's, for thousands of large pictures.
RECIPE = isanet.Recipe(
    optimizer="adamw",
    lr=0.003,
    weight_decay=0.01,
    head_lr_multiple=3.0,  # it is new, but the backbone has learned something already
    warmup=5,
    epochs=10,
    batch_size=4,
    crop=(160, 224),
    scale_range=(0.7, 1.1),
    validate_every=5,
)


def main() -> None:
    """Draws the data, and trains, measures and uses the model."""
    harbour.write("harbour_scenes/train", count=20, seed=0)
    harbour.write("harbour_scenes/val", count=10, seed=1000)
    train, val = Folder("harbour_scenes/train"), Folder("harbour_scenes/val")

    torch.manual_seed(0)  # the new classifiers are drawn at random
    model = isanet.from_pretrained("isanet_nano_toystreets", classes=train.classes)
    model.preprocessing["short_edge"] = 256  # smaller than it was made for, and faster
    model.palette = model.config["palette"] = harbour.PALETTE
    before = isanet.evaluate(model, val)
    run = isanet.finetune(model, train, val, recipe=RECIPE, output="runs/harbour")

    print(f"{'IoU in %':10} {'before':>7} {'after':>7}")
    for name in val.classes:
        print(f"{name:10} {100 * before.iou[name]:7.1f} {100 * run.report.iou[name]:7.1f}")
    print(f"{'mean':10} {100 * before.miou:7.1f} {100 * run.report.miou:7.1f}")

    picture, _ = harbour.draw(seed=2004)
    result = isanet.Segmenter("runs/harbour")(picture)
    print("A new scene:", ", ".join(f"{name} {share:.0%}" for name, share in result.areas().items()))
    result.overlay().save("runs/harbour/new_scene.png")


if __name__ == "__main__":
    main()
