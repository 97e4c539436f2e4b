"""Detections of the last layer: selection, clipping, and the kinds of NMS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from salience_detr.modeling.postprocess import (
    check_nms,
    clip_detections,
    select_detections,
    suppress_duplicates,
    vote_boxes,
)


def make_detections(boxes, scores, classes):
    return Instances(
        (20, 20),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )


def test_detections_are_the_best_pairs_in_pixels_of_the_wanted_frame():
    logits = torch.tensor([[0.0, 3.0], [2.0, -5.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.4, 0.2]])

    found = select_detections(logits, boxes, (100, 200), max_detections=3)

    assert found.pred_classes.tolist() == [1, 0, 0]
    assert found.scores.tolist() == pytest.approx([0.95257, 0.88080, 0.5], abs=1e-4)
    assert found.pred_boxes.tensor[0].tolist() == pytest.approx([80, 30, 120, 70])
    assert found.pred_boxes.tensor[1].tolist() == pytest.approx([-20, 0, 60, 20])  # not clipped
    assert found.image_size == (100, 200)


def test_boxes_are_clipped_as_detectron2_clips_and_those_without_area_are_dropped():
    # Over the left side, whole, outside on the right, a line, and without a number.
    boxes = [[-20, 0, 60, 20], [80, 30, 120, 70], [200, 0, 230, 9], [5, 9, 5, 9], [np.nan] * 4]
    instances = Instances(
        (100, 200), pred_boxes=Boxes(torch.tensor(boxes)), scores=torch.arange(5, 0, -1)
    )

    found = clip_detections(instances)

    assert found.pred_boxes.tensor.tolist() == [[0, 0, 60, 20], [80, 30, 120, 70]]
    assert found.scores.tolist() == [5, 4]
    assert instances.pred_boxes.tensor[0, 0] == -20  # the argument stays
    expected = detector_postprocess(instances[:4], 100, 200)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_duplicates_of_a_class_are_left_out_above_the_overlap():
    # The second overlaps the first by .8, the third is of another class, the last overlaps by .5.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 5]]
    instances = make_detections(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])
    assert suppress_duplicates(instances, 0.7).scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert suppress_duplicates(instances, 0.4).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(suppress_duplicates(instances, 0.9)) == 4
    assert len(suppress_duplicates(instances[:0], 0.7)) == 0


def test_a_detection_gets_the_mean_box_of_its_duplicates_by_their_scores():
    # Of the others one overlaps by .8, one is of another class, one overlaps by .5.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 5]]
    instances = make_detections(boxes, [0.6, 0.4, 0.3, 0.2], [0, 0, 1, 0])
    found = suppress_duplicates(instances, 0.7, box_voting=True)
    assert found.scores.tolist() == pytest.approx([0.6, 0.3, 0.2])
    expected = [[0, 0, 10, 0.6 * 10 + 0.4 * 8], [0, 0, 10, 10], [0, 0, 10, 5]]
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor(expected))
    assert instances.pred_boxes.tensor.tolist() == boxes  # the argument stays
    assert len(suppress_duplicates(instances[:0], 0.7, box_voting=True)) == 0


def test_soft_nms_lowers_the_scores_of_duplicates_by_their_overlap():
    # With the first, the others have IoUs of .8, .5 and, in another class, 1.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 10]]
    instances = make_detections(boxes, [0.6, 0.5, 0.4, 0.3], [0, 0, 0, 1])
    found = suppress_duplicates(instances, 0.5, soft=True)
    # .625 is the IoU of the second and the third, which has the higher score after the first pass.
    second, third = 0.5 * 0.2 / 0.5, 0.4 * (1 - 0.625) / 0.5
    assert third > second
    second *= (1 - 0.625) / 0.5
    assert found.scores.tolist() == pytest.approx([0.6, 0.4, 0.3, second])
    assert found.pred_boxes.tensor.tolist() == [boxes[i] for i in (0, 2, 3, 1)]


def test_soft_nms_leaves_a_second_copy_of_a_box_out():
    instances = make_detections([[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.5], [0, 0])
    found = suppress_duplicates(instances, 0.5, soft=True)
    assert found.scores.tolist() == [0.5]
    assert len(suppress_duplicates(found[:0], 0.5, soft=True)) == 0


@pytest.mark.parametrize("soft", [False, True])
def test_boxes_of_other_classes_and_without_area_change_no_score(soft):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 3, 3]]
    instances = make_detections(boxes, [0.9, 0.8, 0.7], [0, 1, 0])
    found = suppress_duplicates(instances, 0.5, soft=soft)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_a_duplicate_does_not_lower_the_score_of_what_it_overlaps_itself():
    # The middle one is a duplicate of the first, IoU .9; the last overlaps the middle one by .67.
    boxes = [[0, 0, 10, 10], [1, 0, 10, 10], [4, 0, 10, 10]]
    instances = make_detections(boxes, [0.9, 0.8, 0.5], [0, 0, 0])
    found = suppress_duplicates(instances, 0.6, soft=True)
    assert found.scores[:2].tolist() == pytest.approx([0.9, 0.5])
    assert found.pred_boxes.tensor[1].tolist() == boxes[2]


@pytest.mark.parametrize(
    ("threshold", "options", "words"),
    [
        (None, {"soft": True}, "nms_soft is True, but there is no NMS; set nms_iou_threshold"),
        (None, {"box_voting": True}, "nms_box_voting is True, but there is no NMS"),
        (1.0, {"soft": True}, "nms_iou_threshold is 1, above which nms_soft has no scores"),
        (0.0, {}, r"nms_iou_threshold is 0.0; it must lie in \(0, 1\]"),
        (0.5, {"soft": True, "box_voting": True}, "set one of them to False"),
    ],
)
def test_arguments_of_the_nms_that_do_not_fit_are_refused(threshold, options, words):
    with pytest.raises(ValueError, match=words):
        check_nms(threshold, **{"soft": False, "box_voting": False, **options})


def test_a_box_without_a_vote_stays():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 10.0, 10.0]])
    scores = torch.tensor([0.0, 0.5, 0.0])  # without a score, without area, without a score
    assert torch.equal(vote_boxes(boxes, scores, torch.zeros(3), 0.7), boxes)


def test_no_other_detection_takes_the_place_of_a_dropped_one():
    boxes = torch.tensor([[1.0, 0.5, 0.0, 0.2], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3]])
    logits = torch.tensor([[2.0], [1.0], [1.0]])  # the first has no area, the others tie

    selected = select_detections(logits, boxes, (10, 10), max_detections=2)

    assert len(selected) == 2 and len(clip_detections(selected)) == 1
