"""A model to look into."""

from __future__ import annotations

import pytest
from torch import nn

from salience_detr import Predictor


@pytest.fixture
def predictor(micro_config):
    """Return a model of random weights; its attention differs by query, head and level."""
    made = Predictor(micro_config, None, device="cpu")
    for layer in made.model.decoder.layers:
        nn.init.normal_(layer.cross_attention.sampling_offsets.weight, std=0.1)
        nn.init.normal_(layer.cross_attention.attention_weights.weight, std=0.3)
        nn.init.normal_(layer.cross_attention.value_proj.bias)
    for head in made.model.decoder.bbox_heads:
        nn.init.normal_(head.layers[-1].weight, std=0.05)
    return made
