"""Matching against exhaustive search."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from salience_detr.modeling.matcher import HungarianMatcher
from salience_detr.modeling.structures import DetectionPredictions, DetectionTargets


def target(labels, boxes):
    """Return ground truth of one image."""
    return targets((labels, boxes))


def targets(*images):
    labels = [torch.tensor(x, dtype=torch.int64) for x, _ in images]
    boxes = [torch.tensor(x, dtype=torch.float64).reshape(-1, 4) for _, x in images]
    return DetectionTargets.from_images(labels, boxes, [(100, 100)] * len(images))


def match(logits, boxes, truth, num_valid=None):
    """Return the (queries, boxes) of each image, matched in the only layer."""
    predictions = DetectionPredictions(logits[None], boxes[None], num_valid)
    matches = HungarianMatcher()(predictions, truth)

    images = range(len(logits))
    assert matches.query.shape == matches.box.shape == (1, len(matches.image))
    return [[x[0, matches.image == i] for x in (matches.query, matches.box)] for i in images]


def test_the_cost_is_the_weighted_sum_of_class_l1_and_giou():
    # Same box: L1 0, GIoU 1. For p = 0.5 the positive term is 0.25 * 0.25 * ln 2 and the negative
    # one 0.75 * 0.25 * ln 2, up to the eps.
    cost = HungarianMatcher().cost(
        torch.zeros(1, 1, 1, 2, dtype=torch.float64),
        torch.tensor([[[[0.5, 0.5, 0.2, 0.2]]]], dtype=torch.float64),
        target([1], [[0.5, 0.5, 0.2, 0.2]]),
    )

    ln2 = -math.log(0.5 + 1e-6)
    assert cost.item() == pytest.approx(2 * (0.0625 - 0.1875) * ln2 - 2, abs=1e-12)


def test_boxes_at_a_distance_cost_l1_and_giou():
    # Boxes of side 0.2 at x = 0.3 and 0.7 have L1 0.4. Their hull is 0.6 x 0.2 = 0.12 and their
    # union 0.08, so GIoU = -(0.04 / 0.12).
    matcher = HungarianMatcher(class_weight=0.0)
    logits = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    boxes = torch.tensor([[[[0.3, 0.5, 0.2, 0.2]]]], dtype=torch.float64)
    cost = matcher.cost(logits, boxes, target([0], [[0.7, 0.5, 0.2, 0.2]]))
    assert cost.item() == pytest.approx(5 * 0.4 + 2 / 3, abs=1e-9)


def test_the_assignment_is_the_cheapest_of_all():
    matcher = HungarianMatcher()
    for _ in range(10):
        boxes = torch.rand(3, 4, dtype=torch.float64) * 0.4 + 0.2
        truth = target(torch.randint(0, 4, (3,)).tolist(), boxes.tolist())
        logits = torch.randn(1, 5, 4, dtype=torch.float64)
        predicted = torch.rand(1, 5, 4, dtype=torch.float64)

        # The cheapest of all ways to give three of the five queries a box each.
        cost = matcher.cost(logits[None], predicted[None], truth)[0, 0]
        best = min(
            permutations(range(5), 3),
            key=lambda queries: sum(cost[q, j] for j, q in enumerate(queries)),
        )

        queries, matched = match(logits, predicted, truth)[0]
        assert queries[matched.argsort()].tolist() == list(best)


def test_images_without_boxes_and_with_more_boxes_than_queries_are_matched():
    logits = torch.randn(2, 2, 3)
    boxes = torch.rand(2, 2, 4)
    many = ([0, 1, 2, 0], [[0.5, 0.5, 0.1, 0.1]] * 4)

    matches = match(logits, boxes, targets(([], []), many))

    assert [len(queries) for queries, _ in matches] == [0, 2]
    assert matches[0][0].dtype == torch.int64


def test_padded_queries_are_never_matched():
    # The padded query has exactly the box.
    logits = torch.zeros(1, 3, 1)
    boxes = torch.tensor([[[0.9, 0.9, 0.1, 0.1]] * 2 + [[0.5, 0.5, 0.2, 0.2]]])
    truth = target([0], [[0.5, 0.5, 0.2, 0.2]])

    queries, _ = match(logits, boxes, truth, num_valid=torch.tensor([2]))[0]

    assert queries.item() in (0, 1)


def test_predictions_that_are_not_finite_are_matched_first_so_that_losses_show_them():
    logits = torch.zeros(1, 3, 1)
    boxes = torch.full((1, 3, 4), 0.5)
    boxes[0, 1] = torch.nan
    truth = target([0], [[0.5, 0.5, 0.5, 0.5]])

    queries, _ = match(logits, boxes, truth)[0]

    assert queries.tolist() == [1]


def test_layers_and_images_with_different_numbers_of_boxes_are_matched_as_alone():
    logits = torch.randn(3, 2, 6, 4)
    boxes = torch.rand(3, 2, 6, 4)
    one = ([1], [[0.4, 0.5, 0.2, 0.3]])
    three = ([0, 3, 3], [[0.2, 0.2, 0.1, 0.1], [0.7, 0.6, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]])
    num_valid = torch.tensor([6, 5])

    predictions = DetectionPredictions(logits, boxes, num_valid)
    matches = HungarianMatcher()(predictions, targets(one, three))

    assert matches.image.tolist() == [0, 1, 1, 1]
    for layer in range(3):
        for image, truth in enumerate((one, three)):
            alone = slice(image, image + 1)
            (expected,) = match(
                logits[layer, alone], boxes[layer, alone], targets(truth), num_valid[alone]
            )
            found = [x[layer, matches.image == image] for x in (matches.query, matches.box)]
            assert [x.tolist() for x in found] == [x.tolist() for x in expected]
