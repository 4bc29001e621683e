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
    "blake3",
    "filelock",
    "tqdm",
]

from isanet.zoo.builders import *  # noqa: F403  one for each model of the zoo
