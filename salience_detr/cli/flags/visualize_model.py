"""Draw what happens inside a model on images.

%(prog)s --config-file F --weights W --input a.jpg folder 'shots/*.png' --output out
%(prog)s --config-file F --weights W --input a.jpg --output out \\
    --parts sampling cam --query 17

Writes NAME_salience_levels.png, NAME_tokens.png, NAME_proposals.png, NAME_sampling.png and
NAME_cam.png for each image, and queries.png, statistics of the queries of all images.
NAME_proposals.png shows the numbers of the best queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number

# Ending of the file of each part; "queries" is one file for all images.
ENDINGS = {
    "salience": "_salience_levels.png",
    "tokens": "_tokens.png",
    "proposals": "_proposals.png",
    "sampling": "_sampling.png",
    "cam": "_cam.png",
}
PARTS = [*ENDINGS, "queries"]


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_detector()
    add = parser.add_argument
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders or patterns")
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the drawings")

    parts_help = f"some of: {', '.join(PARTS)} (default: all)"
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=parts_help)
    query_help = "query of sampling and cam, from 0 (default: those of the best detections)"
    add("--query", type=number(int, 0), metavar="N", help=query_help)
    return parser.parse(argv)
