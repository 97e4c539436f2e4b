"""Hooks of a training run, where detectron2's do not do what a resumed run needs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from timm.utils import ModelEmaV3
from torch import nn

from salience_detr.engine.checkpointing import EVALUATION, TrainingCheckpointer
from salience_detr.engine.duration import RunClock
from salience_detr.engine.launch import any_process
from salience_detr.engine.run_folder import is_gone
from salience_detr.engine.trainer import StopError
from salience_detr.utils.files import write_image, write_text
from salience_detr.utils.signals import StopSignals

logger = logging.getLogger(__name__)

PATIENCE = 3  # seconds after a signal, from which on a second one ends the run at once


class EMAHook(HookBase):
    """Update of the exponential moving average (EMA) of the weights after every step."""

    def __init__(self, ema: ModelEmaV3, model: nn.Module) -> None:
        self.ema = ema
        self.model = model

    def after_step(self) -> None:
        self.ema.update(self.model, step=self.trainer.iter)


class PeriodicCheckpointHook(hooks.PeriodicCheckpointer):
    """Checkpoint every ``period`` iterations (0: never), and a ``model_final`` at the end.

    detectron2's counts from 0 in the names of files, cannot have the period 0, and forgets what an
    interrupted run has saved; here :class:`TrainingCheckpointer` deletes the old ones.
    """

    def step(self, iteration: int) -> None:
        finished = iteration + 1
        if finished == self.max_iter:
            self.checkpointer.save("model_final", iteration=finished)
        elif self.period > 0 and finished % self.period == 0:
            self.checkpointer.save_periodic(finished)


class BestCheckpoint:
    """Keeper of the checkpoint with the highest value of a metric, as ``model_best``.

    ``model_best.json`` holds the value. Where the metric is never a number, as without boxes to
    evaluate on, the last checkpoint counts as the best one.

    It is not detectron2's BestCheckpointer, which forgets the value when a run is resumed, and
    makes the best checkpoint the one to resume from.
    """

    def __init__(self, checkpointer: TrainingCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.path = Path(checkpointer.output_dir) / "model_best.json"

    def update(self, iteration: int, results: dict[str, float]) -> None:
        """Save the model if the results after ``iteration`` steps are the best so far."""
        value = results.get(self.metric)
        if value is None:
            logger.warning(
                "train.best_metric: there is no %s; there are %s", self.metric, ", ".join(results)
            )
            return
        # NaN is no better than any number.
        is_number = not math.isnan(value)
        if is_number and not value > self.best_value():
            return
        if not is_number and self.best_value() > float("-inf"):
            return

        # The weights come first: a value without them would keep others from being saved.
        self.checkpointer.save("model_best", iteration=iteration, resumable=False)
        recorded = value if is_number else None
        record = {"metric": self.metric, "value": recorded, "iteration": iteration}
        write_text(self.path, json.dumps(record))

        if is_number:
            logger.info("best %s so far: %.3f after %d iterations", self.metric, value, iteration)
        else:
            logger.warning(
                "%s cannot be computed, as the validation data have no such boxes: model_best is "
                "the last one, after %d iterations",
                self.metric,
                iteration,
            )

    def read(self) -> dict[str, Any] | None:
        """Return the record of the best evaluation of the metric; None if there is none."""
        if not self.path.is_file():
            return None

        try:
            record = json.loads(self.path.read_text())
            is_own = record["metric"] == self.metric
            has_value = record["value"] is None or math.isfinite(float(record["value"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return record if is_own and has_value and "iteration" in record else None

    def best_value(self) -> float:
        """Return the best value so far; -inf if there is none."""
        if not self.path.is_file():
            return float("-inf")

        try:
            record = json.loads(self.path.read_text())
            metric = record["metric"]
            value = record["value"]
            value = float("-inf") if value is None else float(value)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            value, metric = float("nan"), self.metric

        # NaN would keep every later checkpoint from being the best.
        if math.isnan(value):
            logger.warning("%s cannot be read: the next evaluation is the best so far", self.path)
            return float("-inf")
        if metric != self.metric:
            logger.warning(
                "%s is of %s, not of %s: the next evaluation is the best so far",
                self.path, metric, self.metric,
            )  # fmt: skip
            return float("-inf")
        return value


class EvaluationHook(hooks.EvalHook):
    """Evaluation every ``period`` iterations and after the last one.

    It acts after the checkpoint of the same step, so that an evaluation that fails or is killed
    costs no training. detectron2's evaluates for the last time in ``after_train``, which a resumed
    run would reach without training, and so twice. Here metrics.json shows whether an evaluation
    was made, and a resumed run makes up for a missing one.

    Args:
        period: iterations between evaluations; 0 evaluates at the end only.
        evaluate: of the number of finished steps; returns metrics by name on process 0, nothing
            elsewhere. All processes call it.
        best: keeps the best checkpoint, in the folder that holds metrics.json, too.
        writers: write the results at once, because the next ones may come before their next period.
        clock: measures the evaluations.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[int], dict[str, float]],
        *,
        best: BestCheckpoint,
        writers: Sequence[EventWriter] = (),
        clock: RunClock | None = None,
    ) -> None:
        super().__init__(period, evaluate)
        self.clock = clock or RunClock(0, period)
        self.best = best
        self.metrics_file = best.path.with_name("metrics.json")
        self.writers = writers

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start == 0 or not is_due(start, self._period, self.trainer.max_iter):
            return

        # Process 0 alone reads the file; the others follow it.
        is_missing = comm.is_main_process() and not self.is_recorded(start)
        if any_process(is_missing):
            self.run(start)

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if is_due(finished, self._period, self.trainer.max_iter):
            self.run(finished)

    def after_train(self) -> None:
        """Do nothing: the last evaluation was one of :meth:`after_step`."""

    def is_recorded(self, finished: int) -> bool:
        """Return whether metrics.json has the results after so many steps."""
        if not self.metrics_file.is_file():
            return False

        # Iterations are counted from 0: the last of the finished ones is finished - 1.
        for line in self.metrics_file.read_text().splitlines():
            record = json.loads(line)
            if EVALUATION in record:
                continue  # of --eval-only
            if record["iteration"] >= finished - 1 and any("/AP" in name for name in record):
                return True
        return False

    def run(self, finished: int) -> None:
        """Evaluate the state after so many steps."""
        with self.clock.evaluation(finished):
            results = self._func(finished)
        if results:
            # An evaluation that is made up for belongs to the step before.
            storage = self.trainer.storage
            current_iter = storage.iter
            storage.iter = finished - 1
            storage.put_scalars(**results, smoothing_hint=False)
            for writer in self.writers:
                writer.write()

            storage.iter = current_iter
            self.best.update(finished, results)
        elif comm.is_main_process():
            # Data without annotations have no metrics, as those without boxes have none.
            self.best.update(finished, {self.best.metric: math.nan})
        comm.synchronize()


class PreviewHook(HookBase):
    """Drawings of what the model detects on a few images, made at each evaluation.

    They are written to the folder ``previews`` as NAME_ITERATION.jpg, and to the event storage.

    Args:
        draw: of the number of finished steps; returns (H, W, 3) uint8 RGB images by name.
        period: iterations between evaluations.
        output_dir: folder of the run.
    """

    def __init__(
        self, draw: Callable[[int], dict[str, np.ndarray]], period: int, output_dir: str | Path
    ) -> None:
        self.draw = draw
        self.period = period
        self.folder = Path(output_dir) / "previews"

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if not is_due(finished, self.period, self.trainer.max_iter):
            return

        # TensorBoard takes (C, H, W).
        for name, image in self.draw(finished).items():
            write_image(self.folder / f"{name}_{finished:07d}.jpg", image, quality=90)
            self.trainer.storage.put_image(f"previews/{name}", image.transpose(2, 0, 1))


def is_due(finished: int, period: int, max_iter: int) -> bool:
    """Return whether the model is evaluated after so many finished steps."""
    return finished == max_iter or (period > 0 and finished % period == 0)


class InterruptHook(HookBase):
    """Checkpoint and end of the run after a signal, or without its folder; the last of the hooks.

    Attributes:
        stops: notes the signals; the run is inside its ``with`` block.
    """

    def __init__(self, checkpointer: TrainingCheckpointer) -> None:
        self.checkpointer = checkpointer
        announcement = f"finishing this step and saving; again after {PATIENCE} s ends at once"
        self.stops = StopSignals(defer=True, patience=PATIENCE, announcement=announcement)

    def after_step(self) -> None:
        # Log and metrics are open files, which nobody finds again once the folder is gone.
        output_dir = self.checkpointer.output_dir
        folder_gone = comm.is_main_process() and is_gone(output_dir)

        # All processes have to stop after the same step.
        if not any_process(self.stops.received is not None or folder_gone):
            return

        # No process ends before the state is on disk: launchers stop the others then.
        finished = self.trainer.iter + 1
        self.checkpointer.save_periodic(finished)
        comm.synchronize()
        if any_process(folder_gone):
            raise StopError(folder_error(output_dir, finished) if folder_gone else None)

        logger.warning("stopped after %d iterations; go on with --resume", finished)
        raise SystemExit(0)  # nothing went wrong


def folder_error(output_dir: Path, finished: int) -> OSError:
    """Return the error of a run whose folder is gone."""
    return FileNotFoundError(
        f"the output folder {output_dir} was deleted or moved during the run; the state after "
        f"{finished} iterations is saved there: move the other files back if they are needed, and "
        "go on with --resume"
    )
