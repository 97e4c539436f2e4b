"""Output folder of a run: one run at a time writes to it, and it stays where it is."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm

from salience_detr.utils.files import check_output_dir

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"


@contextmanager
def locked_folder(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of an output folder inside the block.

    The lock is the kernel's, and goes with the process, however that ends. ``lockf`` is not
    inherited by data workers, which may live on for seconds after a run that was killed. Nothing
    else may open the file in this process, since closing it would give up the lock.

    Raises:
        OSError: the folder cannot be written to, or another run is writing to it.
    """
    if not comm.is_main_process():
        yield
        return

    check_output_dir(output_dir)
    path = Path(output_dir) / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        warn_of_no_lock(path, error)
        yield
        return

    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                owner = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
                raise BlockingIOError(
                    f"another run is writing to {output_dir} ({owner}); wait until it ends, or set "
                    "another train.output_dir"
                ) from error
            warn_of_no_lock(path, error)  # as on some network file systems
        else:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def warn_of_no_lock(path: Path, error: OSError) -> None:
    """Warn that other runs cannot be kept out."""
    logger.warning(
        "%s cannot be locked (%s): start no other run in this folder", path, error.strerror
    )


def is_gone(output_dir: str | Path) -> bool:
    """Return whether the folder of a run was deleted, moved, or made anew without its files."""
    folder = Path(output_dir)
    return not any((folder / name).exists() for name in (LOCK_NAME, "log.txt", "config.yaml"))
