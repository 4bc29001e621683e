"""A zoo of one tiny model in upstream's layout, for tests that need many files and little time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet import convert, manifest
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from tests import stand_in

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


def upstream_state(layout: str = "sssegmentation", **architecture: Any) -> dict[str, Tensor]:
    """Stand-in weights of a tiny ISANet under upstream's names."""
    if layout == "mmsegmentation":
        architecture = {"value_bias": True, "fusion_kernel": 1, **architecture}
    with torch.device("meta"):
        ours = ISANet(**{**ARCHITECTURE, **architecture}).state_dict()
    table = {ours_prefix: theirs for theirs, ours_prefix in convert.LAYOUTS[layout].items()}
    theirs = convert.rename(ours, table, layout)
    return {name: stand_in.tensor(name, tuple(value.shape)) for name, value in theirs.items()}


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
        "tensors": len(state),
        "payload": sum(value.numel() * value.element_size() for value in state.values()),
        **changes,
    }
    assert entry["label_space"] in LABEL_SPACES
    path.write_text(json.dumps({"schema": 1, "weights": {NAME: entry}}))
    return path
