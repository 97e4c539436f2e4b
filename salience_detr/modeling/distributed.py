"""What the losses need to know of the other processes."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a floating tensor over all processes; the tensor itself where there is one."""
    if comm.get_world_size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()
