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


def check_nms(iou_threshold: float | None, *, soft: bool, box_voting: bool) -> None:
    """Check the arguments ``nms_...`` of the model.

    Args:
        iou_threshold: None for no NMS.
        soft, box_voting: see :func:`suppress_duplicates`.

    Raises:
        ValueError: one is out of its range, or does not go with another.
    """
    if iou_threshold is None:
        for name, value in (("nms_soft", soft), ("nms_box_voting", box_voting)):
            if value:
                raise ValueError(
                    f"{name} is {value}, but there is no NMS; set nms_iou_threshold, such as 0.6, "
                    f"or {name}=False"
                )
    elif not 0 < iou_threshold <= 1:
        raise ValueError(
            f"nms_iou_threshold is {iou_threshold}; it must lie in (0, 1], or be None to keep "
            "duplicates"
        )
    elif soft and iou_threshold == 1:
        raise ValueError(
            "nms_iou_threshold is 1, above which nms_soft has no scores to lower; set one below, "
            "such as 0.5"
        )
    elif soft and box_voting:
        raise ValueError(
            "nms_soft keeps the duplicates that nms_box_voting takes the mean of; set one of them "
            "to False"
        )


def suppress_duplicates(
    instances: Instances, iou_threshold: float, *, soft: bool = False, box_voting: bool = False
) -> Instances:
    """Apply class-wise NMS: of detections that overlap a better one, only the better one stays.

    Args:
        instances: clipped to the image, by falling score.
        iou_threshold: above which detections overlap, in (0, 1]; below 1 if soft.
        soft: the others stay, too, with the scores of :func:`decay_scores` that are not 0.
        box_voting: a detection that stays gets the mean box of itself and of its duplicates; not
            with soft.

    Returns:
        Instances by falling score.
    """
    boxes = instances.pred_boxes.tensor
    if soft:
        scores = decay_scores(boxes, instances.scores, instances.pred_classes, iou_threshold)
        scores, order = scores.sort(descending=True, stable=True)
        kept = instances[order]
        kept.scores = scores
        (positive,) = scores.nonzero(as_tuple=True)
        return kept[positive]

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


def decay_scores(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Return the scores, lowered where a better detection of the class overlaps (soft-NMS).

    A score is multiplied by (1 - IoU) / (1 - t) for each better detection whose IoU is above the
    threshold t: by 1 at the threshold, by 0 for the same box. This is done twice, from the scores
    that are given. The second time, the better ones are those with the higher score after the
    first, so that a duplicate hardly lowers the scores of others. Soft-NMS (Bodla et al.,
    ICCV 2017) takes one detection after the other to that end, which neither a GPU nor an exported
    graph does well.

    Args:
        boxes: (..., n, 4) xyxy.
        scores: (..., n), at least 0, falling, but for boxes without area, which overlap nothing; of
            equal ones the first counts as better.
        classes: (..., n).
        iou_threshold: t, in (0, 1).

    Returns:
        (..., n), in the order of the boxes.
    """
    intersection, union = pairwise_overlap(boxes)
    overlaps = intersection > iou_threshold * union
    same_class = classes[..., :, None] == classes[..., None, :]
    factors = (1 - intersection / union) / (1 - iou_threshold)
    factors = torch.where(overlaps & same_class, factors, 1.0)

    rank = torch.arange(scores.shape[-1], device=scores.device)
    for _ in range(2):
        not_better = rank[..., :, None] <= rank[..., None, :]
        decayed = scores * factors.masked_fill(not_better, 1.0).prod(-1)
        rank = decayed.argsort(descending=True, stable=True).argsort()
    return decayed
