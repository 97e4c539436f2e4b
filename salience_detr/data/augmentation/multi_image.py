"""Augmentations that make one sample of several images: mosaic and mixup.

A *mix* is called with a sample and a function that draws another one, and returns a new sample. The
random numbers are numpy's, which the loader seeds for each sample. Mixes are no dataclasses:
omegaconf would take their objects for configs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
from detectron2.data import transforms as T

from salience_detr.data.augmentation.boxes import clip_boxes

GRAY = 114  # of what no image covers, as in YOLOX
MIN_VISIBLE = 0.1


@dataclass(frozen=True)
class Sample:
    """An image and its ground truth.

    Attributes:
        image: (H, W, 3) uint8, which must not be changed in place.
        boxes: (G, 4) float64, absolute xyxy.
        classes: (G,) int64.
        crowd_boxes: (C, 4) float64, of regions that are no ground truth.
        segmentations: of each box, a mask in COCO's format, or None; empty where masks are unknown.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd_boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    segmentations: list[Any] = field(default_factory=list)


class Mix(Protocol):
    """Augmentation by other images."""

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        """Return a new sample, of this one and those that are drawn."""


class Mosaic:
    """Four images around a point, on a gray square of twice their mean longer side.

    Each is cut by the square. Boxes are clipped; those of which less than ``min_visible`` is left
    are dropped. (The published code also drops all that are cut, and leaves their objects without a
    box.) The square is as large as it comes; the augmentations that follow resize it.

    Args:
        max_side: images with a longer side are resized before.
        prob: of a mosaic; else the sample stays.
        min_visible: least part of a box's area that is not cut off.
        fill: gray value of the pixels that no image covers.
    """

    def __init__(
        self,
        *,
        max_side: int,
        prob: float = 0.5,
        min_visible: float = MIN_VISIBLE,
        fill: int = GRAY,
    ) -> None:
        self.max_side = max_side
        self.prob = prob
        self.min_visible = min_visible
        self.fill = fill

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        if np.random.uniform() >= self.prob:
            return sample

        # The sample itself is at the upper left.
        tiles = [limit_side(x, self.max_side) for x in (sample, draw(), draw(), draw())]
        longer_sides = [max(tile.image.shape[:2]) for tile in tiles]
        side = max(1, int(np.mean(longer_sides)))
        center_x = int(np.random.uniform(0.5, 1.5) * side)
        center_y = int(np.random.uniform(0.5, 1.5) * side)

        # Each tile has a corner at the center, and reaches away from it.
        canvas = np.full((2 * side, 2 * side, 3), self.fill, np.uint8)
        boxes = []
        classes = []
        for number, tile in enumerate(tiles):
            height, width = tile.image.shape[:2]
            row, column = divmod(number, 2)
            left = center_x - (1 - column) * width
            top = center_y - (1 - row) * height

            paste(canvas, tile.image, left, top)

            # Tiles do not cover each other: only the edge of the canvas cuts them.
            moved = tile.boxes + np.array([left, top, left, top])
            clipped, kept = clip_boxes(moved, *canvas.shape[:2], min_visible=self.min_visible)
            boxes.append(clipped[kept])
            classes.append(tile.classes[kept])

        return Sample(canvas, np.concatenate(boxes), np.concatenate(classes))


class MixUp:
    """Mean of two images, with the boxes of both.

    The other image is mirrored half of the time, and resized to the same longer side. Both lie at
    the upper left of a gray image that holds them.

    Args:
        max_side: images with a longer side are resized before.
        prob: of a mixture; else the sample stays.
        alpha: of the beta distribution of the weights; the published 32 keeps them near 0.5.
        fill: gray value of the pixels that an image does not cover.
    """

    def __init__(
        self, *, max_side: int, prob: float = 0.5, alpha: float = 32.0, fill: int = GRAY
    ) -> None:
        self.max_side = max_side
        self.prob = prob
        self.alpha = alpha
        self.fill = fill

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        if np.random.uniform() >= self.prob:
            return sample

        first = limit_side(sample, self.max_side)

        # Objects of both have about the size that they have alone.
        second = draw()
        if np.random.uniform() < 0.5:
            second = mirror(second)
        second = resize_sample(second, max(first.image.shape[:2]) / max(second.image.shape[:2]))

        size = np.maximum(first.image.shape[:2], second.image.shape[:2])
        canvases = [np.full((*size, 3), self.fill, np.uint8) for _ in range(2)]
        paste(canvases[0], first.image, 0, 0)
        paste(canvases[1], second.image, 0, 0)

        # Both stay visible: nothing is dropped.
        weight = np.random.beta(self.alpha, self.alpha)
        return Sample(
            image=cv2.addWeighted(canvases[0], weight, canvases[1], 1 - weight, 0),
            boxes=np.concatenate([first.boxes, second.boxes]),
            classes=np.concatenate([first.classes, second.classes]),
        )


def paste(canvas: np.ndarray, image: np.ndarray, left: int, top: int) -> None:
    """Copy an image into a larger one, in place; what lies beyond is left out."""
    height, width = image.shape[:2]
    x0 = max(left, 0)
    y0 = max(top, 0)
    x1 = min(left + width, canvas.shape[1])
    y1 = min(top + height, canvas.shape[0])

    # It may lie beside the canvas.
    if x0 < x1 and y0 < y1:
        canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]


def limit_side(sample: Sample, max_side: int) -> Sample:
    """Resize a sample whose longer side is over ``max_side`` pixels; the masks are left out."""
    return resize_sample(sample, min(1.0, max_side / max(sample.image.shape[:2])))


def resize_sample(sample: Sample, factor: float) -> Sample:
    """Resize a sample, to one pixel at least; the masks are left out."""
    height, width = sample.image.shape[:2]
    new_height = max(1, round(height * factor))
    new_width = max(1, round(width * factor))
    if (new_height, new_width) == (height, width):
        return sample  # with its masks

    resize = T.ResizeTransform(height, width, new_height, new_width)
    return Sample(resize.apply_image(sample.image), resize.apply_box(sample.boxes), sample.classes)


def mirror(sample: Sample) -> Sample:
    """Flip a sample horizontally; the masks are left out."""
    flip = T.HFlipTransform(sample.image.shape[1])
    return Sample(flip.apply_image(sample.image), flip.apply_box(sample.boxes), sample.classes)
