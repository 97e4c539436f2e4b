"""Which tokens become queries: their scales and their redundancy, against plain top-N (paper, sections 1 and 3.4).

The paper finds two faults in choosing the N tokens with the best class scores: a bias towards some scales, and several
queries for one object. Its redundancy removal suppresses neighbors on the grid of a level before the N best are taken.
Here both choices are made from the same scores of the same model, so that only the suppression differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from salience_detr.data.images import ImageLike
from salience_detr.layers.box_ops import box_iou
from salience_detr.visualization.inside import Inspection, ProposedBoxes, inspect
from salience_detr.visualization.panels import GRAY, PALETTE

if TYPE_CHECKING:
    from salience_detr.modeling.salience_detr import SalienceDETR
    from salience_detr.predictor import Predictor

REDUNDANT_IOU = 0.7  # of an initial box with a better one that makes it say the same again


@dataclass(frozen=True)
class QueryFigures:
    """Figures of queries that were chosen in one way, of one or more images; n is the number of all of them.

    Attributes:
        levels: (n,) int64 level of each token.
        sizes: (n,) square root of the area of each initial box, in pixels of its image.
        overlaps: (n,) highest IoU of each initial box with that of another query of its image; 0 where it is alone.
        repeats: (n,) True where a better query of the image has nearly the same initial box (IoU above 0.7).
        neighbors: (n,) int64 queries on the up to four tokens that adjoin the token on its level.
    """

    levels: np.ndarray
    sizes: np.ndarray
    overlaps: np.ndarray
    repeats: np.ndarray
    neighbors: np.ndarray

    @classmethod
    def of(cls, proposals: ProposedBoxes) -> QueryFigures:
        """The figures of one image's queries, best first."""
        boxes = torch.from_numpy(proposals.boxes.astype(np.float64))
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
        overlaps = box_iou(boxes[:, None], boxes)[0].fill_diagonal_(0)
        levels, grid = proposals.tokens.levels, proposals.tokens.grid
        steps = np.abs(grid[:, None] - grid).sum(-1)
        adjoining = (steps == 1) & (levels[:, None] == levels)
        best = overlaps.amax(1) if len(boxes) else overlaps.new_zeros(0)
        return cls(
            levels=levels,
            sizes=sides.prod(1).sqrt().numpy(),
            overlaps=best.numpy(),
            # Below the diagonal are the better queries.
            repeats=(overlaps.tril() > REDUNDANT_IOU).any(1).numpy(),
            neighbors=adjoining.sum(1),
        )

    @classmethod
    def joined(cls, parts: Sequence[QueryFigures]) -> QueryFigures:
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("levels", "sizes", "overlaps", "repeats", "neighbors")
            )
        )

    def level_shares(self, num_levels: int) -> np.ndarray:
        """(L,) part of the queries on each level."""
        return np.bincount(self.levels, minlength=num_levels) / max(1, len(self.levels))


@dataclass(frozen=True)
class QueryStatistics:
    """The queries of a model over a set of images, and those that plain top-N would choose.

    Attributes:
        num_images: of the set.
        level_names: of the L levels.
        level_tokens: (L,) int64 tokens of each level, of all images together, without padding.
        selected: the queries of the model.
        plain: as many of each image, the tokens with the best class scores.
    """

    num_images: int
    level_names: tuple[str, ...]
    level_tokens: np.ndarray
    selected: QueryFigures
    plain: QueryFigures

    @classmethod
    def of(cls, inspection: Inspection) -> QueryStatistics:
        """The figures of one image."""
        return cls(
            num_images=1,
            level_names=inspection.level_names,
            level_tokens=np.array([h * w for h, w in inspection.level_sizes]),
            selected=QueryFigures.of(inspection.proposals),
            plain=QueryFigures.of(inspection.plain_proposals),
        )

    @classmethod
    def joined(cls, parts: Iterable[QueryStatistics]) -> QueryStatistics:
        """The figures of several images together.

        Raises:
            ValueError: there are none.
        """
        found = list(parts)
        if not found:
            raise ValueError("there are no images to take the figures of")
        return cls(
            num_images=sum(x.num_images for x in found),
            level_names=found[0].level_names,
            level_tokens=np.sum([x.level_tokens for x in found], axis=0),
            selected=QueryFigures.joined([x.selected for x in found]),
            plain=QueryFigures.joined([x.plain for x in found]),
        )

    @property
    def queries_per_image(self) -> float:
        return len(self.selected.levels) / self.num_images


def query_statistics(
    source: Predictor | SalienceDETR, images: Iterable[ImageLike], *, channel_order: str = "RGB"
) -> QueryStatistics:
    """The figures of a model's queries over images, one after the other.

    Args:
        source: a predictor; or a model, which is given images in the size that they have.
        images: paths, PIL images, arrays or tensors.
        channel_order: of arrays and tensors, "RGB" or "BGR".

    Raises:
        ImageReadError: a file cannot be read.
        ValueError, TypeError: no images, or a source that is neither.
    """
    return QueryStatistics.joined(
        QueryStatistics.of(inspect(source, image, channel_order=channel_order)) for image in images
    )


def plot_query_statistics(statistics: QueryStatistics) -> np.ndarray:
    """(H, W, 3) uint8 RGB: above the scales of the queries, by level and by box; below their redundancy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ways = [
        ("after the suppression of neighbors (the model)", statistics.selected, rgb(PALETTE[6])),
        ("plain top-N by class score", statistics.plain, rgb(PALETTE[1])),
    ]
    (levels, sizes), (overlaps, neighbors) = figure.subplots(2, 2)
    plot_levels(levels, statistics, ways)
    plot_sizes(sizes, ways)
    plot_overlaps(overlaps, ways)
    plot_neighbors(neighbors, ways)
    figure.legend(*levels.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    images = f"{statistics.num_images} image" + ("s" if statistics.num_images > 1 else "")
    figure.suptitle(f"Initial queries: {images}, {statistics.queries_per_image:.0f} queries each")
    for axes in (levels, sizes, overlaps, neighbors):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


Ways = Sequence[tuple[str, QueryFigures, tuple[float, ...]]]


def rgb(color: tuple[int, int, int]) -> tuple[float, ...]:
    """A color as matplotlib has it."""
    return tuple(x / 255 for x in color)


def plot_levels(axes: Any, statistics: QueryStatistics, ways: Ways) -> None:
    """The part of the queries on each level, beside that of all tokens."""
    names = statistics.level_names
    tokens = statistics.level_tokens / statistics.level_tokens.sum()
    bars = [(label, figures.level_shares(len(names)), color) for label, figures, color in ways]
    bars.append(("all tokens", tokens, rgb(GRAY)))
    for i, (label, shares, color) in enumerate(bars):
        places = np.arange(len(names)) + 0.27 * (i - 1)
        axes.bar_label(
            axes.bar(places, 100 * shares, 0.25, color=color, label=label), fmt="%.0f", fontsize=8
        )
    axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    axes.set_ylabel("part, %")
    axes.set_title("Scale: the level of the tokens")


def plot_sizes(axes: Any, ways: Ways) -> None:
    """The sizes of the initial boxes, on a logarithmic scale."""
    from matplotlib.ticker import LogFormatter

    together = np.concatenate([figures.sizes for _, figures, _ in ways])
    low, high = max(1.0, together.min(initial=np.inf)), max(2.0, together.max(initial=0))
    edges = np.geomspace(low, max(high, low * 1.01), 25)
    for _, figures, color in ways:
        weights = np.full(len(figures.sizes), 100 / max(1, len(figures.sizes)))
        shown = np.clip(figures.sizes, edges[0], edges[-1])
        axes.hist(shown, edges, weights=weights, color=color, histtype="step", linewidth=2)
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.6)))
    axes.set_xlabel("square root of the area of the initial box, pixels")
    axes.set_ylabel("part of the queries, %")
    axes.set_title("Scale: the size of the initial boxes")


def plot_overlaps(axes: Any, ways: Ways) -> None:
    """How much each initial box overlaps with another one."""
    for _, figures, color in ways:
        weights = np.full(len(figures.overlaps), 100 / max(1, len(figures.overlaps)))
        name = (
            f"mean {figures.overlaps.mean():.2f}; {figures.repeats.mean():.0%} repeat a better one"
        )
        axes.hist(
            figures.overlaps,
            np.linspace(0, 1, 21),
            weights=weights,
            color=color,
            histtype="step",
            linewidth=2,
            label=name,
        )
    axes.set_xlabel("highest IoU with the initial box of another query")
    axes.set_ylabel("part of the queries, %")
    axes.set_title(f"Redundancy: overlap of boxes (a repeat: IoU > {REDUNDANT_IOU})")
    axes.legend(fontsize=8)


def plot_neighbors(axes: Any, ways: Ways) -> None:
    """How many of the four tokens that adjoin a query's token are queries, too."""
    for i, (_, figures, color) in enumerate(ways):
        shares = np.bincount(figures.neighbors, minlength=5) / max(1, len(figures.neighbors))
        label = f"mean {figures.neighbors.mean():.2f}"
        bars = axes.bar(
            np.arange(5) + 0.4 * (i - 0.5), 100 * shares, 0.38, color=color, label=label
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(5))
    axes.set_xlabel("adjoining tokens of the level that are queries, too")
    axes.set_ylabel("part of the queries, %")
    axes.set_title("Redundancy: neighbors on the grid")
    axes.legend(fontsize=8)
