"""Files that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which is flushed to disk and takes its place if the block succeeds.

    A write that fails leaves what was there before.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output_dir(
    output_dir: str | Path, *, needed_bytes: int = 0, option: str = "train.output_dir"
) -> None:
    """Make the folder, which ``option`` named, and make sure that it can be written to and has room.

    Raises:
        OSError: saying what is wrong with the folder.
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
            f"the output folder {path} has {free / 2**20:.0f} MiB free, but the checkpoints need about "
            f"{needed_bytes / 2**20:.0f} MiB; make room or set {option}"
        )


def check_result_path(path: Path | None, option: str) -> None:
    """Find out before the work whether the file that an option names, if it names one, can be written.

    Raises:
        OSError: it cannot.
    """
    if path is None:
        return
    check_output_dir(path.parent, option=option)
    if path.is_dir():
        raise OSError(f"{option} {path} is a folder; name a file")
