"""List all problems of a data set: every annotation and image is read.

%(prog)s train.json images/train --val val.json images/val
%(prog)s --data-dir data/mine
%(prog)s --data-dir data/yolo/data.yaml
%(prog)s train.json images/train --fix train_fixed.json

The exit code is 0 without errors (there may be warnings), 1 with errors, and 2 if the files cannot
be read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("json", nargs="?", type=Path, help="annotations")
    add("images", nargs="?", type=Path, help="folder of their images")
    add("--val", nargs=2, type=Path, metavar=("JSON", "IMAGES"), help="second set, for validation")
    parser.add_splits()
    add("--fix", type=Path, metavar="OUT.json", help="write the (first) set, repaired")
    add("--show", type=int, default=5, metavar="N", help="examples of each kind of problem")

    workers = os.cpu_count() or 1
    add("--workers", type=number(int, 0), default=workers, help="processes that read images")
    args = parser.parse_args(argv)

    has_flags = bool(args.data_dir or args.train_json or args.val_json)
    if has_flags and args.json:
        parser.error(f"{args.json} and --data-dir (or --train-json, ...) name data twice")
    if not has_flags and not args.images:
        parser.error("give JSON and IMAGES, or --data-dir (or --train-json, --train-images, ...)")
    if args.split_by is not None and args.val_fraction is None:
        parser.error(f"--split-by {args.split_by} goes with --val-fraction: add it")
    if has_flags and args.val:
        parser.error("--val goes with JSON and IMAGES; --data-dir finds both sets")
    return args
