"""Comparison of the operator with the reference, for its tests."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(found, expected, dtype):
    """Assert equality in float64, within the tolerance of a dtype."""
    torch.testing.assert_close(
        found.double(), expected.double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def gradients(function, inputs, grad_output):
    """Return the gradients for all inputs but the two that describe the levels, in float64."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    output = function(*leaves)

    wanted = [x for x in leaves if x.requires_grad]
    return [x.double() for x in torch.autograd.grad(output, wanted, grad_output.to(output.dtype))]
