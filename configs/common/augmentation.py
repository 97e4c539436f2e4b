"""Augmentations for ``dataloader.train.mapper.augmentations``: lists to join with ``+``.

``use_preset(dataloader, "mosaic_mixup")`` takes one of PRESETS as a whole, as ``--augmentation``.
"""

from salience_detr.data.augmentation.pieces import (
    MAX_SIDE,
    SIDES,
    copy_paste,
    detr,
    flip_and_resize,
    large_scale_jitter,
    mixup,
    mosaic,
    multi_scale,
    no_up,
    photometric_distortion,
    rtdetr,
    ssd,
    ssdlite,
    stretched_images,
    strong,
    strong_album,
    whole_images,
)
from salience_detr.data.augmentation.presets import PRESETS, use_preset
