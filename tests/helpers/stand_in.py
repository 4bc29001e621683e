"""Stand-in weights: every tensor a pure function of its upstream name and shape, and the files that have them.

The released files cannot be part of a test. These tensors, which `tests/data` has upstream's own outputs for,
take their place: same names, shapes and files, other values. `numpy.random.RandomState` never changes its stream.
"""

from __future__ import annotations

import json
import math
import pickle
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"


def array(name: str, shape: tuple[int, ...], negative_scales: bool = False) -> Any:
    """The values of one upstream tensor, in numpy; of InPlaceABN, a third of the batch norms' scales are negative."""
    if name.endswith("num_batches_tracked"):
        return np.asarray(1, dtype=np.int64)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "_variance")):
        values = random.random_sample(shape) + 0.5
    elif len(shape) == 4:
        values = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith(("bn3.weight", "conv2._batch_norm.weight")):
        values = 0.15 + 0.2 * random.random_sample(shape)
    elif name.endswith("weight"):
        values = 0.75 + 0.5 * random.random_sample(shape)
    else:
        values = 0.1 * random.standard_normal(shape)
    if negative_scales and len(shape) == 1 and name.endswith("weight"):
        values = values * np.where(random.random_sample(shape) * 3 < 1, -1, 1)
    return np.asarray(values, dtype=np.float32)


def tensor(name: str, shape: tuple[int, ...], negative_scales: bool = False) -> Tensor:
    return torch.from_numpy(array(name, shape, negative_scales))


def shapes(listing: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an upstream state dict, such as `sssegmentation_r50_voc`."""
    return {name: tuple(shape) for name, shape in json.loads((DATA / f"{listing}.keys.json").read_text()).items()}


def arrays(listing: str) -> dict[str, Any]:
    """A whole upstream state dict in numpy, such as `paddleseg_r50_voc12aug_512x512`."""
    return {name: array(name, shape, "inplace_abn" in listing) for name, shape in shapes(listing).items()}


def state_dict(listing: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays(listing).items()}


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


# --- files, as their trainers wrote them in their time


def _reconstruct() -> None:
    """Stands for numpy's, whose module had another name then."""


def scalar() -> None:
    """Stands for numpy's."""


class _OldPickler(pickle._Pickler):
    """Writes arrays and scalars as numpy did up to 1.17, and storages as if they were on a GPU.

    What is large is written and forgotten, or it would all be in memory until the end.
    """

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        super().save("cuda:0" if type(obj) is str and obj == "cpu" else obj, save_persistent_id)  # type: ignore[misc]

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in (_reconstruct, scalar):
            super().save_global(obj, name)  # type: ignore[misc]
        elif self.proto < 4:  # type: ignore[attr-defined]
            self.write(b"cnumpy.core.multiarray\n" + obj.__name__.encode() + b"\n")  # type: ignore[attr-defined]
            self.memoize(obj)
        else:
            self.save("numpy.core.multiarray")
            self.save(obj.__name__)
            self.write(pickle.STACK_GLOBAL)  # type: ignore[attr-defined]
            self.memoize(obj)

    def reducer_override(self, obj: Any) -> Any:
        if obj is _reconstruct or obj is scalar:
            return obj.__name__
        if isinstance(obj, np.ndarray):
            first = (np.ndarray, tuple([0]), b"b")  # noqa: C409  a new tuple each time, or it would be remembered
            return _reconstruct, first, (1, obj.shape, obj.dtype, False, obj.tobytes())
        if isinstance(obj, np.generic):
            return scalar, (obj.dtype, obj.tobytes())
        if isinstance(obj, np.dtype):
            return np.dtype, (obj.str[1:], 0, 1), (3, obj.str[0], None, None, None, -1, -1, 0)
        return NotImplemented

    def memoize(self, obj: Any) -> None:
        super().memoize(obj)  # type: ignore[misc]
        parts = obj if type(obj) is tuple else (obj,)
        if any(isinstance(each, str | bytes) and len(each) > 1 << 16 for each in parts):
            place, _ = self.memo.pop(id(obj))  # type: ignore[attr-defined]
            self.memo["forgotten", place] = place, None  # type: ignore[attr-defined]


PADDLE_PARTS = {"weight": "w_0", "bias": "b_0", "_mean": "w_1", "_variance": "w_2"}


def paddle_file(path: Path, arrays: Mapping[str, Any], protocol: int = 2) -> Path:
    """Write arrays as paddle.save did in 2021 (protocol 2, as the released files should be) or later (4)."""
    layers, parameters = dict[str, str](), dict[str, str]()
    for name, values in arrays.items():
        layer, _, part = name.rpartition(".")
        kind = "conv2d" if values.ndim == 4 else "batch_norm2d"
        layers.setdefault(layer, f"{kind}_{sum(each.startswith(kind) for each in layers.values())}")
        parameters[name] = f"{layers[layer]}.{PADDLE_PARTS[part]}"
    with path.open("wb") as file:
        _OldPickler(file, protocol).dump({**arrays, "StructuredToParameterName@@": parameters})
    return path


def openseg_file(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write tensors as openseg's trainer did: torch's older format, numpy's scalars, names that begin with `module.`"""
    config = {
        "dataset": "cityscapes",
        "gpu": [0, 1, 2, 3],
        "iters": 40000,
        "performance": np.float64(0.7955),
        "max_performance": np.float64(0.7955),
        "data": {"input_mode": "BGR", "num_classes": 19},
        "network": {"backbone": "deepbase_resnet101_dilated8", "bn_type": "inplace_abn"},
    }
    module: Any = SimpleNamespace(__name__="pickle", Pickler=_OldPickler, dump=pickle.dump)
    torch.save(
        {"config_dict": config, "state_dict": OrderedDict((f"module.{name}", value) for name, value in state.items())},
        path,
        pickle_module=module,
        _use_new_zipfile_serialization=False,
    )
    return path


def main() -> None:
    """Write one stand-in checkpoint: `python tests/helpers/stand_in.py sssegmentation_r50_voc FILE`."""
    import sys

    listing, target = sys.argv[1:]
    if listing.startswith("paddleseg"):
        paddle_file(Path(target), arrays(listing))
        return
    state = state_dict(listing)
    if listing.startswith("openseg"):
        openseg_file(Path(target), state)
    elif listing.startswith("sssegmentation"):
        torch.save({"epoch": 60, "model": state, "optimizer": sgd_state(state)}, target)
    else:
        torch.save({"meta": {}, "state_dict": state}, target)


if __name__ == "__main__":
    main()
