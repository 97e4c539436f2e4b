#!/usr/bin/env python
"""Count the parameters, multiply-accumulates (GMACs) and activations of configs' models, by stage, with fvcore."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.config import instantiate
from tabulate import tabulate
from tqdm import tqdm

from salience_detr.benchmark.flops import count_flops
from salience_detr.config import ConfigError, load_config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file", required=True, action="append", metavar="FILE", help="may be repeated"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the configs")
    args = parser.parse_intermixed_args(argv)
    headers = ("parameters (M)", "GMACs", "activations (M)")
    totals = []
    for config_file in tqdm(args.config_file, desc="models", disable=len(args.config_file) == 1):
        try:
            model = instantiate(load_config(config_file, args.opts).model)
        except (ConfigError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        found = count_flops(model, *args.size)
        print(f"{config_file} at {args.size[0]}x{args.size[1]}")
        print(
            tabulate(found.stages, headers=("stage", *headers), floatfmt=".2f", tablefmt="github"),
            flush=True,
        )
        if found.uncounted:
            print(
                "not counted: "
                + ", ".join(f"{times} x {name}" for name, times in found.uncounted.items())
            )
        print()
        totals.append((Path(config_file).stem, *found.stages[-1][1:]))
    if len(totals) > 1:
        print(tabulate(totals, headers=("config", *headers), floatfmt=".1f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
