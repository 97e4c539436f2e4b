#!/usr/bin/env python
"""Average precision of a detections file in COCO's results format, as --eval-only writes it."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from salience_detr.data.datasets import fill_annotation_defaults

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class ResultsError(ValueError):
    """A file that cannot be evaluated."""


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON ({error}); it may be truncated") from error


def load(results_file: Path, annotation_file: Path) -> tuple[COCO, list[dict[str, Any]], list[Any] | None]:
    """The annotations and the detections, checked against each other, and the images to evaluate on (None = all).

    Raises:
        ResultsError: naming the file and what is wrong with it.
    """
    results, content = read_json(results_file), read_json(annotation_file)
    if not isinstance(results, (list, dict)) or (isinstance(results, dict) and "annotations" not in results):
        raise ResultsError(f"{results_file} holds a {type(results).__name__}, not a list of detections")
    images = None
    if isinstance(results, dict):  # what demo.py --json writes, for some of the pictures
        results, images = with_ids_of(results, content, results_file)
    if not isinstance(results, list):
        raise ResultsError(f"{results_file} holds a {type(results).__name__}, not a list of detections")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or key not in content:
            raise ResultsError(f"{annotation_file} has no {key!r}; it is not an annotation file in COCO's format")
    for i, result in enumerate(results):
        check_detection(result, f"detection {i} of {results_file}")
    for key, known in (("image_id", "images"), ("category_id", "categories")):
        unknown = sorted({x[key] for x in results} - {x["id"] for x in content[known]})
        if unknown:
            raise ResultsError(
                f"{results_file} has the {key} {unknown[0]}, unknown to {annotation_file}; are they of one data set?"
            )
    fill_annotation_defaults(content["annotations"])
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, results, images


def check_detection(result: Any, where: str) -> None:
    """Raise ResultsError if a detection is not one."""
    if not isinstance(result, dict):
        raise ResultsError(f"{where} is a {type(result).__name__}, not an object")
    missing = {"image_id", "category_id", "bbox", "score"} - result.keys()
    if missing:
        raise ResultsError(f"{where} has no {', '.join(sorted(missing))}")
    box, score = result["bbox"], result["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, (int, float)) for x in box):
        raise ResultsError(f"{where} has the bbox {box}, not four numbers (x, y, width, height)")
    if not isinstance(score, (int, float)):
        raise ResultsError(f"{where} has the score {score!r}, not a number")
    for key in ("image_id", "category_id"):
        if not isinstance(result[key], (int, str)):
            raise ResultsError(f"{where} has the {key} {result[key]!r}, not a number")


def with_ids_of(
    found: dict[str, Any], content: dict[str, Any], results_file: Path
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Detections of demo.py, which counts pictures as they come, with the image ids of the annotations.

    Returns:
        The detections, and the ids of all pictures that were looked at.
    """
    by_name: dict[str, list[Any]] = {}
    for image in content["images"]:
        by_name.setdefault(Path(image["file_name"]).name, []).append(image["id"])
    ids = {}
    for image in found.get("images", []):
        matches = by_name.get(Path(image["file_name"]).name, [])
        if len(matches) != 1 or "frame" in image:
            raise ResultsError(
                f"{results_file}: the picture {image['file_name']} is {len(matches)} times in the annotations by its "
                "name, and must be once; evaluate detections of the data set's own pictures"
            )
        ids[image["id"]] = matches[0]
    detections = [{**x, "image_id": ids.get(x.get("image_id"), x.get("image_id"))} for x in found["annotations"]]
    return detections, sorted(ids.values())


def evaluate(
    coco: COCO, results: list[dict[str, Any]], images: list[Any] | None
) -> tuple[list[float], list[tuple[str, float]]]:
    """The six metrics in percent (NaN where there is nothing to find), and AP per class."""
    if not results:
        return [0.0] * len(METRICS), []
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes([dict(x) for x in results]), "bbox")
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [100 * x if x >= 0 else float("nan") for x in evaluation.stats[:6]]
    precision = evaluation.eval["precision"]  # IoU x recall x class x area x detections
    per_class = []
    for k, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, k, 0, -1]
        values = values[values > -1]
        name = coco.loadCats([category_id])[0]["name"]
        per_class.append((name, 100 * float(np.mean(values)) if values.size else float("nan")))
    return stats, per_class


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    parser.add_argument("--classes", action="store_true", help="print AP per class too")
    args = parser.parse_args(argv)
    try:
        stats, per_class = evaluate(*load(args.results, args.annotations))
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tabulate([stats], headers=METRICS, floatfmt=".1f", tablefmt="github"))
    if args.classes:
        print(tabulate(per_class, headers=("class", "AP"), floatfmt=".1f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
