"""Score thresholds of the highest F1, which checkpoints and exported models hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from salience_detr.checkpoint.class_names import THRESHOLDS_KEY
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.data.classes import (
    ClassList,
    ClassNameError,
    find_name,
    match_classes,
    numbered_names,
    unmatched_names,
)
from salience_detr.utils.errors import shorten

# A setting: one number for all classes, numbers by class name, or "best".
ScoreThreshold: TypeAlias = float | str | Mapping[str, float]
BEST = "best"


@dataclass(frozen=True)
class ScoreThresholds:
    """Score thresholds that were measured on a data set.

    A training that starts from weights with thresholds does not take them over: the new weights
    give other scores, and may have other classes.

    Attributes:
        classes: threshold of each class, by its name.
        overall: best single threshold for all classes.
        iou_threshold: lowest IoU of a correct detection with its box, in the measurement.
        source: the annotation file of the data set.
    """

    classes: dict[str, float]
    overall: float
    iou_threshold: float
    source: str

    def to_content(self) -> dict[str, object]:
        """Return plain containers and numbers, as files hold them."""
        return asdict(self)

    @classmethod
    def from_content(cls, content: object) -> ScoreThresholds:
        """Build the thresholds from what a file holds.

        Raises:
            ValueError: something else than :meth:`to_content` wrote it.
        """
        keys = {"classes", "overall", "iou_threshold", "source"}
        if not isinstance(content, Mapping) or set(content) != keys:
            raise ValueError(f"the score thresholds are {content!r:.80}")

        by_name = content["classes"]
        if not isinstance(by_name, Mapping) or not all(isinstance(x, str) for x in by_name):
            raise ValueError(f"the score thresholds of classes are {by_name!r:.80}")
        if not isinstance(content["source"], str):
            raise ValueError(f"the data set of the score thresholds is {content['source']!r:.80}")

        for value in (*by_name.values(), content["overall"], content["iou_threshold"]):
            if not is_score(value):
                raise ValueError(f"a score threshold is {value!r:.40}, no number from 0 to 1")
        return cls(
            {name: float(value) for name, value in by_name.items()},
            float(content["overall"]),
            float(content["iou_threshold"]),
            content["source"],
        )

    def for_classes(self, wanted: ClassList, *, source: str) -> list[float]:
        """Return the threshold of each class of a model.

        Args:
            wanted: classes of the model.
            source: name of the file that holds the thresholds, for messages.

        Raises:
            ValueError: the thresholds lack a class.
        """
        # Names may differ in case, and their order in the file is any.
        stored = ClassList(tuple(self.classes))
        remedy = "store those of these weights with salience-detr analyze errors --save-thresholds"
        table = f"the table of score thresholds in {source}"
        places = match_all(wanted, stored, of="the model", among=table, remedy=remedy)

        values = list(self.classes.values())
        return [values[place] for place in places]

    def for_weights(
        self, measured: ClassList, weights: ClassList | None, *, source: str
    ) -> tuple[ScoreThresholds, list[str]]:
        """Return the thresholds by the names that weights have for their classes.

        Classes of the weights that were not measured get the overall threshold.

        Args:
            measured: classes of the data set, in the order of :attr:`classes`.
            weights: classes of the weights; None if they are unknown: nothing is compared then.
            source: name of the weights, for messages.

        Returns:
            The thresholds, and the names of the classes that were not measured.

        Raises:
            ValueError: the weights lack a class of the data set.
        """
        if weights is None:
            return self, []

        remedy = "store the thresholds in the weights that these results come from"
        places = match_all(measured, weights, of=self.source, among=source, remedy=remedy)

        # Names that several classes have get their ids.
        names = weights.names
        if len(set(names)) < len(names):
            names = tuple(numbered_names(weights))

        # Classes that were not measured keep the overall one.
        by_name = dict.fromkeys(names, self.overall)
        for place, value in zip(places, self.classes.values(), strict=True):
            by_name[names[place]] = value

        others = [name for i, name in enumerate(names) if i not in places]
        return ScoreThresholds(by_name, self.overall, self.iou_threshold, self.source), others


def match_all(
    wanted: ClassList, others: ClassList, *, of: str, among: str, remedy: str
) -> list[int]:
    """Return the index of each class among those of something else.

    Args:
        wanted: classes to find.
        others: classes to find them among.
        of: what has the wanted classes, for messages.
        among: what has the others, for messages.
        remedy: what to do if a class is not found.

    Raises:
        ValueError: a class is missing, or names are ambiguous.
    """
    try:
        places = match_classes(wanted, others)
    except ClassNameError as error:
        raise ValueError(f"{among} and {of}: {error}; {remedy}") from error

    missing = unmatched_names(wanted, places)
    if missing:
        raise ValueError(
            f"{among} lacks {len(missing)} of the {len(wanted)} classes of {of}: "
            f"{shorten(missing)}; its classes are {others}; {remedy}"
        )
    return [place for place in places if place is not None]


def resolve_thresholds(
    setting: ScoreThreshold, classes: ClassList, best: ScoreThresholds | None, *, source: str
) -> list[float]:
    """Return the score threshold of each class of a model.

    Args:
        setting: one number for all classes; numbers by class name, 0 for the others; or "best".
        classes: classes of the model.
        best: thresholds that are stored beside the weights, None if there are none.
        source: name of the weights, for messages.

    Raises:
        ValueError: a number is out of range, a class is unknown, or "best" is not stored.
    """
    if isinstance(setting, Mapping):
        values = [0.0] * len(classes)
        for name, value in setting.items():
            values[find_name(name, classes.names)] = check_score(value, of=f" of {name!r}")
        return values

    if setting != BEST:
        return [check_score(setting)] * len(classes)
    if best is None:
        raise ValueError(
            f"{source} holds no best score thresholds; store them: "
            f"salience-detr analyze errors RESULTS.json ANNOTATIONS.json --save-thresholds "
            f"{source}, with the results of its evaluation"
        )
    return best.for_classes(classes, source=source)


def check_score(value: float | str, *, of: str = "") -> float:
    """Return a score threshold; raise ValueError if it is not a number from 0 to 1."""
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not is_score(score):
        raise ValueError(
            f"score_threshold{of} is {value!r}; scores lie between 0 and 1, and {BEST!r} takes "
            "the stored thresholds"
        )
    return score


def is_score(value: object) -> bool:
    """Return whether a value is a number from 0 to 1."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False

    # NaN is in no range.
    return 0 <= value <= 1


def thresholds_in(content: Mapping[str, object], path: object) -> ScoreThresholds | None:
    """Return the score thresholds in a checkpoint, None if it holds none.

    Raises:
        CheckpointError: they are of another form.
    """
    if content.get(THRESHOLDS_KEY) is None:
        return None
    try:
        return ScoreThresholds.from_content(content[THRESHOLDS_KEY])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; store them again") from error


def thresholds_to_metadata(thresholds: ScoreThresholds | None) -> dict[str, str]:
    """Return the metadata of a .safetensors file that hold thresholds."""
    return {k: json.dumps(value) for k, value in thresholds_to_entries(thresholds).items()}


def thresholds_to_entries(thresholds: ScoreThresholds | None) -> dict[str, object]:
    """Return the entries of a checkpoint that hold thresholds; none if there are none."""
    if thresholds is None:
        return {}
    return {THRESHOLDS_KEY: thresholds.to_content()}
