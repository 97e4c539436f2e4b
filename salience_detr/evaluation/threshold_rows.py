"""Rows and curves of the best score thresholds, for reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from salience_detr.evaluation.error_analysis import Row
from salience_detr.evaluation.score_curves import (
    OVERALL,
    BestThresholds,
    Measures,
    ScoreCurve,
    overall_curve,
)

STEPS = np.linspace(0, 1, 101).round(2).tolist()


def threshold_rows(curves: Sequence[ScoreCurve], best: BestThresholds) -> list[Row]:
    """Return the best threshold of each class and of all, with what they reach.

    The last two rows are of all classes: by a single threshold, and with each class at its own.
    """
    rows = []
    together = Measures(0, 0, 0)
    for curve in curves:
        threshold = best.classes[curve.name]
        measures = curve.at(threshold)
        together += measures

        reason = best.reasons.get(curve.name)
        note = f"{reason}: that of {OVERALL}" if reason else ""
        rows.append(measure_row(curve.name, measures, threshold, note))

    single = overall_curve(curves).at(best.overall)
    rows.append(measure_row(OVERALL, single, best.overall, "one threshold"))
    rows.append(measure_row(OVERALL, together, None, "each class at its own"))
    return rows


def measure_row(name: str, measures: Measures, threshold: float | None, note: str) -> Row:
    """Return a row of a table, measures in percent."""
    return {
        "class": name,
        "boxes": measures.num_boxes,
        "threshold": threshold,
        "F1": in_percent(measures.f1),
        "precision": in_percent(measures.precision),
        "recall": in_percent(measures.recall),
        "note": note,
    }


def curve_values(curve: ScoreCurve) -> dict[str, object]:
    """Return the measures of a curve in percent at score thresholds 0, 0.01, ..., 1."""
    points = [curve.at(threshold) for threshold in STEPS]
    return {
        "class": curve.name,
        "threshold": STEPS,
        "F1": [in_percent(point.f1) for point in points],
        "precision": [in_percent(point.precision) for point in points],
        "recall": [in_percent(point.recall) for point in points],
    }


def step_rows(curve: ScoreCurve) -> list[Row]:
    """Return the measures of a curve at score thresholds 0.1, 0.2, ..., 0.9, in percent."""
    rows = []
    for tenths in range(1, 10):
        row = measure_row(curve.name, curve.at(tenths / 10), tenths / 10, "")
        chosen: Row = {"score": f"{tenths / 10:g}"}
        rows.append(chosen | {key: row[key] for key in ("F1", "precision", "recall")})
    return rows


def in_percent(part: float | None) -> float | None:
    return None if part is None else 100 * part
