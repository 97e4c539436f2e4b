"""Compute the average precision of a detections file in COCO's results format.

tools/evaluate_json.py RESULTS.json ANNOTATIONS.json --classes
tools/evaluate_json.py RESULTS.json ANNOTATIONS.json --show-dir shown --show-count 50

RESULTS.json is the file that train_net.py --eval-only or demo.py --json writes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tabulate import tabulate

from salience_detr.cli.arguments import Parser, number, print_skipped, run_program
from salience_detr.evaluation.comparison import (
    SCORE_THRESHOLD,
    find_image_folder,
    write_comparisons,
)
from salience_detr.evaluation.results import (
    METRICS,
    category_names,
    class_precisions,
    evaluate,
    load_results,
    summary,
)
from salience_detr.utils.drawing_options import (
    add_drawing_arguments,
    drawing_options,
    has_drawing_arguments,
)
from salience_detr.utils.files import check_output_dir


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
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


def run(args: argparse.Namespace) -> None:
    """Print the metrics, and draw the images into --show-dir.

    Raises:
        ResultsError: detections, annotations or images cannot be used.
        OSError: a drawing cannot be written.
    """
    # The folders are checked before the evaluation, which may take minutes.
    options = drawing_options(args)
    results = load_results(args.results, args.annotations)
    options.palette(category_names(results.coco))
    if args.show_dir is not None:
        image_root = find_image_folder(args.annotations, results.coco, args.images)
        check_output_dir(args.show_dir, option="--show-dir")

    evaluation = evaluate(results)
    metrics = np.zeros(len(METRICS))
    if results.detections:
        metrics = np.array(list(summary(evaluation).values()), dtype=float)  # NaN for None
    print(tabulate([metrics], METRICS, tablefmt="github", floatfmt=".1f"))

    if args.classes and results.detections:
        # A class may be called 1e5: that is no number.
        rows = [(name, 100 * x.mean()) for name, x in class_precisions(evaluation).items()]
        style = {"tablefmt": "github", "floatfmt": ".1f", "disable_numparse": [0]}
        print(tabulate(rows, ("class", "AP"), **style))

    if args.show_dir is not None:
        drawn, notes = write_comparisons(
            results,
            image_root,
            args.show_dir,
            score_threshold=args.score_threshold,
            limit=args.show_count,
            options=options,
        )
        print(f"{drawn} images drawn in {args.show_dir}: ground truth left, detections right")
        print_skipped(notes, "images")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
