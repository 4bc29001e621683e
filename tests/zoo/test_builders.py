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


def test_a_dot_in_a_name_is_an_underscore() -> None:
    with torch.device("meta"):
        model = builders.isanet_r101_cityscapes_mmseg_769x769_80k(pretrained=False, num_classes=2)
    assert model.config["logits_resize"] == "corners"
    assert model.config["protocol"] == "mmseg-slide-769"
    assert "isanet_r101_cityscapes.mmseg_769x769_80k" in str(builders.isanet_r101_cityscapes_mmseg_769x769_80k.__doc__)
    with pytest.raises(AttributeError, match="isanet_r101_cityscapes_mmseg'"):
        builders.isanet_r101_cityscapes_mmseg  # noqa: B018  the access is what is tested
