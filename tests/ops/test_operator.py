"""The compiled operator against the PyTorch reference, at its borders, and as part of PyTorch's machinery."""

from __future__ import annotations

import itertools

import pytest
import torch

from salience_detr.layers.ms_deform_attn import (
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations_from_offsets,
)

OPS = torch.ops.salience_detr
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
HALF = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALF]


def assert_close(found, expected, dtype):
    torch.testing.assert_close(
        found.double(), expected.double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def gradients(function, inputs, grad_output):
    """Gradients for all inputs but the two that describe the levels, in float64."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    output = function(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    return [x.double() for x in torch.autograd.grad(output, wanted, grad_output.to(output.dtype))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("channels", [1, 30, 32, 64, 71])
def test_both_forms_equal_the_pytorch_form(make_case, dtype, dims, channels):
    case = make_case(
        dtype=dtype, dims=dims, channels=channels, reference_levels=1 if channels == 64 else None
    )
    for function, reference, inputs in (
        (ms_deform_attn, ms_deform_attn_reference, case.plain),
        (ms_deform_attn_fused, ms_deform_attn_fused_reference, case.fused),
    ):
        expected = reference(*inputs)
        found = function(*inputs)
        assert found.dtype == dtype and found.is_contiguous()
        assert_close(found, expected, dtype)
        grad_output = torch.randn_like(expected)
        for one, other in zip(
            gradients(function, inputs, grad_output),
            gradients(reference, inputs, grad_output),
            strict=True,
        ):
            scale = other.abs().max().clamp(min=1)
            assert_close(one / scale, other / scale, dtype)


def test_the_gradients_of_a_training_step_agree_to_ten_digits(make_case):
    case = make_case(
        channels=32, heads=8, queries=50, levels=[(20, 30), (10, 15), (5, 8), (3, 4)], points=4
    )
    grad_output = torch.randn_like(ms_deform_attn_fused(*case.fused))
    found = gradients(ms_deform_attn_fused, case.fused, grad_output)
    expected = gradients(ms_deform_attn_fused_reference, case.fused, grad_output)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.abs().max()


@pytest.mark.parametrize("dims", [0, 2, 4])
def test_each_gradient_is_the_same_whatever_else_is_asked_for(make_case, dims):
    case = make_case(channels=32, dims=max(dims, 2))
    inputs = case.fused if dims else case.plain
    backward = OPS.ms_deform_attn_fused_backward if dims else OPS.ms_deform_attn_backward
    count = 4 if dims else 3
    grad = torch.randn(2, 13, 96, dtype=torch.float64).to(case.value.device)
    whole = backward(grad, *inputs, [True] * count)
    for needed in itertools.product([False, True], repeat=count):
        for found, expected, wanted in zip(
            backward(grad, *inputs, list(needed)), whole, needed, strict=True
        ):
            if wanted:
                torch.testing.assert_close(found, expected)
            else:
                assert found.numel() == 0


def test_second_derivatives_are_refused(make_case):
    case = make_case()
    case.logits.requires_grad_()
    (grad,) = torch.autograd.grad(
        ms_deform_attn_fused(*case.fused).square().sum(), case.logits, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.square().sum().backward()


@pytest.mark.parametrize("dims", [0, 2, 4])
def test_the_derivatives_are_those_of_the_function(make_case, dims):
    case = make_case(
        batch=1,
        queries=3,
        heads=2,
        channels=3,
        levels=[(3, 4), (2, 2)],
        dims=max(dims, 2),
        spread=0.7,
    )
    function, inputs = (ms_deform_attn_fused, case.fused) if dims else (ms_deform_attn, case.plain)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    assert torch.autograd.gradcheck(function, tuple(inputs), nondet_tol=1e-10)


def plain_at(make_case, x, *, dtype=torch.float32, value=None):
    """One query that reads, from level 0 of 1 x 4 pixels 1, 2, 3, 4, the location ``x`` pixels from the left edge."""
    case = make_case(
        batch=1, queries=1, heads=1, channels=1, levels=[(1, 4)], points=1, dtype=dtype
    )
    values = torch.tensor([1.0, 2, 3, 4]) if value is None else torch.tensor(value)
    location = torch.tensor([x / 4, 0.5], dtype=torch.float32).view(1, 1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, 1)
    return (
        values.view(1, 4, 1, 1).to(case.value),
        case.shapes,
        case.starts,
        location.to(case.value.device),
        weight.to(case.value),
    )


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.5, 1.0),  # the center of the first pixel
        (0.0, 0.5),  # half outside
        (-0.5, 0.0),  # a whole pixel outside
        (-0.25, 0.25),
        (4.0, 2.0),
        (4.5, 0.0),
        (2.75, 3.0 * 0.75 + 2.0 * 0 + 4.0 * 0.25),
        (-100.0, 0.0),
        (float("nan"), 0.0),
        (float("inf"), 0.0),
        (float("-inf"), 0.0),
        (1e30, 0.0),
        (-1e30, 0.0),
    ],
)
def test_locations_at_and_beyond_the_borders(make_case, x, expected):
    inputs = plain_at(make_case, x)
    assert ms_deform_attn(*inputs).item() == pytest.approx(expected)
    grad = torch.ones(1, 1, 1, device=inputs[0].device)
    for gradient in OPS.ms_deform_attn_backward(grad, *inputs, [True, True, True]):
        assert gradient.isfinite().all()
        if expected == 0.0 and x != -0.5:
            assert not gradient.any()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("form", ["locations", "points", "boxes", "reference", "box"])
def test_what_is_not_finite_lies_outside(make_case, number, axis, form):
    case = make_case(channels=32, dims=4 if form in ("boxes", "box") else 2, dtype=torch.float32)
    at = 0 if axis == "x" else 1
    samples = torch.zeros(2, 13, 3, 5, 2, dtype=torch.bool)  # those that are moved away
    if form in ("reference", "box"):
        case.reference[1, 3, 0, at + (2 if form == "box" else 0)] = number
        samples[1, 3, :, 0] = True
        assert case.offsets[1, 3, :, 0, :, at].abs().min() > 1e-3
    else:
        case.offsets[0, 5, 1, 2, 1, at] = number
        samples[0, 5, 1, 2, 1] = True
    operator, inputs = (
        (ms_deform_attn, case.plain) if form == "locations" else (ms_deform_attn_fused, case.fused)
    )
    found = operator(*inputs)
    # Samples without weight give nothing either, once the softmax is done.
    locations = sampling_locations_from_offsets(case.reference, case.offsets, case.shapes)
    weights = case.logits.flatten(3).softmax(-1).view_as(case.logits)
    if form == "locations":
        locations, weights = inputs[3:]
    samples = samples.to(locations.device)
    expected = ms_deform_attn_reference(
        *inputs[:3], locations.where(~samples[..., None], 0.5), weights.where(~samples, 0)
    )
    assert_close(found, expected, torch.float32)
    reference = ms_deform_attn_reference if form == "locations" else ms_deform_attn_fused_reference
    assert_close(reference(*inputs), expected, torch.float32)
    for gradient in gradients(operator, inputs, torch.randn_like(found)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_the_weight_of_a_sample_outside_does_not_matter(make_case, number):
    inputs = make_case(channels=32, dtype=torch.float32).plain
    locations, weights = inputs[3:]
    locations[0, 5, 1, 3, 1], weights[0, 5, 1, 3, 1] = 3.0, 0.0
    expected = ms_deform_attn(*inputs)
    grad = torch.randn_like(expected)
    expected_gradients = gradients(ms_deform_attn, inputs, grad)
    weights[0, 5, 1, 3, 1] = number
    assert torch.equal(ms_deform_attn(*inputs), expected)
    for found, wanted in zip(
        gradients(ms_deform_attn, inputs, grad), expected_gradients, strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_a_sample_just_inside_the_right_edge_does_not_read_the_next_row(make_case):
    # Here x + 1 rounds to 5, which would make 4 the left corner of a map of 4 columns.
    case = make_case(
        batch=1, queries=1, heads=1, channels=1, levels=[(2, 4)], points=1, dtype=torch.float32
    )
    value = torch.tensor([1.0, 1, 1, 1, 1e6, 1e6, 1e6, 1e6]).view(1, 8, 1, 1).to(case.value)
    reference = (
        torch.tensor([0.125, 0.25]).view(1, 1, 1, 2).to(case.value)
    )  # the center of the first pixel
    offsets = torch.tensor([4 - 2**-22, 0]).view(1, 1, 1, 1, 1, 2).to(case.value)
    found = ms_deform_attn_fused(
        value, case.shapes, case.starts, reference, offsets, torch.zeros_like(case.logits)
    )
    assert found.item() == pytest.approx(2**-22, rel=1e-3)


def test_an_infinite_value_beside_the_map_is_not_multiplied_by_zero(make_case):
    # At x = 4 the right corner lies outside; in memory the next level would follow there.
    inputs = plain_at(make_case, 4.0, value=[float("inf"), 2.0, 3.0, 4.0])
    assert ms_deform_attn(*inputs).item() == pytest.approx(2.0)
    inputs = plain_at(make_case, 0.0, value=[1.0, 2.0, 3.0, float("inf")])
    assert ms_deform_attn(*inputs).item() == pytest.approx(0.5)


def test_gradients_of_samples_outside_are_written_as_zero(make_case):
    case = make_case(channels=32, spread=1e4, dtype=torch.float32)
    grad = torch.ones(2, 13, 96, device=case.value.device)
    poison = torch.full_like(
        case.offsets, float("nan")
    )  # likely to be the memory that the gradient gets
    del poison
    found = OPS.ms_deform_attn_fused_backward(grad, *case.fused, [True] * 4)
    expected = gradients(ms_deform_attn_fused_reference, case.fused, grad)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, torch.float32)


@pytest.mark.parametrize("batch", [1, 65, 80, 154])
def test_any_batch_size_works(make_case, batch):
    case = make_case(batch=batch, queries=17, levels=[(3, 2), (1, 1)], dtype=torch.float32)
    expected = ms_deform_attn_fused_reference(*case.fused)
    assert_close(ms_deform_attn_fused(*case.fused), expected, torch.float32)
    grad = torch.randn_like(expected)
    for one, other in zip(
        gradients(ms_deform_attn_fused, case.fused, grad),
        gradients(ms_deform_attn_fused_reference, case.fused, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_levels_may_be_described_in_32_bits(make_case):
    case = make_case()
    expected = ms_deform_attn_fused(*case.fused)
    case.shapes, case.starts = case.shapes.int(), case.starts.int()
    assert torch.equal(ms_deform_attn_fused(*case.fused), expected)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"levels": [(0, 5)]}], ids=str)
def test_empty_inputs_give_empty_or_zero_results(make_case, sizes):
    case = make_case(dtype=torch.float32, **sizes)
    output = ms_deform_attn_fused(*case.fused)
    assert output.shape == (case.value.shape[0], case.offsets.shape[1], 36)
    assert not output.any()
    grads = gradients(ms_deform_attn_fused, case.fused, torch.ones_like(output))
    shapes = [x.shape for x in case.fused if x.is_floating_point()]
    assert [x.shape for x in grads] == shapes and not any(x.any() for x in grads)


def test_strides_and_storage_offsets_do_not_matter(make_case):
    case = make_case(dtype=torch.float32, channels=8)

    def scattered(x):
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 7, dtype=x.dtype, device=x.device)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    inputs = [scattered(x) for x in case.fused]
    assert not inputs[0].is_contiguous() and inputs[0].storage_offset() == 1
    assert torch.equal(ms_deform_attn_fused(*inputs), ms_deform_attn_fused(*case.fused))
    grad = torch.randn(2, 39, 24, device=case.value.device)[:, ::3]
    for one, other in zip(
        OPS.ms_deform_attn_fused_backward(grad, *inputs, [True] * 4),
        OPS.ms_deform_attn_fused_backward(grad.contiguous(), *case.fused, [True] * 4),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def all_results(case):
    grad = torch.ones(
        *case.offsets.shape[:2], case.value.shape[2] * case.value.shape[3], dtype=case.value.dtype
    )
    grads = OPS.ms_deform_attn_fused_backward(grad, *case.fused, [True] * 4)
    return [OPS.ms_deform_attn_fused(*case.fused), OPS.ms_deform_attn(*case.plain), *grads]


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize("heads", [1, 8])  # one head shares its queries out over the threads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set_and_every_run_gives_the_same_bits(
    make_case, monkeypatch, heads, dtype
):
    case = make_case(queries=301, heads=heads, channels=71, dtype=dtype)
    torch.set_num_threads(2)
    try:
        monkeypatch.delenv("SALIENCE_DETR_CPU", raising=False)
        expected = all_results(case)
        for instructions in ("", "baseline", "avx2", "avx512"):
            monkeypatch.setenv("SALIENCE_DETR_CPU", instructions)
            assert all(map(torch.equal, all_results(case), expected)), instructions
    finally:
        torch.set_num_threads(1)
    for one, other in zip(
        all_results(case), expected, strict=True
    ):  # one thread adds in another order
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_an_unknown_instruction_set_is_refused(make_case, monkeypatch):
    monkeypatch.setenv("SALIENCE_DETR_CPU", "sse9")
    with pytest.raises(
        (RuntimeError, ValueError), match="must be baseline, avx2 or avx512, got 'sse9'"
    ):
        ms_deform_attn_fused(*make_case().fused)


@pytest.mark.parametrize("dims", [2, 4])
def test_pytorch_accepts_the_registration(make_case, dims):
    case = make_case(batch=1, queries=5, dims=dims, channels=4, dtype=torch.float32)
    grad = torch.randn(1, 5, 12, device=case.value.device)
    for operator, inputs in (
        (OPS.ms_deform_attn, case.plain),
        (OPS.ms_deform_attn_fused, case.fused),
    ):
        leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
        torch.library.opcheck(operator, tuple(leaves))
    needed = [True, False, True]
    torch.library.opcheck(OPS.ms_deform_attn_backward, (grad, *case.plain, needed))
    torch.library.opcheck(OPS.ms_deform_attn_fused_backward, (grad, *case.fused, [True, *needed]))


def test_it_compiles_into_one_graph_for_any_size(make_case):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *inputs: ms_deform_attn_fused(*inputs).relu() * 2,
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for queries, batch in ((5, 2), (9, 3), (13, 1)):
        inputs = make_case(queries=queries, batch=batch, dtype=torch.float32).fused
        assert torch.equal(compiled(*inputs), ms_deform_attn_fused(*inputs).relu() * 2)
        grad = torch.ones(batch, queries, 36, device=inputs[0].device)
        for one, other in zip(
            gradients(compiled, inputs, grad),
            gradients(lambda *x: ms_deform_attn_fused(*x).relu() * 2, inputs, grad),
            strict=True,
        ):
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
        assert_close(found, reference(inputs[0].to(dtype), *inputs[1:]), dtype)
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        with torch.autocast(device, dtype=dtype):
            function(*leaves).float().sum().backward()
        found = [x.grad for x in leaves if x.requires_grad]
        assert all(x.dtype == torch.float32 for x in found)
        halved = (inputs[0].to(dtype), *inputs[1:])
        for one, other in zip(
            found, gradients(reference, halved, torch.ones_like(reference(*inputs))), strict=True
        ):
            scale = other.abs().max()
            assert_close(one / scale, other / scale, dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_leaves_double_precision_alone(make_case, dtype):
    case = make_case()
    with torch.autocast(case.value.device.type, dtype=dtype):
        found = ms_deform_attn_fused(*case.fused[:4], case.offsets.to(dtype), case.logits.float())
    assert found.dtype == torch.float64


def test_the_module_takes_references_of_less_precision(make_case, device):
    module = (
        MultiScaleDeformableAttention(embed_dim=12, num_heads=3, num_levels=5, num_points=2)
        .double()
        .to(device)
    )
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


REFUSED = {
    "rank": ("value", lambda x: x[0], r"value must have 4 dimensions \(B, S, M, C\), got 3"),
    "heads": ("offsets", lambda x: x[:, :, :2], r"sampling_offsets must .* with size 3 in dimension 2, got \[2, 13, 2"),
    "queries": ("logits", lambda x: x[:, :7], r"attention_logits must be .* with size 13 in dimension 1, got \[2, 7"),
    "points": ("logits", lambda x: x[..., :1], r"attention_logits must be .* with size 2 in dimension 4"),
    "levels": ("shapes", lambda x: x[:4], r"spatial_shapes must be \(L, 2\) with size 5 in dimension 0, got \[4, 2\]"),
    "integers": ("shapes", lambda x: x.float(), "spatial_shapes must be int64 or int32, got Float"),
    "coordinates": ("reference", lambda x: x.half(), "reference_points must be Float with a value of Float, got Half"),
    "reference levels": ("reference", lambda x: x[:, :, :2], "must be for 5 levels or for 1, got 2"),
    "reference size": ("reference", lambda x: x[..., :1], "2 or 4 coordinates in their last dimension, got 1"),
    "half offsets": ("offsets", lambda x: x.half(), "sampling_offsets must be Float with a value of Float, got Half"),
    "type": ("value", lambda x: x.long(), "value must be float64, float32, float16 or bfloat16, got Long"),
    "weights": ("logits", lambda x: x.double(), "attention_logits must be Float with a value of Float, got Double"),
}  # fmt: skip


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
    with pytest.raises(
        RuntimeError, match=f"spatial_shapes sum to {tokens} tokens but value has {tokens - 1}"
    ):
        ms_deform_attn_fused(case.value[:, 1:], *case.fused[1:])
    for side in (2**24, 2**32):  # whose product is no int64
        with pytest.raises(
            RuntimeError, match=rf"must be below 16777216, got \({side}, {side}\) for level 0"
        ):
            ms_deform_attn_fused(case.value, torch.tensor([[side, side]] * 5), *case.fused[2:])
    case.starts[2] += 1
    with pytest.raises(RuntimeError, match=r"level_start_index of level 2 must be 47, .* got 48"):
        ms_deform_attn_fused(*case.fused)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_tensors_on_other_devices_are_named(make_case):
    case = make_case(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="attention_logits is on cpu but value is on cuda:0"):
        ms_deform_attn_fused(*case.fused[:5], case.logits.cpu())
