"""Augmentations by name, for the training data of any recipe."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.config import LazyCall as L
from omegaconf import DictConfig, OmegaConf

from salience_detr.data.augmentation.pieces import (
    MAX_SIDE,
    SIDES,
    Pieces,
    copy_paste,
    detr,
    flip_and_resize,
    large_scale_jitter,
    mixup,
    mosaic,
    multi_scale,
    no_up,
    rtdetr,
    ssd,
    ssdlite,
    strong,
    strong_album,
)
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.mixing import MixingMapper

# The lengths of the shorter side, as parts of the largest.
SIDE_FACTORS = [side / SIDES[-1] for side in SIDES]

POOL_SIZE = 40  # of the published caches
# What a preset leaves as it is in the mapper of a recipe.
KEPT_SETTINGS = ("is_train", "image_format", "value_range")


@dataclass(frozen=True)
class ImageSize:
    """Size of the images of a recipe.

    Attributes:
        sides: lengths of the shorter side.
        max_side: largest length of the longer side.
        crop: side of the square of large scale jitter.
    """

    sides: list[int]
    max_side: int
    crop: int

    @property
    def crop_scale(self) -> float:
        """Return the size as a part of COCO's."""
        return max(self.sides) / SIDES[-1]

    @property
    def lengths(self) -> tuple[list[int], int]:
        """Return what the pieces that resize take."""
        return self.sides, self.max_side


@dataclass(frozen=True)
class Preset:
    """Augmentations that a name stands for.

    Attributes:
        augmentations: of single images.
        mixes: of several images, before.
        pool_size: see :class:`MixingMapper`.
        with_masks: the mixes use the masks of annotations.
    """

    augmentations: Pieces
    mixes: Pieces = field(default_factory=list)
    pool_size: int = 0
    with_masks: bool = False


def mixing_preset(*names: str, pool_size: int = 0) -> Callable[[ImageSize], Preset]:
    """Return a preset of mosaic, mixup or both, by a size."""

    def make(size: ImageSize) -> Preset:
        pieces = {"mosaic": mosaic, "mixup": mixup}
        mixes: Pieces = []
        for name in names:
            mixes += pieces[name](size.max_side)
        return Preset(flip_and_resize(*size.lengths), mixes, pool_size)

    return make


PRESETS: Mapping[str, Callable[[ImageSize], Preset]] = {
    "hflip": lambda size: Preset(flip_and_resize([max(size.sides)], size.max_side)),
    "multi_scale": lambda size: Preset(flip_and_resize(*size.lengths)),
    "detr": lambda size: Preset(detr(*size.lengths, size.crop_scale)),
    "lsj": lambda size: Preset(large_scale_jitter(size.crop)),
    "no_up": lambda size: Preset(no_up() + multi_scale(*size.lengths)),
    "strong": lambda size: Preset(strong(size.crop)),
    "ssd": lambda size: Preset(ssd(*size.lengths)),
    "ssdlite": lambda size: Preset(ssdlite(*size.lengths)),
    "rtdetr": lambda size: Preset(rtdetr(*size.lengths)),
    "strong_album": lambda size: Preset(strong_album(*size.lengths, size.crop_scale)),
    "mosaic": mixing_preset("mosaic"),
    "mixup": mixing_preset("mixup"),
    "mosaic_mixup": mixing_preset("mosaic", "mixup"),
    "mixup_mosaic": mixing_preset("mixup", "mosaic"),
    "cached_mosaic": mixing_preset("mosaic", pool_size=POOL_SIZE),
    "cached_mixup": mixing_preset("mixup", pool_size=POOL_SIZE),
    "cached_mosaic_mixup": mixing_preset("mosaic", "mixup", pool_size=POOL_SIZE),
    "cached_mixup_mosaic": mixing_preset("mixup", "mosaic", pool_size=POOL_SIZE),
    "copy_paste": lambda size: Preset(
        flip_and_resize(*size.lengths), copy_paste(), with_masks=True
    ),
}


def check_preset(name: str) -> None:
    """Raise ValueError, with the names that there are, if a name is none of a preset."""
    if name in PRESETS:
        return

    # All names are short enough for one line.
    near = difflib.get_close_matches(name, PRESETS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"there is no augmentation {name!r}; {hint}there are {', '.join(PRESETS)}")


def use_preset(dataloader: DictConfig, name: str) -> None:
    """Give the training loader of a config the augmentations of a name, in place.

    The size of its images stays. Mixes end with ``train.close_up`` of the run.

    Args:
        dataloader: the section of a config, with ``train`` and ``test``.
        name: one of PRESETS.

    Raises:
        ValueError: there is no such name.
        ImportError: it needs a package that is not installed.
    """
    check_preset(name)
    preset = PRESETS[name](find_image_size(dataloader))
    mapper = dataloader.train.mapper

    # As they are written: ${...} stays.
    settings: Any = OmegaConf.to_container(mapper)
    options = {name: settings[name] for name in KEPT_SETTINGS if name in settings}

    # Without copy-paste, masks would only take memory.
    dataset = dataloader.train.dataset
    if preset.with_masks or "with_masks" in dataset:
        dataset.with_masks = preset.with_masks
    if not preset.mixes:
        dataloader.train.mapper = L(DetectionMapper)(augmentations=preset.augmentations, **options)
        return

    dataloader.train.mapper = L(MixingMapper)(
        mixes=preset.mixes,
        augmentations=preset.augmentations,
        pool_size=preset.pool_size,
        close_up="${train.close_up}",
        max_iter="${train.max_iter}",
        **options,
    )


def find_image_size(dataloader: DictConfig) -> ImageSize:
    """Return the size of the images of a recipe, from its augmentations.

    Shorter sides that do not vary in training are varied as the published ones: from 0.6 on.
    """
    sides: list[int] = []
    max_side = 0
    crop = 0

    # What the training says comes last, and wins.
    for split in ("test", "train"):
        for piece in dataloader[split].mapper.augmentations:
            if "short_edge_length" in piece:
                sides = side_lengths(piece)
                max_side = int(piece.get("max_size", 0)) or max_side
            elif "crop_size" in piece and "crop_type" not in piece:
                crop = int(max(piece.crop_size))  # of T.FixedSizeCrop

    # A recipe may resize nothing.
    sides = sides or list(SIDES)
    if len(sides) == 1:
        sides = [max(1, round(sides[0] * factor)) for factor in SIDE_FACTORS]
    max_side = max_side or round(max(sides) * MAX_SIDE / SIDES[-1])
    if not crop:
        # A square of the area of the largest images, 1024 for COCO.
        crop = max(32, int(math.sqrt(max(sides) * max_side)) // 32 * 32)
    return ImageSize(sides, max_side, crop)


def side_lengths(resize: DictConfig) -> list[int]:
    """Return the lengths of the shorter side that a ResizeShortestEdge of a config chooses from."""
    edges = resize.short_edge_length
    if isinstance(edges, int):
        return [edges]
    if resize.get("sample_style", "range") == "choice" or edges[0] == edges[-1]:
        return sorted(set(edges))

    # Of a range, as many as the published ones.
    return [int(edge) for edge in np.linspace(edges[0], edges[-1], len(SIDES))]
