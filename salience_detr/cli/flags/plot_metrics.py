"""Draw the metrics of training runs as PNG files.

%(prog)s output/mine                losses, AP, and what the last evaluation gives
%(prog)s output/one output/other    losses and AP of several runs in one image

An evaluation gives precision-recall, the confusion matrix, and F1, precision and recall over the
score threshold. They need its detections (RUN/inference*) and the annotations (from
RUN/config.yaml).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="output folder of train_net.py")
    add("--output", type=Path, metavar="DIR", help="for the images (default: RUN/plots)")
    add("--results", type=Path, metavar="FILE", help="detections (default: those in RUN)")
    add("--annotations", type=Path, metavar="FILE", help="(default: those of RUN/config.yaml)")

    score = number(float, 0, 1)
    add("--score-threshold", type=score, default=0.3, help="for the confusion matrix (0.3)")
    iou = number(float, 0.01, 1)
    iou_help = "of a correct detection, for confusion matrix and scores (0.5)"
    add("--iou-threshold", type=iou, default=0.5, metavar="IOU", help=iou_help)
    parser.add_trust()
    return parser.parse_args(argv)
