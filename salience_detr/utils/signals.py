"""Signals that end a run, at moments that leave its outputs whole."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class StopSignals:
    """In its ``with`` block SIGINT, SIGTERM and SIGHUP become KeyboardInterrupt: at once, or after what must be whole.

    It is entered in the main thread.
    """

    def __init__(self) -> None:
        self.is_held_back = self.came = self.is_finishing = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A shell makes what it starts in the background deaf to SIGINT; nohup means what it does.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self.previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: Any) -> None:
        if self.is_finishing:
            return
        if not self.is_held_back or self.came:  # a second one ends even a write that hangs
            raise KeyboardInterrupt
        self.came = True

    @contextlib.contextmanager
    def after_this(self) -> Iterator[None]:
        """Hold a signal back until the body is done."""
        self.is_held_back = True
        try:
            yield
        finally:
            self.is_held_back = False
        if self.came:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """From now on signals do nothing: what is left takes little time, and torchrun repeats its signals."""
        self.is_finishing = True
