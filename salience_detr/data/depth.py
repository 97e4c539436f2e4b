"""Choice of the range of values from the files of a data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import TypeVar

import numpy as np
from detectron2.utils.file_io import PathManager

from salience_detr.data.decoding import is_deep_file
from salience_detr.data.images import ImageReadError, decode_named
from salience_detr.data.value_range import KINDS, ValueRange, kind_of, sample_pixels

T = TypeVar("T")

# Files of these endings never have more than 8 bits, or are decoded to 8.
EIGHT_BITS = {".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".avif"}
MAX_HEADERS = 5000  # files whose depth is looked up
MAX_REMOTE = 50  # files that have to be fetched for it
MAX_IMAGES = 50  # deep images whose values are read


def choose_from_files(value_range: ValueRange, file_names: Sequence[str]) -> None:
    """Choose a range from evenly spaced files of a data set, unless it is known.

    It stays unknown if none of them is a deep image. Files that cannot be read are skipped.
    """
    if all(map(value_range.is_known, KINDS)):
        return

    names = [name for name in file_names if PurePath(name).suffix.lower() not in EIGHT_BITS]
    is_remote = any("://" in name for name in names)
    looked_up = evenly(names, MAX_REMOTE if is_remote else MAX_HEADERS)
    deep = [name for name in looked_up if is_deep(name)]

    samples = defaultdict(list)
    with ThreadPoolExecutor(4) as pool:
        for values in pool.map(sample_file, evenly(deep, MAX_IMAGES)):
            if values is not None:
                samples[kind_of(values)].append(values)
    for kind in sorted(samples):
        value_range.choose(kind, samples[kind])


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` evenly spaced items."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


def is_deep(file_name: str) -> bool:
    """Return whether a file is an image of more than 8 bits; False if it cannot be read."""
    try:
        with PathManager.open(file_name, "rb") as file:
            return is_deep_file(file)
    except Exception:  # damaged files make the decoders fail in many ways
        return False


def sample_file(file_name: str) -> np.ndarray | None:
    """Return some values of a deep image; None if it is none, or cannot be read."""
    try:
        pixels = decode_named(file_name).pixels
    except ImageReadError:
        return None
    return sample_pixels(pixels) if isinstance(pixels, np.ndarray) else None
