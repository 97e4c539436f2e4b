"""Measure a config's model, and detectors of other packages beside it, on this machine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from salience_detr.benchmark import form_table
from salience_detr.benchmark.form_table import FormTable
from salience_detr.benchmark.forms import check_form_size, open_predictor
from salience_detr.benchmark.measurements import OURS, Benchmark, Settings
from salience_detr.benchmark.measurements import build as build_detector
from salience_detr.benchmark.measurements import run as run_benchmark
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.report import as_json, as_markdown
from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.benchmark import parse_args
from salience_detr.config import resolve_device
from salience_detr.predictor import dataset_metadata, is_at_hand
from salience_detr.utils.files import check_output_dir, check_result_path, write_text

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
    device = "cpu" if "all" in args.modes else resolve_device(args.device).type

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

    benchmark.notes += notes_on_load()

    # torchvision is a requirement of this package, so it is there.
    if missing:
        reason = "transformers is not installed; pip install 'salience_detr[compare]'"
        benchmark.notes.append(f"{', '.join(missing)}: {reason}.")
    return benchmark


def notes_on_load() -> list[str]:
    """Return a note if the machine is busy, which a reader of the table could not know."""
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if load <= cores / 4:
        return []

    start = f"load {load:.1f} on {cores} cores at the start"
    return [f"Other work ran on the machine ({start}): times vary."]


def make_form_table(settings: Settings, exports: Path | None) -> FormTable:
    """Return a table of the forms, which are measured on the CPU.

    Raises:
        ConfigError, CheckpointError, ValueError, OSError: the config, the weights or the folder
            cannot be used, or the config resizes images of this size.
    """
    if exports is not None:
        check_output_dir(exports, option="--exports")
    predictor = open_predictor(settings, dtype="float32", optimize="none")
    check_form_size(settings, predictor)

    notes = notes_on_load()
    has_data = is_at_hand(dataset_metadata(predictor.config))
    if settings.weights and not has_data:
        notes.append("AP is left out: the test set of the config is not at hand.")
    return FormTable(settings, exports, bool(settings.weights) and has_data, notes=notes)


def run(args: argparse.Namespace) -> int:
    """Measure, and print and write the results."""
    settings = make_settings(args)
    if "all" in settings.modes:
        forms = make_form_table(settings, args.exports)
        as_texts = partial(form_table.as_markdown, forms), partial(form_table.as_json, forms)
        return print_results(args, partial(form_table.run, forms), *as_texts)

    benchmark = make_benchmark(settings)
    as_texts = partial(as_markdown, benchmark), partial(as_json, benchmark)
    return print_results(args, partial(run_benchmark, benchmark), *as_texts)


def print_results(
    args: argparse.Namespace,
    measure: Callable[..., bool],
    markdown: Callable[[], str],
    json: Callable[[], str],
) -> int:
    """Measure, and print and write the results; return the exit code.

    Args:
        measure: function that returns False if it was interrupted; it calls its argument ``keep``
            whenever there are results.
        markdown, json: functions that return the results so far.
    """

    def keep() -> None:
        if args.markdown:
            write_text(args.markdown, markdown())
        if args.json:
            write_text(args.json, json())

    # After an interrupt, too: what was measured so far is printed and written.
    finished = measure(keep=keep)
    print(markdown(), end="")
    keep()
    return 0 if finished else 130


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
