"""Images of each stage of the model, from an Inspection; all are (H, W, 3) uint8 RGB, with titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from salience_detr.utils.drawing import draw_salience
from salience_detr.visualization.inside import Inspection, SamplingPoints, check_query
from salience_detr.visualization.panels import (
    BLACK,
    LONG_SIDE,
    PALETTE,
    WHITE,
    Panel,
    Window,
    assemble,
    gray_image,
    heat_colors,
    level_color,
    resize_map,
)

MAX_BOXES = 100  # of more one sees nothing


def draw_salience_levels(inspection: Inspection) -> np.ndarray:
    """The image, and over it the salience of each level, side by side on one scale (paper, section 3.2).

    The scale goes to the highest salience, or to one half where all is below.
    """
    image = Panel(inspection.image).pixels
    height, width = image.shape[:2]
    top = max(0.5, *(float(x.max()) for x in inspection.salience))
    panels = [
        (f"image, {inspection.input_size[1]} x {inspection.input_size[0]} for the model", image)
    ]
    for name, salience in zip(inspection.level_names, inspection.salience, strict=True):
        title = f"{name}: {salience.shape[1]} x {salience.shape[0]} tokens, highest {salience.max():.2f}"
        panels.append((title, draw_salience(image, resize_map(salience / top, width, height))))
    return assemble(panels, heading="Salience of each level", heat=("0", f"{top:.2f}"))


def draw_selected_tokens(inspection: Inspection) -> np.ndarray:
    """The tokens that the encoder refines, on each level, colored by how many of its layers refine them (3.3)."""
    layers = len(inspection.layer_counts)
    colors = heat_colors(np.linspace(0.15, 1, layers) if layers > 1 else np.ones(1))
    gray = gray_image(inspection.image)
    panels = []
    for level, (name, (rows, columns)) in enumerate(
        zip(inspection.level_names, inspection.level_sizes, strict=True)
    ):
        on_level = inspection.tokens.levels == level
        panel = Panel(gray)
        refined = on_level & (inspection.token_layers > 0)
        panel.cells(inspection.tokens.cells[refined], colors[inspection.token_layers[refined] - 1])
        panels.append((f"{name}: {on_level.sum()} of {rows * columns} tokens", panel.pixels))
    counts = ", ".join(f"layer {i + 1}: {count}" for i, count in enumerate(inspection.layer_counts))
    legend = [
        (
            (int(r), int(g), int(b)),
            f"{i + 1} layer{'s' if i else ''}: {(inspection.token_layers == i + 1).sum()} tokens",
        )
        for i, (r, g, b) in enumerate(colors)
    ]
    heading = f"Tokens that the encoder refines: {len(inspection.tokens)} ({counts})"
    return assemble(panels, heading=heading, legend=legend)


def draw_proposals(
    inspection: Inspection, *, count: int = 8, score_threshold: float = 0.3
) -> np.ndarray:
    """Where the queries start, and where the decoder moves the best of them (paper, section 3.4).

    Args:
        inspection: of the image.
        count: queries whose way is drawn, at most.
        score_threshold: queries whose best class has less are left out, but for the first one.
    """
    levels = inspection.proposals.tokens.levels
    starts = Panel(inspection.image)
    for rank in reversed(range(len(levels))):  # the best on top
        color = level_color(int(levels[rank]))
        if rank < MAX_BOXES:
            starts.box(inspection.proposals.boxes[rank], color)
        else:
            starts.dot(inspection.proposals.tokens.centers[rank], 1.5, color)
    ways = Panel(gray_image(inspection.image))
    best = inspection.best_queries(count, score_threshold=score_threshold)
    for i, query in reversed(list(enumerate(best))):
        color, boxes = PALETTE[i % len(PALETTE)], inspection.layer_boxes[:, query]
        ways.box(boxes[0], color, 2, dashed=True)
        ways.box(boxes[-1], color, 2)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        ways.dot(inspection.proposals.tokens.centers[query], 4, color)
        for start, end in pairwise(centers):
            ways.line(start, end, color, 2)
        ways.dot(centers[-1], 2, WHITE)
    for i, query in enumerate(best):  # no box covers a label
        ways.label(
            inspection.layer_boxes[-1, query, :2],
            inspection.describe(query),
            PALETTE[i % len(PALETTE)],
        )
    count = len(levels)
    drawn = f"initial boxes of all {count} queries"
    if count > MAX_BOXES:
        drawn = (
            f"initial boxes of the first {MAX_BOXES} of {count} queries; dots: tokens of the others"
        )
    panels = [
        (drawn, starts.pixels),
        (
            f"the best {len(best)}: initial box dashed, after the decoder solid; dot = token",
            ways.pixels,
        ),
    ]
    shares = np.bincount(levels, minlength=len(inspection.level_names))
    legend = [
        (level_color(i), f"{name}: {shares[i]} queries")
        for i, name in enumerate(inspection.level_names)
    ]
    return assemble(panels, heading="Initial proposals and where they end", legend=legend)


def draw_sampling_points(inspection: Inspection, query: int | None = None) -> np.ndarray:
    """Where a query reads the memory in each decoder layer: on the whole image, and below enlarged.

    A dot is a sampling point of one head, of an area that grows with its attention weight, in the color of its level.

    Args:
        inspection: of the image.
        query: its number; by default that of the best detection.

    Raises:
        IndexError: there is no such query.
    """
    query = (
        inspection.best_queries(1)[0]
        if query is None
        else check_query(query, len(inspection.scores))
    )
    sampling = [SamplingPoints(x.locations[query], x.weights[query]) for x in inspection.sampling]
    boxes = inspection.layer_boxes[:-1, query]
    panels = []
    windows = [
        widest_window(inspection.image, sampling),
        closest_window(inspection.image, sampling, boxes),
    ]
    for window, name in zip(windows, ("", ", enlarged"), strict=True):
        if window is None:
            continue
        for i, (points, box) in enumerate(zip(sampling, boxes, strict=True)):
            panel = Panel(inspection.image, window=window, long_side=LONG_SIDE * 3 // 4)
            draw_points(panel, points)
            panel.box(box, BLACK, 4)
            panel.box(box, WHITE, 2)
            beyond = attention_outside(points, inspection.image)
            title = (
                f", {beyond:.0%} of the attention outside" if beyond >= 0.005 and not name else ""
            )
            panels.append((f"decoder layer {i + 1}{name}{title}", panel.pixels))
    shares = np.mean([x.weights.mean(0).sum(-1) for x in sampling], axis=0)
    legend = [
        (level_color(i), f"{name}: {shares[i]:.0%} of the attention")
        for i, name in enumerate(inspection.level_names)
    ]
    heading = f"Sampling points of query {inspection.describe(query)}; white: the box that the layer starts from"
    return assemble(panels, heading=heading, columns=len(sampling), legend=legend)


def draw_points(panel: Panel, points: SamplingPoints) -> None:
    """The points of one query, the heaviest on top."""
    levels = np.broadcast_to(
        np.arange(points.weights.shape[1])[:, None], points.weights.shape
    ).ravel()
    locations, weights = points.locations.reshape(-1, 2), points.weights.ravel()
    for i in np.argsort(weights).tolist():
        if np.isfinite(locations[i]).all():
            panel.dot(locations[i], 1 + 9 * np.sqrt(weights[i]), level_color(int(levels[i])))


def attention_outside(points: SamplingPoints, image: np.ndarray) -> float:
    """The part of one query's attention that goes to places outside the image, where there is nothing to read."""
    size = [image.shape[1], image.shape[0]]
    inside = ((points.locations >= 0) & (points.locations <= size)).all(-1)
    return float(points.weights[~inside].sum() / points.weights.sum())


def widest_window(image: np.ndarray, sampling: Sequence[SamplingPoints]) -> Window:
    """The image, with what of its surroundings has points, up to a quarter of its longer side."""
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    points = np.concatenate([x.locations.reshape(-1, 2) for x in sampling])
    points = points[np.isfinite(points).all(1)]
    margin = size.max() / 4
    first, last = points.min(0, initial=0), points.max(0, initial=0)
    low = np.where(first < 0, np.maximum(first - 2, -margin), 0)
    high = np.where(last > size, np.minimum(last + 2, size + margin), size)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def closest_window(
    image: np.ndarray, sampling: Sequence[SamplingPoints], boxes: np.ndarray
) -> Window | None:
    """The part of the image around one query's boxes and nine tenths of what it looks at.

    It has the image's shape, but is never more than twice as long as wide.

    Args:
        image: (H, W, 3).
        sampling: (M, L, P, 2) locations and (M, L, P) weights of each layer.
        boxes: (I, 4) xyxy that the layers start from.

    Returns:
        None where that is most of the image.
    """
    points = np.concatenate([x.locations.reshape(-1, 2) for x in sampling])
    weights = np.concatenate([x.weights.ravel() for x in sampling])
    weights, points = weights[np.isfinite(points).all(1)], points[np.isfinite(points).all(1)]
    corners = boxes.reshape(-1, 2)
    middle = (corners.min(0) + corners.max(0)) / 2
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    shape = np.minimum(size, 2 * size.min())
    reach = (np.abs(points - middle) / shape).max(1)
    order = np.argsort(reach)
    covered = int(np.searchsorted(np.cumsum(weights[order]), 0.9 * weights.sum()))
    half = (
        shape
        * 1.15
        * max(float(reach[order][covered]), float((np.abs(corners - middle) / shape).max()))
    )
    half = np.maximum(half, 2)  # a box of no size is to be seen in something
    if half.prod() * 4 > size.prod() / 2:
        return None
    middle = np.where(2 * half >= size, size / 2, np.clip(middle, half, size - half))
    x0, y0, x1, y1 = np.concatenate([middle - half, middle + half]).tolist()
    return x0, y0, x1, y1
