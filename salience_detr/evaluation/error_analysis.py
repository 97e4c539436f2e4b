"""Errors of detections by TIDE's types (Bolya et al., 2020), per class, box size and image.

Only detections of at least a score count. In each image, best first, they take the free box of
their class that they overlap most, if by the IoU threshold: such a detection is correct, as in
COCO's evaluation. Any other is, by the first that fits,

- ignored in a crowd region of its class,
- Dupe on a box of its class that a better detection has taken,
- Cls on a box of another class,
- Loc where it overlaps a box of its class by ``BACKGROUND_IOU``, but less than the threshold,
- Both where it overlaps only a box of another class so, which is wrong in class and in place,
- Bkg elsewhere.

A box that no detection took is a false negative: Cls or Loc if such a detection lies on it, else
Miss.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from pycocotools.cocoeval import COCOeval

from salience_detr.data.preparation.statistics import MEDIUM, SMALL
from salience_detr.evaluation.confusion import match_boxes
from salience_detr.evaluation.results import (
    ImageResults,
    Results,
    box_overlaps,
    category_names,
    evaluate,
    summary,
)

# A row of a table: texts, numbers, and None where there is nothing to measure.
Row = dict[str, str | int | float | None]


class Outcome(Enum):
    """Outcomes of detections and of ground-truth boxes; the values are keys of report.json."""

    CORRECT = "correct"
    LOC = "localisation"
    CLS = "class confused"
    BOTH = "both"
    DUPE = "duplicate"
    BKG = "background"
    IGNORED = "ignored"
    FOUND = "found"
    MISS = "overlooked"
    CROWD = "crowd"

    @property
    def label(self) -> str:
        """Return TIDE's name of an error type."""
        return self.name.capitalize()


FALSE_POSITIVES = (Outcome.CLS, Outcome.LOC, Outcome.BOTH, Outcome.DUPE, Outcome.BKG)
DETECTION_OUTCOMES = (Outcome.CORRECT, *FALSE_POSITIVES, Outcome.IGNORED)
FALSE_NEGATIVES = (Outcome.CLS, Outcome.LOC, Outcome.MISS)
BOX_OUTCOMES = (Outcome.FOUND, *FALSE_NEGATIVES, Outcome.CROWD)

# The lowest overlap with a box that a detection is meant for; TIDE's background threshold.
BACKGROUND_IOU = 0.1
# The lowest IoU with another box of the image of a box that counts as overlapping.
TOUCHING_IOU = 0.1
# The lowest number of boxes in the images of each row, and the row's name.
DENSITIES = {0: "none", 1: "few (1 to 4)", 5: "medium (5 to 9)", 10: "many (10 or more)"}
# In the order of COCOeval's area ranges, which begin with "all".
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class ImageErrors:
    """Outcomes of the detections and boxes of one image.

    Attributes:
        image: the detections that count, and the annotations.
        detection_outcomes: one of ``DETECTION_OUTCOMES`` for each detection.
        box_outcomes: one of ``BOX_OUTCOMES`` for each annotation.
        meant_boxes: for each detection that is Cls or Loc the index of the annotation that it was
            meant for, for the others None.
    """

    image: ImageResults
    detection_outcomes: list[Outcome]
    box_outcomes: list[Outcome]
    meant_boxes: list[int | None]

    @property
    def num_boxes(self) -> int:
        """Return the number of boxes, crowd regions not among them."""
        return len(self.box_outcomes) - self.box_outcomes.count(Outcome.CROWD)

    @property
    def num_found(self) -> int:
        return self.box_outcomes.count(Outcome.FOUND)

    @property
    def num_false_negatives(self) -> int:
        return self.num_boxes - self.num_found

    @property
    def num_false_positives(self) -> int:
        return total(Counter(self.detection_outcomes), FALSE_POSITIVES)


def find_errors(
    results: Results, *, score_threshold: float = 0.3, iou_threshold: float = 0.5
) -> list[ImageErrors]:
    """Classify all detections and boxes, image by image in the annotations' order.

    Args:
        results: detections and annotations.
        score_threshold: the lowest score of detections that count.
        iou_threshold: the lowest IoU of a correct detection with its box.
    """
    return [find_image_errors(image, iou_threshold) for image in results.by_image(score_threshold)]


def find_image_errors(image: ImageResults, iou_threshold: float) -> ImageErrors:
    """Classify the detections and boxes of one image."""
    overlaps = image.overlaps
    is_crowd = image.is_crowd
    detected = np.array([x["category_id"] for x in image.detections])
    true = np.array([x["category_id"] for x in image.annotations])
    same_class = detected[:, None] == true
    matches = match_boxes(overlaps, same_class & ~is_crowd, iou_threshold)

    # Boxes that no detection took are Miss, until a false detection lies on one.
    boxes = [Outcome.MISS] * len(is_crowd)
    for crowd in np.flatnonzero(is_crowd):
        boxes[crowd] = Outcome.CROWD
    for match in matches[matches >= 0]:
        boxes[match] = Outcome.FOUND

    detections = []
    meant_boxes: list[int | None] = []
    for i, match in enumerate(matches):
        if match >= 0:
            detections.append(Outcome.CORRECT)
            meant_boxes.append(None)
            continue

        # Detections that took no box are false, unless they lie in a crowd region.
        outcome, box = classify_false_positive(overlaps[i], same_class[i], is_crowd, iou_threshold)
        detections.append(outcome)
        meant_boxes.append(box)
        # Cls goes before Loc: there the place was right.
        if box is not None and boxes[box] in (Outcome.MISS, Outcome.LOC):
            boxes[box] = outcome

    return ImageErrors(image, detections, boxes, meant_boxes)


def classify_false_positive(
    overlaps: np.ndarray, same_class: np.ndarray, is_crowd: np.ndarray, iou_threshold: float
) -> tuple[Outcome, int | None]:
    """Return the type of a detection that took no box, and the box that it was meant for, if any.

    Args:
        overlaps: (G,) with each annotation.
        same_class: (G,) bool, True where the annotation is of the detection's class.
        is_crowd: (G,) bool, True for crowd regions.
        iou_threshold: the lowest IoU at which a detection is at the right place.
    """
    if (overlaps[same_class & is_crowd] >= iou_threshold).any():
        return Outcome.IGNORED, None
    # It would have taken the box, had it been free.
    if (overlaps[same_class & ~is_crowd] >= iou_threshold).any():
        return Outcome.DUPE, None

    other_class = np.where(~same_class & ~is_crowd, overlaps, 0.0)
    if other_class.max(initial=0.0) >= iou_threshold:
        return Outcome.CLS, int(other_class.argmax())

    own_class = np.where(same_class & ~is_crowd, overlaps, 0.0)
    if own_class.max(initial=0.0) >= BACKGROUND_IOU:
        return Outcome.LOC, int(own_class.argmax())
    if other_class.max(initial=0.0) >= BACKGROUND_IOU:
        return Outcome.BOTH, None

    return Outcome.BKG, None


def rank_by_errors(images: Sequence[ImageErrors]) -> list[ImageErrors]:
    """Return the images with errors, most errors first, of as many those with more missed boxes."""
    wrong = [x for x in images if x.num_false_negatives + x.num_false_positives]

    # Sorting is stable: the second order goes before the first.
    wrong.sort(key=lambda x: x.num_false_negatives, reverse=True)
    wrong.sort(key=lambda x: x.num_false_negatives + x.num_false_positives, reverse=True)
    return wrong


def count_outcomes(images: Sequence[ImageErrors]) -> tuple[Counter[Outcome], Counter[Outcome]]:
    """Count the outcomes of all detections, and those of all boxes."""
    detections: Counter[Outcome] = Counter()
    boxes: Counter[Outcome] = Counter()
    for errors in images:
        detections.update(errors.detection_outcomes)
        boxes.update(errors.box_outcomes)
    return detections, boxes


def select_counts(counts: Counter[Outcome], outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return the counts of some outcomes by their keys in report.json."""
    return {outcome.value: counts[outcome] for outcome in outcomes}


def total(counts: Counter[Outcome], outcomes: Sequence[Outcome]) -> int:
    return sum(select_counts(counts, outcomes).values())


def class_rows(evaluation: COCOeval, images: Sequence[ImageErrors]) -> list[Row]:
    """Return the boxes, metrics and outcomes of each class."""
    num_boxes: Counter[int] = Counter()
    outcomes: dict[int, Counter[Outcome]] = defaultdict(Counter)
    for errors in images:
        for annotation in errors.image.annotations:
            num_boxes[annotation["category_id"]] += not annotation["iscrowd"]

        pairs = zip(errors.image.detections, errors.detection_outcomes, strict=True)
        for detection, outcome in pairs:
            outcomes[detection["category_id"]][outcome] += 1

    rows = []
    classes = zip(evaluation.params.catIds, category_names(evaluation.cocoGt), strict=True)
    for k, (category_id, name) in enumerate(classes):
        counts = outcomes[category_id]
        count = num_boxes[category_id]
        correct = counts[Outcome.CORRECT]

        row: Row = {"class": name, "boxes": count}
        row["AP"] = average_precision(evaluation, k)
        row["AP50"] = average_precision(evaluation, k, iou=0)
        # The IoU thresholds are 0.5, 0.55, ...
        row["AP75"] = average_precision(evaluation, k, iou=5)

        for area, size in enumerate(SIZES, 1):
            row[f"AP{size[0]}"] = average_precision(evaluation, k, area=area)
        row["AR"] = average_recall(evaluation, k)

        # Detections that are ignored in crowd regions are neither right nor wrong.
        row["recall"] = percentage(correct, count)
        row["precision"] = percentage(correct, correct + total(counts, FALSE_POSITIVES))
        row |= select_counts(counts, DETECTION_OUTCOMES)
        row["missed"] = count - correct
        rows.append(row)
    return rows


def size_rows(evaluation: COCOeval, images: Sequence[ImageErrors]) -> list[Row]:
    """Return number, AP, AR and recall of small, medium and large boxes, by annotated area."""
    counts: list[Counter[Outcome]] = [Counter() for _ in SIZES]
    for errors in images:
        for annotation, outcome in zip(errors.image.annotations, errors.box_outcomes, strict=True):
            size = np.digitize(annotation["area"], (SMALL**2, MEDIUM**2))
            counts[size][outcome] += 1

    rows = []
    # COCOeval's area ranges begin with "all".
    for area, name in enumerate(SIZES, 1):
        found = counts[area - 1][Outcome.FOUND]
        missed = total(counts[area - 1], FALSE_NEGATIVES)

        row: Row = {"size": name, "boxes": found + missed}
        row["AP"] = average_precision(evaluation, area=area)
        row["AR"] = average_recall(evaluation, area=area)
        row["missed"] = missed
        row["recall"] = percentage(found, found + missed)
        rows.append(row)
    return rows


def density_rows(results: Results, images: Sequence[ImageErrors]) -> list[Row]:
    """Return counts and metrics of images without, with few, with several and with many boxes."""
    groups: dict[str, list[ImageErrors]] = {name: [] for name in DENSITIES.values()}
    for errors in images:
        least = max(x for x in DENSITIES if x <= errors.num_boxes)
        groups[DENSITIES[least]].append(errors)

    rows = []
    for name, group in groups.items():
        detections, boxes = count_outcomes(group)
        found = boxes[Outcome.FOUND]
        missed = total(boxes, FALSE_NEGATIVES)
        false = total(detections, FALSE_POSITIVES)
        metrics = summary(evaluate(results.subset([x.image.image_id for x in group])))

        row: Row = {"boxes in the picture": name, "pictures": len(group), "boxes": found + missed}
        row["AP"] = metrics["AP"]
        row["AP50"] = metrics["AP50"]
        row["missed"] = missed
        row["false"] = false
        row["false per picture"] = round(false / len(group), 2) if group else None
        row["recall"] = percentage(found, found + missed)
        rows.append(row)
    return rows


def overlap_rows(images: Sequence[ImageErrors]) -> list[Row]:
    """Return the outcomes of boxes alone, and of those that overlap another one of any class."""
    counts: dict[str, Counter[Outcome]] = {"stands alone": Counter(), "overlaps another": Counter()}
    for errors in images:
        annotations = errors.image.annotations
        overlaps = box_overlaps(annotations, annotations)
        # Neither a box itself nor a crowd region is another box.
        np.fill_diagonal(overlaps, 0.0)
        overlaps[:, errors.image.is_crowd] = 0.0

        highest = overlaps.max(axis=1, initial=0.0)
        for outcome, overlap in zip(errors.box_outcomes, highest, strict=True):
            name = "overlaps another" if overlap >= TOUCHING_IOU else "stands alone"
            counts[name][outcome] += outcome is not Outcome.CROWD

    rows = []
    for name, boxes in counts.items():
        row: Row = {"box": name, "boxes": boxes.total()}
        row |= select_counts(boxes, (Outcome.FOUND, *FALSE_NEGATIVES))
        row["recall"] = percentage(boxes[Outcome.FOUND], boxes.total())
        rows.append(row)
    return rows


def crowd_counts(images: Sequence[ImageErrors]) -> Row:
    """Count crowd regions, images with any, and detections that are ignored in them."""
    detections, boxes = count_outcomes(images)
    return {
        "crowd regions": boxes[Outcome.CROWD],
        "pictures with crowd regions": sum(Outcome.CROWD in x.box_outcomes for x in images),
        "detections ignored in them": detections[Outcome.IGNORED],
    }


def type_counts(images: Sequence[ImageErrors]) -> dict[str, int]:
    """Count the errors of each type by TIDE's names: false detections, and boxes that are Miss."""
    detections, boxes = count_outcomes(images)
    counts = {outcome.label: detections[outcome] for outcome in FALSE_POSITIVES}
    return counts | {Outcome.MISS.label: boxes[Outcome.MISS]}


def error_counts(images: Sequence[ImageErrors]) -> dict[str, dict[str, int]]:
    """Count the outcomes of all detections and of all boxes by their keys in report.json."""
    detections, boxes = count_outcomes(images)
    box_counts = select_counts(boxes, BOX_OUTCOMES)
    box_counts["missed"] = total(boxes, FALSE_NEGATIVES)
    return {"detections": select_counts(detections, DETECTION_OUTCOMES), "boxes": box_counts}


def average_precision(
    evaluation: COCOeval,
    category: int | slice = slice(None),
    *,
    iou: int | slice = slice(None),
    area: int = 0,
) -> float | None:
    """Return the average precision in percent, None where there are no boxes.

    Args:
        evaluation: COCO's, accumulated.
        category: index of the class; by default the mean of all.
        iou: index of the IoU threshold; by default the mean of all.
        area: index of the area range: all, small, medium, large.
    """
    return mean_percentage(evaluation.eval["precision"][iou, :, category, area, -1])


def average_recall(
    evaluation: COCOeval, category: int | slice = slice(None), *, area: int = 0
) -> float | None:
    """Return the recall of up to 100 detections per image, averaged over the IoU thresholds."""
    return mean_percentage(evaluation.eval["recall"][:, category, area, -1])


def mean_percentage(values: np.ndarray) -> float | None:
    """Return the mean in percent, without the -1 that COCOeval writes where there are no boxes."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else None


def percentage(part: int, total: int) -> float | None:
    return 100 * part / total if total else None
