"""Results of a benchmark: tables in Markdown, and everything in JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from typing import TypeAlias

import torch
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.benchmark.flops import ModelCost, StageCost
from salience_detr.benchmark.measurements import (
    OURS,
    Benchmark,
    Measurement,
    Settings,
    detector_label,
)
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.config import resolve_device
from salience_detr.utils.processor import processor_name

Cell: TypeAlias = str | float | None
Row: TypeAlias = dict[str, Cell]
LONGEST_REMARK = 200  # characters


def detector_rows(benchmark: Benchmark) -> list[Row]:
    """Return a row for each variant; a column of remarks only if there are any."""
    rows = [detector_row(benchmark, x) for x in benchmark.measurements]
    if not any(row["remarks"] for row in rows):
        for row in rows:
            del row["remarks"]
    return rows


def detector_row(benchmark: Benchmark, measurement: Measurement) -> Row:
    """Return the costs, times and memory of a variant; None for what could not be measured."""
    settings = benchmark.settings
    variant = measurement.variant
    row: Row = {
        "detector": detector_label(settings, variant.detector),
        "mode": variant.label,
        **cost_cells(stage_costs(benchmark, variant.detector).get("total")),
        "median (ms)": None,
        "p95 (ms)": None,
    }
    if measurement.timings:
        row["median (ms)"] = measurement.timings[0].median
        row["p95 (ms)"] = measurement.timings[0].p95

    # With one detector and one operator, every ratio would be 1.
    if settings.compare or len(settings.operators) > 1:
        row["of ours"] = ratio_to_ours(benchmark, measurement)

    # All rows have the same columns, whatever batch sizes were measured.
    timings = {timing.batch_size: timing for timing in measurement.timings}
    for batch_size in settings.batch_sizes:
        row[f"images/s, batch {batch_size}"] = None
        row[f"MiB, batch {batch_size}"] = None
        if batch_size in timings:
            row[f"images/s, batch {batch_size}"] = timings[batch_size].images_per_second
            row[f"MiB, batch {batch_size}"] = timings[batch_size].peak_mebibytes

    row["remarks"] = remarks(benchmark, measurement)
    return row


def cost_cells(cost: StageCost | None) -> Row:
    """Return the cells of a cost, empty where it is unknown."""
    if cost is None:
        return {"parameters (M)": None, "GMACs": None}
    return {"parameters (M)": cost.parameters, "GMACs": cost.gmacs}


def stage_costs(benchmark: Benchmark, detector: str) -> dict[str, StageCost]:
    """Return the costs of a detector's stages and "total" by name; empty if they are missing."""
    cost = benchmark.costs.get(detector)
    if isinstance(cost, ModelCost):
        return {row.stage: row for row in cost.stages}
    return {}


def ratio_to_ours(benchmark: Benchmark, measurement: Measurement) -> float | None:
    """Return the median time over that of the config's model in the same mode, or None."""
    for other in benchmark.measurements:
        is_ours = other.variant == (OURS, measurement.variant.mode, "compiled")
        if is_ours and other.timings and measurement.timings:
            return ratio(measurement, other)
    return None


def remarks(benchmark: Benchmark, measurement: Measurement) -> str:
    """Return the reasons why results of a row are missing, short enough for a table."""
    reasons = []
    if measurement.failure:
        reasons.append(measurement.failure)
    cost = benchmark.costs.get(measurement.variant.detector)
    if isinstance(cost, str):
        reasons.append(f"GMACs: {cost}")

    return short_cell("; ".join(reasons))


def short_cell(text: str) -> str:
    """Return a text for a cell of a Markdown table, which a bar would end."""
    return textwrap.shorten(text.replace("|", "/"), LONGEST_REMARK, placeholder="...")


def fastest_rows(benchmark: Benchmark) -> list[Row]:
    """Return a row for each detector, with its fastest mode in float32 and its fastest at all."""
    detectors = (OURS, *benchmark.settings.compare)
    exact = {name: fastest(benchmark, name, exact=True) for name in detectors}
    any_dtype = {name: fastest(benchmark, name, exact=False) for name in detectors}

    rows = []
    for name in detectors:
        row: Row = {
            "detector": detector_label(benchmark.settings, name),
            **mode_cells("in float32", exact[name]),
            **mode_cells("at all", any_dtype[name]),
        }
        row["float32 of ours in float32"] = ratio(exact[name], exact[OURS])
        row["fastest of ours in float32"] = ratio(any_dtype[name], exact[OURS])
        row["fastest of our fastest"] = ratio(any_dtype[name], any_dtype[OURS])
        rows.append(row)
    return rows


def mode_cells(label: str, measurement: Measurement | None) -> Row:
    """Return the cells of a fastest mode and its time, empty if there is none."""
    if measurement is None:
        return {f"fastest {label}": None, f"ms {label}": None}
    mode = measurement.variant.mode
    return {f"fastest {label}": mode, f"ms {label}": median_of(measurement)}


def fastest(benchmark: Benchmark, detector: str, *, exact: bool) -> Measurement | None:
    """Return the measurement with the least median time of detection, or None.

    Args:
        exact: only of modes that compute in float32.
    """
    candidates = []
    for measurement in benchmark.measurements:
        name, mode, operator = measurement.variant
        is_detection = not mode.startswith("training") and operator == "compiled"
        is_exact = not mode.endswith("amp")
        if name != detector or not is_detection or not measurement.timings:
            continue
        if is_exact or not exact:
            candidates.append(measurement)
    return min(candidates, key=median_of, default=None)


def median_of(measurement: Measurement) -> float:
    """Return the median milliseconds with one image."""
    return measurement.timings[0].median


def ratio(measurement: Measurement | None, other: Measurement | None) -> float | None:
    """Return the ratio of the median times of two measurements, None if one is missing."""
    if measurement is None or other is None:
        return None
    return median_of(measurement) / median_of(other)


def stage_rows(benchmark: Benchmark) -> list[Row]:
    """Return a row for each stage of the config's model, with the milliseconds of each mode."""
    costs = stage_costs(benchmark, OURS)
    ours = [m for m in benchmark.measurements if m.variant.detector == OURS and m.stages]

    # In the order of the data; "rest" is measured, but has no parameters.
    stages = dict.fromkeys(costs)
    for measurement in ours:
        stages |= dict.fromkeys(measurement.stages)
    stages.pop("total", None)

    rows = []
    for stage in (*stages, "total"):
        row: Row = {"stage": stage, **cost_cells(costs.get(stage))}
        for measurement in ours:
            row[f"{measurement.variant.label} (ms)"] = measurement.stages.get(stage)
        rows.append(row)

    return rows


def circumstances(settings: Settings) -> dict[str, str]:
    """Return the machine, packages, settings and date of a benchmark, in words."""
    others = [OTHER_DETECTORS[name].package for name in settings.compare]
    packages = dict.fromkeys(["torch", *others])  # each once
    versions = [f"{package} {version(package)}" for package in packages]

    dtype = "float32"
    if any(mode.endswith("amp") for mode in settings.modes):
        dtype += f", amp in {settings.dtype}"
    return {
        "machine": machine(settings.device),
        "packages": ", ".join(versions),
        "dtype": dtype,
        "size": f"{settings.size[0]}x{settings.size[1]} pixels",
        "calls": f"timed calls: {settings.repeats}, after {settings.warmup} to warm up",
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }


def machine(device: str) -> str:
    """Return the name of the GPU, or of the processor with the number of threads in use."""
    if resolve_device(device).type == "cuda":
        # TF32 decides whether "float32" means 23 or 10 bits of mantissa.
        switch = {True: "on", False: "off"}
        convolutions = switch[torch.backends.cudnn.allow_tf32]
        products = switch[torch.backends.cuda.matmul.allow_tf32]
        tf32 = f"TF32: convolutions {convolutions}, matrix products {products}"
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda} ({tf32})"

    return f"{processor_name()}, threads: {torch.get_num_threads()}"


def explanations(benchmark: Benchmark) -> list[str]:
    """Return explanations of the results, a line each."""
    settings = benchmark.settings

    lines = [
        "Milliseconds: a whole call with one image of noise, from a list of dictionaries to "
        "Instances (training: to the optimizer's step); images/s: of the median call with that "
        "many images.",
        "GMACs: by fvcore, for one image; convolutions, matrix products, attention, norms, "
        "sampling, interpolation.",
    ]
    if resolve_device(settings.device).type == "cuda":
        lines.append("MiB: the peak of what tensors were allocated, weights included.")
    else:
        lines.append(
            "MiB: the weights, and the most that the process held above its memory before the "
            "first call (of compiled modes with what the compiler keeps)."
        )

    for name, cost in benchmark.costs.items():
        if isinstance(cost, ModelCost) and cost.uncounted:
            calls = [f"{times} x {operator}" for operator, times in cost.uncounted.items()]
            label = detector_label(settings, name)
            lines.append(f"Not in the GMACs of {label}: {', '.join(calls)}.")

    if settings.compare or len(settings.operators) > 1:
        lines.append("of ours: median over that of the config's model in the same mode.")

    others = [OTHER_DETECTORS[name] for name in settings.compare]
    with_nms = [other.label for other in others if other.uses_nms]
    if with_nms:
        lines.append(
            f"Random weights: {', '.join(with_nms)} select boxes by their scores, so how many "
            "reach NMS, and the heads of a two-stage one, differs from a trained detector's."
        )
    return lines + benchmark.notes


def table(rows: list[Row]) -> str:
    """Return a Markdown table; numbers have one decimal from 10 on, else three digits."""
    cells = []
    numeric = set()
    for row in rows:
        texts = {}
        for name, value in row.items():
            if isinstance(value, float):
                numeric.add(name)
                value = f"{value:.1f}" if abs(value) >= 10 else f"{value:#.3g}"
            texts[name] = value
        cells.append(texts)

    # tabulate would align by what it parses, and give all numbers of a column the same decimals.
    sides = []
    for name in rows[0]:
        sides.append("right" if name in numeric else "left")
    return tabulate(cells, headers="keys", tablefmt="github", colalign=sides, disable_numparse=True)


class PrintedTable:
    """Markdown table whose rows are printed as they are measured.

    A program that is stopped has printed all finished rows.

    Args:
        widths: the columns with the width of their cells.
    """

    def __init__(self, widths: dict[str, int]) -> None:
        self.widths = {name: max(width, len(name)) for name, width in widths.items()}
        self.write([name.ljust(width) for name, width in self.widths.items()])
        self.write(["-" * width for width in self.widths.values()])

    def add(self, cells: Sequence[object]) -> None:
        """Print a row; texts are at the left, numbers at the right with two decimals."""
        row = []
        for value, width in zip(cells, self.widths.values(), strict=True):
            if isinstance(value, float):
                row.append(f"{value:.2f}".rjust(width))
            else:
                row.append(str(value).ljust(width))
        self.write(row)

    def write(self, cells: list[str]) -> None:
        """Print the padded cells of one line."""
        # Above a progress bar, if there is one.
        tqdm.write(f"| {' | '.join(cells)} |")


def as_markdown(benchmark: Benchmark) -> str:
    """Return the tables with their circumstances and explanations."""
    settings = benchmark.settings
    parts = ["; ".join(circumstances(settings).values())]

    rows = detector_rows(benchmark)
    if rows:
        parts.append(table(rows))
    parts.append("\n".join(f"- {line}" for line in explanations(benchmark)))

    if settings.compare and benchmark.measurements:
        parts.append("Each detector in its fastest modes:")
        parts.append(table(fastest_rows(benchmark)))

    stages = stage_rows(benchmark)
    if len(stages) > 1:
        parts.append(f"{detector_label(settings, OURS)}, one image, with a wait after each stage:")
        parts.append(table(stages))
    return "\n\n".join(parts) + "\n"


def as_json(benchmark: Benchmark) -> str:
    """Return all results, the milliseconds of each call included."""
    settings = benchmark.settings

    costs = {}
    for name, cost in benchmark.costs.items():
        if isinstance(cost, ModelCost):
            stages = [row._asdict() for row in cost.stages]
            costs[name] = {"stages": stages, "uncounted": cost.uncounted, "failure": ""}
        else:
            costs[name] = {"stages": [], "uncounted": {}, "failure": cost}

    measurements = []
    for measurement in benchmark.measurements:
        timings = []
        for timing in measurement.timings:
            row = asdict(timing) | {"median": timing.median, "p95": timing.p95}
            timings.append(row | {"images_per_second": timing.images_per_second})

        entry = {
            **measurement.variant._asdict(),
            "label": detector_label(settings, measurement.variant.detector),
            "timings": timings,
            "stages": measurement.stages,
            "failure": measurement.failure,
        }
        measurements.append(entry)

    content = {
        "circumstances": circumstances(settings),
        "settings": asdict(settings),
        "costs": costs,
        "measurements": measurements,
        "notes": explanations(benchmark),
    }
    return json.dumps(content, indent=1) + "\n"
