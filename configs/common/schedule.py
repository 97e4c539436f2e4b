"""Learning-rate schedules, counted in epochs."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def step_schedule(*, max_iter: int, decay_at: int, warmup: int = 1000):
    """Full rate after a linear warm-up of ``warmup`` iterations, a tenth of it from iteration ``decay_at`` on."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1], milestones=[decay_at], num_updates=max_iter
        ),
        warmup_length=warmup / max_iter,
        warmup_method="linear",
        warmup_factor=0.001,
    )
