"""What came out of a run, on the console after its last step."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig

from salience_detr.data.datasets import as_list
from salience_detr.engine.checkpointing import EVALUATION
from salience_detr.engine.duration import RunClock, duration_text
from salience_detr.engine.hooks import BestCheckpoint
from salience_detr.evaluation.ap_table import class_aps, format_classes
from salience_detr.utils.files import parse_json

logger = logging.getLogger(__name__)

# Files of a run, with what they are.
FILES = {
    "model_best.pth": "the best weights",
    "model_final.pth": "the last weights, to resume from",
    "config.yaml": "the config",
    "metrics.json": "losses and AP",
    "log.txt": "the whole log",
    "inference": "detections of the last evaluation",
    "inference_ema": "detections of the last evaluation, of the EMA weights",
    "previews": "drawings of validation images",
}


def log_summary(config: DictConfig, clock: RunClock, best: BestCheckpoint, start: int) -> None:
    """Log duration, best AP, AP per class, files, and the commands that come next.

    Args:
        config: of the run.
        clock: of the run.
        best: its best checkpoint.
        start: first iteration.
    """
    evaluating = sum(clock.evaluation_seconds)
    finished = start + len(clock.step_seconds)
    lines = [
        f"finished at iteration {finished:,} after {duration_text(clock.seconds)}, of it "
        f"{duration_text(evaluating)} for {len(clock.evaluation_seconds)} evaluations"
    ]
    lines += describe_best(best)
    lines += describe_files(Path(config.train.output_dir))
    lines += next_commands(config)
    logger.info("\n".join(lines))


def describe_best(best: BestCheckpoint) -> list[str]:
    """Describe the best evaluation of a run, with AP per class."""
    record = best.read()
    if record is None or record["value"] is None:
        return ["no AP: the evaluations had no boxes to measure it on"]

    iteration = record["iteration"]
    metric = best.metric
    lines = [f"best {metric} {record['value']:.2f}, after {iteration:,} iterations; per class:"]
    metrics = read_evaluation(best.path.with_name("metrics.json"), metric, iteration)

    # The metrics of one evaluation share what stands before their last part, such as "ema/bbox/".
    prefix = f"{metric.rpartition('/')[0]}/"
    own = {}
    for name, value in metrics.items():
        if name.startswith(prefix):
            own[name.removeprefix(prefix)] = value

    classes = format_classes(class_aps(own))
    if not classes:
        lines[0] = lines[0].removesuffix("; per class:")
    return lines + classes


def read_evaluation(path: Path, metric: str, iteration: int) -> dict[str, Any]:
    """Return the line of metrics.json of the evaluation after so many steps; empty if none."""
    if not path.is_file():
        return {}

    for line in reversed(path.read_text().splitlines()):
        with contextlib.suppress(ValueError):
            record: dict[str, Any] = parse_json(line)
            is_same = record.get("iteration") == iteration - 1 and EVALUATION not in record
            if is_same and metric in record:
                return record
    return {}


def describe_files(output_dir: Path) -> list[str]:
    """List the files of a run that there are."""
    lines = [f"files in {output_dir}:"]
    for name, purpose in FILES.items():
        if (output_dir / name).exists():
            lines.append(f"  {name:<16}{purpose}")
    return lines


def next_commands(config: DictConfig) -> list[str]:
    """Return the commands that evaluate, use and export the best weights."""
    output_dir = Path(config.train.output_dir)
    weights = output_dir / "model_best.pth"
    if not weights.is_file():
        weights = output_dir / "model_final.pth"
    detector = f"--config-file {quote(output_dir / 'config.yaml')} --weights {quote(weights)}"

    dataset = config.dataloader.test.dataset
    metadata = MetadataCatalog.get(as_list(dataset.names)[0])
    image_root = dataset.get("image_root") or metadata.get("image_root")
    images = "IMAGE_OR_FOLDER"
    if image_root:
        images = quote(Path(image_root))

    # Not every shell has the environment active.
    python = "python"
    if shutil.which(python) != sys.executable:
        python = quote(Path(sys.executable))
    program = f"{python} -m salience_detr"
    shown = quote(output_dir / "shown")
    exported = quote(output_dir / "model.onnx")

    # The best score thresholds come from the results that the line before it writes.
    results = quote(output_dir / "inference" / "coco_instances_results.json")
    thresholds = []
    if dataset.get("json_file"):
        files = f"{results} {quote(Path(dataset.json_file))} --images {images}"
        thresholds.append(f"  {program} analyze errors {files} --save-thresholds {quote(weights)}")

    return [
        "next:",
        f"  {program} val {detector}",
        *thresholds,
        f"  {program} predict {detector} --input {images} --output {shown}",
        f"  {program} export {detector} --output {exported}",
    ]


def quote(path: Path) -> str:
    """Quote a path for a shell."""
    return shlex.quote(str(path))
