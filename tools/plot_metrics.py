#!/usr/bin/env python
"""Draw what training runs left behind, as PNG files.

tools/plot_metrics.py output/mine                    losses, AP, precision-recall, confusion matrix
tools/plot_metrics.py output/one output/other        the losses and AP of several runs in one image

The last two images need the detections of an evaluation (RUN/inference*) and the annotations (from RUN/config.yaml).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from detectron2.data import MetadataCatalog

from salience_detr.config import ConfigError, load_config
from salience_detr.evaluation.confusion import confusion_matrix, plot_confusion
from salience_detr.evaluation.results import (
    ResultsError,
    class_precisions,
    evaluate,
    load_results,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Lines = list[dict[str, Any]]
SMOOTHING = 25  # log lines, of which the median is drawn


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder of train_net.py"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for the images (default: RUN/plots)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="detections (default: those in RUN)"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="(default: those of RUN/config.yaml)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, help="for the confusion matrix (default: 0.3)"
    )
    return parser.parse_args(argv)


def read_metrics(run: Path) -> Lines:
    """The lines of metrics.json; a last one that is half written is left out.

    Raises:
        ResultsError: there are none.
    """
    path = run / "metrics.json"
    if not path.is_file():
        raise ResultsError(f"{run} holds no metrics.json; is it an output folder of train_net.py?")
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    if not lines:
        raise ResultsError(f"{path} is empty")
    return lines


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) iterations and (N,) values of a metric."""
    points = [(line["iteration"] + 1, line[name]) for line in lines if name in line]
    return np.array([x for x, _ in points]), np.array([y for _, y in points], dtype=float)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running median, of fewer values at the ends."""
    half = SMOOTHING // 2
    return np.array(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


def plot_losses(runs: dict[str, Lines], path: Path) -> None:
    """The total loss of each run; of a single one also its groups."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for run, lines in runs.items():
        names = ["total_loss"]
        if len(runs) == 1:
            names += sorted(
                {name for line in lines for name in line if name.startswith("loss_groups/")}
            )
        for name in names:
            label = name.removeprefix("loss_groups/")
            iterations, values = series(lines, name)
            axes.plot(
                iterations, smoothed(values), label=f"{run}: {label}" if len(runs) > 1 else label
            )
    finish(figure, axes, path, "iteration", "loss", logarithmic=True)


def plot_ap(runs: dict[str, Lines], path: Path) -> bool:
    """AP and AP50 of each evaluation, of the averaged weights too; False if there was none."""
    figure, axes = plt.subplots(figsize=(8, 5))
    drawn = False
    for run, lines in runs.items():
        for name, style in (
            ("bbox/AP50", "--"),
            ("bbox/AP", "-"),
            ("ema/bbox/AP50", "--"),
            ("ema/bbox/AP", "-"),
        ):
            iterations, values = series(lines, name)
            if not len(values):
                continue
            drawn = True
            label = name.replace("bbox/", "").replace("ema/", "average of weights, ")
            label = f"{label}: {values[-1]:.1f}"
            axes.plot(
                iterations,
                values,
                style,
                marker=".",
                label=f"{run}: {label}" if len(runs) > 1 else label,
            )
    if drawn:
        finish(figure, axes, path, "iteration", "average precision, %")
    plt.close(figure)
    return drawn


def plot_precision_recall(precisions: dict[str, np.ndarray], path: Path) -> bool:
    """Precision against recall of each class at IoU 0.5; False if there is nothing to find."""
    figure, axes = plt.subplots(figsize=(7, 6))
    ap50 = {name: 100 * float(np.mean(values[0])) for name, values in precisions.items()}
    known = [name for name in precisions if not np.isnan(ap50[name])]
    if not known:
        plt.close(figure)
        return False
    for name in sorted(known, key=lambda name: -ap50[name]):
        label = (
            f"{name} {ap50[name]:.1f}" if len(known) <= 20 else None
        )  # of 80 classes nobody reads a legend
        axes.plot(np.linspace(0, 1, 101), precisions[name][0], label=label, linewidth=1)
    mean = np.mean([precisions[name][0] for name in known], axis=0)
    axes.plot(
        np.linspace(0, 1, 101),
        mean,
        "k",
        linewidth=2.5,
        label=f"mean {np.mean([ap50[n] for n in known]):.1f}",
    )
    finish(figure, axes, path, "recall", "precision at IoU 0.5")
    return True


def finish(
    figure: Any, axes: Any, path: Path, x: str, y: str, *, logarithmic: bool = False
) -> None:
    """Label and save an image of curves."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    beside = (
        {"loc": "upper left", "bbox_to_anchor": (1.01, 1)} if len(axes.lines) > 4 else {}
    )  # not over the curves
    axes.legend(fontsize=8, **beside)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def run_names(runs: list[Path]) -> list[str]:
    """The names of the folders, with as many of the folders above as tell them apart."""
    parts = [run.resolve().parts for run in runs]
    depth = next(
        (
            n
            for n in range(1, max(map(len, parts)))
            if len({x[-n:] for x in parts}) == len(set(parts))
        ),
        1,
    )
    return ["/".join(x[-depth:]) for x in parts]


def find_results(run: Path) -> Path | None:
    """The detections of the last evaluation, of the averaged weights if there are any."""
    for folder in ("inference_ema", "inference"):
        path = run / folder / "coco_instances_results.json"
        if path.is_file():
            return path
    return None


def find_annotations(run: Path) -> Path:
    """The annotation file of a run's validation set.

    Raises:
        ResultsError: it is not known.
    """
    try:
        dataset = load_config(run / "config.yaml").dataloader.test.dataset
    except ConfigError as error:
        raise ResultsError(f"{error}; name the annotation file with --annotations") from error
    name = dataset.names if isinstance(dataset.names, str) else dataset.names[0]
    path = dataset.get("json_file") or MetadataCatalog.get(name).get("json_file")
    if not path:
        raise ResultsError(
            f"the annotations of the data set {name!r} are not known; name them with --annotations"
        )
    return Path(path)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    output = args.output or args.runs[0] / "plots"
    written = ["losses.png"]
    try:
        runs = {
            name: read_metrics(run)
            for name, run in zip(run_names(args.runs), args.runs, strict=True)
        }
        output.mkdir(parents=True, exist_ok=True)
        plot_losses(runs, output / "losses.png")
        if plot_ap(runs, output / "ap.png"):
            written.append("ap.png")
        results = args.results or find_results(args.runs[0])
        if len(runs) == 1 and results is not None:
            annotations = args.annotations or find_annotations(args.runs[0])
            loaded = load_results(results, annotations)
            if loaded.detections:
                precisions = class_precisions(evaluate(loaded))
                if plot_precision_recall(precisions, output / "precision_recall.png"):
                    written.append("precision_recall.png")
                matrix, names = confusion_matrix(loaded, score_threshold=args.score_threshold)
                plot_confusion(matrix, names, output / "confusion.png")
                written.append("confusion.png")
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(str(output / name) for name in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
