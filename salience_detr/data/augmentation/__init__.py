"""Augmentations that detectron2 lacks, or whose versions there fail on some images.

``presets`` composes them, with detectron2's and torchvision's, to the published lists.
"""

from salience_detr.data.augmentation.albumentations import Albumentations
from salience_detr.data.augmentation.geometric import (
    FlipTransform,
    LimitSide,
    QuarterTurnTransform,
    RandomFlip,
    RandomQuarterTurn,
    ResizeScale,
    ResizeShortestEdge,
    SanitizeBoxes,
    keep_a_pixel,
)
from salience_detr.data.augmentation.photometric import RandomHue, shift_hue
from salience_detr.data.augmentation.torchvision import (
    RandomIoUCrop,
    RandomZoomOut,
    TorchvisionAugmentation,
)

__all__ = [
    "Albumentations",
    "FlipTransform",
    "LimitSide",
    "QuarterTurnTransform",
    "RandomFlip",
    "RandomHue",
    "RandomIoUCrop",
    "RandomQuarterTurn",
    "RandomZoomOut",
    "ResizeScale",
    "ResizeShortestEdge",
    "SanitizeBoxes",
    "TorchvisionAugmentation",
    "keep_a_pixel",
    "shift_hue",
]
