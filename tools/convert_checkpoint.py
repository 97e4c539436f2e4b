#!/usr/bin/env python
"""Convert a checkpoint of the published implementation into this project's names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from salience_detr.checkpoint import CheckpointError, convert_reference_checkpoint, read_checkpoint, save_weights


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", metavar="IN", help="the published file (.pth)")
    parser.add_argument("output", metavar="OUT", type=Path, help=".pth or .safetensors")
    parser.add_argument("--all-classes", action="store_true", help="keep all class rows, not COCO's 80 used ones")
    args = parser.parse_args(argv)
    try:
        source = read_checkpoint(args.input)
        options = {"category_ids": None} if args.all_classes else {}
        converted = convert_reference_checkpoint(source, **options)
        save_weights(converted, args.output)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {len(converted)} tensors, {sum(x.numel() for x in converted.values()) / 1e6:.1f} M numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
