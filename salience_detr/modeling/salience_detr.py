"""Salience DETR (Hou et al., CVPR 2024): the pipeline from images to losses or detections.

Symbols: B images, L levels, S tokens, D channels, K classes, N queries, T denoising queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from salience_detr.layers.box_ops import box_xyxy_to_cxcywh
from salience_detr.modeling.criterion import SetCriterion, check_labels, mean_num_boxes
from salience_detr.modeling.decoder import SalienceDecoder
from salience_detr.modeling.denoising import DenoisingGenerator, DenoisingQueries
from salience_detr.modeling.distributed import mean_count
from salience_detr.modeling.encoder import SalienceEncoder
from salience_detr.modeling.feature_fusion import FeatureFusion
from salience_detr.modeling.postprocess import select_detections
from salience_detr.modeling.query_selection import Proposals, QuerySelection
from salience_detr.modeling.salience import SalienceFilter, SalienceSelection
from salience_detr.modeling.salience_loss import SalienceCriterion
from salience_detr.modeling.structures import BatchCounts, DetectionPredictions, DetectionTargets
from salience_detr.modeling.token_pyramid import (
    TokenProjection,
    TokenPyramid,
    TokenPyramidBuilder,
    flatten_maps,
)


@dataclass(frozen=True)
class Encoding:
    """What the decoder starts from, and how the model came to it.

    Attributes:
        tokens: of the backbone's maps.
        selection: the salience of all tokens, and the tokens that the encoder refined.
        memory: (B, S, D) encoded and fused.
        proposals: the tokens that become queries, with their boxes.
    """

    tokens: TokenPyramid
    selection: SalienceSelection
    memory: Tensor
    proposals: Proposals


@META_ARCH_REGISTRY.register()
class SalienceDETR(nn.Module):
    """A two-stage DETR that encodes only the salient tokens.

    The arguments are the stages in the order of the data; ``num_classes`` and ``num_queries`` repeat what the
    stages were built with.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: nn.Module,
        token_pyramid: TokenPyramidBuilder,
        token_projection: TokenProjection,
        salience_filter: SalienceFilter,
        encoder: SalienceEncoder,
        feature_fusion: FeatureFusion,
        query_selection: QuerySelection,
        decoder: SalienceDecoder,
        denoising: DenoisingGenerator,
        criterion: SetCriterion,
        salience_criterion: SalienceCriterion,
        num_classes: int,
        num_queries: int,
        embed_dim: int = 256,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
        size_divisibility: int = 32,
        max_detections: int = 300,
    ) -> None:
        super().__init__()
        if len(encoder.layers) != len(salience_filter.layer_ratios):
            raise ValueError(
                f"the encoder has {len(encoder.layers)} layers but layer_ratios {salience_filter.layer_ratios} "
                f"has {len(salience_filter.layer_ratios)} entries; give one ratio per layer"
            )
        if denoising.num_queries != num_queries or query_selection.num_queries != num_queries:
            raise ValueError(
                f"num_queries is {num_queries}, but query_selection has {query_selection.num_queries} and denoising "
                f"{denoising.num_queries}; build all three with the same number"
            )
        self.backbone = backbone
        self.neck = neck
        self.token_pyramid = token_pyramid
        self.token_projection = token_projection
        self.salience_filter = salience_filter
        self.encoder = encoder
        self.feature_fusion = feature_fusion
        self.query_selection = query_selection
        self.query_embedding = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.decoder = decoder
        self.denoising = denoising
        self.criterion = criterion
        self.salience_criterion = salience_criterion
        self.num_classes = num_classes
        self.num_queries = num_queries
        # Plain numbers, not buffers: they take the precision of the model exactly.
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.input_format = input_format
        self.size_divisibility = size_divisibility
        self.max_detections = max_detections
        nn.init.normal_(self.query_embedding)

    @property
    def device(self) -> torch.device:
        return self.query_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.query_embedding.dtype

    def forward(
        self, batched_inputs: list[dict[str, Any]], whole: BatchCounts | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Detect, or compute the losses in training.

        Args:
            batched_inputs: for each image a dict with ``image``, (3, H, W) RGB in 0..255; ``height`` and ``width``
                of the frame that detections are wanted in (those of the image if absent); in training
                ``instances`` with ``gt_boxes`` (absolute xyxy in the frame of the image) and ``gt_classes``.
            whole: in training, the counts of the batch that these images are a part of (:meth:`count`).

        Returns:
            In training the weighted losses by name. In evaluation ``{"instances": Instances}`` for each image,
            with ``pred_boxes`` (absolute xyxy, not clipped), ``scores`` and ``pred_classes``, by falling score.

        Raises:
            KeyError: in training, an input without ``instances``.
            ValueError: a ground-truth class that is not below ``num_classes``.
        """
        images = self.preprocess_images(
            batched_inputs, None if whole is None else whole.padded_size
        )
        encoding = self.encode(images.tensor, padding_mask(images))
        if not self.training:
            return self.postprocess(
                self.decode(encoding), encoding.proposals, images, batched_inputs
            )
        targets = self.prepare_targets(batched_inputs)
        denoising = self.denoising(targets, max_boxes=None if whole is None else whole.max_boxes)
        predictions = self.decode(encoding, denoising)
        num_boxes, num_salient = (
            (None, None) if whole is None else (whole.num_boxes, whole.num_salient)
        )
        losses = self.compute_losses(predictions, encoding.proposals, denoising, targets, num_boxes)
        score_maps, padded_size = (
            encoding.selection.score_maps,
            (images.tensor.shape[-2], images.tensor.shape[-1]),
        )
        return losses | self.salience_criterion(
            score_maps, targets, padded_size, num_salient=num_salient
        )

    def encode(self, images: Tensor, padding: Tensor) -> Encoding:
        """All that comes before the decoder.

        Args:
            images: (B, 3, H, W), normalized, 0 where padded.
            padding: (B, H, W), True = padding.
        """
        maps = self.neck(self.backbone(images))
        tokens = self.token_pyramid(maps, padding)
        salience_memory = self.token_projection(
            tokens.features + tokens.positions, tokens.valid_proposals
        )
        selection = self.salience_filter(salience_memory, tokens)
        memory = self.encoder(tokens, selection, self.query_selection.class_head)
        memory = flatten_maps(self.feature_fusion(tokens.to_maps(memory)))
        output_memory = self.token_projection(memory, tokens.valid_proposals)
        return Encoding(tokens, selection, memory, self.query_selection(output_memory, tokens))

    @torch.no_grad()
    def count(self, batched_inputs: list[dict[str, Any]]) -> BatchCounts:
        """What the losses of the parts of a batch need to know of it; every process calls this.

        With it the losses, and the gradients, of the parts add up to those of the whole batch, if no layer mixes the
        images of a batch (as BatchNorm does) and no other layer draws random numbers (as drop path does).
        """
        sides = [[x["image"].shape[axis] for x in batched_inputs] for axis in (1, 2)]
        height, width = (
            math.ceil(max(side) / self.size_divisibility) * self.size_divisibility for side in sides
        )
        targets = self.prepare_targets(batched_inputs)
        num_salient = self.salience_criterion.count_salient(
            self.level_shapes(height, width), targets, (height, width)
        )
        return BatchCounts(
            num_boxes=mean_num_boxes(targets, self.device),
            num_salient=mean_count(num_salient).item(),
            max_boxes=max(len(target) for target in targets),
            padded_size=(height, width),
        )

    def level_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(H_l, W_l) of the levels of a padded batch of ``height`` and ``width`` pixels."""
        backbone: Any = self.backbone
        neck: Any = self.neck
        strides = [backbone.output_shape()[name].stride for name in neck.in_features]
        strides += [strides[-1] * 2 ** (i + 1) for i in range(neck.num_levels - len(strides))]
        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]

    def preprocess_images(
        self, batched_inputs: list[dict[str, Any]], padded_size: tuple[int, int] | None = None
    ) -> ImageList:
        """Normalize, and pad at the right and at the bottom to ``padded_size`` (height, width).

        By default that is the smallest common multiple of ``size_divisibility``.
        """
        mean, std = (
            torch.tensor(values, dtype=self.dtype, device=self.device)[:, None, None]
            for values in (self.pixel_mean, self.pixel_std)
        )
        images = [(x["image"].to(self.device, self.dtype) - mean) / std for x in batched_inputs]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        if padded_size is None:
            return batch
        missing = [
            padded - side for padded, side in zip(padded_size, batch.tensor.shape[-2:], strict=True)
        ]
        return ImageList(
            nn.functional.pad(batch.tensor, [0, missing[1], 0, missing[0]]), batch.image_sizes
        )

    def prepare_targets(self, batched_inputs: list[dict[str, Any]]) -> list[DetectionTargets]:
        """Ground truth of each image, normalized by its unpadded size."""
        targets = []
        for x in batched_inputs:
            instances = x["instances"]
            height, width = instances.image_size
            boxes = instances.gt_boxes.tensor.to(
                self.device, torch.promote_types(self.dtype, torch.float32)
            )
            normalized = box_xyxy_to_cxcywh(
                boxes / boxes.new_tensor([width, height, width, height])
            )
            targets.append(
                DetectionTargets(instances.gt_classes.to(self.device), normalized, (height, width))
            )
        check_labels(targets, self.num_classes)
        return targets

    def decode(
        self, encoding: Encoding, denoising: DenoisingQueries | None = None
    ) -> DetectionPredictions:
        """Decode the proposals, with the denoising queries before them if there are any."""
        proposals = encoding.proposals
        boxes = proposals.boxes.detach()
        query = self.query_embedding[: boxes.shape[1]].expand(len(boxes), -1, -1)
        if denoising is not None:
            query = torch.cat([denoising.content.to(query), query], dim=1)
            boxes = torch.cat([denoising.reference_boxes.to(boxes), boxes], dim=1)
        attention_mask = self_attention_mask(proposals, denoising)
        return self.decoder(query, boxes, encoding.memory, encoding.tokens, attention_mask)

    def compute_losses(
        self,
        predictions: DetectionPredictions,
        proposals: Proposals,
        denoising: DenoisingQueries,
        targets: list[DetectionTargets],
        num_boxes: float | None = None,
    ) -> dict[str, Tensor]:
        """Losses of every decoder layer, of the proposals and of the denoising queries."""
        denoised, matching = predictions.split_queries(denoising.layout.num_queries)
        encoder = DetectionPredictions(
            proposals.logits[None], proposals.boxes[None], proposals.query_mask
        )
        matching = DetectionPredictions(matching.logits, matching.boxes, proposals.query_mask)
        return self.criterion(
            matching, encoder, targets, (denoised, denoising.layout), num_boxes=num_boxes
        )

    def postprocess(
        self,
        predictions: DetectionPredictions,
        proposals: Proposals,
        images: ImageList,
        batched_inputs: list[dict[str, Any]],
    ) -> list[dict[str, Instances]]:
        """Detections of each image in the frame of its ``height`` and ``width``."""
        results = []
        for i, (x, (height, width)) in enumerate(
            zip(batched_inputs, images.image_sizes, strict=True)
        ):
            is_query = proposals.query_mask[i]
            instances = select_detections(
                predictions.logits[-1, i][is_query],
                predictions.boxes[-1, i][is_query],
                (x.get("height", height), x.get("width", width)),
                max_detections=self.max_detections,
            )
            results.append({"instances": instances})
        return results


def padding_mask(images: ImageList) -> Tensor:
    """(B, H, W) True = padding."""
    mask = torch.ones(
        len(images), *images.tensor.shape[-2:], dtype=torch.bool, device=images.tensor.device
    )
    for image_mask, (height, width) in zip(mask, images.image_sizes, strict=True):
        image_mask[:height, :width] = False
    return mask


def self_attention_mask(proposals: Proposals, denoising: DenoisingQueries | None) -> Tensor | None:
    """What the decoder's queries may not see (True), or None where all see all.

    Returns:
        (T + n, T + n), or (B, T + n, T + n) where some images have surplus slots, which nothing may see.
    """
    num_denoising = 0 if denoising is None else denoising.layout.num_queries
    total = num_denoising + proposals.query_mask.shape[1]
    mask = None if denoising is None else denoising.attention_mask[:total, :total]
    if not proposals.query_mask.all():
        surplus = nn.functional.pad(~proposals.query_mask, [num_denoising, 0])[:, None, :]
        mask = surplus.expand(-1, total, -1) if mask is None else mask | surplus
    return mask
