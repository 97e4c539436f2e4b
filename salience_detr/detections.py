"""Detections on an image, with the names of their classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from torch import Tensor

from salience_detr.utils.drawing import Color, draw_detections

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
    category_ids: tuple[int, ...]
    colors: tuple[Color, ...] | None = None

    @classmethod
    def from_metadata(
        cls, metadata: Metadata, num_classes: int, names: Sequence[str] = ()
    ) -> ClassTable:
        """Build the table of a data set; classes without a name are called by their index.

        Args:
            metadata: detectron2's metadata of the data set.
            num_classes: number of classes of the model.
            names: class names that the weights were trained with, if known; they come before
                those of the data set.
        """
        # Names of the weights, or else of the data set, or else numbers.
        known = list(metadata.get("thing_classes", []))
        if names and known and list(names) != known:
            logger.warning(
                "the weights were trained for %s, the data set has %s; "
                "check that both belong together",
                ", ".join(names),
                ", ".join(known),
            )
        known = list(names) or known
        unnamed = [str(i) for i in range(len(known), num_classes)]

        # detectron2 maps the ids of the annotations to class indices; here it is the other way.
        id_to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
        class_to_id = {class_index: category_id for category_id, class_index in id_to_class.items()}
        category_ids = tuple(class_to_id.get(i, i) for i in range(num_classes))

        colors = metadata.get("thing_colors", None)
        if colors is not None:
            colors = tuple(tuple(color) for color in colors)

        return cls(tuple([*known, *unnamed][:num_classes]), category_ids, colors)

    @property
    def categories(self) -> list[dict[str, Any]]:
        """Return the categories of COCO's annotation files."""
        return [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.names, strict=True)
        ]


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

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """Draw boxes, class names and scores.

        Args:
            image: (H, W, 3) uint8 RGB image of the same size to draw on, such as a salience map.
                By default it is the image that was detected on: a file is read again, an array is
                taken as it is now.

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

        names = self._classes.names
        return draw_detections(image, self, class_names=names, colors=self._classes.colors)

    def __getitem__(self, item: int | slice | Tensor) -> Detections:
        return Detections(super().__getitem__(item), self._classes, self._read_image)

    def to(self, *args: Any, **kwargs: Any) -> Detections:
        return Detections(super().to(*args, **kwargs), self._classes, self._read_image)
