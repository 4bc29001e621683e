"""Augmentation by Albumentations, as `transforms=` of the datasets, like torchvision_transforms.py.

    pip install isanet albumentations

    model = isanet.from_pretrained("isanet_r50_voc", classes=classes)
    train = isanet.datasets.Folder("mine", transforms=transforms((512, 512), model.preprocessing))

`isanet.finetune(model, train, val)` takes such a dataset: its transforms replace the recipe's augmentation.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import albumentations as A  # noqa: N812  as its documentation does
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isanet.labels import IGNORED

Transforms = Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor]]


def transforms(crop: tuple[int, int], preprocessing: Mapping[str, Any]) -> Transforms:
    """Makes samples of one size, (3, *crop) float32 and (*crop) uint8, for a model with this preprocessing."""
    augment = A.Compose(
        [
            A.RandomScale((-0.5, 1.0), p=1),
            A.PadIfNeeded(*crop, fill=preprocessing["mean"], fill_mask=IGNORED),
            A.RandomCrop(*crop),
            A.HorizontalFlip(),
            A.RandomBrightnessContrast(),
            A.Normalize(preprocessing["mean"], preprocessing["std"], max_pixel_value=1),  # they are of 0..255
            A.ToTensorV2(),
        ]
    )
    return partial(apply, augment)


def apply(augment: A.Compose, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
    """Seeds Albumentations by torch, so that a run with a seed can be repeated, whatever the number of workers."""
    augment.set_random_seed(int(torch.randint(2**31, ())))
    sample = augment(image=np.asarray(image), mask=np.asarray(mask))
    return sample["image"], sample["mask"]
