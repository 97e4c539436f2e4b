"""FCOS of detectron2 on a given backbone, small enough for images of 200 pixels."""

from detectron2.config import LazyCall as L
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from .small_fpn import CHANNELS, LEVELS, SHAPES, small_fpn


def fcos(bottom_up, num_classes):
    """Return FCOS with center sampling on a ResNet config."""
    return L(FCOS)(
        backbone=small_fpn(bottom_up, in_feature="p5", in_channels=CHANNELS),
        head=L(FCOSHead)(
            input_shape=SHAPES,
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
