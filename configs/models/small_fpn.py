"""FPN of detectron2, small enough for images of 200 pixels, for the detectors to compare with."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7

CHANNELS = 128
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
# Of the maps that a head gets.
SHAPES = [L(ShapeSpec)(channels=CHANNELS)] * len(LEVELS)


def small_fpn(bottom_up, *, in_feature, in_channels):
    """Return an FPN on a ResNet config, whose levels p6 and p7 are made from ``in_feature``."""
    bottom_up.out_features = ["res3", "res4", "res5"]
    top_block = L(LastLevelP6P7)(
        in_channels=in_channels, out_channels=CHANNELS, in_feature=in_feature
    )
    return L(FPN)(
        bottom_up=bottom_up,
        in_features=bottom_up.out_features,
        out_channels=CHANNELS,
        top_block=top_block,
    )
