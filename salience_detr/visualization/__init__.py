"""Drawings of what happens inside the model.

:func:`inspect` runs a model on one image and returns what each stage computed; ``stages`` draws
that. ``attribution`` computes what speaks for a detection, ``queries`` statistics over images.
"""

from salience_detr.visualization.attribution import class_activation, draw_attribution
from salience_detr.visualization.inside import StageOutputs, inspect
from salience_detr.visualization.queries import (
    QueryStatistics,
    plot_query_statistics,
    query_statistics,
)
from salience_detr.visualization.stages import (
    draw_proposals,
    draw_salience_levels,
    draw_sampling_points,
    draw_selected_tokens,
)

__all__ = [
    "QueryStatistics",
    "StageOutputs",
    "class_activation",
    "draw_attribution",
    "draw_proposals",
    "draw_salience_levels",
    "draw_sampling_points",
    "draw_selected_tokens",
    "inspect",
    "plot_query_statistics",
    "query_statistics",
]
