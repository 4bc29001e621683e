"""Pretrained ISANet segmentation models: download, verify, segment, fine-tune.

Everything public is a name of this module, and is imported when it is first used: `isanet list` and
`import isanet` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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
        UnsafeCheckpointError,
    )
    from isanet.evaluation import evaluate
    from isanet.finetuning import Run, finetune
    from isanet.manifest import Weights, list_models, model_info
    from isanet.model import ISANet
    from isanet.report import Report
    from isanet.segmenter import Segmentation, Segmenter
    from isanet.training import Recipe
    from isanet.zoo import from_pretrained

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
    "from_pretrained",
    "labels",
    "list_models",
    "metrics",
    "model_info",
    "training",
]

_HOMES = {
    "isanet.evaluation": ("evaluate",),
    "isanet.finetuning": ("Run", "finetune"),
    "isanet.manifest": ("Weights", "list_models", "model_info"),
    "isanet.model": ("ISANet",),
    "isanet.report": ("Report",),
    "isanet.segmenter": ("Segmentation", "Segmenter"),
    "isanet.training": ("Recipe",),
    "isanet.zoo": ("from_pretrained",),
}
_MODULES = (
    *(
        "airgap",
        "augment",
        "backbone",
        "checkpoint",
        "convert",
        "datasets",
        "download",
        "hub",
        "inference",
        "labels",
        "mask_check",
    ),
    *("metrics", "optimize", "preprocess", "protocols", "selftest", "toystreets", "training", "zoo"),
)
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"isanet.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'isanet' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF.get(name, "isanet.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
