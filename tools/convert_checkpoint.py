#!/usr/bin/env python
"""Convert a checkpoint into a file with the weights of a Salience DETR alone.

Checkpoints of the published implementation get this project's names. Of a checkpoint of
train_net.py the weights are kept: their exponential moving average (EMA) if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tabulate import tabulate
from torch import Tensor

from salience_detr.checkpoint import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    convert_reference_checkpoint,
    read_checkpoint,
    save_weights,
)
from salience_detr.checkpoint.backbone_conversion import describe
from salience_detr.checkpoint.files import find_state_dict
from salience_detr.checkpoint.reference_conversion import dropped_names, is_reference_checkpoint
from salience_detr.cli.arguments import Parser, run_program


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("input", metavar="IN", help="a published or own checkpoint (.pth), or its URL")
    add("output", metavar="OUT", type=Path, help="file to write, .safetensors or .pth")
    add("--all-classes", action="store_true", help="keep all class rows, not COCO's 80 used ones")
    add("--half", action="store_true", help="store float16: half the size, about three digits")
    add("--raw", action="store_true", help="take the trained weights, not their EMA")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights in this project's names, and the names that were left out.

    Raises:
        CheckpointError: if the file cannot be read, or is no Salience DETR.
    """
    content = read_checkpoint(args.input)
    if args.raw:
        content.pop("ema", None)
    state = dict(find_state_dict(content, args.input))

    left_out = []
    if is_reference_checkpoint(state):
        left_out = dropped_names(state)
        category_ids = None if args.all_classes else COCO_CATEGORY_IDS
        state = convert_reference_checkpoint(state, category_ids=category_ids)
    elif "query_selection.class_head.bias" not in state:
        raise CheckpointError(f"{args.input} looks like {describe(state)}, not a Salience DETR")

    if args.half:
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = tensor.half()
    return state, left_out


def print_summary(state: dict[str, Tensor], left_out: list[str], output: Path) -> None:
    """Print the tensors and numbers of each part of the model, and what was left out."""
    num_tensors: Counter[str] = Counter()
    num_values: Counter[str] = Counter()
    for name, tensor in state.items():
        part = name.partition(".")[0]
        num_tensors[part] += 1
        num_values[part] += tensor.numel()

    rows = [(part, num_tensors[part], num_values[part] / 1e6) for part in num_tensors]
    rows.append(("total", num_tensors.total(), num_values.total() / 1e6))
    headers = ("part", "tensors", "values (M)")
    print(tabulate(rows, headers=headers, floatfmt=".2f", tablefmt="github"))

    if left_out:
        print(f"\nleft out, as constants or repetitions ({len(left_out)}): {', '.join(left_out)}")
    print(f"\nwritten: {output} ({output.stat().st_size / 1e6:.1f} MB)")


def run(args: argparse.Namespace) -> None:
    """Write the converted weights, and print a summary."""
    state, left_out = convert(args)
    save_weights(state, args.output)
    print_summary(state, left_out, args.output)


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
