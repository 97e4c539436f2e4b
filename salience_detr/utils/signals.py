"""Signals that ask a process to stop.

They are SIGINT (Ctrl-C), SIGTERM (of schedulers) and SIGHUP (of a terminal that is closed).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

logger = logging.getLogger(__name__)


class StopSignals:
    """Stop signals turned into KeyboardInterrupt inside a ``with`` block of the main thread.

    The exception comes at once, or at the end of a :meth:`deferred` block. A long loop may defer
    the signals altogether and look at ``received`` wherever it can stop.

    Args:
        defer: only note the first signal in ``received``.
        announcement: warning to log when a deferred signal comes.
        patience: seconds after the first signal in which more of them do nothing, because a
            launcher passes on what the terminal has sent to all its processes already. Later ones
            raise KeyboardInterrupt, so that a second Ctrl-C ends even a write that hangs.
    """

    def __init__(
        self, *, defer: bool = False, patience: float = 0.0, announcement: str = ""
    ) -> None:
        self.defer = defer
        self.announcement = announcement
        self.patience = patience
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            # nohup has SIGHUP ignored, and that stays. A shell likewise has SIGINT ignored by what
            # it starts in the background, but whoever sends SIGINT there wants to stop it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or raise KeyboardInterrupt."""
        if not self.defer:
            raise KeyboardInterrupt

        if self.received is None:
            self.received = signal.Signals(number)
            self._received_at = time.monotonic()
            if self.announcement:
                logger.warning("%s: %s", self.received.name, self.announcement)
        elif time.monotonic() - self._received_at >= self.patience:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold a signal back until the end of the block, so that its writes are complete."""
        self.defer = True
        try:
            yield
        finally:
            self.defer = False

        if self.received:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Ignore signals from now on: little is left to do, and torchrun repeats its signals."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)


class ForwardedSignals(StopSignals):
    """Stop signals passed on to the child processes, which this process waits for."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Send the signal to all children."""
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)


def stop_with_parent(worker: int) -> None:
    """Let only the parent process stop a worker, as launchers and terminals signal all processes.

    This is a ``worker_init_fn`` of PyTorch's DataLoader.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    # SIGTERM is blocked, and a thread sees who has sent it; this needs Linux.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()


def _exit_on_parents_sigterm() -> None:
    """Wait for a SIGTERM of the parent process, and end this one without any cleaning up."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
