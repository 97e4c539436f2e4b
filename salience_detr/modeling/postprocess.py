"""Detections from the predictions of the last decoder layer.

Symbols: N queries, K classes.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, clip_boxes, pairwise_overlap
from salience_detr.layers.transfer import to_device


def select_detections(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    image_size: tuple[int, int],
    *,
    max_detections: int = 300,
) -> Instances:
    """Select the best (query, class) pairs of one image; a query may appear with several classes.

    Args:
        pred_logits: (N, K).
        pred_boxes: (N, 4) (cx, cy, w, h), normalized.
        image_size: (height, width) in pixels of the frame that the boxes are wanted in.
        max_detections: how many pairs at most.

    Returns:
        Instances with ``pred_boxes`` (absolute xyxy, not clipped to the image yet, see
        :func:`clip_detections`), ``scores`` and ``pred_classes``, by falling score.
    """
    num_classes = pred_logits.shape[1]
    scores = pred_logits.to(pred_boxes.dtype).sigmoid().flatten()
    scores, index = scores.topk(min(max_detections, len(scores)))

    height, width = image_size
    scale = to_device([width, height, width, height], pred_boxes)
    boxes = box_cxcywh_to_xyxy(pred_boxes) * scale

    return Instances(
        image_size,
        pred_boxes=Boxes(boxes[index // num_classes]),
        scores=scores,
        pred_classes=index % num_classes,
    )


def clip_detections(instances: Instances) -> Instances:
    """Return the detections with boxes clipped to the image, less those without area in it.

    This is the second half of detectron2's ``detector_postprocess``, whose first half, the scaling,
    :func:`select_detections` does. No other detections take the place of the dropped ones.
    """
    height, width = instances.image_size
    boxes = instances.pred_boxes.tensor

    # Boxes.clip would fail where a box is NaN; such a box is dropped.
    clipped = Boxes(clip_boxes(boxes, to_device([width, height, width, height], boxes)))

    # As indices: each use of a mask would make the host wait for a GPU.
    (with_area,) = clipped.nonempty().nonzero(as_tuple=True)

    result = instances[with_area]
    result.pred_boxes = clipped[with_area]
    return result


def suppress_duplicates(
    instances: Instances, iou_threshold: float, *, box_voting: bool = False
) -> Instances:
    """Return the detections that overlap no better one of their class by more than an IoU.

    Args:
        instances: clipped to the image, by falling score.
        iou_threshold: in (0, 1].
        box_voting: a detection that stays gets the mean box of itself and of its duplicates.
    """
    boxes = instances.pred_boxes.tensor
    keep = batched_nms(boxes, instances.scores, instances.pred_classes, iou_threshold)
    kept = instances[keep]
    if box_voting:
        voted = vote_boxes(boxes, instances.scores, instances.pred_classes, iou_threshold)
        kept.pred_boxes = Boxes(voted[keep])
    return kept


def vote_boxes(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Return the mean box of each detection and of all others that overlap it, by their scores.

    Only those of its class with an IoU above the threshold count (box voting, Gidaris and
    Komodakis, ICCV 2015, section 5).

    Args:
        boxes: (..., n, 4) xyxy.
        scores: (..., n), at least 0.
        classes: (..., n).

    Returns:
        (..., n, 4); the box itself where no score counts.
    """
    intersection, union = pairwise_overlap(boxes)
    overlaps = intersection > iou_threshold * union
    same_class = classes[..., :, None] == classes[..., None, :]
    weights = torch.where(overlaps & same_class, scores[..., None, :], 0.0)

    total = weights.sum(-1, keepdim=True)
    mean = weights @ boxes / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, mean, boxes)
