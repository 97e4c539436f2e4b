"""Detect objects on images and videos, and draw the detections.

    %(prog)s --config-file F --weights W --input a.jpg folder 'shots/*.png' film.mp4 --output out
    %(prog)s --config-file F --weights W --input film.mp4 --output out --track --csv results.csv
    %(prog)s --config-file F --weights W --input large.tif --output out --tile 640 --save-crops
    %(prog)s --config-file F --weights W --input folder --output out --classes scratch pit
    %(prog)s --config-file F --weights W --input rtsp://camera/stream --output out
    find shots -name '*.png' | %(prog)s --config-file F --weights W --input - --output out
    %(prog)s --config-file F --weights W --webcam 0 --output out
    %(prog)s --weights model.onnx --input a.jpg --output out
    torchrun --nproc-per-node 4 -m salience_detr predict ...    (shares the inputs)

--json writes a file in COCO's format: images, categories, and annotations with bbox (x, y, width,
height), category_id of the data set, score, and track_id where there is one. Each frame of a video
is an image of its own. --csv writes a row for each detection. Frames are counted from 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number, score_threshold
from salience_detr.utils.drawing_options import add_drawing_arguments

INPUT_HELP = (
    "images, videos, folders, globs, http addresses of files, a camera (0), a stream (rtsp://...), "
    "or - for a list of paths on standard input"
)


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_detector()

    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help=INPUT_HELP)
    source.add_argument(
        "--webcam",
        type=number(int, 0, 2**31 - 1),
        metavar="N",
        help="camera; frames may be dropped",
    )
    add = parser.add_argument
    timeout_help = "without a frame until a stream has ended (default: %(default)g)"
    seconds = number(float, 0.1)
    add("--stream-timeout", type=seconds, default=30.0, metavar="SECONDS", help=timeout_help)
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the drawings")

    score_help = "lowest score, or best: the stored one of each class (default: %(default)s)"
    add("--score-threshold", type=score_threshold, default=0.5, metavar="S", help=score_help)
    names_help = "do not compare the classes of the weights with the data set's"
    add("--ignore-class-names", action="store_true", help=names_help)
    add("--classes", nargs="+", metavar="CLASS", help="names, or category ids of the data set")
    add("--tile", type=int, metavar="SIZE", help="detect on overlapping squares of SIZE pixels")
    add("--tile-overlap", type=float, metavar="PART", help="overlap of tiles (default: 0.2)")
    add("--tiles-only", action="store_true", help="do not detect on the whole image besides")

    add("--track", action="store_true", help="number the objects of a video")
    add("--salience", action="store_true", help="write salience maps, as NAME_salience.*")
    add("--save-crops", action="store_true", help="cut detections out, as crops/CLASS/NAME_K.jpg")
    add("--json", type=Path, metavar="FILE", help="write detections in COCO's format")
    add("--csv", type=Path, metavar="FILE", help="write detections as they come, a row each")

    labels_help = "write detections on images as a COCO data set for CVAT or Label Studio"
    add("--pre-annotations", type=Path, metavar="FILE", help=labels_help)

    add("--dtype", default="float32", help="float32, bfloat16, float16 (default: %(default)s)")
    parser.add_optimize()
    add("--batch-size", type=int, metavar="N", help="images at a time (default: GPU 4, CPU 1)")
    add_drawing_arguments(parser)
    args = parser.parse(argv)

    if args.tile is None and (args.tiles_only or args.tile_overlap is not None):
        parser.error("--tile-overlap and --tiles-only need --tile SIZE")
    return args
