"""Class and salience losses against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from salience_detr.layers.losses import (
    MatchabilityAwareLoss,
    iou_aware_class_loss,
    soft_focal_loss,
)


def test_a_matched_class_is_weighted_by_its_iou():
    # p = 0.5, t = 0.6: weight 0.6, BCE = ln 2.
    loss = iou_aware_class_loss(torch.zeros(1), torch.tensor([0.6]), torch.tensor([True]))
    assert math.isclose(loss, 0.6 * math.log(2), rel_tol=1e-6)


def test_background_is_weighted_by_its_own_probability():
    # p = 0.5, t = 0: weight 0.75 * 0.25, BCE = ln 2.
    loss = iou_aware_class_loss(torch.zeros(1), torch.zeros(1), torch.tensor([False]))
    assert math.isclose(loss, 0.75 * 0.25 * math.log(2), rel_tol=1e-6)


def test_a_match_without_overlap_costs_nothing():
    # Its weight is its IoU, 0; as background it would cost.
    assert iou_aware_class_loss(torch.zeros(1), torch.zeros(1), torch.tensor([True])) == 0


def test_the_class_weight_carries_no_gradient():
    # d/dz of w * softplus(z) with constant w = 0.75 * 0.25 is w * 0.5.
    logits = torch.zeros(1, requires_grad=True)
    iou_aware_class_loss(logits, torch.zeros(1), torch.tensor([False])).backward()
    assert math.isclose(logits.grad.item(), 0.75 * 0.25 * 0.5, rel_tol=1e-6)


def test_soft_focal_loss_mixes_both_sides_by_the_target():
    # p = 0.5, t = 0.4: weight 0.75 * 0.25 * 0.6 + 0.25 * 0.4 * 0.25 = 0.1375, BCE = ln 2.
    loss = soft_focal_loss(torch.zeros(1), torch.tensor([0.4]))
    assert math.isclose(loss, 0.1375 * math.log(2), rel_tol=1e-6)


def test_the_focal_weight_carries_gradient():
    # t = 0: f = 0.75 p^2 softplus(z), f' = 0.75 (2 p^2 (1 - p) ln 2 + p^3) at p = 0.5.
    logits = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    soft_focal_loss(logits, torch.zeros(1, dtype=torch.float64)).backward()
    assert math.isclose(logits.grad.item(), 0.75 * (0.25 * math.log(2) + 0.125), rel_tol=1e-9)


@pytest.mark.parametrize(
    ("iou", "expected"), [(0.1, 0.018377), (0.3, -0.114317), (0.5, -0.303553), (0.7, -0.535662)]
)
def test_the_gradient_of_a_match_is_its_probability_less_the_power_of_its_iou(iou, expected):
    # p = 0.05: BCE(p, t^1.5) has the gradient p - t^1.5, such as 0.05 - 0.5^1.5.
    logits = torch.tensor([0.05]).logit().requires_grad_()
    loss = MatchabilityAwareLoss()(logits, torch.tensor([iou]), torch.tensor([True]))
    loss.backward()
    assert logits.grad.item() == pytest.approx(expected, abs=1e-6)


def test_a_match_without_overlap_costs_as_background_of_full_weight():
    # p = 0.5, t = 0: -ln(1 - p), which the IoU-aware loss leaves out.
    loss = MatchabilityAwareLoss()(torch.zeros(1), torch.zeros(1), torch.tensor([True]))
    assert math.isclose(loss, math.log(2), rel_tol=1e-6)


def test_background_is_weighted_by_a_power_of_its_probability_without_gradient():
    # p = 0.3: the weight is 0.3^1.5 = 0.164317, the loss -ln 0.7 times it, the gradient 0.3 times.
    logits = torch.tensor([0.3]).logit().requires_grad_()
    loss = MatchabilityAwareLoss()(logits, torch.zeros(1), torch.tensor([False]))
    loss.backward()
    assert loss.item() == pytest.approx(0.164317 * 0.356675, abs=1e-6)
    assert logits.grad.item() == pytest.approx(0.049295, abs=1e-6)
