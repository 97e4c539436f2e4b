"""Schedules of the learning rate, in parts of the run: they stretch with its number of iterations.

Each is a LazyConfig piece for ``lr_multiplier``, with a linear warm-up.
"""

from __future__ import annotations

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
)
from omegaconf import DictConfig, OmegaConf

# Part of a run at the full rate, as in the published 10 of 12 epochs.
STEP_AT = 10 / 12
FLAT = 0.5


def step_schedule(*, max_iter: int, decay_at: int, warmup: float = 1000) -> DictConfig:
    """Return a schedule with one step, to a tenth of the rate.

    Args:
        max_iter: iterations of the run.
        decay_at: iteration of the step.
        warmup: iterations of the warm-up.
    """
    scheduler = L(MultiStepParamScheduler)(
        values=[1.0, 0.1], milestones=[decay_at], num_updates=max_iter
    )
    return with_warmup(scheduler, warmup / max_iter)


def cosine_schedule(*, max_iter: int, warmup: float = 1000, end: float = 0.0) -> DictConfig:
    """Return a schedule that falls along half a cosine from the first to the last iteration.

    Args:
        max_iter: iterations of the run.
        warmup: iterations of the warm-up.
        end: factor of the rate at the end.
    """
    scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=end)
    return with_warmup(scheduler, warmup / max_iter)


def flat_cosine_schedule(
    *, max_iter: int, flat: float = FLAT, warmup: float = 1000, end: float = 0.0
) -> DictConfig:
    """Return a schedule at the full rate first, which then falls along half a cosine.

    Args:
        max_iter: iterations of the run.
        flat: part of the run at the full rate, warm-up included.
        warmup: iterations of the warm-up.
        end: factor of the rate at the end.
    """
    scheduler = L(CompositeParamScheduler)(
        schedulers=[
            L(ConstantParamScheduler)(value=1.0),
            L(CosineParamScheduler)(start_value=1.0, end_value=end),
        ],
        lengths=[flat, 1 - flat],
        interval_scaling=["rescaled", "rescaled"],
    )
    return with_warmup(scheduler, warmup / max_iter)


def with_warmup(scheduler: DictConfig, warmup_length: float) -> DictConfig:
    """Return a schedule that begins with a linear warm-up over a part of the run."""
    return L(WarmupParamScheduler)(
        scheduler=scheduler,
        warmup_length=warmup_length,
        warmup_method="linear",
        warmup_factor=0.001,
    )


def use_schedule(config: DictConfig, name: str) -> None:
    """Replace the schedule of a config, in place; the warm-up stays.

    Args:
        config: of a run.
        name: "step", "cosine" or "flat-cosine". A schedule of steps stays as it is for "step".
    """
    max_iter = config.train.max_iter
    warmup_length = config.lr_multiplier.get("warmup_length", 0.0)
    warmup = warmup_length * max_iter

    if name == "cosine":
        config.lr_multiplier = cosine_schedule(max_iter=max_iter, warmup=warmup)
    elif name == "flat-cosine":
        config.lr_multiplier = flat_cosine_schedule(max_iter=max_iter, warmup=warmup)
    elif OmegaConf.select(config, "lr_multiplier.scheduler.milestones") is None:
        decay_at = round(STEP_AT * max_iter)
        config.lr_multiplier = step_schedule(max_iter=max_iter, decay_at=decay_at, warmup=warmup)
