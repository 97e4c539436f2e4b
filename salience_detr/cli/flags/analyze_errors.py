"""Report what a detector gets wrong, and which score thresholds suit it best.

%(prog)s output/mine/inference/coco_instances_results.json \\
    data/mine/annotations/instances_val.json --save-thresholds output/mine/model_best.pth

RESULTS.json is the file that train_net.py --eval-only or demo.py --json writes. The output folder
gets report.md (which is printed too), report.json, worst.jpg, and drawings: confusion.png,
error_types.png, and score_curves.png with F1, precision and recall over the score threshold.

--nms compares thresholds and kinds of NMS (hard, box voting, soft) on these detections, which are
to be made with model.nms_iou_threshold=null model.nms_soft=False. Choose it on images that are not
of the test set, such as those of --val-fraction.

--save-thresholds stores the thresholds of the highest F1 in weights or exported models, for
score_threshold="best" of Predictor and for --score-threshold best.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number

# A sheet of more images would be too large to look at.
MAX_WORST = 400
# Those of evaluation/, which takes seconds to import.
SCORE_THRESHOLD = 0.3
BACKGROUND_IOU = 0.1


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("results", type=Path, metavar="RESULTS.json")
    add("annotations", type=Path, metavar="ANNOTATIONS.json")
    add("--images", type=Path, metavar="DIR", help="(default: looked for beside ANNOTATIONS)")
    add("--output", type=Path, metavar="DIR", help="(default: the folder errors beside RESULTS)")

    worst = number(int, 1, MAX_WORST)
    add("--worst", type=worst, default=16, metavar="N", help="images on the sheet (default: 16)")
    score = number(float, 0, 1)
    score_help = f"lowest score of counted detections (default: {SCORE_THRESHOLD}); AP takes all"
    add("--score-threshold", type=score, default=SCORE_THRESHOLD, metavar="S", help=score_help)
    iou = number(float, BACKGROUND_IOU, 1)
    iou_help = "lowest IoU of a correct detection with its box (default: 0.5)"
    add("--iou-threshold", type=iou, default=0.5, metavar="IOU", help=iou_help)
    nms_help = "IoU thresholds of a class-wise NMS to compare, such as 0.5 0.6 0.7"
    threshold = number(float, 0.01, 1)
    add("--nms", nargs="+", type=threshold, default=[], metavar="IOU", help=nms_help)
    save_help = "weights (.safetensors, .pth) or exported models (.onnx, .pt2, .xml)"
    add("--save-thresholds", nargs="+", type=Path, default=[], metavar="FILE", help=save_help)
    return parser.parse_args(argv)
