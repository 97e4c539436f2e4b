"""The copies of a model that detect faster."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from salience_detr.config import load_config
from salience_detr.layers import onednn
from salience_detr.layers.onednn import OneDnnLinear
from salience_detr.modeling.feature_fusion import ConvBN, RepVGGBlock
from salience_detr.modeling.optimization import (
    compile_frozen,
    compile_stages,
    copy_structure,
    fold_norm,
    fuse,
    optimize_model,
    prepare_weights,
)

ODD_SIZES = [(64, 64), (33, 97), (50, 40)]


@pytest.fixture
def model(micro_config):
    """Returns a small model whose norms do something."""
    model = instantiate(load_config(micro_config).model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(-1, 1)
            module.bias.data.uniform_(-1, 1)
    return model


def detect(model, size):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        (output,) = model([{"image": image}])
    return output["instances"]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_convolution_is_the_convolution_and_its_norm(frozen, bias):
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=bias).double()
    norm = FrozenBatchNorm2d(6) if frozen else nn.BatchNorm2d(6).eval()
    norm.double()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.uniform_(-1, 1)
    norm.bias.data.uniform_(-1, 1)

    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    expected = norm(conv(x))
    fold_norm(conv, norm)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_the_fused_model_detects_the_same(model, size):
    model.double()
    expected = detect(model, size)
    actual = detect(fuse(model), size)
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-8
    )
    assert torch.equal(actual.pred_classes, expected.pred_classes)


def test_fusing_leaves_nothing_to_fold_and_the_model_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert not any(isinstance(x, nn.BatchNorm2d | FrozenBatchNorm2d) for x in fused.modules())
    assert not any(isinstance(x, RepVGGBlock) for x in fused.modules())
    assert all(x.norm is not None for x in model.modules() if isinstance(x, ConvBN))

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert fused.query_embedding is model.query_embedding


def test_weights_of_products_are_in_the_dtype_of_autocast_and_the_others_are_not(
    model, monkeypatch
):
    monkeypatch.setattr(onednn, "is_amd", lambda: False)
    folded = fuse(model)
    prepared = copy_structure(folded)
    prepare_weights(prepared, torch.bfloat16)
    assert prepared.decoder.class_heads[0].weight.dtype == torch.bfloat16
    assert prepared.encoder.layers[0].important_attention.in_proj_weight.dtype == torch.bfloat16
    assert prepared.decoder.norm.weight.dtype == torch.float32
    assert prepared.dtype == torch.float32

    # Autocast rounds the same weights in each call.
    with torch.autocast("cpu", torch.bfloat16):
        expected = detect(folded, (64, 64))
        actual = detect(prepared, (64, 64))
    assert torch.equal(actual.scores, expected.scores)
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_onednn_detects_the_same(model, size, monkeypatch):
    monkeypatch.setattr(onednn, "is_amd", lambda: False)
    expected = detect(fuse(model), size)

    monkeypatch.setattr(onednn, "is_amd", lambda: True)
    fused = fuse(model)
    assert any(isinstance(x, OneDnnLinear) for x in fused.modules())

    actual = detect(fused, size)
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.01
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_onednn_is_for_float32_alone(model, dtype, monkeypatch):
    monkeypatch.setattr(onednn, "is_amd", lambda: True)
    if dtype == torch.float64:
        model.double()
    fused = fuse(model, None if dtype == torch.float64 else dtype)
    assert not any(isinstance(x, OneDnnLinear) for x in fused.modules())


def test_weights_are_constants_of_what_is_compiled():
    linear = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    with torch.no_grad():
        expected = linear(x)
        compiled = compile_frozen(linear.forward)
        compiled(x)
        linear.weight.zero_()
        torch.testing.assert_close(compiled(x), expected)


def test_none_is_the_model_itself(model):
    assert optimize_model(model, "none") is model


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_compiled_model_detects_the_same(model, dtype):
    fused = fuse(model, dtype)
    compiled = fuse(model, dtype)
    compile_stages(compiled)
    for size in ODD_SIZES:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            expected = detect(fused, size)
            actual = detect(compiled, size)
        tolerance = 1e-5 if dtype is None else 0.02
        torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=tolerance)
