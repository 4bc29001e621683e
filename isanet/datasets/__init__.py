"""Datasets for evaluation and training, read from where their archives were unpacked; nothing is downloaded.

Paths come in; pairs of an RGB image and a mask of class indices go out, as PIL images or as arrays (`read`).
`isanet.datasets.mask_check` reports what a folder of masks holds.
"""

from isanet.datasets.base import Options, SegmentationDataset, Transforms
from isanet.datasets.exported import Exported
from isanet.datasets.folder import Folder
from isanet.datasets.importing import import_masks
from isanet.datasets.official import ADE20K, VOC2012, Cityscapes, PascalContext
from isanet.datasets.opening import open_dataset, open_train_and_val
from isanet.datasets.toystreets import ToyStreets
from isanet.datasets.wrapped import Wrapped

__all__ = [
    "ADE20K",
    "VOC2012",
    "Cityscapes",
    "Exported",
    "Folder",
    "Options",
    "PascalContext",
    "SegmentationDataset",
    "ToyStreets",
    "Transforms",
    "Wrapped",
    "import_masks",
    "open_dataset",
    "open_train_and_val",
]


def __dir__() -> list[str]:
    return __all__
