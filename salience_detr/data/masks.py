"""Masks of annotations, which are read only where an augmentation asks for them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import log_first_n
from pycocotools import mask as coco_mask

from salience_detr.data.coco_format import Record, read_coco


@dataclass(frozen=True)
class ObjectMask:
    """Mask of one object, cut to its extent.

    Attributes:
        left, top: place in the image, in pixels.
        pixels: (h, w) bool.
    """

    left: int
    top: int
    pixels: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """Return the (4,) extent, absolute xyxy."""
        height, width = self.pixels.shape
        corners = [self.left, self.top, self.left + width, self.top + height]
        return np.array(corners, dtype=np.float64)


def cut_to_extent(pixels: np.ndarray, left: int = 0, top: int = 0) -> ObjectMask | None:
    """Return the mask of (H, W) bool pixels at a place; None if none of them is set."""
    rows = np.flatnonzero(pixels.any(axis=1))
    columns = np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return None

    y0 = int(rows[0])
    x0 = int(columns[0])
    cut = pixels[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    return ObjectMask(left + x0, top + y0, cut)


def decode_mask(segmentation: Any, height: int, width: int) -> ObjectMask | None:
    """Return the mask of a segmentation in COCO's format (polygons or RLE), if it has one.

    A segmentation that is not right counts as none, which is logged.

    Args:
        segmentation: of an annotation, or None.
        height, width: size of the image in pixels.
    """
    if not segmentation:
        return None

    # Polygons, runs as numbers, or compressed runs.
    try:
        if isinstance(segmentation, list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            encoded = coco_mask.frPyObjects(segmentation, height, width)
        else:
            encoded = segmentation
        pixels = coco_mask.decode(encoded).astype(bool)
    except Exception as error:  # pycocotools raises many kinds
        pixels = None
        reason = str(error) or type(error).__name__

    if pixels is None or pixels.shape != (height, width):
        reason = reason if pixels is None else f"it is of {pixels.shape}, not {(height, width)}"
        log_first_n(
            logging.WARNING,
            f"a mask cannot be read ({reason}); the box is taken for it",
            name=__name__,
        )
        return None
    return cut_to_extent(pixels)


def add_segmentations(name: str, records: Sequence[Record]) -> None:
    """Give the annotations of a registered data set their "segmentation", in place.

    Args:
        name: of a data set with an annotation file.
        records: of :class:`CocoLoader`, which leaves out the masks.
    """
    path = Path(MetadataCatalog.get(name).json_file)
    content = read_coco(path, lists=("images", "categories"))

    # Per image, annotations have the order of the file.
    segmentations: dict[int | str, list[Any]] = defaultdict(list)
    for annotation in content.get("annotations", []):
        segmentations[annotation["image_id"]].append(annotation.get("segmentation"))

    for record in records:
        masks = segmentations[record["image_id"]]
        for annotation, segmentation in zip(record.get("annotations", []), masks, strict=True):
            if segmentation:
                annotation["segmentation"] = segmentation
