"""Augmentation by torchvision, as `transforms=` of the datasets: random scale and crop, flip, colors, normalization.

    model = isanet.from_pretrained("isanet_r50_voc", classes=classes)
    train = isanet.datasets.Folder("mine", transforms=transforms((512, 512), model.preprocessing))

`isanet.finetune(model, train, val)` takes such a dataset: its transforms replace the recipe's augmentation.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from isanet.labels import IGNORED

Transforms = Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor]]


def transforms(crop: tuple[int, int], preprocessing: Mapping[str, Any]) -> Transforms:
    """Makes samples of one size, (3, *crop) float32 and (*crop) uint8, for a model with this preprocessing."""
    fill = {tv_tensors.Image: list(preprocessing["mean"]), tv_tensors.Mask: IGNORED}
    augment = v2.Compose(
        [
            v2.ScaleJitter(crop, scale_range=(0.5, 2.0)),
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}),  # keeps 0..255, as mean and std are
            v2.Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
    )
    return partial(apply, augment)


def apply(augment: v2.Transform, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
    """Tells torchvision which of the two is the mask: it is resized by nearest neighbor, and keeps its colors."""
    pixels, labels = augment(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return pixels.as_subclass(Tensor), labels[0].as_subclass(Tensor)
