"""Generate the "surface defects" data set: train and val images with COCO annotations.

%(prog)s                                   for the shipped configs
%(prog)s --output DIR --num-train 400 --image-size 240x320
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser

SPLITS = ("train", "val")


def image_size(text: str) -> tuple[int, int]:
    """Return (height, width) for "320" or "240x320".

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        message = f"{text!r} is neither a side nor HEIGHTxWIDTH in pixels"
        raise argparse.ArgumentTypeError(message) from None


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)

    # The folder in which the configs look for the data.
    output = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "surface_defects"

    add = parser.add_argument
    add("--output", type=Path, default=output, metavar="DIR", help="(default: %(default)s)")
    add("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    add("--num-train", type=int, default=4000, help="images to train on (default: %(default)s)")
    add("--num-val", type=int, default=300, help="images to validate on (default: %(default)s)")

    size_help = "side or HEIGHTxWIDTH in pixels (default: 320)"
    add("--image-size", type=image_size, default=(320, 320), help=size_help)
    add("--size", type=image_size, dest="image_size", help=argparse.SUPPRESS)  # its earlier name
    add("--seed", type=int, default=0)
    workers = os.cpu_count() or 1
    add("--workers", type=int, default=workers, help="processes (default: %(default)s)")
    add("--force", action="store_true", help="replace a data set made with other arguments")
    return parser.parse_args(argv)
