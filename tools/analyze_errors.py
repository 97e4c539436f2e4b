#!/usr/bin/env python
"""What a detector gets wrong: classes, sizes, crowding, kinds of mistakes, confusions, and the worst images.

tools/analyze_errors.py output/mine/inference/coco_instances_results.json data/mine/annotations/instances_val.json

RESULTS.json is in COCO's results format, as --eval-only writes it, or what demo.py --json writes. The output folder
gets report.md (which is printed too), report.json, confusion.png and worst.jpg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from tabulate import tabulate

from salience_detr.evaluation.comparison import (
    SCORE_THRESHOLD,
    find_images,
    worst_sheet,
    write_image,
)
from salience_detr.evaluation.confusion import plot_confusion
from salience_detr.evaluation.error_analysis import (
    LOOSE_IOU,
    TOUCHING_IOU,
    ImageErrors,
    Row,
    class_rows,
    crowd_counts,
    density_rows,
    error_counts,
    examine,
    overall,
    overlap_rows,
    ranked,
    size_rows,
)
from salience_detr.evaluation.results import ResultsError, confusion_matrix, load, run_evaluation
from salience_detr.utils.files import check_output_dir, written_whole

CLASS_METRICS = ("boxes", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "recall", "precision")
CLASS_MISTAKES = ("correct", "localization", "class confused", "duplicate", "background", "missed")
# A matrix of more classes is no table that anyone reads: the most frequent confusions are listed instead.
TABLE_CLASSES, CONFUSIONS = 20, 20
MOST_WORST = 400  # images on one sheet


@dataclass(frozen=True)
class Report:
    """What was found out, as report.json has it.

    Attributes:
        content: settings, metrics and rows of the tables; None where there is nothing to measure.
        matrix: (K + 1, K + 1) confusion matrix.
        names: of the K classes.
        ranking: the images with mistakes, worst first.
    """

    content: dict[str, Any]
    matrix: np.ndarray
    names: list[str]
    ranking: list[ImageErrors]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the images (default: looked for by ANNOTATIONS)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="(default: the folder errors beside RESULTS)"
    )
    parser.add_argument(
        "--worst", type=int, default=16, metavar="N", help="images on the sheet (default: 16)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=SCORE_THRESHOLD, metavar="S",
        help=f"of the detections whose mistakes are counted (default: {SCORE_THRESHOLD}); AP and AR take all",
    )  # fmt: skip
    parser.add_argument(
        "--iou-threshold",
        type=float,
        default=0.5,
        metavar="IOU",
        help="of detection and box (default: 0.5)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold is {args.score_threshold:g}; it lies between 0 and 1")
    if not LOOSE_IOU < args.iou_threshold <= 1:
        parser.error(
            f"--iou-threshold is {args.iou_threshold:g}; it lies above {LOOSE_IOU} and not above 1"
        )
    if not 1 <= args.worst <= MOST_WORST:
        parser.error(f"--worst is {args.worst}; it lies between 1 and {MOST_WORST}")
    return args


def analyze(
    coco: COCO, results: list[dict[str, Any]], images: list[Any] | None, args: argparse.Namespace
) -> Report:
    """Everything but the drawings."""
    thresholds = {"score_threshold": args.score_threshold, "iou_threshold": args.iou_threshold}
    evaluation = run_evaluation(coco, results, images)
    image_rows = examine(coco, results, images, **thresholds)
    matrix, names = confusion_matrix(coco, results, images=images, **thresholds)
    ranking = ranked(image_rows)
    content = {
        "settings": {
            "results": str(args.results),
            "annotations": str(args.annotations),
            **thresholds,
        },
        "pictures": len(image_rows),
        "metrics": overall(evaluation),
        "classes": class_rows(evaluation, image_rows),
        "sizes": size_rows(evaluation, image_rows),
        "density": density_rows(coco, results, image_rows),
        "overlap": overlap_rows(image_rows),
        "crowd": crowd_counts(image_rows),
        "errors": error_counts(image_rows),
        "confusion": {"classes": names, "matrix": matrix.tolist()},
        "worst": [worst_row(errors, coco) for errors in ranking[: args.worst]],
    }
    return Report(content, matrix, names, ranking)


def worst_row(errors: ImageErrors, coco: COCO) -> Row:
    counts = {"boxes": errors.num_boxes, "missed": errors.num_missed, "false": errors.num_false}
    name = coco.imgs[errors.image_id]["file_name"]
    return {
        "picture": name,
        "mistakes": errors.num_missed + errors.num_false,
        **counts,
        "correct": errors.num_found,
    }


def markdown(report: Report) -> str:
    """The report as a text with tables."""
    content = report.content
    score, iou = content["settings"]["score_threshold"], content["settings"]["iou_threshold"]
    classes = content["classes"]
    detections, boxes = content["errors"]["detections"], content["errors"]["boxes"]
    sections = [
        f"# Errors of {content['settings']['results']}",
        f"Against {content['settings']['annotations']}: {content['pictures']} images. AP and AR, in percent, are "
        f"COCO's, over all detections; all else counts detections with a score of at least {score:g} and takes a "
        f"detection for right from an IoU of {iou:g} with a box of its class. recall is the part of the boxes that was "
        "found so, precision the part of these detections that is right.",
        table([content["metrics"]]),
        "## Classes",
        table([{"class": x["class"]} | {key: x[key] for key in CLASS_METRICS} for x in classes]),
        "## Sizes",
        "small: an area below 32 x 32 pixels, large: from 96 x 96 on, as annotated.",
        table(content["sizes"]),
        "## Crowding",
        "Images by their number of boxes (crowd regions do not count):",
        table(content["density"]),
        f"Boxes by whether they overlap another one of their image, of any class, by an IoU of at least "
        f"{TOUCHING_IOU:g}:",
        table(content["overlap"]),
        table([content["crowd"]]),
        "## Kinds of mistakes",
        "By falling score, a detection takes the free box of its class that it overlaps most. Of the others, ignored "
        "is one in a crowd region of its class, duplicate one on a box of its class that is taken, class confused one "
        "on a box of another class, localization one that overlaps a box of its class by an IoU of at least "
        f"{LOOSE_IOU:g}, but too little, and background the rest.",
        table([{"detections": kind, "count": count} for kind, count in detections.items()]),
        "A missed box is overlooked if no class confused and no localization detection lies on it.",
        table([{"boxes": fate, "count": count} for fate, count in boxes.items()]),
        "By the class of the detection, and missed by that of the box:",
        table([{"class": x["class"]} | {key: x[key] for key in CLASS_MISTAKES} for x in classes]),
        "## Confusions",
        "Here a detection takes the free box that it overlaps most, of whatever class.",
        confusion_table(report.matrix, report.names),
        "## Worst images",
        "By missed boxes plus false detections; the first are drawn in worst.jpg.",
        table(content["worst"]) if content["worst"] else "There is no mistake in any image.",
    ]
    return "\n\n".join(sections) + "\n"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of rows with the same keys: texts as they are, numbers with one digit, - where there is none."""
    texts = (
        [i for i, key in enumerate(rows[0]) if any(isinstance(row[key], str) for row in rows)]
        if rows
        else []
    )
    cells = [
        [escaped(value) if isinstance(value, str) else value for value in row.values()]
        for row in rows
    ]
    headers = [escaped(key) for key in rows[0]] if rows else []
    # A class may be called 1e5: that is no number.
    return tabulate(
        cells, headers, tablefmt="github", floatfmt=".1f", missingval="-", disable_numparse=texts
    )


def escaped(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def confusion_table(matrix: np.ndarray, names: list[str]) -> str:
    """The confusion matrix, or of many classes the most frequent confusions."""
    true, detected = [*names, "(nothing)"], [*names, "(missed)"]
    if len(names) <= TABLE_CLASSES:
        headers = ["true \\ detected", *detected]
        rows = [[name, *counts] for name, counts in zip(true, matrix.tolist(), strict=True)]
        cells = [[escaped(name), *counts] for name, *counts in rows]
        return tabulate(
            cells, [escaped(x) for x in headers], tablefmt="github", disable_numparse=[0]
        )
    confused = matrix[:-1, :-1].copy()
    np.fill_diagonal(confused, 0)
    order = np.argsort(-confused, axis=None, kind="stable")[:CONFUSIONS]
    pairs = zip(*np.unravel_index(order, confused.shape), strict=True)
    found = [
        {"true": true[i], "detected": detected[j], "count": int(confused[i, j])} for i, j in pairs
    ]
    found = [row for row in found if row["count"]]
    return (
        f"The most frequent; all are in report.json.\n\n{table(found)}"
        if found
        else "No class is confused."
    )


def find_root(args: argparse.Namespace, coco: COCO) -> Path | None:
    """The folder of the images; None, with a note, if the default finds none."""
    try:
        return find_images(args.annotations, coco, args.images)
    except ResultsError as error:
        if args.images is not None:
            raise
        print(f"note: no worst.jpg: {error}", file=sys.stderr)
        return None


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_sheet(
    report: Report, coco: COCO, image_root: Path | None, args: argparse.Namespace, path: Path
) -> bool:
    """Draw the worst images; False if there is nothing to draw, and then no older sheet is left."""
    sheet = None
    if image_root is not None:
        sheet, notes = worst_sheet(coco, report.ranking, image_root, count=args.worst)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    if sheet is None:
        path.unlink(missing_ok=True)
        return False
    write_image(path, sheet)
    return True


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    output = args.output or args.results.parent / "errors"
    try:
        coco, results, images = load(args.results, args.annotations)
        image_root = find_root(args, coco)
        check_output_dir(output, option="--output")
        report = analyze(coco, results, images, args)
        text = markdown(report)
        write_text(output / "report.md", text)
        write_text(output / "report.json", json.dumps(report.content, indent=1, ensure_ascii=False))
        plot_confusion(report.matrix, report.names, output / "confusion.png")
        written = ["report.md", "report.json", "confusion.png"]
        if write_sheet(report, coco, image_root, args, output / "worst.jpg"):
            written.append("worst.jpg")
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    print("\n".join(str(output / name) for name in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
