"""Processes that measure one thing each, and measurements that Ctrl-C may end."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from salience_detr.utils.errors import one_line
from salience_detr.utils.signals import StopSignals

T = TypeVar("T")


def run_until_stopped(work: Callable[[], None]) -> bool:
    """Run a function, and return False if a signal to stop has ended it."""
    try:
        with StopSignals():
            work()
    except KeyboardInterrupt:
        return False
    return True


class Worker:
    """A fresh process, whose memory holds nothing else, and whose crash ends no other work."""

    def __enter__(self) -> Worker:
        # Ctrl-C reaches both processes; the one that waits ends this one.
        self.pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        return self

    def __exit__(self, *error: object) -> None:
        # An interrupted measurement would otherwise run to its end.
        for process in multiprocessing.active_children():
            process.kill()
        self.pool.shutdown()

    def attempt(self, function: Callable[..., T], *args: object) -> T | str:
        """Return ``function(*args)`` as computed in the process, or the reason of its failure."""
        try:
            return self.pool.submit(function, *args).result()
        except BrokenProcessPool:
            return "failed: its process was ended, as a system does where memory runs out"
        except Exception as error:  # any failure of a detector is a row of the table
            return f"failed: {type(error).__name__}: {one_line(error)}"
