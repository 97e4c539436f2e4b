"""Best score thresholds, made ready for files of weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pycocotools.coco import COCO

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.data.classes import ClassList
from salience_detr.evaluation.results import category_names
from salience_detr.evaluation.score_curves import BestThresholds, to_store
from salience_detr.export.thresholds import read_model_classes
from salience_detr.utils.errors import shorten


def thresholds_by_file(
    best: BestThresholds | None, coco: COCO, args: argparse.Namespace
) -> dict[Path, ScoreThresholds]:
    """Return what is to be stored in each file of --save-thresholds.

    Raises:
        ResultsError: no detection is correct.
        CheckpointError, ExportError, ValueError: a file is none of weights, or of other classes.
    """
    if not args.save_thresholds:
        return {}

    # The last folders tell data sets apart, without this machine's path.
    source = "/".join(args.annotations.resolve().parts[-3:])
    thresholds = to_store(best, iou_threshold=args.iou_threshold, source=source)
    measured = ClassList(tuple(category_names(coco)), tuple(sorted(coco.getCatIds())))

    stored = {}
    for path in args.save_thresholds:
        classes = read_model_classes(path)
        stored[path], others = thresholds.for_weights(measured, classes, source=str(path))
        if others:
            print(
                f"note: {path} gets the threshold of all classes for those that {source} lacks: "
                f"{shorten(others)}",
                file=sys.stderr,
            )
    return stored
