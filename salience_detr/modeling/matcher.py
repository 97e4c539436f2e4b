"""Assignment of predictions to ground truth (DETR, section 3.1).

Symbols: I layers, B images, N queries, K classes, G = most boxes in an image of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from salience_detr.modeling.structures import DetectionPredictions, DetectionTargets, Matches

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

        queries, boxes = [], []
        for i, num_boxes in enumerate(targets.num_boxes):
            image_costs = costs[:, i, : num_queries[i], :num_boxes].numpy()
            assigned = np.stack([linear_sum_assignment(cost) for cost in image_costs])  # (I, 2, M)
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
