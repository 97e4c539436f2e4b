"""Schedule of the learning rate."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def step_schedule(*, max_iter: int, decay_at: int, warmup: int = 1000):
    """Return a schedule with a linear warm-up and one step, to a tenth of the rate.

    Args:
        max_iter: iterations of the run.
        decay_at: iteration of the step.
        warmup: iterations of the warm-up.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1], milestones=[decay_at], num_updates=max_iter
        ),
        warmup_length=warmup / max_iter,
        warmup_method="linear",
        warmup_factor=0.001,
    )
