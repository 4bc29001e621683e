"""Fine-tuning by example: a small model of streets learns harbors from 20 images, in half a minute on a CPU.

python examples/finetune_harbor.py

Writes harbor_scenes/ (images and masks) and runs/harbor/ (the model, curves.png, overlays.png, new_scene.png).
finetune_harbor.ipynb has the same steps, with words and images.

On a GPU, and with images of your own, take a large model instead:

    model = isanet.from_pretrained("isanet_r50_voc", classes=train.classes)  # VOC has boats: that row is kept
    run = isanet.finetune(model, train, val, recipe=isanet.Recipe(lr=0.005, epochs=100), output="runs/harbor_r50")

The same from the command line:

    isanet finetune harbor_scenes/train --val-data harbor_scenes/val --model isanet_r50_voc --set lr=0.005 epochs=100
"""

import harbor
import torch

import isanet
from isanet.datasets import Folder

# Not the defaults, which are upstream's, for thousands of large images.
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
    harbor.write("harbor_scenes/train", count=20, seed=0)
    harbor.write("harbor_scenes/val", count=10, seed=1000)
    train, val = Folder("harbor_scenes/train"), Folder("harbor_scenes/val")

    torch.manual_seed(0)  # the new classifiers are drawn at random
    model = isanet.from_pretrained("isanet_nano_toystreets", classes=train.classes)
    model.preprocessing["short_edge"] = 256  # smaller than it was made for, and faster
    model.palette = model.config["palette"] = harbor.PALETTE
    before = isanet.evaluate(model, val)
    run = isanet.finetune(model, train, val, recipe=RECIPE, output="runs/harbor")

    print(f"{'IoU in %':10} {'before':>7} {'after':>7}")
    for name in val.classes:
        print(f"{name:10} {100 * before.iou[name]:7.1f} {100 * run.report.iou[name]:7.1f}")
    print(f"{'mean':10} {100 * before.miou:7.1f} {100 * run.report.miou:7.1f}")

    image, _ = harbor.draw(seed=2004)
    result = isanet.Segmenter("runs/harbor")(image)
    print("A new scene:", ", ".join(f"{name} {share:.0%}" for name, share in result.areas().items()))
    result.overlay().save("runs/harbor/new_scene.png")


if __name__ == "__main__":
    main()
