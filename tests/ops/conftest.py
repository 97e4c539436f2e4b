"""The compiled operator on each device, and inputs for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from salience_detr.layers.operator import is_compiled_for


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Return a device that the operator is compiled for; fail if it could have been and is not."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")

    if not is_compiled_for(request.param):
        if request.param == "cpu" and any(map(shutil.which, ("c++", "g++", "clang++"))):
            pytest.fail("there is a C++ compiler, but the operator was not built")
        pytest.skip("needs a compiler")

    return request.param


@dataclass
class Case:
    """Inputs of the operator.

    ``fused`` are those of the fused operator, ``plain`` the same sampling as locations and weights.
    """

    value: Tensor
    shapes: Tensor
    starts: Tensor
    reference: Tensor
    offsets: Tensor
    logits: Tensor

    @property
    def fused(self) -> tuple[Tensor, ...]:
        return (self.value, self.shapes, self.starts, self.reference, self.offsets, self.logits)

    @property
    def plain(self) -> tuple[Tensor, ...]:
        dtype = self.reference.dtype
        locations = self.reference[:, :, None, :, None, :2] + self.offsets.to(dtype) / 5
        weights = self.logits.to(dtype)
        return (self.value, self.shapes, self.starts, locations.detach(), weights.detach())


LEVELS = [(5, 7), (3, 4), (0, 6), (1, 1), (2, 3)]


@pytest.fixture
def make_case(device):
    def make(
        *,
        batch: int = 2,
        queries: int = 13,
        heads: int = 3,
        channels: int = 12,
        levels: Any = LEVELS,
        points: int = 2,
        dims: int = 2,
        reference_levels: int | None = None,
        dtype: torch.dtype = torch.float64,
        spread: float = 2.0,
    ) -> Case:
        generator = torch.Generator().manual_seed(1)

        def randn(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        # Places are never in half precision.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        shapes = torch.tensor(levels)
        sizes = shapes.prod(1)
        grid = (batch, queries, heads, len(levels), points)
        reference_shape = (batch, queries, reference_levels or len(levels), dims)
        reference = torch.rand(reference_shape, generator=generator, dtype=torch.float64)

        return Case(
            value=randn(batch, int(sizes.sum()), heads, channels).to(device, dtype),
            shapes=shapes.to(device),
            starts=(sizes.cumsum(0) - sizes).to(device),
            reference=reference.to(device, exact),
            offsets=(spread * randn(*grid, 2)).to(device, dtype),
            logits=randn(*grid).to(device, dtype),
        )

    return make
