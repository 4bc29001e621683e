"""A zoo of one tiny model in upstream's layout, for tests that need many files and little time."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet.backbone import ResNet
from isanet.config import ISANetConfig
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.weights import convert, manifest
from tests.helpers import stand_in

NAME = "isanet_tiny_voc"
FILE_NAME = "isanet_tiny_train.pth"
ARCHITECTURE: dict[str, Any] = {
    "backbone": "resnet14",
    "num_classes": 21,
    "width": 8,
    "head_channels": 16,
    "key_channels": 8,
    "aux_channels": 8,
}


LAYOUT_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "sssegmentation": {},
    "mmsegmentation": {"value_bias": True, "fusion_kernel": 1},
    "paddleseg": {"value_bias": True, "fusion_kernel": 1},
    "openseg": {"fusion_kernel": 1, "stem_channels": [6, 6, 12]},
    "openseg_torch": {"fusion_kernel": 1, "stem_channels": [6, 6, 12]},
}
"""What shapes show of each layout's networks, made tiny."""


def upstream_state(layout: str = "sssegmentation", **architecture: Any) -> dict[str, Tensor]:
    """Stand-in weights of a tiny ISANet under upstream's names."""
    with torch.device("meta"):
        ours = ISANet(**{**ARCHITECTURE, **LAYOUT_ARCHITECTURE[layout], **architecture}).state_dict()
    if layout in ("paddleseg", "openseg"):
        ours = {name: value for name, value in ours.items() if not name.endswith("num_batches_tracked")}
    theirs = convert.rename(ours, inverse(layout), layout)
    return {name: stand_in.tensor(name, tuple(value.shape), layout == "openseg") for name, value in theirs.items()}


def inverse(layout: str) -> dict[str, str]:
    """The table from our names to upstream's."""
    return {ours: theirs for theirs, ours in convert.LAYOUTS[layout].items()}


def saved(contents: object, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def manifest_of_one(path: Path, **changes: Any) -> Path:
    """A manifest with the tiny model alone, whose own addresses refuse every connection."""
    document = json.loads(manifest.manifest_path().read_text())
    entry = document["weights"]["isanet_r50_voc"]
    state = upstream_state()
    entry |= {
        "architecture": ARCHITECTURE,
        "urls": [f"https://127.0.0.1:1/{FILE_NAME}", "https://127.0.0.1:1/isanet_tiny.pth"],
        "pages": [],
        "tensors": len(state),
        "payload": sum(value.numel() * value.element_size() for value in state.values()),
        **changes,
    }
    assert entry["label_space"] in LABEL_SPACES
    path.write_text(json.dumps({"schema": 2, "weights": {NAME: entry}, "backbones": {}}))
    return path


def backbone_state(backbone: str = "resnet14") -> dict[str, Tensor]:
    """Stand-in weights of a ResNet-V1c under mmcv's names, with ImageNet's classifier."""
    with torch.device("meta"):
        ours = ResNet(ISANetConfig(num_classes=1, backbone=backbone)).state_dict()
    shapes = {name: tuple(value.shape) for name, value in ours.items()} | {
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    }
    return {name: stand_in.tensor(name, shape) for name, shape in shapes.items()}


def publish_backbone(
    manifest_file: Path, files: dict[str, bytes | Path], data: bytes, backbone: str = "resnet14"
) -> str:
    """Put a backbone's file on a server, whose name contains its hash, and its entry into a manifest.

    Returns the file's name. The entry's own address refuses every connection.
    """
    digits = hashlib.sha256(data).hexdigest()[:8]
    file_name = f"{backbone}_v1c-{digits}.pth"
    files[f"/{file_name}"] = data
    with torch.device("meta"):
        state = ResNet(ISANetConfig(num_classes=1, backbone=backbone)).state_dict()
    document = json.loads(manifest_file.read_text())
    document["backbones"][f"{backbone}_v1c"] = {
        "backbone": backbone,
        "layout": "mmcv_v1c",
        "urls": [f"https://127.0.0.1:1/{file_name}"],
        "sha256_prefix": digits,
        "sha256": None,
        "size": None,
        "tensors": len(state),
        "payload": sum(value.numel() * value.element_size() for value in state.values()),
        "license": "none",
    }
    manifest_file.write_text(json.dumps(document))
    return file_name


def upstream_file(folder: Path, **architecture: Any) -> Path:
    """The tiny model as upstream saves it, with other arguments of `ISANet` where given."""
    path = folder / "checkpoint.pth"
    path.write_bytes(saved({"model": upstream_state(**architecture)}))
    return path


def logits(model: ISANet) -> Tensor:
    """Logits of one small image."""
    with torch.inference_mode():
        return model(stand_in.image(40, 50))


def expected_logits() -> Tensor:
    """Logits of the tiny model, computed without the code that loads models."""
    state = upstream_state()
    model = ISANet(**ARCHITECTURE)
    model.load_state_dict(convert.convert(state, "sssegmentation"))
    return logits(model.eval())
