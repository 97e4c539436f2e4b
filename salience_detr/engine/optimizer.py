"""Parameter groups of the published recipe."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from detectron2.layers import FrozenBatchNorm2d
from omegaconf import DictConfig
from timm.layers import RmsNorm, RmsNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from salience_detr.engine.layer_decay import layer_scales
from salience_detr.utils.config_keys import parameters_of

# Arguments that choose how PyTorch's optimizers compute the same step.
IMPLEMENTATIONS = ("fused", "foreach")

NORMS = (
    _BatchNorm, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RmsNorm, RmsNorm2d
)  # fmt: skip


class ParameterGroup(TypedDict):
    """Group of parameters for a torch optimizer, with their names for the log."""

    lr: float
    weight_decay: float
    params: list[nn.Parameter]
    names: list[str]


def learning_rate(config: DictConfig) -> float:
    """Return the learning rate of a run.

    With ``train.reference_batch_size`` it is ``optimizer.lr`` times ``total_batch_size`` over it.
    """
    rate: float = config.optimizer.lr
    reference = config.train.reference_batch_size
    if reference:
        rate *= config.dataloader.train.total_batch_size / reference
    return rate


def get_parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 0.1,
    sampling_offsets_lr_factor: float = 0.1,
    layer_decay: float = 1.0,
) -> list[ParameterGroup]:
    """Group the trainable parameters by learning rate and weight decay.

    The backbone and the layers of sampling offsets learn at a fraction of the base rate. Norms and
    biases (those of relative positions too) do not decay. detectron2's
    ``get_default_optimizer_params`` has neither: it knows one factor per name of a parameter, and
    not the norms of other libraries.

    A ``layer_decay`` below 1 lets each layer of the backbone learn at that part of the rate of the
    next one; the last layer has the rate of the backbone.
    """
    scales: dict[str, float] = {}
    if layer_decay != 1:
        scales = layer_scales(model.get_submodule("backbone"), layer_decay)

    groups: dict[tuple[float, float], ParameterGroup] = {}
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue

        # Both factors apply to sampling offsets in a backbone.
        factor = 1.0
        if name.startswith("backbone."):
            factor *= backbone_lr_factor * scales.get(name.removeprefix("backbone."), 1.0)
        if "sampling_offsets" in name:
            factor *= sampling_offsets_lr_factor

        decay = weight_decay
        module_name, _, leaf = name.rpartition(".")
        if isinstance(modules[module_name], NORMS) or "bias" in leaf:
            decay = 0.0

        # Parameters of one rate and one decay share a group, in the order of the model.
        lr = factor * base_lr
        empty = ParameterGroup(lr=lr, weight_decay=decay, params=[], names=[])
        group = groups.setdefault((lr, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def fused_options(optimizer: DictConfig, device: torch.device) -> dict[str, bool]:
    """Return the arguments that let an optimizer of a config update all parameters in one kernel.

    Args:
        optimizer: the config's. What it says itself stays.
        device: device of the parameters. There are no arguments except for Adam and AdamW on CUDA.
    """
    parameters = parameters_of(optimizer._target_)
    is_adam = "fused" in parameters and "amsgrad" in parameters
    is_chosen = any(name in optimizer for name in IMPLEMENTATIONS)
    if device.type != "cuda" or not is_adam or is_chosen:
        return {}
    return {"fused": True}


def keep_implementation(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """Return a state dict to load in which the implementation is that of the optimizer.

    PyTorch takes it from the state dict, which may be of a run on another device.
    """
    if len(optimizer.param_groups) != len(state_dict["param_groups"]):
        return state_dict  # PyTorch raises an error with the reason

    groups = []
    for own, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        chosen = {name: own[name] for name in IMPLEMENTATIONS if name in own}
        groups.append(saved | chosen)
    return state_dict | {"param_groups": groups}
