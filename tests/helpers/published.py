"""Small versions of the five kinds of network that were published, and of one with all that is particular to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from isanet.model import ISANet

PUBLISHED: dict[str, dict[str, Any]] = {
    "sssegmentation": {},
    "mmsegmentation": {"value_bias": True, "fusion_kernel": 1, "logits_resize": "corners"},
    "bpkd": {
        **{"backbone": "resnet18", "value_bias": True, "fusion_kernel": 1},
        **{"head_channels": 8, "key_channels": 16},  # keys wider than the head
    },
    "paddleseg": {
        **{"value_bias": True, "fusion_kernel": 1, "logits_resize": "asymmetric"},
        **{"full_dilation": True, "average_pool_shortcut": True},
    },
    "openseg": {
        **{"residual_first": True, "fusion_kernel": 1, "logits_resize": "corners"},
        **{"stem_channels": [6, 6, 12], "maxpool_ceil": True, "leaky_slope": 0.01},
    },
}
KINDS = {**PUBLISHED, "everything": {**PUBLISHED["openseg"], **PUBLISHED["paddleseg"], **PUBLISHED["bpkd"]}}
"""What tells each kind from the others, beside the sizes of `network`; arguments of `ISANet`."""


def network(kind: str, **changes: Any) -> ISANet:
    """A small network of a kind in float64 and evaluation mode, in which every batch norm does something."""
    sizes = {"backbone": "resnet26", "width": 4, "head_channels": 12, "key_channels": 6, "aux_channels": 4}
    torch.manual_seed(0)
    model = ISANet(**{"num_classes": 5, **sizes, **KINDS[kind], **changes}).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    nn.init.normal_(model.classifier.weight)
    return model
