"""What a run detects on: finding the files, and reading images ahead of the work."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from salience_detr.data.images import UNREADABLE, ImageReadError, orientation, read_image
from salience_detr.inference.video import VIDEO_ENDINGS

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}

PIXELS_AHEAD = 100_000_000  # of images in memory, unless one alone has more: 300 MB
SIMILAR = 1.1  # ratio of aspect ratios; only such images can be resized to one padded size, and be computed together


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its ending; all others are taken for images."""
    return path.suffix.lower() in VIDEO_ENDINGS


def collect_inputs(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that paths, folders (searched through) and patterns stand for, each once, in order.

    Returns:
        The files, and a message for each pattern that nothing fits.
    """
    endings = IMAGE_ENDINGS | VIDEO_ENDINGS
    files: list[Path] = []
    missing: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file()
            )
        elif path.is_file():
            found = [path]
        else:
            found = [
                Path(name)
                for name in sorted(glob.glob(pattern, recursive=True))
                if os.path.isfile(name)
            ]
        if not found:
            missing.append(f"--input {pattern}: there is no such image, video, folder or match")
        files += found
    return list(dict.fromkeys(files)), missing


@dataclass(frozen=True)
class ImageRead:
    """An image that was read, or why it could not be.

    Attributes:
        position: in the list that was read from.
        image: (H, W, 3) uint8 RGB, or the error.
    """

    position: int
    image: np.ndarray | ImageReadError


@dataclass(frozen=True)
class PlannedBatch:
    """Images to be computed together.

    Attributes:
        positions: of the images in the list.
        pixels: of all together.
    """

    positions: list[int]
    pixels: int


class ImageReader:
    """Reads images by a pool of threads, ahead of the work on those before, and yields them in order, in batches.

    Images of a batch follow each other in the list and have about the same shape. The images in memory, the batch
    that was yielded last among them, have ``max_pixels`` together at most, unless one alone has more.

    Args:
        paths: of the images.
        batch_size: images of a batch, at most.
        num_threads: that read.
        max_pixels: of the images in memory.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        batch_size: int = 1,
        num_threads: int = 2,
        max_pixels: int = PIXELS_AHEAD,
    ) -> None:
        self.paths = paths
        self.batch_size = batch_size
        self.num_threads = num_threads
        self.max_pixels = max_pixels

    def __iter__(self) -> Iterator[list[ImageRead]]:
        """Batches, each of which is emptied when the next one is asked for, so that its memory is free."""
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="read")
        pending: deque[tuple[int, list[Future[ImageRead]]]] = deque()
        batches = self.plan()
        upcoming = next(batches, None)
        in_memory = 0  # pixels
        try:
            while pending or upcoming is not None:
                while upcoming is not None and self.may_begin(upcoming, in_memory, len(pending)):
                    in_memory += upcoming.pixels
                    pending.append(
                        (upcoming.pixels, [pool.submit(self.read, i) for i in upcoming.positions])
                    )
                    upcoming = next(batches, None)
                pixels, futures = pending.popleft()
                batch = [future.result() for future in futures]
                futures.clear()
                yield batch
                batch.clear()
                in_memory -= pixels
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def may_begin(self, batch: PlannedBatch, in_memory: int, num_pending: int) -> bool:
        """Whether there is room for another batch."""
        if num_pending == 0 and in_memory == 0:
            return True
        return num_pending < 2 * self.num_threads and in_memory + batch.pixels <= self.max_pixels

    def plan(self) -> Iterator[PlannedBatch]:
        """The batches, from the sizes alone; what has no size is a batch of its own."""
        positions: list[int] = []
        pixels, first_aspect = 0, 0.0
        for position, path in enumerate(self.paths):
            width, height = image_size(path)
            aspect = width / height if height else 0.0
            fits = len(positions) < self.batch_size and pixels + width * height <= self.max_pixels
            if positions and not (fits and is_similar(aspect, first_aspect)):
                yield PlannedBatch(positions, pixels)
                positions, pixels = [], 0
            if not positions:
                first_aspect = aspect
            positions.append(position)
            pixels += width * height
        if positions:
            yield PlannedBatch(positions, pixels)

    def read(self, position: int) -> ImageRead:
        try:
            return ImageRead(position, read_image(str(self.paths[position])))
        except ImageReadError as error:
            return ImageRead(position, error)


def is_similar(aspect: float, other: float) -> bool:
    """Whether images of two aspect ratios are worth computing together; 0 is of none that can be read."""
    return min(aspect, other) > 0 and max(aspect, other) <= SIMILAR * min(aspect, other)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, as it will be turned, from the beginning of its file; zeros where there is none."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if orientation(image) >= 5 else (width, height)
    except UNREADABLE:
        return 0, 0
