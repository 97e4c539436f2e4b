"""BatchNorm over all processes on the CPU, where torch's SyncBatchNorm does not run."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn


class SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return SumOverProcesses.apply(grad)


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """Equals BatchNorm2d over the joined batch of all processes, running statistics and gradients included."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x)
        dims = (0, 2, 3)
        total = SumOverProcesses.apply
        wide = x.to(
            torch.promote_types(x.dtype, torch.float32)
        )  # sums in half precision are not exact, or overflow
        count = total(wide.new_tensor(x.numel() / x.shape[1]))
        mean = total(wide.sum(dims)) / count
        centerd = wide - mean[:, None, None]
        variance = total(centerd.square().sum(dims)) / count
        self.update_statistics(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centerd * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics as BatchNorm2d does."""
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.momentum is not None
        )
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def use_cpu_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Replace each BatchNorm2d, in place, by a synchronized one that owns the same parameters and buffers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                synced = CpuSyncBatchNorm2d(
                    child.num_features, eps=child.eps, momentum=child.momentum
                )
                # The very tensors, because an optimizer may hold them already.
                for key, tensor in [*child.named_parameters(), *child.named_buffers()]:
                    setattr(synced, key, tensor)
                synced.train(child.training)
                setattr(parent, name, synced)
    return model
