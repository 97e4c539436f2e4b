"""Count parameters, GMACs and activations of models by stage, with fvcore."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.config import instantiate
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.benchmark.flops import ModelCost, StageCost, count_flops
from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.analyze_model import parse_args
from salience_detr.config import load_config

HEADERS = ("parameters (M)", "GMACs", "activations (M)")


def print_cost(cost: ModelCost) -> None:
    """Print a table of the stages, and the operators that fvcore could not count."""
    headers = ("stage", *HEADERS)
    print(tabulate(cost.stages, headers, floatfmt=".2f", tablefmt="github"))
    if cost.uncounted:
        calls = [f"{times} x {name}" for name, times in cost.uncounted.items()]
        print(f"not counted: {', '.join(calls)}")


def run(args: argparse.Namespace) -> None:
    """Print the costs of each model, and a table of their totals if there are several."""
    height, width = args.size
    totals: list[StageCost] = []
    for config_file in tqdm(args.config_file, desc="models", disable=len(args.config_file) == 1):
        config = load_config(config_file, args.opts, trust=args.trust_config)
        model = instantiate(config.model)
        cost = count_flops(model, height, width)
        print(f"{config_file} at {height}x{width}")
        print_cost(cost)
        print(flush=True)  # the next model may take minutes
        totals.append(cost.stages[-1]._replace(stage=Path(config_file).stem))

    if len(totals) > 1:
        print(tabulate(totals, ("config", *HEADERS), floatfmt=".1f", tablefmt="github"))


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
