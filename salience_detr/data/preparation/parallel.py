"""Reading of many files in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

T = TypeVar("T")


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
