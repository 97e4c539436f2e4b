"""Augmentations for ``dataloader.train.mapper.augmentations``: lists that can be joined with ``+``."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from salience_detr.data import (
    RandomFlip,
    RandomHue,
    RandomQuarterTurn,
    ResizeScale,
    ResizeShortestEdge,
)

SIDES, MAX_SIDE = list(range(480, 801, 32)), 1333


def detr(sides=SIDES, max_side=MAX_SIDE):
    """The published recipe (paper, section 4.1): a flip, half of the time a crop, a random size."""
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
    """A random length of the shorter side."""
    return [
        L(ResizeShortestEdge)(
            short_edge_length=list(sides), max_size=max_side, sample_style="choice"
        )
    ]


def large_scale_jitter(size=1024, min_scale=0.1, max_scale=2.0):
    """A flip, a random scale of an image that fits into ``size``, and a window of at most ``size`` of it."""
    return [
        L(RandomFlip)(),
        L(ResizeScale)(
            min_scale=min_scale, max_scale=max_scale, target_height=size, target_width=size
        ),
        L(T.FixedSizeCrop)(crop_size=(size, size), pad=False),
    ]


def photometric_distortion(strength=0.4, hue=18, prob=0.5):
    """Brightness, contrast, saturation (times 1 -/+ strength) and hue (degrees), each with a probability."""
    low, high = 1 - strength, 1 + strength
    colors = [
        L(x)(intensity_min=low, intensity_max=high) for x in (T.RandomBrightness, T.RandomContrast)
    ]
    colors += [
        L(T.RandomSaturation)(intensity_min=low, intensity_max=high),
        L(RandomHue)(max_degrees=hue),
    ]
    return [L(T.RandomApply)(tfm_or_aug=color, prob=prob) for color in colors]


def no_up():
    """Flips and quarter turns, for images that may lie any way round."""
    return [L(RandomQuarterTurn)(), L(RandomFlip)()]


def strong(size=1024):
    """Colors and a wide range of scales, without joining images (no mosaic, no mixup)."""
    return photometric_distortion() + large_scale_jitter(size, min_scale=0.3)
