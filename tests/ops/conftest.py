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
    """A device for which the operator is compiled; a compiler that is there must have done it."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not is_compiled_for(request.param):
        if request.param == "cpu" and any(map(shutil.which, ("c++", "g++", "clang++"))):
            pytest.fail("there is a C++ compiler, but the operator was not built")
        pytest.skip("needs a compiler")
    return request.param


@dataclass
class Case:
    """Inputs of the fused operator, and of the plain one with the same sampling locations."""

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
        locations = (
            self.reference[:, :, None, :, None, :2] + self.offsets.to(self.reference.dtype) / 5
        )
        weights = self.logits.to(self.reference.dtype)
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

        exact = torch.float64 if dtype == torch.float64 else torch.float32
        shapes = torch.tensor(levels)
        sizes = shapes.prod(1)
        count, grid = len(levels), (batch, queries, heads, len(levels), points)
        reference = torch.rand(
            batch,
            queries,
            reference_levels or count,
            dims,
            generator=generator,
            dtype=torch.float64,
        )
        return Case(
            value=randn(batch, int(sizes.sum()), heads, channels).to(device, dtype),
            shapes=shapes.to(device),
            starts=(sizes.cumsum(0) - sizes).to(device),
            reference=reference.to(device, exact),
            offsets=(spread * randn(*grid, 2)).to(device, dtype),
            logits=randn(*grid).to(device, dtype),
        )

    return make
