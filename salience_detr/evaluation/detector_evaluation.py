"""Evaluation of a detector, whatever runs its model, on the test set of a config."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence

from detectron2.config import instantiate
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig
from tqdm import tqdm

from salience_detr.data.datasets import as_list
from salience_detr.detector import Detector
from salience_detr.evaluation.class_mapping import ClassMappingEvaluator
from salience_detr.evaluation.coco_evaluation import build_evaluator, compare_classes
from salience_detr.evaluation.fast_coco import QuietEvaluator


def evaluate_detector(
    config: DictConfig,
    detector: Detector,
    *,
    class_names: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, float]:
    """Return the metrics of a detector on the first data set of ``dataloader.test``.

    The detector reads and resizes the images itself, as it does for its users.

    Args:
        config: with ``dataloader.test.dataset`` and ``dataloader.evaluator``.
        detector: to evaluate.
        class_names: names of the detector's classes, of which the data set may have fewer, or in
            another order; without names it has the detector's classes, in order.
        progress: show a bar of the images.

    Returns:
        ``{"AP": ..., "AP50": ..., ...}`` of boxes, in percent.

    Raises:
        DatasetError, ImageReadError: the data cannot be read, or have other classes.
    """
    settings = copy.deepcopy(config.dataloader)
    name = as_list(settings.test.dataset.names)[0]
    settings.test.dataset.names = name
    records = instantiate(settings.test.dataset)
    mapping = compare_classes(name, class_names, len(detector.class_names))

    # Nobody asked for the files that an evaluator writes.
    with tempfile.TemporaryDirectory() as folder:
        if "dataset_name" in settings.evaluator:
            settings.evaluator.dataset_name = name
        settings.evaluator.output_dir = folder
        evaluator: DatasetEvaluator = build_evaluator(settings.evaluator, name)
        if mapping is not None:
            evaluator = ClassMappingEvaluator(evaluator, mapping)
        evaluator = QuietEvaluator(evaluator)

        evaluator.reset()
        bar = tqdm(records, desc="evaluating", unit="image", leave=False, disable=not progress)
        for record in bar:
            evaluator.process([record], [{"instances": detector(record["file_name"])}])
        metrics: dict[str, float] = evaluator.evaluate()["bbox"]
    return metrics
