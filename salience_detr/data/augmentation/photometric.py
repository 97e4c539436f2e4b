"""Changes of color that detectron2 lacks."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T


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
