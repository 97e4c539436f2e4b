#!/usr/bin/env python
"""Measure a config's model, and detectors of other packages beside it: what each costs on this machine.

tools/benchmark.py [--config-file F] [--size H W] [--device cpu|cuda] [--modes eager amp] [--compare all] [key=value]

Parameters, GMACs, latency, images per second over batch sizes, peak memory, and milliseconds by stage. Every
measurement runs in a process of its own; one that fails is a row that says why. Ctrl-C prints what there is by then.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from tabulate import tabulate

from salience_detr.benchmark.benchmarking import (
    MODES,
    OURS,
    Cost,
    Measurement,
    Report,
    Settings,
    build_ours,
    run,
)
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.checkpoint import CheckpointError
from salience_detr.config import ConfigError, resolve_device
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import check_result_path, written_whole

LISTS = ("batch_sizes", "modes", "compare")  # options that take several words


def cost_rows(report: Report) -> list[dict[str, Any]]:
    """A row for each detector and mode; its columns are those of what was asked for."""
    whole = {(m.name, m.mode): m.timings[0].median for m in report.measurements if m.timings}
    rows = []
    for measurement in report.measurements:
        name, timings = (
            measurement.name,
            {timing.batch_size: timing for timing in measurement.timings},
        )
        cost, first = report.costs[name], measurement.timings[0] if timings else None
        row = {
            "detector": report.settings.label(name),
            "mode": measurement.mode,
            "parameters (M)": cost.parameters,
            "GMACs": cost.count and cost.count.stages[-1].gmacs,
            "median (ms)": first and first.median,
            "p95 (ms)": first and first.p95,
        }
        if report.settings.compare:
            ours = whole.get((OURS, measurement.mode))
            row["of ours"] = first.median / ours if first and ours else None
        for batch_size in report.settings.batch_sizes:
            timing = timings.get(batch_size)
            row[f"images/s, batch {batch_size}"] = timing and timing.images_per_second
            row[f"MiB, batch {batch_size}"] = timing and timing.peak_mebibytes
        rows.append(row | {"remarks": remarks(measurement, cost)})
    if not any(row["remarks"] for row in rows):
        for row in rows:
            del row["remarks"]
    return rows


def remarks(measurement: Measurement, cost: Cost, longest: int = 200) -> str:
    """Why figures of a row are missing, short enough for a table."""
    reasons = [measurement.failure, cost.failure and f"GMACs: {cost.failure}"]
    text = "; ".join(reason for reason in reasons if reason).replace("|", "/")
    return text if len(text) <= longest else text[: longest - 3] + "..."


def stage_rows(report: Report) -> list[dict[str, Any]]:
    """A row for each stage of the config's model, with the milliseconds of each mode."""
    times = {m.mode: m.stages for m in report.measurements if m.name == OURS and m.stages}
    counted = report.costs[OURS].count
    counts = {row.stage: row for row in counted.stages} if counted else {}
    stages = dict.fromkeys([stage for stage in counts if stage != "total"])
    stages |= dict.fromkeys(stage for found in times.values() for stage in found)
    return [
        {
            "stage": stage,
            "parameters (M)": counts[stage].parameters if stage in counts else None,
            "GMACs": counts[stage].gmacs if stage in counts else None,
            **{f"{mode} (ms)": found.get(stage) for mode, found in times.items()},
        }
        for stage in [*(stage for stage in stages if stage != "total"), "total"]
    ]


def machine(device: str) -> str:
    """The GPU, or the processor and the threads that are used of it."""
    if resolve_device(device).type == "cuda":
        switches = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
        }
        tf32 = ", ".join(
            f"{what} {'on' if allowed else 'off'}" for what, allowed in switches.items()
        )
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda} (TF32: {tf32})"
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.is_file() else []
    name = next(filter(None, (*names, platform.processor(), platform.machine())), "CPU")
    return f"{name}, threads: {torch.get_num_threads()}"


def circumstances(settings: Settings) -> dict[str, str]:
    """On what, with what and when this was measured."""
    packages = ["torch", *dict.fromkeys(OTHER_DETECTORS[name].package for name in settings.compare)]
    amp = (
        f", amp in {settings.dtype}" if any(mode.endswith("amp") for mode in settings.modes) else ""
    )
    return {
        "machine": machine(settings.device),
        "packages": ", ".join(f"{package} {version(package)}" for package in packages),
        "dtype": f"float32{amp}",
        "size": f"{settings.size[0]}x{settings.size[1]} pixels",
        "calls": f"timed calls: {settings.repeats}, after {settings.warmup} to warm up",
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }


def explanations(report: Report) -> list[str]:
    """What a reader has to know of the figures."""
    settings, on_gpu = report.settings, resolve_device(report.settings.device).type == "cuda"
    held = (
        "what tensors were allocated at most, weights included"
        if on_gpu
        else "the weights, and the most that the process held above its memory before the first call (of compiled "
        "modes with what the compiler keeps)"
    )
    lines = [
        "Milliseconds: a whole call with one image of noise, from a list of dictionaries to Instances; images/s: of "
        "the median call with that many images.",
        f"MiB: {held}.",
        "GMACs: by fvcore, for one image; convolutions, matrix products, attention, norms, sampling, interpolation.",
    ]
    for name, cost in report.costs.items():
        if cost.count and cost.count.uncounted:
            missing = ", ".join(
                f"{times} x {operator}" for operator, times in cost.count.uncounted.items()
            )
            lines.append(f"Not in the GMACs of {settings.label(name)}: {missing}.")
    if settings.compare:
        lines.append(
            "of ours: median milliseconds over those of the config's model in the same mode."
        )
    with_nms = [
        OTHER_DETECTORS[name].label for name in settings.compare if OTHER_DETECTORS[name].uses_nms
    ]
    if with_nms:
        lines.append(
            f"Random weights: {', '.join(with_nms)} select boxes by their scores, so how many reach NMS, and the heads "
            "of a two-stage one, differs from a trained detector's."
        )
    return lines + report.notes


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown; numbers have one decimal from 10 on, else three digits."""
    cells = [
        {
            name: f"{x:{'.1f' if abs(x) >= 10 else '#.3g'}}" if isinstance(x, float) else x
            for name, x in row.items()
        }
        for row in rows
    ]
    sides = [
        "right" if any(isinstance(row[name], float) for row in rows) else "left" for name in rows[0]
    ]
    return tabulate(cells, headers="keys", tablefmt="github", colalign=sides, disable_numparse=True)


def as_markdown(report: Report) -> str:
    """The tables with what belongs to them; until something is measured only that."""
    rows = cost_rows(report)
    parts = ["; ".join(circumstances(report.settings).values()), table(rows) if rows else ""]
    parts.append("\n".join(f"- {line}" for line in explanations(report)))
    stages = stage_rows(report)
    if len(stages) > 1:
        parts += [
            f"{report.settings.label(OURS)}, one image, with a wait after each stage:",
            table(stages),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(report: Report) -> str:
    """All figures, each call's milliseconds too."""
    content = {
        "circumstances": circumstances(report.settings),
        "settings": asdict(report.settings),
        "costs": {
            name: {
                "parameters_millions": cost.parameters,
                "stages": [row._asdict() for row in cost.count.stages] if cost.count else [],
                "uncounted": cost.count.uncounted if cost.count else {},
                "failure": cost.failure,
            }
            for name, cost in report.costs.items()
        },
        "measurements": [
            {
                "detector": report.settings.label(measurement.name),
                **asdict(measurement),
                "timings": [
                    {
                        **asdict(x),
                        "median": x.median,
                        "p95": x.p95,
                        "images_per_second": x.images_per_second,
                    }
                    for x in measurement.timings
                ],
            }
            for measurement in report.measurements
        ],
        "notes": explanations(report),
    }
    return json.dumps(content, indent=1) + "\n"


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--config-file", default="configs/salience_detr_r50_4scale_12ep.py", metavar="FILE"
    )
    parser.add_argument("--weights", metavar="FILE", help="of the config's model (default: random)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--batch-sizes", nargs="+", default=["1", "2", "4"], metavar="N", help="(default: 1 2 4)"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["eager", "amp"],
        metavar="MODE",
        help=f"of {', '.join(MODES)}",
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float16"), help="of the amp modes"
    )
    parser.add_argument(
        "--repeats", type=int, default=20 if on_gpu else 5, metavar="N", help="timed calls of each"
    )
    parser.add_argument(
        "--warmup", type=int, default=3 if on_gpu else 1, metavar="N", help="calls before them"
    )
    names = ", ".join(OTHER_DETECTORS)
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="NAME", help=f"all, or of {names}"
    )
    parser.add_argument(
        "--compare-batch", action="store_true", help="these at all batch sizes too, not only at 1"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)
    for option in LISTS:  # they also take the overrides that follow them
        words = getattr(args, option)
        args.opts += [word for word in words if "=" in word]
        setattr(args, option, [word for word in words if "=" not in word])
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError where an option cannot be."""
    for option, known in (("modes", MODES), ("compare", ("all", *OTHER_DETECTORS))):
        unknown = [word for word in getattr(args, option) if word not in known]
        if unknown:
            raise ConfigError(f"--{option} {unknown[0]!r} is unknown; use {', '.join(known)}")
    if "all" in args.compare:
        args.compare = list(OTHER_DETECTORS)
    if not args.modes:
        raise ConfigError(f"--modes has no mode; use some of {', '.join(MODES)}")
    for word in args.batch_sizes:
        if not (word.isdecimal() and int(word) >= 1):
            raise ConfigError(
                f"--batch-sizes {word!r} is not a number of images; give numbers from 1 on"
            )
    for option, least in (("repeats", 1), ("warmup", 0)):
        if getattr(args, option) < least:
            raise ConfigError(f"--{option} is {getattr(args, option)}; it must be at least {least}")
    if min(args.size) < 1:
        raise ConfigError(
            f"--size is {args.size[0]} {args.size[1]}; an image has at least one pixel"
        )
    for option in ("json", "markdown"):
        check_result_path(getattr(args, option), f"--{option}")
    resolve_device(args.device)


def settings_of(args: argparse.Namespace) -> Settings:
    """Checked settings; the config and the weights are tried at once.

    Raises:
        ConfigError, CheckpointError, ValueError: an option, the config or the weights cannot be used.
    """
    check_args(args)
    settings = Settings(
        config_file=args.config_file,
        overrides=tuple(args.opts),
        weights=args.weights,
        num_classes=80,
        size=tuple(args.size),
        device=args.device,
        dtype=args.dtype,
        modes=tuple(dict.fromkeys(args.modes)),
        batch_sizes=tuple(sorted({1, *map(int, args.batch_sizes)})),
        compare=tuple(dict.fromkeys(args.compare)),
        compare_batch=args.compare_batch,
        warmup=args.warmup,
        repeats=args.repeats,
    )
    return replace(
        settings, num_classes=getattr(build_ours(settings), "num_classes", settings.num_classes)
    )


def begin_report(settings: Settings) -> Report:
    """An empty report, with notes on other work of the machine and in place of detectors that are not installed."""
    present = tuple(name for name in settings.compare if find_spec(OTHER_DETECTORS[name].package))
    report = Report(replace(settings, compare=present))
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 4:
        report.notes.append(
            f"Other work ran on the machine (load {load:.1f} on {cores} cores at the start): times vary."
        )
    for package in dict.fromkeys(
        OTHER_DETECTORS[name].package for name in settings.compare if name not in present
    ):
        names = ", ".join(
            OTHER_DETECTORS[x].label
            for x in settings.compare
            if OTHER_DETECTORS[x].package == package
        )
        report.notes.append(
            f"{names}: {package} is not installed; pip install 'salience_detr[compare]'."
        )
    return report


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        report = begin_report(settings_of(args))
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    finished = run(report)
    tables = as_markdown(report)
    print(tables, end="")
    for file, text in ((args.markdown, tables), (args.json, as_json(report))):
        if file:
            with written_whole(file) as path:
                path.write_text(text, encoding="utf-8")
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
