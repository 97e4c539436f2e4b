"""Confusion matrix: which classes are taken for which."""

from __future__ import annotations

import numpy as np

from salience_detr.evaluation.results import Results, category_names


def match_boxes(overlaps: np.ndarray, allowed: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Let each detection, best first, take the free box that it overlaps most.

    Args:
        overlaps: (D, G) IoU of detections, best first, with ground-truth boxes.
        allowed: (D, G) bool, True where a detection may take a box.
        iou_threshold: the lowest IoU of a match.

    Returns:
        (D,) index of the box that each detection took, -1 for none.
    """
    matches = np.full(len(overlaps), -1)
    if not overlaps.size:
        return matches

    free = np.ones(overlaps.shape[1], dtype=bool)
    for i, overlap in enumerate(overlaps):
        candidates = np.where(free & allowed[i], overlap, 0.0)
        best = candidates.argmax()

        if candidates[best] >= iou_threshold:
            matches[i] = best
            free[best] = False
    return matches


def confusion_matrix(
    results: Results, *, score_threshold: float = 0.3, iou_threshold: float = 0.5
) -> tuple[np.ndarray, list[str]]:
    """Count which classes are taken for which.

    In each image, detections take the free box that they overlap most, of whatever class, best
    first. Crowd regions and detections in them are left out.

    Args:
        results: detections and annotations.
        score_threshold: the lowest score of detections that count.
        iou_threshold: the lowest IoU of a detection and the box that it takes.

    Returns:
        (K + 1, K + 1) counts, true class by detected class, and the K class names. The last row
        counts detections of background, the last column boxes that no detection took.
    """
    index = {category_id: i for i, category_id in enumerate(sorted(results.coco.getCatIds()))}
    matrix = np.zeros((len(index) + 1, len(index) + 1), dtype=np.int64)

    for image in results.by_image(score_threshold):
        true = np.array([index[x["category_id"]] for x in image.annotations], dtype=int)
        detected = np.array([index[x["category_id"]] for x in image.detections], dtype=int)

        # Of whatever class, but no crowd regions.
        overlaps = image.overlaps
        is_crowd = image.is_crowd
        allowed = np.broadcast_to(~is_crowd, overlaps.shape)
        matches = match_boxes(overlaps, allowed, iou_threshold)

        is_match = matches >= 0
        in_crowd = (overlaps[:, is_crowd] >= iou_threshold).any(axis=1)
        is_missed = ~is_crowd
        is_missed[matches[is_match]] = False

        # Right and confused detections, detections of background, and missed boxes;
        # add.at counts each of several equal pairs, which += would count once.
        np.add.at(matrix, (true[matches[is_match]], detected[is_match]), 1)
        np.add.at(matrix[-1], detected[~is_match & ~in_crowd], 1)
        np.add.at(matrix[:, -1], true[is_missed], 1)

    return matrix, category_names(results.coco)
