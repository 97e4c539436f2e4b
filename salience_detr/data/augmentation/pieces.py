"""The augmentations of the published code as LazyConfig pieces.

Lists of augmentations, and lists of mixes of several images, can be joined with ``+``.
configs/common/augmentation.py has them for recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import DictConfig
from torchvision.transforms import v2

from salience_detr.data.augmentation.albumentations import Albumentations, import_albumentations
from salience_detr.data.augmentation.copy_paste import CopyPaste
from salience_detr.data.augmentation.geometric import (
    LimitSide,
    RandomFlip,
    RandomQuarterTurn,
    ResizeScale,
    ResizeShortestEdge,
    SanitizeBoxes,
)
from salience_detr.data.augmentation.multi_image import MixUp, Mosaic
from salience_detr.data.augmentation.photometric import RandomHue
from salience_detr.data.augmentation.torchvision import (
    RandomIoUCrop,
    RandomZoomOut,
    TorchvisionAugmentation,
)

Pieces: TypeAlias = list[DictConfig]

SIDES = list(range(480, 801, 32))
MAX_SIDE = 1333

IMAGENET_MEAN = [123.0, 117.0, 104.0]
BLACK = [0.0, 0.0, 0.0]


def detr(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE, crop_scale: float = 1.0) -> Pieces:
    """Return the published recipe: a flip, a crop half of the time, a random size (paper, 4.1).

    Args:
        sides: lengths of the shorter side.
        max_side: largest length of the longer side.
        crop_scale: changes the sizes of the crop, for images that are not of COCO's size.
    """
    # A window of a smaller image is cut out, so that objects vary more in size.
    crop_sides = [max(1, round(side * crop_scale)) for side in (400, 500, 600)]
    crop_size = (max(1, round(384 * crop_scale)), max(1, round(600 * crop_scale)))
    crop = [
        L(ResizeShortestEdge)(short_edge_length=crop_sides, sample_style="choice"),
        L(T.RandomCrop)(crop_type="absolute_range", crop_size=crop_size),
    ]
    return [
        L(RandomFlip)(),
        L(T.RandomApply)(tfm_or_aug=L(T.AugmentationList)(augs=crop), prob=0.5),
        *multi_scale(sides, max_side),
    ]


def multi_scale(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE) -> Pieces:
    """Return a resize to a random length of the shorter side."""
    return [
        L(ResizeShortestEdge)(
            short_edge_length=list(sides), max_size=max_side, sample_style="choice"
        )
    ]


def large_scale_jitter(size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0) -> Pieces:
    """Return a flip, a random scale of an image that fits into ``size``, and a crop of ``size``."""
    return [
        L(RandomFlip)(),
        L(ResizeScale)(
            min_scale=min_scale, max_scale=max_scale, target_height=size, target_width=size
        ),
        L(T.FixedSizeCrop)(crop_size=(size, size), pad=False),
    ]


def whole_images(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE) -> Pieces:
    """Return flips in both directions, small changes of light, and a random size, without a crop.

    For the end of a training with crops, whose images have no up.
    """
    return [*flips_and_light(), *multi_scale(sides, max_side)]


def stretched_images(sides: Sequence[int]) -> Pieces:
    """Return the same, but a random height and a random width, each one of ``sides``.

    For square images; sides that differ by a fifth stretch an object by as much at most.
    """
    shapes = [[height, width] for height in sides for width in sides]
    return [*flips_and_light(), L(T.RandomResize)(shape_list=shapes)]


def flips_and_light() -> Pieces:
    """Return flips in both directions, and small changes of brightness and contrast."""
    return [
        L(RandomFlip)(),
        L(RandomFlip)(horizontal=False, vertical=True),
        L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
        L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
    ]


def photometric_distortion(strength: float = 0.4, hue: float = 18, prob: float = 0.5) -> Pieces:
    """Return changes of brightness, contrast and saturation (times 1 -/+ strength) and of hue.

    Each happens with the probability ``prob``; ``hue`` is in degrees.
    """
    factors = {"intensity_min": 1 - strength, "intensity_max": 1 + strength}
    colors = [
        L(T.RandomBrightness)(**factors),
        L(T.RandomContrast)(**factors),
        L(T.RandomSaturation)(**factors),
        L(RandomHue)(max_degrees=hue),
    ]
    return [L(T.RandomApply)(tfm_or_aug=color, prob=prob) for color in colors]


def no_up() -> Pieces:
    """Return flips and quarter turns, for images without an up."""
    return [L(RandomQuarterTurn)(), L(RandomFlip)()]


def strong(size: int = 1024) -> Pieces:
    """Return changes of color and a wide range of scales, but no mosaic and no mixup."""
    return photometric_distortion() + large_scale_jitter(size, min_scale=0.3)


def ssd(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE) -> Pieces:
    """Return SSD's: changes of color, zoom-out, IoU crop, a flip; and a random size.

    The published one does not resize.
    """
    return [
        L(LimitSide)(max_side=max_side),
        L(TorchvisionAugmentation)(transform=L(v2.RandomPhotometricDistort)()),
        L(RandomZoomOut)(fill=IMAGENET_MEAN),
        *ssdlite(sides, max_side),
    ]


def ssdlite(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE) -> Pieces:
    """Return SSDLite's: an IoU crop and a flip; and a random size."""
    return [L(RandomIoUCrop)(), *flip_and_resize(sides, max_side)]


def rtdetr(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE) -> Pieces:
    """Return RT-DETR's: changes of color, zoom-out on black, IoU crop, flip, a random size.

    The published one resizes to squares; here images keep their proportions.
    """
    photometric = L(v2.RandomPhotometricDistort)(p=0.8)
    return [
        L(LimitSide)(max_side=max_side),
        L(TorchvisionAugmentation)(transform=photometric),
        L(RandomZoomOut)(fill=BLACK),
        L(RandomIoUCrop)(),
        *flip_and_resize(sides, max_side),
    ]


def flip_and_resize(sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE) -> Pieces:
    """Return a flip and a random size; boxes that are cut to less than a pixel are dropped."""
    return [L(RandomFlip)(), *multi_scale(sides, max_side), L(SanitizeBoxes)()]


def strong_album(
    sides: Sequence[int] = SIDES, max_side: int = MAX_SIDE, crop_scale: float = 1.0
) -> Pieces:
    """Return the published recipe with shifts, colors, compression and blur of albumentations.

    Raises:
        ImportError: albumentations is not installed.
    """
    import_albumentations()
    shift = {"r_shift_limit": 10, "g_shift_limit": 10, "b_shift_limit": 10}
    hue = {"hue_shift_limit": 20, "sat_shift_limit": 30, "val_shift_limit": 20}
    brightness = {"brightness_limit": [0.1, 0.3], "contrast_limit": [0.1, 0.3]}

    # One of each of these.
    colors = [
        {"type": "RGBShift", "p": 1.0, **shift},
        {"type": "HueSaturationValue", "p": 1.0, **hue},
    ]
    blurs = [
        {"type": "Blur", "p": 1.0, "blur_limit": 3},
        {"type": "MedianBlur", "p": 1.0, "blur_limit": 3},
    ]

    # Affine is what became of the published ShiftScaleRotate, which shifts only.
    transforms = [
        {"type": "Affine", "p": 0.5, "translate_percent": [-0.0625, 0.0625]},
        {"type": "RandomBrightnessContrast", "p": 0.2, **brightness},
        {"type": "OneOf", "p": 1.0, "transforms": colors},
        {"type": "ImageCompression", "p": 0.2, "quality_range": [85, 95]},
        {"type": "ChannelShuffle", "p": 0.1},
        {"type": "OneOf", "p": 0.1, "transforms": blurs},
    ]
    return [
        *detr(sides, max_side, crop_scale),
        L(Albumentations)(transforms=transforms),
        L(RandomFlip)(),
        L(RandomFlip)(horizontal=False, vertical=True),
    ]


def mosaic(max_side: int = MAX_SIDE, prob: float = 0.5) -> Pieces:
    """Return a mix: four images around a point."""
    return [L(Mosaic)(max_side=max_side, prob=prob)]


def mixup(max_side: int = MAX_SIDE, prob: float = 0.5) -> Pieces:
    """Return a mix: the mean of two images."""
    return [L(MixUp)(max_side=max_side, prob=prob)]


def copy_paste(prob: float = 0.5) -> Pieces:
    """Return a mix: objects of another image, by their masks where there are any."""
    return [L(CopyPaste)(prob=prob)]
