"""Files of a data set: finding them, and reading many of them in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}

S = TypeVar("S")
T = TypeVar("T")


def find_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find the files of a folder and below it that have one of the suffixes, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def first_file(candidates: Iterable[Path]) -> Path | None:
    """Return the first path at which there is a file."""
    return next(filter(Path.is_file, candidates), None)


def map_files(
    process: Callable[[S], T], files: Sequence[S], workers: int, desc: str, *, progress: bool = True
) -> list[T]:
    """Call ``process`` for each file.

    Args:
        process: function that can be pickled.
        files: paths or numbers, whose order the results keep.
        workers: processes; 0 calls it in this one.
        desc: text before the progress bar.
        progress: show a progress bar.
    """
    bar = {"desc": desc, "unit": "files", "disable": not progress}
    if workers == 0:
        return [process(file) for file in tqdm(files, **bar)]
    return process_map(process, files, max_workers=workers, chunksize=8, **bar)
