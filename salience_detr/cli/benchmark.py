"""Measure a config's model, and detectors of other packages beside it, on this machine."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from salience_detr.benchmark.measurements import OURS, Benchmark, Settings
from salience_detr.benchmark.measurements import build as build_detector
from salience_detr.benchmark.measurements import run as run_benchmark
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.report import as_json, as_markdown
from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.benchmark import parse_args
from salience_detr.config import resolve_device
from salience_detr.utils.files import check_result_path, write_text

DEFAULT_CALLS = {"cpu": (5, 1), "cuda": (20, 3)}  # timed ones, and those before them


def make_settings(args: argparse.Namespace) -> Settings:
    """Return checked settings, with the number of classes of the config's model.

    Raises:
        ConfigError, CheckpointError, ValueError, OSError: an option, the config or the weights
            cannot be used.
    """
    # Before the long work.
    check_result_path(args.json, "--json")
    check_result_path(args.markdown, "--markdown")
    device = resolve_device(args.device).type

    # The first calls on a GPU compile and tune; a CPU is slow.
    repeats, warmup = DEFAULT_CALLS[device]
    if args.repeats is not None:
        repeats = args.repeats
    if args.warmup is not None:
        warmup = args.warmup

    compare = args.compare
    if "all" in compare:
        compare = OTHER_DETECTORS

    # What is named twice is measured once.
    settings = Settings(
        config_file=args.config_file,
        overrides=tuple(args.opts),
        trust_config=args.trust_config,
        weights=args.weights,
        num_classes=80,
        size=tuple(args.size),
        device=device,
        dtype=args.dtype,
        modes=tuple(dict.fromkeys(args.modes)),
        operators=tuple(dict.fromkeys(args.operator)),
        batch_sizes=tuple(sorted({1, *args.batch_sizes})),
        compare=tuple(dict.fromkeys(compare)),
        warmup=warmup,
        repeats=repeats,
    )

    # Built at once, so that a mistake ends the program before the first measurement.
    model = build_detector(settings, OURS)
    return replace(settings, num_classes=getattr(model, "num_classes", settings.num_classes))


def make_benchmark(settings: Settings) -> Benchmark:
    """Return a benchmark of the installed detectors, with notes on missing ones and on load."""
    present = [name for name in settings.compare if find_spec(OTHER_DETECTORS[name].package)]
    missing = [OTHER_DETECTORS[name].label for name in settings.compare if name not in present]
    benchmark = Benchmark(replace(settings, compare=tuple(present)))

    # A reader of the table cannot know that the machine was busy.
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if load > cores / 4:
        start = f"load {load:.1f} on {cores} cores at the start"
        benchmark.notes.append(f"Other work ran on the machine ({start}): times vary.")

    # torchvision is a requirement of this package, so it is there.
    if missing:
        reason = "transformers is not installed; pip install 'salience_detr[compare]'"
        benchmark.notes.append(f"{', '.join(missing)}: {reason}.")
    return benchmark


def write_files(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Write the results so far to the files that are asked for."""
    if args.markdown:
        write_text(args.markdown, as_markdown(benchmark))
    if args.json:
        write_text(args.json, as_json(benchmark))


def run(args: argparse.Namespace) -> int:
    """Measure, and print and write the results."""
    benchmark = make_benchmark(make_settings(args))

    # After an interrupt, too: what was measured so far is printed and written.
    keep = partial(write_files, benchmark, args)
    finished = run_benchmark(benchmark, keep=keep)
    print(as_markdown(benchmark), end="")
    keep()
    return 0 if finished else 130


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
