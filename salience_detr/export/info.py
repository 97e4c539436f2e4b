"""Metadata of exported files: what a detector needs besides the graph, instead of a config."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.data.augmentation import ResizeShortestEdge
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.value_range import AUTO
from salience_detr.detections import ClassTable
from salience_detr.predictor import Predictor

METADATA_KEY = "salience_detr"  # of the entry in a file's metadata
VERSION = 1


Settings: TypeAlias = dict[str, Any]  # the metadata of a file


class ExportError(ValueError):
    """A model that cannot be exported, or a file that is no exported model."""


@dataclass(frozen=True)
class Quantization:
    """What of a graph computes in int8, how that was calibrated, and what it costs.

    Attributes:
        int8: groups of layers in int8, see :mod:`salience_detr.export.quantization`.
        float32: groups that were given back to float32 for the sake of AP.
        calibration: folder or file of the images that the ranges of values are from.
        num_images: number of these images.
        validation: annotation file that AP was measured on; None if it was not.
        float_ap: AP of the graph in float32, in percent.
        ap: AP in int8.
    """

    int8: tuple[str, ...]
    float32: tuple[str, ...]
    calibration: str
    num_images: int
    validation: str | None = None
    float_ap: float | None = None
    ap: float | None = None

    @classmethod
    def from_content(cls, content: Settings) -> Quantization:
        """Read what a file's metadata say.

        Raises:
            TypeError: they are of another form.
        """
        lists = {key: tuple(content[key]) for key in ("int8", "float32")}
        return cls(**{**content, **lists})


@dataclass(frozen=True)
class DetectorInfo:
    """How images become inputs of the graph, and what its outputs mean.

    Attributes:
        classes: classes of the model.
        short_edge_length: shortest side of a resized image in pixels.
        max_size: maximum of its longest side, for which the shortest side becomes smaller.
        image_format: order of the channels that the graph takes, "RGB" or "BGR".
        size_divisibility: salience maps cover the batch, its sides rounded up to multiples of this.
        value_range: the values of deep images that become black and white; see
            :class:`salience_detr.data.value_range.ValueRange`.
        thresholds: best score thresholds of the classes; None if none are stored.
        quantization: of a graph in int8; None for one in float32.
    """

    classes: ClassTable
    short_edge_length: int
    max_size: int
    image_format: str
    size_divisibility: int
    value_range: object = AUTO
    thresholds: ScoreThresholds | None = None
    quantization: Quantization | None = None

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
            value_range=predictor.value_range.setting,
            thresholds=predictor.best_thresholds,
        )

    def to_json(self) -> str:
        """Return the entry of a file's metadata."""
        content = {"version": VERSION} | dataclasses.asdict(self)

        # Earlier versions of this package read files without them.
        for key in ("thresholds", "quantization"):
            if content[key] is None:
                del content[key]
        return json.dumps(content)

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

        try:
            content: Settings = json.loads(text)
            version = content.pop("version")
            table = content.pop("classes")
            if content.get("thresholds") is not None:
                content["thresholds"] = ScoreThresholds.from_content(content["thresholds"])
            if content.get("quantization") is not None:
                content["quantization"] = Quantization.from_content(content["quantization"])
            if version == VERSION:
                return cls(classes=read_classes(table), **check_settings(content))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ExportError(
                f"{source} holds broken metadata ({type(error).__name__}: {error}); export it again"
            ) from error
        raise ExportError(
            f"{source} is of another version, {version!r:.20} instead of {VERSION}; export it again"
        )

    def make_mapper(self) -> DetectionMapper:
        """Return a mapper that makes inputs of images as the model's config does."""
        resize = ResizeShortestEdge(self.short_edge_length, max_size=self.max_size)
        return DetectionMapper(
            is_train=False,
            augmentations=[resize],
            image_format=self.image_format,
            value_range=self.value_range,
        )


def read_classes(table: Settings) -> ClassTable:
    """Return the classes in the metadata of a file.

    Raises:
        KeyError, TypeError, ValueError: they are of another form.
    """
    names = table["names"]
    ids = table["category_ids"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the class names are {names!r:.60}")
    if not isinstance(ids, list) or len(ids) != len(names):
        raise ValueError(f"the category ids of {len(names)} classes are {ids!r:.60}")

    colors = table["colors"] and tuple(tuple(map(int, color)) for color in table["colors"])
    return ClassTable(tuple(names), tuple(ids), colors)


def check_settings(content: Settings) -> Settings:
    """Return the settings in the metadata of a file.

    Raises:
        KeyError, ValueError: they are of another form.
    """
    for key in ("short_edge_length", "max_size", "size_divisibility"):
        if type(content[key]) is not int or content[key] < 1:
            raise ValueError(f"{key} is {content[key]!r:.60}")
    if content["image_format"] not in ("RGB", "BGR"):
        raise ValueError(f"image_format is {content['image_format']!r:.60}")
    return content
