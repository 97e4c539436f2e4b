"""Drawings of each stage of the model: (H, W, 3) uint8 RGB, with titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from salience_detr.visualization.inside import SamplingPoints, StageOutputs
from salience_detr.visualization.panels import (
    Window,
    add_legend,
    draw_box,
    gray_image,
    new_sheet,
    palette_color,
    render,
    show_image,
)

# More initial boxes than this hide each other.
MAX_BOXES = 100


def draw_salience_levels(outputs: StageOutputs) -> np.ndarray:
    """Draw the image, and the salience of each level over it (paper, section 3.2).

    All levels have one scale, up to the highest salience, or to 0.5 where all is below.
    """
    image = outputs.image
    top = max(0.5, *map(np.max, outputs.salience))
    num_panels = 1 + len(outputs.salience)
    figure, axes = new_sheet("Salience of each level", num_panels, image.shape)

    height, width = outputs.input_size
    show_image(axes[0], image, f"image, {width} x {height} for the model")
    for panel, name, salience in zip(axes[1:], outputs.level_names, outputs.salience, strict=True):
        rows, columns = salience.shape
        title = f"{name}: {columns} x {rows} tokens, highest {salience.max():.2f}"
        show_image(panel, image, title, heat=salience / top)

    scale = ScalarMappable(Normalize(0, top), cmap="viridis")
    figure.colorbar(scale, ax=axes, location="bottom", shrink=0.4, aspect=40)
    return render(figure)


def draw_selected_tokens(outputs: StageOutputs) -> np.ndarray:
    """Draw the tokens that the encoder refines, colored by their number of layers (section 3.3)."""
    image = gray_image(outputs.image)
    height, width = image.shape[:2]
    counts = [f"layer {i}: {count}" for i, count in enumerate(outputs.layer_counts, 1)]
    heading = f"Tokens that the encoder refines: {len(outputs.tokens)} ({', '.join(counts)})"
    figure, axes = new_sheet(heading, len(outputs.level_sizes), image.shape)

    # The color of 0 layers is left out: it is dark, as the image may be.
    num_layers = len(outputs.layer_counts)
    colors = ScalarMappable(Normalize(0, num_layers), cmap="viridis")
    for level, (rows, columns) in enumerate(outputs.level_sizes):
        on_level = outputs.tokens.levels == level
        title = f"{outputs.level_names[level]}: {on_level.sum()} of {rows * columns} tokens"
        show_image(axes[level], image, title)

        # The cells of a level's tokens fill the image, as the pixels of a small map do.
        layers = np.zeros((rows, columns))
        column, row = outputs.tokens.grid[on_level].T
        layers[row, column] = outputs.token_layers[on_level]
        cells = colors.to_rgba(layers, alpha=0.6)
        cells[layers == 0] = 0
        axes[level].imshow(cells, extent=(0, width, height, 0), interpolation="nearest")

    labels = []
    for layer in range(1, num_layers + 1):
        num_tokens = (outputs.token_layers == layer).sum()
        words = "1 layer" if layer == 1 else f"{layer} layers"
        labels.append(f"{words}: {num_tokens} tokens")
    add_legend(figure, colors.to_rgba(np.arange(1, num_layers + 1)).tolist(), labels)
    return render(figure)


def draw_proposals(
    outputs: StageOutputs, *, count: int = 8, score_threshold: float = 0.3
) -> np.ndarray:
    """Draw where the queries start, and where the decoder moves the best of them (section 3.4).

    Args:
        outputs: of the image.
        count: largest number of queries whose paths are drawn.
        score_threshold: lowest score of these queries; the first is drawn even if below.
    """
    figure, axes = new_sheet("Initial proposals and where they end", 2, outputs.image.shape)
    draw_starts(axes[0], outputs)

    levels = outputs.proposals.tokens.levels
    shares = np.bincount(levels, minlength=len(outputs.level_names))
    add_level_legend(figure, outputs, shares, "{} queries")

    queries = outputs.best_queries(count, score_threshold=score_threshold)
    colors = [palette_color(i) for i in range(len(queries))]
    draw_paths(axes[1], outputs, queries, colors)
    add_legend(figure, colors, [outputs.describe(query) for query in queries], below=False)
    return render(figure)


def draw_starts(axes: Axes, outputs: StageOutputs) -> None:
    """Draw the initial boxes of all queries, and dots for those beyond ``MAX_BOXES``."""
    tokens = outputs.proposals.tokens
    title = f"initial boxes of all {len(tokens)} queries"
    if len(tokens) > MAX_BOXES:
        title = f"initial boxes of the first {MAX_BOXES} of {len(tokens)} queries"
        title += "; dots: tokens of the others"
    show_image(axes, outputs.image, title)

    # The best come last, on top.
    colors = [palette_color(level) for level in tokens.levels]
    x, y = tokens.centers[MAX_BOXES:].T
    axes.scatter(x, y, s=9, color=colors[MAX_BOXES:])
    for rank in reversed(range(min(MAX_BOXES, len(tokens)))):
        draw_box(axes, outputs.proposals.boxes[rank], colors[rank], 1)


def draw_paths(
    axes: Axes, outputs: StageOutputs, queries: Sequence[int], colors: Sequence[str]
) -> None:
    """Draw the first and the last box of queries, best first, and the path between."""
    title = f"the best {len(queries)}: initial box dashed, after the decoder solid; dot = token"
    show_image(axes, gray_image(outputs.image), title)
    for query, color in reversed(list(zip(queries, colors, strict=True))):
        boxes = outputs.layer_boxes[:, query]
        draw_box(axes, boxes[0], color, linestyle="--")
        draw_box(axes, boxes[-1], color)

        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        axes.plot(*centers.T, color=color)
        axes.plot(*outputs.proposals.tokens.centers[query], "o", color=color, mec="black")
        axes.plot(*centers[-1], ".", color="white", mec="black")

    # Last, so that no box covers a label.
    for query, color in zip(queries, colors, strict=True):
        x, y = np.clip(outputs.layer_boxes[-1, query, :2], 0, outputs.image.shape[1::-1])
        background = {"facecolor": color, "edgecolor": "none", "pad": 1}
        axes.text(x, y, f"#{query}", fontsize=8, va="top", bbox=background)


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

    image = outputs.image
    heading = f"Sampling points of query {outputs.describe(query)}; white: the layer's initial box"
    sampling = [SamplingPoints(x.locations[query], x.weights[query]) for x in outputs.sampling]
    # Each layer starts from the box of the layer before.
    boxes = outputs.layer_boxes[:-1, query]

    windows = [("", widest_window(image, sampling))]
    closer_window = closest_window(image, sampling, boxes)
    if closer_window is not None:
        windows.append((", enlarged", closer_window))
    num_layers = len(sampling)
    num_panels = num_layers * len(windows)
    figure, axes = new_sheet(heading, num_panels, image.shape, columns=num_layers, side=420)

    for row, (words, window) in enumerate(windows):
        for layer, points in enumerate(sampling):
            title = f"decoder layer {layer + 1}{words}"
            outside = attention_outside(points, image)
            if row == 0 and outside >= 0.005:
                title += f", {outside:.0%} of the attention outside"

            panel = axes[row * num_layers + layer]
            show_image(panel, image, title, window=window)
            draw_points(panel, points)
            draw_box(panel, boxes[layer], "black", 3)
            draw_box(panel, boxes[layer], "white")

    shares = np.mean([x.weights.mean(0).sum(-1) for x in sampling], axis=0)
    add_level_legend(figure, outputs, shares, "{:.0%} of the attention")
    return render(figure)


def add_level_legend(figure: Figure, outputs: StageOutputs, numbers: np.ndarray, form: str) -> None:
    """Add a legend of the levels' colors, with a formatted number for each level."""
    colors = []
    labels = []
    for level, name in enumerate(outputs.level_names):
        colors.append(palette_color(level))
        labels.append(f"{name}: {form.format(numbers[level])}")
    add_legend(figure, colors, labels)


def draw_points(axes: Axes, points: SamplingPoints) -> None:
    """Draw one query's sampling points, those with most attention on top."""
    weights = points.weights.ravel()
    order = np.argsort(weights)
    x, y = points.locations.reshape(-1, 2)[order].T

    levels = np.arange(points.weights.shape[1])[:, None]
    levels = np.broadcast_to(levels, points.weights.shape).ravel()
    colors = [palette_color(level) for level in levels[order]]
    # Diameters in points.
    sizes = (1.5 + 13 * np.sqrt(weights[order])) ** 2
    axes.scatter(x, y, s=sizes, color=colors, edgecolors="black", linewidths=0.5)


def attention_outside(points: SamplingPoints, image: np.ndarray) -> float:
    """Return the part of a query's attention that goes to places outside the image."""
    size = [image.shape[1], image.shape[0]]
    inside = ((points.locations >= 0) & (points.locations <= size)).all(-1)
    return float(points.weights[~inside].sum() / points.weights.sum())


def all_points(sampling: Sequence[SamplingPoints]) -> np.ndarray:
    """Return the (n, 2) locations of one query's points in all layers."""
    return np.concatenate([x.locations.reshape(-1, 2) for x in sampling])


def widest_window(image: np.ndarray, sampling: Sequence[SamplingPoints]) -> Window:
    """Return the image with the points beside it, up to a quarter of its longer side away."""
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    points = all_points(sampling)
    margin = size.max() / 4

    # Where points lie outside, the window reaches two pixels further than they do.
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

    # Distances from the center are measured in sides of the window's shape.
    box_distance = (np.abs(corners - center) / shape).max()
    distances = (np.abs(all_points(sampling) - center) / shape).max(axis=1)
    weights = np.concatenate([x.weights.ravel() for x in sampling])
    reach = max(box_distance, weighted_quantile(distances, weights, 0.9))

    # At least 4 pixels wide, so that a box without area can be seen.
    half = np.maximum(shape * 1.15 * reach, 2)
    if half.prod() * 4 > size.prod() / 2:
        return None

    # The window stays inside the image, or is centered where it is larger.
    center = np.where(2 * half >= size, size / 2, np.clip(center, half, size - half))
    x0, y0, x1, y1 = np.concatenate([center - half, center + half]).tolist()
    return x0, y0, x1, y1


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Return the smallest value up to which the values have this share of the (n,) weights."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(sums, share * weights.sum())])
