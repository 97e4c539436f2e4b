"""Augmentations of torchvision.transforms.v2 as detectron2's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from salience_detr.data.augmentation.boxes import ResultTransform, restore_order

# int(0.3 * side), the smallest crop, is a pixel at least.
SMALLEST_SIDE = 4


class TorchvisionAugmentation(T.Augmentation):
    """A transform of torchvision.transforms.v2, applied to the image and its boxes.

    Its random numbers are torch's, which the loader seeds for each image. Boxes that it drops, or
    leaves without area, become zeros, which the mapper leaves out.

    Args:
        transform: for uint8 images and boxes.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        # Images to detect on have no boxes.
        count = 0 if boxes is None else len(boxes)
        given = np.zeros((0, 4)) if boxes is None else boxes

        # Views with negative strides, as of BGR images, are no tensors.
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        sample = {
            "image": tv_tensors.Image(pixels.permute(2, 0, 1)),
            "boxes": tv_tensors.BoundingBoxes(
                torch.as_tensor(given), format="XYXY", canvas_size=image.shape[:2]
            ),
            # Their places, which tell the boxes that are left.
            "labels": torch.arange(count),
        }
        sample = self.transform(sample)

        new_image = np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())
        if boxes is None:
            return ResultTransform(new_image, None)

        new_boxes = sample["boxes"].as_subclass(torch.Tensor).numpy()
        return ResultTransform(new_image, restore_order(new_boxes, sample["labels"].numpy(), count))


class RandomZoomOut(TorchvisionAugmentation):
    """SSD's zoom-out: a larger image around this one, of up to four times its sides.

    Args:
        fill: RGB of the pixels around it. (torchvision's takes no lists of a config.)
        prob: of a zoom-out.
    """

    def __init__(self, fill: Sequence[float], prob: float = 0.5) -> None:
        super().__init__(v2.RandomZoomOut(fill=tuple(fill), p=prob))


class RandomIoUCrop(TorchvisionAugmentation):
    """SSD's random crop: torchvision's RandomIoUCrop, for all images.

    A crop overlaps one of the boxes at least so much (a random IoU). Boxes whose center is not in
    it are dropped, the others are clipped. torchvision's divides by zero at images of a few pixels,
    and takes none without boxes; these stay as they are.
    """

    def __init__(self) -> None:
        super().__init__(v2.RandomIoUCrop())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        # Without boxes it would try in vain until it draws to leave the image as it is.
        is_small = min(image.shape[:2]) < SMALLEST_SIDE
        if is_small or boxes is None or not len(boxes):
            return T.NoOpTransform()
        return super().get_transform(image, boxes)
