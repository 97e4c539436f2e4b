"""Detecting some classes only."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from salience_detr.data.images import ImageLike
from salience_detr.detections import ClassTable, Detection
from salience_detr.predictor import Detector, Predictor


def find_classes(words: Sequence[str], classes: ClassTable) -> list[int]:
    """The indices of classes that are called by their names, of whatever case, or by their category ids.

    Raises:
        ValueError: an unknown word, with the name that is most like it and all known ones.
    """
    return sorted({find_class(word, classes) for word in words})


def find_class(word: str, classes: ClassTable) -> int:
    """The index of one class; a name comes before an id."""
    folded = [name.casefold() for name in classes.names]
    if word in classes.names:
        return classes.names.index(word)
    if word.casefold() in folded:
        return folded.index(word.casefold())
    if word in map(str, classes.category_ids):
        return [str(i) for i in classes.category_ids].index(word)
    similar = difflib.get_close_matches(word.casefold(), folded, n=1)
    guess = f"did you mean {classes.names[folded.index(similar[0])]}? The" if similar else "the"
    known = ", ".join(
        f"{name} ({i})" for name, i in zip(classes.names, classes.category_ids, strict=True)
    )
    raise ValueError(f"--classes {word!r} is unknown; {guess} classes are {known}")


def only_classes(detector: Detector, words: Sequence[str]) -> ClassFilter:
    """A detector that finds some classes only, which are called by their names or category ids.

    A :class:`Predictor` finds at most as many detections as its model is set to, but no longer loses those of these
    classes to others before they are chosen: the limit is lifted in a copy of it.

    Raises:
        ValueError: an unknown class.
    """
    wanted = find_classes(words, detector.classes)
    limit = None
    if isinstance(detector, Predictor):
        limit = detector.model.max_detections
        detector = copy.copy(detector)
        detector.model = copy.copy(
            detector.model
        )  # shares its weights with that of the caller, which keeps its limit
        detector.model.max_detections = detector.model.num_queries * detector.model.num_classes
    return ClassFilter(detector, wanted, max_detections=limit)


class ClassFilter(Detector):
    """Another detector, with detections of some classes only.

    Args:
        detector: that detects.
        classes: indices of those that are wanted.
        max_detections: of an image; those with the highest scores stay.
    """

    def __init__(
        self, detector: Detector, classes: Sequence[int], *, max_detections: int | None = None
    ) -> None:
        super().__init__(
            detector.classes,
            detector.mapper,
            score_threshold=detector.score_threshold,
            batch_size=detector.batch_size,
        )
        self.detector = detector
        self.wanted = torch.tensor(sorted(classes), dtype=torch.int64)
        self.max_detections = max_detections

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[Detection]:
        for found in self.detector.stream(images, channel_order=channel_order):
            instances = found.instances
            kept = (
                torch.isin(instances.pred_classes, self.wanted)
                .nonzero()
                .flatten()[: self.max_detections]
            )
            yield Detection(instances[kept], found.salience)

    def infer(self, inputs: list[dict[str, Any]]) -> list[tuple[Instances, np.ndarray]]:
        """As the other detector does, of all classes."""
        return self.detector.infer(inputs)
