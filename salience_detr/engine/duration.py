"""How long a run takes: of its steps and of its evaluations."""

from __future__ import annotations

import copy
import datetime
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from salience_detr.data.datasets import as_list
from salience_detr.data.images import ImageReadError
from salience_detr.data.loader import seeded

logger = logging.getLogger(__name__)

# The first steps are slower than others.
WARMUP_STEPS = 3
# A training step takes about as long as three inferences of each of its images.
STEP_PER_INFERENCE = 3
# Parameters; the models for CPUs have fewer.
LARGE_MODEL = 15_000_000


class RunClock:
    """Stop-watch of a run, which tells the steps from the evaluations.

    Attributes:
        max_iter: iteration at which the run ends.
        eval_period: iterations between evaluations.
        estimate: seconds of an evaluation, before the first one is measured; 0 if unknown.
    """

    def __init__(self, max_iter: int, eval_period: int, estimate: float = 0.0) -> None:
        self.max_iter = max_iter
        self.eval_period = eval_period
        self.estimate = estimate
        self.start = time.monotonic()
        self.step_seconds: list[float] = []
        self.evaluation_seconds: list[float] = []
        self.last_evaluated = -1
        self.evaluation_end = 0.0
        self.step_start = self.start

    def start_step(self) -> None:
        """Note that a step begins."""
        self.step_start = time.monotonic()

    def end_step(self) -> None:
        """Note that the step has ended."""
        self.step_seconds.append(time.monotonic() - self.step_start)

    @contextmanager
    def evaluation(self, finished: int) -> Iterator[None]:
        """Measure the evaluation inside the block, after so many finished steps."""
        start = time.monotonic()
        yield
        self.evaluation_seconds.append(time.monotonic() - start)
        self.last_evaluated = finished
        self.evaluation_end = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since the clock was made."""
        return time.monotonic() - self.start

    @property
    def seconds_per_step(self) -> float:
        """Return the mean, without the first steps where there are others; 0 before any."""
        seconds = self.step_seconds[WARMUP_STEPS:] or self.step_seconds[-1:]
        if not seconds:
            return 0.0
        return sum(seconds) / len(seconds)

    @property
    def seconds_per_evaluation(self) -> float:
        """Return the mean of those that were made, else the estimate."""
        if not self.evaluation_seconds:
            return self.estimate
        return sum(self.evaluation_seconds) / len(self.evaluation_seconds)

    def remaining_evaluations(self, finished: int) -> int:
        """Return the number of evaluations to come, that of this very step included."""
        # Progress is written before an evaluation of the same step.
        before = finished
        if self.last_evaluated != finished:
            before = finished - 1
        if self.eval_period <= 0:
            return int(before < self.max_iter)

        count = self.max_iter // self.eval_period - before // self.eval_period
        is_extra = self.max_iter % self.eval_period > 0 and before < self.max_iter
        return count + int(is_extra)

    def remaining_seconds(self, finished: int) -> float:
        """Return the expected seconds after so many finished steps, evaluations included."""
        steps = self.seconds_per_step * (self.max_iter - finished)
        return steps + self.seconds_per_evaluation * self.remaining_evaluations(finished)

    def describe_expected(self, finished: int) -> str:
        """Describe the expected duration of the rest of the run and of its evaluations."""
        remaining = self.remaining_seconds(finished)
        end = datetime.datetime.now() + datetime.timedelta(seconds=remaining)
        num_evaluations = self.remaining_evaluations(finished)
        evaluations = self.seconds_per_evaluation * num_evaluations
        return (
            f"expected duration {duration_text(remaining)}, of it {duration_text(evaluations)} "
            f"for {num_evaluations} evaluations ({self.seconds_per_step:.2f} s a step); ends about "
            f"{end:%a %H:%M}"
        )


def duration_text(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))


def time_inference(config: DictConfig, model: nn.Module) -> tuple[float, int]:
    """Measure the inference of an image of the (first) test set; the run is not changed by it.

    Returns:
        Seconds of an image, and the number of batches of all test sets in this process; 0 seconds
        where an image cannot be read, which the evaluation reports.
    """
    settings = copy.deepcopy(config.dataloader)
    names = as_list(settings.test.dataset.names)
    settings.test.dataset.names = names[0]
    if "num_workers" in settings.test:
        settings.test.num_workers = 0
    loader = instantiate(settings.test)
    num_batches = len(loader) * len(names)

    # The first inference is slower than others.
    seconds = 0.0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), seeded(0):
            iterator = iter(loader)
            for _ in range(min(2, len(loader))):
                start = time.monotonic()
                model(next(iterator))
                seconds = time.monotonic() - start
    except ImageReadError:
        seconds = 0.0
    finally:
        model.train(was_training)
    return seconds, num_batches


def warn_of_slow_device(
    config: DictConfig, model: nn.Module, seconds_per_image: float, num_steps: int
) -> None:
    """Warn before a large model is trained for hours on a CPU, naming smaller recipes.

    Args:
        config: of the run.
        model: to train.
        seconds_per_image: of inference.
        num_steps: number of steps to come.
    """
    parameters = list(model.parameters())
    is_large = sum(parameter.numel() for parameter in parameters) > LARGE_MODEL
    batch_size = config.dataloader.train.total_batch_size / comm.get_world_size()
    seconds_per_step = STEP_PER_INFERENCE * seconds_per_image * batch_size
    hours = num_steps * seconds_per_step / 3600

    if is_large and parameters[0].device.type == "cpu" and hours >= 1:
        logger.warning(
            "on this CPU the run would take about %s hours (%.0f s a step, estimated): take a GPU, "
            "or a recipe for CPUs: configs/finetune_small.py, configs/surface_defects_tiny.py",
            f"{hours:,.0f}",
            seconds_per_step,
        )


def start_clock(config: DictConfig, model: nn.Module, num_steps: int) -> RunClock:
    """Start the clock of a run, with an estimate of how long its evaluations take.

    Args:
        config: of the run.
        model: to train.
        num_steps: number of steps to come.
    """
    settings = config.train
    clock = RunClock(settings.max_iter, settings.eval_period)
    if num_steps > 0 and comm.is_main_process():
        seconds, num_batches = time_inference(config, model)
        clock.estimate = seconds * num_batches
        if config.train.ema.enabled and config.train.ema.get("evaluate") == "both":
            clock.estimate *= 2
        warn_of_slow_device(config, model, seconds, num_steps)
    return clock
