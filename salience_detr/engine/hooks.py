"""Hooks and writers that detectron2 lacks."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from PIL import Image
from timm.utils import ModelEmaV3
from torch import nn

from salience_detr.config import ConfigError
from salience_detr.engine.checkpointing import TrainingCheckpointer
from salience_detr.engine.launch import any_process
from salience_detr.utils.files import written_whole
from salience_detr.utils.signals import StopSignals

logger = logging.getLogger(__name__)


class EMAHook(HookBase):
    """Takes the weights of every step into their moving average."""

    def __init__(self, average: ModelEmaV3, model: nn.Module) -> None:
        self.average = average
        self.model = model

    def after_step(self) -> None:
        self.average.update(self.model, step=self.trainer.iter)


class CheckpointHook(HookBase):
    """Saves every ``period`` iterations, and a ``model_final`` at the end."""

    def __init__(self, checkpointer: TrainingCheckpointer, period: int) -> None:
        self.checkpointer = checkpointer
        self.period = period

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if finished == self.trainer.max_iter:
            self.checkpointer.save("model_final", iteration=finished)
        elif self.period > 0 and finished % self.period == 0:
            self.checkpointer.save_periodic(finished)


class BestCheckpointHook(HookBase):
    """Keeps the checkpoint with the highest value of a metric as ``model_best``.

    ``model_best.json`` holds the value, so that a resumed run knows it.
    """

    def __init__(self, checkpointer: TrainingCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.record = Path(checkpointer.output_dir) / "model_best.json"

    def update(self, iteration: int, results: dict[str, float]) -> None:
        """Compare the results of an evaluation after ``iteration`` steps."""
        value = results.get(self.metric)
        if value is None and results:
            logger.warning(
                "train.best_metric: there is no %s; there are %s", self.metric, ", ".join(results)
            )
        if value is None or not comm.is_main_process() or not value > self.best():
            return
        self.checkpointer.save("model_best", iteration=iteration, resumable=False)
        with written_whole(self.record) as temporary:
            temporary.write_text(
                json.dumps({"metric": self.metric, "value": value, "iteration": iteration})
            )
        logger.info("best %s so far: %.3f after %d iterations", self.metric, value, iteration)

    def best(self) -> float:
        """The best value so far; -inf if there is none."""
        if not self.record.is_file():
            return float("-inf")
        try:
            return float(json.loads(self.record.read_text())["value"])
        except (ValueError, KeyError, TypeError):
            logger.warning(
                "%s cannot be read: the next evaluation counts as the best so far", self.record
            )
            return float("-inf")


class EvaluationHook(HookBase):
    """Evaluates every ``period`` iterations and after the last one, and tells the storage and the best-keeper.

    It acts after the checkpoint of the same step, so that an evaluation that fails or is killed costs no training; a
    resumed run makes up for it.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict[str, float]],
        best: BestCheckpointHook,
        metrics_file: Path,
        writers: Sequence[EventWriter] = (),
    ) -> None:
        self.period = period
        self.evaluate = evaluate
        self.best = best
        self.metrics_file = metrics_file
        self.writers = writers

    def before_train(self) -> None:
        start = self.trainer.start_iter
        # Process 0 alone reads, and tells the others.
        if (
            start
            and self.is_due(start)
            and any(comm.all_gather(comm.is_main_process() and not self.is_recorded(start)))
        ):
            self.run(start)

    def after_step(self) -> None:
        if self.is_due(self.trainer.iter + 1):
            self.run(self.trainer.iter + 1)

    def is_due(self, finished: int) -> bool:
        """Whether the state after so many steps is evaluated."""
        return finished == self.trainer.max_iter or (
            self.period > 0 and finished % self.period == 0
        )

    def is_recorded(self, finished: int) -> bool:
        """Whether metrics.json has the result of the evaluation after so many steps."""
        if not self.metrics_file.is_file():
            return False
        lines = [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
        return any(
            line["iteration"] >= finished - 1 and any("/AP" in name for name in line)
            for line in lines
        )

    def run(self, finished: int) -> None:
        """Evaluate the state after so many steps."""
        results = self.evaluate()
        if results and comm.is_main_process():
            storage = self.trainer.storage
            before, storage.iter = (
                storage.iter,
                finished - 1,
            )  # one that is made up for belongs to the step before
            storage.put_scalars(**results, smoothing_hint=False)
            for writer in (
                self.writers
            ):  # at once: the next one may come before the next period of the writers
                writer.write()
            storage.iter = before
            self.best.update(finished, results)
        comm.synchronize()


class PreviewHook(HookBase):
    """Draws what the model finds on a few images at each evaluation: into ``previews`` and the event storage.

    Args:
        draw: gives (H, W, 3) uint8 RGB images by name.
        period: of the evaluations.
        output_dir: of the run; the images are ``previews/NAME_ITERATION.jpg``.
    """

    def __init__(
        self, draw: Callable[[], dict[str, np.ndarray]], period: int, output_dir: str | Path
    ) -> None:
        self.draw = draw
        self.period = period
        self.folder = Path(output_dir) / "previews"

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if finished != self.trainer.max_iter and not (
            self.period > 0 and finished % self.period == 0
        ):
            return
        self.folder.mkdir(exist_ok=True)
        for name, image in self.draw().items():
            Image.fromarray(image).save(self.folder / f"{name}_{finished:07d}.jpg", quality=90)
            self.trainer.storage.put_image(f"previews/{name}", image.transpose(2, 0, 1))


class Interrupted(SystemExit):
    """Training was stopped by a signal, after its state was saved; the exit code is 0: nothing went wrong."""

    def __init__(self) -> None:
        super().__init__(0)


class InterruptHook(HookBase):
    """After a signal saves a checkpoint and ends the run so that --resume continues it; the last of the hooks."""

    def __init__(self, stops: StopSignals, checkpointer: TrainingCheckpointer) -> None:
        self.stops = stops
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        if not any_process(self.stops.received is not None):  # all have to stop after the same step
            return
        finished = self.trainer.iter + 1
        self.checkpointer.save_periodic(finished)
        comm.synchronize()
        logger.warning("stopped after %d iterations; go on with --resume", finished)
        raise Interrupted


class ConsoleWriter(EventWriter):
    """One line per period: progress, ETA, losses in groups, rate, speed, memory."""

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter
        self.written = -1

    def write(self) -> None:
        storage = get_event_storage()
        latest = {name: value for name, (value, _) in storage.latest().items()}
        iteration = storage.latest().get("total_loss", (0.0, -1))[1]
        if iteration <= self.written:
            return  # the end of training asks once more
        self.written = iteration
        # With few iterations on record the window is what there is.
        smooth = {name: storage.history(name).median(20) for name in latest}
        finished = iteration + 1
        seconds = storage.history("time").global_avg() if "time" in latest else 0.0
        eta = datetime.timedelta(seconds=int(seconds * (self.max_iter - finished)))
        groups = {
            k.removeprefix("loss_groups/"): v
            for k, v in smooth.items()
            if k.startswith("loss_groups/")
        }
        memory = (
            f"  {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
            if torch.cuda.is_available()
            else ""
        )
        logger.info(
            "%d/%d  eta %s  loss %.3f (%s)  grad %.2f  lr %.2e  %.2f images/s  data %.3f s%s",
            finished,
            self.max_iter,
            eta,
            smooth["total_loss"],
            "  ".join(f"{name} {value:.3f}" for name, value in groups.items()),
            smooth.get("grad_norm", 0.0),
            latest.get("lr", 0.0),
            smooth.get("samples_per_second", 0.0),
            smooth.get("data_time", 0.0),
            memory,
        )


class WandbWriter(EventWriter):
    """Sends the scalars to Weights & Biases; a resumed run goes on with the same record there.

    Args:
        output_dir: of the run; ``wandb_id`` in it holds the name of the record.
        settings: ``project``, ``name`` and whatever else ``wandb.init`` takes.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, output_dir: str | Path, **settings: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "train.wandb.enabled needs the package wandb: pip install wandb, or set it to False"
            ) from error
        record = Path(output_dir) / "wandb_id"
        known = record.read_text() if record.is_file() else None
        self.run = wandb.init(dir=str(output_dir), id=known, resume="allow", **settings)
        record.write_text(self.run.id)
        self.written = -1

    def write(self) -> None:
        latest = get_event_storage().latest()
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in latest.items():
            if iteration > self.written:
                by_iteration.setdefault(iteration, {})[name] = value
        for iteration, values in sorted(by_iteration.items()):
            self.run.log(values, step=iteration)
            self.written = iteration

    def close(self) -> None:
        self.run.finish()
