"""Statistics of queries, by hand and over images."""

from __future__ import annotations

import numpy as np
import pytest

from salience_detr.visualization import (
    QueryStatistics,
    inspect,
    plot_query_statistics,
    query_statistics,
)
from salience_detr.visualization.inside import (
    ProposedBoxes,
    TokenCells,
)
from salience_detr.visualization.queries import QueryFigures
from tests.visualization.images import LANDSCAPE, PORTRAIT, image_of


def figures_by_hand() -> QueryFigures:
    tokens = TokenCells(np.array([0, 0, 1]), np.array([[1, 1], [2, 1], [1, 1]]), np.zeros((3, 4)))
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 70]])
    return QueryFigures.of(ProposedBoxes(tokens, boxes))


def test_the_figures_of_queries_are_those_computed_by_hand():
    figures = figures_by_hand()

    # The second box covers 80 of the first one's 100; the third lies apart.
    np.testing.assert_allclose(figures.overlaps, [0.8, 0.8, 0])
    np.testing.assert_allclose(figures.sizes, [10, 80**0.5, 200**0.5])
    assert figures.repeats.tolist() == [False, True, False]
    assert figures.neighbors.tolist() == [1, 1, 0]  # the third has the same place on another level
    np.testing.assert_allclose(figures.level_shares(3), [2 / 3, 1 / 3, 0])


def test_a_single_query_repeats_nothing():
    tokens = TokenCells(np.array([0]), np.array([[0, 0]]), np.zeros((1, 4)))
    inside_out = np.array([[5.0, 5, 1, 1]])  # a box without a size

    figures = QueryFigures.of(ProposedBoxes(tokens, inside_out))

    assert figures.overlaps.tolist() == [0]
    assert figures.sizes.tolist() == [0]
    assert not figures.repeats.any()

    statistics = QueryStatistics(1, ("level 1",), np.array([4]), figures, figures)
    assert plot_query_statistics(statistics).shape == (800, 1100, 3)


def test_the_models_queries_have_no_neighbors_and_images_add_up(predictor):
    images = [image_of(*size) for size in (PORTRAIT, LANDSCAPE)]
    outputs = [inspect(predictor, image) for image in images]

    statistics = query_statistics(predictor, images)

    assert statistics.num_images == 2
    assert statistics.queries_per_image == 20
    level_tokens = [np.prod(x.level_sizes, axis=1) for x in outputs]
    assert statistics.level_tokens.tolist() == np.sum(level_tokens, axis=0).tolist()
    assert statistics.selected.neighbors.max() == 0 < statistics.plain.neighbors.max()
    assert len(statistics.selected.sizes) == len(statistics.plain.sizes) == 40

    with pytest.raises(ValueError, match="no images"):
        query_statistics(predictor, [])
