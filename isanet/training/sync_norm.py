"""Batch norm synchronized over all processes, on any device.

torch's own SyncBatchNorm runs on GPUs only; this one lets CPUs train in several processes, and tests check it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, whose batch norms share their training statistics among all processes; parameters stay the same."""
    if device.type == "cuda":
        result: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return result
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _SyncBatchNorm  # the same object, with its tensors, settings and hooks
    return model


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient is summed too, because each process's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        result = values.clone()
        distributed.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        result = gradients[0].clone()
        distributed.all_reduce(result)
        return result


class _SyncBatchNorm(nn.BatchNorm2d):
    """Mean and variance from two sums over all processes: of the values, and of their squared deviations."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if not self.training:
            return super().forward(x_NCHW)
        N, C, H, W = x_NCHW.shape
        x = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))
        count = x.new_full((1,), N * H * W)
        sums: Tensor = _Sum.apply(torch.cat([x.sum((0, 2, 3)), count]))
        total = sums[C].detach()
        mean = sums[:C] / total
        centered = x - mean.view(1, C, 1, 1)
        variance: Tensor = _Sum.apply(centered.square().sum((0, 2, 3))) / total
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * total / (total - 1).clamp(min=1)).to(self.running_var), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        result: Tensor = centered * scale.view(1, C, 1, 1) + self.bias.view(1, C, 1, 1)
        return result.to(x_NCHW.dtype)
