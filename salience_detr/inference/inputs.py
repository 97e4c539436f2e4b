"""Inputs of a run: the list of files, and images that threads read ahead of the detector."""

from __future__ import annotations

import glob
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from salience_detr.data.decoding import read_size
from salience_detr.data.endings import describe_others, is_hidden, is_image
from salience_detr.data.images import UNREADABLE, ImageReadError, read_image
from salience_detr.data.value_range import ValueRange
from salience_detr.inference.video import VIDEO_ENDINGS

TRANSPORT_STREAM = b"G"  # first byte of each packet

MAX_PIXELS = 100_000_000  # of the images in memory together: 300 MB

# Only images of similar aspect ratios can be resized to one padded size and computed together.
SIMILAR_ASPECTS = 1.1


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its ending; all other files are taken for images."""
    return path.suffix.lower() in VIDEO_ENDINGS


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run.

    Attributes:
        files: images and videos, in order and without repetition.
        missing: a message for each pattern without a file.
        remarks: a message for each folder that holds other files, too.
        names: path of each file relative to the folder or pattern that it was found by, which its
            outputs get.
    """

    files: list[Path]
    missing: list[str]
    remarks: list[str]
    names: dict[Path, Path] = field(default_factory=dict)


def collect_inputs(patterns: Sequence[str], listed: Sequence[str] = ()) -> Inputs:
    """Collect the files named by paths, folders (with their subfolders) and glob patterns.

    Args:
        patterns: what the command line names.
        listed: paths of a list, whose names are relative to the folder that they have in common.

    Raises:
        FileNotFoundError: there is none.
    """
    files: list[Path] = []
    missing: list[str] = []
    remarks: list[str] = []
    names: dict[Path, Path] = {}
    for pattern in patterns:
        matches, others = find_files(pattern)
        if not matches:
            missing.append(f"--input {pattern}: there is no such image, video, folder or match")
        if others:
            remarks.append(describe_others(Path(pattern), others, "images or videos"))

        files += matches
        root = root_of(pattern)
        for match in matches:
            names.setdefault(match, match.relative_to(root))

    of_list: list[Path] = []
    for word in listed:
        matches, _ = find_files(word)
        if not matches:
            missing.append(f"--input -: there is no such image, video or folder: {word}")
        of_list += matches

    files += of_list
    for path, name in names_of_list(of_list).items():
        names.setdefault(path, name)

    if not files:
        raise FileNotFoundError("; ".join(missing + remarks))
    return Inputs(list(dict.fromkeys(files)), missing, remarks, names)


def root_of(pattern: str) -> Path:
    """Return the folder that the files of a path, folder or pattern are relative to."""
    path = Path(pattern)
    if os.path.isfile(path):
        return path.parent
    if os.path.isdir(path):
        return path

    # The folders before the first one with a wildcard.
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
    return Path(*fixed)


def names_of_list(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the path of each file relative to the folder that all have in common."""
    if not paths:
        return {}

    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    root = os.path.commonpath([path.parent for path in absolute.values()])
    return {path: full.relative_to(root) for path, full in absolute.items()}


def find_files(pattern: str) -> tuple[list[Path], list[Path]]:
    """Find the files of one path, folder or pattern, sorted.

    In a folder, only images and videos count. A file that is named itself may have any ending. A
    glob pattern means the files that it fits, or if there are none, the folders.

    Returns:
        The files, and the other files of a folder.
    """
    # A file comes first, since its name may have the special characters of a pattern.
    # Path.is_file would raise for a name that is too long.
    path = Path(pattern)
    if os.path.isfile(path):
        return [path], []
    if os.path.isdir(path):
        return sort_files(sorted(p for p in path.rglob("*") if p.is_file()))

    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [match for match in matches if match.is_file()]
    if files:
        return files, []

    # A pattern that fits folders alone means what is in them.
    contents: set[Path] = set()
    for folder in matches:
        contents.update(path for path in folder.rglob("*") if path.is_file())
    return sort_files(sorted(contents))


def sort_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Sort files into images and videos, and others but for hidden ones."""
    files: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if is_image(path) or (is_video(path) and not is_typescript(path)):
            files.append(path)
        elif not is_hidden(path):
            others.append(path)
    return files, others


def is_typescript(path: Path) -> bool:
    """Return whether a file is the source code whose ending is that of a transport stream."""
    if path.suffix.lower() != ".ts":
        return False
    with open(path, "rb") as file:
        return file.read(1) != TRANSPORT_STREAM


@dataclass(frozen=True)
class LoadedImage:
    """Image that was read, or the error that reading it raised.

    Attributes:
        path: file of the image.
        image: (H, W, 3) uint8 RGB, or the error.
    """

    path: Path
    image: np.ndarray | ImageReadError

    def pixels(self) -> np.ndarray:
        """Return the image, or raise the error."""
        if isinstance(self.image, ImageReadError):
            raise self.image
        return self.image


@dataclass(frozen=True)
class PlannedBatch:
    """Files of images that are to be computed together.

    Attributes:
        paths: files of the images.
        num_pixels: number of pixels of all of them.
    """

    paths: list[Path]
    num_pixels: int


class ImageReader:
    """Iterator over batches of images, which threads read ahead of the detector.

    The images of a batch follow each other in the list and have similar aspect ratios. All images
    in memory, including the batch that was yielded last, have at most ``max_pixels`` together. Only
    a single image may have more.

    Args:
        paths: image files.
        batch_size: maximum number of images in a batch.
        num_threads: number of threads that read.
        max_pixels: maximum number of pixels in memory.
        value_range: range of the values of deep images; by default each image has its own.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        batch_size: int = 1,
        num_threads: int = 2,
        max_pixels: int = MAX_PIXELS,
        value_range: ValueRange | None = None,
    ) -> None:
        self.paths = paths
        self.batch_size = batch_size
        self.num_threads = num_threads
        self.max_pixels = max_pixels
        self.value_range = value_range

    def __iter__(self) -> Iterator[list[LoadedImage]]:
        """Yield batches. Asking for the next batch empties the last one, to free its memory."""
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="read")
        pending: deque[tuple[PlannedBatch, list[Future[LoadedImage]]]] = deque()
        plan = self.plan()
        upcoming = next(plan, None)
        pixels_in_memory = 0

        try:
            while pending or upcoming:
                # Begin to read as many batches as there is room for.
                while upcoming and self.has_room(upcoming, pixels_in_memory, len(pending)):
                    futures = [pool.submit(self.load, path) for path in upcoming.paths]
                    pending.append((upcoming, futures))
                    pixels_in_memory += upcoming.num_pixels
                    upcoming = next(plan, None)

                # No reference to the images stays here while the next ones are read.
                planned, futures = pending.popleft()
                batch = [future.result() for future in futures]
                futures.clear()
                yield batch
                batch.clear()
                pixels_in_memory -= planned.num_pixels
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def has_room(self, batch: PlannedBatch, pixels_in_memory: int, num_pending: int) -> bool:
        """Return whether another batch may be read."""
        # A batch is always read if nothing else is in memory, however large it is.
        if num_pending == 0 and pixels_in_memory == 0:
            return True

        fits = pixels_in_memory + batch.num_pixels <= self.max_pixels

        # Small images would otherwise be read much too far ahead.
        return fits and num_pending < 2 * self.num_threads

    def plan(self) -> Iterator[PlannedBatch]:
        """Yield the batches, planned by image sizes; a file without a size is a batch by itself."""
        paths: list[Path] = []
        num_pixels = 0
        first_aspect = 0.0
        for path in self.paths:
            width, height = image_size(path)
            aspect = width / max(height, 1)

            is_full = len(paths) == self.batch_size or num_pixels + width * height > self.max_pixels
            if paths and (is_full or not is_similar(aspect, first_aspect)):
                yield PlannedBatch(paths, num_pixels)
                paths = []
                num_pixels = 0

            if not paths:
                first_aspect = aspect

            paths.append(path)
            num_pixels += width * height

        if paths:
            yield PlannedBatch(paths, num_pixels)

    def load(self, path: Path) -> LoadedImage:
        """Read an image. An error is returned instead of raised, since a thread calls this."""
        try:
            return LoadedImage(path, read_image(str(path), value_range=self.value_range))
        except ImageReadError as error:
            return LoadedImage(path, error)


def is_similar(aspect: float, other: float) -> bool:
    """Return whether images of two aspect ratios can be computed together.

    The aspect ratio of an unreadable image is 0, which is similar to none.
    """
    smaller, larger = sorted((aspect, other))
    return smaller > 0 and larger <= SIMILAR_ASPECTS * smaller


def image_size(path: Path) -> tuple[int, int]:
    """Return the EXIF-corrected (width, height) from the header of a file, or zeros on failure."""
    try:
        with open(path, "rb") as file:
            return read_size(file)[0]
    except UNREADABLE:
        return 0, 0
