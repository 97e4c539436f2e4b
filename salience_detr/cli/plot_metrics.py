"""Draw the metrics of training runs as PNG files."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from scipy.ndimage import median_filter

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.plot_metrics import parse_args
from salience_detr.config import ConfigError, load_config
from salience_detr.data.datasets import as_list
from salience_detr.engine.checkpointing import EVALUATION
from salience_detr.evaluation.ap_table import read_evaluated
from salience_detr.evaluation.confusion import confusion_matrix
from salience_detr.evaluation.plots import plot_confusion, plot_score_curves
from salience_detr.evaluation.results import (
    ResultsError,
    class_precisions,
    evaluate,
    load_results,
)
from salience_detr.evaluation.score_curves import score_curves
from salience_detr.utils.files import parse_json

Lines: TypeAlias = list[dict[str, float]]  # of metrics.json

# The median is drawn of this part of the log lines, but of no more of them than that.
SMOOTHING_PART = 0.05
LONGEST_SMOOTHING = 101
AP_STYLES = {"bbox/AP50": "--", "bbox/AP": "-", "ema/bbox/AP50": "--", "ema/bbox/AP": "-"}
# A legend of more classes would be longer than the figure.
MAX_LABELED_CLASSES = 20


def read_metrics(run: Path) -> Lines:
    """Read the lines of metrics.json that are complete.

    Raises:
        ResultsError: there are none.
    """
    path = run / "metrics.json"
    if not path.is_file():
        raise ResultsError(f"{run} holds no metrics.json; is it an output folder of train_net.py?")

    # A run that was killed leaves a last line that is cut off.
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            lines.append(parse_json(line))
    if not lines:
        raise ResultsError(f"{path} is empty")
    return lines


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) iterations and (N,) values of a metric; evaluations by themselves are none."""
    points = []
    for line in lines:
        if name in line and EVALUATION not in line:
            points.append((line["iteration"] + 1, line[name]))
    iterations, values = np.array(points, dtype=float).reshape(-1, 2).T
    return iterations, values


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the running median of (N,) values, over more of them the more there are."""
    window = round(SMOOTHING_PART * len(values))
    window = min(max(window, 1), LONGEST_SMOOTHING)
    return median_filter(values, window | 1, mode="nearest")


def save(figure: Figure, path: Path, xlabel: str, ylabel: str, title: str = "") -> None:
    """Add a grid, labels, a title and a legend to a figure, and save it."""
    axes = figure.axes[0]
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)

    # A legend of many curves would hide them, so it stands beside the axes.
    _, labels = axes.get_legend_handles_labels()
    if len(labels) > 4:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    else:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def label_of(run: str, label: str, runs: dict[str, Lines]) -> str:
    """Return the label of a curve, with the name of its run if there are several."""
    return f"{run}: {label}" if len(runs) > 1 else label


def plot_losses(runs: dict[str, Lines], path: Path) -> None:
    """Draw the total loss of each run, and the loss groups of a single one."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.set_yscale("log")
    for run, lines in runs.items():
        names = ["total_loss"]
        if len(runs) == 1:
            logged = set().union(*lines)
            names += sorted(name for name in logged if name.startswith("loss_groups/"))

        for name in names:
            iterations, values = series(lines, name)
            label = label_of(run, name.removeprefix("loss_groups/"), runs)
            (line,) = axes.plot(iterations, smooth(values), label=label)

            # The points themselves, faint behind the curve.
            color = line.get_color()
            axes.plot(iterations, values, ".", color=color, markersize=3, alpha=0.2, zorder=1)
    title = f"training losses of {', '.join(runs)}; dots are the logged values"
    save(figure, path, "iteration", "loss", title)


def plot_ap(runs: dict[str, Lines], path: Path, title: str = "") -> bool:
    """Draw AP and AP50 of each evaluation, of the EMA weights too.

    Returns:
        False if there was no evaluation: then nothing is drawn.
    """
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for run, lines in runs.items():
        for name, style in AP_STYLES.items():
            iterations, values = series(lines, name)
            if len(values):
                metric = name.replace("bbox/", "").replace("ema/", "EMA, ")
                label = label_of(run, f"{metric}: {values[-1]:.1f}", runs)
                axes.plot(iterations, values, style, marker=".", label=label)

    if not axes.lines:
        return False
    save(figure, path, "iteration", "average precision, %", title)
    return True


def plot_precision_recall(precisions: dict[str, np.ndarray], path: Path, title: str = "") -> bool:
    """Draw precision against recall of each class at IoU 0.5, classes of high AP first.

    Args:
        precisions: (10 IoU thresholds, 101 recalls) of each class; NaN without boxes.
        path: of the image.
        title: which weights and data they are of.

    Returns:
        False if no class has boxes: then nothing is drawn.
    """
    # AP50 is the mean of the precisions at the 101 recalls.
    curves = {name: values[0] for name, values in precisions.items()}
    with_boxes = {name: curve for name, curve in curves.items() if not np.isnan(curve.mean())}
    if not with_boxes:
        return False

    figure = Figure(figsize=(7, 6))
    axes = figure.subplots()
    recalls = np.linspace(0, 1, 101)
    for name, curve in sorted(with_boxes.items(), key=lambda item: -item[1].mean()):
        label = None
        if len(with_boxes) <= MAX_LABELED_CLASSES:
            label = f"{name} {100 * curve.mean():.1f}"
        axes.plot(recalls, curve, label=label, linewidth=1)

    mean = np.mean(list(with_boxes.values()), axis=0)
    axes.plot(recalls, mean, "k", linewidth=2.5, label=f"mean {100 * mean.mean():.1f}")
    save(figure, path, "recall", "precision at IoU 0.5", title)
    return True


def run_names(runs: list[Path]) -> list[str]:
    """Return the names of folders, with as many parents as are needed to tell them apart."""
    paths = [run.resolve().parts for run in runs]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def find_results(run: Path) -> Path | None:
    """Find the detections of a run's last evaluation."""
    # Of weights and EMA weights that are evaluated together, the EMA weights are the last.
    found = []
    for folder in ("inference", "inference_ema"):
        path = run / folder / "coco_instances_results.json"
        if path.is_file():
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def find_annotations(run: Path, *, trust: bool) -> Path:
    """Find the annotation file of a run's validation set.

    Raises:
        ResultsError: it is not known.
    """
    remedy = "name the annotation file with --annotations"
    try:
        dataset = load_config(run / "config.yaml", trust=trust).dataloader.test.dataset
    except ConfigError as error:
        raise ResultsError(f"{error}; {remedy}") from error

    # Data sets that the config registers by a file have its path; others are in the catalog.
    name = as_list(dataset.names)[0]
    path = dataset.get("json_file") or MetadataCatalog.get(name).get("json_file")
    if not path:
        raise ResultsError(f"the annotations of the data set {name!r} are not known; {remedy}")
    return Path(path)


def ap_title(runs: list[Path], *, trust: bool) -> str:
    """Return the title of the APs of runs: the validation set of the first."""
    try:
        dataset = find_annotations(runs[0], trust=trust).name
    except ResultsError:
        dataset = "the validation set"
    return f"evaluations of {', '.join(run_names(runs))} on {dataset}"


def plot_detections(args: argparse.Namespace, output: Path) -> list[Path]:
    """Draw precision-recall and confusion matrix of a run's detections.

    Returns:
        The paths of the images; none if the run has no detections.
    """
    run = args.runs[0]
    results_file = args.results or find_results(run)
    if results_file is None:
        return []

    annotations = args.annotations or find_annotations(run, trust=args.trust_config)
    results = load_results(results_file, annotations)
    if not results.detections:
        return []

    # Detections of earlier versions have no record.
    title = str(read_evaluated(results_file.parent) or f"{results_file}, on {annotations.name}")
    written = []
    path = output / "precision_recall.png"
    if plot_precision_recall(class_precisions(evaluate(results)), path, title):
        written.append(path)

    curves = score_curves(results, iou_threshold=args.iou_threshold)
    path = output / "score_curves.png"
    if plot_score_curves(curves, path, iou_threshold=args.iou_threshold, title=title):
        written.append(path)

    thresholds = {"score_threshold": args.score_threshold, "iou_threshold": args.iou_threshold}
    matrix, names = confusion_matrix(results, **thresholds)
    plot_confusion(matrix, names, output / "confusion.png", title=title)
    return [*written, output / "confusion.png"]


def run(args: argparse.Namespace) -> None:
    """Draw all images that the runs have metrics for, and print their paths."""
    output = args.output or args.runs[0] / "plots"
    runs = dict(zip(run_names(args.runs), map(read_metrics, args.runs), strict=True))
    output.mkdir(parents=True, exist_ok=True)
    plot_losses(runs, output / "losses.png")
    written = [output / "losses.png"]

    if plot_ap(runs, output / "ap.png", ap_title(args.runs, trust=args.trust_config)):
        written.append(output / "ap.png")
    if len(runs) == 1:
        written += plot_detections(args, output)
    print(*written, sep="\n")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
