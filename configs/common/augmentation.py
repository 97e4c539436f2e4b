"""Augmentations for ``dataloader.train.mapper.augmentations``: lists to join with ``+``."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from salience_detr.data import (
    RandomFlip,
    RandomHue,
    RandomQuarterTurn,
    ResizeScale,
    ResizeShortestEdge,
)

SIDES = list(range(480, 801, 32))
MAX_SIDE = 1333


def detr(sides=SIDES, max_side=MAX_SIDE):
    """Return the published recipe: a flip, a crop half of the time, a random size (paper, 4.1)."""
    # A window of a smaller image is cut out, so that objects vary more in size.
    crop = [
        L(ResizeShortestEdge)(short_edge_length=[400, 500, 600], sample_style="choice"),
        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
    ]
    return [
        L(RandomFlip)(),
        L(T.RandomApply)(tfm_or_aug=L(T.AugmentationList)(augs=crop), prob=0.5),
        *multi_scale(sides, max_side),
    ]


def multi_scale(sides=SIDES, max_side=MAX_SIDE):
    """Return a resize to a random length of the shorter side."""
    return [
        L(ResizeShortestEdge)(
            short_edge_length=list(sides), max_size=max_side, sample_style="choice"
        )
    ]


def large_scale_jitter(size=1024, min_scale=0.1, max_scale=2.0):
    """Return a flip, a random scale of an image that fits into ``size``, and a crop of ``size``."""
    return [
        L(RandomFlip)(),
        L(ResizeScale)(
            min_scale=min_scale, max_scale=max_scale, target_height=size, target_width=size
        ),
        L(T.FixedSizeCrop)(crop_size=(size, size), pad=False),
    ]


def photometric_distortion(strength=0.4, hue=18, prob=0.5):
    """Return changes of brightness, contrast and saturation (times 1 -/+ strength) and of hue.

    Each happens with the probability ``prob``; ``hue`` is in degrees.
    """
    factors = dict(intensity_min=1 - strength, intensity_max=1 + strength)
    colors = [
        L(T.RandomBrightness)(**factors),
        L(T.RandomContrast)(**factors),
        L(T.RandomSaturation)(**factors),
        L(RandomHue)(max_degrees=hue),
    ]
    return [L(T.RandomApply)(tfm_or_aug=color, prob=prob) for color in colors]


def no_up():
    """Return flips and quarter turns, for images without an up."""
    return [L(RandomQuarterTurn)(), L(RandomFlip)()]


def strong(size=1024):
    """Return changes of color and a wide range of scales, but no mosaic and no mixup."""
    return photometric_distortion() + large_scale_jitter(size, min_scale=0.3)
