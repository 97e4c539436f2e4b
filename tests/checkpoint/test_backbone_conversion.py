"""ImageNet weights in the formats of their publishers."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from salience_detr.checkpoint import CheckpointError, start_from
from salience_detr.checkpoint.backbone_conversion import convert_backbone, describe
from salience_detr.checkpoint.catalog import timm_weights_url
from salience_detr.checkpoint.loading import load_backbone
from salience_detr.config import load_config
from salience_detr.modeling.backbones.swin import Swin
from salience_detr.modeling.backbones.timm_backbone import TimmBackbone


class Detector(nn.Module):
    """As much of one as a backbone's weights need."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone.double().eval()


def randomize(model):
    """Give every tensor of a classifier its own numbers, also those that start as ones or zeros."""
    for name, x in model.state_dict().items():
        if x.is_floating_point():
            nn.init.uniform_(x, 0.5, 1.5) if name.endswith("running_var") else nn.init.normal_(
                x, 0.0, 0.1
            )
    return model.double().eval()


def resnet(depth):
    options = {"stride_in_1x1": False} if depth >= 50 else {}
    return ResNet(
        BasicStem(norm="FrozenBN"),
        ResNet.make_default_stages(depth, **options, norm="FrozenBN"),
        out_features=["res5"],
    )


SWIN_SIZES = ([4, 4], 12, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7])


def torchvision_convnext():
    stages = [
        torchvision.models.convnext.CNBlockConfig(*sizes)
        for sizes in ((40, 80, 2), (80, 160, 2), (160, 320, 6))
    ]
    stages.append(torchvision.models.convnext.CNBlockConfig(320, None, 2))
    return torchvision.models.ConvNeXt(stages)  # of the size of timm's convnext_atto


@pytest.mark.parametrize(
    ("source", "backbone"),
    [
        (lambda: torchvision.models.resnet18(), lambda: resnet(18)),
        (lambda: torchvision.models.resnet50(), lambda: resnet(50)),
        (
            torchvision_convnext,
            lambda: TimmBackbone(name="convnext_atto", options={"conv_mlp": False}),
        ),
        (
            lambda: torchvision.models.SwinTransformer(*SWIN_SIZES),
            lambda: Swin(embed_dim=12, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
        ),
    ],
    ids=["resnet18", "resnet50", "convnext", "swin"],
)
def test_torchvision_models_give_the_same_maps(source, backbone):
    classifier, detector = randomize(source()), Detector(backbone())
    load_backbone(detector, classifier.state_dict(), source="file")
    image = torch.randn(1, 3, 256, 288, dtype=torch.float64)
    stages = ["layer4"] if hasattr(classifier, "layer4") else [f"features.{i}" for i in (3, 5, 7)]
    expected = []
    for stage in stages:
        classifier.get_submodule(stage).register_forward_hook(
            lambda _, __, output: expected.append(output)
        )
    with torch.no_grad():
        classifier(image)
        found = list(detector.backbone(image).values())
    if isinstance(detector.backbone, Swin):
        expected = [x.permute(0, 3, 1, 2) for x in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "resnet18", "efficientnet_b0", "focalnet_tiny_srf"]
)
def test_timm_models_give_the_same_maps(name):
    classifier = randomize(timm.create_model(name))
    detector = Detector(TimmBackbone(name=name))
    load_backbone(detector, classifier.state_dict(), source="file")
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, intermediates_only=True)[-3:]
        found = detector.backbone(image).values()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_timm_swin_fills_detectron2s():
    classifier = randomize(timm.create_model("swin_tiny_patch4_window7_224"))
    detector = Detector(Swin(depths=(2, 2, 6, 2)))
    load_backbone(detector, classifier.state_dict(), source="file")
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, intermediates_only=True)[1]
        found = detector.backbone(image)["p1"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_swin_of_its_authors_fills_ours():
    detector = Detector(
        Swin(embed_dim=12, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), output_norms=True)
    )
    own = detector.backbone.state_dict()
    file = {name: torch.randn_like(x) for name, x in own.items() if not name.startswith("norm")}
    extra = (
        "norm.weight",
        "head.weight",
        "layers.0.blocks.1.attn_mask",
        "layers.0.blocks.0.attn.relative_position_index",
    )
    load_backbone(detector, file | {name: torch.ones(1) for name in extra}, source="file")
    assert all(torch.equal(detector.backbone.state_dict()[name], x) for name, x in file.items())
    assert torch.equal(
        detector.backbone.norm1.weight, torch.ones(24, dtype=torch.float64)
    )  # not in the file


@pytest.mark.parametrize("name", ["focalnet_tiny_srf", "focalnet_large_fl3"])
def test_the_focalnet_of_its_authors_fills_ours(name):
    """Linear layers there, downsampling at the end of a stage, and gammas in large models."""
    with torch.device("meta"):
        detector = Detector(TimmBackbone(name=name, output_norms=True))
    renamed = [
        (r"body\.stem\.", "patch_embed."),
        (r"body\.layers_(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
        (r"body\.layers_", "layers."),
        (r"ls(\d)\.gamma", r"gamma_\1"),
        (r"(norm\d)_post", r"\1"),
    ]
    file = {"head.weight": torch.zeros(1), "norm.bias": torch.zeros(1)}
    for own, tensor in detector.backbone.state_dict().items():
        if not own.startswith("output_norms"):
            theirs = own
            for pattern, replacement in renamed:
                theirs = re.sub(pattern, replacement, theirs)
            linear = (
                tensor.dim() == 4
                and tensor.shape[-1] == 1
                and not re.search(r"modulation\.h|focal_layers", own)
            )
            file[theirs] = torch.empty(tensor.shape[:2] if linear else tensor.shape, device="meta")
    assert (
        "layers.2.downsample.proj.weight" in file
        and file["layers.0.blocks.0.mlp.fc1.weight"].dim() == 2
    )
    converted, left_out = convert_backbone(file, detector.backbone.state_dict())
    assert left_out == ["head.weight", "norm.bias"]
    own = {
        k: x.shape
        for k, x in detector.backbone.state_dict().items()
        if not k.startswith("output_norms")
    }
    assert {k: x.shape for k, x in converted.items()} == own


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            torchvision_convnext,
            "looks like a torchvision ConvNeXt, which are no weights of this model",
        ),
        (lambda: torchvision.models.mobilenet_v3_small(), r"something unknown \(classifier"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224"),
            r"looks like a vision transformer \(ViT\)",
        ),
    ],
)
def test_weights_of_another_family_are_called_by_their_name(source, message):
    with pytest.raises(CheckpointError, match=message):
        load_backbone(Detector(resnet(18)), source().state_dict(), source="file")


def test_weights_of_another_size_say_which_shapes_differ():
    with pytest.raises(CheckpointError, match=r"does not fit ResNet.*of another shape: res2\.0"):
        load_backbone(
            Detector(resnet(50)), torchvision.models.wide_resnet50_2().state_dict(), source="file"
        )


def test_a_deeper_model_is_not_cut():
    deeper = timm.create_model("convnext_atto", depths=(2, 2, 8, 2)).state_dict()
    with pytest.raises(
        CheckpointError, match=r"unknown: stages\.2\.blocks\.6\.conv_dw\.bias, .* and \d+ more"
    ):
        load_backbone(Detector(TimmBackbone(name="convnext_atto")), deeper, source="file")


def test_stages_that_are_not_asked_for_are_left_out():
    backbone = TimmBackbone(name="convnext_atto", out_features=["stride4", "stride8"])
    load_backbone(
        Detector(backbone), timm.create_model("convnext_atto").state_dict(), source="file"
    )


def test_an_incomplete_file_says_what_is_missing():
    file = torchvision_convnext().state_dict()
    del file["features.5.2.layer_scale"]
    file["features.5.2.surprise"] = torch.ones(1)
    with pytest.raises(
        CheckpointError, match=r"features\.5\.2\.layer_scale.*unknown: features\.5\.2\.surprise"
    ):
        load_backbone(Detector(TimmBackbone(name="convnext_atto")), file, source="file")


def test_detectors_of_others_are_recognized(tmp_path, micro_config):
    model = instantiate(load_config(micro_config).model)
    for name, label in (
        ("backbone.bottom_up.res2.0.conv1.weight", "a detector of detectron2's model zoo"),
        ("transformer.level_embed", "a Deformable DETR or DINO"),
        ("model.0.conv.weight", "a YOLO of ultralytics"),
    ):
        assert describe({f"module.{name}": 0}) == label
        torch.save({"model": {name: torch.zeros(1)}}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=f"looks like {label}"):
            start_from(model, tmp_path / "a.pth")


def test_timm_names_lead_to_their_files():
    assert timm_weights_url("convnext_large.fb_in1k").endswith(
        "timm/convnext_large.fb_in1k/resolve/main/model.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"timm has no weights 'convnext_large.no'; it has convnext_large"
    ):
        timm_weights_url("convnext_large.no")


@pytest.mark.parametrize("name", ["surprise.weight", "layer9.0.conv1.weight", "features.9.weight"])
def test_foreign_names_outside_of_the_stages_are_listed(name):
    file = torchvision.models.resnet18().state_dict() | {name: torch.ones(1)}
    with pytest.raises(CheckpointError, match=rf"unknown: {name}"):
        load_backbone(Detector(resnet(18)), file, source="file")
