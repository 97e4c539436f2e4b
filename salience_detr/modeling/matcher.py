"""Assignment of predictions to ground truth (DETR, section 3.1).

Symbols: B images, N queries, K classes, G boxes of an image.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from salience_detr.modeling.structures import DetectionTargets

Match = tuple[
    Tensor, Tensor
]  # indices of queries and of the boxes that they are matched with, both (min(N, G),)


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
    def __call__(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: list[DetectionTargets],
        query_mask: Tensor | None = None,
    ) -> list[Match]:
        """Match each image.

        Args:
            pred_logits: (B, N, K).
            pred_boxes: (B, N, 4) cxcywh, normalized.
            targets: of B images.
            query_mask: (B, N) True for the queries that take part, which come first; None = all.

        Returns:
            For each image the matched (query indices, target indices), by rising query index. Predictions that are
            not finite are matched first, so that they show in the losses.
        """
        device, matches = pred_logits.device, []
        counts = (
            [pred_logits.shape[1]] * len(targets)
            if query_mask is None
            else query_mask.sum(1).tolist()
        )
        for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
            cost = self.cost(pred_logits[i, :count], pred_boxes[i, :count], target)
            cost = cost.cpu().nan_to_num(nan=-1e9, posinf=-1e9, neginf=-1e9)
            queries, boxes = linear_sum_assignment(cost.numpy())
            matches.append(
                (torch.as_tensor(queries, device=device), torch.as_tensor(boxes, device=device))
            )
        return matches

    def cost(self, logits: Tensor, boxes: Tensor, target: DetectionTargets) -> Tensor:
        """(N, K) logits and (N, 4) boxes -> (N, G) cost of each pair, float32 at least."""
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()[:, target.labels]
        boxes, target_boxes = boxes.to(p.dtype), target.boxes.to(p.dtype)
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-6).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-6).log()
        giou = generalized_box_iou(
            box_cxcywh_to_xyxy(boxes)[:, None], box_cxcywh_to_xyxy(target_boxes)
        )
        return (
            self.class_weight * (positive - negative)
            + self.l1_weight * torch.cdist(boxes, target_boxes, p=1)
            - self.giou_weight * giou
        )
