"""Prediction heads: class logits and box offsets."""

from __future__ import annotations

import math

from torch import nn

from salience_detr.layers.mlp import MLP

PRIOR_PROBABILITY = 0.01  # of each class at the start of training


def class_head(*, embed_dim: int, num_classes: int) -> nn.Linear:
    """Build a linear classifier that starts by giving each class the prior probability."""
    head = nn.Linear(embed_dim, num_classes)

    # sigmoid(bias) is the prior probability (RetinaNet, section 4.1).
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


def bbox_head(*, embed_dim: int) -> MLP:
    """Build a three-layer regressor of (cx, cy, w, h) that starts by proposing no change."""
    return MLP(
        input_dim=embed_dim, hidden_dim=embed_dim, output_dim=4, num_layers=3, zero_output=True
    )
