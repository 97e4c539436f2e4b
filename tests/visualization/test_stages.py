"""Stage outputs are what the model computed, and drawings show them in the right places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from salience_detr.layers import ms_deform_attn as operator_module
from salience_detr.layers.ms_deform_attn import ms_deform_attn_reference
from salience_detr.modeling.token_pyramid import TokenPyramid
from salience_detr.visualization import (
    class_activation,
    draw_attribution,
    draw_proposals,
    draw_salience_levels,
    draw_sampling_points,
    draw_selected_tokens,
    inspect,
)
from salience_detr.visualization.capture import captured_calls
from salience_detr.visualization.inside import (
    SamplingPoints,
    best_queries,
    token_cells,
)
from salience_detr.visualization.stages import attention_outside, closest_window, widest_window
from tests.visualization.images import LANDSCAPE, PORTRAIT, SMALL, image_of


def test_a_token_is_where_the_unpadded_image_has_it():
    # Two levels, 2 x 4 and 1 x 2 tokens; 2 x 3 and 1 x 2 of them are the image's, which is 30
    # wide and 20 high.
    tokens = TokenPyramid(
        features=torch.zeros(1, 10, 4),
        positions=torch.zeros(1, 10, 4),
        padding_mask=torch.zeros(1, 10, dtype=torch.bool),
        spatial_shapes_list=((2, 4), (1, 2)),
        valid_sizes=torch.tensor([[[3.0, 2.0], [2.0, 1.0]]]),
    )

    cells = token_cells(tokens, torch.tensor([6, 9]), (20, 30))

    assert cells.levels.tolist() == [0, 1]
    assert cells.grid.tolist() == [[2, 1], [1, 0]]
    # Row 1, column 2 of cells of 10 x 10; column 1 of cells of 15 x 20.
    assert cells.cells.tolist() == [[20, 10, 30, 20], [15, 0, 30, 20]]
    assert cells.centers.tolist() == [[25, 15], [22.5, 10]]


@pytest.mark.parametrize("size", [PORTRAIT, LANDSCAPE, SMALL])
def test_stage_outputs_are_what_the_model_computed_without_padding(predictor, size):
    image = image_of(*size)

    outputs = inspect(predictor, image)
    detections = predictor(image)

    assert outputs.strides == (8, 16, 32)
    assert outputs.image.shape == (*size, 3)
    assert [x.shape for x in outputs.salience] == list(outputs.level_sizes)

    # Tokens lie on the grid of their level, and inside the image.
    tokens = outputs.tokens
    heights, widths = np.array(outputs.level_sizes)[tokens.levels].T
    assert (tokens.grid[:, 1] < heights).all()
    assert (tokens.grid[:, 0] < widths).all()
    assert tokens.cells.min() >= 0
    assert (tokens.cells.max(0)[2:] <= [size[1] + 1e-3, size[0] + 1e-3]).all()

    # Ratios 0.25, 0.5 and 1 of the levels, of which the second encoder layer refines a half.
    num_tokens = []
    for (height, width), ratio in zip(outputs.level_sizes, (0.25, 0.5, 1.0), strict=True):
        num_tokens.append(int(height * width * ratio))
    total = sum(num_tokens)
    half = total // 2
    assert np.bincount(tokens.levels).tolist() == num_tokens
    assert outputs.layer_counts == (total, half)
    assert outputs.token_layers.tolist() == [2] * half + [1] * (total - half)

    # The last layer's boxes, clipped to the image, are the detections; the first the proposals.
    best = outputs.best_queries(1)[0]
    best_box = detections.pred_boxes.tensor[0].numpy()
    assert outputs.scores[best].max() == pytest.approx(detections.scores[0].item())
    clipped = np.clip(outputs.layer_boxes[-1, best], 0, [size[1], size[0]] * 2)
    np.testing.assert_allclose(clipped, best_box, atol=1e-4)
    np.testing.assert_allclose(outputs.layer_boxes[0], outputs.proposals.boxes, atol=1e-3)
    assert len(outputs.layer_boxes) == 3
    assert np.abs(outputs.layer_boxes[1] - outputs.layer_boxes[0]).max() > 0.1


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", [PORTRAIT, LANDSCAPE])
def test_the_sampling_points_give_the_attentions_output(predictor, size, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(operator_module, "is_compiled_for", lambda _: False)
    attention = predictor.model.decoder.layers[1].cross_attention
    with (
        captured_calls(attention) as calls,
        captured_calls(attention.value_proj) as values,
        captured_calls(predictor.model.token_pyramid) as pyramids,
    ):
        outputs = inspect(predictor, image_of(*size))

    # Locations of the image become those of the padded image.
    tokens = pyramids[0].output
    points = outputs.sampling[1]
    normalized = torch.from_numpy(points.locations) / torch.tensor([size[1], size[0]])
    locations = normalized * tokens.valid_ratios[0][:, None]
    assert tokens.valid_ratios.min() < 1  # else padding would not be tested

    value = values[0].output.masked_fill(tokens.padding_mask[..., None], 0)
    expected = ms_deform_attn_reference(
        value.unflatten(-1, (attention.num_heads, -1)),
        tokens.spatial_shapes,
        tokens.level_start_index,
        locations[None],
        torch.from_numpy(points.weights)[None],
    )
    expected = attention.output_proj(expected)
    torch.testing.assert_close(expected, calls[0].output, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(points.weights.sum((2, 3)), 1, rtol=1e-5)


def test_plain_proposals_are_the_best_tokens_without_suppression(predictor):
    image = image_of(*LANDSCAPE)
    suppressed = inspect(predictor, image)

    predictor.model.query_selection.iou_threshold = 1.0  # nothing overlaps more
    outputs = inspect(predictor, image)

    assert np.array_equal(outputs.proposals.tokens.cells, suppressed.plain_proposals.tokens.cells)
    np.testing.assert_allclose(outputs.proposals.boxes, suppressed.plain_proposals.boxes, atol=1e-3)
    assert not np.array_equal(suppressed.proposals.tokens.cells, outputs.proposals.tokens.cells)


def test_channel_orders_are_told_apart(predictor):
    image = image_of(*SMALL)
    image[..., 0] //= 3

    outputs = inspect(predictor, image[..., ::-1], channel_order="BGR")

    assert np.array_equal(outputs.image, image)
    assert np.array_equal(outputs.scores, inspect(predictor, image).scores)


def test_other_detectors_and_unknown_queries_are_errors(predictor):
    image = image_of(*SMALL)
    with pytest.raises(TypeError, match="not a str"):
        inspect("model.onnx", image)

    for call in (
        lambda: draw_sampling_points(inspect(predictor, image), 20),
        lambda: class_activation(predictor, image, queries=[20]),
        lambda: inspect(predictor, image).describe(-1),
    ):
        message = r"there is no query (20|-1): this image has \d+ queries"
        with pytest.raises(IndexError, match=message):
            call()

    with pytest.raises(ValueError, match="no attribution"):
        draw_attribution([])


def test_the_best_queries_are_sorted_and_at_least_one_is_returned():
    scores = np.array([[0.1, 0.2], [0.9, 0.0], [0.3, 0.6]])
    assert best_queries(scores, 3) == [1, 2, 0]
    assert best_queries(scores, 3, 0.5) == [1, 2]
    assert best_queries(scores, 3, 0.95) == [1]
    assert best_queries(scores, 1) == [1]


@pytest.mark.parametrize("size", [PORTRAIT, LANDSCAPE, SMALL, (1, 1), (32, 400)])
def test_every_drawing_is_an_image_and_leaves_the_original_alone(predictor, size):
    image = image_of(*size) if min(size) >= 32 else np.full((*size, 3), 99, np.uint8)
    before = image.copy()

    outputs = inspect(predictor, image)
    drawings = [
        draw_salience_levels(outputs),
        draw_selected_tokens(outputs),
        draw_proposals(outputs, count=3, score_threshold=0),
        draw_sampling_points(outputs),
        draw_sampling_points(outputs, 2),
        draw_attribution(class_activation(predictor, image, queries=[0, 2])),
    ]

    for drawn in drawings:
        assert drawn.dtype == np.uint8
        assert drawn.ndim == 3
        assert drawn.shape[2] == 3
        assert max(drawn.shape) < 3000
    assert not np.array_equal(drawings[3], drawings[4])
    assert np.array_equal(image, before)


def test_names_beyond_ascii_are_written(predictor):
    outputs = inspect(predictor, image_of(*SMALL))

    german = draw_proposals(replace(outputs, class_names=("Größe",) * 6))
    russian = draw_proposals(replace(outputs, class_names=("трещина",) * 6))

    assert not np.array_equal(german, russian)


def test_windows_hold_what_a_query_looks_at():
    image = np.zeros((100, 200, 3), np.uint8)
    locations = np.array([50.0, 40, 52, 42, 48, 38, 150, 90]).reshape(1, 1, 4, 2)
    points = SamplingPoints(locations, np.array([0.5, 0.3, 0.19, 0.01]).reshape(1, 1, 4))
    boxes = np.array([[45.0, 35, 55, 45]])

    window = closest_window(image, [points], boxes)

    # The light point far away is left out; the shape is the image's.
    assert window[0] < 45
    assert window[1] < 35
    assert 55 < window[2] < 80
    assert 45 < window[3] < 60
    assert (window[2] - window[0]) == pytest.approx(2 * (window[3] - window[1]))
    assert closest_window(image, [points], np.array([[0.0, 0, 200, 100]])) is None
    assert widest_window(image, [points]) == (0, 0, 200, 100)

    outside = SamplingPoints(np.array([[[[-20.0, 50], [230, 300]]]]), np.array([[[0.25, 0.75]]]))
    # Two pixels more than the points at the left and right; below, a quarter of the longer side.
    assert widest_window(image, [outside]) == (-22, 0, 232, 150)
    assert attention_outside(outside, image) == 1
    assert attention_outside(points, image) == 0
