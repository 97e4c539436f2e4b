"""Assignment of predictions to ground truth (DETR, section 3.1).

Symbols: B images, N queries, K classes, G boxes of an image.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from salience_detr.modeling.structures import DetectionTargets

# Indices of queries and of the boxes that they are matched with, both (min(N, G),).
Match: TypeAlias = tuple[Tensor, Tensor]

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
    def __call__(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: list[DetectionTargets],
        valid_mask: Tensor | None = None,
    ) -> list[Match]:
        """Match each image.

        Args:
            pred_logits: (B, N, K).
            pred_boxes: (B, N, 4) cxcywh, normalized.
            targets: ground truth of B images.
            valid_mask: (B, N) True for valid queries, which come first; None = all.

        Returns:
            For each image the matched (query indices, target indices), by rising query index.
        """
        num_queries = [pred_logits.shape[1]] * len(targets)
        if valid_mask is not None:
            num_queries = valid_mask.sum(1).tolist()

        matches = []
        for i, target in enumerate(targets):
            logits = pred_logits[i, : num_queries[i]]
            boxes = pred_boxes[i, : num_queries[i]]

            cost = self.cost(logits, boxes, target).cpu()
            cost = cost.nan_to_num(
                nan=NON_FINITE_COST, posinf=NON_FINITE_COST, neginf=NON_FINITE_COST
            )

            queries, boxes_matched = linear_sum_assignment(cost.numpy())
            query_index = torch.as_tensor(queries, device=pred_logits.device)
            box_index = torch.as_tensor(boxes_matched, device=pred_logits.device)
            matches.append((query_index, box_index))

        return matches

    def cost(self, logits: Tensor, boxes: Tensor, target: DetectionTargets) -> Tensor:
        """Return the (N, G) cost, float32 at least, of (N, K) logits and (N, 4) cxcywh boxes."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        boxes = boxes.to(dtype)
        target_boxes = target.boxes.to(dtype)

        # Focal loss of the class if the query were positive, less the one if it were negative.
        p = logits.to(dtype).sigmoid()[:, target.labels]
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-6).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-6).log()

        l1 = torch.cdist(boxes, target_boxes, p=1)
        boxes_xyxy = box_cxcywh_to_xyxy(boxes)
        giou = generalized_box_iou(boxes_xyxy[:, None], box_cxcywh_to_xyxy(target_boxes))

        return (
            self.class_weight * (positive - negative)
            + self.l1_weight * l1
            - self.giou_weight * giou
        )
