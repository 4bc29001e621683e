"""Fine-tune a small street model on 20 harbor images: half a minute on a CPU.

python examples/finetune_harbor.py

Writes harbor_scenes/ (images and masks) and runs/harbor/ (the model, curves.png, overlays.png, new_scene.png).
finetune_harbor.ipynb has the same steps with explanations.

On a GPU, with your own images, start from a large model instead:

    model = isanet.from_pretrained("isanet_r50_voc", classes=train.classes)  # the row of VOC's class boat is kept
    run = isanet.finetune(model, train, val, recipe=isanet.Recipe(lr=0.005, epochs=100), output="runs/harbor_r50")

The same on the command line:

    isanet finetune harbor_scenes/train --val-data harbor_scenes/val --model isanet_r50_voc --set lr=0.005 epochs=100
"""

import harbor
import torch

import isanet
from isanet.datasets import Folder

# The defaults are upstream's, for thousands of large images; these suit 20 small ones.
RECIPE = isanet.Recipe(
    optimizer="adamw",
    lr=0.003,
    weight_decay=0.01,
    head_lr_multiple=3.0,  # the head is new, the backbone is pretrained
    warmup=5,
    epochs=20,
    batch_size=4,
    crop=(160, 224),
    scale_range=(0.7, 1.1),
    validate_every=5,
)


def main() -> None:
    """Draw the data; train, evaluate and use the model."""
    harbor.write("harbor_scenes/train", count=20, seed=0)
    harbor.write("harbor_scenes/val", count=10, seed=1000)
    train, val = Folder("harbor_scenes/train"), Folder("harbor_scenes/val")

    torch.manual_seed(0)  # the new classifiers are randomly initialized
    model = isanet.from_pretrained("isanet_nano_toystreets", classes=train.classes)
    model.preprocessing["short_edge"] = 256  # smaller than in its own training, and faster
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
