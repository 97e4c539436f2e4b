"""Compute the average precision of a detections file in COCO's results format."""

from __future__ import annotations

import argparse

import numpy as np
from tabulate import tabulate

from salience_detr.cli.arguments import print_skipped, run_program
from salience_detr.cli.flags.evaluate_json import parse_args
from salience_detr.evaluation.comparison import (
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
    drawing_options,
)
from salience_detr.utils.files import check_output_dir


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
