"""Evaluation of a model on the test set of a config."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from salience_detr.config import ConfigError
from salience_detr.data.classes import classes_of
from salience_detr.data.coco_format import prepare_for_evaluation
from salience_detr.data.datasets import (
    as_list,
    check_class_count,
    derive_annotation_file,
    has_own_file,
    warn_without_boxes,
)
from salience_detr.data.loader import WatchedLoader, keep_value_range
from salience_detr.data.split_classes import (
    check_known,
    class_map,
    describe_difference,
    describe_numbers,
    map_in_order,
)
from salience_detr.data.value_range import AUTO, ValueRange
from salience_detr.evaluation.ap_table import Evaluated, format_results
from salience_detr.evaluation.class_mapping import ClassMappingEvaluator
from salience_detr.evaluation.comparison import write_comparisons
from salience_detr.evaluation.fast_coco import QuietEvaluator, use_fast_evaluation
from salience_detr.evaluation.results import METRICS, category_names, load_results, make_coco
from salience_detr.utils.drawing_options import DEFAULTS, DrawingOptions
from salience_detr.utils.files import check_output_dir

logger = logging.getLogger(__name__)

EVALUATED_WEIGHTS = ("ema", "raw", "both")


def evaluate(
    config: DictConfig,
    model: nn.Module,
    *,
    class_names: Sequence[str] | None = (),
    suffix: str = "",
    weights: str = "weights",
    iteration: int | None = None,
) -> dict[str, object]:
    """Run the model over the data sets of ``dataloader.test`` with ``dataloader.evaluator``.

    Every process calls this and takes its share of the images. The detections are written in COCO's
    results format to the evaluator's output folder, whose name gets the suffix; with several data
    sets each has a folder below it.

    Args:
        config: of the run.
        model: to evaluate.
        class_names: names of the model's classes. A data set may have fewer of them, or another
            order; without names its classes are taken for the model's, in order. None takes them
            in order even if there are more or fewer than the model has.
        suffix: added to the name of the output folder.
        weights: what the weights are called in the log, and in the titles of plots.
        iteration: number of steps that the weights were trained for, for the same.

    Returns:
        ``{"bbox": {"AP": ..., "AP50": ..., ...}}``, in percent, on process 0; nothing elsewhere. Of
        several data sets a dict of such results by name.

    Raises:
        DatasetError: a data set cannot be read, or has classes that the model lacks.
    """
    names = as_list(config.dataloader.test.dataset.names)
    if len(names) == 1:
        evaluated = Evaluated(weights, names[0], iteration)
        return evaluate_dataset(config, evaluated, model, class_names, suffix)

    results: dict[str, object] = {}
    for name in names:
        evaluated = Evaluated(weights, name, iteration)
        folder = f"{suffix}/{name.replace('/', '_')}"
        results[name] = evaluate_dataset(config, evaluated, model, class_names, folder)
    return results


def evaluate_dataset(
    config: DictConfig,
    evaluated: Evaluated,
    model: nn.Module,
    class_names: Sequence[str] | None,
    suffix: str,
) -> dict[str, object]:
    """Run the model over one data set, see :func:`evaluate`."""
    name = evaluated.dataset
    settings = copy.deepcopy(config.dataloader)
    settings.test.dataset.names = name
    if "dataset_name" in settings.evaluator:
        settings.evaluator.dataset_name = name
    if settings.evaluator.get("output_dir"):
        settings.evaluator.output_dir = f"{settings.evaluator.output_dir}{suffix}"

    # The names of the classes are known once the data are loaded.
    loader = instantiate(settings.test)
    keep_value_range(config, loader)
    warn_without_boxes(getattr(loader.dataset, "records", ()), name)
    mapping = compare_classes(name, class_names, config.model.get("num_classes"))
    evaluator = build_evaluator(settings.evaluator, name)
    if mapping is not None:
        evaluator = ClassMappingEvaluator(evaluator, mapping)

    logger.info("evaluating %s (%d batches)", evaluated, len(loader))
    start = time.perf_counter()
    results = inference_on_dataset(model, WatchedLoader(loader), QuietEvaluator(evaluator))

    if comm.is_main_process():
        print_csv_format(results)
        seconds = time.perf_counter() - start
        report_results(results, seconds, evaluated, settings.evaluator.get("output_dir"))
    return results or {}


def report_results(
    results: Mapping[str, object], seconds: float, evaluated: Evaluated, folder: str | None
) -> None:
    """Log the results as one table, and write what they are of beside the detections."""
    if folder and Path(folder).is_dir():
        evaluated.save(Path(folder))

    if results:
        table = format_results(results)
        logger.info("results of %s, in %.0f s:\n%s", evaluated, seconds, table)


def compare_classes(
    name: str, class_names: Sequence[str] | None, num_classes: int | None
) -> list[int] | None:
    """Compare the classes of a data set with the model's, and log how they differ.

    Args:
        name: of the data set.
        class_names: names of the model's classes, see :func:`evaluate`.
        num_classes: number of the model's classes, None if it is unknown.

    Returns:
        The class in the data set of each class of the model, -1 for none; None if all are the same.

    Raises:
        DatasetError: the data set has classes that the model lacks, or another number of them and
            the names of the model's are unknown.
    """
    data_classes = classes_of(MetadataCatalog.get(name))
    if data_classes is not None and class_names is None and num_classes is not None:
        mapping = map_in_order(num_classes, data_classes)
        difference = describe_numbers(num_classes, data_classes)

    elif data_classes is not None and class_names:
        check_known(class_names, data_classes, "the model")
        mapping = class_map(class_names, data_classes)
        difference = describe_difference(class_names, data_classes)

    else:
        check_class_count(name, num_classes)
        return None

    if difference is not None:
        log_first_n(logging.INFO, difference, key="message")
    return mapping


def build_evaluator(settings: DictConfig, name: str) -> DatasetEvaluator:
    """Build the evaluator of a data set, whose annotation file is derived if it has none."""
    use_fast_evaluation()
    if settings.get("output_dir") and not has_own_file(name):
        derive_annotation_file(name, Path(settings.output_dir))
    evaluator = instantiate(settings)

    ground_truth = getattr(evaluator, "_coco_api", None)
    if ground_truth is None:
        return evaluator

    # COCO's evaluation needs the area of each annotation, and whether it is a crowd.
    content = ground_truth.dataset
    prepare_for_evaluation(content.get("annotations", []))
    dropped = MetadataCatalog.get(name).get("drop_categories", ())
    content["categories"] = [x for x in content["categories"] if x["id"] not in dropped]
    evaluator._coco_api = make_coco(content)
    if "annotations" not in content:
        logger.info("%s has no annotations: the detections are written, without AP", name)

    # Loaders of others keep one row of metrics for two classes of the same name.
    class_names = category_names(evaluator._coco_api)
    metadata = vars(evaluator._metadata)
    if len(class_names) == len(metadata.get("thing_classes", ())):
        evaluator._metadata = Metadata(**{**metadata, "thing_classes": class_names})
    return evaluator


def evaluate_with_ema(
    config: DictConfig,
    model: nn.Module,
    ema: nn.Module | None,
    class_names: Sequence[str] = (),
    iteration: int | None = None,
) -> dict[str, float]:
    """Evaluate a model, the moving average of its weights, or both: ``train.ema.evaluate``.

    Returns:
        Metrics by name: ``bbox/AP`` of the model, ``ema/bbox/AP`` of the average, and so on; of
        several data sets ``NAME/bbox/AP``.
    """
    choice = choose_weights(config, ema)
    metrics: dict[str, float] = {}

    if choice != "ema":
        results = evaluate(config, model, class_names=class_names, iteration=iteration)
        metrics = flat_metrics(results)

    if ema is not None and choice != "raw":
        results = evaluate(
            config,
            ema,
            class_names=class_names,
            suffix="_ema",
            weights="EMA weights",
            iteration=iteration,
        )
        for name, value in flat_metrics(results).items():
            metrics[f"ema/{name}"] = value
    return metrics


def choose_weights(config: DictConfig, ema: nn.Module | None) -> str:
    """Return which weights are evaluated, "ema", "raw" or "both"; without an EMA "raw".

    Raises:
        ConfigError: ``train.ema.evaluate`` is none of them.
    """
    choice = evaluated_weights(config)
    return "raw" if ema is None else choice


def evaluated_weights(config: DictConfig) -> str:
    """Return ``train.ema.evaluate``, and raise ConfigError if it is unknown."""
    choice = config.train.ema.get("evaluate", "ema")
    if choice not in EVALUATED_WEIGHTS:
        raise ConfigError(f"train.ema.evaluate is {choice!r}; use ema, raw or both")
    return str(choice)


def describe_weights(config: DictConfig) -> str:
    """Return what the weights are called that a run evaluates.

    Raises:
        ConfigError: see :func:`evaluated_weights`.
    """
    names = {"raw": "weights", "ema": "EMA weights", "both": "weights and the EMA weights"}
    if not config.train.ema.enabled:
        return names["raw"]
    return names[evaluated_weights(config)]


def best_metric_of(config: DictConfig) -> str:
    """Return the metric of ``train.best_metric``; of several data sets that of the first.

    Raises:
        ConfigError: COCOEvaluator has no such metric. Others have their own, and those of single
            classes are not known yet.
    """
    metric = config.train.best_metric
    last = metric.rpartition("/")[2]
    target = config.dataloader.evaluator.get("_target_")
    if isinstance(target, str):
        target = locate(target)
    is_coco = target is COCOEvaluator
    if is_coco and last not in METRICS and not last.startswith("AP-"):
        metrics = ", ".join(f"bbox/{name}" for name in (*METRICS, "AP-CLASS"))
        raise ConfigError(f"train.best_metric={metric!r} is no metric of COCOEvaluator: {metrics}")

    names = as_list(config.dataloader.test.dataset.names)
    if len(names) == 1 or any(metric.startswith(f"{name}/") for name in names):
        return metric

    logger.info("model_best is the best on %s, the first of %d test sets", names[0], len(names))
    return f"{names[0]}/{metric}"


def flat_metrics(results: dict[str, object]) -> dict[str, float]:
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


def show_evaluation(config: DictConfig, show_dir: Path, options: DrawingOptions = DEFAULTS) -> None:
    """Draw the ground truth and the detections of each image of the test set into a folder.

    The detections are those that :func:`evaluate` wrote. Process 0 calls this.

    Raises:
        ConfigError: there are no detections.
        ResultsError, OSError: detections or annotations cannot be read, or a drawing cannot be
            written.
    """
    names = as_list(config.dataloader.test.dataset.names)
    output_dir = Path(config.dataloader.evaluator.output_dir)
    value_range = ValueRange(config.dataloader.test.mapper.get("value_range", AUTO))
    if len(names) == 1:
        show_dataset(names[0], output_dir, show_dir, value_range, options)
        return

    for name in names:
        folder = name.replace("/", "_")
        show_dataset(name, output_dir / folder, show_dir / folder, value_range, options)


def show_dataset(
    name: str,
    output_dir: Path,
    show_dir: Path,
    value_range: ValueRange,
    options: DrawingOptions = DEFAULTS,
) -> None:
    """Draw the images of one data set, see :func:`show_evaluation`."""
    metadata = MetadataCatalog.get(name)
    results_file = output_dir / "coco_instances_results.json"
    if not results_file.is_file() or not metadata.get("json_file"):
        raise ConfigError(
            f"--show-dir needs detections in COCO's format, but there is no {results_file}"
        )

    lists = ("images", "categories")  # COCO's test sets have no annotations
    results = load_results(results_file, Path(metadata.json_file), lists=lists)
    image_root = Path(metadata.get("image_root", "."))
    drawn, notes = write_comparisons(
        results, image_root, show_dir, value_range=value_range, options=options
    )
    logger.info("%d images drawn in %s: ground truth left, detections right", drawn, show_dir)
    for note in notes:
        logger.warning("not drawn: %s", note)
