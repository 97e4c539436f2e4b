"""Confusion matrix: which classes are taken for which."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from salience_detr.evaluation.results import Results, category_names
from salience_detr.utils.files import written_whole


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


def plot_confusion(matrix: np.ndarray, names: list[str], path: Path, *, title: str = "") -> None:
    """Draw a confusion matrix as a PNG file: counts, colored by their part of each true class.

    Args:
        matrix: (K + 1, K + 1) from :func:`confusion_matrix`.
        names: the K class names.
        path: the file to write.
        title: which weights and data it is of.

    Raises:
        OSError: the file cannot be written.
    """
    # Inches, and points of text, of which there are 72 to an inch. Few classes leave room for
    # the counts.
    shows_counts = len(names) <= 30
    cell = 0.55 if shows_counts else 0.22
    side = min(45.0, max(5.0, cell * len(names) + 2))
    text_size = min(10.0, 40 * side / (len(names) + 1))

    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)

    ticks = range(len(names) + 1)
    axes.set_xticks(ticks, [*names, "(missed)"], rotation=90, parse_math=False, fontsize=text_size)
    axes.set_yticks(ticks, [*names, "(background)"], parse_math=False, fontsize=text_size)
    axes.set_xlabel("detected")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=9, parse_math=False)

    if shows_counts:
        for row, column in np.argwhere(matrix):
            ink = "white" if parts[row, column] > 0.5 else "black"
            text = axes.text(column, row, str(matrix[row, column]), color=ink, fontsize=8)
            text.set(ha="center", va="center")

    with written_whole(path) as temporary, warnings.catch_warnings():
        # The font lacks some scripts; such names are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
