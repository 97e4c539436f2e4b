"""Detections on an image, with the names of their classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from salience_detr.data.classes import CategoryId, ClassList
from salience_detr.utils.drawing import draw_detections
from salience_detr.utils.drawing_options import DEFAULTS, Color, DrawingOptions

NO_ADAPTER = "this needs {0}: pip install {0}, or pip install 'salience_detr[adapters]'"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassTable:
    """Classes of a model.

    Attributes:
        names: name of each class, in the order of the model.
        category_ids: id of each class in the annotations of the data set.
        colors: RGB of each class; None where the data set has no colors.
    """

    names: tuple[str, ...]
    category_ids: tuple[CategoryId, ...]
    colors: tuple[Color, ...] | None = None

    @classmethod
    def build(
        cls, classes: ClassList | None, num_classes: int, colors: tuple[Color, ...] | None = None
    ) -> ClassTable:
        """Build the table of a model's classes; without names they are called by their index.

        Args:
            classes: classes of the model's rows, None if they are unknown.
            num_classes: number of classes of the model.
            colors: RGB of each class, None if the data set has no colors.
        """
        numbers = tuple(range(num_classes))
        if classes is None:
            return cls(tuple(map(str, numbers)), numbers, colors)

        if classes.category_ids is None:
            logger.warning(
                "the weights do not hold the category ids of their classes; the ids in results are "
                "0 to %d",
                num_classes - 1,
            )
        return cls(classes.names, classes.category_ids or numbers, colors)

    @property
    def categories(self) -> list[dict[str, Any]]:
        """Return the categories of COCO's annotation files."""
        categories = []
        for category_id, name in zip(self.category_ids, self.names, strict=True):
            categories.append({"id": category_id, "name": name})
        return categories


def is_confident(instances: Instances, thresholds: Tensor) -> Tensor:
    """Return (N,) bool, True for detections that reach the score threshold of their class.

    Args:
        instances: N detections, with ``scores`` and ``pred_classes``.
        thresholds: (K,) threshold of each class of the model.
    """
    # A threshold is compared in the dtype of the scores, as a plain number would be.
    limits = thresholds.to(instances.scores)[instances.pred_classes]
    return instances.scores >= limits


class Detections(Instances):
    """Detections on one image, as detectron2's Instances that know their classes and their image.

    The fields are ``pred_boxes`` (absolute xyxy in the frame of the image, clipped to it and never
    without area), ``scores`` and ``pred_classes``, in descending order of scores, on the CPU.

    Args:
        instances: the detections.
        classes: classes of the model.
        read_image: returns the (H, W, 3) uint8 RGB image.
    """

    def __init__(
        self, instances: Instances, classes: ClassTable, read_image: Callable[[], np.ndarray]
    ) -> None:
        super().__init__(instances.image_size, **instances.get_fields())
        self._classes = classes
        self._read_image = read_image

    @property
    def class_names(self) -> list[str]:
        """Return the names of all classes of the model."""
        return list(self._classes.names)

    @property
    def labels(self) -> list[str]:
        """Return the name of each detection's class."""
        return [self._classes.names[i] for i in self.pred_classes.tolist()]

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format; ``bbox`` is (x, y, width, height)."""
        boxes = self.pred_boxes.tensor.tolist()
        scores = self.scores.tolist()
        classes = self.pred_classes.tolist()

        results = []
        for (x0, y0, x1, y1), score, class_index in zip(boxes, scores, classes, strict=True):
            category_id = self._classes.category_ids[class_index]
            bbox = [x0, y0, x1 - x0, y1 - y0]

            results.append(
                {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
            )
        return results

    def to_supervision(self) -> Any:
        """Return the detections as ``supervision.Detections``.

        ``class_id`` is the index of the class in the model, ``class_name`` is in ``data``, and
        ``tracker_id`` is -1 where an object has no track number.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision  # an optional package
        except ImportError as error:
            raise ImportError(NO_ADAPTER.format("supervision")) from error

        tracker_id = None
        if self.has("track_ids"):
            tracker_id = self.track_ids.numpy()
        return supervision.Detections(
            xyxy=self.pred_boxes.tensor.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.pred_classes.numpy(),
            tracker_id=tracker_id,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_fiftyone(self) -> Any:
        """Return the detections as ``fiftyone.Detections``, with boxes relative to the image.

        The track number, where there is one, is the ``index`` of a detection.

        Raises:
            ImportError: fiftyone is not installed.
        """
        try:
            import fiftyone  # an optional package
        except ImportError as error:
            raise ImportError(NO_ADAPTER.format("fiftyone")) from error

        height, width = self.image_size
        boxes = self.pred_boxes.tensor.tolist()
        scores = self.scores.tolist()
        numbers = [-1] * len(self)
        if self.has("track_ids"):
            numbers = self.track_ids.tolist()

        detections = []
        columns = zip(boxes, scores, self.labels, numbers, strict=True)
        for (x0, y0, x1, y1), score, label, number in columns:
            box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
            fields = {"label": label, "bounding_box": box, "confidence": score}
            if number >= 0:
                fields["index"] = number
            detections.append(fiftyone.Detection(**fields))
        return fiftyone.Detections(detections=detections)

    def draw(
        self, image: np.ndarray | None = None, *, options: DrawingOptions = DEFAULTS
    ) -> np.ndarray:
        """Draw boxes, class names and scores.

        Args:
            image: (H, W, 3) uint8 RGB image of the same size to draw on, such as a salience map.
                By default it is the image that was detected on: a file is read again, an array is
                taken as it is now.
            options: lines, labels, filling and colors.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ImageReadError: the file of the image is gone.
            ValueError: the image has another size.
        """
        if image is None:
            image = self._read_image()

        height, width = self.image_size
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"the detections are of an image of {height}x{width} (height x width), "
                f"this one has {image.shape[0]}x{image.shape[1]}"
            )

        return draw_detections(
            image,
            self,
            class_names=self._classes.names,
            colors=self._classes.colors,
            options=options,
        )

    def __getitem__(self, item: int | slice | Tensor) -> Detections:
        return Detections(super().__getitem__(item), self._classes, self._read_image)

    def to(self, *args: object, **kwargs: object) -> Detections:
        return Detections(super().to(*args, **kwargs), self._classes, self._read_image)
