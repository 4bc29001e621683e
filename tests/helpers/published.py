"""Small versions of the five kinds of network that were published: arguments of `ISANet`."""

from __future__ import annotations

from typing import Any

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
