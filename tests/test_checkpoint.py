"""Reading, converting and loading checkpoints, strictly."""

from __future__ import annotations

import json
import os

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet50

from salience_detr import checkpoint_conversion
from salience_detr.checkpoint import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    convert_reference_checkpoint,
    convert_torchvision_resnet,
    load_weights,
    read_checkpoint,
    torchvision_weights_url,
)
from salience_detr.engine.config import load_config


@pytest.fixture(scope="module")
def reference(shared):
    """A state dict with the names and shapes of the published R50 model, filled with small numbers."""
    manifest = shared("parity/r50_4scale_eval.json")
    shapes = json.loads(manifest.read_text())["parameters"]
    state = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    for name in state:
        if state[name].shape[:1] == (91,):
            rows = torch.arange(91.0).view(-1, *[1] * (state[name].dim() - 1))
            state[name] = rows.expand_as(state[name]).clone()
    return state


def test_a_converted_checkpoint_fills_the_model_exactly(reference):
    config = LazyConfig.load(os.path.join(os.path.dirname(__file__), "../configs/models/salience_detr_r50.py"))
    with torch.device("meta"):
        model = instantiate(config.model)
    converted = convert_reference_checkpoint(reference)
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert {name: tuple(x.shape) for name, x in converted.items()} == own


def test_conversion_keeps_the_rows_of_the_used_categories_in_order(reference):
    converted = convert_reference_checkpoint(reference)
    for name in ("query_selection.class_head.weight", "decoder.class_heads.5.bias", "denoising.label_encoder.weight"):
        assert converted[name].flatten(1)[:, 0].tolist() if converted[name].dim() > 1 else True
        rows = converted[name] if converted[name].dim() == 1 else converted[name][:, 0]
        assert rows.tolist() == list(COCO_CATEGORY_IDS)
    assert len(COCO_CATEGORY_IDS) == 80 and COCO_CATEGORY_IDS[-1] == 90


def test_all_rows_are_kept_on_request(reference):
    assert len(convert_reference_checkpoint(reference, category_ids=None)["query_selection.class_head.bias"]) == 91


def test_a_wrapped_file_with_constants_and_class_names_converts(reference):
    extra = {"_classes_": torch.zeros(91, dtype=torch.int64), "transformer.layer_filter_ratio": torch.ones(6)}
    assert (
        convert_reference_checkpoint({"model": reference | extra}).keys()
        == convert_reference_checkpoint(reference).keys()
    )


def test_missing_and_unknown_names_are_listed(reference):
    broken = dict(reference)
    del broken["transformer.decoder.layers.3.norm1.weight"]
    broken["transformer.surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        convert_reference_checkpoint(broken)
    assert "transformer.decoder.layers.3.norm1.weight" in str(error.value)
    assert "transformer.surprise" in str(error.value)


def test_too_few_class_rows_name_both_numbers(reference):
    small = {name: x[:7] if x.shape[:1] == (91,) else x for name, x in reference.items()}
    with pytest.raises(CheckpointError, match=r"7 class rows.*up to 90.*category_ids=None"):
        convert_reference_checkpoint(small)


@pytest.mark.parametrize(("depth", "build"), [(18, resnet18), (50, resnet50)])
def test_torchvision_resnets_give_the_same_features(depth, build):
    source = build(weights=None).eval()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    backbone = ResNet(
        BasicStem(norm="FrozenBN"),
        ResNet.make_default_stages(depth, **({"stride_in_1x1": False} if depth == 50 else {}), norm="FrozenBN"),
        out_features=["res5"],
    ).eval()
    backbone.load_state_dict(convert_torchvision_resnet(source.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.layer4(
            source.layer3(source.layer2(source.layer1(source.maxpool(source.relu(source.bn1(source.conv1(x)))))))
        )
        torch.testing.assert_close(backbone(x)["res5"], expected, rtol=1e-4, atol=1e-4)


def test_torchvision_names_are_found_by_enum_and_by_file():
    by_name = torchvision_weights_url("ResNet50_Weights.IMAGENET1K_V2")
    assert by_name.endswith("resnet50-11ad3fa6.pth")
    assert torchvision_weights_url("resnet50-11ad3fa6.pth") == by_name
    with pytest.raises(CheckpointError, match="no weights 'resnet51'"):
        torchvision_weights_url("resnet51")


def test_our_own_checkpoint_round_trips(tmp_path, micro_config):
    config = load_config(micro_config)
    source, target = instantiate(config.model), instantiate(config.model)
    torch.save({"model": source.state_dict(), "iteration": 3}, tmp_path / "a.pth")
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        load_weights(target, tmp_path / name)
        assert all(
            torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
        )


def test_another_number_of_classes_says_both_numbers_and_loads_nothing(tmp_path, micro_config):
    source = instantiate(load_config(micro_config, ["model.num_classes=9"]).model)
    target = instantiate(load_config(micro_config).model)
    before = target.query_embedding.clone()
    torch.save(source.state_dict(), tmp_path / "nine.pth")
    with pytest.raises(CheckpointError, match=r"9 classes, the model 6: set model\.num_classes=9"):
        load_weights(target, tmp_path / "nine.pth")
    assert torch.equal(target.query_embedding, before)


def test_a_checkpoint_of_another_model_says_so(tmp_path, micro_config):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match=r"another model.*missing from the file"):
        load_weights(instantiate(load_config(micro_config).model), tmp_path / "linear.pth")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_truncated_file_is_reported(tmp_path, name):
    path = tmp_path / name
    state = {"weight": torch.randn(1000)}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        read_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint file .*nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_names_are_unique_both_ways(reference):
    names = list(checkpoint_conversion._reference_names(reference))
    assert len({a for a, _ in names}) == len({b for _, b in names}) == len(names)


def test_a_backbone_alone_is_for_training_only(tmp_path):
    torch.save(resnet50().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="the backbone only"):
        load_weights(nn.Linear(2, 2), tmp_path / "resnet.pth")


@pytest.mark.parametrize("content", [{"model": None}, {"model": "resnet50"}, {}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.pth")
