"""Sine encodings against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from salience_detr.layers.position_encoding import (
    SinePositionEncoding,
    box_sine_encoding,
    sine_encoding,
)


def test_sines_and_cosines_are_interleaved_by_frequency():
    # Frequencies 2 pi and 2 pi / 10000^(2/4) = 2 pi / 100 at 0.25.
    found = sine_encoding(torch.tensor([0.25], dtype=torch.float64), 4)[0]
    slow = 0.25 * 2 * math.pi / 100
    assert found.tolist() == pytest.approx([1.0, 0.0, math.sin(slow), math.cos(slow)], abs=1e-12)


def test_positions_count_unpadded_elements_only():
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[:, :, 2:] = True  # two unpadded columns: centers at 0.25 and 0.75 of the width

    found = SinePositionEncoding(num_features=2)([mask], torch.float64)[0]

    # y features first: row 1 of 2 lies at 0.25; sin(pi/2) = 1, cos(pi/2) = 0.
    assert found[0].tolist() == pytest.approx([1, 0, 1, 0], abs=1e-5)
    assert found[1].tolist() == pytest.approx([1, 0, -1, 0], abs=1e-5)


def test_boxes_are_encoded_in_the_order_y_x_w_h():
    box = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    expected = torch.cat([sine_encoding(box[:, i], 8) for i in (1, 0, 2, 3)], dim=-1)
    assert torch.equal(box_sine_encoding(box, 8), expected)
