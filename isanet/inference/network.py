"""What inference needs of a network, and the loaded model as such a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from isanet.config import LogitsResize

if TYPE_CHECKING:
    from isanet.model import ISANet


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
