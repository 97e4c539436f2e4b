"""Images for the model to look at."""

from __future__ import annotations

import numpy as np

from salience_detr.data.surface import render_surface

PORTRAIT, LANDSCAPE, SMALL = (90, 50), (48, 80), (32, 33)  # (height, width)


def image_of(height: int, width: int) -> np.ndarray:
    return render_surface(np.random.default_rng(3), height, width).image
