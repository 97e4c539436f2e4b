#!/usr/bin/env python
"""Measure a config's model, and detectors of other packages beside it, on this machine.

benchmark.py --config-file F --device cpu --modes eager amp --batch-sizes 1 2 --compare all
benchmark.py --config-file F --operator compiled reference --modes eager training

Prints parameters, GMACs, latency, images per second and peak memory by batch size, and milliseconds
by stage. Every measurement runs in a process of its own; one that fails is a row with the reason.
Ctrl-C prints what was measured so far.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from salience_detr.benchmark.measurements import MODES, OPERATORS, OURS, Benchmark, Settings
from salience_detr.benchmark.measurements import build as build_detector
from salience_detr.benchmark.measurements import run as run_benchmark
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.report import as_json, as_markdown
from salience_detr.checkpoint import CheckpointError
from salience_detr.config import ConfigError, resolve_device
from salience_detr.utils.errors import print_error
from salience_detr.utils.files import check_result_path, write_text

CHOICES = {"modes": MODES, "operator": OPERATORS, "compare": ("all", *OTHER_DETECTORS)}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    modes = ", ".join(MODES)
    others = ", ".join(OTHER_DETECTORS)
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="configs/salience_detr_r50_4scale_12ep.py", metavar="FILE")
    add("--weights", metavar="FILE", help="checkpoint of the config's model (default: random)")
    add("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    add("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    add("--batch-sizes", nargs="+", default=["1", "2", "4"], metavar="N", help="default: 1 2 4")
    add("--modes", nargs="+", default=["eager", "amp"], metavar="MODE", help=f"some of {modes}")
    add("--operator", nargs="+", default=["compiled"], metavar="NAME", help="compiled, reference")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16"), help="of the amp modes")
    add("--repeats", type=int, default=20 if on_gpu else 5, metavar="N", help="timed calls")
    add("--warmup", type=int, default=3 if on_gpu else 1, metavar="N", help="calls before them")
    add("--compare", nargs="+", default=[], metavar="NAME", help=f"all, or some of {others}")
    add("--compare-batch", action="store_true", help="compare at all batch sizes, not at 1 only")
    add("--json", type=Path, metavar="FILE", help="write all results to FILE")
    add("--markdown", type=Path, metavar="FILE", help="write the tables to FILE")
    add("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(argv)

    # Options that take several words also take the overrides that follow them.
    for option in ("batch_sizes", *CHOICES):
        words = getattr(args, option)
        args.opts += [word for word in words if "=" in word]
        setattr(args, option, [word for word in words if "=" not in word])
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError or OSError for an option that cannot be used, before the long work."""
    for option, known in CHOICES.items():
        for word in getattr(args, option):
            if word not in known:
                raise ConfigError(f"--{option} {word!r} is unknown; use {', '.join(known)}")
    for option in ("modes", "operator"):
        if not getattr(args, option):
            raise ConfigError(f"--{option} names none; use some of {', '.join(CHOICES[option])}")

    for word in args.batch_sizes:
        if not word.isdecimal() or int(word) < 1:
            raise ConfigError(f"--batch-sizes {word!r} is not a number of images from 1 on")
    for option, least in (("repeats", 1), ("warmup", 0)):
        if getattr(args, option) < least:
            raise ConfigError(f"--{option} is {getattr(args, option)}; it must be at least {least}")
    if min(args.size) < 1:
        raise ConfigError(f"--size is {args.size[0]} {args.size[1]}; use at least one pixel a side")

    check_result_path(args.json, "--json")
    check_result_path(args.markdown, "--markdown")
    resolve_device(args.device)


def make_settings(args: argparse.Namespace) -> Settings:
    """Return checked settings, with the number of classes of the config's model.

    Raises:
        ConfigError, CheckpointError, ValueError, OSError: an option, the config or the weights
            cannot be used.
    """
    check_args(args)
    compare = args.compare
    if "all" in compare:
        compare = OTHER_DETECTORS

    # What is named twice is measured once.
    settings = Settings(
        config_file=args.config_file,
        overrides=tuple(args.opts),
        weights=args.weights,
        num_classes=80,
        size=tuple(args.size),
        device=args.device,
        dtype=args.dtype,
        modes=tuple(dict.fromkeys(args.modes)),
        operators=tuple(dict.fromkeys(args.operator)),
        batch_sizes=tuple(sorted({1, *map(int, args.batch_sizes)})),
        compare=tuple(dict.fromkeys(compare)),
        compare_batch=args.compare_batch,
        warmup=args.warmup,
        repeats=args.repeats,
    )

    # Built at once, so that a mistake ends the program before the first measurement.
    model = build_detector(settings, OURS)
    return replace(settings, num_classes=getattr(model, "num_classes", settings.num_classes))


def make_benchmark(settings: Settings) -> Benchmark:
    """Return a benchmark of the installed detectors, with notes on missing ones and on load."""
    missing: dict[str, list[str]] = {}
    present = []
    for name in settings.compare:
        other = OTHER_DETECTORS[name]
        if find_spec(other.package):
            present.append(name)
        else:
            missing.setdefault(other.package, []).append(other.label)

    benchmark = Benchmark(replace(settings, compare=tuple(present)))

    # A reader of the table cannot know that the machine was busy.
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if load > cores / 4:
        start = f"load {load:.1f} on {cores} cores at the start"
        benchmark.notes.append(f"Other work ran on the machine ({start}): times vary.")

    for package, labels in missing.items():
        remedy = "pip install 'salience_detr[compare]'"
        benchmark.notes.append(f"{', '.join(labels)}: {package} is not installed; {remedy}.")
    return benchmark


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        benchmark = make_benchmark(make_settings(args))
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print_error(error)
        return 2

    # After an interrupt, too: what was measured so far is printed and written.
    finished = run_benchmark(benchmark)
    tables = as_markdown(benchmark)
    print(tables, end="")
    for file, text in ((args.markdown, tables), (args.json, as_json(benchmark))):
        if file:
            write_text(file, text)
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
