"""Output files: complete or not there, images, names that are not taken, checks before the work."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces ``path`` if the block succeeds.

    A write that fails leaves what was there before.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary

        # The content must be on the disk before the name is.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_image(path: Path, image: np.ndarray, **options: int) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format of the path's ending, and make its folder.

    Args:
        path: of the file, which is complete or not there.
        image: the pixels.
        options: of PIL's encoder, such as ``quality``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file_format = Image.registered_extensions()[path.suffix.lower()]
    with written_whole(path) as temporary:
        Image.fromarray(image).save(temporary, format=file_format, **options)


def unused_stem(stem: str, taken: set[str], paths_of: Callable[[str], Iterable[Path]]) -> str:
    """Return the first of ``stem``, ``stem_2``, ``stem_3``, ... whose paths are not taken.

    Args:
        stem: the wanted one.
        taken: keys of the paths in use, see :func:`path_key`; those of the result are added.
        paths_of: gives the paths of the files that a stem names.
    """
    for number in itertools.count(1):
        candidate = stem if number == 1 else f"{stem}_{number}"
        keys = {path_key(path) for path in paths_of(candidate)}
        if keys.isdisjoint(taken):
            taken |= keys
            return candidate
    raise AssertionError("the count has no end")


def unused_path(path: Path, taken: set[str]) -> Path:
    """Return a path, or with _2, _3, ... after its stem if it is taken; see :func:`unused_stem`."""
    stem = unused_stem(path.stem, taken, lambda stem: [path.with_stem(stem)])
    return path.with_stem(stem)


def path_key(path: Path) -> str:
    """Return what is equal for equal paths; upper and lower case are one on some file systems."""
    return str(path.resolve()).casefold()


def check_output_dir(
    output_dir: str | Path, *, needed_bytes: int = 0, option: str = "train.output_dir"
) -> None:
    """Make the folder that ``option`` named, and make sure that it can be written to and has room.

    Raises:
        OSError: the folder cannot be made, or written to, or has too little room.
    """
    path = Path(output_dir)
    probe = path / f".write_test.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"the output folder {path} cannot be written to ({error.strerror}); set {option}"
        ) from error

    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise OSError(
            f"the output folder {path} has {free / 2**20:.0f} MiB free, but the checkpoints need "
            f"about {needed_bytes / 2**20:.0f} MiB; make room or set {option}"
        )


def check_result_path(path: Path | None, option: str) -> None:
    """Check before the work that the file that an option names, if it names one, can be written.

    Raises:
        OSError: it cannot.
    """
    if path is None:
        return
    check_output_dir(path.parent, option=option)
    if path.is_dir():
        raise OSError(f"{option} {path} is a folder; name a file")
