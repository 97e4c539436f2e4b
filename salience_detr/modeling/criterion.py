"""Losses of the decoder layers, of the encoder proposals and of the denoising queries.

Symbols: I decoder layers, B images, N queries, K classes, T denoising queries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, box_iou, generalized_box_iou
from salience_detr.layers.losses import iou_aware_class_loss
from salience_detr.modeling.denoising import DenoisingLayout
from salience_detr.modeling.matcher import Match
from salience_detr.modeling.structures import (
    DetectionPredictions,
    DetectionTargets,
    LossNormalizers,
)


class SetCriterion(nn.Module):
    """Weighted class, L1 and GIoU losses of matched predictions.

    Args:
        matcher: assigns the predictions of a layer to the boxes of each image.
        alpha, gamma: of the IoU-aware focal loss.
    """

    def __init__(
        self,
        *,
        matcher: Callable[..., list[Match]],
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()

        self.matcher = matcher

        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self,
        decoder: DetectionPredictions,
        encoder: DetectionPredictions,
        targets: list[DetectionTargets],
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute the losses of the matching queries and of the proposals.

        Args:
            decoder: predictions of I layers for the matching queries.
            encoder: the proposals, as one layer.
            targets: ground truth of B images, which may have no boxes.
            normalizers: of the batch.

        Returns:
            Weighted ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, with suffix
            ``_i`` of layer i before it, and ``_enc`` of the proposals.
        """
        num_boxes = normalizers.num_boxes
        return {
            **self.losses_of_layers(decoder, targets, num_boxes, suffix=""),
            **self.losses_of_layers(encoder, targets, num_boxes, suffix="_enc"),
        }

    def denoising_losses(
        self,
        predictions: DetectionPredictions,
        layout: DenoisingLayout,
        targets: list[DetectionTargets],
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute the losses of the denoising queries.

        Positive queries are matched with their boxes; all others, padding too, are background.

        Returns:
            Weighted losses as in :meth:`forward`, with suffix ``_dn`` or ``_dn_i``.
        """
        matches = []
        for target in targets:
            matches.append(layout.positive_matches(len(target), target.labels.device))

        # Each box is the target of one query of every group.
        num_boxes = normalizers.num_boxes * layout.num_groups
        return self.losses_of_layers(predictions, targets, num_boxes, suffix="_dn", matches=matches)

    def losses_of_layers(
        self,
        predictions: DetectionPredictions,
        targets: list[DetectionTargets],
        num_boxes: float,
        *,
        suffix: str,
        matches: list[Match] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all layers, named as in :meth:`forward`.

        Args:
            matches: of each image, for all layers; by default the matcher's, for each layer.
        """
        losses: dict[str, Tensor] = {}
        last = len(predictions) - 1
        for i in range(len(predictions)):
            pred_logits = predictions.pred_logits[i]
            pred_boxes = predictions.pred_boxes[i]
            valid_mask = predictions.valid_mask

            layer_matches = matches
            if layer_matches is None:
                layer_matches = self.matcher(pred_logits, pred_boxes, targets, valid_mask)

            layer_losses = self.layer_losses(
                pred_logits, pred_boxes, targets, layer_matches, num_boxes, valid_mask
            )
            layer_suffix = suffix if i == last else f"{suffix}_{i}"
            for name, loss in layer_losses.items():
                losses[name + layer_suffix] = loss

        return losses

    def layer_losses(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: list[DetectionTargets],
        matches: list[Match],
        num_boxes: float,
        valid_mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute the three weighted losses of one layer.

        Args:
            pred_logits: (B, N, K).
            pred_boxes: (B, N, 4) cxcywh, normalized.
            targets: ground truth of B images.
            matches: matched queries and boxes of each image.
            num_boxes: divisor of the sums.
            valid_mask: (B, N) True for the queries that have a class loss; None = all.
        """
        dtype = torch.promote_types(pred_logits.dtype, torch.float32)
        pred_logits = pred_logits.to(dtype)
        pred_boxes = pred_boxes.to(dtype)

        # All matches of the batch in one list: image, query, label and box of each.
        images, queries, labels, boxes = [], [], [], []
        for i, (target, (query, index)) in enumerate(zip(targets, matches, strict=True)):
            images.append(query.new_full(query.shape, i))
            queries.append(query)
            labels.append(target.labels[index])
            boxes.append(target.boxes[index])
        image = torch.cat(images)
        query = torch.cat(queries)
        label = torch.cat(labels)
        target_boxes = torch.cat(boxes).to(dtype)

        matched = pred_boxes[image, query]
        matched_xyxy = box_cxcywh_to_xyxy(matched)
        target_xyxy = box_cxcywh_to_xyxy(target_boxes)

        # IoU-aware classification: the class target of a matched query is the IoU of its box.
        iou_target = torch.zeros_like(pred_logits)
        iou_target[image, query, label] = box_iou(matched_xyxy, target_xyxy)[0].detach()
        positive = torch.zeros_like(pred_logits, dtype=torch.bool)
        positive[image, query, label] = True

        if valid_mask is not None:
            pred_logits = pred_logits[valid_mask]
            iou_target = iou_target[valid_mask]
            positive = positive[valid_mask]

        class_loss = iou_aware_class_loss(
            pred_logits, iou_target, positive, alpha=self.alpha, gamma=self.gamma
        )
        l1_loss = (matched - target_boxes).abs().sum()
        giou_loss = (1 - generalized_box_iou(matched_xyxy, target_xyxy)).sum()

        return {
            "loss_class": self.class_weight * class_loss / num_boxes,
            "loss_bbox": self.l1_weight * l1_loss / num_boxes,
            "loss_giou": self.giou_weight * giou_loss / num_boxes,
        }


def check_labels(targets: list[DetectionTargets], num_classes: int) -> None:
    """Raise ValueError for a label outside the classes of the model."""
    labels = torch.cat([target.labels for target in targets])
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"a ground-truth class is {int(wrong[0])}, but the model has {num_classes} classes "
            f"(0 to {num_classes - 1}); set model.num_classes to the number of classes of the data"
        )
