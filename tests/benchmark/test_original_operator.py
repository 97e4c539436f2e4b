"""The original extension in the operator's table, with a module that pretends to be it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from salience_detr.benchmark.original_operator import MODULE, has_original, original
from salience_detr.cli import benchmark_op
from salience_detr.layers import ms_deform_attn as attention


@pytest.fixture
def extension(monkeypatch):
    """The module of the original extension, computed by the PyTorch reference."""
    module = ModuleType(MODULE)
    module.__spec__ = object()
    reference = attention.ms_deform_attn_reference

    def backward(value, shapes, starts, locations, weights, grad_output, im2col_step):
        assert im2col_step == 64 and grad_output.is_contiguous()
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        with torch.enable_grad():
            output = reference(leaves[0], shapes, starts, *leaves[1:])
        return torch.autograd.grad(output, leaves, grad_output)

    module.ms_deform_attn_forward = lambda *inputs: reference(*inputs[:-1])
    module.ms_deform_attn_backward = backward
    monkeypatch.setitem(sys.modules, MODULE, module)


def test_it_takes_part_on_cuda_where_it_is_installed(extension, monkeypatch):
    names = list(benchmark_op.implementations("cuda", torch.float32))
    assert names == ["reference", "fused", "unfused", "original"]
    assert "original" not in benchmark_op.implementations("cpu", torch.float32)
    assert not has_original(torch.bfloat16)

    monkeypatch.delitem(sys.modules, MODULE)
    assert not has_original(torch.float32)


def test_its_results_and_gradients_are_the_references(extension):
    shape = benchmark_op.Shape("tiny", 5, levels=((3, 4), (2, 2)))
    inputs = benchmark_op.make_inputs(shape, "cpu", torch.float64)
    results = []
    for function in (original, attention.ms_deform_attn_fused_reference):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        output = function(*leaves)
        gradients = torch.autograd.grad(output.square().sum(), [leaves[i] for i in (0, 4, 5)])
        results.append((output, *gradients))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
