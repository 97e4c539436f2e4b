"""What of a run's log is shown on the console; log.txt has all of it."""

from __future__ import annotations

import logging
import sys
import time

# Seconds without a line after which detectron2's progress of an evaluation is shown.
LONGEST_SILENCE = 60.0
PROGRESS = "Inference done"


class ConsoleFilter(logging.Filter):
    """Filter that shows this package's messages, and warnings of others.

    detectron2 says much that only its developers need. Its progress in an evaluation is let through
    where nothing else was shown for a while.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_time = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        is_silent = now - self.last_time > LONGEST_SILENCE
        is_progress = str(record.msg).startswith(PROGRESS)
        is_own = record.name.startswith("salience_detr") and record.levelno >= logging.INFO

        is_shown = is_own or record.levelno >= logging.WARNING or (is_progress and is_silent)
        if is_shown:
            self.last_time = now
        return is_shown


# The loggers share one console, and so one filter.
CONSOLE_FILTER = ConsoleFilter()


def quiet_console(logger: logging.Logger) -> None:
    """Add the filter to the handlers of a logger that write to the console."""
    for handler in logger.handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(CONSOLE_FILTER)
