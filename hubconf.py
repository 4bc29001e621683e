"""Entry points of `torch.hub.load("org/isanet", NAME)`: one builder for each released model."""

dependencies = [
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "requests",
    "urllib3",
    "huggingface_hub",
    "safetensors",
    "filelock",
    "tqdm",
]

from isanet.zoo.builders import (
    isanet_nano_toystreets,
    isanet_r50_ade20k,
    isanet_r50_cityscapes,
    isanet_r50_voc,
    isanet_r101_ade20k,
    isanet_r101_cityscapes,
    isanet_r101_voc,
)
