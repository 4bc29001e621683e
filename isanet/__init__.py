"""Pretrained ISANet segmentation models: download, verify, segment, fine-tune.

Everything public is a name of this module, imported when it is first used: `import isanet` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isanet._version import __version__ as __version__

if TYPE_CHECKING:
    from isanet import datasets, labels, metrics, training
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
    from isanet.inference.segmentation import Segmentation
    from isanet.inference.segmenter import Segmenter
    from isanet.model import ISANet
    from isanet.training.finetune import Run, finetune
    from isanet.training.recipe import Recipe
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
    "finetune",
    "from_backbone",
    "from_pretrained",
    "labels",
    "list_models",
    "metrics",
    "model_info",
    "training",
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
    "finetune": "isanet.training.finetune",
    "from_backbone": "isanet.zoo.pretrained",
    "from_pretrained": "isanet.zoo.pretrained",
    "list_models": "isanet.weights.manifest",
    "model_info": "isanet.weights.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'isanet' has no attribute {name!r}")
    if name in ("datasets", "labels", "metrics", "training"):
        return import_module(f"isanet.{name}")
    value = getattr(import_module(_MODULE_OF.get(name, "isanet.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
