"""Backbones that detectron2 lacks, or has otherwise: their maps, what is frozen, what they save."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from salience_detr.modeling.backbones.swin import Swin
from salience_detr.modeling.backbones.timm_backbone import TimmBackbone, timm_channels

SMALL_SWIN = {
    "embed_dim": 12,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
    "frozen_stages": 2,
}


def swin(**options):
    return Swin(**{**SMALL_SWIN, **options})


def convnext(**options):
    return TimmBackbone(name="convnext_atto", **{"freeze_at_stride": 4, **options})


def focalnet(**options):
    return TimmBackbone(name="focalnet_tiny_srf", output_norms=True, freeze_at_stride=4, **options)


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "pvt_v2_b0",
        "regnety_002",
        "resnet18",
        "swin_s3_tiny_224",
        "vgg11",
    ],
)
def test_any_feature_model_of_timm_gives_maps_of_its_strides_at_any_size(name):
    backbone = TimmBackbone(name=name, freeze_at_stride=4).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 70, 100))

    channels = timm_channels(name, ["stride8", "stride16", "stride32"])
    assert {feature: tuple(x.shape) for feature, x in maps.items()} == {
        "stride8": (2, channels[0], 9, 13),  # 70 / 8 = 8.75, 100 / 8 = 12.5
        "stride16": (2, channels[1], 5, 7),
        "stride32": (2, channels[2], 3, 4),
    }

    described = backbone.output_shape().values()
    assert [shape.channels for shape in described] == channels
    assert [shape.stride for shape in described] == [8, 16, 32]
    assert backbone.size_divisibility == 32


def test_images_are_padded_to_the_multiples_that_a_model_asks_for():
    backbone = TimmBackbone(name="halonet26t", size_divisibility=256)
    assert backbone.size_divisibility == 256
    assert backbone(torch.randn(1, 3, 64, 300))["stride16"].shape[2:] == (4, 19)


def test_wanted_maps_can_be_chosen():
    backbone = convnext(out_features=["stride4", "stride32"])
    maps = backbone(torch.randn(1, 3, 64, 64))
    sizes = {feature: tuple(x.shape[2:]) for feature, x in maps.items()}
    assert sizes == {"stride4": (16, 16), "stride32": (2, 2)}


def test_padding_does_not_reach_the_maps_of_an_image_that_needs_none():
    backbone = convnext().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(image)
        expected = backbone.body(image)

    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "convnext_attoo"}, r"cannot build 'convnext_attoo'.*convnext_atto"),
        ({"name": "vit_tiny_patch16_224"}, r"has no map of stride 8; its strides are \[16\]"),
        ({"name": "resnet18", "out_features": ["res3"]}, "'res3' is not named by its stride"),
        ({"name": "resnet18", "options": {"no_such": 1}}, "cannot build 'resnet18'.*no_such"),
        (
            {"name": "hrnet_w18_small", "freeze_at_stride": 4},
            "cannot be frozen; set freeze_at_stride=0",
        ),
        (
            {"name": "efficientformer_l1"},
            r"efficientformer_l1 does not take images of any size \(160x224: ",
        ),
        ({"name": "halonet26t"}, "set size_divisibility to what it requires"),
        (
            {"name": "inception_v3"},
            r"maps of \(17, 25\) for images of \(160, 224\), not of stride 8",
        ),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "cannot build 'vgg11'.*drop_path_rate"),
        ({"name": "hrnet_w18_small", "use_checkpoint": True}, "set use_checkpoint=False"),
    ],
)
def test_what_timm_has_not_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**options)


@pytest.mark.parametrize(
    ("backbone", "frozen"),
    [
        (convnext, {"body.stem_0", "body.stem_1", "body.stages_0", "body.stages_1.downsample"}),
        (focalnet, {"body.stem", "body.layers_0", "body.layers_1.downsample"}),
        (swin, {"patch_embed", "layers.0"}),  # its stages downsample at their end
    ],
)
def test_the_stem_the_first_stage_and_the_downsampling_after_it_are_frozen(backbone, frozen):
    parameters = dict(backbone().named_parameters())
    prefixes = tuple(f"{name}." for name in frozen)

    for name, parameter in parameters.items():
        assert parameter.requires_grad != name.startswith(prefixes), name

    # No prefix is misspelled.
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in parameters), prefix


def test_the_projections_beside_the_blocks_of_the_next_stage_are_not_frozen():
    model = TimmBackbone(name="resnet18", freeze_at_stride=4)
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


def test_batch_norm_keeps_its_statistics_unless_it_is_to_learn():
    for freeze in (True, False):
        model = TimmBackbone(name="efficientnet_b0", freeze_batch_norm=freeze).train()
        state = model.state_dict()
        means = {name: x.clone() for name, x in state.items() if name.endswith("running_mean")}

        with torch.no_grad():
            model(torch.randn(2, 3, 64, 64))

        same = [torch.equal(x, model.state_dict()[name]) for name, x in means.items()]
        assert len(same) > 40
        assert same == [freeze] * len(same)


def drop_rates(model: nn.Module) -> list[float]:
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize("backbone", [convnext, focalnet, swin])
def test_drop_path_grows_with_depth_up_to_its_rate(backbone):
    rates = drop_rates(backbone(drop_path_rate=0.4))
    assert rates == sorted(rates)
    assert rates[0] < 0.1 and rates[-1] == pytest.approx(0.4)

    assert not any(drop_rates(backbone(drop_path_rate=0.0)))


@pytest.mark.parametrize("backbone", [convnext, focalnet, swin])
def test_activations_that_are_computed_again_are_not_kept(backbone):
    kept = []
    for use in (False, True):
        model = backbone(use_checkpoint=use).train()
        storages = {}
        weights = {parameter.data_ptr() for parameter in model.parameters()}

        def keep(x, storages=storages, weights=weights):
            if x.data_ptr() not in weights:
                storages[x.data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            maps = model(torch.randn(1, 3, 64, 64))
        kept.append(sum(storages.values()))
        del maps  # and the graph with its storages

    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("backbone", [convnext, focalnet, swin])
def test_saving_memory_changes_no_gradient(backbone):
    image = torch.randn(1, 3, 64, 64)
    plain = backbone(drop_path_rate=0.0).double().train()
    saving = backbone(drop_path_rate=0.0, use_checkpoint=True).double().train()
    saving.load_state_dict(plain.state_dict())

    for model in (plain, saving):
        maps = model(image.double())
        sum(x.square().mean() for x in maps.values()).backward()

    found = dict(saving.named_parameters())
    for name, expected in plain.named_parameters():
        assert (found[name].grad is None) == (not expected.requires_grad), name
        if expected.requires_grad:
            torch.testing.assert_close(found[name].grad, expected.grad, msg=name)


def test_output_norms_normalize_each_map():
    for model in (focalnet(), swin(output_norms=True)):
        for x in model(torch.randn(1, 3, 64, 64)).values():
            means = x.mean(1)
            torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)

    assert not [name for name in swin().state_dict() if name.startswith("norm")]
