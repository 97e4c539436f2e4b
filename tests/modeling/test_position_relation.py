"""The position relation against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from salience_detr.layers.self_attention import PositionalSelfAttention, additive_mask
from salience_detr.modeling.decoder import SalienceDecoder, SalienceDecoderLayer
from salience_detr.modeling.position_relation import PositionRelation, box_relations


def boxes(*rows):
    return torch.tensor([rows], dtype=torch.float64)


def test_relations_are_distances_in_sides_of_the_earlier_box_and_ratios_of_sides():
    earlier = boxes([0.2, 0.5, 0.1, 0.2], [0.5, 0.5, 0.4, 0.4])
    later = boxes([0.4, 0.3, 0.2, 0.1])

    # dx = 0.2 and 0.1, dy = 0.2: in sides 2 and 1, then 1 / 4 and 1 / 2.
    found = box_relations(earlier, later, eps=0.0)[0, :, 0]
    expected = [[3, 2, 1 / 2, 2], [5 / 4, 3 / 2, 2, 4]]
    assert found.exp().tolist() == [pytest.approx(row) for row in expected]


def test_logits_are_of_the_sines_of_a_hundredfold_relation():
    relation = PositionRelation(num_heads=1, num_features=4).double()
    nn.init.zeros_(relation.projection.bias)

    # Features of dx alone: log 3 times 100 and 100 / 10000^(2/4).
    fast, slow = 100 * math.log(3), math.log(3)
    for feature, value in enumerate([math.sin(fast), math.cos(fast), math.sin(slow)]):
        weight = torch.zeros(1, 16, dtype=torch.float64)
        weight[0, feature] = 1
        relation.projection.weight.data = weight
        found = relation(boxes([0.2, 0.5, 0.1, 0.2]), boxes([0.4, 0.3, 0.2, 0.1]))
        assert found.shape == (1, 1, 1, 1)
        assert found.item() == pytest.approx(max(0.0, value), abs=0.02)


def test_each_head_of_an_attention_has_logits_of_its_own():
    attention = PositionalSelfAttention(embed_dim=8, num_heads=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    masked = torch.rand(2, 5, 5) < 0.3
    masked[:, range(5), range(5)] = False
    mask = additive_mask(masked, x)

    same = mask[:, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(attention(x, x, same), attention(x, x, mask))
    other = torch.stack([mask, torch.zeros_like(mask)], dim=1)
    assert not torch.allclose(attention(x, x, other), attention(x, x, mask))


def test_another_number_of_heads_than_the_attention_has_is_refused():
    layer = SalienceDecoderLayer(embed_dim=16, num_heads=2, ffn_dim=8)
    with pytest.raises(ValueError, match=r"position_relation has 8 heads, .* of the decoder 2"):
        relation = PositionRelation(num_heads=8)
        SalienceDecoder(layers=[layer], embed_dim=16, num_classes=2, position_relation=relation)
