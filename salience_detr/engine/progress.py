"""Progress of a run on the console: by steps, and by time where steps are slow."""

from __future__ import annotations

import logging
import threading
import time

from detectron2.engine import HookBase

from salience_detr.engine.duration import RunClock
from salience_detr.engine.writers import ConsoleWriter

logger = logging.getLogger(__name__)

# Seconds after which there is a line, however few steps are finished.
LONGEST_SILENCE = 30.0
# Steps after which the duration of the run is told.
FIRST_STEPS = 10


class ProgressHook(HookBase):
    """Lines of progress, every ``period`` steps and at least every 30 s, in process 0.

    It acts before the evaluation of the same step, and is told apart from it by the clock.

    Args:
        clock: measures the steps.
        period: steps between lines.
    """

    def __init__(self, clock: RunClock, period: int) -> None:
        self.clock = clock
        self.period = period
        self.writer = ConsoleWriter(clock)
        self.last_line = 0.0
        self.is_expected_told = False
        self.timer = threading.Timer(LONGEST_SILENCE, self.tell_of_first_step)

    def before_train(self) -> None:
        self.last_line = time.monotonic()
        self.timer.daemon = True
        self.timer.start()

    def before_step(self) -> None:
        self.clock.start_step()

    def after_step(self) -> None:
        self.timer.cancel()
        self.clock.end_step()

        finished = self.trainer.iter + 1
        is_last = finished == self.trainer.max_iter
        last_line = max(self.last_line, self.clock.evaluation_end)
        is_silent = time.monotonic() - last_line >= LONGEST_SILENCE
        if is_last or is_silent or finished % self.period == 0:
            self.writer.write()
            self.last_line = time.monotonic()

        is_measured = len(self.clock.step_seconds) == FIRST_STEPS or is_silent
        if is_measured and not is_last and not self.is_expected_told:
            logger.info(self.clock.describe_expected(finished))
            self.is_expected_told = True

    def after_train(self) -> None:
        self.timer.cancel()

    def tell_of_first_step(self) -> None:
        """Say that the first step is not finished yet."""
        logger.info(
            "the first step is not finished after %.0f s; smaller batches or images are faster",
            LONGEST_SILENCE,
        )
