"""Parameter groups of the published recipe."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from detectron2.layers import FrozenBatchNorm2d
from timm.layers import RmsNorm, RmsNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (
    _BatchNorm, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm, RmsNorm, RmsNorm2d
)  # fmt: skip


def get_parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 0.1,
    sampling_offsets_lr_factor: float = 0.1,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay.

    The backbone and the sampling-offset layers learn at a part of the base rate; norms and biases (those of relative
    positions too) do not decay.

    Returns:
        Groups for a torch optimizer: ``params``, ``lr``, ``weight_decay``, and their ``names`` for the log.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = defaultdict(
        lambda: {"params": [], "names": []}
    )
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{module_name}.{leaf}" if module_name else leaf
            factor = 1.0
            if name.startswith("backbone."):
                factor *= backbone_lr_factor
            if "sampling_offsets" in name:
                factor *= sampling_offsets_lr_factor
            decays = not isinstance(module, NORMS) and "bias" not in leaf
            group = groups[factor * base_lr, weight_decay if decays else 0.0]
            group["params"].append(parameter)
            group["names"].append(name)
    return [{"lr": lr, "weight_decay": decay, **group} for (lr, decay), group in groups.items()]
