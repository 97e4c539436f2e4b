"""Augmentations that detectron2 lacks, or whose versions there fail on some images.

configs/common/augmentation.py composes them.
"""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T


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


class RandomHue(T.Augmentation):
    """Random shift of the hue of (H, W, 3) uint8 RGB images by up to ``max_degrees`` of 360."""

    def __init__(self, max_degrees: float) -> None:
        super().__init__()
        self.max_degrees = max_degrees

    def get_transform(self, image: np.ndarray) -> T.Transform:
        degrees = np.random.uniform(-self.max_degrees, self.max_degrees)
        return T.ColorTransform(lambda pixels: shift_hue(pixels, degrees))


def shift_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """Shift the hue of an (H, W, 3) uint8 RGB image; grays stay."""
    # The hue has 256 steps, and uint8 wraps around as an angle does.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
