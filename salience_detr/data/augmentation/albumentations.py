"""Augmentations of albumentations as detectron2's."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from omegaconf import ListConfig

from salience_detr.data.augmentation.boxes import ResultTransform, clip_boxes, restore_order


class Albumentations(T.Augmentation):
    """A list of albumentations' transforms, applied to the image and its boxes.

    Boxes are clipped to the image. They become zeros, which the mapper leaves out, if less than
    ``min_visible`` of their area is left, or less than a pixel of a side. The random numbers follow
    from numpy's, which the loader seeds for each image, whatever the number of workers.

    Args:
        transforms: of albumentations, or their names and arguments,
            ``{"type": "Blur", "blur_limit": 3}``, which a config.yaml can hold; those that contain
            others (OneOf, SomeOf, Sequential) have them in "transforms".
        min_visible: see above.

    Raises:
        ImportError: albumentations is not installed.
        ValueError: there is no transform of such a name, or with such arguments.
    """

    def __init__(
        self,
        transforms: Sequence[Mapping[str, Any] | object],
        min_visible: float = 0.1,
    ) -> None:
        super().__init__()
        library = import_albumentations()
        self.transforms = [build_transform(library, x) for x in transforms]
        self.min_visible = min_visible

        # Boxes are clipped here: their visible part is that of the whole list.
        self.compose = library.Compose(
            self.transforms,
            bbox_params=library.BboxParams(
                format="pascal_voc",
                label_fields=["indices"],
                clip=True,
                min_visibility=min_visible,
                min_width=1,
                min_height=1,
            ),
        )

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        height, width = image.shape[:2]
        # It refuses boxes that reach out of the image, and those without area.
        count = 0 if boxes is None else len(boxes)
        given = np.zeros((0, 4)) if boxes is None else boxes
        clipped, kept = clip_boxes(given, height, width, min_visible=self.min_visible)

        # Its own seeding adds the number of the worker.
        seed = int(np.random.randint(2**31))
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.compose(
            image=np.ascontiguousarray(image),
            bboxes=clipped[kept],
            indices=np.flatnonzero(kept),
        )

        if boxes is None:
            return ResultTransform(result["image"], None)

        left = np.asarray(result["bboxes"], dtype=np.float64)
        indices = np.asarray(result["indices"])
        return ResultTransform(result["image"], restore_order(left, indices, count))


def import_albumentations() -> ModuleType:
    """Return the module albumentations; it does not look for a new version on the internet.

    Raises:
        ImportError: it is not installed; the message has the remedy.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        raise ImportError(
            f"this augmentation needs albumentations ({error}): "
            "pip install 'salience_detr[albumentations]'"
        ) from error
    return albumentations


def build_transform(library: ModuleType, description: Mapping[str, Any] | object) -> object:
    """Return a transform of its description; a transform itself stays.

    Raises:
        ValueError: see :class:`Albumentations`.
    """
    if not isinstance(description, Mapping):
        return description  # of whoever writes Python rather than YAML

    # None of the name is a class of another kind.
    arguments = dict(description)
    name = str(arguments.pop("type", None))
    kind = getattr(library, name, None)
    bases = (library.BasicTransform, library.BaseCompose)
    # A Lambda calls what it is given, which a config.yaml must not choose.
    if not isinstance(kind, type) or not issubclass(kind, bases) or name == "Lambda":
        raise ValueError(
            f"albumentations has no transform {name!r}; write {{type: NAME, argument: value}} with "
            "a NAME of its documentation, such as Blur"
        )

    # Those that choose among others, or apply several.
    if "transforms" in arguments:
        arguments["transforms"] = [build_transform(library, x) for x in arguments["transforms"]]
    for key, value in arguments.items():
        if isinstance(value, (list, ListConfig)) and key != "transforms":
            arguments[key] = tuple(value)  # YAML has no tuples

    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"albumentations' {name} cannot be made: {reason}") from error
