"""Images of what the model finds, and of what happens inside it.

``drawing`` draws detections, boxes and salience. For a look inside, :func:`inspect` runs a model on one image and
keeps what it saw; ``stages`` draws that, ``attribution`` says what speaks for a detection, ``queries`` counts over many
images.
"""

from salience_detr.utils.drawing import (
    Color,
    class_colors,
    draw_boxes,
    draw_detections,
    draw_salience,
)
from salience_detr.visualization.attribution import Attribution, class_activation, draw_attribution
from salience_detr.visualization.inside import (
    Inspection,
    ProposedBoxes,
    SamplingPoints,
    TokenCells,
    inspect,
)
from salience_detr.visualization.queries import (
    QueryFigures,
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
    "Attribution",
    "Color",
    "Inspection",
    "ProposedBoxes",
    "QueryFigures",
    "QueryStatistics",
    "SamplingPoints",
    "TokenCells",
    "class_activation",
    "class_colors",
    "draw_attribution",
    "draw_boxes",
    "draw_detections",
    "draw_proposals",
    "draw_salience",
    "draw_salience_levels",
    "draw_sampling_points",
    "draw_selected_tokens",
    "inspect",
    "plot_query_statistics",
    "query_statistics",
]
