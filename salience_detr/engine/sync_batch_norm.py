"""BatchNorm over all processes on the CPU, where torch's SyncBatchNorm does not run.

detectron2's NaiveSyncBatchNorm runs there, but averages the statistics of the processes, which have
different numbers of pixels here; two processes would not train like one.
"""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the joined batch of all processes, with its statistics and gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x)

        # Sums in half precision are not exact, or overflow.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))

        # This all_reduce is differentiable: its gradient is the sum of the processes' gradients.
        dims = (0, 2, 3)
        count = all_reduce(wide.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(wide.sum(dims)) / count
        centered = wide - mean[:, None, None]
        variance = all_reduce(centered.square().sum(dims)) / count

        # The running variance is the unbiased one.
        unbiased = variance.detach() * count / (count - 1).clamp(min=1)
        self.update_statistics(mean.detach(), unbiased)

        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics as BatchNorm2d does."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked.add_(1)


def use_cpu_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Make each BatchNorm2d a synchronized one, in place; an optimizer may hold its parameters."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm2d
    return model
