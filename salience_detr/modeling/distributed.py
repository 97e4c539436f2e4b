"""What the losses need to know of the other processes."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


def mean_count(count: Tensor) -> Tensor:
    """Mean of a floating count over all processes, of which there is at least 1 in all of them together.

    So losses divided by it, averaged over the processes, are those of one process with the whole batch.
    """
    if comm.get_world_size() == 1:
        return count.clamp(min=1)
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / comm.get_world_size()
