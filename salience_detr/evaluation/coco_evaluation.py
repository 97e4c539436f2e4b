"""Evaluation of a model on the test set of a config."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from salience_detr.config import ConfigError
from salience_detr.data.coco_format import prepare_for_evaluation
from salience_detr.data.datasets import as_list, check_class_count
from salience_detr.data.loader import WatchedLoader
from salience_detr.evaluation.comparison import write_comparisons
from salience_detr.evaluation.results import load_results, make_coco
from salience_detr.utils.files import check_output_dir

logger = logging.getLogger(__name__)


def evaluate(config: DictConfig, model: nn.Module, *, suffix: str = "") -> dict[str, Any]:
    """Run the model over ``dataloader.test`` with ``dataloader.evaluator``.

    Every process calls this and takes its share of the images. The detections are written in COCO's
    results format to the evaluator's output folder, whose name gets the suffix.

    Returns:
        ``{"bbox": {"AP": ..., "AP50": ..., ...}}``, in percent, on process 0; nothing elsewhere.
    """
    # The names of the classes are known once the data are loaded.
    loader = instantiate(config.dataloader.test)
    check_class_count(config.dataloader.test.dataset.names, config.model.get("num_classes"))

    settings = copy.copy(config.dataloader.evaluator)
    if suffix and settings.get("output_dir"):
        settings.output_dir = f"{settings.output_dir}{suffix}"
    evaluator = instantiate(settings)

    # COCO's evaluation needs the area of each annotation, and whether it is a crowd.
    ground_truth = getattr(evaluator, "_coco_api", None)
    if ground_truth is not None:
        prepare_for_evaluation(ground_truth.dataset.get("annotations", []))
        evaluator._coco_api = make_coco(ground_truth.dataset)

    results = inference_on_dataset(model, WatchedLoader(loader), evaluator)

    if comm.is_main_process():
        print_csv_format(results)
    return results or {}


def evaluate_with_ema(
    config: DictConfig, model: nn.Module, ema: nn.Module | None
) -> dict[str, float]:
    """Evaluate a model and, if there is one, the moving average of its weights.

    Returns:
        Metrics by name: ``bbox/AP`` of the model, ``ema/bbox/AP`` of the average, and so on.
    """
    metrics = flat_metrics(evaluate(config, model))

    if ema is not None:
        logger.info("evaluating the EMA of the weights:")
        for name, value in flat_metrics(evaluate(config, ema, suffix="_ema")).items():
            metrics[f"ema/{name}"] = value
    return metrics


def flat_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of nested results under names such as ``bbox/AP``."""
    return {name: float(value) for name, value in flatten_results_dict(results).items()}


def check_show_dir(config: DictConfig, show_dir: Path) -> None:
    """Find out before an evaluation whether :func:`show_evaluation` can draw it.

    Raises:
        ConfigError: the evaluator does not write the detections.
        OSError: the folder cannot be written to.
    """
    if not config.dataloader.evaluator.get("output_dir"):
        raise ConfigError(
            "--show-dir draws the detections in dataloader.evaluator.output_dir: set that folder"
        )
    check_output_dir(show_dir, option="--show-dir")


def show_evaluation(config: DictConfig, show_dir: Path) -> None:
    """Draw the ground truth and the detections of each image of the test set into a folder.

    The detections are those that :func:`evaluate` wrote. Process 0 calls this.

    Raises:
        ConfigError: there are no detections.
        ResultsError, OSError: detections or annotations cannot be read, or a drawing cannot be
            written.
    """
    name = as_list(config.dataloader.test.dataset.names)[0]
    metadata = MetadataCatalog.get(name)
    results_file = Path(config.dataloader.evaluator.output_dir) / "coco_instances_results.json"
    if not results_file.is_file() or not metadata.get("json_file"):
        raise ConfigError(
            f"--show-dir needs detections in COCO's format, but there is no {results_file}"
        )

    results = load_results(results_file, Path(metadata.json_file))
    drawn, notes = write_comparisons(results, Path(metadata.get("image_root", ".")), show_dir)
    logger.info("%d images drawn in %s: ground truth left, detections right", drawn, show_dir)
    for note in notes:
        logger.warning("not drawn: %s", note)
