"""RetinaNet of detectron2 on a given backbone, small enough for images of 200 pixels."""

from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead

from .small_fpn import CHANNELS, LEVELS, SHAPES, small_fpn


def retinanet(bottom_up, num_classes):
    """Return RetinaNet on a ResNet config whose map "res5" has 256 channels."""
    return L(RetinaNet)(
        backbone=small_fpn(bottom_up, in_feature="res5", in_channels=256),
        head=L(RetinaNetHead)(
            input_shape=SHAPES,
            num_classes="${..num_classes}",
            conv_dims=[CHANNELS] * 4,
            prior_prob=0.01,
            num_anchors=9,
        ),
        # Half as large as for COCO.
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[x * 2 ** (i / 3) for i in range(3)] for x in (16, 32, 64, 128, 256)],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        num_classes=num_classes,
        head_in_features=LEVELS,
        focal_loss_alpha=0.25,
        focal_loss_gamma=2.0,
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        input_format="RGB",
    )
