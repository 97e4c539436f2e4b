"""Comparing detections."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

from salience_detr.detections import ClassTable, Detections
from salience_detr.export.verification import Difference, compare


def detections(boxes, scores, classes):
    instances = Instances(
        (100, 200), scores=torch.tensor(scores), pred_classes=torch.tensor(classes)
    )
    instances.pred_boxes = Boxes(torch.tensor(boxes))
    return Detections(instances, ClassTable(("a", "b"), (1, 2)), lambda: None)


BOXES = [[0.0, 0, 10, 10], [50, 50, 60, 60], [5, 5, 9, 9]]


def test_equal_detections_do_not_differ_in_whatever_order():
    first = detections(BOXES, [0.9, 0.5, 0.1], [0, 1, 0])
    second = detections(BOXES[::-1], [0.1, 0.5, 0.9], [0, 1, 0])
    assert compare(first, second) == Difference(3, 0, 0.0, 0.0, 0.0)


def test_the_largest_differences_of_pairs_are_told():
    first = detections([[0.0, 0, 10, 10]], [0.5], [0])
    second = detections(
        [[0.0, 0.125, 10, 10]], [0.50048828125], [0]
    )  # tolerances: 0.2 pixels and 0.001
    found = compare(first, second)
    assert found.unmatched == 0 and found.box == 0.125 and abs(found.score - 0.00048828125) < 1e-6


def test_another_class_box_or_score_is_no_pair():
    first = detections(BOXES, [0.9, 0.5, 0.1], [0, 1, 0])
    assert compare(first, detections(BOXES, [0.9, 0.5, 0.1], [1, 1, 0])).unmatched == 2
    assert (
        compare(
            first, detections([[1.0, 0, 10, 10], *BOXES[1:]], [0.9, 0.5, 0.1], [0, 1, 0])
        ).unmatched
        == 2
    )
    assert compare(first, detections(BOXES, [0.8, 0.5, 0.1], [0, 1, 0])).unmatched == 2


def test_one_that_is_missing_counts():
    first = detections(BOXES, [0.9, 0.5, 0.1], [0, 1, 0])
    assert compare(first, detections([BOXES[0], BOXES[2]], [0.9, 0.1], [0, 0])).unmatched == 1
    assert compare(first, detections(BOXES[:1], [0.9], [0])).unmatched == 2


def test_different_ends_of_equally_long_lists_do_not_count():
    first = detections(BOXES, [0.9, 0.5, 0.1], [0, 1, 0])
    assert (
        compare(
            first, detections([*BOXES[:2], [70.0, 70, 80, 80]], [0.9, 0.5, 0.1005], [0, 1, 1])
        ).unmatched
        == 0
    )


def test_a_few_uncertain_detections_may_differ_but_no_certain_one():
    assert Difference(100, 2, 0.09, 0.0, 0.0).is_rounding()
    assert not Difference(100, 3, 0.09, 0.0, 0.0).is_rounding()
    assert Difference(100, 3, 0.09, 0.0, 0.0).is_rounding(uncertain_part=0.03)
    assert not Difference(100, 1, 0.11, 0.0, 0.0).is_rounding(uncertain_part=1.0)
    assert not Difference(0, 1, 0.01, 0.0, 0.0).is_rounding()


def test_one_box_is_no_partner_of_two():
    first = detections([BOXES[0], BOXES[0]], [0.9, 0.9], [0, 0])
    assert compare(first, detections([BOXES[0], BOXES[2]], [0.9, 0.1], [0, 0])).unmatched == 1
