"""What an exported file must say besides the graph, so that it needs no config."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from salience_detr.data.augmentation import ResizeShortestEdge
from salience_detr.data.mapper import DetectionMapper
from salience_detr.detections import ClassTable
from salience_detr.predictor import Predictor

KEY = "salience_detr"  # of the entry in a file's metadata
VERSION = 1


class ExportError(ValueError):
    """A model that cannot be exported, or a file that is no exported model."""


@dataclass(frozen=True)
class DetectorInfo:
    """How images become inputs of the graph, and what its outputs mean.

    Attributes:
        classes: of the model.
        short_edge_length, max_size: images are resized to this shortest side in pixels, unless the longest would
            exceed the other.
        image_format: order of the channels that the graph takes, "RGB" or "BGR".
        size_divisibility: salience maps cover the batch, its sides rounded up to multiples of this.
    """

    classes: ClassTable
    short_edge_length: int
    max_size: int
    image_format: str
    size_divisibility: int

    @classmethod
    def of(cls, predictor: Predictor) -> DetectorInfo:
        """Of what a config describes.

        Raises:
            ExportError: the test images are changed in another way than by one resize.
        """
        steps = list(predictor.mapper.augmentations.augs)
        resize: Any = (
            steps[0] if len(steps) == 1 and isinstance(steps[0], ResizeShortestEdge) else None
        )
        if resize is None or len(set(resize.short_edge_length)) != 1:
            raise ExportError(
                "dataloader.test.mapper.augmentations is not one ResizeShortestEdge with one length: an exported model "
                "could not do the same; change the config"
            )
        return cls(
            classes=predictor.classes,
            short_edge_length=resize.short_edge_length[0],
            max_size=resize.max_size,
            image_format=predictor.mapper.image_format,
            size_divisibility=predictor.model.size_divisibility,
        )

    def to_json(self) -> str:
        return json.dumps({"version": VERSION} | dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | None, source: str) -> DetectorInfo:
        """Read what :meth:`to_json` wrote into a file.

        Raises:
            ExportError: the file has no such entry, or one of another version.
        """
        if not text:
            raise ExportError(
                f"{source} is not a model of this project: it does not say what its classes are; export one with "
                "tools/export.py"
            )
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("version") != VERSION:
                raise ValueError
            table = content.pop("classes")
            colors = table["colors"] and tuple(tuple(color) for color in table["colors"])
            return cls(
                ClassTable(tuple(table["names"]), tuple(table["category_ids"]), colors), **content
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ExportError(
                f"{source} was exported by another version; export it again"
            ) from error

    def make_mapper(self) -> DetectionMapper:
        """Makes inputs of images as the model's config does."""
        resize = ResizeShortestEdge(self.short_edge_length, max_size=self.max_size)
        return DetectionMapper(
            is_train=False, augmentations=[resize], image_format=self.image_format
        )
