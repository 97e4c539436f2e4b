"""Files of a data set: finding them, and reading many of them in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}

T = TypeVar("T")


def find_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find the files of a folder and below it that have one of the suffixes, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def first_file(candidates: Iterable[Path]) -> Path | None:
    """Return the first path at which there is a file."""
    return next(filter(Path.is_file, candidates), None)


def map_files(read: Callable[[Path], T], paths: Sequence[Path], workers: int, desc: str) -> list[T]:
    """Call ``read`` for each path, with a progress bar.

    Args:
        read: function that can be pickled.
        paths: files, whose order the results keep.
        workers: processes; 0 reads in this one.
        desc: text before the progress bar.
    """
    if workers == 0:
        return [read(path) for path in tqdm(paths, desc=desc, unit="files")]
    return process_map(read, paths, max_workers=workers, chunksize=16, desc=desc, unit="files")
