"""Rates that decay layer by layer, by hand for each kind of backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from salience_detr.config import ConfigError, load_config
from salience_detr.engine.layer_decay import layer_scales
from salience_detr.engine.optimizer import get_parameter_groups

ROOT = Path(__file__).resolve().parents[2]


def backbone_of(recipe, device="meta"):
    config = load_config(ROOT / f"configs/salience_detr_{recipe}_12ep.py")
    with torch.device(device):
        return instantiate(config.model.backbone)


@pytest.mark.parametrize(
    ("recipe", "device", "expected"),
    [
        # Stem and four stages.
        (
            "r18_4scale",
            "meta",
            {"stem.conv1.weight": 4, "res2.0.conv1.weight": 3, "res5.1.conv1.weight": 0},
        ),
        ("swin_t", "cpu", {"patch_embed.proj.weight": 4, "layers.0.blocks.0.attn.qkv.weight": 3}),
        # timm: the stem and 3 + 3 + 9 + 3 blocks.
        (
            "convnext_t",
            "meta",
            {
                "body.stem_0.weight": 18,
                "body.stages_0.blocks.2.conv_dw.weight": 15,
                "body.stages_3.blocks.2.conv_dw.weight": 0,
            },
        ),
    ],
)
def test_each_layer_learns_at_a_part_of_the_rate_of_the_next_one(recipe, device, expected):
    scales = layer_scales(backbone_of(recipe, device), 0.5)
    for name, steps in expected.items():
        assert scales[name] == 0.5**steps


def test_it_applies_to_the_backbone_alone_and_beside_its_factor():
    model = nn.Module()
    model.backbone = backbone_of("r18_4scale")
    model.head = nn.Linear(2, 2)
    groups = get_parameter_groups(model, base_lr=1.0, weight_decay=0.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in group["names"]}

    # The stem and res2 are frozen in this recipe.
    found = [rates[f"backbone.res{stage}.0.conv1.weight"] for stage in (3, 4, 5)]
    assert found == pytest.approx([0.025, 0.05, 0.1])
    assert rates["head.weight"] == 1.0 and "backbone.stem.conv1.weight" not in rates


def test_unknown_backbones_and_factors_are_errors():
    with pytest.raises(ConfigError, match="layers of Sequential are not known; set it to 1"):
        layer_scales(nn.Sequential(nn.Linear(1, 1)), 0.8)
    with pytest.raises(ConfigError, match=r"layer_decay is 1\.5; it lies between 0 and 1"):
        layer_scales(nn.Linear(1, 1), 1.5)
