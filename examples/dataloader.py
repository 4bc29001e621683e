"""Images of several sizes in one batch: padded to the largest, with labels that do not count.

python examples/harbor.py harbor_scenes --count 20
python examples/dataloader.py harbor_scenes

prints the loss of a model on a folder of images and masks. Augmentations that crop all images to one size
(torchvision_transforms.py) need no `collate`.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F  # noqa: N812  as its documentation does

import isanet
from isanet.datasets import Folder
from isanet.labels import IGNORED
from isanet.training import loss_weight, segmentation_loss


def normalize(image: Image.Image, mask: Image.Image, preprocessing: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The image as networks take it, (3, H, W) float32, and the mask, (H, W) uint8."""
    pixels = F.pil_to_tensor(image).float()  # 0..255, as mean and std are
    return F.normalize(pixels, preprocessing["mean"], preprocessing["std"]), F.pil_to_tensor(mask)[0]


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pads at the right and the bottom: images with 0, which is the mean, and masks with IGNORED."""
    height, width = (max(mask.shape[axis] for _, mask in samples) for axis in (0, 1))

    def stacked(tensors: Sequence[Tensor], value: int) -> Tensor:
        return torch.stack([pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), value=value) for x in tensors])

    images, masks = zip(*samples, strict=True)
    return stacked(images, 0), stacked(masks, IGNORED)


@torch.inference_mode()
def main(folder: str, model: str = "isanet_nano_toystreets") -> float:
    """The loss per pixel."""
    data = Folder(folder)
    network = isanet.from_pretrained(model, classes=data.classes).eval()
    data.transforms = partial(normalize, preprocessing=network.preprocessing)
    losses, pixels = 0.0, 0.0
    for images, masks in DataLoader(data, batch_size=4, num_workers=2, collate_fn=collate):
        weight = loss_weight(masks, len(data.classes)).item()
        losses += weight * segmentation_loss(network(images), None, masks).item()
        pixels += weight
    return losses / pixels


if __name__ == "__main__":
    print(f"loss {main(*sys.argv[1:]):.4f}")
