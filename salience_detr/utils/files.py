"""Output files: writing them whole, images, unused names, and checks before the work."""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

MAX_JPEG_SIDE = 65500  # OpenCV's limit, in pixels

# What file systems answer to a name: too long, with forbidden bytes, or that of a folder.
NAME_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR}


class FileNameError(OSError):
    """Error of a file that cannot be written for its name; others in the folder can."""


@contextmanager
def written_whole(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces ``path`` if the block succeeds.

    A write that fails leaves what was there before. The temporary path lies in the same folder. Its
    name is random, and the file is new, so that nobody can prepare another one in its place.

    Args:
        path: path of the file.
        sync: whether the file also survives a power failure, for which the disk has to be waited
            for.
    """
    path = Path(path)
    temporary = temporary_path(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary

        # The content must be on the disk before the name is.
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return an unused random path beside ``path``, whose name may have the greatest length."""
    # Fifty characters are at most 200 bytes; file systems allow 255.
    return path.with_name(f"{path.name[:50]}.{secrets.token_hex(8)}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8; the file is complete or not there."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_image(
    path: Path, image: np.ndarray, *, quality: int = 95, full_color: bool = True
) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format of the path's ending, and make its folder.

    The encoder is OpenCV's, which writes PNG files ten times as fast as PIL's. The file is complete
    or not there, but the disk is not waited for: images are many, and can be drawn again.

    Args:
        path: path of the file.
        image: the pixels.
        quality: quality of a JPEG file, from 0 to 100.
        full_color: whether a JPEG file has the color of each pixel, so that thin lines stay sharp,
            or one for four pixels, as photographs have.

    Raises:
        ValueError: the image is too large for a JPEG file.
        FileNameError: the file system does not take its name.
        OSError: it cannot be written.
    """
    is_jpeg = path.suffix.lower() in {".jpg", ".jpeg"}
    if is_jpeg and max(image.shape[:2]) > MAX_JPEG_SIDE:
        raise ValueError(
            f"{path}: a side of a JPEG image has at most {MAX_JPEG_SIDE} pixels, but this image is "
            f"{image.shape[1]} x {image.shape[0]}; write a PNG file"
        )

    options = []
    if is_jpeg:
        options += [cv2.IMWRITE_JPEG_QUALITY, quality]
    if is_jpeg and full_color:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

    is_encoded, data = cv2.imencode(path.suffix, image[..., ::-1], options)
    if not is_encoded:
        raise OSError(f"cannot write the image {path}: OpenCV cannot encode it")

    # cv2.imwrite takes no name that is not UTF-8.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, sync=False) as temporary:
            temporary.write_bytes(data.data)
    except OSError as error:
        kind = FileNameError if error.errno in NAME_ERRORS else OSError
        raise kind(f"cannot write the image {path}: {error.strerror or error}") from error


def check_name(path: Path) -> None:
    """Raise FileNameError if the file system takes no file of this name, before the work."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileNameError(
            f"cannot write {path}: {error.strerror or error}; rename the input"
        ) from error

    if is_folder:
        raise FileNameError(f"cannot write {path}: it is a folder; rename it or the input")


def parse_json(text: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: it is not valid, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, is of a disk without room."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


class UsedPaths:
    """Paths that no further output may get: those of the inputs, and of the outputs before it.

    Upper and lower case are taken for the same, as some file systems do.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._keys = {self._key(path) for path in paths}
        self._next_numbers: dict[str, int] = {}

    def unused_path(self, path: Path) -> Path:
        """Return the path, or if it is in use with _2, _3, ... after its stem, and note its use."""
        stem = self.unused_stem(path.stem, lambda stem: [path.with_stem(stem)])
        return path.with_stem(stem)

    def unused_stem(self, stem: str, paths_of: Callable[[str], Sequence[Path]]) -> str:
        """Return the first of STEM, STEM_2, STEM_3, ... whose paths are not in use, and note them.

        Args:
            stem: the wanted one.
            paths_of: returns the paths of all files that a stem names.
        """
        # A thousand inputs of the same name need not each try the numbers of those before.
        wanted = self._key(paths_of(stem)[0])
        for number in itertools.count(self._next_numbers.get(wanted, 1)):
            candidate = stem if number == 1 else f"{stem}_{number}"
            keys = {self._key(path) for path in paths_of(candidate)}
            if keys.isdisjoint(self._keys):
                break

        self._keys |= keys
        self._next_numbers[wanted] = number + 1
        return candidate

    @staticmethod
    def _key(path: Path) -> str:
        return str(path.resolve()).casefold()


def check_output_dir(
    output_dir: str | Path, *, needed_bytes: int = 0, option: str = "train.output_dir"
) -> None:
    """Make an output folder, and check that it can be written to and has room.

    Args:
        output_dir: path of the folder.
        needed_bytes: size of what will be written.
        option: name of the option or config key that names the folder, for the messages.

    Raises:
        OSError: the folder cannot be made, or written to, or has too little room.
    """
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=".write_test.") as probe:
            probe.write(b"x")
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
    """Check, before the work begins, that a result can be written; None is fine.

    Args:
        path: path of the file.
        option: name of the option that names the file, for the messages.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        return

    check_output_dir(path.parent, option=option)
    if path.is_dir():
        raise OSError(f"{option} {path} is a folder; name a file")
