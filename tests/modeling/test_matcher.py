"""Matching against exhaustive search."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from salience_detr.modeling.matcher import HungarianMatcher, OneToManyMatcher
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


# Of one size, moved along x: IoU = (0.2 - d) / (0.2 + d). Score with p = 0.5: 0.7 IoU + 0.15.
TWO_BOXES = ([0, 1], [[0.25, 0.5, 0.2, 0.2], [0.75, 0.5, 0.2, 0.2]])
QUERIES = [
    [0.25, 0.5, 0.2, 0.2],  # d = 0: 0.85
    [0.30, 0.5, 0.2, 0.2],  # d = 0.05, IoU 3 / 5: 0.57
    [0.35, 0.5, 0.2, 0.2],  # d = 0.1, IoU 1 / 3: 0.383, below the threshold
    [0.21, 0.5, 0.2, 0.2],  # d = 0.04, IoU 2 / 3: 0.617
    [0.85, 0.5, 0.2, 0.2],  # d = 0.1 from the other box: 0.383, the best one of it
    *[[0.5, 0.1, 0.1, 0.1]] * 3,  # 0.15
]


def match_to_many(logits, num_valid=None, **options):
    """Return the matched queries of the image, and their boxes."""
    boxes = torch.tensor(QUERIES, dtype=torch.float64)[None, None]
    predictions = DetectionPredictions(logits[None, None], boxes, num_valid)
    matches = OneToManyMatcher(**options)(predictions, targets(TWO_BOXES))
    query = matches.matched[0, 0].nonzero()[:, 0]
    return query.tolist(), matches.box[0, 0, query].tolist()


@pytest.mark.parametrize(
    ("options", "queries", "boxes"),
    [
        ({"max_part": 1.0}, [0, 1, 3, 4], [0, 0, 0, 1]),
        ({"max_part": 1.0, "max_queries": 2}, [0, 3, 4], [0, 0, 1]),  # the best two of each box
        ({"max_part": 1.0, "threshold": 0.6}, [0, 3, 4], [0, 0, 1]),
        ({"max_part": 1.0, "threshold": 0.38}, [0, 1, 2, 3, 4], [0, 0, 0, 0, 1]),
        ({}, [0, 3], [0, 0]),  # a quarter of eight queries
    ],
)
def test_several_queries_of_high_score_go_to_a_box(options, queries, boxes):
    logits = torch.zeros(8, 2, dtype=torch.float64)
    assert match_to_many(logits, **options) == (queries, boxes)


def test_the_probability_of_the_class_of_the_box_counts():
    # p = 1 of class 0: 0.7 / 3 + 0.3 = 0.533 for query 2, but not for class 1 and query 4.
    logits = torch.zeros(8, 2, dtype=torch.float64)
    logits[:, 0] = 50
    assert match_to_many(logits, max_part=1.0) == ([0, 1, 2, 3, 4], [0, 0, 0, 0, 1])
    assert match_to_many(logits, max_part=1.0, threshold=0.54)[0] == [0, 1, 3, 4]


def test_padded_queries_are_not_matched_to_many():
    logits = torch.zeros(8, 2, dtype=torch.float64)
    found = match_to_many(logits, torch.tensor([4]), max_part=0.5)

    # Two of the four queries; query 4 is padding, although it is the best one of its box.
    assert found == ([0, 3], [0, 0])


def test_a_batch_is_matched_to_many_as_its_images_alone():
    logits = torch.randn(2, 3, 12, 4)
    boxes = torch.rand(2, 3, 12, 4) * 0.5 + 0.25
    num_valid = torch.tensor([12, 9, 12])
    images = [
        ([1], [[0.4, 0.5, 0.5, 0.5]]),
        ([], []),
        ([0, 3], [[0.5, 0.4, 0.5, 0.6], [0.6, 0.6, 0.4, 0.5]]),
    ]

    matcher = OneToManyMatcher()
    together = matcher(DetectionPredictions(logits, boxes, num_valid), targets(*images))

    assert together.matched.sum((0, 2)).tolist()[1] == 0
    for i, image in enumerate(images):
        alone = slice(i, i + 1)
        predictions = DetectionPredictions(logits[:, alone], boxes[:, alone], num_valid[alone])
        found = matcher(predictions, targets(image))
        assert torch.equal(found.matched[:, 0], together.matched[:, i])
        matched = found.matched[:, 0]
        assert torch.equal(found.box[:, 0][matched], together.box[:, i][matched])
