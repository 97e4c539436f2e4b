"""FCOS of detectron2 on a given backbone, small enough for images of 200 pixels."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

CHANNELS = 128
LEVELS = ["p3", "p4", "p5", "p6", "p7"]


def fcos(bottom_up, num_classes):
    """Return FCOS with center sampling on a ResNet config."""
    bottom_up.out_features = ["res3", "res4", "res5"]
    return L(FCOS)(
        backbone=L(FPN)(
            bottom_up=bottom_up,
            in_features=bottom_up.out_features,
            out_channels=CHANNELS,
            top_block=L(LastLevelP6P7)(
                in_channels=CHANNELS, out_channels=CHANNELS, in_feature="p5"
            ),
        ),
        head=L(FCOSHead)(
            input_shape=[L(ShapeSpec)(channels=CHANNELS)] * len(LEVELS),
            num_classes="${..num_classes}",
            conv_dims=[CHANNELS] * 4,
            prior_prob=0.01,
            norm="GN",
        ),
        num_classes=num_classes,
        head_in_features=LEVELS,
        # AP counts weak detections, too: the default of 0.2 leaves them out.
        test_score_thresh=0.05,
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
