"""Precision, recall and F1 over the score threshold, and the thresholds of the highest F1.

Detections are matched as in COCO's evaluation, up to 100 per class and image: best first, each
takes the free box of its class that it overlaps most. Detections in crowd regions do not count.
Matches do not change when detections of lower scores are left out, so that one matching is right
for all thresholds.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.evaluation.results import (
    Results,
    ResultsError,
    category_names,
    prepare_evaluation,
)

# Range of areas of all boxes, as COCOeval's.
ALL_AREAS = [0, 1e10]
OVERALL = "all classes"
# At which COCO's AP takes the precision.
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Measures:
    """Precision, recall and F1 of the detections that reach a threshold.

    Attributes:
        num_detections: the detections, those in crowd regions not among them.
        num_correct: those that took a box.
        num_boxes: boxes, crowd regions not among them.
    """

    num_detections: int
    num_correct: int
    num_boxes: int

    def __add__(self, other: Measures) -> Measures:
        return Measures(
            self.num_detections + other.num_detections,
            self.num_correct + other.num_correct,
            self.num_boxes + other.num_boxes,
        )

    @property
    def precision(self) -> float | None:
        """Return the part of the detections that are correct; None without detections."""
        return ratio(self.num_correct, self.num_detections)

    @property
    def recall(self) -> float | None:
        """Return the part of the boxes that are found; None without boxes."""
        return ratio(self.num_correct, self.num_boxes)

    @property
    def f1(self) -> float | None:
        """Return the harmonic mean of precision and recall; None without boxes."""
        if not self.num_boxes:
            return None

        # The denominator is 2 TP + FP + FN.
        return 2 * self.num_correct / (self.num_detections + self.num_boxes)


@dataclass(frozen=True)
class ScoreCurve:
    """Detections of a class, or of all classes, that count.

    Attributes:
        name: of the class.
        scores: (N,) float32, highest first. Scores that are equal in float32 are ties.
        is_correct: (N,) bool, True for those that took a box.
        num_boxes: boxes, crowd regions not among them.
    """

    name: str
    scores: np.ndarray
    is_correct: np.ndarray
    num_boxes: int

    def at(self, threshold: float) -> Measures:
        """Measure the detections with at least this score."""
        count = int((self.scores >= np.float32(threshold)).sum())
        return Measures(count, int(self.is_correct[:count].sum()), self.num_boxes)

    def average_precision(self) -> float | None:
        """Return COCO's AP, the mean of the precisions at 101 recalls; None without boxes."""
        if not self.num_boxes:
            return None

        # Of the detections up to each one.
        num_correct = np.cumsum(self.is_correct)
        precision = num_correct / np.arange(1, len(self.scores) + 1)
        recall = num_correct / self.num_boxes

        # At a recall counts the highest precision there or beyond; 0 where it is not reached.
        highest = np.maximum.accumulate(precision[::-1])[::-1]
        index = np.searchsorted(recall, RECALLS, side="left")
        return float(np.append(highest, 0.0)[index].mean())

    def best_threshold(self) -> float | None:
        """Return the threshold of the highest F1; None where no detection is correct.

        Of several with the same F1 it is the highest. It lies between two scores, near the middle,
        so that neither float32 nor a few digits less change which detections reach it; see
        :func:`threshold_between`.
        """
        if not self.is_correct.any():
            return None

        # Of the detections up to each one.
        num_detections = np.arange(1, len(self.scores) + 1)
        f1 = 2 * np.cumsum(self.is_correct) / (num_detections + self.num_boxes)

        # A threshold keeps all detections of the same score, or none.
        is_last = np.append(self.scores[1:] < self.scores[:-1], True)
        best = int(np.argmax(np.where(is_last, f1, -1.0)))

        # Below the last detection, any score would do.
        lower = np.append(self.scores, np.float32(0))[best + 1]
        return threshold_between(float(lower), float(self.scores[best]))


@dataclass(frozen=True)
class BestThresholds:
    """Thresholds of the highest F1 of each class, and of all together.

    Attributes:
        overall: of all classes together.
        classes: of each class; the overall one where ``reasons`` has an entry.
        reasons: why a class has none of its own, by name.
    """

    overall: float
    classes: dict[str, float]
    reasons: dict[str, str]


def ratio(part: int, total: int) -> float | None:
    return part / total if total else None


def threshold_between(lower: float, upper: float) -> float:
    """Return a number of few digits with ``lower < number <= upper`` in float32, near the middle.

    Args:
        lower: highest score that is to be left out.
        upper: lowest score that is to be kept.
    """
    middle = (lower + upper) / 2
    for digits in range(3, 10):
        rounded = round(middle, digits)
        if lower < np.float32(rounded) < upper:
            return rounded

    # The two are neighbors in float32.
    return upper


def score_curves(results: Results, *, iou_threshold: float = 0.5) -> list[ScoreCurve]:
    """Return the curve of each class, by rising category id.

    Args:
        results: detections and annotations.
        iou_threshold: the lowest IoU of a correct detection with its box.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = prepare_evaluation(results)
        evaluation.params.iouThrs = np.array([iou_threshold])
        evaluation.params.areaRng = [ALL_AREAS]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()

    # By class, then by image; None where an image has neither boxes nor detections of the class.
    num_images = len(evaluation.params.imgIds)
    curves = []
    for k, name in enumerate(category_names(results.coco)):
        scores = [np.empty(0)]
        is_correct = [np.empty(0, dtype=bool)]
        num_boxes = 0

        for image in evaluation.evalImgs[k * num_images : (k + 1) * num_images]:
            if image is None:
                continue

            # Crowd regions and detections in them are ignored.
            counts = ~image["dtIgnore"][0].astype(bool)
            scores.append(np.array(image["dtScores"])[counts])
            is_correct.append(image["dtMatches"][0][counts] > 0)
            num_boxes += int((np.array(image["gtIgnore"]) == 0).sum())

        curve = make_curve(name, np.concatenate(scores), np.concatenate(is_correct), num_boxes)
        curves.append(curve)
    return curves


def make_curve(name: str, scores: np.ndarray, is_correct: np.ndarray, num_boxes: int) -> ScoreCurve:
    """Return the curve of detections in any order."""
    # As the model gives them.
    rounded = scores.astype(np.float32)

    order = np.argsort(-rounded, kind="stable")
    return ScoreCurve(name, rounded[order], is_correct[order].astype(bool), num_boxes)


def overall_curve(curves: Sequence[ScoreCurve]) -> ScoreCurve:
    """Return the curve of the detections of all classes, whether a class has boxes or not."""
    scores = np.concatenate([np.empty(0, np.float32), *(curve.scores for curve in curves)])
    is_correct = np.concatenate([np.empty(0, bool), *(curve.is_correct for curve in curves)])
    num_boxes = sum(curve.num_boxes for curve in curves)
    return make_curve(OVERALL, scores, is_correct, num_boxes)


def best_thresholds(curves: Sequence[ScoreCurve]) -> BestThresholds | None:
    """Return the thresholds of the highest F1; None if no detection at all is correct."""
    overall = overall_curve(curves).best_threshold()
    if overall is None:
        return None

    classes = {}
    reasons = {}
    for curve in curves:
        own = curve.best_threshold()
        if own is not None:
            classes[curve.name] = own
            continue

        classes[curve.name] = overall
        reasons[curve.name] = "no detection is correct"
        if not curve.num_boxes:
            reasons[curve.name] = "no boxes"
    return BestThresholds(overall, classes, reasons)


def to_store(best: BestThresholds | None, *, iou_threshold: float, source: str) -> ScoreThresholds:
    """Return the thresholds as files of weights hold them.

    Raises:
        ResultsError: there are none.
    """
    if best is None:
        raise ResultsError(
            f"there is no best score threshold to store: on {source}, no detection is correct at "
            f"an IoU of {iou_threshold:g}; evaluate trained weights, or lower --iou-threshold"
        )
    return ScoreThresholds(best.classes, best.overall, iou_threshold, source)
