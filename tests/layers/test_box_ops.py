"""Boxes against numbers computed by hand."""

from __future__ import annotations

import math

import torch

from salience_detr.layers.box_ops import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    inverse_sigmoid,
    pairwise_overlap,
)


def test_inverse_sigmoid_undoes_the_sigmoid_between_its_clamps():
    x = torch.tensor([-6.0, -1.0, 0.0, 2.5], dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)


def test_inverse_sigmoid_clamps_both_sides_at_eps():
    # log(0.001 / 1) at 0 and below, log(1 / 0.001) at 1 and above.
    limit = math.log(1000)
    found = inverse_sigmoid(torch.tensor([-3.0, 0.0, 1.0, 7.0], dtype=torch.float64))
    expected = torch.tensor([-limit, -limit, limit, limit], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_formats_convert_both_ways():
    xyxy = torch.tensor([[2.0, 4.0, 6.0, 10.0]])
    assert box_xyxy_to_cxcywh(xyxy).tolist() == [[4.0, 7.0, 4.0, 6.0]]
    assert box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(xyxy)).tolist() == xyxy.tolist()


def test_iou_and_giou_of_overlapping_boxes():
    # Areas 4 and 4, intersection 1x1, union 7, hull 3x3: IoU 1/7, GIoU 1/7 - 2/9.
    a = torch.tensor([0.0, 0.0, 2.0, 2.0])
    b = torch.tensor([1.0, 1.0, 3.0, 3.0])

    iou, union = box_iou(a, b)
    assert math.isclose(iou, 1 / 7, rel_tol=1e-6) and union == 7
    assert math.isclose(generalized_box_iou(a, b), 1 / 7 - 2 / 9, rel_tol=1e-6)


def test_giou_of_distant_boxes_is_negative():
    # Areas 1 and 1, hull 4x1: GIoU = 0 - (4 - 2) / 4.
    a = torch.tensor([0.0, 0.0, 1.0, 1.0])
    b = torch.tensor([3.0, 0.0, 4.0, 1.0])
    assert generalized_box_iou(a, b) == -0.5


def test_all_pairs_by_broadcasting():
    a = torch.rand(3, 4).cumsum(1)
    b = torch.rand(5, 4).cumsum(1)
    pairs = generalized_box_iou(a[:, None], b)
    assert pairs.shape == (3, 5)
    assert pairs[2, 4] == generalized_box_iou(a[2], b[4])


def test_boxes_without_area_give_zero_and_finite_gradients():
    point = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    giou = generalized_box_iou(box_cxcywh_to_xyxy(point), box_cxcywh_to_xyxy(point.detach()))
    giou.backward()

    assert giou == 0
    assert torch.isfinite(point.grad).all()


def test_all_pairs_of_a_batch_overlap_as_each_pair_does():
    low = torch.rand(2, 7, 2)
    boxes = torch.cat([low, low + torch.rand(2, 7, 2)], dim=-1)
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # without area
    intersection, union = pairwise_overlap(boxes)
    iou, expected_union = box_iou(boxes[:, :, None], boxes[:, None])
    torch.testing.assert_close(union, expected_union)
    torch.testing.assert_close(intersection, iou * union)
