"""Products by oneDNN are those of the linear layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from salience_detr.layers import onednn
from salience_detr.layers.onednn import OneDnnLinear, use_onednn, uses_onednn

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 16), (0, 16), (16,)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_layer(shape, bias):
    linear = nn.Linear(16, 5, bias=bias)
    other = OneDnnLinear(copy.deepcopy(linear))
    x = torch.randn(shape, requires_grad=True)
    other_x = x.detach().clone().requires_grad_()

    expected, actual = linear(x), other(other_x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(other(other_x), expected, rtol=0, atol=1e-5)

    expected.square().sum().backward()
    actual.square().sum().backward()
    torch.testing.assert_close(other_x.grad, x.grad, rtol=1e-5, atol=1e-4)
    for first, second in zip(other.parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-5, atol=1e-4)


def test_gradients_that_nobody_wants_are_not_computed():
    linear = OneDnnLinear(nn.Linear(4, 3))
    linear.requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    linear(x).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is None


def test_a_model_keeps_its_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.MultiheadAttention(4, 2))
    before = dict(model.named_parameters())
    use_onednn(model)

    assert isinstance(model[0], OneDnnLinear)
    assert isinstance(model[2].out_proj, OneDnnLinear)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize(
    ("amd", "dtype", "expected"),
    [(True, torch.float32, True), (False, torch.float32, False), (True, torch.bfloat16, False)],
)
def test_it_is_for_float32_on_the_processors_of_amd(monkeypatch, amd, dtype, expected):
    monkeypatch.setattr(onednn, "is_amd", lambda: amd)
    assert uses_onednn(CPU, dtype) is expected
    assert not uses_onednn(torch.device("cuda"), dtype)
