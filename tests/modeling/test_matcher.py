"""Matching against exhaustive search."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from salience_detr.modeling.matcher import HungarianMatcher
from salience_detr.modeling.structures import DetectionTargets


def target(labels, boxes):
    labels = torch.tensor(labels, dtype=torch.int64)
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return DetectionTargets(labels, boxes, (100, 100))


def test_the_cost_is_the_weighted_sum_of_class_l1_and_giou():
    # Same box: L1 0, GIoU 1. For p = 0.5 the positive term is 0.25 * 0.25 * ln 2 and the negative
    # one 0.75 * 0.25 * ln 2, up to the eps.
    cost = HungarianMatcher().cost(
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=torch.float64),
        target([1], [[0.5, 0.5, 0.2, 0.2]]),
    )

    ln2 = -math.log(0.5 + 1e-6)
    assert cost.item() == pytest.approx(2 * (0.0625 - 0.1875) * ln2 - 2, abs=1e-12)


def test_boxes_at_a_distance_cost_l1_and_giou():
    # Boxes of side 0.2 at x = 0.3 and 0.7 have L1 0.4. Their hull is 0.6 x 0.2 = 0.12 and their
    # union 0.08, so GIoU = -(0.04 / 0.12).
    matcher = HungarianMatcher(class_weight=0.0)
    logits = torch.zeros(1, 1, dtype=torch.float64)
    boxes = torch.tensor([[0.3, 0.5, 0.2, 0.2]], dtype=torch.float64)
    cost = matcher.cost(logits, boxes, target([0], [[0.7, 0.5, 0.2, 0.2]]))
    assert cost.item() == pytest.approx(5 * 0.4 + 2 / 3, abs=1e-9)


def test_the_assignment_is_the_cheapest_of_all():
    matcher = HungarianMatcher()
    for _ in range(10):
        boxes = torch.rand(3, 4, dtype=torch.float64) * 0.4 + 0.2
        truth = DetectionTargets(torch.randint(0, 4, (3,)), boxes, (100, 100))
        logits = torch.randn(1, 5, 4, dtype=torch.float64)
        predicted = torch.rand(1, 5, 4, dtype=torch.float64)

        # The cheapest of all ways to give three of the five queries a box each.
        cost = matcher.cost(logits[0], predicted[0], truth)
        best = min(
            permutations(range(5), 3),
            key=lambda queries: sum(cost[q, j] for j, q in enumerate(queries)),
        )

        queries, matched = matcher(logits, predicted, [truth])[0]
        assert queries[matched.argsort()].tolist() == list(best)


def test_images_without_boxes_and_with_more_boxes_than_queries_are_matched():
    logits = torch.randn(2, 2, 3)
    boxes = torch.rand(2, 2, 4)
    many = target([0, 1, 2, 0], [[0.5, 0.5, 0.1, 0.1]] * 4)

    matches = HungarianMatcher()(logits, boxes, [target([], []), many])

    assert [len(queries) for queries, _ in matches] == [0, 2]
    assert matches[0][0].dtype == torch.int64


def test_padded_queries_are_never_matched():
    # The padded query has exactly the box.
    logits = torch.zeros(1, 3, 1)
    boxes = torch.tensor([[[0.9, 0.9, 0.1, 0.1]] * 2 + [[0.5, 0.5, 0.2, 0.2]]])
    valid_mask = torch.tensor([[True, True, False]])
    truth = target([0], [[0.5, 0.5, 0.2, 0.2]])

    queries, _ = HungarianMatcher()(logits, boxes, [truth], valid_mask)[0]

    assert queries.item() in (0, 1)


def test_predictions_that_are_not_finite_are_matched_first_so_that_losses_show_them():
    logits = torch.zeros(1, 3, 1)
    boxes = torch.full((1, 3, 4), 0.5)
    boxes[0, 1] = torch.nan
    truth = target([0], [[0.5, 0.5, 0.5, 0.5]])

    queries, _ = HungarianMatcher()(logits, boxes, [truth])[0]

    assert queries.tolist() == [1]
