"""Augmentations that detectron2 lacks or that fail on some pictures."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, which rounds the short side of a very long picture to no pixels at all; here one is left."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform
