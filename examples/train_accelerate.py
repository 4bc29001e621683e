"""A training loop of your own with accelerate.

pip install 'isanet[train]'
python examples/harbor.py harbor_scenes --count 20
python examples/train_accelerate.py harbor_scenes runs/mine
isanet segment photo.jpg --model runs/mine

`accelerate launch examples/train_accelerate.py ...` trains on several GPUs, or in half precision. `isanet.finetune`
does the same and validates, resumes and reports too; write a loop where that is not what you need.
"""

import sys

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from torchvision_transforms import transforms  # beside this file

import isanet
from isanet.datasets import Folder
from isanet.training import poly_sgd, segmentation_loss


def main(folder: str, output: str, model: str = "isanet_nano_toystreets", epochs: int = 5) -> None:
    """Trains a model on a folder of images and masks, and saves it."""
    accelerator = Accelerator()
    set_seed(0)
    data = Folder(folder)
    network = isanet.from_pretrained(model, classes=data.classes).train()
    data.transforms = transforms((160, 224), network.preprocessing)  # (512, 512) for large models and images
    loader = DataLoader(data, batch_size=4, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    optimizer, schedule = poly_sgd(network, lr=0.01, steps=epochs * len(loader), head_lr_multiple=10)
    network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)

    for epoch in range(epochs):
        losses = []
        for images, masks in loader:
            loss = segmentation_loss(*network(images, aux=True), masks)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(accelerator.gather(loss.detach()).mean().item())
        accelerator.print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")
    if accelerator.is_main_process:
        accelerator.unwrap_model(network).save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
