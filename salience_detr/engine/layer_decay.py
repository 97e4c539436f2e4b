"""Depth of the parameters of a backbone, for rates that decay layer by layer."""

from __future__ import annotations

import logging
import re
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from salience_detr.config import ConfigError
from salience_detr.modeling.backbones.timm_backbone import TimmBackbone

logger = logging.getLogger(__name__)

# Stages of detectron2's ResNet and Swin: the number in the name, or the stem before them.
STAGE = re.compile(r"(?:bottom_up\.)?(?:res|layers\.|norm)(\d+)(?:\.|$)")
STEM = re.compile(r"(?:bottom_up\.)?(?:stem|patch_embed|absolute_pos_embed)(?:\.|$)")


def layer_scales(backbone: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter of a backbone, by its name.

    The last layer has the factor 1, each layer before it ``layer_decay`` times that of the next
    one. Layers are blocks where timm groups them so, and else stages.

    Raises:
        ConfigError: the factor is not in (0, 1], or the layers of the backbone are not known.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay is {layer_decay}; it lies between 0 and 1, such as 0.8")

    depths_of = timm_depths if isinstance(backbone, TimmBackbone) else stage_depths
    known = depths_of(backbone)

    # What lies behind the layers, such as norms of the maps, is as deep as the last one.
    names = [name for name, _ in backbone.named_parameters()]
    deepest = max(known[name] for name in names if name in known)
    scales = {name: layer_decay ** (deepest - known.get(name, deepest)) for name in names}
    logger.info(
        "layer_decay %g: the %d layers of the backbone learn at %.2g to 1 of its rate",
        layer_decay,
        len(set(scales.values())),
        min(scales.values()),
    )
    return scales


def timm_depths(backbone: nn.Module) -> dict[str, int]:
    """Return the layer of parameters, as timm groups those of the whole model.

    Raises:
        ConfigError: timm does not group them.
    """
    assert isinstance(backbone, TimmBackbone)
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(backbone.name, **backbone.options)
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    except (AttributeError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"layer_decay: timm does not know the layers of {backbone.name}; set it to 1"
        ) from error

    # The feature model flattens the names of stages, or puts the model into a module.
    known = {}
    for name, layer in layers.items():
        for variant in (name, name.replace(".", "_", 1), f"model.{name}"):
            known[f"body.{variant}"] = layer
    return known


def stage_depths(backbone: nn.Module) -> dict[str, int]:
    """Return the stage of each parameter of detectron2's ResNet or Swin Transformer.

    Raises:
        ConfigError: the backbone has no such stages.
    """
    depths = {}
    for name, _ in backbone.named_parameters():
        stage = STAGE.match(name)
        if stage is not None:
            depths[name] = 1 + int(stage[1])
        elif STEM.match(name):
            depths[name] = 0

    if not depths:
        raise ConfigError(
            f"layer_decay: the layers of {type(backbone).__name__} are not known; set it to 1, or "
            "take a ResNet, a Swin Transformer or a backbone of timm"
        )

    # The first stage of a ResNet is called res2.
    order = sorted(set(depths.values()))
    return {name: order.index(depth) for name, depth in depths.items()}
