"""Milliseconds and memory of calls, the whole model's and each stage's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.benchmark import timer  # waits for the GPU, if there is one

from salience_detr.benchmark.flops import stages_of
from salience_detr.utils.process_memory import forget_peak, resident_bytes


def time_calls(step: Callable[[], object], repeats: int) -> list[float]:
    """Return the milliseconds of each of ``repeats`` calls."""
    milliseconds = []
    for _ in range(repeats):
        start = timer()
        step()
        milliseconds.append((timer() - start) * 1e3)
    return milliseconds


@contextmanager
def stage_timers(model: nn.Module) -> Iterator[dict[str, float]]:
    """Provide a dict in which the block collects the milliseconds of each stage's forward."""
    milliseconds: dict[str, float] = {}
    starts: dict[str, float] = {}
    handles = []
    for name in stages_of(model):
        stage = model.get_submodule(name)

        def start(*_: object, name: str = name) -> None:
            starts[name] = timer()

        def stop(*_: object, name: str = name) -> None:
            # A stage may run several times in a call.
            elapsed = (timer() - starts[name]) * 1e3
            milliseconds[name] = milliseconds.get(name, 0.0) + elapsed

        handles += [stage.register_forward_pre_hook(start), stage.register_forward_hook(stop)]

    try:
        yield milliseconds
    finally:
        for handle in handles:
            handle.remove()


class PeakMemory:
    """The most memory that a model and its calls hold at once, in a process that does nothing else.

    On a GPU, it is the allocated memory of tensors. On the CPU, it is the weights plus the growth
    of the process's resident memory since this object was made, by the kernel's high-water mark:
    psutil has no peak on Linux, and a thread that samples the memory misses short peaks.

    Args:
        model: on its device, before its first call.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.on_gpu = any(x.is_cuda for x in tensors)
        self.weight_bytes = sum(x.numel() * x.element_size() for x in tensors)
        self.start = resident_bytes("VmRSS")

    def reset(self) -> None:
        """Forget the peak so far."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return

        forget_peak()

    def mebibytes(self) -> float | None:
        """Return the peak since the last reset, or None where there is no Linux to tell."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20

        peak = resident_bytes("VmHWM")
        if peak is None or self.start is None:
            return None
        return (self.weight_bytes + max(0, peak - self.start)) / 2**20
