"""Self-attention with positions, against PyTorch's module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salience_detr.layers.self_attention import PositionalSelfAttention, additive_mask

B, N, D = 2, 5, 8


def masked_keys(*last):
    """Return (B, 1, N), True for the last keys of each image."""
    masked = torch.zeros(B, 1, N, dtype=torch.bool)
    for image, number in enumerate(last):
        masked[image, :, N - number :] = True
    return masked


@pytest.mark.parametrize("masked", [None, masked_keys(0, 2), torch.eye(N, dtype=torch.bool)[None]])
def test_it_is_pytorchs_attention_with_equal_queries_and_keys(masked):
    torch.manual_seed(0)
    attention = PositionalSelfAttention(embed_dim=D, num_heads=2).double()
    expected_attention = nn.MultiheadAttention(D, 2, batch_first=True).double()
    nn.init.normal_(attention.in_proj_bias)
    expected_attention.load_state_dict(attention.state_dict())

    with_position = torch.randn(B, N, D, dtype=torch.float64)
    value = torch.randn(B, N, D, dtype=torch.float64)
    mask, head_mask = None, None
    if masked is not None:
        mask = additive_mask(masked, value)
        head_mask = masked.expand(B, N, N).repeat_interleave(2, dim=0)

    found = attention(with_position, value, mask)
    expected, _ = expected_attention(with_position, with_position, value, attn_mask=head_mask)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_mask_is_added_to_the_logits():
    mask = additive_mask(torch.tensor([False, True]), torch.zeros(1, dtype=torch.bfloat16))
    assert mask.dtype == torch.bfloat16
    assert mask.tolist() == [0, -torch.inf]
