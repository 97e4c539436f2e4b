"""What each type of error costs: AP with and without it (TIDE, Bolya et al., 2020, section 2.3).

All detections count, whatever their score, as they do in AP. Errors are mended by an oracle:

- Cls and Loc: the best of the detections that were meant for a box gets its class and place; the
  others are removed, and so are all where the box has been found.
- Both, Dupe and Bkg: the detections are removed.
- Miss: the boxes are removed from the ground truth.

Types hide one another, so that their gains do not add up to what is missing to 100.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from salience_detr.evaluation.error_analysis import (
    FALSE_NEGATIVES,
    FALSE_POSITIVES,
    ImageErrors,
    Outcome,
    Row,
    find_errors,
)
from salience_detr.evaluation.results import Detection, ImageId, Results
from salience_detr.evaluation.score_curves import make_curve

# As in COCO's evaluation.
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Oracle:
    """What is mended.

    Attributes:
        mended: false detections that get the box that they were meant for, if it is still free,
            and are removed otherwise.
        removed: false detections that are removed.
        removed_boxes: ground-truth boxes that are removed.
    """

    mended: Set[Outcome] = frozenset()
    removed: Set[Outcome] = frozenset()
    removed_boxes: Set[Outcome] = frozenset()


ORACLES = {
    "none mended": Oracle(),
    **{outcome.label: Oracle(mended={outcome}) for outcome in FALSE_POSITIVES},
    Outcome.MISS.label: Oracle(removed_boxes={Outcome.MISS}),
    "all false detections": Oracle(removed=set(FALSE_POSITIVES)),
    "all boxes not found": Oracle(removed_boxes=set(FALSE_NEGATIVES)),
}


def cost_rows(results: Results, iou_threshold: float) -> list[Row]:
    """Return the AP at one IoU as it is, and with each type of error mended.

    Args:
        results: detections and annotations.
        iou_threshold: the lowest IoU of a correct detection with its box.

    Returns:
        Rows with ``error``, ``AP`` in percent, and ``gain`` over the first row; None where there
        are no boxes.
    """
    counted = replace(results, detections=best_detections(results.detections))
    images = find_errors(counted, score_threshold=0.0, iou_threshold=iou_threshold)

    rows: list[Row] = []
    before = mean_ap(images, ORACLES["none mended"])
    for name, oracle in ORACLES.items():
        ap = mean_ap(images, oracle)
        gain = None if ap is None or before is None else ap - before
        rows.append({"error": name, "AP": ap, "gain": gain})
    return rows


def best_detections(detections: Sequence[Detection]) -> list[Detection]:
    """Return the best detections of each class in each image, as many as COCO's AP takes."""
    counts: Counter[tuple[ImageId, int]] = Counter()
    best = []
    for detection in sorted(detections, key=lambda x: -x["score"]):
        key = (detection["image_id"], detection["category_id"])
        counts[key] += 1
        if counts[key] <= MAX_DETECTIONS:
            best.append(detection)
    return best


def mean_ap(images: Sequence[ImageErrors], oracle: Oracle) -> float | None:
    """Return the mean AP of the classes with boxes, in percent; None if there are none."""
    scores: dict[int, list[float]] = defaultdict(list)
    is_correct: dict[int, list[bool]] = defaultdict(list)
    num_boxes: Counter[int] = Counter()

    for errors in images:
        annotations = errors.image.annotations
        for annotation, outcome in zip(annotations, errors.box_outcomes, strict=True):
            if outcome is not Outcome.CROWD and outcome not in oracle.removed_boxes:
                num_boxes[annotation["category_id"]] += 1

        for category_id, score, correct in mended_detections(errors, oracle):
            scores[category_id].append(score)
            is_correct[category_id].append(correct)

    values = []
    for k, count in num_boxes.items():
        curve = make_curve(str(k), np.array(scores[k]), np.array(is_correct[k]), count)
        ap = curve.average_precision()
        if ap is not None:
            values.append(ap)
    return 100 * float(np.mean(values)) if values else None


def mended_detections(errors: ImageErrors, oracle: Oracle) -> list[tuple[int, float, bool]]:
    """Return class, score and correctness of the detections of an image, where an oracle mends it.

    Detections that are ignored in crowd regions are left out.
    """
    found = {i for i, outcome in enumerate(errors.box_outcomes) if outcome is Outcome.FOUND}
    detections = []

    # Best first: the best detection that was meant for a box gets it.
    for detection, outcome, box in zip(
        errors.image.detections, errors.detection_outcomes, errors.meant_boxes, strict=True
    ):
        if outcome is Outcome.IGNORED or outcome in oracle.removed:
            continue
        if outcome not in oracle.mended:
            is_correct = outcome is Outcome.CORRECT
            detections.append((detection["category_id"], detection["score"], is_correct))
        elif box is not None and box not in found:
            found.add(box)
            category_id = errors.image.annotations[box]["category_id"]
            detections.append((category_id, detection["score"], True))
    return detections
