"""Salience of all levels as one map over each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from salience_detr.modeling.structures import ModelInput


def merge_salience(score_maps: Sequence[Tensor]) -> Tensor:
    """Return the highest salience over all levels.

    Args:
        score_maps: logits (B, H_l, W_l) of each level, finest first.

    Returns:
        (B, H_0, W_0) in [0, 1].
    """
    finest = score_maps[0].shape[-2:]
    levels = []
    for logits in score_maps:
        salience = logits[:, None].float().sigmoid()
        levels.append(F.interpolate(salience, size=finest, mode="bilinear", align_corners=False))

    return torch.stack(levels).amax(0)[:, 0]


def salience_maps(
    salience: Tensor, inputs: Sequence[ModelInput], size_divisibility: int
) -> list[np.ndarray]:
    """Cut the padding off and resize the salience to each image.

    Args:
        salience: (B, H_0, W_0) in [0, 1], over the padded batch.
        inputs: model inputs of the batch.
        size_divisibility: the padded batch has the largest sides, rounded up to multiples of this.

    Returns:
        (height, width) float32 in [0, 1] of each image.
    """
    # Pixels of the padded batch per pixel of the salience.
    max_height = max(model_input["image"].shape[1] for model_input in inputs)
    padded_height = math.ceil(max_height / size_divisibility) * size_divisibility
    stride = padded_height / salience.shape[1]

    maps = []
    for padded, model_input in zip(salience, inputs, strict=True):
        rows, columns = (max(1, round(side / stride)) for side in model_input["image"].shape[1:])
        unpadded = padded[None, None, :rows, :columns]
        size = (model_input["height"], model_input["width"])
        resized = F.interpolate(unpadded, size=size, mode="bilinear", align_corners=False)
        maps.append(resized[0, 0].cpu().numpy())

    return maps
