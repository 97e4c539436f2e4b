"""Copies of a trained model that detect faster, with the same results but for rounding.

The model itself stays as it is: what is trained, saved and exported knows nothing of this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from salience_detr.layers.onednn import use_onednn, uses_onednn
from salience_detr.modeling.feature_fusion import ConvBN, RepVGGBlock
from salience_detr.modeling.salience_detr import SalienceDETR

OPTIMIZATIONS = ("none", "fused", "compiled")

# Stages of plain tensors. Losses, matching and the making of queries depend on the number of boxes.
COMPILED_STAGES = (
    "backbone", "neck", "token_projection", "salience_filter",
    "encoder", "feature_fusion", "decoder",
)  # fmt: skip

# Their weights take part in matrix products and convolutions alone, which autocast computes in its
# dtype. Norms, embeddings and coordinates keep float32.
AUTOCAST_LAYERS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class FoldedRepVGGBlock(nn.Module):
    """RepVGG block in evaluation whose two convolutions are folded into one for good."""

    def __init__(self, block: RepVGGBlock) -> None:
        super().__init__()
        conv = block.conv3x3.conv
        kernel, bias = block.folded()
        self.conv = nn.Conv2d(
            conv.in_channels, conv.out_channels, 3, padding=1, groups=conv.groups, device="meta"
        )
        set_weights(self.conv, kernel, bias)
        self.gate = block.gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)"""
        return self.gate(F.silu(self.conv(x))) + x


def check_optimization(kind: str) -> None:
    """Check the name of an optimization.

    Raises:
        ValueError: there is no such one.
    """
    if kind not in OPTIMIZATIONS:
        raise ValueError(f"there is no optimization {kind!r}; use {', '.join(OPTIMIZATIONS)}")


def optimize_model(
    model: SalienceDETR, kind: str, dtype: torch.dtype | None = None
) -> SalienceDETR:
    """Return a model that detects the same, faster.

    Args:
        model: in evaluation mode. It must not be changed afterwards: a part of its weights is
            shared with the result, and others are not.
        kind: "none" for the model itself, "fused" for :func:`fuse`, "compiled" for that with stages
            that inductor compiles at the first image; again, with that side as a variable, at the
            first one of another width and of another height; and not for the sizes after these.
        dtype: of autocast; None for a model that runs without.
    """
    if kind == "none":
        return model

    fused = fuse(model, dtype)
    if kind == "compiled":
        compile_stages(fused)
    return fused


def compile_stages(model: nn.Module, stages: Collection[str] = COMPILED_STAGES) -> None:
    """Let inductor compile stages in place for inference, with their weights as constants."""
    for name, module in model.named_modules():
        if name in stages:
            # Not Module.compile, which would compile the hooks of a stage with it.
            forward = compile_frozen(module.forward)
            module.forward = forward  # type: ignore[method-assign]


def compile_frozen(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that takes the weights of its modules for constants."""
    # An import of seconds, which only a compilation pays.
    from torch._inductor import config

    compiled = torch.compile(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        # For the whole call: as an option of torch.compile, it is set only when the tracing, which
        # asks for it too, is over, and does nothing.
        with config.patch(freezing=True):
            return compiled(*args, **kwargs)

    return run


@torch.no_grad()
def fuse(model: SalienceDETR, dtype: torch.dtype | None = None) -> SalienceDETR:
    """Return a copy for evaluation in which every constant is computed once, and not per image.

    BatchNorm is folded into the convolution before it, the branches of RepVGG blocks into one;
    weights have the dtype that autocast would cast them to in each call. What is not changed is
    shared with the model.

    Args:
        model: in evaluation mode.
        dtype: of autocast; None for a model that runs without.
    """
    fused = copy_structure(model)
    fold_constants(fused)
    prepare_weights(fused, dtype)
    if uses_onednn(model.device, dtype or model.dtype):
        use_onednn(fused)
    return fused


def copy_structure(model: SalienceDETR) -> SalienceDETR:
    """Return a copy of the modules that has the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def fold_constants(model: nn.Module) -> None:
    """Fold BatchNorm and RepVGG blocks, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RepVGGBlock):
                setattr(parent, name, FoldedRepVGGBlock(child))

    for module in model.modules():
        if isinstance(module, ConvBN):
            fold_norm(module.conv, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, Conv2d) and is_batch_norm(module.norm):
            fold_norm(module, module.norm)
            module.norm = None


def prepare_weights(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Replace the weights of products by those in the dtype and memory format they are used in."""
    for module in model.modules():
        if not isinstance(module, AUTOCAST_LAYERS):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = parameter.to(dtype or parameter.dtype)
            if weight.dim() == 4:
                weight = weight.to(memory_format=torch.channels_last)
            setattr(module, name, nn.Parameter(weight, requires_grad=False))


def is_batch_norm(module: nn.Module | None) -> bool:
    """Return whether a module scales channels by numbers that are fixed in evaluation."""
    return isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Give a convolution the weights with which it equals itself and the BatchNorm after it."""
    assert norm.running_mean is not None and norm.running_var is not None

    # In double precision: folding shall not round more than the two steps did.
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    kernel = conv.weight.double() * scale[:, None, None, None]
    set_weights(conv, kernel.to(conv.weight.dtype), bias.to(conv.weight.dtype))


def set_weights(conv: nn.Conv2d, kernel: Tensor, bias: Tensor) -> None:
    """Replace the weights of a convolution by tensors that are its own."""
    conv.weight = nn.Parameter(kernel, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
