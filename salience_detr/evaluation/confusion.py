"""A plot of which classes are taken for which."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from salience_detr.utils.files import written_whole


def plot_confusion(matrix: np.ndarray, names: list[str], path: Path) -> None:
    """Draw a confusion matrix as a PNG file: counts, colored by the part of each true class.

    Args:
        matrix: (K + 1, K + 1), see :func:`salience_detr.results.confusion_matrix`.
        names: of the K classes.
        path: of the file.

    Raises:
        OSError: it cannot be written.
    """
    few = len(names) <= 30  # then there is room for the counts
    side = min(45.0, max(5.0, (0.55 if few else 0.22) * len(names) + 2))
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    size = min(
        10.0, 40 * side / (len(names) + 1)
    )  # of the text, in points: there are 72 to an inch
    ticks = range(len(names) + 1)
    axes.set_xticks(ticks, [*names, "(missed)"], rotation=90, parse_math=False, fontsize=size)
    axes.set_yticks(ticks, [*names, "(nothing)"], parse_math=False, fontsize=size)
    if few:
        for (row, column), count in np.ndenumerate(matrix):
            ink = "white" if parts[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                str(count) if count else "",
                ha="center",
                va="center",
                color=ink,
                fontsize=8,
            )
    axes.set_xlabel("detected")
    axes.set_ylabel("true")
    with written_whole(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # a name that the font cannot write
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
