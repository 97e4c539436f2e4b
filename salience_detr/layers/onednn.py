"""Linear layers whose float32 products oneDNN computes.

PyTorch computes them by MKL, which keeps AVX-512 for Intel's processors: on one core of an EPYC
with AVX-512 80 to 110 GFLOP/s, where oneDNN reaches 210 to 240.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from salience_detr.utils.processor import is_amd

# Subclasses may compute something else.
LINEAR_TYPES = (nn.Linear, NonDynamicallyQuantizableLinear)


def uses_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN is the faster one for products in this dtype on this machine."""
    if device.type != "cpu" or dtype != torch.float32 or not is_amd():
        return False
    # The operator is PyTorch's own, for what inductor compiles: another release may lack it.
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(model: nn.Module) -> None:
    """Let oneDNN compute the products of all linear layers, in place; parameters stay."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and type(child) in LINEAR_TYPES:
                setattr(module, name, OneDnnLinear(child))


class OneDnnLinear(nn.Linear):
    """Linear layer in float32 on the CPU, with the parameters of another one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)"""
        if torch.is_grad_enabled():
            return _Linear.apply(x, self.weight, self.bias)
        return product(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x weight^T + bias by oneDNN, without gradients.

    Args:
        x: (..., D) float32 on the CPU.
        weight: (E, D).
        bias: (E,).

    Returns:
        (..., E)
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """:func:`product` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])

        grad_x = product(grad, weight.t().contiguous()) if needs_x else None

        # MKL is as fast here: oneDNN would have to transpose both.
        grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None
        grad_bias = rows.sum(0) if ctx.has_bias and needs_bias else None
        return grad_x, grad_weight, grad_bias
