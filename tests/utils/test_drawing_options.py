"""Widths, labels, filling and colors of drawings."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from salience_detr.utils.drawing import draw_boxes
from salience_detr.utils.drawing_options import (
    ColorChoice,
    DrawingOptions,
    add_drawing_arguments,
    class_colors,
    drawing_options,
    has_drawing_arguments,
    parse_colors,
)

NAMES = ["pit", "scratch", "a:b"]
RED, GREEN = (255, 0, 0), (0, 128, 0)


def parse(*words):
    parser = argparse.ArgumentParser()
    add_drawing_arguments(parser)
    return parser.parse_args(words)


def drawn(**options):
    """Draw one red box without a label, unless the options say so, on a gray image."""
    options = {"has_labels": False, **options}
    image = np.full((100, 100, 3), 100, np.uint8)
    return draw_boxes(
        image, [np.array([20, 40, 80, 90])], ["pit"], [RED], DrawingOptions(**options)
    )


def test_no_flag_is_the_default():
    assert drawing_options(parse()) == DrawingOptions() and not has_drawing_arguments(parse())
    assert has_drawing_arguments(parse("--no-labels"))


def test_a_line_has_the_width_that_is_asked_for():
    # A line of 5 pixels at x = 20 covers 18 to 22.
    row = drawn(line_width=5)[70, :40, 0]
    assert np.flatnonzero(row == 255).tolist() == [18, 19, 20, 21, 22]
    assert np.flatnonzero(drawn()[70, :40, 0] == 255).tolist() == [20]
    assert np.flatnonzero(drawn(line_width=2)[:60, 50, 0] == 255).tolist() == [40, 41]
    assert drawn(line_width=500)[0, 0].tolist() == [255, 0, 0]  # beyond the image


def test_the_inside_is_mixed_with_the_color():
    # 0.75 * 100 + 0.25 * (255, 0, 0)
    assert drawn(fill_opacity=0.25)[70, 50].tolist() == [139, 75, 75]
    assert drawn()[70, 50].tolist() == drawn(fill_opacity=0.25)[10, 10].tolist() == [100] * 3


def test_labels_grow_or_are_left_out():
    sizes = []
    for scale in (1.0, 2.0):
        labeled = drawn(has_labels=True, font_scale=scale)
        sizes.append(int((labeled != drawn()).any(axis=2).sum()))
    assert sizes[1] > 2.5 * sizes[0] > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["red"], [RED, RED, RED]),
        (["red", "#008000"], [RED, GREEN, None]),
        (["255,0,0", "008000", "red"], [RED, GREEN, RED]),
        (["scratch:red", "a:b:green"], [None, RED, GREEN]),
        (["PIT:red"], [RED, None, None]),
    ],
)
def test_colors_are_of_all_classes_in_order_or_by_name(words, expected):
    palette = DrawingOptions(colors=parse_colors(words)).palette(NAMES)
    defaults = class_colors(3)
    assert palette == [a or b for a, b in zip(expected, defaults, strict=True)]


def test_colors_come_from_a_file(tmp_path):
    path = tmp_path / "colors.json"
    path.write_text(json.dumps({"pit": "red", "scratch": [0, 128, 0]}))
    assert parse_colors([str(path)]) == ColorChoice(by_name={"pit": RED, "scratch": GREEN})
    path.write_text('["red", "green"]')
    assert parse_colors([str(path)]) == ColorChoice((RED, GREEN))


def test_colors_of_the_data_set_are_kept_where_none_is_chosen():
    options = DrawingOptions(colors=ColorChoice(by_name={"pit": RED}))
    assert options.palette(["pit", "crack"], [(1, 2, 3), (4, 5, 6)]) == [RED, (4, 5, 6)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pitt:red"], "'pitt' is no class; did you mean pit"),
        (["reddish"], "'reddish' is no color; write red"),
        (["pit=red"], "'pit=red' is no color; for a class write pit:red"),
        (["300,0,0"], "from 0 to 255"),
        (["red"] * 4, "4 colors, but there are 3 classes: pit, scratch, a:b"),
        (["none.json"], "none.json cannot be read"),
    ],
)
def test_a_wrong_color_says_what_is_right(words, message):
    with pytest.raises(ValueError, match=message):
        DrawingOptions(colors=parse_colors(words)).palette(NAMES)


@pytest.mark.parametrize("words", [["--line-width", "0"], ["--fill-opacity", "2"]])
def test_numbers_have_limits(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)
    assert "and must be " in capsys.readouterr().err


def test_the_declarations_need_no_torch():
    code = "import sys, salience_detr.utils.drawing_options; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
