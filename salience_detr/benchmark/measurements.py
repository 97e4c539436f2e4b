"""Measurements of detectors, each detector and mode in a process of its own."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import nn
from tqdm import tqdm

from salience_detr.benchmark.flops import ModelCost, count_flops, noise_image
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.timing import PeakMemory, stage_timers, time_calls
from salience_detr.benchmark.worker import Worker, run_until_stopped
from salience_detr.checkpoint import load_weights
from salience_detr.config import load_config, resolve_device
from salience_detr.layers import ms_deform_attn
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.optimization import OPTIMIZATIONS, optimize_model

MODES = (
    "eager", "channels-last", "fused", "compiled",
    "amp", "channels-last-amp", "fused-amp", "compiled-amp", "training", "training-amp",
)  # fmt: skip
OURS_ALONE = ("fused", "fused-amp", "training", "training-amp")  # modes of the config's model
OPERATORS = ("compiled", "reference")
OURS = "ours"  # the config's model, beside the names of OTHER_DETECTORS
NUM_BOXES = 8  # ground-truth boxes of an image in training modes


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark.

    Attributes:
        weights: checkpoint of the config's model, or None for random weights.
        num_classes: number of classes of all detectors.
        size: (height, width) of the images in pixels.
        dtype: autocast dtype of the amp modes; the others compute in float32.
        modes: some of :data:`MODES`.
        operators: implementations of the deformable attention, some of :data:`OPERATORS`.
        batch_sizes: in rising order, from 1 on.
        compare: names in :data:`salience_detr.benchmark.other_detectors.OTHER_DETECTORS`, which
            are measured with single images.
        warmup: calls before the timed ones.
        repeats: timed calls at each batch size.
        trust_config: see :func:`load_config`.
    """

    config_file: str
    overrides: tuple[str, ...]
    weights: str | None
    num_classes: int
    size: tuple[int, int]
    device: str
    dtype: str
    modes: tuple[str, ...]
    operators: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    compare: tuple[str, ...]
    warmup: int
    repeats: int
    trust_config: bool = False


class Variant(NamedTuple):
    """A detector in one mode, with one implementation of the deformable attention."""

    detector: str
    mode: str
    operator: str

    @property
    def label(self) -> str:
        return self.mode if self.operator == "compiled" else f"{self.mode}, {self.operator}"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each call with a batch, and peak memory (None where it is unknown)."""

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
    """Results of one variant.

    Attributes:
        timings: by rising batch size.
        stages: median milliseconds of each stage with one image, see :func:`time_stages`.
        failure: reason why results are missing.
    """

    variant: Variant
    timings: list[Timing] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    failure: str = ""


@dataclass
class Benchmark:
    """Settings and results so far.

    Attributes:
        costs: parameters and GMACs of each detector, or the reason why they are missing.
        notes: sentences below the tables, on what disturbed or limited the measurements.
    """

    settings: Settings
    costs: dict[str, ModelCost | str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(benchmark: Benchmark, *, keep: Callable[[], None]) -> bool:
    """Measure everything, one process after the other; return False if it was interrupted.

    Args:
        benchmark: gets the results.
        keep: called after each measurement, so that its results are kept whatever comes.
    """
    finished = run_until_stopped(lambda: measure_all(benchmark, keep))
    if not finished:
        # What was measured so far is printed.
        benchmark.notes.append("Stopped before all was measured.")
        if benchmark.measurements:
            benchmark.measurements[-1].failure = "stopped"
    return finished


def measure_all(benchmark: Benchmark, keep: Callable[[], None]) -> None:
    settings = benchmark.settings
    detectors = (OURS, *settings.compare)
    variants = all_variants(settings)

    with tqdm(total=len(detectors) + len(variants), desc="measurements") as bar:
        for name in detectors:
            bar.set_postfix_str(f"{name}, GMACs")
            with Worker() as worker:
                benchmark.costs[name] = worker.attempt(count_costs, settings, name)
            bar.update()

        for variant in variants:
            bar.set_postfix_str(f"{variant.detector}, {variant.label}")
            # Listed first, so that an interrupt keeps the part that is done.
            measurement = Measurement(variant)
            benchmark.measurements.append(measurement)
            measure(settings, measurement)
            keep()
            bar.update()


def all_variants(settings: Settings) -> list[Variant]:
    """Return the variants to measure; other detectors have one operator, and not all modes."""
    variants = []
    for mode in settings.modes:
        for operator in settings.operators:
            variants.append(Variant(OURS, mode, operator))

    for name in settings.compare:
        for mode in settings.modes:
            if mode not in OURS_ALONE:
                variants.append(Variant(name, mode, "compiled"))
    return variants


def measure(settings: Settings, measurement: Measurement) -> None:
    """Add timings and stages to a measurement; a failure keeps those before it."""
    variant = measurement.variant
    batch_sizes = settings.batch_sizes
    if variant.detector != OURS:
        batch_sizes = batch_sizes[:1]

    # A batch that does not fit into memory may end the process, so the smaller ones come first.
    with Worker() as worker:
        for batch_size in batch_sizes:
            timing = worker.attempt(time_batch, settings, variant, batch_size)
            if isinstance(timing, str):
                measurement.failure = timing
                return
            measurement.timings.append(timing)

        if variant.detector == OURS:
            stages = worker.attempt(time_stages, settings, variant)
            if isinstance(stages, str):
                measurement.failure = stages
            else:
                measurement.stages = stages


class Subject(NamedTuple):
    """A model that is ready to be measured.

    Attributes:
        step: function of a batch size that detects or trains.
        model: on its device.
        memory: of the model, and of the process before the first call.
    """

    step: Callable[[int], None]
    model: nn.Module
    memory: PeakMemory


def count_costs(settings: Settings, name: str) -> ModelCost:
    """Count parameters and GMACs of a detector."""
    return count_flops(build(settings, name), *settings.size)


def time_batch(settings: Settings, variant: Variant, batch_size: int) -> Timing:
    """Time calls with a batch of copies of an image of noise, after the warm-up."""
    subject = prepare(settings, variant)
    time_calls(lambda: subject.step(batch_size), settings.warmup)

    # First calls choose kernels and fill caches, which may take more memory than later calls.
    subject.memory.reset()
    milliseconds = time_calls(lambda: subject.step(batch_size), settings.repeats)
    return Timing(batch_size, milliseconds, subject.memory.mebibytes())


def time_stages(settings: Settings, variant: Variant) -> dict[str, float]:
    """Return the median milliseconds of each stage, of the "rest" and of the "total"."""
    subject = prepare(settings, variant)
    calls = []
    for _ in range(settings.repeats + 1):
        with stage_timers(subject.model) as stages:
            (total,) = time_calls(lambda: subject.step(1), 1)
        rest = total - sum(stages.values())
        calls.append({**stages, "rest": rest, "total": total})

    # The first call warms up.
    medians = {}
    for stage in calls[0]:
        medians[stage] = statistics.median(call[stage] for call in calls[1:])
    return medians


@lru_cache(maxsize=1)  # all batch sizes of a variant are measured on one model
def prepare(settings: Settings, variant: Variant) -> Subject:
    """Build the model of a variant on its device, and the function to time."""
    warnings.simplefilter("ignore")
    device = resolve_device(settings.device)
    dtype = getattr(torch, settings.dtype)
    autocast_is_on = variant.mode.endswith("amp")
    autocast = torch.autocast(device.type, dtype, enabled=autocast_is_on)

    # The patch stays: this process measures no other variant.
    if variant.operator == "reference":
        patch.object(ms_deform_attn, "is_compiled_for", lambda _: False).start()

    model = build(settings, variant.detector).to(device)
    optimization = variant.mode.removesuffix("-amp")
    if optimization == "channels-last":
        model = model.to(memory_format=torch.channels_last)
    elif optimization in OPTIMIZATIONS:
        model = optimize(model, variant, optimization, dtype if autocast_is_on else None)
    memory = PeakMemory(model)

    # A training step includes the optimizer's step, and its memory the optimizer's state.
    image = noise_image(*settings.size)
    if variant.mode.startswith("training"):
        model.train()
        image["instances"] = ground_truth(settings)
        fused = True if device.type == "cuda" else None  # as in trainings
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)

    def detect(batch_size: int) -> None:
        with torch.inference_mode(), autocast:
            model([image] * batch_size)

    def train(batch_size: int) -> None:
        optimizer.zero_grad()
        with autocast:
            losses = model([image] * batch_size)
        sum(losses.values()).backward()
        optimizer.step()

    step = train if model.training else detect
    return Subject(step, model, memory)


def ground_truth(settings: Settings) -> Instances:
    """Return :data:`NUM_BOXES` boxes in a row across the image, absolute xyxy, with classes."""
    height, width = settings.size
    boxes = torch.zeros(NUM_BOXES, 4)
    boxes[:, 0] = torch.arange(NUM_BOXES) * (width / NUM_BOXES)
    boxes[:, 1] = height / 4
    boxes[:, 2] = boxes[:, 0] + width / NUM_BOXES
    boxes[:, 3] = height / 2

    classes = torch.arange(NUM_BOXES) % settings.num_classes
    return Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=classes)


def build(settings: Settings, name: str) -> nn.Module:
    """Build a detector on the CPU in evaluation mode, with the same random weights each time.

    Raises:
        ConfigError, CheckpointError, ValueError: the config or the weights cannot be used.
    """
    torch.manual_seed(0)
    if name != OURS:
        return OTHER_DETECTORS[name].build(settings.size, settings.num_classes).eval()

    config = load_config(settings.config_file, settings.overrides, trust=settings.trust_config)
    model: nn.Module = instantiate(config.model)
    if settings.weights is not None:
        load_weights(model, settings.weights)
    return model.eval()


def optimize(
    model: nn.Module, variant: Variant, optimization: str, dtype: torch.dtype | None
) -> nn.Module:
    """Return a model that detects faster.

    Raises:
        ValueError: another detector cannot be optimized so.
    """
    if isinstance(model, SalienceDETR):
        return optimize_model(model, optimization, dtype)
    if optimization != "compiled":
        raise ValueError("constants are folded in this project's model alone")

    OTHER_DETECTORS[variant.detector].compile(model)
    return model


def detector_label(settings: Settings, name: str) -> str:
    """Return the name of a detector in tables."""
    if name != OURS:
        other = OTHER_DETECTORS[name]
        return f"{other.label} ({other.package}, random weights)"

    weights = "random weights"
    if settings.weights:
        weights = Path(settings.weights).name
    return f"{Path(settings.config_file).stem} ({weights})"
