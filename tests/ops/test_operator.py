"""The compiled operator: its values and gradients, also at the borders of maps and beyond."""

from __future__ import annotations

import itertools

import pytest
import torch

from salience_detr.layers.ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations_from_offsets,
)
from tests.ops.checks import assert_close, gradients

OPS = torch.ops.salience_detr
HALF = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALF]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("channels", [1, 30, 32, 64, 71])
def test_fused_and_unfused_operator_equal_the_reference(make_case, dtype, dims, channels):
    # One reference point may serve all levels.
    reference_levels = 1 if channels == 64 else None
    case = make_case(dtype=dtype, dims=dims, channels=channels, reference_levels=reference_levels)

    for function, reference, inputs in (
        (ms_deform_attn, ms_deform_attn_reference, case.plain),
        (ms_deform_attn_fused, ms_deform_attn_fused_reference, case.fused),
    ):
        expected = reference(*inputs)
        found = function(*inputs)
        assert found.dtype == dtype and found.is_contiguous()
        assert_close(found, expected, dtype)

        grad_output = torch.randn_like(expected)
        found_gradients = gradients(function, inputs, grad_output)
        expected_gradients = gradients(reference, inputs, grad_output)
        for one, other in zip(found_gradients, expected_gradients, strict=True):
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
    all_gradients = backward(grad, *inputs, [True] * count)

    for needed in itertools.product([False, True], repeat=count):
        some_gradients = backward(grad, *inputs, list(needed))
        for found, expected, is_needed in zip(some_gradients, all_gradients, needed, strict=True):
            if is_needed:
                torch.testing.assert_close(found, expected)
            else:
                assert found.numel() == 0


def test_second_derivatives_are_refused(make_case):
    case = make_case()
    case.logits.requires_grad_()
    loss = ms_deform_attn_fused(*case.fused).square().sum()
    (grad,) = torch.autograd.grad(loss, case.logits, create_graph=True)

    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.square().sum().backward()


@pytest.mark.parametrize("dims", [0, 2, 4])
def test_the_derivatives_are_those_of_the_function(make_case, dims):
    sizes = {"batch": 1, "queries": 3, "heads": 2, "channels": 3, "levels": [(3, 4), (2, 2)]}
    case = make_case(**sizes, dims=max(dims, 2), spread=0.7)

    function, inputs = (ms_deform_attn_fused, case.fused) if dims else (ms_deform_attn, case.plain)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    assert torch.autograd.gradcheck(function, tuple(inputs), nondet_tol=1e-10)


def plain_at(make_case, x, *, dtype=torch.float32, value=None):
    """Return inputs of one query that reads one location of a level of 1 x 4 pixels.

    Args:
        make_case: the fixture.
        x: distance of the location from the left edge, in pixels.
        dtype: dtype of the case.
        value: the four pixels (default: 1, 2, 3, 4).
    """
    sizes = {"batch": 1, "queries": 1, "heads": 1, "channels": 1, "levels": [(1, 4)], "points": 1}
    case = make_case(**sizes, dtype=dtype)

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
@pytest.mark.parametrize("changed", ["locations", "points", "boxes", "reference", "box"])
def test_samples_that_are_not_finite_lie_outside(make_case, number, axis, changed):
    dims = 4 if changed in ("boxes", "box") else 2
    case = make_case(channels=32, dims=dims, dtype=torch.float32)

    # The number goes into a reference point or box, or into one offset.
    at = 0 if axis == "x" else 1
    samples = torch.zeros(2, 13, 3, 5, 2, dtype=torch.bool)  # those that are moved away
    if changed in ("reference", "box"):
        first_size = 2 if changed == "box" else 0
        case.reference[1, 3, 0, at + first_size] = number
        samples[1, 3, :, 0] = True
        assert case.offsets[1, 3, :, 0, :, at].abs().min() > 1e-3
    else:
        case.offsets[0, 5, 1, 2, 1, at] = number
        samples[0, 5, 1, 2, 1] = True

    operator, reference = ms_deform_attn_fused, ms_deform_attn_fused_reference
    inputs = case.fused
    if changed == "locations":
        operator, reference = ms_deform_attn, ms_deform_attn_reference
        inputs = case.plain
    found = operator(*inputs)

    # Samples without weight give nothing either, once the softmax is done.
    locations = sampling_locations_from_offsets(case.reference, case.offsets, case.shapes)
    weights = case.logits.flatten(3).softmax(-1).view_as(case.logits)
    if changed == "locations":
        locations, weights = inputs[3:]
    samples = samples.to(locations.device)
    locations = locations.where(~samples[..., None], 0.5)
    weights = weights.where(~samples, 0)
    expected = ms_deform_attn_reference(*inputs[:3], locations, weights)

    assert_close(found, expected, torch.float32)
    assert_close(reference(*inputs), expected, torch.float32)
    for gradient in gradients(operator, inputs, torch.randn_like(found)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_the_weight_of_a_sample_outside_does_not_matter(make_case, number):
    inputs = make_case(channels=32, dtype=torch.float32).plain
    locations, weights = inputs[3:]
    locations[0, 5, 1, 3, 1] = 3.0
    weights[0, 5, 1, 3, 1] = 0.0
    expected = ms_deform_attn(*inputs)
    grad = torch.randn_like(expected)
    expected_gradients = gradients(ms_deform_attn, inputs, grad)

    weights[0, 5, 1, 3, 1] = number
    found = ms_deform_attn(*inputs)
    found_gradients = gradients(ms_deform_attn, inputs, grad)

    assert torch.equal(found, expected)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sample_just_inside_the_right_edge_does_not_read_the_next_row(make_case):
    # Here x + 1 rounds to 5, which would make 4 the left corner of a map of 4 columns.
    sizes = {"batch": 1, "queries": 1, "heads": 1, "channels": 1, "levels": [(2, 4)], "points": 1}
    case = make_case(**sizes, dtype=torch.float32)
    value = torch.tensor([1.0, 1, 1, 1, 1e6, 1e6, 1e6, 1e6]).view(1, 8, 1, 1).to(case.value)
    center_of_first = torch.tensor([0.125, 0.25]).view(1, 1, 1, 2).to(case.value)
    offsets = torch.tensor([4 - 2**-22, 0]).view(1, 1, 1, 1, 1, 2).to(case.value)
    logits = torch.zeros_like(case.logits)

    found = ms_deform_attn_fused(value, case.shapes, case.starts, center_of_first, offsets, logits)

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

    # The gradient is likely to get the memory of the poison.
    poison = torch.full_like(case.offsets, float("nan"))
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
    found_gradients = gradients(ms_deform_attn_fused, case.fused, grad)
    expected_gradients = gradients(ms_deform_attn_fused_reference, case.fused, grad)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_levels_may_be_described_in_32_bits(make_case):
    case = make_case()
    expected = ms_deform_attn_fused(*case.fused)

    case.shapes = case.shapes.int()
    case.starts = case.starts.int()

    assert torch.equal(ms_deform_attn_fused(*case.fused), expected)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"levels": [(0, 5)]}], ids=str)
def test_empty_inputs_give_empty_or_zero_results(make_case, sizes):
    case = make_case(dtype=torch.float32, **sizes)

    output = ms_deform_attn_fused(*case.fused)
    assert output.shape == (case.value.shape[0], case.offsets.shape[1], 36)
    assert not output.any()

    grads = gradients(ms_deform_attn_fused, case.fused, torch.ones_like(output))
    shapes = [x.shape for x in case.fused if x.is_floating_point()]
    assert [x.shape for x in grads] == shapes
    assert not any(x.any() for x in grads)


def test_strides_and_storage_offsets_do_not_matter(make_case):
    case = make_case(dtype=torch.float32, channels=8)

    def scattered(x):
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 7, dtype=x.dtype, device=x.device)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    inputs = [scattered(x) for x in case.fused]
    assert not inputs[0].is_contiguous() and inputs[0].storage_offset() == 1
    assert torch.equal(ms_deform_attn_fused(*inputs), ms_deform_attn_fused(*case.fused))

    backward = OPS.ms_deform_attn_fused_backward
    grad = torch.randn(2, 39, 24, device=case.value.device)[:, ::3]
    found = backward(grad, *inputs, [True] * 4)
    expected = backward(grad.contiguous(), *case.fused, [True] * 4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def all_results(case):
    """Return the outputs of both operators, and the gradients of the fused one."""
    embed_dim = case.value.shape[2] * case.value.shape[3]
    grad = torch.ones(*case.offsets.shape[:2], embed_dim, dtype=case.value.dtype)
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

    # One thread adds in another order.
    for one, other in zip(all_results(case), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_an_unknown_instruction_set_is_refused(make_case, monkeypatch):
    monkeypatch.setenv("SALIENCE_DETR_CPU", "sse9")

    message = "must be baseline, avx2 or avx512, got 'sse9'"
    with pytest.raises((RuntimeError, ValueError), match=message):
        ms_deform_attn_fused(*make_case().fused)
