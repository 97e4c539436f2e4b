"""Salience DETR (Hou et al., CVPR 2024): the pipeline from images to losses or detections.

Symbols: B images, L levels, S tokens, D channels, K classes, N queries, T denoising queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from salience_detr.layers.box_ops import box_xyxy_to_cxcywh
from salience_detr.layers.transfer import to_device
from salience_detr.modeling.criterion import SetCriterion, check_labels
from salience_detr.modeling.decoder import SalienceDecoder
from salience_detr.modeling.denoising import DenoisingGenerator, DenoisingQueries
from salience_detr.modeling.distributed import mean_over_processes, needs_variance
from salience_detr.modeling.encoder import SalienceEncoder
from salience_detr.modeling.feature_fusion import FeatureFusion
from salience_detr.modeling.hybrid_queries import HybridQueries
from salience_detr.modeling.masks import padding_mask, self_attention_mask
from salience_detr.modeling.neck import ChannelMapper
from salience_detr.modeling.postprocess import (
    check_nms,
    clip_detections,
    select_detections,
    suppress_duplicates,
)
from salience_detr.modeling.query_selection import Proposals, QuerySelection
from salience_detr.modeling.salience import SalienceFilter
from salience_detr.modeling.salience_loss import SalienceCriterion, count_salient
from salience_detr.modeling.structures import (
    DetectionPredictions,
    DetectionTargets,
    Encoding,
    LossNormalizers,
    ModelInput,
)
from salience_detr.modeling.token_pyramid import (
    TokenProjection,
    TokenPyramidBuilder,
    flatten_maps,
)


@META_ARCH_REGISTRY.register()
class SalienceDETR(nn.Module):
    """A two-stage DETR that encodes only the salient tokens.

    The arguments are the stages in the order of the data; ``num_classes`` and ``num_queries``
    repeat the numbers that the stages were built with.

    Args:
        pixel_mean, pixel_std: of the channels in the order of ``input_format``, for 0..255.
        size_divisibility: batches are padded to multiples of it.
        max_detections: (query, class) pairs that are kept of an image.
        nms_iou_threshold: of the class-wise NMS on these pairs; None for no NMS, as published.
        nms_soft: the NMS lowers the scores of duplicates instead of leaving them out.
        nms_box_voting: the NMS moves boxes to the mean of their duplicates.
        hybrid_queries: a second set of queries in training; None for one set, as published.

    Raises:
        ValueError: the stages do not fit each other.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: ChannelMapper,
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
        nms_iou_threshold: float | None = None,
        nms_soft: bool = False,
        nms_box_voting: bool = False,
        hybrid_queries: HybridQueries | None = None,
    ) -> None:
        super().__init__()

        if len(encoder.layers) != len(salience_filter.layer_ratios):
            raise ValueError(
                f"the encoder has {len(encoder.layers)} layers but layer_ratios "
                f"{salience_filter.layer_ratios} has {len(salience_filter.layer_ratios)} entries; "
                "give one ratio per layer"
            )
        if denoising.num_queries != num_queries or query_selection.num_queries != num_queries:
            raise ValueError(
                f"num_queries is {num_queries}, but query_selection has "
                f"{query_selection.num_queries} and denoising {denoising.num_queries}; build all "
                "three with the same number"
            )

        check_nms(nms_iou_threshold, soft=nms_soft, box_voting=nms_box_voting)

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
        self.hybrid_queries = hybrid_queries

        self.denoising = denoising
        self.criterion = criterion
        self.salience_criterion = salience_criterion

        self.num_classes = num_classes
        self.num_queries = num_queries

        self.input_format = input_format
        self.size_divisibility = size_divisibility
        self.max_detections = max_detections
        self.nms_iou_threshold = nms_iou_threshold
        self.nms_soft = nms_soft
        self.nms_box_voting = nms_box_voting

        # Numbers, not buffers: a float32 buffer turned to float64 would not hold them exactly.
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)
        self._pixel_statistics: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

        nn.init.normal_(self.query_embedding)

    @property
    def device(self) -> torch.device:
        return self.query_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.query_embedding.dtype

    def forward(
        self, batched_inputs: list[ModelInput], normalizers: LossNormalizers | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Compute the losses in training, and detect in evaluation.

        Args:
            batched_inputs: a dict for each image, with ``image``, (3, H, W) in 0..255, channels in
                the order of ``input_format``; optionally ``height`` and ``width`` of the frame that
                detections are wanted in (default: the image's); in training ``instances`` with
                ``gt_boxes`` (absolute xyxy in the frame of the image) and ``gt_classes``.
            normalizers: in training, those of the batch that these images are a part of
                (default: the images are the batch).

        Returns:
            See :meth:`forward_training` and :meth:`inference`.
        """
        if self.training:
            return self.forward_training(batched_inputs, normalizers)
        return self.inference(batched_inputs)

    def forward_training(
        self, batched_inputs: list[ModelInput], normalizers: LossNormalizers | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses by name.

        Raises:
            KeyError: an input has no ``instances``.
            ValueError: a ground-truth class is not below ``num_classes``.
        """
        targets = self.prepare_targets(batched_inputs)

        # A part of a batch is padded to the size of the whole batch.
        padded_size = self.padded_size(batched_inputs)
        if normalizers is not None:
            padded_size = self.training_size(normalizers.padded_size, len(batched_inputs))

        salience_targets = self.salience_targets(targets, padded_size)
        if normalizers is None:
            normalizers = self.loss_normalizers(targets, salience_targets, padded_size)

        images = self.preprocess_image(batched_inputs, padded_size)
        encoding = self.encode(images.tensor, padding_mask(images))
        denoising = self.denoising(targets, normalizers.max_boxes)
        predictions = self.decode(encoding, denoising)

        # The denoising queries come first.
        denoised, matching = predictions.split_queries(denoising.layout.num_queries)
        proposals = encoding.proposals
        matching = replace(matching, num_valid=proposals.num_valid)

        # The encoder's proposals are predictions of one layer.
        encoder = DetectionPredictions(
            proposals.pred_logits[None], proposals.pred_boxes[None], proposals.num_valid
        )

        score_maps = encoding.selection.score_maps

        losses = {
            **self.criterion(matching, encoder, targets, normalizers),
            **self.criterion.denoising_losses(denoised, denoising.layout, targets, normalizers),
            **self.salience_criterion(score_maps, salience_targets, normalizers),
        }
        if self.hybrid_queries is not None:
            losses |= self.hybrid_queries.losses(
                encoding, self.decoder, self.criterion, targets, normalizers
            )
        return losses

    def inference(self, batched_inputs: list[ModelInput]) -> list[dict[str, Instances]]:
        """Detect.

        Returns:
            ``{"instances": Instances}`` for each image, with ``pred_boxes`` (absolute xyxy in the
            frame of ``height`` and ``width``, clipped to it), ``scores`` and ``pred_classes``, by
            falling score; boxes without area are left out.
        """
        images = self.preprocess_image(batched_inputs)
        encoding = self.encode(images.tensor, padding_mask(images))
        predictions = self.decode(encoding)

        return self.postprocess(predictions, encoding.proposals, images, batched_inputs)

    def preprocess_image(
        self,
        batched_inputs: list[ModelInput],
        padded_size: tuple[int, int] | None = None,
    ) -> ImageList:
        """Normalize the images, and pad them at the right and at the bottom.

        Args:
            padded_size: (height, width); by default the smallest common multiple of
                ``size_divisibility``.
        """
        mean, std = self.pixel_statistics()

        images = []
        for x in batched_inputs:
            # Bytes cross the bus, and the host goes on where the loader has pinned their memory.
            image = x["image"].to(self.device, non_blocking=True).to(self.dtype)
            images.append((image - mean) / std)

        batch = ImageList.from_tensors(images, self.size_divisibility)
        if padded_size is None:
            return batch

        # A part of a batch is padded to the size of the whole batch.
        height, width = batch.tensor.shape[-2:]
        padding = [0, padded_size[1] - width, 0, padded_size[0] - height]
        return ImageList(F.pad(batch.tensor, padding), batch.image_sizes)

    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (3, 1, 1), made once per device and dtype."""
        key = (self.device, self.dtype)
        if key not in self._pixel_statistics:
            # Tensors made in inference mode could not be used in training.
            with torch.inference_mode(False):
                mean = to_device(self.pixel_mean, self.query_embedding)
                std = to_device(self.pixel_std, self.query_embedding)
            self._pixel_statistics[key] = (mean[:, None, None], std[:, None, None])

        return self._pixel_statistics[key]

    def prepare_targets(self, batched_inputs: list[ModelInput]) -> DetectionTargets:
        """Return the ground truth, boxes normalized by the unpadded size of their image."""
        dtype = torch.promote_types(self.dtype, torch.float32)

        labels, boxes, image_sizes = [], [], []
        for x in batched_inputs:
            instances = x["instances"]
            height, width = instances.image_size
            boxes_xyxy = instances.gt_boxes.tensor.to(dtype)
            scale = to_device([width, height, width, height], boxes_xyxy)

            labels.append(instances.gt_classes)
            boxes.append(box_xyxy_to_cxcywh(boxes_xyxy / scale))
            image_sizes.append((height, width))

        # Padded and checked where the loader has left it, on the CPU.
        targets = DetectionTargets.from_images(labels, boxes, image_sizes)
        check_labels(targets, self.num_classes)
        return targets.to(self.device)

    @torch.no_grad()
    def compute_loss_normalizers(self, batched_inputs: list[ModelInput]) -> LossNormalizers:
        """Compute the normalizers of a batch; all processes call this together.

        With those of the whole batch, the losses and gradients of its parts add up to the whole
        batch's, if no layer mixes the images of a batch (as BatchNorm does) or draws random numbers
        (as drop path does).
        """
        targets = self.prepare_targets(batched_inputs)
        padded_size = self.padded_size(batched_inputs)
        salience_targets = self.salience_targets(targets, padded_size)
        return self.loss_normalizers(targets, salience_targets, padded_size)

    def loss_normalizers(
        self,
        targets: DetectionTargets,
        salience_targets: Tensor,
        padded_size: tuple[int, int],
    ) -> LossNormalizers:
        """Return the normalizers of a batch; all processes call this together."""
        num_salient = count_salient(salience_targets)
        num_boxes = torch.full_like(num_salient, sum(targets.num_boxes))

        # One reduction, and one copy from the device, for both counts.
        counts = mean_over_processes(torch.stack([num_boxes, num_salient])).tolist()

        return LossNormalizers(
            num_boxes=counts[0],
            num_salient=counts[1],
            max_boxes=targets.max_boxes,
            padded_size=padded_size,
        )

    def salience_targets(self, targets: DetectionTargets, padded_size: tuple[int, int]) -> Tensor:
        """Return the (B, S) salience targets of a padded batch."""
        shapes = self.spatial_shapes_list(*padded_size)
        return self.salience_criterion.targets(shapes, targets, padded_size)

    def padded_size(self, batched_inputs: list[ModelInput]) -> tuple[int, int]:
        """Return the (height, width) in pixels that a batch is padded to in training."""
        # As ImageList pads it.
        divisor = self.size_divisibility
        height = max(x["image"].shape[1] for x in batched_inputs)
        width = max(x["image"].shape[2] for x in batched_inputs)
        padded_size = (
            math.ceil(height / divisor) * divisor,
            math.ceil(width / divisor) * divisor,
        )
        return self.training_size(padded_size, len(batched_inputs))

    def training_size(self, padded_size: tuple[int, int], num_images: int) -> tuple[int, int]:
        """Return a padded size in which BatchNorm can train the backbone.

        A single image that is one value per channel in the last map, which has no variance, is
        padded to two. All other batches keep their size.
        """
        stride = max(self.backbone_strides())
        if num_images > 1 or max(padded_size) > stride or not needs_variance(self.backbone):
            return padded_size

        # The next multiple of the divisor that is above the stride.
        divisor = self.size_divisibility
        return padded_size[0], (stride // divisor + 1) * divisor

    def spatial_shapes_list(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (H_l, W_l) of each level for a padded batch of ``height`` x ``width`` pixels."""
        strides = self.backbone_strides()
        while len(strides) < self.neck.num_levels:
            strides.append(2 * strides[-1])

        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]

    def backbone_strides(self) -> list[int]:
        """Return the stride of each of the backbone's maps that the neck takes."""
        shapes = self.backbone.output_shape()
        return [shapes[name].stride for name in self.neck.in_features]

    def encode(self, images: Tensor, padding: Tensor) -> Encoding:
        """Run all stages before the decoder.

        Args:
            images: (B, 3, H, W), normalized, 0 where padded.
            padding: (B, H, W), True = padding.
        """
        maps = self.neck(self.backbone(images))
        tokens = self.token_pyramid(maps, padding)

        # Salience is scored on projected tokens, with their positions.
        valid = tokens.output_proposals_valid
        salience_memory = self.token_projection(tokens.features + tokens.positions, valid)
        selection = self.salience_filter(salience_memory, tokens)

        # The encoder weighs importance by the class head of the query selection.
        memory = self.encoder(tokens, selection, self.query_selection.class_head)
        memory = flatten_maps(self.feature_fusion(tokens.to_maps(memory)))

        output_memory = self.token_projection(memory, valid)
        proposals = self.query_selection(output_memory, tokens)

        return Encoding(tokens, selection, memory, output_memory, proposals)

    def decode(
        self, encoding: Encoding, denoising: DenoisingQueries | None = None
    ) -> DetectionPredictions:
        """Decode the proposals, with the denoising queries before them if there are any."""
        proposals = encoding.proposals
        boxes = proposals.pred_boxes.detach()

        # Learned contents: the k-th best token of an image gets the k-th embedding.
        query = self.query_embedding[: boxes.shape[1]].expand(len(boxes), -1, -1)

        if denoising is not None:
            query = torch.cat([denoising.content.to(query), query], dim=1)
            boxes = torch.cat([denoising.reference_points.to(boxes), boxes], dim=1)

        attention_mask = self_attention_mask(proposals, denoising)
        return self.decoder(query, boxes, encoding.memory, encoding.tokens, attention_mask)

    def postprocess(
        self,
        predictions: DetectionPredictions,
        proposals: Proposals,
        images: ImageList,
        batched_inputs: list[ModelInput],
    ) -> list[dict[str, Instances]]:
        """Return the detections of each image in the frame of its ``height`` and ``width``."""
        results = []
        for i, x in enumerate(batched_inputs):
            height, width = images.image_sizes[i]
            image_size = (x.get("height", height), x.get("width", width))
            num_valid = int(proposals.num_valid[i])

            selected = select_detections(
                predictions.pred_logits[-1, i, :num_valid],
                predictions.pred_boxes[-1, i, :num_valid],
                image_size,
                max_detections=self.max_detections,
            )
            instances = clip_detections(selected)

            if self.nms_iou_threshold is not None:
                instances = suppress_duplicates(
                    instances,
                    self.nms_iou_threshold,
                    soft=self.nms_soft,
                    box_voting=self.nms_box_voting,
                )
            results.append({"instances": instances})

        return results
