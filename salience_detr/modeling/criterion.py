"""Losses of the decoder layers, of the encoder proposals and of the denoising queries.

Symbols: I layers, B images, N queries, K classes, M matches in each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    OneToManyMatches,
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
        return name_losses(weighted, suffixes)


class OneToManyCriterion(SetCriterion):
    """A criterion that also supervises the second class heads of a decoder (MS-DETR, section 3.2).

    The matches of :class:`OneToManyMatcher` have the class, L1 and GIoU losses of the parent; other
    queries are background for the second head. The sums are divided by the number of boxes.

    Args:
        one_to_many_matcher: assigns the predictions with the logits of the second heads.
        one_to_many_class_weight, one_to_many_l1_weight, one_to_many_giou_weight: of these losses.
        matcher, class_weight, l1_weight, giou_weight, alpha, gamma, class_loss: of the parent.
    """

    def __init__(
        self,
        *,
        one_to_many_matcher: Callable[[DetectionPredictions, DetectionTargets], OneToManyMatches],
        one_to_many_class_weight: float = 2.0,
        one_to_many_l1_weight: float = 5.0,
        one_to_many_giou_weight: float = 2.0,
        matcher: Callable[[DetectionPredictions, DetectionTargets], Matches],
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
        class_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            matcher=matcher,
            class_weight=class_weight,
            l1_weight=l1_weight,
            giou_weight=giou_weight,
            alpha=alpha,
            gamma=gamma,
            class_loss=class_loss,
        )

        self.one_to_many_matcher = one_to_many_matcher

        self.one_to_many_class_weight = one_to_many_class_weight
        self.one_to_many_l1_weight = one_to_many_l1_weight
        self.one_to_many_giou_weight = one_to_many_giou_weight

    def forward(
        self,
        decoder: DetectionPredictions,
        encoder: DetectionPredictions,
        targets: DetectionTargets,
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute the losses of the parent, and those with suffix ``_o2m`` or ``_o2m_i``.

        Raises:
            ValueError: the decoder has no second heads.
        """
        if decoder.one_to_many_logits is None:
            raise ValueError(
                "OneToManyCriterion needs the second class heads of a OneToManyDecoder; set both "
                "model.decoder and model.criterion, or neither"
            )

        second = replace(decoder, pred_logits=decoder.one_to_many_logits)
        return {
            **super().forward(decoder, encoder, targets, normalizers),
            **self.one_to_many_losses(second, targets, normalizers.num_boxes),
        }

    def one_to_many_losses(
        self, predictions: DetectionPredictions, targets: DetectionTargets, num_boxes: float
    ) -> dict[str, Tensor]:
        """Compute the three weighted losses of each layer, with the logits of the second heads."""
        dtype = torch.promote_types(predictions.pred_logits.dtype, torch.float32)
        pred_logits = predictions.pred_logits.to(dtype)
        pred_boxes = predictions.pred_boxes.to(dtype)

        # All queries are compared with a box, and those without a match are masked: the number of
        # matches stays on the device. A batch without boxes gets one that is never matched.
        matches = self.one_to_many_matcher(predictions, targets)
        targets = targets.with_a_box()
        image = torch.arange(len(targets.labels), device=pred_boxes.device)[:, None]
        target_boxes = targets.boxes[image, matches.box].to(dtype)  # (I, B, N, 4)
        pred_xyxy = box_cxcywh_to_xyxy(pred_boxes)
        iou, giou = box_iou_and_giou(pred_xyxy, box_cxcywh_to_xyxy(target_boxes))

        classes = torch.arange(pred_logits.shape[-1], device=pred_boxes.device)
        is_class = targets.labels[image, matches.box][..., None] == classes
        positive = matches.matched[..., None] & is_class
        iou_target = iou.detach()[..., None] * positive

        class_loss = self.class_loss(pred_logits, iou_target, positive)
        if predictions.num_valid is not None:
            padded = ~valid_mask(predictions.num_valid, pred_logits[0])
            class_loss = class_loss.masked_fill(padded[..., None], 0)

        unmatched = ~matches.matched
        l1_loss = (pred_boxes - target_boxes).abs().sum(-1).masked_fill(unmatched, 0)
        giou_loss = (1 - giou).masked_fill(unmatched, 0)

        weighted = {
            "loss_class": self.one_to_many_class_weight * class_loss.sum((1, 2, 3)) / num_boxes,
            "loss_bbox": self.one_to_many_l1_weight * l1_loss.sum((1, 2)) / num_boxes,
            "loss_giou": self.one_to_many_giou_weight * giou_loss.sum((1, 2)) / num_boxes,
        }
        suffixes = [f"_o2m{suffix}" for suffix in layer_suffixes(len(predictions))]
        return name_losses(weighted, suffixes)


def name_losses(layer_losses: Mapping[str, Tensor], suffixes: Sequence[str]) -> dict[str, Tensor]:
    """Return the (I,) losses as one of each layer, whose names end in the layer's suffix."""
    losses: dict[str, Tensor] = {}
    for name, values in layer_losses.items():
        for suffix, loss in zip(suffixes, values.unbind(), strict=True):
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
