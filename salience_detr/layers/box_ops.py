"""Boxes: formats, overlaps, and the logit that boxes are refined in.

"xyxy" is (x0, y0, x1, y1), "cxcywh" is (cx, cy, w, h); both may be normalized or in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Return log(x / (1 - x)), with x and 1 - x clamped to at least ``eps``."""
    # Exporters need both limits of one type.
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from cxcywh to xyxy."""
    center, size = boxes.split(2, dim=-1)
    half_size = size / 2
    return torch.cat([center - half_size, center + half_size], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from xyxy to cxcywh."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def clip_boxes(boxes: Tensor, frame: Tensor) -> Tensor:
    """Clip (..., 4) xyxy boxes to images whose (w, h, w, h) ``frame`` broadcasts to the boxes."""
    return torch.minimum(boxes.clamp(min=0), frame)


def box_area(boxes: Tensor) -> Tensor:
    """Return the (...) areas of (..., 4) xyxy boxes; a box that is inside out has none."""
    low, high = boxes.split(2, dim=-1)
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union of (..., 4) xyxy boxes of broadcastable shapes.

    The IoU of two boxes without area is 0.
    """
    low1, high1 = boxes1.split(2, dim=-1)
    low2, high2 = boxes2.split(2, dim=-1)
    low = torch.maximum(low1, low2)
    high = torch.minimum(high1, high2)
    intersection = box_area(torch.cat([low, high], dim=-1))
    union = box_area(boxes1) + box_area(boxes2) - intersection

    return _ratio(intersection, union), union


def pairwise_overlap(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (..., n, n) intersections and unions of (..., n, 4) xyxy boxes with each other."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    width = torch.minimum(x1[..., :, None], x1[..., None, :])
    width = (width - torch.maximum(x0[..., :, None], x0[..., None, :])).clamp(min=0)
    height = torch.minimum(y1[..., :, None], y1[..., None, :])
    height = (height - torch.maximum(y0[..., :, None], y0[..., None, :])).clamp(min=0)

    intersection = width * height
    area = box_area(boxes)
    return intersection, area[..., :, None] + area[..., None, :] - intersection


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return the GIoU in [-1, 1] of (..., 4) xyxy boxes of broadcastable shapes.

    For all pairs of (N, 4) and (G, 4) pass ``boxes1[:, None]`` and ``boxes2``.
    """
    _, giou = box_iou_and_giou(boxes1, boxes2)
    return giou


def box_iou_and_giou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and GIoU of (..., 4) xyxy boxes of broadcastable shapes."""
    iou, union = box_iou(boxes1, boxes2)

    # The smallest box that contains both.
    low1, high1 = boxes1.split(2, dim=-1)
    low2, high2 = boxes2.split(2, dim=-1)
    low = torch.minimum(low1, low2)
    high = torch.maximum(high1, high2)
    hull = box_area(torch.cat([low, high], dim=-1))

    return iou, iou - _ratio(hull - union, hull)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; the quotient is 0 where the denominator is, and its gradient is never NaN."""
    empty = denominator <= 0
    # Without the inner replacement the gradient would be 0 * inf = NaN where it is masked.
    divisor = torch.where(empty, 1.0, denominator)
    return torch.where(empty, 0.0, numerator / divisor)
