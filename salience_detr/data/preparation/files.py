"""Files of a data set: finding them, and reading many of them in several processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from salience_detr.data.endings import OTHER_ENDINGS, is_hidden, is_image

S = TypeVar("S")
T = TypeVar("T")


def find_files(folder: Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """Find the files of a folder and below it that have one of the suffixes, sorted.

    Without suffixes they are the images.
    """
    paths = sorted(folder.rglob("*"))
    if suffixes is None:
        return [path for path in paths if is_image(path)]
    return [path for path in paths if path.suffix.lower() in suffixes]


def find_others(folder: Path) -> list[Path]:
    """Find the files of a folder and below it that are neither images nor annotations."""
    others = []
    for path in sorted(folder.rglob("*")):
        is_candidate = path.is_file() and not is_hidden(path)
        if is_candidate and path.suffix.lower() not in OTHER_ENDINGS and not is_image(path):
            others.append(path)
    return others


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
