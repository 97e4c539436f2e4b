"""Counts over all processes, by which the losses are divided."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


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
