"""What was found on an image, with the names of the classes at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances

from salience_detr.utils.drawing import Color, draw_detections

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassTable:
    """The classes of a model.

    Attributes:
        names: of each class, in the order of the model.
        category_ids: of each class in the data set's annotations.
        colors: RGB of each class that has one of its own.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    colors: tuple[Color, ...] | None = None

    @classmethod
    def from_metadata(
        cls, metadata: Any, num_classes: int, names: Sequence[str] = ()
    ) -> ClassTable:
        """Of a data set of detectron2; classes without a name are called by their number.

        Args:
            metadata: of the data set.
            num_classes: of the model.
            names: that the weights were trained with, if known.
        """
        known = list(metadata.get("thing_classes", []))
        if names and known and list(names) != known:
            logger.warning(
                "the weights were trained for %s, the data set has %s; check that both belong together",
                ", ".join(names),
                ", ".join(known),
            )
        known = list(names) or known
        ids: Mapping[int, int] = metadata.get("thing_dataset_id_to_contiguous_id", {})
        by_class = {contiguous: dataset_id for dataset_id, contiguous in ids.items()}
        colors = metadata.get("thing_colors", None)
        return cls(
            tuple((known + [str(i) for i in range(len(known), num_classes)])[:num_classes]),
            tuple(by_class.get(i, i) for i in range(num_classes)),
            None if colors is None else tuple(tuple(color) for color in colors),
        )

    @property
    def categories(self) -> list[dict[str, Any]]:
        """As COCO's annotation files have them."""
        return [
            {"id": i, "name": name} for i, name in zip(self.category_ids, self.names, strict=True)
        ]


class Detections(Instances):
    """detectron2's Instances with ``pred_boxes`` (absolute xyxy in the frame of the image, not clipped), ``scores``
    and ``pred_classes``, by falling score, on the CPU; they know their classes and their image.

    Args:
        instances: what was found.
        classes: of the model.
        read_image: gives the (H, W, 3) uint8 RGB image.
    """

    def __init__(
        self, instances: Instances, classes: ClassTable, read_image: Callable[[], np.ndarray]
    ) -> None:
        super().__init__(instances.image_size, **instances.get_fields())
        self._classes = classes
        self._read_image = read_image

    @property
    def class_names(self) -> list[str]:
        """Of all classes of the model."""
        return list(self._classes.names)

    @property
    def labels(self) -> list[str]:
        """The name of each detection's class."""
        return [self._classes.names[i] for i in self.pred_classes.tolist()]

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """In COCO's results format: ``image_id``, ``category_id`` of the data set, ``bbox`` (x, y, width, height), and
        ``score``."""
        boxes, scores = self.pred_boxes.tensor.tolist(), self.scores.tolist()
        return [
            {
                "image_id": image_id,
                "category_id": self._classes.category_ids[label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            for (x0, y0, x1, y1), score, label in zip(
                boxes, scores, self.pred_classes.tolist(), strict=True
            )
        ]

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB, with boxes, names and scores.

        Args:
            image: another image of the same size to draw on, such as a salience map; by default a file is read
                again, and an array is taken as it is now.

        Raises:
            ImageReadError: the file of the image is gone.
            ValueError: an image of another size.
        """
        pixels = self._read_image() if image is None else image
        if pixels.shape[:2] != self.image_size:
            raise ValueError(
                f"the detections are of an image of {self.image_size[0]}x{self.image_size[1]} (height x width), "
                f"this one has {pixels.shape[0]}x{pixels.shape[1]}"
            )
        return draw_detections(
            pixels, self, class_names=self._classes.names, colors=self._classes.colors
        )

    def __getitem__(self, item: Any) -> Detections:
        return Detections(super().__getitem__(item), self._classes, self._read_image)

    def to(self, *args: Any, **kwargs: Any) -> Detections:
        return Detections(super().to(*args, **kwargs), self._classes, self._read_image)
