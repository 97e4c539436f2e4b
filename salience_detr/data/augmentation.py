"""Augmentations that detectron2 lacks or that fail on some images; configs/common/augmentation.py composes them."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T


def keep_a_pixel(transform: T.Transform) -> T.Transform:
    """detectron2 rounds the short side of a very long image to no pixels at all; here one is left."""
    if isinstance(transform, T.ResizeTransform):
        transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
    return transform


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, with at least one pixel left."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return keep_a_pixel(super().get_transform(image))


class ResizeScale(T.ResizeScale):
    """detectron2's, with at least one pixel left."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return keep_a_pixel(super().get_transform(image))


class FlipTransform(T.HFlipTransform):
    """detectron2's, with pixels in order: it gives a view backwards, which PyTorch refuses if it is one pixel wide."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.array(super().apply_image(image), order="C")


class RandomFlip(T.RandomFlip):
    """detectron2's, also for images of one pixel's width."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        return (
            FlipTransform(transform.width) if isinstance(transform, T.HFlipTransform) else transform
        )


class QuarterTurnTransform(T.Transform):
    """Turns an image of ``width`` and ``height`` counter-clockwise by ``turns`` times 90 degrees, pixel for pixel."""

    def __init__(self, turns: int, width: int, height: int) -> None:
        super().__init__()
        self.turns = turns % 4
        self.width = width
        self.height = height

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image, self.turns))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) absolute (x, y)"""
        x, y = coords[:, 0], coords[:, 1]
        turned = {
            0: (x, y),
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }[self.turns]
        return np.stack(turned, axis=1)

    def inverse(self) -> T.Transform:
        sides = (self.height, self.width) if self.turns % 2 else (self.width, self.height)
        return QuarterTurnTransform(-self.turns, *sides)


class RandomQuarterTurn(T.Augmentation):
    """Turns by 0, 90, 180 or 270 degrees, for images without an up: defects, cells, views from above."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurnTransform(int(np.random.randint(4)), image.shape[1], image.shape[0])


class RandomHue(T.Augmentation):
    """Moves the hue of an (H, W, 3) uint8 RGB image by up to ``max_degrees`` of 360, either way."""

    def __init__(self, max_degrees: float) -> None:
        super().__init__()
        self.max_degrees = max_degrees

    def get_transform(self, image: np.ndarray) -> T.Transform:
        degrees = np.random.uniform(-self.max_degrees, self.max_degrees)
        return T.ColorTransform(lambda pixels: shift_hue(pixels, degrees))


def shift_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> the same with another hue; grays stay."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # 256 steps of hue
    hsv[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
