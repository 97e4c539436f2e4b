#!/usr/bin/env python
"""Average precision of a detections file in COCO's results format, as --eval-only writes it.

tools/evaluate_json.py RESULTS.json ANNOTATIONS.json --classes
tools/evaluate_json.py RESULTS.json ANNOTATIONS.json --show-dir shown --show-count 50
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

from salience_detr.evaluation.comparison import SCORE_THRESHOLD, find_images, write_comparisons
from salience_detr.evaluation.results import (
    METRICS,
    ResultsError,
    class_precisions,
    evaluate,
    load,
    summary,
)
from salience_detr.utils.files import check_output_dir


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    parser.add_argument("--classes", action="store_true", help="print AP per class too")
    group = parser.add_argument_group("drawings")
    group.add_argument(
        "--show-dir",
        type=Path,
        metavar="DIR",
        help="draw ground truth beside detections, into here",
    )
    group.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the images (default: looked for by ANNOTATIONS)",
    )
    group.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help=f"of drawn detections (default: {SCORE_THRESHOLD})",
    )
    group.add_argument(
        "--show-count", type=int, metavar="N", help="draw the first N images (default: all)"
    )
    args = parser.parse_args(argv)
    for option in ("images", "score_threshold", "show_count"):
        if args.show_dir is None and getattr(args, option) is not None:
            parser.error(f"--{option.replace('_', '-')} goes with --show-dir DIR")
    if args.score_threshold is None:
        args.score_threshold = SCORE_THRESHOLD
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold is {args.score_threshold:g}; it lies between 0 and 1")
    if args.show_count is not None and args.show_count < 1:
        parser.error(f"--show-count is {args.show_count}; it must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        coco, results, images = load(args.results, args.annotations)
        if args.show_dir is not None:
            image_root = find_images(args.annotations, coco, args.images)
            check_output_dir(args.show_dir, option="--show-dir")
        evaluation = evaluate(coco, results, images)
        print(tabulate([summary(evaluation)], headers=METRICS, floatfmt=".1f", tablefmt="github"))
        if args.classes and evaluation is not None:
            per_class = [
                (name, 100 * float(np.mean(x))) for name, x in class_precisions(evaluation).items()
            ]
            headers = ("class", "AP")
            print(
                tabulate(
                    per_class, headers, floatfmt=".1f", tablefmt="github", disable_numparse=[0]
                )
            )
        if args.show_dir is not None:
            drawn, notes = write_comparisons(
                coco, results, image_root, args.show_dir,
                images=images, score_threshold=args.score_threshold, count=args.show_count,
            )  # fmt: skip
            print(f"{drawn} images drawn in {args.show_dir}: ground truth left, detections right")
            if notes:
                print(f"{len(notes)} images were passed over:", *notes, sep="\n  ", file=sys.stderr)
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
