"""COCO's evaluation at several times the speed, where a package for it is installed."""

from __future__ import annotations

import contextlib
import io
import logging
from importlib import import_module
from typing import Any

from detectron2.evaluation import DatasetEvaluator, coco_evaluation
from detectron2.evaluation.evaluator import DatasetEvaluators
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

logger = logging.getLogger(__name__)


def use_fast_evaluation() -> None:
    """Let detectron2's COCOEvaluator use ``faster-coco-eval`` if its own fast one is not built.

    The numbers are the same. Without either, pycocotools is used.
    """
    # detectron2 puts the slow one here where its compiled code is missing.
    if coco_evaluation.COCOeval_opt is not coco_evaluation.COCOeval:
        return

    with contextlib.suppress(ImportError):
        import_module("faster_coco_eval")
        coco_evaluation.COCOeval_opt = build_fast_evaluation


def build_fast_evaluation(coco_gt: COCO, coco_dt: COCO, iou_type: str) -> COCOeval:
    """Build faster-coco-eval's evaluation, or pycocotools' where image ids are no numbers."""
    numbers = [isinstance(image_id, int) for image_id in coco_gt.getImgIds()]
    if not all(numbers):
        return COCOeval(coco_gt, coco_dt, iou_type)

    faster = import_module("faster_coco_eval").COCOeval_faster
    return faster(coco_gt, coco_dt, iou_type, print_function=print)


class QuietEvaluator(DatasetEvaluators):
    """Evaluator whose prints go to the log as details, instead of to the console.

    pycocotools prints what it does, and twelve lines of results.
    """

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        super().__init__([evaluator])

    def evaluate(self) -> dict[str, Any]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            results: dict[str, Any] = super().evaluate()

        if printed.getvalue():
            logger.debug("COCO's evaluation:\n%s", printed.getvalue().rstrip())
        return results
