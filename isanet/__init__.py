"""Pretrained ISANet segmentation models: download, verify, segment, fine-tune.

>>> names = isanet.list_models()  # the zoo; isanet.model_info(name) tells what is known of a model
>>> segmenter = isanet.Segmenter("isanet_nano_toystreets")  # or a folder, a checkpoint, "org/name" on the Hub
>>> result = segmenter("street.jpg")  # a file, PIL image or RGB array; a list or folder: segmenter.stream(...)
>>> shares, overlay = result.areas(), result.overlay()  # and result.labels, .mask("car"), .save("labels.png")
>>> dataset = isanet.datasets.open_dataset("streets")  # your images and masks, or VOC, ADE20K, Cityscapes
>>> train, val = dataset.held_out(0.25)
>>> report = isanet.evaluate("isanet_nano_toystreets", val)  # print(report); report.miou, .iou, .save("evaluated")
>>> run = isanet.finetune("isanet_nano_toystreets", train, val, {"epochs": 1}, output="runs/streets")
>>> model = isanet.from_pretrained("runs/streets")  # a torch.nn.Module: logits = model(images)
>>> model.save_pretrained("mine")  # or isanet.export(model, "mine.onnx"); every error is an isanet.IsanetError

Everything public is a name of this module, imported when it is first used: `import isanet` does not wait for torch.
The examples of docstrings use these names too: `segmenter`, `result`, `dataset`, `report`, `run` and `model`, and
`images` and `masks`, a batch for training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isanet._version import __version__ as __version__

if TYPE_CHECKING:
    from isanet import datasets, labels, metrics, training, viz
    from isanet.errors import (
        CacheError,
        CheckpointError,
        CheckpointFormatError,
        CheckpointMismatchError,
        DatasetError,
        DownloadError,
        ImageError,
        IntegrityError,
        IsanetError,
        ManifestError,
        MirrorsExhaustedError,
        NetworkError,
        OfflineError,
        OutputError,
        UnsafeCheckpointError,
    )
    from isanet.evaluation.evaluate import evaluate
    from isanet.evaluation.report import Report
    from isanet.exporting.write import export
    from isanet.inference.segmentation import Segmentation
    from isanet.inference.segmenter import Segmenter
    from isanet.inference.showing import show
    from isanet.model import ISANet
    from isanet.training.finetune import Run, finetune
    from isanet.training.recipe import Recipe
    from isanet.weights.choosing import recommend
    from isanet.weights.manifest import Weights, list_models, model_info
    from isanet.zoo.pretrained import from_backbone, from_pretrained

__all__ = [
    "CacheError",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointMismatchError",
    "DatasetError",
    "DownloadError",
    "ISANet",
    "ImageError",
    "IntegrityError",
    "IsanetError",
    "ManifestError",
    "MirrorsExhaustedError",
    "NetworkError",
    "OfflineError",
    "OutputError",
    "Recipe",
    "Report",
    "Run",
    "Segmentation",
    "Segmenter",
    "UnsafeCheckpointError",
    "Weights",
    "datasets",
    "evaluate",
    "export",
    "finetune",
    "from_backbone",
    "from_pretrained",
    "labels",
    "list_models",
    "metrics",
    "model_info",
    "recommend",
    "show",
    "training",
    "viz",
]

_MODULE_OF = {
    "ISANet": "isanet.model",
    "Recipe": "isanet.training.recipe",
    "Report": "isanet.evaluation.report",
    "Run": "isanet.training.finetune",
    "Segmentation": "isanet.inference.segmentation",
    "Segmenter": "isanet.inference.segmenter",
    "Weights": "isanet.weights.manifest",
    "evaluate": "isanet.evaluation.evaluate",
    "export": "isanet.exporting.write",
    "finetune": "isanet.training.finetune",
    "from_backbone": "isanet.zoo.pretrained",
    "from_pretrained": "isanet.zoo.pretrained",
    "list_models": "isanet.weights.manifest",
    "model_info": "isanet.weights.manifest",
    "recommend": "isanet.weights.choosing",
    "show": "isanet.inference.showing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'isanet' has no attribute {name!r}")
    if name in ("datasets", "labels", "metrics", "training", "viz"):
        return import_module(f"isanet.{name}")
    value = getattr(import_module(_MODULE_OF.get(name, "isanet.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
