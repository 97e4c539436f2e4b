"""Mapping of records of a data set to inputs of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import filter_empty_instances
from detectron2.structures import Boxes, BoxMode, Instances

from salience_detr.data.coco_format import Record
from salience_detr.data.images import ImageReadError, read_image
from salience_detr.data.value_range import AUTO, ValueRange

MIN_BOX_SIDE = 1e-3  # in pixels

# detectron2's dict of one image, before and after mapping.


class DetectionMapper:
    """Reads an image, augments it together with its boxes, and packs both for the model.

    Boxes follow the augmentations exactly. Boxes that a crop cuts are clipped, and those that end
    up thinner than MIN_BOX_SIDE are dropped. Images without boxes are kept.

    Args:
        augmentations: applied in order.
        image_format: order of the channels, "RGB" or "BGR".
        value_range: the values of deep images that become black and white, ``[low, high]``, or
            "auto" (see :mod:`salience_detr.data.value_range`).
    """

    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        value_range: object = AUTO,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.value_range = ValueRange(value_range)

    def __call__(self, record: Record) -> Record:
        """Map one record.

        Args:
            record: ``file_name``, ``height``, ``width``, ``image_id`` and, in training,
                ``annotations``.

        Returns:
            The record without its annotations, with ``image``, (3, H, W) uint8, and in training
            ``instances`` with ``gt_boxes`` (absolute xyxy in the frame of the image) and
            ``gt_classes``.

        Raises:
            ImageReadError: the image cannot be read, or has another size than the record.
        """
        mapped = {key: value for key, value in record.items() if key != "annotations"}
        if not self.is_train:
            return mapped | self.prepare_image(self.read(record))
        return mapped | self.augment_record(record)

    def read(self, record: Record) -> np.ndarray:
        """Return the (H, W, 3) uint8 image of a record, in ``image_format``.

        Raises:
            ImageReadError: see :meth:`__call__`.
        """
        image = self.decode(record["file_name"])
        self.check_size(image, record)
        return image

    def decode(self, file_name: str) -> np.ndarray:
        """Return the (H, W, 3) uint8 image of a file, in ``image_format``."""
        return read_image(file_name, self.image_format, self.value_range)

    def augment_record(self, record: Record) -> Record:
        """Read and augment a record in training; see :meth:`augment` for the result."""
        image = self.read(record)
        boxes, classes = self.ground_truth(record)
        return self.augment(image, boxes, classes)

    def augment(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        classes: np.ndarray,
        augmentations: T.AugmentationList | None = None,
    ) -> Record:
        """Augment an (H, W, 3) image with (G, 4) boxes, absolute xyxy, and (G,) classes.

        Args:
            augmentations: in place of the mapper's.

        Returns:
            ``image`` and ``instances``, see :meth:`__call__`.
        """
        if augmentations is None:
            augmentations = self.augmentations

        augmented = T.AugInput(image, boxes=boxes)
        augmentations(augmented)

        image_size = augmented.image.shape[:2]
        instances = make_instances(augmented.boxes, classes, image_size)
        return {"image": as_tensor(augmented.image), "instances": instances}

    def prepare_image(self, image: np.ndarray) -> Record:
        """Augment an (H, W, 3) image in ``image_format``.

        Returns:
            ``image``, (3, H', W') uint8, and ``height`` and ``width`` of the original.
        """
        augmented = T.AugInput(image)
        self.augmentations(augmented)

        height, width = image.shape[:2]
        return {"image": as_tensor(augmented.image), "height": height, "width": width}

    @staticmethod
    def check_size(image: np.ndarray, record: Record) -> None:
        """Raise ImageReadError if the image has another size than its record."""
        height, width = image.shape[:2]
        expected = (record.get("height", height), record.get("width", width))
        if (height, width) != expected:
            raise ImageReadError(
                f"the image {record['file_name']} is {width}x{height}, but the annotations say "
                f"{expected[1]}x{expected[0]} (width x height); tools/check_dataset.py --fix "
                "corrects them"
            )

    @staticmethod
    def ground_truth(record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Return (G, 4) float64 boxes, absolute xyxy, and (G,) classes, without crowd regions."""
        boxes = []
        classes = []
        for annotation in record.get("annotations", []):
            if annotation.get("iscrowd", 0):
                continue

            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            boxes.append(box)
            classes.append(annotation["category_id"])

        box_array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return box_array, np.asarray(classes, dtype=np.int64)


def make_instances(
    boxes: np.ndarray, classes: np.ndarray, image_size: tuple[int, int]
) -> Instances:
    """Return (G, 4) boxes, absolute xyxy, clipped to an image of (height, width), and classes."""
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_boxes.clip(image_size)
    instances.gt_classes = torch.from_numpy(classes)
    return filter_empty_instances(instances, by_mask=False, box_threshold=MIN_BOX_SIDE)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """Return an (H, W, 3) array as a contiguous (3, H, W) tensor."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
