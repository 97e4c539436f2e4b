"""Deformable attention by the original CUDA extension, where the user has built it.

Deformable DETR's and Salience DETR's own code build the module ``MultiScaleDeformableAttention``
(``models/ops`` there, ``python setup.py install``). It takes sampling locations and attention
weights, in float32 or float64, on CUDA only.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from salience_detr.layers.ms_deform_attn import sampling_locations_from_offsets

MODULE = "MultiScaleDeformableAttention"
IM2COL_STEP = 64  # images at a time, as in the original
DTYPES = (torch.float32, torch.float64)


def has_original(dtype: torch.dtype) -> bool:
    """Return whether the extension can be imported and takes this dtype."""
    return dtype in DTYPES and importlib.util.find_spec(MODULE) is not None


class OriginalFunction(torch.autograd.Function):
    """The extension with its gradients, as the original code wraps it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        """Sample; the inputs are those of ``ms_deform_attn``."""
        ctx.save_for_backward(*inputs)
        extension = importlib.import_module(MODULE)
        output: Tensor = extension.ms_deform_attn_forward(*inputs, IM2COL_STEP)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the value, the locations and the weights."""
        extension = importlib.import_module(MODULE)
        grad_output = grad_outputs[0].contiguous()
        value, locations, weights = extension.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_output, IM2COL_STEP
        )
        return value, None, None, locations, weights


def original(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Compute locations and softmax with PyTorch, and sample with the original extension."""
    locations = sampling_locations_from_offsets(references, offsets, spatial_shapes)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    inputs = (value, spatial_shapes, level_start_index, locations.contiguous(), weights)
    output: Tensor = OriginalFunction.apply(*inputs)
    return output
