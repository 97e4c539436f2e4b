#!/usr/bin/env python
"""Average precision of a detections file in COCO's results format, as --eval-only writes it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

from salience_detr.results import METRICS, ResultsError, class_precisions, evaluate, load, summary


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    parser.add_argument("--classes", action="store_true", help="print AP per class too")
    args = parser.parse_args(argv)
    try:
        evaluation = evaluate(*load(args.results, args.annotations))
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tabulate([summary(evaluation)], headers=METRICS, floatfmt=".1f", tablefmt="github"))
    if args.classes and evaluation is not None:
        per_class = [(name, 100 * float(np.mean(x))) for name, x in class_precisions(evaluation).items()]
        print(tabulate(per_class, headers=("class", "AP"), floatfmt=".1f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
