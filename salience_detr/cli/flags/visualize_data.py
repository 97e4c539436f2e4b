"""Draw a data set: the annotations of the file, or what the training loader yields.

%(prog)s --config-file configs/neu_det_r18.py --output drawn
%(prog)s --config-file F --data-dir data/mine --output drawn --augmented --count 50
%(prog)s --config-file F --output drawn --augmentation mosaic
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number

SPLITS = ("train", "val")


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_config()
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="DIR")
    add("--split", choices=SPLITS, default="train")
    add("--augmented", action="store_true", help="draw what the training loader yields")
    count = number(int, 1)
    add("--count", type=count, default=20, metavar="N", help="images, at most (default: 20)")
    parser.add_image_size()
    parser.add_data()
    parser.add_augmentation()

    args = parser.parse(argv)
    if args.augmentation is not None:
        args.augmented = True
    if args.augmented and args.split == "val":
        parser.error("--augmented and --augmentation go with --split train, which is augmented")
    return args
