"""Deformable attention against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from salience_detr.layers.ms_deform_attn import (
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_reference,
    sampling_locations_from_offsets,
)

SHAPES = torch.tensor([[2, 3], [1, 2]])
STARTS = torch.tensor([0, 6])


def sample(x: float, y: float, level: int = 0) -> float:
    """Sample a level at one point, for one query, head and channel.

    The tokens hold 0 to 7: level 0 is [[0, 1, 2], [3, 4, 5]], level 1 is [[6, 7]].
    """
    value = torch.arange(8.0).view(1, 8, 1, 1)
    locations = torch.full((1, 1, 1, 2, 1, 2), -9.0)
    locations[0, 0, 0, level, 0] = torch.tensor([x, y])
    weights = torch.ones(1, 1, 1, 2, 1)
    return ms_deform_attn_reference(value, SHAPES, STARTS, locations, weights).item()


def test_pixel_centers_read_the_pixel():
    assert sample(0.5 / 3, 0.5 / 2) == pytest.approx(0, abs=1e-5)
    assert sample(2.5 / 3, 1.5 / 2) == pytest.approx(5)
    assert sample(1.5 / 2, 0.5, level=1) == pytest.approx(7)


def test_between_pixels_values_are_interpolated():
    # Halfway between 1, 2 (upper row) and 4, 5 (lower row).
    assert sample(2 / 3, 0.5) == pytest.approx(3)


def test_outside_the_map_there_are_zeros():
    # On the right edge half of the weight falls outside: 0.5 * (2 + 5) / 2.
    assert sample(1.0, 0.5) == pytest.approx(1.75)
    assert sample(1.5, 0.5) == 0


def test_two_dimensional_references_are_shifted_in_pixels():
    reference = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2)
    offsets = torch.tensor([3.0, -1.0]).view(1, 1, 1, 1, 1, 2)
    found = sampling_locations_from_offsets(reference, offsets, torch.tensor([[4, 6]]))
    assert found.flatten().tolist() == [1.0, 0.25]  # 0.5 + 3 / 6, 0.5 - 1 / 4


def test_four_dimensional_references_are_shifted_in_half_boxes():
    reference = torch.tensor([0.5, 0.5, 0.4, 0.2]).view(1, 1, 1, 4)
    offsets = torch.tensor([[2.0, -1.0], [0.0, 0.0]]).view(1, 1, 1, 1, 2, 2)
    found = sampling_locations_from_offsets(reference, offsets, torch.tensor([[4, 6]]))
    # 0.5 + 2 / 2 points * 0.4 / 2 = 0.7, 0.5 - 1 / 2 * 0.2 / 2 = 0.45
    assert found.flatten().tolist() == pytest.approx([0.7, 0.45, 0.5, 0.5])


def test_other_references_are_refused():
    reference = torch.zeros(1, 1, 1, 3)
    offsets = torch.zeros(1, 1, 1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"2 or 4 coordinates.*got 3"):
        sampling_locations_from_offsets(reference, offsets, torch.tensor([[1, 1]]))


def test_the_fused_operator_equals_the_chain():
    value = torch.randn(2, 8, 2, 4)
    reference = torch.rand(2, 5, 2, 2)
    offsets = torch.randn(2, 5, 2, 2, 3, 2)
    logits = torch.randn(2, 5, 2, 2, 3)

    locations = sampling_locations_from_offsets(reference, offsets, SHAPES)
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    expected = ms_deform_attn(value, SHAPES, STARTS, locations, weights)

    found = ms_deform_attn_fused(value, SHAPES, STARTS, reference, offsets, logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dims", [2, 4])
def test_gradients_are_right(dims):
    value = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(1, 3, 2, dims, dtype=torch.float64) * 0.8 + 0.1
    offsets = torch.randn(1, 3, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(v, o, a):
        return ms_deform_attn_fused(v, SHAPES, STARTS, reference, o, a)

    assert torch.autograd.gradcheck(run, (value, offsets, logits))


def test_half_precision_values_are_sampled_in_single_precision():
    half = torch.randn(1, 8, 2, 4).to(torch.bfloat16)
    locations = torch.rand(1, 3, 2, 2, 2, 2)
    weights = torch.rand(1, 3, 2, 2, 2)

    found = ms_deform_attn_reference(half, SHAPES, STARTS, locations, weights)
    expected = ms_deform_attn_reference(half.float(), SHAPES, STARTS, locations, weights)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_padded_values_do_not_matter_to_the_module():
    module = MultiScaleDeformableAttention(embed_dim=8, num_heads=2, num_levels=2, num_points=2)
    torch.nn.init.normal_(module.value_proj.bias)
    query = torch.randn(1, 4, 8)
    reference = torch.rand(1, 4, 2, 2)
    value = torch.randn(1, 8, 8)
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 5] = True
    options = {"spatial_shapes": SHAPES, "level_start_index": STARTS, "padding_mask": mask}

    before = module(query, reference, value, **options)
    value[0, 5] += 100
    assert torch.equal(module(query, reference, value, **options), before)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"embed_dim \(10\).*num_heads \(4\)"):
        MultiScaleDeformableAttention(embed_dim=10, num_heads=4)
