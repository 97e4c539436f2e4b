"""Detectors of other packages, with random weights, taking and giving what this project's models do: to compare costs.

Nothing is downloaded. Images are computed at the size they have, padded to multiples of 32 as this project's are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from salience_detr.modeling.salience_detr import padding_mask

SIZE_DIVISIBILITY = 32


def as_instances(image: Tensor, found: dict[str, Tensor]) -> dict[str, Instances]:
    """``boxes`` (absolute xyxy), ``scores`` and ``labels`` of a (3, H, W) image as detectron2 has them."""
    instances = Instances((image.shape[-2], image.shape[-1]))
    instances.pred_boxes = Boxes(found["boxes"])
    instances.scores, instances.pred_classes = found["scores"], found["labels"]
    return {"instances": instances}


class TorchvisionDetector(nn.Module):
    """A detector of torchvision that computes images of a size at that size, where it would have resized them."""

    def __init__(self, detector: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        transform: Any = detector.transform
        transform.min_size, transform.max_size = (min(size),), max(size)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """See :meth:`salience_detr.modeling.SalienceDETR.forward`; evaluation only."""
        device = next(self.parameters()).device
        found = self.detector([x["image"].to(device, torch.float32) / 255 for x in batched_inputs])
        return [as_instances(x["image"], one) for x, one in zip(batched_inputs, found, strict=True)]


class TransformersDetector(nn.Module):
    """A detector of transformers with the part of its image processor that makes boxes of its output."""

    def __init__(self, detector: nn.Module, processor: Any) -> None:
        super().__init__()
        self.detector = detector
        self.processor = processor

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """See :meth:`salience_detr.modeling.SalienceDETR.forward`; evaluation only."""
        device = next(self.parameters()).device
        image_tensors = [x["image"].to(device, torch.float32) / 255 for x in batched_inputs]
        images = ImageList.from_tensors(image_tensors, SIZE_DIVISIBILITY)
        outputs = self.detector(pixel_values=images.tensor, pixel_mask=~padding_mask(images))
        found = self.processor.post_process_object_detection(
            outputs,
            threshold=0.0,
            target_sizes=[tuple(image.shape[-2:]) for image in image_tensors],
        )
        return [as_instances(image, one) for image, one in zip(image_tensors, found, strict=True)]


def torchvision_builder(name: str) -> Callable[[tuple[int, int], int], nn.Module]:
    """Of a function of torchvision.models.detection; torchvision counts the background as a class."""

    def build(size: tuple[int, int], num_classes: int) -> nn.Module:
        from torchvision.models import detection

        detector = getattr(detection, name)(
            weights=None, weights_backbone=None, num_classes=num_classes + 1
        )
        return TorchvisionDetector(detector, size)

    return build


def deformable_detr(size: tuple[int, int], num_classes: int) -> nn.Module:
    """The variant with box refinement and two stages, which Salience DETR builds on."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DeformableDetrImageProcessor,
        ResNetConfig,
    )

    config = DeformableDetrConfig(
        # Of its own: what some versions take by default has pretrained weights.
        backbone_config=ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        two_stage=True,
        with_box_refine=True,
        num_labels=num_classes,
    )
    return TransformersDetector(
        DeformableDetrForObjectDetection(config), DeformableDetrImageProcessor()
    )


def rt_detr(size: tuple[int, int], num_classes: int) -> nn.Module:
    """RT-DETR's R50, which its configuration has by default."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

    return TransformersDetector(
        RTDetrForObjectDetection(RTDetrConfig(num_labels=num_classes)), RTDetrImageProcessor()
    )


@dataclass(frozen=True)
class OtherDetector:
    """A detector to compare with.

    Attributes:
        label: for people.
        package: that it comes from.
        build: (height, width) and number of classes -> the detector.
        parts: of tensors only, which ``torch.compile`` takes.
        uses_nms: what it does after the network depends on how many boxes score well.
    """

    label: str
    package: str
    build: Callable[[tuple[int, int], int], nn.Module]
    parts: tuple[str, ...]
    uses_nms: bool = False


DENSE = ("detector.backbone", "detector.head")
TWO_STAGE = (
    "detector.backbone",
    "detector.rpn.head",
    "detector.roi_heads.box_head",
    "detector.roi_heads.box_predictor",
)
TRANSFORMER = ("detector.model.backbone", "detector.model.encoder", "detector.model.decoder")
OTHER_DETECTORS = {
    "retinanet": OtherDetector(
        "RetinaNet R50 v2",
        "torchvision",
        torchvision_builder("retinanet_resnet50_fpn_v2"),
        DENSE,
        uses_nms=True,
    ),
    "fcos": OtherDetector(
        "FCOS R50", "torchvision", torchvision_builder("fcos_resnet50_fpn"), DENSE, uses_nms=True
    ),
    "faster-rcnn": OtherDetector(
        "Faster R-CNN R50 v2",
        "torchvision",
        torchvision_builder("fasterrcnn_resnet50_fpn_v2"),
        TWO_STAGE,
        uses_nms=True,
    ),
    "deformable-detr": OtherDetector(
        "Deformable DETR R50, two stages", "transformers", deformable_detr, TRANSFORMER
    ),
    "rt-detr": OtherDetector("RT-DETR R50", "transformers", rt_detr, TRANSFORMER),
}
