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
from salience_detr.modeling.distributed import mean_count
from salience_detr.modeling.matcher import Match
from salience_detr.modeling.structures import DetectionPredictions, DetectionTargets


class SetCriterion(nn.Module):
    """Weighted class, L1 and GIoU losses of matched predictions."""

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
        denoising: tuple[DetectionPredictions, DenoisingLayout] | None = None,
        *,
        num_boxes: float | None = None,
    ) -> dict[str, Tensor]:
        """Losses by name, weighted.

        Args:
            decoder: predictions of I layers for the matching queries.
            encoder: the proposals, as one layer.
            targets: of B images; none of them need have boxes.
            denoising: predictions of I layers for the denoising queries, and their layout.
            num_boxes: what the losses are divided by; by default the boxes in ``targets`` (mean over the processes).

        Returns:
            ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, with suffix ``_i`` of layer i before it,
            ``_enc`` of the proposals, ``_dn`` and ``_dn_i`` of the denoising queries.
        """
        if num_boxes is None:
            num_boxes = mean_num_boxes(targets, decoder.logits.device)
        losses: dict[str, Tensor] = {}
        for predictions, last_suffix in ((decoder, ""), (encoder, "_enc")):
            for i, (logits, boxes) in enumerate(
                zip(predictions.logits, predictions.boxes, strict=True)
            ):
                matches = self.matcher(logits, boxes, targets, predictions.query_mask)
                suffix = last_suffix if i == len(predictions) - 1 else f"{last_suffix}_{i}"
                losses |= self.layer_losses(
                    logits,
                    boxes,
                    targets,
                    matches,
                    num_boxes,
                    suffix,
                    query_mask=predictions.query_mask,
                )
        if denoising is not None:
            losses |= self.denoising_losses(*denoising, targets, num_boxes)
        return losses

    def denoising_losses(
        self,
        predictions: DetectionPredictions,
        layout: DenoisingLayout,
        targets: list[DetectionTargets],
        num_boxes: float,
    ) -> dict[str, Tensor]:
        """Each box against its positive slots; all other slots, empty ones too, are background."""
        matches = [layout.positive_matches(len(target), target.labels.device) for target in targets]
        losses: dict[str, Tensor] = {}
        for i, (logits, boxes) in enumerate(
            zip(predictions.logits, predictions.boxes, strict=True)
        ):
            suffix = "_dn" if i == len(predictions) - 1 else f"_dn_{i}"
            losses |= self.layer_losses(
                logits, boxes, targets, matches, num_boxes * layout.num_groups, suffix
            )
        return losses

    def layer_losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: list[DetectionTargets],
        matches: list[Match],
        num_boxes: float,
        suffix: str,
        *,
        query_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The three losses of one layer: (B, N, K) logits and (B, N, 4) cxcywh boxes against the matched boxes."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits, boxes = logits.to(dtype), boxes.to(dtype)
        image = torch.cat([query.new_full(query.shape, i) for i, (query, _) in enumerate(matches)])
        query = torch.cat([query for query, _ in matches])
        pairs = list(zip(targets, matches, strict=True))
        labels = torch.cat([target.labels[index] for target, (_, index) in pairs])
        target_boxes = torch.cat([target.boxes[index] for target, (_, index) in pairs]).to(dtype)

        matched = boxes[image, query]
        matched_xyxy, target_xyxy = box_cxcywh_to_xyxy(matched), box_cxcywh_to_xyxy(target_boxes)
        quality = torch.zeros_like(logits)
        quality[image, query, labels] = box_iou(matched_xyxy, target_xyxy)[0].detach()
        positive = torch.zeros_like(logits, dtype=torch.bool)
        positive[image, query, labels] = True
        if query_mask is not None:
            logits, quality, positive = (
                logits[query_mask],
                quality[query_mask],
                positive[query_mask],
            )
        class_loss = iou_aware_class_loss(
            logits, quality, positive, alpha=self.alpha, gamma=self.gamma
        )
        giou = generalized_box_iou(matched_xyxy, target_xyxy)
        return {
            f"loss_class{suffix}": self.class_weight * class_loss / num_boxes,
            f"loss_bbox{suffix}": self.l1_weight * (matched - target_boxes).abs().sum() / num_boxes,
            f"loss_giou{suffix}": self.giou_weight * (1 - giou).sum() / num_boxes,
        }


def mean_num_boxes(targets: list[DetectionTargets], device: torch.device) -> float:
    """Mean number of ground-truth boxes per process over all processes; see :func:`mean_count`."""
    count = torch.tensor(float(sum(len(target) for target in targets)), device=device)
    return mean_count(count).item()


def check_labels(targets: list[DetectionTargets], num_classes: int) -> None:
    """Raise ValueError where a label does not fit the model."""
    labels = torch.cat([target.labels for target in targets])
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        wrong = int(labels.max()) if labels.max() >= num_classes else int(labels.min())
        raise ValueError(
            f"a ground-truth class is {wrong}, but the model has {num_classes} classes (0 to {num_classes - 1}); "
            f"set model.num_classes to the number of classes of the data"
        )
