"""What detectors cost on a machine: measurements, each in a process of its own."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from torch import nn
from tqdm import tqdm

from salience_detr.benchmark.isolation import IsolatedError, isolated
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.profiling import (
    Clock,
    Count,
    PeakMemory,
    count,
    durations,
    noise_image,
    stage_times,
)
from salience_detr.checkpoint import load_weights
from salience_detr.config import load_config, resolve_device
from salience_detr.engine.train import COMPILED_STAGES

MODES = ("eager", "compiled", "amp", "compiled-amp")
OURS = "ours"  # beside the names of OTHER_DETECTORS


@dataclass(frozen=True)
class Settings:
    """What is measured, on an image of a size in pixels (height, width).

    Attributes:
        weights: of the config's model; None for random ones.
        num_classes: of all detectors.
        dtype: of the modes with amp; the others compute in float32.
        modes: some of :data:`MODES`.
        batch_sizes: by rising size, from 1 on.
        compare: names in :data:`salience_detr.benchmark.other_detectors.OTHER_DETECTORS`.
        compare_batch: whether these are measured at all batch sizes, not at 1 only.
        warmup: calls before those that are timed.
        repeats: calls that are timed, at each batch size.
    """

    config_file: str
    overrides: tuple[str, ...]
    weights: str | None
    num_classes: int
    size: tuple[int, int]
    device: str
    dtype: str
    modes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    compare: tuple[str, ...]
    compare_batch: bool
    warmup: int
    repeats: int

    def label(self, name: str) -> str:
        """What a table calls a detector."""
        if name == OURS:
            weights = "random weights" if self.weights is None else Path(self.weights).name
            return f"{Path(self.config_file).stem} ({weights})"
        return f"{OTHER_DETECTORS[name].label} ({OTHER_DETECTORS[name].package}, random weights)"


@dataclass(frozen=True)
class Timing:
    """Calls with a batch: milliseconds of each, and the most memory that they held, where the system tells."""

    batch_size: int
    milliseconds: list[float]
    peak_mebibytes: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def p95(self) -> float:
        return float(np.percentile(self.milliseconds, 95))

    @property
    def images_per_second(self) -> float:
        return self.batch_size * 1e3 / self.median


@dataclass
class Measurement:
    """One detector in one mode.

    Attributes:
        timings: by rising batch size.
        stages: median milliseconds of each stage with one image, see :func:`time_stages`.
        failure: why something is missing.
    """

    name: str
    mode: str
    timings: list[Timing] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    failure: str = ""


@dataclass
class Cost:
    """What one detector has and does, in any mode.

    Attributes:
        parameters: in millions.
        failure: why something is missing.
    """

    parameters: float | None = None
    count: Count | None = None
    failure: str = ""


@dataclass
class Report:
    """All that has been measured so far, and what is to be said about it."""

    settings: Settings
    costs: dict[str, Cost] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_ours(settings: Settings) -> nn.Module:
    """The config's model, with its weights if there are any.

    Raises:
        ConfigError, CheckpointError, ValueError: the config or the weights cannot be used.
    """
    model: nn.Module = instantiate(load_config(settings.config_file, settings.overrides).model)
    if settings.weights is not None:
        load_weights(model, settings.weights)
    return model


def build(settings: Settings, name: str) -> nn.Module:
    """A detector on the CPU, in evaluation; its random weights are the same each time."""
    torch.manual_seed(0)
    if name == OURS:
        return build_ours(settings).eval()
    return OTHER_DETECTORS[name].build(settings.size, settings.num_classes).eval()


def compile_parts(model: nn.Module, name: str) -> None:
    """Compile what consists of tensors only: of this project's models the stages that training compiles."""
    parts = COMPILED_STAGES if name == OURS else OTHER_DETECTORS[name].parts
    modules = dict(model.named_modules())
    for part in parts:
        if part in modules:
            # The forward alone, so that the hooks that time it stay outside.
            modules[part].forward = torch.compile(modules[part].forward)  # type: ignore[method-assign]


@torch.inference_mode()
def detect(
    model: nn.Module, inputs: list[dict[str, Any]], device: torch.device, dtype: torch.dtype | None
) -> None:
    """One call; autocast to a dtype, if there is one."""
    precision: AbstractContextManager[Any] = (
        nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    )
    with precision:
        model(inputs)


def count_costs(settings: Settings, name: str) -> Iterator[float | Count]:
    """The parameters of a detector in millions; then all its counts."""
    model = build(settings, name)
    yield sum(p.numel() for p in model.parameters()) / 1e6
    yield count(model, *settings.size)


def measure(settings: Settings, name: str, mode: str) -> Iterator[Timing | dict[str, float]]:
    """Times of a detector for each batch size; of the config's model, at last, its milliseconds by stage."""
    device = resolve_device(settings.device)
    dtype = getattr(torch, settings.dtype) if mode.endswith("amp") else None
    model = build(settings, name).to(device)
    if mode.startswith("compiled"):
        compile_parts(model, name)
    memory, clock, image = PeakMemory(model), Clock(device), noise_image(*settings.size)
    for batch_size in settings.batch_sizes if name == OURS or settings.compare_batch else (1,):
        step = partial(detect, model, [image] * batch_size, device, dtype)
        durations(step, clock, settings.warmup)
        memory.reset()
        times = durations(step, clock, settings.repeats)
        yield Timing(batch_size, times, memory.mebibytes())
    if name == OURS:
        yield time_stages(
            model, partial(detect, model, [image], device, dtype), clock, settings.repeats
        )


def time_stages(
    model: nn.Module, step: partial[None], clock: Clock, repeats: int
) -> dict[str, float]:
    """Median milliseconds of each stage, of all between them ("rest") and of the whole ("total")."""
    records: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        record: dict[str, float] = {}
        with stage_times(model, clock, record):
            total = durations(step, clock, 1)[0]
        records.append({**record, "rest": total - sum(record.values()), "total": total})
    # The first call with waits between the stages warms up.
    return {
        stage: statistics.median(record[stage] for record in records[1:]) for stage in records[0]
    }


def run(report: Report) -> bool:
    """Fill a report, one process after the other; whether it was not stopped (SIGINT, SIGTERM)."""
    settings = report.settings
    report.costs = {name: Cost() for name in (OURS, *settings.compare)}
    jobs = [(name, mode) for name in report.costs for mode in ("counts", *settings.modes)]
    unfinished: Cost | Measurement | None = None
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name, mode in (bar := tqdm(jobs, desc="measurements")):
            bar.set_postfix_str(f"{name}, {mode}")
            if mode == "counts":
                unfinished = report.costs[name]
                fill_cost(unfinished, settings, name)
            else:
                unfinished = Measurement(name, mode)
                report.measurements.append(unfinished)
                fill_measurement(unfinished, settings)
    except KeyboardInterrupt:
        report.notes.append("Stopped before all was measured.")
        if unfinished is not None:
            unfinished.failure = "stopped"
        return False
    finally:
        signal.signal(signal.SIGTERM, previous)
    return True


def fill_cost(cost: Cost, settings: Settings, name: str) -> None:
    try:
        for item in isolated(count_costs, settings, name):
            if isinstance(item, Count):
                cost.count = item
            else:
                cost.parameters = item
    except IsolatedError as error:
        cost.failure = f"failed: {error}"


def fill_measurement(measurement: Measurement, settings: Settings) -> None:
    try:
        for item in isolated(measure, settings, measurement.name, measurement.mode):
            if isinstance(item, Timing):
                measurement.timings.append(item)
            else:
                measurement.stages = item
    except IsolatedError as error:
        measurement.failure = f"failed: {error}"
