"""Convert annotations of Pascal VOC or YOLO to COCO's format, or split a file in that format.

%(prog)s voc VOCdevkit/VOC2007 --output data/voc
%(prog)s yolo data.yaml --output data/mine
%(prog)s coco instances_default.json images --val-fraction 0.2 --output data/mine

writes OUTPUT/annotations/instances_SPLIT.json for each split, and prints where the images are.
Nothing is written if no image or no box would be left.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number

# Part of a VOC data set that is drawn for validation where it has no splits.
VOC_FRACTION = 0.2


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    formats = parser.add_subparsers(dest="format", required=True)

    voc = formats.add_parser("voc", help="XML files")
    add = voc.add_argument
    add("source", type=Path, help="folder of the data set; lists are in ImageSets/Main/SPLIT.txt")
    add("--annotations", type=Path, help="folder of the XML files (default: SOURCE/Annotations)")
    add("--images", type=Path, help="folder of the images (default: SOURCE/JPEGImages)")
    add("--classes", default="", help="A,B,... in the order of their ids (default: all, sorted)")
    add("--zero-based", action="store_true", help="corners count from 0, not, as VOC's, from 1")
    add("--drop-difficult", action="store_true", help="leave out objects that are difficult")

    yolo = formats.add_parser("yolo", help="text files")
    add = yolo.add_argument
    add("source", type=Path, help="data.yaml, obj.data or classes.txt, or the folder with it")

    coco = formats.add_parser("coco", help="JSON file in COCO's format, to be split")
    coco.add_argument("source", type=Path, help="annotations, or folder with them and the images")
    coco.add_argument("images", nargs="?", type=Path, help="folder of the images")

    workers = os.cpu_count() or 1
    for subparser in (voc, yolo, coco):
        add = subparser.add_argument
        default = f" (default: {VOC_FRACTION} without splits)" if subparser is voc else ""
        add("--val-fraction", type=float, help=f"part drawn for validation{default}")
        add("--split-by", metavar="REGEX", help="images stay together whose first group is equal")
        add("--output", type=Path, required=True, metavar="DIR")
        add("--overwrite", action="store_true", help="replace an earlier conversion in --output")
        add("--workers", type=number(int, 0), default=workers, help="processes that read")

    args = parser.parse_args(argv)
    if args.split_by is not None and not args.val_fraction:
        parser.error(f"--split-by {args.split_by} goes with --val-fraction: add it")
    return args
