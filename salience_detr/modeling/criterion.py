"""Losses of the decoder layers, of the encoder proposals and of the denoising queries.

Symbols: I layers, B images, N queries, K classes, M matches in each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, box_iou_and_giou
from salience_detr.layers.losses import iou_aware_class_loss
from salience_detr.modeling.denoising import DenoisingLayout
from salience_detr.modeling.query_selection import valid_mask
from salience_detr.modeling.structures import (
    DetectionPredictions,
    DetectionTargets,
    LossNormalizers,
    Matches,
)


class SetCriterion(nn.Module):
    """Weighted class, L1 and GIoU losses of matched predictions.

    Args:
        matcher: assigns the predictions of each layer to the boxes of each image.
        alpha, gamma: of the IoU-aware focal loss.
        class_loss: replaces that loss; as it, it is given logits, IoU targets and the mask of
            matches, and returns the loss of each element.
    """

    def __init__(
        self,
        *,
        matcher: Callable[[DetectionPredictions, DetectionTargets], Matches],
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
        class_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()

        self.matcher = matcher

        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

        self.class_loss = class_loss or partial(iou_aware_class_loss, alpha=alpha, gamma=gamma)

    def forward(
        self,
        decoder: DetectionPredictions,
        encoder: DetectionPredictions,
        targets: DetectionTargets,
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute the losses of the matching queries and of the proposals.

        Args:
            decoder: predictions of the decoder layers for the matching queries.
            encoder: the proposals, as one layer, with the same queries.
            targets: ground truth of B images, which may have no boxes.
            normalizers: of the batch.

        Returns:
            Weighted ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, with suffix
            ``_i`` of layer i before it, and ``_enc`` of the proposals.
        """
        # The proposals are one more layer of predictions.
        predictions = DetectionPredictions(
            pred_logits=torch.cat([decoder.pred_logits, encoder.pred_logits]),
            pred_boxes=torch.cat([decoder.pred_boxes, encoder.pred_boxes]),
            num_valid=decoder.num_valid,
        )
        suffixes = [*layer_suffixes(len(decoder)), "_enc"]

        matches = self.matcher(predictions, targets)
        return self.losses(predictions, targets, matches, normalizers.num_boxes, suffixes)

    def denoising_losses(
        self,
        predictions: DetectionPredictions,
        layout: DenoisingLayout,
        targets: DetectionTargets,
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute the losses of the denoising queries.

        Positive queries are matched with their boxes; all others, padding too, are background.

        Returns:
            Weighted losses as in :meth:`forward`, with suffix ``_dn`` or ``_dn_i``.
        """
        matches = layout.positive_matches(targets.num_boxes)
        suffixes = [f"_dn{suffix}" for suffix in layer_suffixes(len(predictions))]

        # Each box is the target of one query of every group.
        num_boxes = normalizers.num_boxes * layout.num_groups
        return self.losses(predictions, targets, matches, num_boxes, suffixes)

    def losses(
        self,
        predictions: DetectionPredictions,
        targets: DetectionTargets,
        matches: Matches,
        num_boxes: float,
        suffixes: Sequence[str],
    ) -> dict[str, Tensor]:
        """Compute the three weighted losses of each layer.

        Args:
            predictions: of I layers.
            targets: ground truth of B images.
            matches: matched queries and boxes, on any device.
            num_boxes: divisor of the sums.
            suffixes: ends of the names of the losses of each layer.
        """
        dtype = torch.promote_types(predictions.pred_logits.dtype, torch.float32)
        pred_logits = predictions.pred_logits.to(dtype)
        pred_boxes = predictions.pred_boxes.to(dtype)

        # Indices of the matches that broadcast to (I, M).
        matches = matches.to(pred_boxes.device)
        layer = torch.arange(len(predictions), device=pred_boxes.device)[:, None]
        matched = (layer, matches.image, matches.query)
        label = targets.labels[matches.image, matches.box]

        matched_boxes = pred_boxes[matched]  # (I, M, 4)
        target_boxes = targets.boxes[matches.image, matches.box].to(dtype)
        matched_xyxy = box_cxcywh_to_xyxy(matched_boxes)
        target_xyxy = box_cxcywh_to_xyxy(target_boxes)
        iou, giou = box_iou_and_giou(matched_xyxy, target_xyxy)

        # IoU-aware classification: the class target of a matched query is the IoU of its box.
        iou_target = torch.zeros_like(pred_logits)
        iou_target[(*matched, label)] = iou.detach()
        positive = torch.zeros_like(pred_logits, dtype=torch.bool)
        positive[(*matched, label)] = True

        class_loss = self.class_loss(pred_logits, iou_target, positive)
        if predictions.num_valid is not None:
            padded = ~valid_mask(predictions.num_valid, pred_logits[0])
            class_loss = class_loss.masked_fill(padded[..., None], 0)

        l1_loss = (matched_boxes - target_boxes).abs()

        weighted = {
            "loss_class": self.class_weight * class_loss.sum((1, 2, 3)) / num_boxes,
            "loss_bbox": self.l1_weight * l1_loss.sum((1, 2)) / num_boxes,
            "loss_giou": self.giou_weight * (1 - giou).sum(1) / num_boxes,
        }

        losses: dict[str, Tensor] = {}
        for name, layer_losses in weighted.items():
            for suffix, loss in zip(suffixes, layer_losses.unbind(), strict=True):
                losses[name + suffix] = loss
        return losses


def layer_suffixes(num_layers: int) -> list[str]:
    """Return the ends of the names of each layer's losses; the last one's names have none."""
    return [*(f"_{i}" for i in range(num_layers - 1)), ""]


def check_labels(targets: DetectionTargets, num_classes: int) -> None:
    """Raise ValueError for a label outside the classes of the model."""
    wrong = targets.labels[(targets.labels < 0) | (targets.labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"a ground-truth class is {int(wrong[0])}, but the model has {num_classes} classes "
            f"(0 to {num_classes - 1}); set model.num_classes to the number of classes of the data"
        )
