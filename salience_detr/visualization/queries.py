"""Statistics of queries: their scales and their redundancy, against plain top-N selection.

The paper (sections 1 and 3.4) finds two faults in choosing the N tokens with the best class
scores: a bias towards some scales, and several queries for one object. Its redundancy removal
suppresses neighbors on the grid of a level before the N best are taken. Here both selections are
made from the same scores of the same model, so that only the suppression differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from salience_detr.data.images import ImageLike
from salience_detr.layers.box_ops import box_iou
from salience_detr.predictor import Predictor
from salience_detr.visualization.inside import ProposedBoxes, StageOutputs, inspect
from salience_detr.visualization.panels import DPI, PALETTE, render

# From this IoU with the initial box of a better query on, a query repeats it.
REDUNDANT_IOU = 0.7


@dataclass(frozen=True)
class QueryFigures:
    """Figures of n queries, of one or more images, that one way of selection has chosen.

    Attributes:
        levels: (n,) int64 level of each token.
        sizes: (n,) square root of the area of each initial box, in pixels of its image.
        overlaps: (n,) highest IoU of each initial box with that of another query of its image, 0
            without another one.
        repeats: (n,) bool, True where a better query of the image has nearly the same initial box
            (IoU above 0.7).
        neighbors: (n,) int64 number of queries on the up to four tokens that adjoin the token.
    """

    levels: np.ndarray
    sizes: np.ndarray
    overlaps: np.ndarray
    repeats: np.ndarray
    neighbors: np.ndarray

    @classmethod
    def of(cls, proposals: ProposedBoxes) -> QueryFigures:
        """Compute the figures of one image's queries, best first."""
        boxes = torch.from_numpy(proposals.boxes.astype(np.float64))
        # A box that is inside out has no size.
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)

        # A box does not overlap itself.
        overlaps = box_iou(boxes[:, None], boxes)[0].fill_diagonal_(0).numpy()

        # Neighbors are one step apart on the grid of their level.
        levels = proposals.tokens.levels
        grid = proposals.tokens.grid
        steps = np.abs(grid[:, None] - grid).sum(-1)
        adjoining = (steps == 1) & (levels[:, None] == levels)

        return cls(
            levels=levels,
            sizes=sides.prod(1).sqrt().numpy(),
            overlaps=overlaps.max(axis=1, initial=0.0),
            # Below the diagonal are the better queries.
            repeats=np.tril(overlaps).max(axis=1, initial=0.0) > REDUNDANT_IOU,
            neighbors=adjoining.sum(axis=1),
        )

    @classmethod
    def joined(cls, parts: Sequence[QueryFigures]) -> QueryFigures:
        """Return the figures of several images together."""
        columns = {}
        for field in fields(cls):
            columns[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
        return cls(**columns)

    def level_shares(self, num_levels: int) -> np.ndarray:
        """Return the (L,) part of the queries on each level."""
        return np.bincount(self.levels, minlength=num_levels) / max(1, len(self.levels))


@dataclass(frozen=True)
class QueryStatistics:
    """Queries of a model over a set of images, and those that plain top-N selection would choose.

    Attributes:
        num_images: number of images.
        level_names: names of the L levels.
        level_tokens: (L,) int64 tokens of each level, of all images, without padding.
        selected: the model's queries.
        plain: as many of each image, the tokens with the best class scores.
    """

    num_images: int
    level_names: tuple[str, ...]
    level_tokens: np.ndarray
    selected: QueryFigures
    plain: QueryFigures

    @classmethod
    def of(cls, outputs: StageOutputs) -> QueryStatistics:
        """Compute the statistics of one image."""
        return cls(
            num_images=1,
            level_names=outputs.level_names,
            level_tokens=np.prod(outputs.level_sizes, axis=1),
            selected=QueryFigures.of(outputs.proposals),
            plain=QueryFigures.of(outputs.plain_proposals),
        )

    @classmethod
    def joined(cls, parts: Iterable[QueryStatistics]) -> QueryStatistics:
        """Return the statistics of several images together.

        Raises:
            ValueError: there are none.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("there are no images to compute statistics of")

        return cls(
            num_images=sum(x.num_images for x in parts),
            level_names=parts[0].level_names,
            level_tokens=np.sum([x.level_tokens for x in parts], axis=0),
            selected=QueryFigures.joined([x.selected for x in parts]),
            plain=QueryFigures.joined([x.plain for x in parts]),
        )

    @property
    def queries_per_image(self) -> float:
        return len(self.selected.levels) / self.num_images


def query_statistics(
    predictor: Predictor, images: Iterable[ImageLike], *, channel_order: str = "RGB"
) -> QueryStatistics:
    """Compute the statistics of a model's queries over images, one after the other.

    Args:
        predictor: the predictor.
        images: paths, PIL images, arrays or tensors.
        channel_order: "RGB" or "BGR", of arrays and tensors.

    Raises:
        ImageReadError: a file cannot be read.
        ValueError, TypeError: there are no images, or ``predictor`` is none.
    """
    outputs = (inspect(predictor, image, channel_order=channel_order) for image in images)
    return QueryStatistics.joined(QueryStatistics.of(x) for x in outputs)


@dataclass(frozen=True)
class Series:
    """Figures of one way of selection, with the label and the color that it has in plots."""

    figures: QueryFigures
    label: str
    color: str


def plot_query_statistics(statistics: QueryStatistics) -> np.ndarray:
    """Plot the scales of the queries by level and by box, and below their redundancy.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    label = "after the suppression of neighbors (the model)"
    selected = Series(statistics.selected, label, PALETTE[6])
    plain = Series(statistics.plain, "plain top-N by class score", PALETTE[1])
    series = (selected, plain)

    figure = Figure(figsize=(11, 8), dpi=DPI, layout="constrained")
    (levels, sizes), (overlaps, neighbors) = figure.subplots(2, 2)
    plot_levels(levels, statistics, series)
    plot_sizes(sizes, series)
    plot_overlaps(overlaps, series)
    plot_neighbors(neighbors, series)

    for axes in (levels, sizes, overlaps, neighbors):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    figure.legend(*levels.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    images = "1 image" if statistics.num_images == 1 else f"{statistics.num_images} images"
    figure.suptitle(f"Initial queries: {images}, {statistics.queries_per_image:.0f} queries each")
    return render(figure)


def plot_levels(axes: Axes, statistics: QueryStatistics, series: Sequence[Series]) -> None:
    """Plot the part of the queries on each level, beside that of all tokens."""
    names = statistics.level_names
    bars = [(x.label, x.figures.level_shares(len(names)), x.color) for x in series]
    token_shares = statistics.level_tokens / statistics.level_tokens.sum()

    bars.append(("all tokens", token_shares, "darkgray"))

    # Three bars beside each other for each level.
    for i, (label, shares, color) in enumerate(bars):
        places = np.arange(len(names)) + 0.27 * (i - 1)
        drawn = axes.bar(places, 100 * shares, 0.25, color=color, label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=8)

    axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    axes.set_ylabel("part, %")
    axes.set_title("Scale: the level of the tokens")


def plot_sizes(axes: Axes, series: Sequence[Series]) -> None:
    """Plot a histogram of the sizes of the initial boxes, on a logarithmic scale."""
    sizes = np.concatenate([x.figures.sizes for x in series])

    # Boxes without area go into the lowest bin, and one size alone needs a bin, too.
    low = max(1.0, sizes.min(initial=np.inf))
    high = max(2.0, low * 1.01, sizes.max(initial=0))
    edges = np.geomspace(low, high, 25)
    for x in series:
        plot_histogram(axes, np.clip(x.figures.sizes, edges[0], edges[-1]), edges, x.color)

    axes.set_xscale("log")
    # A range below a power of ten has labels, too.
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.6)))
    axes.set_xlabel("square root of the area of the initial box, pixels")
    axes.set_title("Scale: the size of the initial boxes")


def plot_overlaps(axes: Axes, series: Sequence[Series]) -> None:
    """Plot a histogram of the highest IoU of each initial box with another one."""
    for x in series:
        mean = x.figures.overlaps.mean()
        label = f"mean {mean:.2f}; {x.figures.repeats.mean():.0%} repeat a better one"
        plot_histogram(axes, x.figures.overlaps, np.linspace(0, 1, 21), x.color, label)

    axes.set_xlabel("highest IoU with the initial box of another query")
    axes.set_title(f"Redundancy: overlap of boxes (a repeat: IoU > {REDUNDANT_IOU})")
    axes.legend(fontsize=8)


def plot_histogram(
    axes: Axes,
    values: np.ndarray,
    edges: np.ndarray,
    color: str,
    label: str | None = None,
) -> None:
    """Plot the part of the queries, in percent, with values between each two edges."""
    weights = np.full(len(values), 100 / max(1, len(values)))
    bins = edges.tolist()
    axes.hist(values, bins, weights=weights, color=color, label=label, histtype="step", linewidth=2)
    axes.set_ylabel("part of the queries, %")


def plot_neighbors(axes: Axes, series: Sequence[Series]) -> None:
    """Plot how many of the four tokens that adjoin a query's token are queries, too."""
    for i, x in enumerate(series):
        neighbors = x.figures.neighbors
        shares = np.bincount(neighbors, minlength=5) / max(1, len(neighbors))
        places = np.arange(5) + 0.4 * (i - 0.5)
        label = f"mean {neighbors.mean():.2f}"
        drawn = axes.bar(places, 100 * shares, 0.38, color=x.color, label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=8)

    axes.set_xticks(range(5))
    axes.set_xlabel("adjoining tokens of the level that are queries, too")
    axes.set_ylabel("part of the queries, %")
    axes.set_title("Redundancy: neighbors on the grid")
    axes.legend(fontsize=8)
