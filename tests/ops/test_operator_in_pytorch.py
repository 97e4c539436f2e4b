"""The compiled operator inside PyTorch: compile, export, autocast, and the errors it raises."""

from __future__ import annotations

import pytest
import torch

from salience_detr.layers.ms_deform_attn import (
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)
from tests.ops.checks import assert_close, gradients

OPS = torch.ops.salience_detr
HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dims", [2, 4])
def test_pytorch_accepts_the_registration(make_case, dims):
    case = make_case(batch=1, queries=5, dims=dims, channels=4, dtype=torch.float32)

    for operator, inputs in (
        (OPS.ms_deform_attn, case.plain),
        (OPS.ms_deform_attn_fused, case.fused),
    ):
        leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
        torch.library.opcheck(operator, tuple(leaves))

    grad = torch.randn(1, 5, 12, device=case.value.device)
    needed = [True, False, True]
    torch.library.opcheck(OPS.ms_deform_attn_backward, (grad, *case.plain, needed))
    torch.library.opcheck(OPS.ms_deform_attn_fused_backward, (grad, *case.fused, [True, *needed]))


def test_it_compiles_into_one_graph_for_any_size(make_case):
    def attend(*inputs):
        return ms_deform_attn_fused(*inputs).relu() * 2

    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")

    for queries, batch in ((5, 2), (9, 3), (13, 1)):
        inputs = make_case(queries=queries, batch=batch, dtype=torch.float32).fused
        assert torch.equal(compiled(*inputs), attend(*inputs))

        grad = torch.ones(batch, queries, 36, device=inputs[0].device)
        found = gradients(compiled, inputs, grad)
        expected = gradients(attend, inputs, grad)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_an_exported_program_holds_the_operator(make_case):
    class Attention(torch.nn.Module):
        def forward(self, *inputs):
            return ms_deform_attn_fused(*inputs)

    inputs = make_case(dtype=torch.float32).fused
    queries = torch.export.Dim("queries", min=2)
    dynamic = ((None, None, None, {1: queries}, {1: queries}, {1: queries}),)
    program = torch.export.export(Attention(), inputs, dynamic_shapes=dynamic)
    assert OPS.ms_deform_attn_fused.default in [node.target for node in program.graph.nodes]

    longer = make_case(dtype=torch.float32, queries=29).fused
    torch.testing.assert_close(program.module()(*longer), ms_deform_attn_fused(*longer))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_samples_in_half_precision_at_exact_places(make_case, dtype):
    case = make_case(dtype=torch.float32, levels=[(150, 200)], channels=32)
    device = case.value.device.type

    for function, reference, inputs in (
        (ms_deform_attn, ms_deform_attn_reference, case.plain),
        (ms_deform_attn_fused, ms_deform_attn_fused_reference, case.fused),
    ):
        with torch.autocast(device, dtype=dtype):
            found = function(*inputs)
        assert found.dtype == dtype
        halved = (inputs[0].to(dtype), *inputs[1:])
        assert_close(found, reference(*halved), dtype)

        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        with torch.autocast(device, dtype=dtype):
            function(*leaves).float().sum().backward()
        found_gradients = [x.grad for x in leaves if x.requires_grad]
        assert all(x.dtype == torch.float32 for x in found_gradients)

        grad = torch.ones_like(reference(*inputs))
        expected_gradients = gradients(reference, halved, grad)
        for one, other in zip(found_gradients, expected_gradients, strict=True):
            scale = other.abs().max()
            assert_close(one / scale, other / scale, dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_leaves_double_precision_alone(make_case, dtype):
    case = make_case()

    with torch.autocast(case.value.device.type, dtype=dtype):
        found = ms_deform_attn_fused(*case.fused[:4], case.offsets.to(dtype), case.logits.float())

    assert found.dtype == torch.float64


def test_the_module_takes_references_of_less_precision(make_case, device):
    module = MultiScaleDeformableAttention(embed_dim=12, num_heads=3, num_levels=5, num_points=2)
    module.double().to(device)
    case = make_case(channels=4)
    query = torch.randn(2, 13, 12, dtype=torch.float64, device=device)

    found = module(
        query,
        case.reference.float(),
        case.value.flatten(2),
        spatial_shapes=case.shapes,
        level_start_index=case.starts,
    )

    assert found.dtype == torch.float64


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_the_sum_in_any_order_is_announced(make_case):
    case = make_case()
    grad = torch.ones(2, 13, 36, dtype=torch.float64, device=case.value.device)

    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            OPS.ms_deform_attn_fused_backward(grad, *case.fused, [True] * 4)
    finally:
        torch.use_deterministic_algorithms(False)


# By test id: the input that is spoiled, how, and what the message must match.
REFUSED = {
    "rank": (
        "value",
        lambda x: x[0],
        r"value must have 4 dimensions \(B, S, M, C\), got 3",
    ),
    "heads": (
        "offsets",
        lambda x: x[:, :, :2],
        r"sampling_offsets must .* with size 3 in dimension 2, got \[2, 13, 2",
    ),
    "queries": (
        "logits",
        lambda x: x[:, :7],
        r"attention_logits must be .* with size 13 in dimension 1, got \[2, 7",
    ),
    "points": (
        "logits",
        lambda x: x[..., :1],
        r"attention_logits must be .* with size 2 in dimension 4",
    ),
    "levels": (
        "shapes",
        lambda x: x[:4],
        r"spatial_shapes must be \(L, 2\) with size 5 in dimension 0, got \[4, 2\]",
    ),
    "integers": (
        "shapes",
        lambda x: x.float(),
        "spatial_shapes must be int64 or int32, got Float",
    ),
    "coordinates": (
        "reference",
        lambda x: x.half(),
        "reference_points must be Float with a value of Float, got Half",
    ),
    "reference levels": (
        "reference",
        lambda x: x[:, :, :2],
        "must be for 5 levels or for 1, got 2",
    ),
    "reference size": (
        "reference",
        lambda x: x[..., :1],
        "2 or 4 coordinates in their last dimension, got 1",
    ),
    "half offsets": (
        "offsets",
        lambda x: x.half(),
        "sampling_offsets must be Float with a value of Float, got Half",
    ),
    "type": (
        "value",
        lambda x: x.long(),
        "value must be float64, float32, float16 or bfloat16, got Long",
    ),
    "weights": (
        "logits",
        lambda x: x.double(),
        "attention_logits must be Float with a value of Float, got Double",
    ),
}


@pytest.mark.parametrize(("name", "spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_inputs_that_do_not_fit_are_named(make_case, name, spoil, message):
    case = make_case(dtype=torch.float32)
    setattr(case, name, spoil(getattr(case, name)))

    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn_fused(*case.fused)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_levels_that_are_not_the_tokens_are_named(make_case):
    case = make_case(dtype=torch.float32)
    tokens = case.value.shape[1]
    message = f"spatial_shapes sum to {tokens} tokens but value has {tokens - 1}"
    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn_fused(case.value[:, 1:], *case.fused[1:])

    # The product of the larger sides is no int64.
    for side in (2**24, 2**32):
        shapes = torch.tensor([[side, side]] * 5)
        message = rf"must be below 16777216, got \({side}, {side}\) for level 0"
        with pytest.raises(RuntimeError, match=message):
            ms_deform_attn_fused(case.value, shapes, *case.fused[2:])

    case.starts[2] += 1
    with pytest.raises(RuntimeError, match=r"level_start_index of level 2 must be 47, .* got 48"):
        ms_deform_attn_fused(*case.fused)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_tensors_on_other_devices_are_named(make_case):
    case = make_case(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="attention_logits is on cpu but value is on cuda:0"):
        ms_deform_attn_fused(*case.fused[:5], case.logits.cpu())
