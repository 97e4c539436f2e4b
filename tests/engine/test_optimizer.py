"""The published recipe: which parameter learns at which rate, and the schedule."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from salience_detr.config import ConfigError, load_config
from salience_detr.engine.compilation import set_memory_format, use_fast_products
from salience_detr.engine.optimizer import (
    fused_options,
    get_parameter_groups,
    keep_implementation,
)
from salience_detr.engine.train import build_ema, build_model, build_optimizer
from salience_detr.layers.onednn import OneDnnLinear

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "surface_defects_tiny.py"


@pytest.fixture(scope="module")
def r50():
    config = load_config(ROOT / "configs/salience_detr_r50_4scale_12ep.py")
    with torch.device("meta"):
        model = instantiate(config.model)

    return config, model


def test_every_trainable_parameter_of_the_r50_model_is_in_the_right_group(r50):
    _, model = r50
    groups = get_parameter_groups(model, base_lr=1.0, weight_decay=0.5)
    placed = {
        name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]
    }

    assert placed.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(placed)

    expected = {
        "backbone.res3.0.conv1.weight": (0.1, 0.5),
        "encoder.layers.0.deformable_attention.sampling_offsets.weight": (0.1, 0.5),
        "encoder.layers.0.deformable_attention.sampling_offsets.bias": (0.1, 0.0),
        "decoder.layers.5.cross_attention.sampling_offsets.weight": (0.1, 0.5),
        "decoder.layers.5.cross_attention.value_proj.weight": (1.0, 0.5),
        "decoder.layers.0.self_attention.in_proj_bias": (1.0, 0.0),
        "encoder.layers.0.ffn.norm.weight": (1.0, 0.0),
        "neck.projections.0.norm.weight": (1.0, 0.0),
        "feature_fusion.lateral.0.norm.weight": (1.0, 0.0),
        "query_embedding": (1.0, 0.5),
        "token_pyramid.level_embeds": (1.0, 0.5),
        "salience_filter.alpha": (1.0, 0.5),
    }
    assert {name: placed[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "convnext_t",
            {
                "body.stages_1.blocks.0.conv_dw.weight": (0.1, 0.5),
                "body.stages_1.blocks.0.conv_dw.bias": (0.1, 0.0),
                "body.stages_1.blocks.0.norm.weight": (0.1, 0.0),
                "body.stages_1.blocks.0.gamma": (0.1, 0.5),
                "body.stages_2.downsample.0.weight": (
                    0.1,
                    0.0,
                ),  # a norm by its type, not by its name
                "body.stages_2.downsample.1.weight": (0.1, 0.5),
            },
        ),
        (
            "focalnet_l",
            {
                "body.layers_2.blocks.3.modulation.f.weight": (0.1, 0.5),
                "body.layers_2.blocks.3.norm1_post.weight": (0.1, 0.0),
                "body.layers_2.blocks.3.ls1.gamma": (0.1, 0.5),
                "body.layers_2.downsample.norm.weight": (0.1, 0.0),
                "output_norms.stride8.weight": (0.1, 0.0),
            },
        ),
        (
            "swin_t",
            {
                "layers.1.blocks.0.attn.qkv.weight": (0.1, 0.5),
                "layers.1.blocks.0.attn.qkv.bias": (0.1, 0.0),
                "layers.1.blocks.0.attn.relative_position_bias_table": (0.1, 0.0),
                "layers.1.blocks.0.norm1.weight": (0.1, 0.0),
                "layers.1.downsample.reduction.weight": (0.1, 0.5),
            },
        ),
    ],
)
def test_every_trainable_parameter_of_other_backbones_is_in_the_right_group(recipe, expected):
    config = load_config(ROOT / f"configs/salience_detr_{recipe}_12ep.py")
    model = nn.Module()
    with torch.device(
        "cpu" if recipe == "swin_t" else "meta"
    ):  # detectron2's needs numbers while it is built
        model.backbone = instantiate(config.model.backbone)

    groups = get_parameter_groups(model, base_lr=1.0, weight_decay=0.5)
    placed = {
        name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]
    }

    assert placed.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name: placed[f"backbone.{name}"] for name in expected} == expected


@pytest.mark.parametrize(
    ("recipe", "rate"), [("convnext_l", 0.5), ("swin_l", 0.2), ("focalnet_l", 0.5)]
)
def test_stochastic_depth_has_the_published_rate(recipe, rate):
    config = load_config(ROOT / f"configs/salience_detr_{recipe}_12ep.py")
    assert config.model.backbone.drop_path_rate == rate


def test_the_stem_and_the_first_stage_are_frozen(r50):
    _, model = r50
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}

    assert frozen == {"stem", "res2"}


def test_the_schedule_warms_up_and_decays_after_ten_of_twelve_epochs(r50):
    config, _ = r50
    epoch = 118_287 // 16

    assert config.train.max_iter == 12 * epoch

    schedule = instantiate(config.lr_multiplier)

    def rate(iteration):
        return schedule(iteration / config.train.max_iter)

    assert rate(0) == pytest.approx(0.001)
    assert rate(500) == pytest.approx(0.5, abs=0.01)
    assert rate(1001) == rate(10 * epoch - 1) == 1.0
    assert rate(10 * epoch + 1) == pytest.approx(0.1)


def test_the_optimizer_of_the_recipe_is_adamw_with_the_published_numbers(r50):
    config, model = r50
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    config.optimizer.params.model = None

    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {
        (1e-4, 1e-4), (1e-4, 0.0), (1e-5, 1e-4), (1e-5, 0.0),
    }  # fmt: skip
    assert config.train.clip_grad_norm == 0.1


def test_the_model_has_the_published_number_of_parameters(r50):
    _, model = r50
    # 56.1 M with 91 classes; 80 classes are 11 rows fewer in seven heads and one embedding.
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(56.06e6, abs=0.05e6)


def test_adamw_is_fused_on_cuda_and_nowhere_else(micro_config):
    optimizer = load_config(micro_config).optimizer
    assert fused_options(optimizer, torch.device("cuda", 1)) == {"fused": True}
    assert fused_options(optimizer, torch.device("cpu")) == {}

    # What a config says itself stays; other optimizers are built as they are.
    for words in (["optimizer.foreach=True"], ["optimizer.fused=False"]):
        chosen = load_config(micro_config, words).optimizer
        assert fused_options(chosen, torch.device("cuda")) == {}
    optimizer._target_ = "torch.optim.SGD"
    assert fused_options(optimizer, torch.device("cuda")) == {}


@pytest.mark.parametrize("fused", [True, False])
def test_the_config_of_an_optimizer_can_be_saved_for_another_device(
    micro_config, monkeypatch, fused
):
    config = load_config(micro_config)
    before = list(config.optimizer)
    model = nn.Linear(2, 2)
    options = {"fused": True} if fused else {}
    monkeypatch.setattr("salience_detr.engine.train.fused_options", lambda *_: options)
    optimizer = build_optimizer(config, model)
    assert optimizer.defaults["fused"] == (fused or None)
    assert list(config.optimizer) == before


@pytest.mark.parametrize("from_fused", [True, False])
def test_a_run_resumes_on_another_device_with_the_implementation_of_that_device(from_fused):
    # The fused kernel runs on the CPU, too.
    def start(fused):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        optimizer.register_load_state_dict_pre_hook(keep_implementation)
        return model, optimizer

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = start(from_fused)
    step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())  # as from a file
    saved_groups = [dict(group) for group in saved["param_groups"]]

    other_model, other = start(not from_fused)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    assert other.param_groups[0]["fused"] == (not from_fused)
    assert saved["param_groups"] == saved_groups
    assert other.state_dict()["state"].keys() == saved["state"].keys()

    for _ in range(3):
        step(model, optimizer)
        step(other_model, other)
    torch.testing.assert_close(other_model.weight, model.weight)


def test_on_the_cpu_the_model_and_its_ema_are_in_channels_last():
    config = load_config(TINY, ["train.ema.enabled=True", "train.device=cpu"])
    model = build_model(config)
    set_memory_format(config, model)
    ema = build_ema(config, model)

    strides = {name: weight.stride() for name, weight in model.state_dict().items()}
    assert strides == {name: weight.stride() for name, weight in ema.module.state_dict().items()}
    weight = model.backbone.stem.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_channels_last_is_avoided_where_it_can_crash(micro_config):
    # Its strided 1x1 convolutions have 8, 16 and 24 channels.
    config = load_config(micro_config, ["train.device=cpu"])
    model = build_model(config)
    set_memory_format(config, model)
    assert model.backbone.stem.conv1.weight.is_contiguous()

    config.train.channels_last = True
    with pytest.raises(ConfigError, match=r"res3\.0\.shortcut .*set train.channels_last=False"):
        set_memory_format(config, model)


def test_a_memory_format_that_is_no_switch_is_refused(micro_config):
    config = load_config(micro_config, ["train.channels_last=yes_please"])
    with pytest.raises(ConfigError, match=r"train\.channels_last is 'yes_please'; use True, False"):
        set_memory_format(config, nn.Linear(1, 1))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_products_are_fast_where_mixed_precision_stays_off(micro_config, monkeypatch, has_bfloat16):
    monkeypatch.setattr("salience_detr.config.computes_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr("salience_detr.engine.compilation.uses_onednn", lambda *x: True)
    config = load_config(micro_config, ["train.amp.enabled=True", "train.device=cpu"])
    model = nn.Sequential(nn.Linear(4, 4))
    use_fast_products(config, model)
    assert isinstance(model[0], OneDnnLinear) != has_bfloat16


def test_channels_last_can_be_switched_off():
    config = load_config(TINY, ["train.channels_last=False", "train.device=cpu"])
    model = build_model(config)
    set_memory_format(config, model)
    assert model.backbone.stem.conv1.weight.is_contiguous()
