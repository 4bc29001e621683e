"""What inference needs of a network, and the loaded model as such a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isanet._text import listed
from isanet.config import LogitsResize
from isanet.model import ISANet, unwrapped


class Network(Protocol):
    """A network ready for inference; `EagerNetwork` and `isanet.inference.fast.network.FastISANet` are such.

    Attributes:
        classes: The K names.
        logits_resize: How logits are resized; see `isanet.model.resize_logits`.
        device: Where images should lie.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def logits_resize(self) -> LogitsResize: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def coarse_logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), normalized, float -> (N, K, h, w) before resizing, float32 (float64 of a double model)."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether images of this shape, (N, 3, H, W), can go through at once within the network's memory limit."""


class EagerNetwork:
    """A loaded model as it is, by `torch.autocast` in half precision; its memory is not limited.

    Args:
        model: In evaluation mode: an ISANet, or what has its `coarse_logits`, `classes` and `logits_resize`.
        precision: float32 (the model's own, if that is another), bfloat16 or float16.
    """

    max_memory: int | None = None

    def __init__(self, model: ISANet, precision: torch.dtype = torch.float32) -> None:
        self.model, self.precision = model, precision

    @property
    def classes(self) -> tuple[str, ...]:
        """As of the model."""
        return self.model.classes

    @property
    def logits_resize(self) -> LogitsResize:
        """As of the model."""
        return self.model.logits_resize

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def coarse_logits(self, images: Tensor) -> Tensor:
        """As `Network.coarse_logits`."""
        dtype = next((parameter.dtype for parameter in self.model.parameters()), images.dtype)
        with torch.autocast(images.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            logits = self.model.coarse_logits(images.to(dtype))
        return logits if logits.dtype == torch.float64 else logits.float()

    def fits(self, shape: Sequence[int]) -> bool:
        """Always: there is no limit."""
        return True


def loaded_model(model: ISANet | str | os.PathLike[str], options: Mapping[str, Any], device: torch.device) -> ISANet:
    """An ISANet, or what `from_pretrained` takes, in evaluation mode on a device, in float32 or float64."""
    if isinstance(model, str | os.PathLike):
        from isanet.zoo.pretrained import from_pretrained

        model = from_pretrained(model, **options)
    elif options:
        raise ValueError(f"{listed(options)}: arguments of from_pretrained, and the model is already loaded")
    network: ISANet = unwrapped(model)
    if not network.preprocessing:
        raise ValueError(
            "the model does not say how its images are prepared; build it with preprocessing={'mean': ..., "
            "'std': ..., 'short_edge': ..., 'long_edge': ...}, the values it was trained with, or give them to "
            "`isanet convert --preprocessing`"
        )
    network.to(device).eval()
    if next(network.parameters()).dtype in (torch.float16, torch.bfloat16):
        network.float()  # as `precision` says: half precision is computed by autocast
    return network


class ModelState:
    """Notices that a model's weights have changed: by an optimizer, `load_state_dict`, `.data =`, or other modules.

    The tree of modules is walked once. A change in place by way of `tensor.data` cannot be noticed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._members = [
            (members, list(members.values()))
            for module in self._modules
            for members in (module._modules, module._parameters, module._buffers)
            if members
        ]
        self._tensors = [*model.parameters(), *model.buffers()]
        self._versions = self._current_versions()

    def changed(self) -> bool:
        """Whether the model is another one than when this was made."""
        replaced = any(list(map(id, members.values())) != list(map(id, kept)) for members, kept in self._members)
        return replaced or self._current_versions() != self._versions

    def in_training(self) -> bool:
        """Whether any module is in training mode."""
        return any(module.training for module in self._modules)

    def _current_versions(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in self._tensors]
