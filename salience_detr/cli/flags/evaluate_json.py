"""Compute the average precision of a detections file in COCO's results format.

%(prog)s RESULTS.json ANNOTATIONS.json --classes
%(prog)s RESULTS.json ANNOTATIONS.json --show-dir shown --show-count 50

RESULTS.json is the file that train_net.py --eval-only or demo.py --json writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number
from salience_detr.utils.drawing_options import add_drawing_arguments, has_drawing_arguments

SCORE_THRESHOLD = 0.3  # that of evaluation/comparison.py, which takes seconds to import


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("results", type=Path, metavar="RESULTS.json")
    add("annotations", type=Path, metavar="ANNOTATIONS.json")
    add("--classes", action="store_true", help="print AP per class too")

    add = parser.add_argument_group("drawings").add_argument
    add("--show-dir", type=Path, metavar="DIR", help="draw ground truth and detections into DIR")
    add("--images", type=Path, metavar="DIR", help="(default: looked for beside ANNOTATIONS)")
    score_help = f"lowest score of drawn detections (default: {SCORE_THRESHOLD})"
    add("--score-threshold", type=number(float, 0, 1), metavar="S", help=score_help)
    count_help = "draw the first N images (default: all)"
    add("--show-count", type=number(int, 1), metavar="N", help=count_help)
    add_drawing_arguments(parser)
    args = parser.parse_args(argv)

    # The default is set below, so that a given score can be told from none.
    drawing_flags = {args.images, args.score_threshold, args.show_count}
    if args.show_dir is None and drawing_flags != {None}:
        parser.error("--images, --score-threshold and --show-count go with --show-dir DIR")
    if args.show_dir is None and has_drawing_arguments(args):
        parser.error("--line-width, --colors and the other options of drawings go with --show-dir")
    if args.score_threshold is None:
        args.score_threshold = SCORE_THRESHOLD
    return args
