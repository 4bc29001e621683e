"""What this processor and this torch have."""

from __future__ import annotations

import pytest
import torch

from isanet.inference.fast import int8

needs_int8 = pytest.mark.skipif(not int8.is_supported(), reason="int8 needs a CPU with VNNI")

PRECISIONS = ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)]
"""For `pytest.mark.parametrize`."""

needs_new_torch = pytest.mark.skipif(
    torch.__version__ < "2.14", reason="torch 2.11 pins a size, and has no ShapesSpec; later ones were not tried"
)
