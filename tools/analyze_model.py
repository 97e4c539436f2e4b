#!/usr/bin/env python
"""Count parameters, multiply-accumulates (GMACs) and activations of models by stage, with fvcore.

tools/analyze_model.py --config-file configs/salience_detr_r50_4scale_12ep.py
tools/analyze_model.py --config-file F --config-file G --size 640 640 model.num_classes=5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.config import instantiate
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.benchmark.flops import ModelCost, StageCost, count_flops
from salience_detr.config import ConfigError, load_config
from salience_detr.utils.errors import print_error

HEADERS = ("parameters (M)", "GMACs", "activations (M)")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, action="append", metavar="FILE", help="may be repeated")
    add("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    add("opts", nargs="*", metavar="key=value", help="overrides of the configs")
    return parser.parse_intermixed_args(argv)


def print_cost(cost: ModelCost) -> None:
    """Print a table of the stages, and the operators that fvcore could not count."""
    headers = ("stage", *HEADERS)
    print(tabulate(cost.stages, headers, floatfmt=".2f", tablefmt="github"))
    if cost.uncounted:
        calls = [f"{times} x {name}" for name, times in cost.uncounted.items()]
        print(f"not counted: {', '.join(calls)}")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    height, width = args.size
    totals: list[StageCost] = []
    for config_file in tqdm(args.config_file, desc="models", disable=len(args.config_file) == 1):
        try:
            model = instantiate(load_config(config_file, args.opts).model)
        except (ConfigError, ValueError) as error:
            print_error(error)
            return 2

        cost = count_flops(model, height, width)
        print(f"{config_file} at {height}x{width}")
        print_cost(cost)
        print(flush=True)  # the next model may take minutes
        totals.append(cost.stages[-1]._replace(stage=Path(config_file).stem))

    if len(totals) > 1:
        print(tabulate(totals, ("config", *HEADERS), floatfmt=".1f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
