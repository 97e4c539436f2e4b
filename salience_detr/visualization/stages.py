"""Drawings of each stage of the model: (H, W, 3) uint8 RGB, with titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from salience_detr.utils.drawing import Color, draw_salience
from salience_detr.visualization.inside import SamplingPoints, StageOutputs, check_query
from salience_detr.visualization.panels import (
    BLACK,
    PALETTE,
    SMALL_SIDE,
    WHITE,
    Panel,
    Window,
    assemble,
    gray_image,
    heat_colors,
    level_color,
    resize_map,
)

# More initial boxes than this hide each other.
MAX_BOXES = 100


def draw_salience_levels(outputs: StageOutputs) -> np.ndarray:
    """Draw the image, and the salience of each level over it (paper, section 3.2).

    All levels have one scale, up to the highest salience, or to 0.5 where all is below.
    """
    image = Panel(outputs.image).pixels
    height, width = image.shape[:2]
    top = max(0.5, *(float(x.max()) for x in outputs.salience))

    input_height, input_width = outputs.input_size
    panels = [(f"image, {input_width} x {input_height} for the model", image)]
    for name, salience in zip(outputs.level_names, outputs.salience, strict=True):
        rows, columns = salience.shape
        title = f"{name}: {columns} x {rows} tokens, highest {salience.max():.2f}"
        panels.append((title, draw_salience(image, resize_map(salience / top, width, height))))
    return assemble(panels, heading="Salience of each level", heat=("0", f"{top:.2f}"))


def draw_selected_tokens(outputs: StageOutputs) -> np.ndarray:
    """Draw the tokens that the encoder refines, colored by their number of layers (section 3.3)."""
    num_layers = len(outputs.layer_counts)
    lowest = 0.15 if num_layers > 1 else 1.0
    colors = heat_colors(np.linspace(lowest, 1, num_layers))
    gray = gray_image(outputs.image)

    panels = []
    for level, name in enumerate(outputs.level_names):
        rows, columns = outputs.level_sizes[level]
        on_level = outputs.tokens.levels == level
        refined = on_level & (outputs.token_layers > 0)
        panel = Panel(gray)
        panel.cells(outputs.tokens.cells[refined], colors[outputs.token_layers[refined] - 1])
        panels.append((f"{name}: {on_level.sum()} of {rows * columns} tokens", panel.pixels))

    legend = []
    for layers, color in enumerate(colors.tolist(), 1):
        words = "1 layer" if layers == 1 else f"{layers} layers"
        num_tokens = (outputs.token_layers == layers).sum()
        legend.append((tuple(color), f"{words}: {num_tokens} tokens"))

    counts = [f"layer {i}: {count}" for i, count in enumerate(outputs.layer_counts, 1)]
    heading = f"Tokens that the encoder refines: {len(outputs.tokens)} ({', '.join(counts)})"
    return assemble(panels, heading=heading, legend=legend)


def draw_proposals(
    outputs: StageOutputs, *, count: int = 8, score_threshold: float = 0.3
) -> np.ndarray:
    """Draw where the queries start, and where the decoder moves the best of them (section 3.4).

    Args:
        outputs: of the image.
        count: largest number of queries whose paths are drawn.
        score_threshold: lowest score of these queries; the first is drawn even if below.
    """
    levels = outputs.proposals.tokens.levels
    num_queries = len(levels)
    best = outputs.best_queries(count, score_threshold=score_threshold)
    starts_title = f"initial boxes of all {num_queries} queries"
    if num_queries > MAX_BOXES:
        starts_title = (
            f"initial boxes of the first {MAX_BOXES} of {num_queries} queries; "
            "dots: tokens of the others"
        )
    paths_title = f"the best {len(best)}: initial box dashed, after the decoder solid; dot = token"
    panels = [
        (starts_title, draw_starts(outputs)),
        (paths_title, draw_paths(outputs, best)),
    ]

    shares = np.bincount(levels, minlength=len(outputs.level_names))
    words = [f"{share} queries" for share in shares]
    heading = "Initial proposals and where they end"
    return assemble(panels, heading=heading, legend=level_legend(outputs, words))


def level_legend(outputs: StageOutputs, words: Sequence[str]) -> list[tuple[Color, str]]:
    """Return a legend of the levels' colors, with words on each level."""
    names = [f"{name}: {text}" for name, text in zip(outputs.level_names, words, strict=True)]
    return [(level_color(level), name) for level, name in enumerate(names)]


def draw_starts(outputs: StageOutputs) -> np.ndarray:
    """Draw the initial boxes of all queries, and dots for those beyond ``MAX_BOXES``."""
    tokens = outputs.proposals.tokens
    panel = Panel(outputs.image)
    # The best come last, on top.
    for rank in reversed(range(len(tokens))):
        color = level_color(int(tokens.levels[rank]))
        if rank < MAX_BOXES:
            panel.box(outputs.proposals.boxes[rank], color)
        else:
            panel.dot(tokens.centers[rank], 1.5, color)
    return panel.pixels


def draw_paths(outputs: StageOutputs, queries: Sequence[int]) -> np.ndarray:
    """Draw the first and the last box of queries, best first, and the path between."""
    panel = Panel(gray_image(outputs.image))
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(queries))]
    for query, color in reversed(list(zip(queries, colors, strict=True))):
        boxes = outputs.layer_boxes[:, query]
        panel.box(boxes[0], color, 2, dashed=True)
        panel.box(boxes[-1], color, 2)

        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        panel.dot(outputs.proposals.tokens.centers[query], 4, color)
        for start, end in pairwise(centers):
            panel.line(start, end, color, 2)
        panel.dot(centers[-1], 2, WHITE)

    # Last, so that no box covers a label.
    for query, color in zip(queries, colors, strict=True):
        panel.label(outputs.layer_boxes[-1, query, :2], outputs.describe(query), color)
    return panel.pixels


def draw_sampling_points(outputs: StageOutputs, query: int | None = None) -> np.ndarray:
    """Draw where a query reads the memory in each decoder layer, on the image and enlarged.

    Each dot is a sampling point of one head, in the color of its level; its area grows with its
    attention weight.

    Args:
        outputs: of the image.
        query: number of the query; by default that of the best detection.

    Raises:
        IndexError: there is no such query.
    """
    if query is None:
        query = outputs.best_queries(1)[0]
    check_query(query, len(outputs.scores))
    sampling = [SamplingPoints(x.locations[query], x.weights[query]) for x in outputs.sampling]
    # Each layer starts from the box of the layer before.
    boxes = outputs.layer_boxes[:-1, query]

    panels = []
    window = widest_window(outputs.image, sampling)
    for i, (points, box) in enumerate(zip(sampling, boxes, strict=True), 1):
        title = f"decoder layer {i}"
        outside = attention_outside(points, outputs.image)
        if outside >= 0.005:
            title += f", {outside:.0%} of the attention outside"
        panels.append((title, draw_points(outputs.image, window, points, box)))

    closer_window = closest_window(outputs.image, sampling, boxes)
    if closer_window is not None:
        for i, (points, box) in enumerate(zip(sampling, boxes, strict=True), 1):
            drawing = draw_points(outputs.image, closer_window, points, box)
            panels.append((f"decoder layer {i}, enlarged", drawing))

    shares = np.mean([x.weights.mean(0).sum(-1) for x in sampling], axis=0)
    legend = level_legend(outputs, [f"{share:.0%} of the attention" for share in shares])
    heading = f"Sampling points of query {outputs.describe(query)}; white: the layer's initial box"
    return assemble(panels, heading=heading, columns=len(sampling), legend=legend)


def draw_points(
    image: np.ndarray, window: Window, points: SamplingPoints, box: np.ndarray
) -> np.ndarray:
    """Draw one query's sampling points, those with most attention on top, and its box."""
    panel = Panel(image, window=window, long_side=SMALL_SIDE)
    levels = np.arange(points.weights.shape[1])[:, None]
    levels = np.broadcast_to(levels, points.weights.shape).ravel()
    locations = points.locations.reshape(-1, 2)
    weights = points.weights.ravel()

    for i in np.argsort(weights):
        if np.isfinite(locations[i]).all():
            panel.dot(locations[i], 1 + 9 * np.sqrt(weights[i]), level_color(int(levels[i])))
    panel.box(box, BLACK, 4)
    panel.box(box, WHITE, 2)
    return panel.pixels


def attention_outside(points: SamplingPoints, image: np.ndarray) -> float:
    """Return the part of a query's attention that goes to places outside the image."""
    size = [image.shape[1], image.shape[0]]
    inside = ((points.locations >= 0) & (points.locations <= size)).all(-1)
    return float(points.weights[~inside].sum() / points.weights.sum())


def finite_points(sampling: Sequence[SamplingPoints]) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 2) locations and (n,) weights of the finite points of all layers."""
    points = np.concatenate([x.locations.reshape(-1, 2) for x in sampling])
    weights = np.concatenate([x.weights.ravel() for x in sampling])
    is_finite = np.isfinite(points).all(axis=1)
    return points[is_finite], weights[is_finite]


def widest_window(image: np.ndarray, sampling: Sequence[SamplingPoints]) -> Window:
    """Return the image with the points beside it, up to a quarter of its longer side away."""
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    points, _ = finite_points(sampling)
    margin = size.max() / 4

    first = points.min(axis=0, initial=0)
    low = np.where(first < 0, np.maximum(first - 2, -margin), 0)
    last = points.max(axis=0, initial=0)
    high = np.where(last > size, np.minimum(last + 2, size + margin), size)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def closest_window(
    image: np.ndarray, sampling: Sequence[SamplingPoints], boxes: np.ndarray
) -> Window | None:
    """Return the part of the image around one query's boxes and nine tenths of its attention.

    It has the image's shape, but is never more than twice as long as wide.

    Args:
        image: (H, W, 3).
        sampling: (M, L, P, 2) locations and (M, L, P) weights of each layer.
        boxes: (I, 4) xyxy that the layers start from.

    Returns:
        None where that is most of the image.
    """
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    shape = np.minimum(size, 2 * size.min())
    corners = boxes.reshape(-1, 2)
    center = (corners.min(axis=0) + corners.max(axis=0)) / 2

    # Distances from the center, relative to the window's shape: of each point, and the largest
    # that the boxes and nine tenths of the attention need.
    points, weights = finite_points(sampling)
    distances = (np.abs(points - center) / shape).max(axis=1)
    order = np.argsort(distances)
    covered = int(np.searchsorted(np.cumsum(weights[order]), 0.9 * weights.sum()))
    box_distance = (np.abs(corners - center) / shape).max()
    reach = max(distances[order][covered], box_distance)

    # At least 4 pixels wide, so that a box without area can be seen.
    half = np.maximum(shape * 1.15 * reach, 2)
    if half.prod() * 4 > size.prod() / 2:
        return None
    center = np.where(2 * half >= size, size / 2, np.clip(center, half, size - half))
    x0, y0, x1, y1 = np.concatenate([center - half, center + half]).tolist()
    return x0, y0, x1, y1
