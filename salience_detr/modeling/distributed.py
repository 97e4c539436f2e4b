"""What depends on the number of processes: the counts that divide the losses, and BatchNorm."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor, nn


def mean_over_processes(counts: Tensor) -> Tensor:
    """Return the mean of floating counts over all processes; each sum counts as at least 1.

    DDP averages the gradients of the processes. Losses divided by this mean are, averaged, those of
    one process with the whole batch.
    """
    if comm.get_world_size() == 1:
        return counts.clamp(min=1)

    total = counts.clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / comm.get_world_size()


def needs_variance(module: nn.Module) -> bool:
    """Return whether a module has BatchNorm with statistics of this process's batch alone."""
    # Over several processes it is synchronized.
    if comm.get_world_size() > 1:
        return False
    return any(isinstance(x, nn.BatchNorm2d) and x.training for x in module.modules())
