"""Results of an evaluation as a short table, and as a record beside the detections."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from salience_detr.utils.files import parse_json, write_text

RECORD_NAME = "evaluation.json"
LINE_WIDTH = 96
# Of more classes than these, those of lowest and highest AP are listed.
MOST_CLASSES = 24
FEW_CLASSES = 6


@dataclass(frozen=True)
class Evaluated:
    """Weights and data of an evaluation.

    Attributes:
        weights: file of the weights, or "weights" or "EMA weights" of a run.
        dataset: name of the data set.
        iteration: number of finished training steps; None if it is unknown.
    """

    weights: str
    dataset: str
    iteration: int | None = None

    def __str__(self) -> str:
        weights = self.weights
        if self.iteration is not None:
            weights = f"{weights} after {self.iteration} iterations"

        # Own data have the path of their file for a name.
        dataset = self.dataset
        if dataset.endswith(".json"):
            dataset = Path(dataset).name
        return f"{weights}, on {dataset}"

    def save(self, folder: Path) -> None:
        """Write the record into the folder of the detections."""
        write_text(folder / RECORD_NAME, json.dumps(asdict(self)))


def read_evaluated(folder: Path) -> Evaluated | None:
    """Read the record in a folder of detections; None where there is none that can be read."""
    try:
        return Evaluated(**parse_json((folder / RECORD_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def format_results(results: Mapping[str, object]) -> str:
    """Return the metrics of each task of an evaluator in a line, and AP per class below."""
    lines = []
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            lines.append(f"{task} {metrics}")
            continue

        prefix = "" if task == "bbox" else f"{task}: "
        overall = {name: value for name, value in metrics.items() if "-" not in name}
        lines.append(
            prefix + "  ".join(f"{name} {ap_text(value)}" for name, value in overall.items())
        )
        lines += format_classes(class_aps(metrics))
    return "\n".join(lines)


def class_aps(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the AP of each class, whose keys are ``AP-NAME`` in detectron2's results."""
    aps = {}
    for name, value in metrics.items():
        if name.startswith("AP-"):
            aps[name.removeprefix("AP-")] = value
    return aps


def format_classes(aps: Mapping[str, float]) -> list[str]:
    """Return the AP of each class, several to a line; of many classes the lowest and highest."""
    if len(aps) <= MOST_CLASSES:
        return wrap_entries(aps)

    # NaN, of classes without boxes, is neither.
    numbers = {name: value for name, value in aps.items() if not math.isnan(value)}
    order = sorted(numbers, key=lambda name: numbers[name])
    lowest = {name: aps[name] for name in order[:FEW_CLASSES]}
    highest = {name: aps[name] for name in order[-FEW_CLASSES:]}
    return [
        f"  lowest AP of {len(aps)} classes:", *wrap_entries(lowest),
        "  highest:", *wrap_entries(highest),
    ]  # fmt: skip


def wrap_entries(aps: Mapping[str, float]) -> list[str]:
    """Return names and values in columns, as many as fit into a line."""
    if not aps:
        return []

    width = max(map(len, aps))
    entries = []
    for name, value in aps.items():
        entries.append(f"{name:<{width}} {ap_text(value):>5}")

    per_line = max(1, (LINE_WIDTH - 2) // (width + 9))
    lines = []
    for start in range(0, len(entries), per_line):
        lines.append("  " + "   ".join(entries[start : start + per_line]))
    return lines


def ap_text(value: object) -> str:
    """Return a metric in percent; "-" where there are no boxes to measure it on."""
    if not isinstance(value, int | float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.1f}"
