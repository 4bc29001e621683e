"""Precisions that this processor has."""

from __future__ import annotations

import pytest

from isanet.inference.fast import int8

needs_int8 = pytest.mark.skipif(not int8.is_supported(), reason="int8 needs a CPU with VNNI")

PRECISIONS = ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)]
"""For `pytest.mark.parametrize`."""
