"""Boxes that an image cuts, and results of other libraries as detectron2's transforms."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T


def clip_boxes(
    boxes: np.ndarray,
    height: int,
    width: int,
    *,
    min_visible: float = 0.0,
    min_side: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to an image, and tell those that are kept.

    Args:
        boxes: (G, 4) absolute xyxy.
        height, width: size of the image in pixels.
        min_visible: least part of a box's area that lies in the image.
        min_side: least width and height in the image, in pixels.

    Returns:
        (G, 4) clipped boxes and (G,) bool, True for those to keep.
    """
    limits = np.array([width, height, width, height], dtype=np.float64)
    clipped = np.clip(boxes, 0, limits)

    sides = clipped[:, 2:] - clipped[:, :2]
    whole_sides = boxes[:, 2:] - boxes[:, :2]
    is_visible = sides.prod(axis=1) >= min_visible * whole_sides.prod(axis=1)

    # Boxes that were dropped before have no area. Boxes that were thin before are not cut.
    needed = np.minimum(min_side, whole_sides)
    is_thick = ((sides >= needed) & (sides > 0)).all(axis=1)
    return clipped, is_visible & is_thick


class ResultTransform(T.Transform):
    """Image and boxes that another library has made of the input, as a transform.

    Other coordinates than those of the boxes are not known.
    """

    def __init__(self, image: np.ndarray, boxes: np.ndarray | None) -> None:
        super().__init__()
        self.image = image
        self.boxes = boxes

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.image

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Return (N, 4) absolute xyxy; boxes that were dropped are zeros."""
        if self.boxes is None:
            raise NotImplementedError("the augmentation has seen no boxes")
        return self.boxes

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("only images and boxes follow this augmentation")


def restore_order(boxes: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` boxes in their order before some were dropped, which become zeros.

    Args:
        boxes: (K, 4) that are left.
        indices: (K,) their places before.
        count: their number before.
    """
    # Classes stay where they are, so that the number of boxes must stay.
    restored = np.zeros((count, 4))
    restored[indices.astype(np.int64)] = boxes.reshape(-1, 4)
    return restored
