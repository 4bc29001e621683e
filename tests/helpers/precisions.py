"""What this processor and this torch have."""

from __future__ import annotations

import pytest
import torch

PRECISIONS = ["float32", "bfloat16", "int8"]
"""For `pytest.mark.parametrize`."""

needs_new_torch = pytest.mark.skipif(
    torch.__version__ < "2.14", reason="torch 2.11 pins a size, and has no ShapesSpec; later ones were not tried"
)
