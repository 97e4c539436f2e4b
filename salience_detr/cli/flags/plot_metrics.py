"""Draw the metrics of training runs as PNG files.

%(prog)s output/mine                losses, AP, precision-recall, confusion matrix
%(prog)s output/one output/other    losses and AP of several runs in one image

Precision-recall and confusion matrix need the detections of an evaluation (RUN/inference*) and the
annotations (from RUN/config.yaml).
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
    parser.add_trust()
    return parser.parse_args(argv)
