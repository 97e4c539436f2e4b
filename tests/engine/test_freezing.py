"""Freezing by name: what is frozen, what is said, and what never changes in a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from salience_detr.config import ConfigError
from salience_detr.engine.freezing import FrozenBatchNormHook, freeze


class Net(nn.Module):
    """Backbone with BatchNorm, a second part whose name begins alike, and two layers."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.backbone2 = nn.Conv2d(4, 4, 1)
        self.layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(2, 2)])
        self.query_embedding = nn.Parameter(torch.zeros(5))

    def forward(self, x):
        x = self.backbone2(self.backbone(x)).mean((2, 3))
        for layer in self.layers:
            x = layer(x)
        return x


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "frozen", "number"),
    [
        # 3 * 4 + 4 of the convolution, 2 * 4 of BatchNorm.
        (["backbone"], {"backbone.0.weight", "backbone.0.bias", "backbone.1.weight"}, 24),
        (["layers.[0]"], {"layers.0.weight", "layers.0.bias"}, 10),
        (["*.bias"], {"backbone.0.bias", "backbone2.bias", "layers.1.bias"}, 4 + 4 + 4 + 2 + 2),
        (["query_embedding", "layers.1"], {"query_embedding", "layers.1.weight"}, 5 + 6),
    ],
)
def test_modules_and_parameters_are_frozen_by_name(patterns, frozen, number, caplog):
    model = Net()
    before = trained(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    with caplog.at_level("INFO"):
        freeze(model, patterns)

    assert frozen <= before - trained(model)
    left = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in left) == total - number
    assert f"{number} parameters" in caplog.text and f"{total - number} are trained" in caplog.text


def test_unknown_names_and_a_whole_model_are_errors():
    with pytest.raises(ConfigError, match=r"no part 'backbne'; it has, for example, backbone"):
        freeze(Net(), ["backbne"])
    with pytest.raises(ConfigError, match="freezes the whole model"):
        freeze(Net(), ["*"])


def test_frozen_statistics_stay_and_others_move():
    model = Net()
    model.other = nn.BatchNorm2d(3)
    freeze(model, ["backbone"])
    hook = FrozenBatchNormHook(["backbone"])
    hook.trainer = SimpleNamespace(model=model)

    hook.before_train()
    model.train()  # as at the start, and after an evaluation
    hook.before_step()
    images = torch.rand(2, 3, 4, 4)
    model(model.other(images))

    norm = model.backbone[1]
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_mean, torch.zeros(4))
    assert model.other.num_batches_tracked == 1
