#!/usr/bin/env python
"""Convert a checkpoint of the published implementation into this project's names, and say what was done."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from salience_detr.checkpoint import (
    CheckpointError,
    convert_reference_checkpoint,
    read_checkpoint,
    save_weights,
)
from salience_detr.checkpoint.loading import describe, is_reference_checkpoint, state_dict_of
from salience_detr.checkpoint.reference_conversion import dropped_names


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", metavar="IN", help="the published file (.pth), or its URL")
    parser.add_argument("output", metavar="OUT", type=Path, help=".pth or .safetensors")
    parser.add_argument(
        "--all-classes", action="store_true", help="keep all class rows, not COCO's 80 used ones"
    )
    args = parser.parse_args(argv)
    try:
        source = state_dict_of(read_checkpoint(args.input), args.input)
        if not is_reference_checkpoint(source):
            raise CheckpointError(
                f"{args.input} looks like {describe(source)}, not like a published Salience DETR"
            )
        options = {"category_ids": None} if args.all_classes else {}
        converted = convert_reference_checkpoint(source, **options)
        save_weights(converted, args.output)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tensors = Counter(name.partition(".")[0] for name in converted)
    numbers: Counter[str] = Counter()
    for name, tensor in converted.items():
        numbers[name.partition(".")[0]] += tensor.numel()
    rows = [(part, tensors[part], numbers[part] / 1e6) for part in tensors]
    rows.append(("total", len(converted), sum(numbers.values()) / 1e6))
    print(
        tabulate(
            rows, headers=("part", "tensors", "numbers (M)"), floatfmt=".2f", tablefmt="github"
        )
    )
    dropped = dropped_names(source)
    print(
        f"\nleft out, as constants or repetitions ({len(dropped)}): {', '.join(dropped) or 'nothing'}"
    )
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
