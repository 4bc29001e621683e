"""Batch norm synchronized over all processes, on any device.

torch's own SyncBatchNorm runs on GPUs only; this one lets CPUs train in several processes, and tests check it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace batch norms, in place, by ones whose training statistics are shared by all processes.

    Parameters and buffers stay the same objects, under the same names.
    """
    if device.type == "cuda":
        result: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return result
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, _SyncBatchNorm.of(child))
        else:
            synchronized(child, device)
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

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> _SyncBatchNorm:
        new = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        new._parameters, new._buffers = norm._parameters, norm._buffers
        return new.train(norm.training)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if not self.training:
            return super().forward(x_NCHW)
        N, C, H, W = x_NCHW.shape
        count = x_NCHW.new_full((1,), N * H * W, dtype=torch.float32)
        x = x_NCHW.float() if x_NCHW.dtype in (torch.float16, torch.bfloat16) else x_NCHW
        sums: Tensor = _Sum.apply(torch.cat([x.sum((0, 2, 3)), count.to(x)]))
        total = sums[C].detach()
        mean = sums[:C] / total
        centered = x - mean.view(1, C, 1, 1)
        variance: Tensor = _Sum.apply(centered.square().sum((0, 2, 3))) / total
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_((variance * total / (total - 1).clamp(min=1)).to(self.running_var), momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        result: Tensor = centered * scale.view(1, C, 1, 1) + self.bias.view(1, C, 1, 1)
        return result.to(x_NCHW.dtype)
