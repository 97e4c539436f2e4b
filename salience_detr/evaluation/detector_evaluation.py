"""Evaluation of a detector, whatever runs its model, on the test set of a config."""

from __future__ import annotations

import copy
import tempfile

from detectron2.config import instantiate
from omegaconf import DictConfig

from salience_detr.data.datasets import as_list, check_class_count
from salience_detr.evaluation.coco_evaluation import build_evaluator
from salience_detr.evaluation.fast_coco import QuietEvaluator
from salience_detr.predictor import Detector


def evaluate_detector(config: DictConfig, detector: Detector) -> dict[str, float]:
    """Return the metrics of a detector on the first data set of ``dataloader.test``.

    The detector reads and resizes the images itself, as it does for its users.

    Args:
        config: with ``dataloader.test.dataset`` and ``dataloader.evaluator``.
        detector: with the classes of the data set, in its order.

    Returns:
        ``{"AP": ..., "AP50": ..., ...}`` of boxes, in percent.

    Raises:
        DatasetError, ImageReadError: the data cannot be read, or have another number of classes.
    """
    settings = copy.deepcopy(config.dataloader)
    name = as_list(settings.test.dataset.names)[0]
    settings.test.dataset.names = name
    records = instantiate(settings.test.dataset)
    check_class_count(name, len(detector.class_names))

    # Nobody asked for the files that an evaluator writes.
    with tempfile.TemporaryDirectory() as folder:
        if "dataset_name" in settings.evaluator:
            settings.evaluator.dataset_name = name
        settings.evaluator.output_dir = folder
        evaluator = QuietEvaluator(build_evaluator(settings.evaluator, name))

        evaluator.reset()
        for record in records:
            evaluator.process([record], [{"instances": detector(record["file_name"])}])
        metrics: dict[str, float] = evaluator.evaluate()["bbox"]
    return metrics
