"""Files that are not a checkpoint of the tiny model, and what the error says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.helpers import tiny_zoo


def spoiled(state: dict[str, Tensor], change: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in {**state, **change}.items() if value is not None}


class Calls:
    """A pickle that would run a command in `pickle.load`."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch was_run",)


STATE = tiny_zoo.upstream_state()
WRONG_FILES: dict[str, tuple[bytes, str]] = {
    "missing tensor": (tiny_zoo.saved(spoiled(STATE, {"decoder.1.bias": None})), "classifier.bias is missing"),
    "extra tensor": (tiny_zoo.saved(spoiled(STATE, {"decoder.9.bias": torch.ones(1)})), "decoder.9.bias"),
    "extra of ours": (
        tiny_zoo.saved(spoiled(STATE, {"in_conv.0.bias": torch.ones(16)})),
        "reduce.conv.bias is not part",
    ),
    "other class count": (tiny_zoo.saved(tiny_zoo.upstream_state(num_classes=20)), r"shape \(20, 16, 1, 1\)"),
    "not a number": (tiny_zoo.saved(spoiled(STATE, {"decoder.1.bias": torch.full((21,), torch.nan)})), "not finite"),
    "negative variance": (
        tiny_zoo.saved(spoiled(STATE, {"in_conv.1.running_var": torch.full((16,), -1.0)})),
        "negative variance",
    ),
    "half precision": (tiny_zoo.saved({name: value.half() for name, value in STATE.items()}), "kind|bytes|float"),
    "a pickle that calls": (tiny_zoo.saved({"model": {**STATE, "meta": Calls()}}), r"posix\.system"),
    "truncated": (tiny_zoo.saved(STATE)[:-1000], "truncated"),
    "a web page": (b"<!DOCTYPE html><title>Log in</title>", "HTML"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
    "empty": (b"", "empty|0 bytes"),
}
