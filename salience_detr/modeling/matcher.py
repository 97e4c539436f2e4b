"""Assignment of predictions to ground truth: one-to-one (DETR, section 3.1) and one-to-many.

Symbols: I layers, B images, N queries, K classes, G = most boxes in an image of the batch.
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
import torch
from torch import Tensor

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, box_iou, generalized_box_iou
from salience_detr.modeling.query_selection import valid_mask
from salience_detr.modeling.structures import (
    DetectionPredictions,
    DetectionTargets,
    Matches,
    OneToManyMatches,
)

# Cost of a prediction that is not finite: it is matched first, so that it shows in the losses.
NON_FINITE_COST = -1e9


class HungarianMatcher:
    """One-to-one assignment of least total cost: focal class cost, L1 and GIoU of the boxes."""

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def __call__(self, predictions: DetectionPredictions, targets: DetectionTargets) -> Matches:
        """Match the valid queries of each layer and image.

        Returns:
            Matches on the CPU, by rising query index.
        """
        # A single copy from the device, for all layers and images.
        costs = self.cost(predictions.pred_logits, predictions.pred_boxes, targets).cpu()
        costs = costs.nan_to_num(
            nan=NON_FINITE_COST, posinf=NON_FINITE_COST, neginf=NON_FINITE_COST
        )

        num_queries = [costs.shape[2]] * costs.shape[1]
        if predictions.num_valid is not None:
            num_queries = predictions.num_valid.tolist()

        assign = scipy.optimize.linear_sum_assignment
        queries, boxes = [], []
        for i, num_boxes in enumerate(targets.num_boxes):
            image_costs = costs[:, i, : num_queries[i], :num_boxes].numpy()
            assigned = np.stack([assign(cost) for cost in image_costs])  # (I, 2, M)
            queries.append(torch.from_numpy(assigned[:, 0]))
            boxes.append(torch.from_numpy(assigned[:, 1]))

        return Matches.from_images(queries, boxes)

    def cost(self, pred_logits: Tensor, pred_boxes: Tensor, targets: DetectionTargets) -> Tensor:
        """Return the (I, B, N, G) cost, float32 at least.

        Args:
            pred_logits: (I, B, N, K).
            pred_boxes: (I, B, N, 4) cxcywh, normalized.
            targets: ground truth of B images; the cost of its padding is meaningless.
        """
        dtype = torch.promote_types(pred_logits.dtype, torch.float32)
        boxes = pred_boxes.to(dtype)
        target_boxes = targets.boxes.to(dtype)

        # Focal loss of the class if the query were positive, less the one if it were negative.
        labels = targets.labels[:, None].expand(*pred_logits.shape[:3], -1)
        p = pred_logits.to(dtype).gather(-1, labels).sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-6).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-6).log()

        l1 = torch.cdist(boxes, target_boxes, p=1)
        boxes_xyxy = box_cxcywh_to_xyxy(boxes)
        target_xyxy = box_cxcywh_to_xyxy(target_boxes)
        giou = generalized_box_iou(boxes_xyxy[:, :, :, None], target_xyxy[:, None])

        return (
            self.class_weight * (positive - negative)
            + self.l1_weight * l1
            - self.giou_weight * giou
        )


class OneToManyMatcher:
    """Assignment of several queries to each box (MS-DETR, section 3.2).

    The score of a query and a box is ``iou_weight`` times their IoU, plus the rest of 1 times the
    probability of the box's class. Each query goes to its box of highest score, and is matched if
    this score reaches the threshold or if the query is the best one of some box.

    Of the matches of a box only the ``max_queries`` best stay, and of those of an image only a
    quarter as many as it has queries.

    Args:
        iou_weight: in [0, 1].
        threshold: least score of a match that is not the best one of a box.
        max_queries: most queries of a box.
        max_part: of the queries of an image that are matched.
    """

    def __init__(
        self,
        *,
        iou_weight: float = 0.7,
        threshold: float = 0.4,
        max_queries: int = 6,
        max_part: float = 0.25,
    ) -> None:
        self.iou_weight = iou_weight
        self.threshold = threshold
        self.max_queries = max_queries
        self.max_part = max_part

    @torch.no_grad()
    def __call__(
        self, predictions: DetectionPredictions, targets: DetectionTargets
    ) -> OneToManyMatches:
        """Match the valid queries of each layer and image, without a copy from the device."""
        shape = predictions.pred_logits.shape[:3]
        device = predictions.pred_logits.device
        if targets.max_boxes == 0:
            box = torch.zeros(shape, dtype=torch.int64, device=device)
            return OneToManyMatches(box, matched=torch.zeros_like(box, dtype=torch.bool))

        num_queries = torch.full(shape[1:2], shape[2])
        if predictions.num_valid is not None:
            num_queries = predictions.num_valid
        query_valid = valid_mask(num_queries, predictions.pred_boxes[0])
        box_valid = valid_mask(torch.tensor(targets.num_boxes), targets.labels)
        valid = query_valid[:, :, None] & box_valid[:, None]

        scores = self.scores(predictions, targets).masked_fill(~valid, -torch.inf)
        score, box = scores.max(dim=-1)

        # Matches by their score, and by being the best ones of a box.
        is_best = ((scores == scores.amax(dim=2, keepdim=True)) & valid).any(-1)
        matched = ((score >= self.threshold) | is_best) & query_valid

        # The best matches of each box, then of each image.
        boxes = torch.arange(targets.max_boxes, device=device)
        of_box = matched[..., None] & (box[..., None] == boxes)
        kept = best_entries(score[..., None].expand_as(scores), of_box, self.max_queries, dim=2)
        limit = (num_queries * self.max_part).long().to(device, non_blocking=True)
        matched = best_entries(score, kept.any(-1), limit[:, None], dim=2)
        return OneToManyMatches(box, matched)

    def scores(self, predictions: DetectionPredictions, targets: DetectionTargets) -> Tensor:
        """Return the (I, B, N, G) scores, float32 at least; those of padding are meaningless."""
        dtype = torch.promote_types(predictions.pred_logits.dtype, torch.float32)
        boxes = box_cxcywh_to_xyxy(predictions.pred_boxes.to(dtype))
        target_boxes = box_cxcywh_to_xyxy(targets.boxes.to(dtype))
        iou, _ = box_iou(boxes[:, :, :, None], target_boxes[:, None])

        logits = predictions.pred_logits.to(dtype)
        labels = targets.labels[:, None].expand(*logits.shape[:3], -1)
        probability = logits.gather(-1, labels).sigmoid()
        return self.iou_weight * iou + (1 - self.iou_weight) * probability


def best_entries(score: Tensor, chosen: Tensor, limit: int | Tensor, dim: int) -> Tensor:
    """Return ``chosen`` without its entries beyond the ``limit`` of highest score along ``dim``."""
    ranking = score.masked_fill(~chosen, -torch.inf)
    ranking = ranking.argsort(dim=dim, descending=True, stable=True)
    rank = ranking.argsort(dim=dim)
    return chosen & (rank < limit)
