"""Detectors of other packages with detectron2's interface and random weights, to compare costs.

Nothing is downloaded. Images keep their size, and are padded to multiples of 32 as this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.models import get_model_builder

from salience_detr.modeling.masks import padding_mask
from salience_detr.modeling.optimization import compile_stages

SIZE_DIVISIBILITY = 32


class TorchvisionDetector(nn.Module):
    """A detector of torchvision."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """See :meth:`salience_detr.modeling.SalienceDETR.forward`; evaluation only."""
        images = scale_images(batched_inputs, next(self.parameters()).device)
        return to_instances(images, self.detector(images))


class TransformersDetector(nn.Module):
    """A detector of transformers, with the method of its image processor that reads its outputs."""

    def __init__(
        self, detector: nn.Module, post_process: Callable[..., list[dict[str, Tensor]]]
    ) -> None:
        super().__init__()
        self.detector = detector
        self.post_process = post_process

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """See :meth:`salience_detr.modeling.SalienceDETR.forward`; evaluation only."""
        images = scale_images(batched_inputs, next(self.parameters()).device)
        batch = ImageList.from_tensors(images, SIZE_DIVISIBILITY)

        # Their masks are True at valid pixels, ours at padding.
        outputs = self.detector(pixel_values=batch.tensor, pixel_mask=~padding_mask(batch))
        results = self.post_process(outputs, threshold=0.0, target_sizes=batch.image_sizes)
        return to_instances(images, results)


def scale_images(batched_inputs: list[dict], device: torch.device) -> list[Tensor]:
    """Return the (3, H, W) images of the inputs in [0, 1]."""
    return [x["image"].to(device, torch.float32) / 255 for x in batched_inputs]


def to_instances(
    images: list[Tensor], results: list[dict[str, Tensor]]
) -> list[dict[str, Instances]]:
    """Convert ``boxes`` (absolute xyxy), ``scores`` and ``labels`` of each image."""
    outputs = []
    for image, result in zip(images, results, strict=True):
        instances = Instances((image.shape[-2], image.shape[-1]))
        instances.pred_boxes = Boxes(result["boxes"])
        instances.scores = result["scores"]
        instances.pred_classes = result["labels"]
        outputs.append({"instances": instances})
    return outputs


def build_torchvision(name: str, size: tuple[int, int], num_classes: int) -> nn.Module:
    """Build a detector of torchvision."""
    detector = get_model_builder(name)(
        weights=None,
        weights_backbone=None,
        # torchvision counts the background as a class, and would resize images to its own size.
        num_classes=num_classes + 1,
        min_size=min(size),
        max_size=max(size),
    )
    return TorchvisionDetector(detector)


def deformable_detr(size: tuple[int, int], num_classes: int) -> nn.Module:
    """Build the variant with box refinement and two stages, which Salience DETR builds on."""
    import transformers

    config = transformers.DeformableDetrConfig(
        # Some versions' default backbone has pretrained weights, which would be downloaded.
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        two_stage=True,
        with_box_refine=True,
        num_labels=num_classes,
    )
    detector = transformers.DeformableDetrForObjectDetection(config)
    processor = transformers.DeformableDetrImageProcessor()
    return TransformersDetector(detector, processor.post_process_object_detection)


def rt_detr(size: tuple[int, int], num_classes: int) -> nn.Module:
    """Build RT-DETR with R50, its configuration's default."""
    import transformers

    config = transformers.RTDetrConfig(num_labels=num_classes)
    detector = transformers.RTDetrForObjectDetection(config)
    processor = transformers.RTDetrImageProcessor()
    return TransformersDetector(detector, processor.post_process_object_detection)


@dataclass(frozen=True)
class OtherDetector:
    """A detector to compare with.

    Attributes:
        label: name in tables.
        package: package that it comes from.
        build: function of the image size (height, width) and the number of classes.
        compiled_stages: submodules that compute on plain tensors, for ``torch.compile``.
        eager_parts: names of the classes in them that are faster as they are.
        uses_nms: True if its time depends on how many boxes have high scores.
    """

    label: str
    package: str
    build: Callable[[tuple[int, int], int], nn.Module]
    compiled_stages: tuple[str, ...]
    eager_parts: tuple[str, ...] = ()
    uses_nms: bool = False

    def compile(self, detector: nn.Module) -> None:
        """Let inductor compile a detector in place, in the way that makes it fastest."""
        for module in detector.modules():
            if type(module).__name__ in self.eager_parts:
                forward = torch.compiler.disable(module.forward)
                module.forward = forward  # type: ignore[method-assign]
        compile_stages(detector, self.compiled_stages)


# Proposals and NMS have shapes that depend on the data, so they are not compiled.
DENSE = ("detector.backbone", "detector.head")
TWO_STAGE = (
    "detector.backbone",
    "detector.rpn.head",
    "detector.roi_heads.box_head",
    "detector.roi_heads.box_predictor",
)
TRANSFORMER = ("detector.model.backbone", "detector.model.encoder", "detector.model.decoder")
# Inductor writes out F.grid_sample as plain arithmetic, which is several times slower on a CPU.
SAMPLING = ("MultiScaleDeformableAttention",)

retinanet = partial(build_torchvision, "retinanet_resnet50_fpn_v2")
fcos = partial(build_torchvision, "fcos_resnet50_fpn")
faster_rcnn = partial(build_torchvision, "fasterrcnn_resnet50_fpn_v2")
OTHER_DETECTORS = {
    "retinanet": OtherDetector("RetinaNet R50 v2", "torchvision", retinanet, DENSE, uses_nms=True),
    "fcos": OtherDetector("FCOS R50", "torchvision", fcos, DENSE, uses_nms=True),
    "faster-rcnn": OtherDetector(
        "Faster R-CNN R50 v2", "torchvision", faster_rcnn, TWO_STAGE, uses_nms=True
    ),
    "deformable-detr": OtherDetector(
        "Deformable DETR R50, two stages", "transformers", deformable_detr, TRANSFORMER, SAMPLING
    ),
    "rt-detr": OtherDetector("RT-DETR R50", "transformers", rt_detr, TRANSFORMER, SAMPLING),
}
