"""Maps of what speaks for a detection: gradients times activations, without padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from salience_detr.visualization import (
    class_activation,
    draw_attribution,
    inspect,
)
from salience_detr.visualization.attribution import (
    merge_levels,
    positive_sums,
    unpadded_sizes,
    weigh_by_mean,
)
from salience_detr.visualization.panels import (
    resize_map,
)
from tests.visualization.images import LANDSCAPE, PORTRAIT, image_of


def test_attribution_leaves_no_gradients_in_the_model(predictor):
    image = image_of(64, 64)

    attributions = class_activation(predictor, image)

    assert all(x.grad is None for x in predictor.model.parameters())
    assert attributions[0].score == pytest.approx(inspect(predictor, image).scores.max())


def test_attribution_is_nothing_where_no_query_reads(predictor):
    # The finest level is given no attention.
    for layer in predictor.model.decoder.layers:
        bias = layer.cross_attention.attention_weights.bias.data.view(4, 3, 4)
        bias[:, 0] = -1e4
    (attribution,) = class_activation(predictor, image_of(*LANDSCAPE), count=1)
    assert [x.max() > 0 for x in attribution.memory_levels] == [False, True, True]
    assert attribution.memory.shape == LANDSCAPE
    assert attribution.memory.max() == 1
    assert attribution.backbone.max() == 1

    # Nothing is read.
    for layer in predictor.model.decoder.layers:
        nn.init.zeros_(layer.cross_attention.value_proj.weight)
    (attribution,) = class_activation(predictor, image_of(*LANDSCAPE), count=1)
    assert not any(x.any() for x in attribution.memory_levels)
    assert not attribution.memory.any()
    assert not attribution.backbone.any()
    assert draw_attribution([attribution]).dtype == np.uint8


def test_attribution_is_gradient_times_memory_where_that_is_positive():
    # Two channels of a 1 x 3 map, the last place padded.
    memory = torch.tensor([[[[1.0, 2.0, 9.0]], [[3.0, 4.0, 9.0]]]])
    gradient = torch.tensor([[[[2.0, -1.0, 9.0]], [[1.0, 0.25, 9.0]]]])

    # 1*2 + 3*1 = 5 and -2 + 1 = -1, which is cut off.
    assert positive_sums([memory * gradient], [(1, 2)])[0].tolist() == [[5, 0]]

    # Means over the two places: 0.5 and 0.625; 1*0.5 + 3*0.625 and 2*0.5 + 4*0.625.
    weighed = weigh_by_mean([memory], [gradient], [(1, 2)])
    assert positive_sums(weighed, [(1, 2)])[0].tolist() == [[2.375, 3.5]]


def test_the_maps_of_a_detection_leave_padding_out(predictor):
    (attribution,) = class_activation(predictor, image_of(*LANDSCAPE), count=1)
    outputs = inspect(predictor, image_of(*LANDSCAPE))
    assert [x.shape for x in attribution.memory_levels] == list(outputs.level_sizes)

    # 40 x 72 of 64 x 96 padded pixels are 5 x 9 of 8 x 12 places.
    maps = [torch.zeros(1, 2, 8, 12), torch.zeros(1, 2, 1, 1)]
    assert unpadded_sizes(maps, (40, 72), torch.zeros(1, 3, 64, 96)) == [(5, 9), (1, 1)]


def test_frozen_backbones_and_switched_off_gradients_do_no_harm(predictor):
    image = image_of(*PORTRAIT)
    expected = class_activation(predictor, image)

    for parameter in predictor.model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        frozen = class_activation(predictor, image)

    assert [x.query for x in frozen] == [x.query for x in expected]
    np.testing.assert_allclose(frozen[0].backbone, expected[0].backbone, atol=1e-4)
    np.testing.assert_allclose(frozen[0].memory, expected[0].memory, atol=1e-4)


def test_levels_are_merged_over_the_image():
    image = np.zeros((4, 8, 3), np.uint8)

    merged = merge_levels([np.array([[0.0, 1.0]]), np.ones((1, 1))], image)

    # The left quarter has the first column's 0 plus 1, the right quarter 1 plus 1, the highest.
    assert merged.shape == (4, 8)
    assert merged[0, 0] == 0.5
    assert merged[0, 7] == 1
    assert resize_map(np.array([[0.0, 4.0]]), np.zeros((1, 4, 3))).tolist() == [[0, 1, 3, 4]]
