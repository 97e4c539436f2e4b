"""Boxes: formats, overlaps, and the logit that boxes are refined in.

"xyxy" is (x0, y0, x1, y1), "cxcywh" is (cx, cy, w, h); both may be normalized or in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 - x)) with x and 1 - x clamped to at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) cxcywh -> (..., 4) xyxy"""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (..., 4) cxcywh"""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (...) areas; a box that is inside out has none."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of boxes of broadcastable shapes (..., 4) xyxy; the IoU of two boxes without area is 0."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = box_area(torch.cat([low, high], dim=-1))
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return _ratio(intersection, union), union


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU in [-1, 1] of boxes of broadcastable shapes (..., 4) xyxy.

    For all pairs of (N, 4) and (G, 4) pass ``boxes1[:, None]`` and ``boxes2``.
    """
    iou, union = box_iou(boxes1, boxes2)
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = box_area(torch.cat([low, high], dim=-1))
    return iou - _ratio(hull - union, hull)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, 0 where the denominator is 0, without NaN in the gradient either."""
    empty = denominator <= 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))
