"""Metadata of exported files: what a detector needs besides the graph, instead of a config."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salience_detr.data.augmentation import ResizeShortestEdge
from salience_detr.data.mapper import DetectionMapper
from salience_detr.detections import ClassTable
from salience_detr.predictor import Predictor

METADATA_KEY = "salience_detr"  # of the entry in a file's metadata
VERSION = 1


class ExportError(ValueError):
    """A model that cannot be exported, or a file that is no exported model."""


@dataclass(frozen=True)
class DetectorInfo:
    """How images become inputs of the graph, and what its outputs mean.

    Attributes:
        classes: classes of the model.
        short_edge_length: shortest side of a resized image in pixels.
        max_size: maximum of its longest side, for which the shortest side becomes smaller.
        image_format: order of the channels that the graph takes, "RGB" or "BGR".
        size_divisibility: salience maps cover the batch, its sides rounded up to multiples of this.
    """

    classes: ClassTable
    short_edge_length: int
    max_size: int
    image_format: str
    size_divisibility: int

    @classmethod
    def from_predictor(cls, predictor: Predictor) -> DetectorInfo:
        """Describe a predictor.

        Raises:
            ExportError: if its config changes test images in another way than by one resize.
        """
        resize, *others = predictor.mapper.augmentations.augs or [None]
        is_resize = isinstance(resize, ResizeShortestEdge) and not others
        if not is_resize or len(set(resize.short_edge_length)) != 1:
            raise ExportError(
                "dataloader.test.mapper.augmentations is not one ResizeShortestEdge with one "
                "length: an exported model could not do the same; change the config"
            )

        return cls(
            classes=predictor.classes,
            short_edge_length=resize.short_edge_length[0],
            max_size=resize.max_size,
            image_format=predictor.mapper.image_format,
            size_divisibility=predictor.model.size_divisibility,
        )

    def to_json(self) -> str:
        """Return the entry of a file's metadata."""
        return json.dumps({"version": VERSION} | dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | None, source: str | Path) -> DetectorInfo:
        """Read what :meth:`to_json` wrote into a file.

        Raises:
            ExportError: if the file has no such entry, or one of another version.
        """
        if not text:
            raise ExportError(
                f"{source} is not a model of this project: it does not say what its classes are; "
                "export one with tools/export.py"
            )

        content: dict[str, Any] = json.loads(text)
        if content.pop("version") != VERSION:
            raise ExportError(f"{source} is of another version; export it again")

        table = content.pop("classes")
        colors = table["colors"] and tuple(tuple(color) for color in table["colors"])
        classes = ClassTable(tuple(table["names"]), tuple(table["category_ids"]), colors)
        return cls(classes, **content)

    def make_mapper(self) -> DetectionMapper:
        """Return a mapper that makes inputs of images as the model's config does."""
        resize = ResizeShortestEdge(self.short_edge_length, max_size=self.max_size)
        return DetectionMapper(
            is_train=False, augmentations=[resize], image_format=self.image_format
        )
