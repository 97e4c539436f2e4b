"""Resizing, flips and turns that detectron2 lacks, or that fail there on some images."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T

from salience_detr.data.augmentation.boxes import clip_boxes


def keep_a_pixel(transform: T.Transform) -> T.Transform:
    """Leave at least one pixel: detectron2 rounds the short side of a very long image to zero."""
    if isinstance(transform, T.ResizeTransform):
        transform.new_h = max(1, transform.new_h)
        transform.new_w = max(1, transform.new_w)
    return transform


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's ResizeShortestEdge, with at least one pixel left."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return keep_a_pixel(super().get_transform(image))


class ResizeScale(T.ResizeScale):
    """detectron2's ResizeScale, with at least one pixel left."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return keep_a_pixel(super().get_transform(image))


class FlipTransform(T.HFlipTransform):
    """detectron2's horizontal flip, contiguous in memory.

    detectron2 returns a reversed view, which PyTorch refuses if it is one pixel wide.
    """

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.array(super().apply_image(image), order="C")


class RandomFlip(T.RandomFlip):
    """detectron2's RandomFlip, also for images that are one pixel wide."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.HFlipTransform):
            return FlipTransform(transform.width)
        return transform


class QuarterTurnTransform(T.Transform):
    """Rotation of an image of ``width`` x ``height`` pixels by ``turns`` quarter turns, exactly.

    Turns are counter-clockwise.
    """

    def __init__(self, turns: int, width: int, height: int) -> None:
        super().__init__()
        self.turns = turns % 4
        self.width = width
        self.height = height

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image, self.turns))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate (N, 2) absolute (x, y)."""
        x = coords[:, 0]
        y = coords[:, 1]

        rotated = {
            0: (x, y),
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }
        return np.stack(rotated[self.turns], axis=1)

    def inverse(self) -> T.Transform:
        if self.turns % 2:
            return QuarterTurnTransform(-self.turns, self.height, self.width)
        return QuarterTurnTransform(-self.turns, self.width, self.height)


class RandomQuarterTurn(T.Augmentation):
    """Random rotation by 0, 90, 180 or 270 degrees, for images without an up (views from above)."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurnTransform(int(np.random.randint(4)), image.shape[1], image.shape[0])


class LimitSide(T.Augmentation):
    """Resize of images whose longer side is over ``max_side`` pixels; smaller ones stay.

    What makes images larger (zoom-out, mosaic) needs no more memory than that asks for.
    """

    def __init__(self, max_side: int) -> None:
        super().__init__()
        self.max_side = max_side

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        factor = self.max_side / max(height, width)
        if factor >= 1:
            return T.NoOpTransform()

        new_height = max(1, round(height * factor))
        new_width = max(1, round(width * factor))
        return T.ResizeTransform(height, width, new_height, new_width)


class SanitizeTransform(T.NoOpTransform):
    """Clipping of boxes to an image of (height, width) pixels; see :class:`SanitizeBoxes`."""

    def __init__(self, height: int, width: int, min_visible: float, min_side: float) -> None:
        super().__init__()
        self.height = height
        self.width = width
        self.min_visible = min_visible
        self.min_side = min_side

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Clip (N, 4) absolute xyxy; boxes that are dropped become zeros."""
        clipped, kept = clip_boxes(
            box, self.height, self.width, min_visible=self.min_visible, min_side=self.min_side
        )
        return np.where(kept[:, None], clipped, 0.0)


class SanitizeBoxes(T.Augmentation):
    """Clipping of boxes to the image, and the rule by which those that are cut are dropped.

    A box is dropped if less than ``min_visible`` of its area lies in the image, or if it is cut to
    less than ``min_side`` pixels. It becomes zeros, which the mapper leaves out: augmentations keep
    the number of boxes. torchvision's SanitizeBoundingBoxes knows no visible part.
    """

    def __init__(self, min_visible: float = 0.0, min_side: float = 1.0) -> None:
        super().__init__()
        self.min_visible = min_visible
        self.min_side = min_side

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        return SanitizeTransform(height, width, self.min_visible, self.min_side)
