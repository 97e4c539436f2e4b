"""Copy-paste: objects of another image, put into this one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from salience_detr.data.augmentation.multi_image import MIN_VISIBLE, Sample
from salience_detr.data.masks import ObjectMask, cut_to_extent, decode_mask


@dataclass(frozen=True)
class PlacedObject:
    """An object in an image.

    Attributes:
        box: (4,) absolute xyxy.
        label: its class.
        mask: its pixels that are seen; None if only the box is known.
        area: number of its pixels before something covered it.
    """

    box: np.ndarray
    label: int
    mask: ObjectMask | None
    area: float


@dataclass(frozen=True)
class Cutout:
    """An object to be put into an image.

    Attributes:
        patch: (h, w, 3) uint8.
        pixels: (h, w) bool, those that are put there.
        box: (4,) xyxy in the patch.
        label: its class.
        has_mask: the pixels are those of the object, and not of its box.
    """

    patch: np.ndarray
    pixels: np.ndarray
    box: np.ndarray
    label: int
    has_mask: bool


class CopyPaste:
    """Objects of another image, mirrored or not and of another size, at random places.

    Objects with a mask are cut out by it, others by their box, if it touches no other box.

    Only objects with a mask are covered: their box becomes the extent of what is still seen, and
    they are dropped if less than ``min_visible`` of their pixels is, and never covered but for thin
    strips. An object for which no such place is found is left out.

    Args:
        prob: of pasting; else the sample stays.
        max_objects: largest number of objects.
        scale: least and largest change of size. Objects are no larger than the image.
        min_visible: see above.
        trials: number of places that are tried for each object.
    """

    def __init__(
        self,
        *,
        prob: float = 0.5,
        max_objects: int = 5,
        scale: tuple[float, float] = (0.5, 1.5),
        min_visible: float = MIN_VISIBLE,
        trials: int = 10,
    ) -> None:
        self.prob = prob
        self.max_objects = max_objects
        self.scale = scale
        self.min_visible = min_visible
        self.trials = trials

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        if np.random.uniform() >= self.prob:
            return sample

        # The smaller of the number of objects and a random one.
        source = draw()
        order = np.random.permutation(len(source.boxes))
        count = int(np.random.randint(1, self.max_objects + 1))

        # The image of the sample may be in the cache.
        image = np.array(sample.image, order="C")
        objects = find_objects(sample)
        for index in order[:count]:
            cutout = cut_out(source, int(index))
            if cutout is not None:
                objects = self.place(image, objects, self.vary(cutout, image.shape[:2]))

        # The masks would be those of the image before.
        boxes = [x.box for x in objects]
        return replace(
            sample,
            image=image,
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            classes=np.array([x.label for x in objects], dtype=np.int64),
            segmentations=[],
        )

    def vary(self, cutout: Cutout, image_size: tuple[int, int]) -> Cutout:
        """Mirror and resize an object at random, so that it fits into (height, width)."""
        height, width = cutout.pixels.shape
        if np.random.uniform() < 0.5:
            x0, y0, x1, y1 = cutout.box
            cutout = replace(
                cutout,
                patch=cutout.patch[:, ::-1],
                pixels=cutout.pixels[:, ::-1],
                box=np.array([width - x1, y0, width - x0, y1]),
            )

        # Rounded down, so that it fits.
        factor = np.random.uniform(*self.scale)
        factor = min(factor, image_size[0] / height, image_size[1] / width)
        new_height = max(1, math.floor(height * factor))
        new_width = max(1, math.floor(width * factor))

        size = (new_width, new_height)
        patch = cv2.resize(np.ascontiguousarray(cutout.patch), size)
        # Pixels that are the object's for half at least.
        parts = cv2.resize(cutout.pixels.astype(np.float32), size)
        ratio = np.array([new_width / width, new_height / height] * 2)
        return replace(cutout, patch=patch, pixels=parts >= 0.5, box=cutout.box * ratio)

    def place(
        self, image: np.ndarray, objects: list[PlacedObject], cutout: Cutout
    ) -> list[PlacedObject]:
        """Put an object into an image, in place, and return all objects that are seen then."""
        height, width = cutout.pixels.shape
        for _ in range(self.trials):
            left = int(np.random.randint(image.shape[1] - width + 1))
            top = int(np.random.randint(image.shape[0] - height + 1))
            pasted = cut_to_extent(cutout.pixels, left, top)
            if pasted is None:  # thin parts may get lost when it is made smaller
                return objects

            seen = [cover(x, pasted) for x in objects]
            if any(x is None for x in seen):
                continue

            # Only the object's pixels are put there.
            window = image[top : top + height, left : left + width]
            window[cutout.pixels] = cutout.patch[cutout.pixels]

            # Those of which hardly anything is left have no box any more.
            left_over = []
            for placed in seen:
                if placed is not None and is_seen(placed, self.min_visible):
                    left_over.append(placed)

            mask = pasted if cutout.has_mask else None
            box = pasted.box if cutout.has_mask else cutout.box + np.array([left, top] * 2)
            area = float(pasted.pixels.sum())
            return [*left_over, PlacedObject(box, cutout.label, mask, area)]

        # No place was found.
        return objects


def find_objects(sample: Sample) -> list[PlacedObject]:
    """Return the objects of a sample, with their masks where there are any."""
    height, width = sample.image.shape[:2]
    objects = []
    for index, box in enumerate(sample.boxes):
        mask = None
        if sample.segmentations:
            mask = decode_mask(sample.segmentations[index], height, width)

        area = 0.0 if mask is None else float(mask.pixels.sum())
        objects.append(PlacedObject(box, int(sample.classes[index]), mask, area))
    return objects


def cut_out(sample: Sample, index: int) -> Cutout | None:
    """Return an object of a sample; None if it cannot be cut out without parts of others."""
    height, width = sample.image.shape[:2]
    label = int(sample.classes[index])
    mask = None
    if sample.segmentations:
        mask = decode_mask(sample.segmentations[index], height, width)

    # By its mask it comes alone, whatever lies beside it.
    if mask is not None:
        rows, columns = mask.pixels.shape
        window = slice(mask.top, mask.top + rows), slice(mask.left, mask.left + columns)
        box = np.array([0.0, 0.0, columns, rows])
        return Cutout(sample.image[window], mask.pixels, box, label, has_mask=True)

    # By its box it would bring along parts of others.
    box = sample.boxes[index]
    others = np.concatenate([np.delete(sample.boxes, index, axis=0), sample.crowd_boxes])
    x0 = max(0, math.floor(box[0]))
    y0 = max(0, math.floor(box[1]))
    x1 = min(width, math.ceil(box[2]))
    y1 = min(height, math.ceil(box[3]))
    if x0 >= x1 or y0 >= y1 or overlaps(others, np.array([x0, y0, x1, y1])).any():
        return None

    # The box may begin within a pixel.
    patch = sample.image[y0:y1, x0:x1]
    in_patch = np.clip(box - np.array([x0, y0, x0, y0]), 0, [x1 - x0, y1 - y0] * 2)
    return Cutout(patch, np.ones(patch.shape[:2], bool), in_patch, label, has_mask=False)


def overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether boxes (N, 4) share area with a box (4,), absolute xyxy."""
    shared = (boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])
    return np.asarray(shared.all(axis=1))


def cover(placed: PlacedObject, pasted: ObjectMask) -> PlacedObject | None:
    """Return what is seen of an object under a pasted one; None if it must not be covered.

    An object of which nothing is seen has an empty box and mask.
    """
    if not overlaps(placed.box[None], pasted.box).any():
        return placed
    if placed.mask is None:
        return None

    # The pasted pixels in the frame of the object's mask.
    mask = placed.mask
    rows, columns = mask.pixels.shape
    x0 = max(mask.left, pasted.left)
    y0 = max(mask.top, pasted.top)
    x1 = min(mask.left + columns, pasted.left + pasted.pixels.shape[1])
    y1 = min(mask.top + rows, pasted.top + pasted.pixels.shape[0])
    if x0 >= x1 or y0 >= y1:
        return placed

    # Both masks, where they overlap.
    covering = pasted.pixels[y0 - pasted.top : y1 - pasted.top, x0 - pasted.left : x1 - pasted.left]
    seen = mask.pixels.copy()
    seen[y0 - mask.top : y1 - mask.top, x0 - mask.left : x1 - mask.left] &= ~covering
    if seen.sum() == mask.pixels.sum():
        return placed  # only the boxes overlap

    rest = cut_to_extent(seen, mask.left, mask.top)
    if rest is None:
        rest = ObjectMask(mask.left, mask.top, np.zeros((0, 0), bool))
    elif not is_solid(rest):
        return None
    return replace(placed, box=rest.box, mask=rest)


def is_solid(mask: ObjectMask) -> bool:
    """Return whether a mask reaches to all sides of its box with more than a thin strip.

    A strip that is gone when the image is made smaller would leave the box too large.
    """
    padded = np.pad(mask.pixels.astype(np.uint8), 1)
    inner = cut_to_extent(cv2.erode(padded, np.ones((3, 3), np.uint8)) > 0)
    if inner is None:
        return False

    # Both in the frame of the padded mask. Erosion takes a pixel of each side, and round tips.
    height, width = mask.pixels.shape
    whole = np.array([1, 1, 1 + width, 1 + height])
    return bool(np.abs(inner.box - whole).max() <= 2)


def is_seen(placed: PlacedObject, min_visible: float) -> bool:
    """Return whether enough of an object's pixels is seen; those without a mask are not covered."""
    if placed.mask is None:
        return True
    return bool(placed.mask.pixels.sum() >= max(1.0, min_visible * placed.area))
