"""Copies of small things to the device of a tensor, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(numbers: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers (a list, or lists of lists) as a tensor on the device of ``like``.

    The dtype is that of ``like`` by default. ``like.new_tensor(numbers)`` would make the host wait
    until a GPU has done all its work.
    """
    if dtype is None:
        dtype = like.dtype
    return torch.tensor(numbers, dtype=dtype).to(like.device, non_blocking=True)
