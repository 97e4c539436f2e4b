"""End of a run whose evaluations do not get better any more."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from salience_detr.engine.checkpointing import TrainingCheckpointer
from salience_detr.engine.launch import any_process

logger = logging.getLogger(__name__)


class EarlyStop(Exception):
    """End of the training before its last iteration, with a final checkpoint."""


class EarlyStoppingHook(HookBase):
    """End of the run after ``patience`` evaluations without a better value of a metric.

    It acts after the evaluation of the same step. The evaluations are those in metrics.json, which
    a resumed run continues, so that it ends where an uninterrupted one does.

    Args:
        patience: evaluations; 1 ends at the first one that is no better than an earlier one.
        metric: the one that model_best goes by; higher is better.
        checkpointer: writes model_final, in the folder of metrics.json.
        schedule: factor of the learning rate at a part of the run, in [0, 1].
    """

    def __init__(
        self,
        patience: int,
        metric: str,
        *,
        checkpointer: TrainingCheckpointer,
        schedule: Callable[[float], float],
    ) -> None:
        self.patience = patience
        self.metric = metric
        self.checkpointer = checkpointer
        self.schedule = schedule
        self.metrics_file = checkpointer.output_dir / "metrics.json"

    def before_train(self) -> None:
        logger.info(
            "the run ends early after %d evaluations without a better %s",
            self.patience,
            self.metric,
        )
        # The run may have ended between an evaluation and what follows from it.
        if 0 < self.trainer.start_iter < self.trainer.max_iter:
            self.check(self.trainer.start_iter)

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if finished < self.trainer.max_iter:
            self.check(finished)

    def check(self, finished: int) -> None:
        """End the run if the evaluation after so many steps was the last one of the patience.

        Raises:
            EarlyStop: in all processes, after the final checkpoint.
        """
        # The metric is written on process 0 alone, and is new at an evaluation only.
        reason = ""
        if comm.is_main_process() and self.is_new(finished):
            reason = self.reason(finished)
        if not any_process(bool(reason)):
            return

        self.checkpointer.save("model_final", iteration=finished)
        comm.synchronize()
        if reason:
            logger.info("stopped early after %d iterations: %s", finished, reason)
        raise EarlyStop(reason)

    def is_new(self, finished: int) -> bool:
        """Return whether the metric may be of these steps, so that the file need not be read."""
        resumed = finished == self.trainer.start_iter
        _, iteration = self.trainer.storage.latest().get(self.metric, (0.0, -1))
        return resumed or iteration == finished - 1

    def reason(self, finished: int) -> str:
        """Return why the run ends after so many steps; "" if it goes on."""
        values = read_values(self.metrics_file, self.metric)
        values = {iteration: x for iteration, x in values.items() if iteration <= finished}
        if finished not in values:
            return ""

        # Of equal values the first one is the best. Without a number there is nothing to compare.
        best = max(values, key=lambda iteration: (values[iteration], -iteration))
        waited = sum(iteration > best for iteration in values)
        if waited < self.patience:
            return ""

        reason = (
            f"{self.metric} was best after {best} iterations ({values[best]:.3f}), and no better "
            f"in the {waited} evaluations since then"
        )
        factor = self.schedule(finished / self.trainer.max_iter)
        last_factor = self.schedule((self.trainer.max_iter - 1) / self.trainer.max_iter)
        if last_factor < factor:
            reason += (
                f"; the learning rate was still at {factor:.0%} of its peak and not at the "
                f"{last_factor:.0%} of the end of the schedule: a larger --patience reaches them"
            )
        return reason


def read_values(path: Path, metric: str) -> dict[int, float]:
    """Return the values of a metric that are numbers, by the number of finished steps.

    Args:
        path: of metrics.json.
        metric: name of the metric.
    """
    values = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        value = record.get(metric)

        # Evaluations with --eval-only are marked; without boxes there is no number.
        if value is None or "eval_only" in record or not math.isfinite(value):
            continue
        values[record["iteration"] + 1] = value
    return values
