"""The entry points of torch.hub; see tests/promises/test_hubconf.py for torch.hub itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isanet.zoo import builders


@pytest.mark.parametrize("kind", ["num_classes", "classes", "neither"])
def test_builders_without_weights(kind: str) -> None:
    options: dict[str, Any] = {
        "num_classes": {"num_classes": 3},
        "classes": {"classes": ["a", "cat", "b"]},
        "neither": {},
    }[kind]
    with torch.device("meta"):
        model = builders.isanet_r50_voc(pretrained=False, **options)
    assert len(model.classes) == (21 if kind == "neither" else 3)
    assert model.preprocessing["short_edge"] == 512
    with pytest.raises(TypeError, match="revision"):
        builders.isanet_r50_voc(pretrained=False, revision="main")
    with pytest.raises(ValueError, match="list of names"):
        builders.isanet_r50_voc(pretrained=False, classes="person")
    with pytest.raises(ValueError, match="contradicts"):
        builders.isanet_r50_voc(pretrained=False, num_classes=5, classes=["a", "b"])
