"""Report what a detector gets wrong, and which score thresholds suit it best."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pycocotools.coco import COCO
from tabulate import tabulate

from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.analyze_errors import parse_args
from salience_detr.cli.threshold_storage import thresholds_by_file
from salience_detr.evaluation.ap_table import read_evaluated
from salience_detr.evaluation.comparison import QUALITY, find_image_folder
from salience_detr.evaluation.confusion import confusion_matrix
from salience_detr.evaluation.error_analysis import (
    BACKGROUND_IOU,
    FALSE_POSITIVES,
    TOUCHING_IOU,
    ImageErrors,
    Outcome,
    Row,
    class_rows,
    crowd_counts,
    density_rows,
    error_counts,
    find_errors,
    overlap_rows,
    rank_by_errors,
    size_rows,
    type_counts,
)
from salience_detr.evaluation.error_costs import cost_rows
from salience_detr.evaluation.nms_choice import NmsRow, best_nms_row, nms_rows, overrides_of
from salience_detr.evaluation.plots import plot_confusion, plot_error_types, plot_score_curves
from salience_detr.evaluation.results import (
    METRICS,
    Results,
    ResultsError,
    evaluate,
    load_results,
    summary,
)
from salience_detr.evaluation.score_curves import (
    ScoreCurve,
    best_thresholds,
    overall_curve,
    score_curves,
)
from salience_detr.evaluation.threshold_rows import curve_values, step_rows, threshold_rows
from salience_detr.evaluation.worst_images import draw_worst_images
from salience_detr.export.thresholds import write_thresholds
from salience_detr.utils.files import check_output_dir, write_image, write_text

Cell: TypeAlias = str | int | float | None

CLASS_METRICS = ("class", "boxes", *METRICS, "AR", "recall", "precision")
ERROR_KEYS = tuple(outcome.value for outcome in FALSE_POSITIVES)
CLASS_ERRORS = ("class", Outcome.CORRECT.value, *ERROR_KEYS, "missed")
# Words of the printed tables for keys of report.json, which older reports have too.
LABELS = {
    **{outcome.value: outcome.label for outcome in (*FALSE_POSITIVES, Outcome.MISS)},
    "missed": "not found",
    "picture": "image",
    "pictures": "images",
    "boxes in the picture": "boxes in the image",
    "false per picture": "false per image",
    "pictures with crowd regions": "images with crowd regions",
}
# With more classes, the most frequent confusions are listed instead of the matrix.
MAX_MATRIX_CLASSES = 20
NUM_CONFUSIONS = 20


def analyze(
    results: Results, curves: Sequence[ScoreCurve], args: argparse.Namespace
) -> tuple[dict[str, Any], list[ImageErrors]]:
    """Compute the content of the report.

    Returns:
        The content of report.json: settings, metrics and rows of the tables, with None where there
        is nothing to measure; and the images with errors, worst first.
    """
    thresholds = {"score_threshold": args.score_threshold, "iou_threshold": args.iou_threshold}

    evaluation = evaluate(results)
    images = find_errors(results, **thresholds)
    ranking = rank_by_errors(images)
    matrix, names = confusion_matrix(results, **thresholds)

    best = best_thresholds(curves)
    rows = [] if best is None else threshold_rows(curves, best)
    overall = overall_curve(curves)

    paths = {"results": str(args.results), "annotations": str(args.annotations)}
    content = {
        "settings": {**paths, **thresholds},
        "pictures": len(images),
        "metrics": summary(evaluation),
        "thresholds": rows,
        "nms": nms_rows(results, args.nms) if args.nms else [],
        "lowest_score": min((x["score"] for x in results.detections), default=None),
        "score_steps": step_rows(overall),
        "score_curves": [curve_values(curve) for curve in (overall, *curves)],
        "classes": class_rows(evaluation, images),
        "sizes": size_rows(evaluation, images),
        "density": density_rows(results, images),
        "overlap": overlap_rows(images),
        "crowd": crowd_counts(images),
        "errors": error_counts(images),
        "error_types": type_counts(images),
        "error_costs": cost_rows(results, args.iou_threshold),
        "confusion": {"classes": names, "matrix": matrix.tolist()},
        "worst": [worst_row(errors, results.coco) for errors in ranking[: args.worst]],
    }
    return content, ranking


def worst_row(errors: ImageErrors, coco: COCO) -> Row:
    return {
        "picture": coco.imgs[errors.image.image_id]["file_name"],
        "mistakes": errors.num_false_negatives + errors.num_false_positives,
        "boxes": errors.num_boxes,
        "missed": errors.num_false_negatives,
        "false": errors.num_false_positives,
        "correct": errors.num_found,
    }


def markdown(content: dict[str, Any]) -> str:
    """Return a report as a Markdown text with tables."""
    settings = content["settings"]
    confusion = content["confusion"]

    sections = [
        f"# Errors of {settings['results']}",
        f"Against {settings['annotations']}: {content['pictures']} images. AP and AR, in percent, "
        "are COCO's, over all detections. All else counts detections with a score of at least "
        f"{settings['score_threshold']:g}; a detection is correct from an IoU of "
        f"{settings['iou_threshold']:g} with a box of its class. recall is the part of the boxes "
        "that were found so, precision the part of these detections that are correct.",
        table([content["metrics"]]),
        "## Score thresholds",
        *threshold_sections(content),
        *nms_sections(content["nms"]),
        "## Classes",
        table(content["classes"], CLASS_METRICS),
        "## Sizes",
        "small: an area below 32 x 32 pixels, large: from 96 x 96 on, as annotated.",
        table(content["sizes"]),
        "## Crowding",
        "Images by their number of boxes (crowd regions do not count):",
        table(content["density"]),
        "Boxes by their overlap with other boxes of their image, of any class, from an IoU of "
        f"{TOUCHING_IOU:g} on:",
        table(content["overlap"]),
        table([content["crowd"]]),
        "## Error types",
        "Best first, detections take the free box of their class that they overlap most. Of the "
        "others, a detection is ignored in a crowd region of its class; Dupe on a box of its class "
        "that is taken; Cls on a box of another class; Loc where it overlaps a box of its class by "
        f"an IoU of at least {BACKGROUND_IOU:g}, but too little; Both where it so overlaps a box "
        "of another class only; and Bkg elsewhere.",
        table(count_rows("detections", content["errors"]["detections"])),
        "A box that is not found is Cls or Loc if such a detection lies on it, else Miss.",
        table(count_rows("boxes", content["errors"]["boxes"])),
        "By the class of the detection, and boxes not found by their own:",
        table(content["classes"], CLASS_ERRORS),
        "## What errors cost",
        f"AP at an IoU of {settings['iou_threshold']:g}, over all detections, if all errors of a "
        "type were mended. Of the Cls or Loc detections on a box that is not found, the best one "
        "gets its class and place; all other false detections of the type are removed, and with "
        "Miss the boxes. Types hide one another: their gains do not add up.",
        table(content["error_costs"]),
        "## Confusions",
        "Here detections take the free box that they overlap most, of whatever class.",
        confusion_table(np.array(confusion["matrix"]), confusion["classes"]),
        "## Worst images",
        "By boxes not found plus false detections; the first are drawn in worst.jpg.",
        table(content["worst"]) or "There is no mistake in any image.",
    ]
    return "\n\n".join(sections) + "\n"


def threshold_sections(content: dict[str, Any]) -> list[str]:
    """Return the paragraphs on score thresholds."""
    iou = content["settings"]["iou_threshold"]
    intro = (
        f"F1, precision and recall, in percent, at an IoU of {iou:g}. Detections with at least the "
        "threshold count; it has the highest F1 of all, and of several the highest."
    )
    if not content["thresholds"]:
        return [intro, "There is no best threshold: no detection is correct."]

    # As a text, a threshold keeps all of its digits.
    rows = []
    for row in content["thresholds"]:
        threshold = row["threshold"]
        rows.append(row | {"threshold": "" if threshold is None else str(threshold)})

    sections = [intro, table(rows), "All classes by one threshold:", table(content["score_steps"])]
    lowest = content["lowest_score"]
    if lowest is not None and lowest >= content["thresholds"][-2]["threshold"]:
        sections.append(
            f"The best threshold keeps all detections, whose lowest score is {lowest:.3g}: if more "
            "were left out of the file, it may be lower. Detect with --score-threshold 0."
        )
    return sections


def nms_sections(rows: Sequence[NmsRow]) -> list[str]:
    """Return the paragraphs on NMS, none if no threshold was asked for."""
    if not rows:
        return []

    best = best_nms_row(rows)
    choice = f"AP is highest with `{overrides_of(best)}`."
    if best["NMS IoU"] is None:
        choice = f"AP is highest without NMS: `{overrides_of(best)}`."

    # As a text, a threshold keeps all of its digits.
    cells = [
        row | {"NMS IoU": f"{row['NMS IoU'] or 'none'}", "kind": row["kind"] or ""} for row in rows
    ]
    return ["## Class-wise NMS", table(cells), choice]


def count_rows(name: str, counts: dict[str, int]) -> list[Row]:
    return [{name: LABELS.get(key, key), "count": count} for key, count in counts.items()]


def table(rows: Sequence[Mapping[str, Cell]], keys: Sequence[str] = ()) -> str:
    """Return a Markdown table of some keys of the rows, or of all; - where a value is None."""
    if not rows:
        return ""

    keys = keys or list(rows[0])
    headers = [escape(LABELS.get(key, key)) for key in keys]

    cells = []
    for row in rows:
        cells.append([escape(row[key]) for key in keys])

    # A class may be called 1e5: that is no number.
    texts = [i for i, cell in enumerate(cells[0]) if isinstance(cell, str)]
    style = {"tablefmt": "github", "floatfmt": ".1f", "missingval": "-"}
    return tabulate(cells, headers, disable_numparse=texts, **style)


def escape(cell: Cell) -> Cell:
    """Return a text as it can stand in a cell of a Markdown table; numbers stay as they are."""
    if isinstance(cell, str):
        return " ".join(cell.split()).replace("|", "\\|")
    return cell


def confusion_table(matrix: np.ndarray, names: list[str]) -> str:
    """Return the confusion matrix, or of many classes the most frequent confusions."""
    if len(names) <= MAX_MATRIX_CLASSES:
        columns = [*names, "(missed)"]
        rows = []
        for name, counts in zip([*names, "(background)"], matrix.tolist(), strict=True):
            rows.append({"true \\ detected": name} | dict(zip(columns, counts, strict=True)))
        return table(rows)

    # The last row and column are background and missed boxes, which are no confusions.
    confused = matrix[:-1, :-1].copy()
    np.fill_diagonal(confused, 0)
    order = np.argsort(-confused, axis=None, kind="stable")[:NUM_CONFUSIONS]

    rows = []
    for true, detected in np.column_stack(np.unravel_index(order, confused.shape)):
        count = int(confused[true, detected])
        if count:
            rows.append({"true": names[true], "detected": names[detected], "count": count})

    if not rows:
        return "No class is confused."
    return f"The most frequent; all are in report.json.\n\n{table(rows)}"


def find_images(args: argparse.Namespace, coco: COCO) -> Path | None:
    """Return the folder of the images, None, with a note, if none is given and none is found."""
    try:
        return find_image_folder(args.annotations, coco, args.images)
    except ResultsError as error:
        if args.images is not None:
            raise
        print(f"note: no worst.jpg: {error}", file=sys.stderr)
        return None


def write_worst_images(
    path: Path, ranking: list[ImageErrors], coco: COCO, image_root: Path | None, count: int
) -> bool:
    """Draw the worst images; without any, delete an older sheet and return False."""
    sheet = None
    if image_root is not None:
        sheet, notes = draw_worst_images(coco, ranking, image_root, count=count)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)

    # An older sheet would be taken for this report's.
    if sheet is None:
        path.unlink(missing_ok=True)
        return False
    write_image(path, sheet, quality=QUALITY)
    return True


def title_of(content: dict[str, Any]) -> str:
    """Return the title of the drawing of error types."""
    settings = content["settings"]
    evaluated = read_evaluated(Path(settings["results"]).parent)
    name = str(evaluated or Path(settings["annotations"]).name)
    return f"{name}: scores from {settings['score_threshold']:g}, IoU {settings['iou_threshold']:g}"


def plot_curves(path: Path, curves: Sequence[ScoreCurve], iou_threshold: float, title: str) -> bool:
    """Draw the curves; without any correct detection, delete an older drawing, return False."""
    if plot_score_curves(curves, path, iou_threshold=iou_threshold, title=title):
        return True
    path.unlink(missing_ok=True)
    return False


def run(args: argparse.Namespace) -> None:
    """Write the report, and print it.

    Raises:
        ResultsError: detections, annotations or images cannot be used.
        OSError: a file cannot be written.
    """
    # Folders are checked first, because the analysis of a large data set takes minutes.
    output = args.output or args.results.parent / "errors"
    results = load_results(args.results, args.annotations)
    image_root = find_images(args, results.coco)
    check_output_dir(output, option="--output")

    curves = score_curves(results, iou_threshold=args.iou_threshold)
    best = best_thresholds(curves)
    stored = thresholds_by_file(best, results.coco, args)

    content, ranking = analyze(results, curves, args)
    text = markdown(content)
    write_text(output / "report.md", text)
    write_text(output / "report.json", json.dumps(content, indent=1, ensure_ascii=False))
    confusion = content["confusion"]
    matrix = np.array(confusion["matrix"])
    title = title_of(content)
    plot_confusion(matrix, confusion["classes"], output / "confusion.png", title=title)
    plot_error_types(content["error_types"], output / "error_types.png", title=title)

    written = ["report.md", "report.json", "confusion.png", "error_types.png"]
    if plot_curves(output / "score_curves.png", curves, args.iou_threshold, title):
        written.append("score_curves.png")
    if write_worst_images(output / "worst.jpg", ranking, results.coco, image_root, args.worst):
        written.append("worst.jpg")

    print(text)
    print("\n".join(str(output / name) for name in written))

    for path, thresholds in stored.items():
        write_thresholds(path, thresholds)
        print(f"{path}: stored the thresholds of {len(thresholds.classes)} classes")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
