"""Drawings survive any name."""

from __future__ import annotations

import subprocess
import sys

import pytest

DRAW = """
import numpy as np
from salience_detr.utils.drawing import draw_boxes

image = np.zeros((60, 80, 3), np.uint8)
drawn = draw_boxes(image, [np.array([5, 20, 60, 50])], [eval(NAME)], [(255, 255, 0)])
assert drawn.any() and not image.any()
"""


@pytest.mark.parametrize("name", ["a\ud83d", "\udc80", "a\0b", "", "錆🙂", "x" * 5000, "a\nb"])
def test_a_label_of_any_characters_is_drawn(name):
    # In a process of its own, since OpenCV crashes on lone surrogates.
    code = DRAW.replace("NAME", repr(ascii(name)))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
