"""Stand-in weights: every tensor a pure function of its upstream name and shape.

The released files cannot be part of a test. These tensors, which `tests/data` has upstream's own outputs for,
take their place: same names, shapes and files, other values. `numpy.random.RandomState` never changes its stream.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = random.random_sample(shape) + 0.5
    elif len(shape) == 4:
        values = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("bn3.weight"):
        values = 0.15 + 0.2 * random.random_sample(shape)
    elif name.endswith("weight"):
        values = 0.75 + 0.5 * random.random_sample(shape)
    else:
        values = 0.1 * random.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def shapes(listing: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an upstream state dict, such as `sssegmentation_r50_voc`."""
    return {name: tuple(shape) for name, shape in json.loads((DATA / f"{listing}.keys.json").read_text()).items()}


def state_dict(listing: str) -> dict[str, Tensor]:
    return {name: tensor(name, shape) for name, shape in shapes(listing).items()}


def image(height: int, width: int, seed: int = 0) -> Tensor:
    """A normalized input, (1, 3, height, width)."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((1, 3, height, width)).astype(np.float32))


def sgd_state(state: dict[str, Tensor]) -> dict[str, Any]:
    """The optimizer's part of a checkpoint that was saved in the middle of training: as large as the weights."""
    trained = [
        value
        for name, value in state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    return {
        "state": {i: {"momentum_buffer": torch.zeros_like(value)} for i, value in enumerate(trained)},
        "param_groups": [{"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "params": list(range(len(trained)))}],
    }


def main() -> None:
    """Write one stand-in checkpoint: `python tests/helpers/stand_in.py sssegmentation_r50_voc FILE`."""
    import sys

    listing, target = sys.argv[1:]
    state = state_dict(listing)
    torch.save({"epoch": 60, "model": state, "optimizer": sgd_state(state)}, target)


if __name__ == "__main__":
    main()
