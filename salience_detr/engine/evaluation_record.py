"""Line of metrics.json for an evaluation by --eval-only."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from salience_detr.checkpoint import CheckpointError, read_checkpoint
from salience_detr.data.datasets import as_list
from salience_detr.engine.checkpointing import EVALUATION
from salience_detr.evaluation.coco_evaluation import flat_metrics

logger = logging.getLogger(__name__)


def read_iteration(weights: str) -> int | None:
    """Return the finished steps of a checkpoint of a run; None for other weights."""
    if not Path(weights).is_file():
        return None

    try:
        iteration = read_checkpoint(weights).get("iteration")
    except CheckpointError:
        return None
    return iteration if type(iteration) is int else None


def record_evaluation(
    config: DictConfig, results: dict[str, object], iteration: int | None
) -> None:
    """Append the results to metrics.json, marked by the key "eval_only".

    Args:
        config: of the evaluation.
        results: of :func:`evaluate`.
        iteration: finished steps of the weights, None if unknown. As in the other lines, steps
            count from 0: the line has that of the last one.
    """
    record: dict[str, object] = {
        EVALUATION: {
            "weights": config.train.init_checkpoint,
            "datasets": as_list(config.dataloader.test.dataset.names),
        },
        "iteration": None if iteration is None else iteration - 1,
    }
    record |= flat_metrics(results)

    path = Path(config.train.output_dir) / "metrics.json"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
    logger.info("the results are a line of %s", path)
