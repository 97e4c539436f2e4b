"""Drawings of precision, recall and F1 over the score threshold, error types, and confusions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from salience_detr.evaluation.score_curves import (
    BestThresholds,
    ScoreCurve,
    best_thresholds,
    overall_curve,
)
from salience_detr.utils.files import written_whole

MEASURES = {"f1": "F1", "precision": "precision", "recall": "recall"}
THRESHOLDS = np.linspace(0, 1, 201)
# A legend of more classes would be longer than the figure.
MAX_LABELED_CLASSES = 20


def plot_score_curves(
    curves: Sequence[ScoreCurve], path: Path, *, iou_threshold: float, title: str = ""
) -> bool:
    """Draw F1, precision and recall over the score threshold as a PNG file, with the best ones.

    Args:
        curves: of the classes.
        path: the file to write.
        iou_threshold: the lowest IoU of a correct detection, for the title.
        title: which weights and data they are of.

    Returns:
        False if no detection is correct: then nothing is drawn.
    """
    best = best_thresholds(curves)
    if best is None:
        return False

    figure = Figure(figsize=(15, 4.6))
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    for panel, measure in zip(axes, MEASURES, strict=True):
        draw_measure(panel, curves, best, measure)
    axes[0].set_title(f"at IoU {iou_threshold:g}; dots are the best thresholds", fontsize=10)

    axes[1].set_title(title, fontsize=10, parse_math=False)

    # The legend is beside the axes: many curves would lie behind it.
    labeled = axes[0].get_legend_handles_labels()
    legend = axes[-1].legend(*labeled, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)
    return True


def draw_measure(
    axes: Axes, curves: Sequence[ScoreCurve], best: BestThresholds, measure: str
) -> None:
    """Draw a measure of each class with boxes, and of all classes together in black."""
    drawn = [curve for curve in curves if curve.num_boxes]
    for i, curve in enumerate(drawn):
        label = None
        if len(drawn) <= MAX_LABELED_CLASSES:
            label = label_of(curve, best.classes[curve.name])

        color = f"C{i % 10}"  # matplotlib's colors, in order
        axes.plot(THRESHOLDS, values(curve, measure), color, linewidth=1.2, label=label)

        # A threshold that is not its own would lie at no peak of the curve.
        if curve.name not in best.reasons:
            mark(axes, curve, best.classes[curve.name], measure, color)

    # The other curves stay visible below the thick one.
    overall = overall_curve(curves)
    label = label_of(overall, best.overall)
    axes.plot(THRESHOLDS, values(overall, measure), "k", linewidth=2.5, label=label)
    mark(axes, overall, best.overall, measure, "k")

    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score threshold", ylabel=MEASURES[measure])
    axes.grid(alpha=0.3)


def values(curve: ScoreCurve, measure: str) -> list[float]:
    """Return a measure at each of the drawn thresholds; NaN where it is not known."""
    found = []
    for threshold in THRESHOLDS:
        value = getattr(curve.at(threshold), measure)
        found.append(np.nan if value is None else value)
    return found


def mark(axes: Axes, curve: ScoreCurve, threshold: float, measure: str, color: str) -> None:
    """Mark the best threshold of a curve."""
    value = getattr(curve.at(threshold), measure)
    axes.plot(threshold, value, "o", color=color, markersize=5, zorder=5)


def label_of(curve: ScoreCurve, threshold: float) -> str:
    """Return the name of a curve with its best threshold and the F1 there."""
    return f"{curve.name}: F1 {curve.at(threshold).f1:.2f} from {threshold:.2f}"


def plot_error_types(counts: Mapping[str, int], path: Path, *, title: str) -> None:
    """Draw the number of errors of each of TIDE's types as a PNG file.

    Args:
        counts: by the name of the type.
        path: the file to write.
        title: what was counted.
    """
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    bars = axes.bar(list(counts), list(counts.values()), color="tab:blue")
    axes.bar_label(bars)
    axes.margins(y=0.12)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("errors")
    save_figure(figure, path)


def plot_confusion(matrix: np.ndarray, names: list[str], path: Path, *, title: str = "") -> None:
    """Draw a confusion matrix as a PNG file: counts, colored by their part of each true class.

    Args:
        matrix: (K + 1, K + 1) from :func:`salience_detr.evaluation.confusion.confusion_matrix`.
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

    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    with written_whole(path) as temporary, warnings.catch_warnings():
        # The font lacks some scripts; such names are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
