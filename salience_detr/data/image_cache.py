"""Cache of decoded images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np


class ImageCache:
    """The images that were used last, up to a number of bytes.

    It holds what :func:`read` returns and nothing random: results do not depend on what it holds.

    Args:
        read: returns the (H, W, 3) uint8 image of a file name.
        max_bytes: of all images together; 0 keeps none.
    """

    def __init__(self, read: Callable[[str], np.ndarray], max_bytes: int) -> None:
        self.read = read
        self.max_bytes = max_bytes
        self.images: OrderedDict[str, np.ndarray] = OrderedDict()
        self.num_bytes = 0

    def __call__(self, file_name: str) -> np.ndarray:
        """Return the image of a file; it must not be changed in place."""
        image = self.images.get(file_name)
        if image is not None:
            self.images.move_to_end(file_name)
            return image

        # Larger ones than the cache are read each time.
        image = np.ascontiguousarray(self.read(file_name))
        if image.nbytes <= self.max_bytes:
            image.flags.writeable = False
            self.images[file_name] = image
            self.num_bytes += image.nbytes

        # The first one is the one that was used longest ago.
        while self.num_bytes > self.max_bytes:
            _, oldest = self.images.popitem(last=False)
            self.num_bytes -= oldest.nbytes
        return image
