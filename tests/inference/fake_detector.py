"""Detector of rectangles that a test has painted, so that its detections are known by hand."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from salience_detr.data import DetectionMapper
from salience_detr.detections import ClassTable
from salience_detr.detector import ModelDetector
from salience_detr.modeling.structures import ModelInput

CLASSES = ClassTable(("red", "green", "blue"), (11, 12, 13))


class RectangleDetector(ModelDetector):
    """Detector of each connected patch of pure red, green or blue, with its exact box.

    The salience is 1 on the patches and 0 elsewhere.

    Attributes:
        batches: sizes, (height, width) each, of the images of every batch that was computed.
        failing: function of a list of (H, W, 3) images; their batch fails if it returns True.
    """

    def __init__(self, *, score: float = 0.9, batch_size: int = 4) -> None:
        super().__init__(
            CLASSES, DetectionMapper(is_train=False, augmentations=[]), batch_size=batch_size
        )
        self.score = score
        self.batches: list[list[tuple[int, int]]] = []
        self.failing = lambda images: False

    def _infer(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        images = [x["image"].numpy().transpose(1, 2, 0) for x in inputs]
        if self.failing(images):
            raise RuntimeError("out of memory")
        self.batches.append([image.shape[:2] for image in images])
        return [self.find(image) for image in images]

    def find(self, image: np.ndarray) -> tuple[Instances, np.ndarray]:
        boxes = []
        classes = []

        for label in range(3):
            # Neither black nor the mixed colors that shrinking gives.
            patch = (image[..., label] > 128) & (image.sum(axis=2) < 1.5 * image[..., label])
            count, _, stats, _ = cv2.connectedComponentsWithStats(
                patch.astype(np.uint8), connectivity=8
            )
            for x, y, width, height, _ in stats[1:count]:
                boxes.append([x, y, x + width, y + height])
                classes.append(label)

        instances = Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            scores=torch.full((len(boxes),), self.score),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
        return instances, (image.max(axis=2) > 128).astype(np.float32)


def paint(height: int, width: int, *rectangles: tuple[int, int, int, int, int]) -> np.ndarray:
    """Return an (H, W, 3) black image with rectangles x0, y0, x1, y1 of a class."""
    image = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1, label in rectangles:
        image[y0:y1, x0:x1, label] = 255
    return image


def boxes_of(detections: Instances) -> list[tuple[float, ...]]:
    """Return x0, y0, x1, y1, class of each detection, sorted."""
    boxes = detections.pred_boxes.tensor.tolist()
    labels = detections.pred_classes.tolist()
    return sorted((*box, label) for box, label in zip(boxes, labels, strict=True))
