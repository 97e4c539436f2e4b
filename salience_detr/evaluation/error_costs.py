"""What each type of error costs: AP with and without it (TIDE, Bolya et al., 2020, section 2.3).

All detections count, whatever their score, as they do in AP. Errors are mended by an oracle:

- Cls and Loc: the best of the detections that were meant for a box gets its class and place; the
  others are removed, and so are all where the box has been found.
- Both, Dupe and Bkg: the detections are removed.
- Miss: the boxes are removed from the ground truth.

Types hide one another, so that their gains do not add up to what is missing to 100.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence, Set
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from salience_detr.evaluation.error_analysis import (
    FALSE_NEGATIVES,
    FALSE_POSITIVES,
    ImageErrors,
    Outcome,
    Row,
    average_precision,
    find_errors,
)
from salience_detr.evaluation.results import (
    Annotation,
    Detection,
    Results,
    make_coco,
    prepare_evaluation,
)


def cost_rows(results: Results, iou_threshold: float) -> list[Row]:
    """Return the AP at one IoU as it is, and with each type of error mended.

    Args:
        results: detections and annotations.
        iou_threshold: the lowest IoU of a correct detection with its box.

    Returns:
        Rows with ``error``, ``AP`` in percent, and ``gain`` over the first row; None where there
        are no boxes.
    """
    images = find_errors(results, score_threshold=0.0, iou_threshold=iou_threshold)

    mended = {"none mended": results}
    for outcome in FALSE_POSITIVES:
        mended[outcome.label] = mend_detections(results, images, outcome)
    mended[Outcome.MISS.label] = remove_boxes(results, images, {Outcome.MISS})
    mended["all false detections"] = keep_correct(results, images)
    mended["all boxes not found"] = remove_boxes(results, images, set(FALSE_NEGATIVES))

    rows: list[Row] = []
    before: float | None = None
    for name, changed in tqdm(mended.items(), desc="costs of errors", delay=2):
        ap = ap_at(changed, iou_threshold)
        if not rows:
            before = ap
        gain = None if ap is None or before is None else ap - before
        rows.append({"error": name, "AP": ap, "gain": gain})
    return rows


def mend_detections(results: Results, images: Sequence[ImageErrors], outcome: Outcome) -> Results:
    """Return the results with all false detections of one type mended or removed."""
    kept: list[Detection] = []
    for errors in images:
        found = {i for i, x in enumerate(errors.box_outcomes) if x is Outcome.FOUND}
        outcomes = zip(
            errors.image.detections, errors.detection_outcomes, errors.meant_boxes, strict=True
        )
        # Best first: the best detection that was meant for a box gets it.
        for detection, own_outcome, box in outcomes:
            if own_outcome is not outcome:
                kept.append(detection)
            elif box is not None and box not in found:
                kept.append(moved(detection, errors.image.annotations[box]))
                found.add(box)
    return replace(results, detections=kept)


def moved(detection: Detection, annotation: Annotation) -> Detection:
    """Return a detection with the class and the box of an annotation."""
    mended = detection.copy()
    mended["category_id"] = annotation["category_id"]
    mended["bbox"] = annotation["bbox"]
    return mended


def keep_correct(results: Results, images: Sequence[ImageErrors]) -> Results:
    """Return the results with correct detections only, and those ignored in crowd regions."""
    kept: list[Detection] = []
    for errors in images:
        for detection, outcome in zip(
            errors.image.detections, errors.detection_outcomes, strict=True
        ):
            if outcome not in FALSE_POSITIVES:
                kept.append(detection)
    return replace(results, detections=kept)


def remove_boxes(
    results: Results, images: Sequence[ImageErrors], outcomes: Set[Outcome]
) -> Results:
    """Return the results without the ground-truth boxes of some outcomes."""
    kept: list[Annotation] = []
    for errors in images:
        for annotation, outcome in zip(errors.image.annotations, errors.box_outcomes, strict=True):
            if outcome not in outcomes:
                kept.append(annotation)
    return replace(results, coco=make_coco({**results.coco.dataset, "annotations": kept}))


def ap_at(results: Results, iou_threshold: float) -> float | None:
    """Return COCO's AP of boxes of all sizes at one IoU, in percent; None without boxes."""
    evaluation = prepare_evaluation(results)
    evaluation.params.iouThrs = np.array([iou_threshold])
    evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return average_precision(evaluation)
