"""What every detector is for its callers, and what those that run a model share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.checkpoint.score_thresholds import BEST, ScoreThreshold, resolve_thresholds
from salience_detr.data.classes import ClassList
from salience_detr.data.images import ImageLike, as_batch, to_rgb
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.value_range import ValueRange
from salience_detr.detections import ClassTable, Detections, is_confident
from salience_detr.modeling.structures import ModelInput


@dataclass(frozen=True)
class PredictorOutput:
    """Output of a detector for one image.

    Attributes:
        detections: the detections, in the frame of the image.
        salience: (H, W) float32 in [0, 1], the salience of each pixel. On tiles of a very large
            image the map is smaller than the image.
    """

    detections: Detections
    salience: np.ndarray


class Detector(ABC):
    """Interface of everything that detects objects on images; subclasses define :meth:`stream`.

    Attributes:
        classes: classes of the model.
        batch_size: maximum number of images that are computed together.
        source: file of the weights, for messages.
    """

    classes: ClassTable
    batch_size: int
    source: str = "this detector"

    @property
    def class_names(self) -> list[str]:
        """Return the name of each class; its number where no name is known."""
        return list(self.classes.names)

    @property
    @abstractmethod
    def value_range(self) -> ValueRange:
        """Return the range of the values of deep images; chosen from the first if none is given."""

    @property
    def best_thresholds(self) -> ScoreThresholds | None:
        """Return the score thresholds that are stored beside the weights, None if none are."""
        return None

    def class_thresholds(self, score_threshold: ScoreThreshold) -> Tensor:
        """Return the (K,) score threshold of each class.

        Args:
            score_threshold: one number for all classes; numbers by class name, the others being 0;
                or "best", the stored ones of the highest F1 of each class.

        Raises:
            ValueError: it is out of range, a class is unknown, or none are stored.
        """
        classes = ClassList(self.classes.names, self.classes.category_ids)
        best = self.best_thresholds if score_threshold == BEST else None
        values = resolve_thresholds(score_threshold, classes, best, source=self.source)
        return torch.tensor(values, dtype=torch.float64)

    @overload
    def __call__(self, image: ImageLike, *, channel_order: str = "RGB") -> Detections: ...

    @overload
    def __call__(
        self, image: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> list[Detections]: ...

    def __call__(
        self, image: ImageLike | Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Detections | list[Detections]:
        """Return the detections on an image, or a list of them for several images.

        Args:
            image: a path, a PIL image, an array or a tensor (see
                :func:`salience_detr.data.images.to_rgb`); or a list of them, a (B, 3, H, W) tensor
                or a (B, H, W, 3) array.
            channel_order: "RGB" or "BGR", of arrays and tensors; OpenCV reads images as "BGR".

        Raises:
            ImageReadError: a file cannot be read.
            ValueError, TypeError: the argument is not an image.
        """
        images = as_batch(image)
        if images is None:
            return self.batch([image], channel_order=channel_order)[0]  # type: ignore[list-item]

        return self.batch(images, channel_order=channel_order)

    def batch(self, images: Sequence[ImageLike], *, channel_order: str = "RGB") -> list[Detections]:
        """Return the detections on each image."""
        return [output.detections for output in self.stream(images, channel_order=channel_order)]

    @abstractmethod
    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        """Yield detections and salience of each image, with one batch in memory at a time."""


class ModelDetector(Detector):
    """Detector that runs a model; subclasses say how. Several threads may call it at a time.

    Images are computed together only if they are padded to the same size: with more padding beside
    it, the detections on an image would change.

    Args:
        classes: classes of the model.
        mapper: mapper that turns images into model inputs.
        size_divisibility: the sides of a batch are rounded up to multiples of this.
        score_threshold: detections with lower scores are left out; see
            :meth:`Detector.class_thresholds`.
        batch_size: maximum number of images that are computed together.

    Attributes:
        score_thresholds: (K,) lowest score of the detections of each class.

    Raises:
        ValueError: the threshold or the batch size is out of range.
    """

    def __init__(
        self,
        classes: ClassTable,
        mapper: DetectionMapper,
        *,
        size_divisibility: int = 32,
        score_threshold: ScoreThreshold = 0.0,
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

        self.classes = classes
        self.mapper = mapper
        self.size_divisibility = size_divisibility
        self.score_thresholds = self.class_thresholds(score_threshold)
        self.batch_size = batch_size

    @property
    def value_range(self) -> ValueRange:
        return self.mapper.value_range

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            pixels = [to_rgb(image, channel_order, self.value_range) for image in batch]
            inputs = [prepare_input(self.mapper, rgb) for rgb in pixels]
            results = self._infer_by_size(inputs)

            for image, (instances, salience) in zip(batch, results, strict=True):
                confident = instances[is_confident(instances, self.score_thresholds)]
                read_image = partial(to_rgb, image, channel_order, self.value_range)
                yield PredictorOutput(Detections(confident, self.classes, read_image), salience)

    def _infer_by_size(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        """Run the model on the inputs; those that are padded to the same size go together."""
        # Indices of the inputs by their size after padding.
        groups = defaultdict(list)
        for i, model_input in enumerate(inputs):
            sides = model_input["image"].shape[1:]
            padded_size = tuple(math.ceil(side / self.size_divisibility) for side in sides)
            groups[padded_size].append(i)

        results: dict[int, tuple[Instances, np.ndarray]] = {}
        for group in groups.values():
            outputs = self._infer([inputs[i] for i in group])
            results.update(zip(group, outputs, strict=True))

        # In the order of the inputs again.
        return [results[i] for i in range(len(inputs))]

    @abstractmethod
    def _infer(self, inputs: list[ModelInput]) -> list[tuple[Instances, np.ndarray]]:
        """Run the model on one batch.

        Returns:
            instances, on the CPU, and (height, width) salience of each input.
        """


def prepare_input(mapper: DetectionMapper, rgb: np.ndarray) -> ModelInput:
    """Return the model input of an (H, W, 3) uint8 RGB image."""
    if mapper.image_format == "BGR":
        return mapper.prepare_image(rgb[..., ::-1])
    return mapper.prepare_image(rgb)
