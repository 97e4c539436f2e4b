"""Detection of some classes only."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence

import torch

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.data.classes import simplify
from salience_detr.data.images import ImageLike
from salience_detr.data.value_range import ValueRange
from salience_detr.detections import ClassTable
from salience_detr.detector import Detector, PredictorOutput
from salience_detr.predictor import Predictor


def find_classes(words: Sequence[str], classes: ClassTable) -> list[int]:
    """Return the sorted indices of classes given by name, in any case, or by category id.

    Raises:
        ValueError: a word is unknown; the message suggests a similar name and lists all names.
    """
    found: set[int] = set()
    for word in words:
        found.update(find_class(word, classes))
    return sorted(found)


def find_class(word: str, classes: ClassTable) -> list[int]:
    """Return the indices of the classes that a word names, which are several of the same name.

    A word that is both a name and an id is taken as the name.
    """
    # Names in any case are accepted if no name matches exactly.
    folded = list(map(simplify, classes.names))
    ids = list(map(str, classes.category_ids))
    for key, texts in ((word, classes.names), (simplify(word), folded), (word, ids)):
        places = [i for i, other in enumerate(texts) if other == key]
        if places:
            return places

    known = ", ".join(f"{name} ({i})" for name, i in zip(classes.names, ids, strict=True))
    hint = "the"
    similar = difflib.get_close_matches(simplify(word), folded, n=1)
    if similar:
        hint = f"did you mean {classes.names[folded.index(similar[0])]}? The"
    raise ValueError(f"--classes {word!r} is unknown; {hint} classes are {known}")


def only_classes(detector: Detector, words: Sequence[str]) -> ClassFilter:
    """Return a detector of some classes only, given by their names or category ids.

    A model keeps its ``max_detections`` best detections of all classes, so that other classes could
    displace the wanted ones. For a :class:`Predictor`, the limit is therefore lifted in a copy of
    it, and applied to the wanted classes afterwards.

    Raises:
        ValueError: a class is unknown.
    """
    wanted = find_classes(words, detector.classes)
    if not isinstance(detector, Predictor):
        return ClassFilter(detector, wanted)

    # The copies share their weights with the caller's predictor, which keeps its limit.
    unlimited = copy.copy(detector)
    unlimited.model = copy.copy(detector.model)
    unlimited.model.max_detections = detector.model.num_queries * detector.model.num_classes
    return ClassFilter(unlimited, wanted, max_detections=detector.model.max_detections)


class ClassFilter(Detector):
    """Detector that keeps only some classes of another detector's detections.

    Args:
        detector: the other detector.
        wanted: indices of the classes to keep.
        max_detections: maximum number of detections per image; None is no limit.
    """

    def __init__(
        self, detector: Detector, wanted: Sequence[int], *, max_detections: int | None = None
    ) -> None:
        self.detector = detector
        self.classes = detector.classes
        self.source = detector.source
        self.batch_size = detector.batch_size
        self.wanted = torch.tensor(wanted, dtype=torch.int64)
        self.max_detections = max_detections

    @property
    def best_thresholds(self) -> ScoreThresholds | None:
        return self.detector.best_thresholds

    @property
    def value_range(self) -> ValueRange:
        return self.detector.value_range

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        """Yield the detections of the wanted classes, and the salience, of each image."""
        for output in self.detector.stream(images, channel_order=channel_order):
            # Detections are sorted by score: the first ones are the best.
            is_wanted = torch.isin(output.detections.pred_classes, self.wanted)
            keep = is_wanted.nonzero().flatten()[: self.max_detections]
            yield PredictorOutput(output.detections[keep], output.salience)
