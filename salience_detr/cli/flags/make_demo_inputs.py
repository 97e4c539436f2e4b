"""Prepare the inputs of the demo: some images, and a video of a plate that slides past a camera.

%(prog)s --output DIR --images datasets/surface_defects/val
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR")
    add("--images", type=Path, metavar="DIR", help="folder to take JPEG images from")
    add("--num-images", type=int, default=8)
    add("--seconds", type=float, default=4, help="length of the video")
    add("--image-size", type=int, default=320, help="side of the video in pixels")
    add("--size", type=int, dest="image_size", help=argparse.SUPPRESS)  # its earlier name
    return parser.parse_args(argv)
