"""Panels draw where the image has it."""

from __future__ import annotations

import numpy as np

from salience_detr.visualization.panels import (
    draw_box,
    new_sheet,
    render,
    show_image,
)


def test_a_panel_draws_where_the_image_has_it():
    figure, (axes,) = new_sheet("", 1, (10, 20), side=800)
    show_image(axes, np.zeros((10, 20, 3), np.uint8), "a title")
    draw_box(axes, np.array([5, 2, 15, 8]), "red")
    drawn = render(figure)
    rows, columns = np.nonzero(drawn[..., 0].astype(int) - drawn[..., 1] > 127)

    # The rows of a figure are counted from its lower edge; a line reaches to both sides of an edge.
    height = len(drawn)
    corners = [(columns.min() + 1, height - rows.min() - 1), (columns.max(), height - rows.max())]
    found = axes.transData.inverted().transform(corners)
    np.testing.assert_allclose(found, [[5, 2], [15, 8]], atol=0.05)


def test_a_window_shows_its_part_and_gray_beyond_the_image():
    figure, (axes,) = new_sheet("", 1, (10, 10))
    show_image(axes, np.zeros((10, 10, 3), np.uint8), "", window=(-10, 0, 10, 10))
    drawn = render(figure)
    for x, gray in ((-5, 220), (5, 0)):
        column, row = axes.transData.transform((x, 5)).astype(int)
        assert (drawn[len(drawn) - row, column] == gray).all()


def test_long_titles_are_broken_into_lines():
    figure, (axes,) = new_sheet("heading " * 40, 1, (50, 60))
    show_image(axes, np.zeros((50, 60, 3), np.uint8), "title " * 40)
    assert axes.get_title(loc="left").count("\n") > 1
    assert figure.get_suptitle().count("\n") > 1
