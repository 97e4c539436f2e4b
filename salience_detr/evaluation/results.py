"""Files of detections in COCO's results format: reading, checking, evaluating."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from salience_detr.data.coco_format import (
    DatasetError,
    first_fault,
    is_id,
    is_number,
    is_text,
    prepare_for_evaluation,
    read_coco,
)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class ResultsError(ValueError):
    """A file that cannot be evaluated."""


def read_results(path: Path) -> Any:
    """The content of a file of detections.

    Raises:
        ResultsError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON ({error}); it may be truncated") from error


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of an annotation file without mistakes.

    Raises:
        ResultsError: it cannot be read, or the first mistake.
    """
    try:
        content = read_coco(path)
    except DatasetError as error:
        raise ResultsError(str(error)) from error
    fault = first_fault(content, path)
    if fault is not None:
        raise ResultsError(f"{fault}; tools/check_dataset.py mends it with --fix")
    return content


def load(
    results_file: Path, annotation_file: Path
) -> tuple[COCO, list[dict[str, Any]], list[Any] | None]:
    """The annotations and the detections, checked against each other, and the images to evaluate on (None = all).

    Raises:
        ResultsError: naming the file and what is wrong with it.
    """
    results, content = read_results(results_file), read_annotations(annotation_file)
    if not isinstance(results, (list, dict)) or (
        isinstance(results, dict) and "annotations" not in results
    ):
        raise ResultsError(
            f"{results_file} holds a {type(results).__name__}, not a list of detections"
        )
    images = None
    if isinstance(results, dict):  # what demo.py --json writes, for some of the images
        results, images = with_ids_of(results, content, results_file)
    for i, result in enumerate(results):
        check_detection(result, f"detection {i} of {results_file}")
    for key, known in (("image_id", "images"), ("category_id", "categories")):
        unknown = sorted({x[key] for x in results} - {x["id"] for x in content[known]}, key=str)
        if unknown:
            raise ResultsError(
                f"{results_file} has the {key} {unknown[0]!r}, unknown to {annotation_file}; are they of one data set?"
            )
    prepare_for_evaluation(content["annotations"])
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
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(x) for x in box):
        raise ResultsError(f"{where} has the bbox {box}, not four numbers (x, y, width, height)")
    if min(box[2:]) < 0:
        raise ResultsError(
            f"{where} has the bbox {box}, whose width or height is negative; it is (x, y, width, height)"
        )
    if not is_number(score):
        raise ResultsError(f"{where} has the score {score!r}, not a number")
    for key in ("image_id", "category_id"):
        if not is_id(result[key]):
            raise ResultsError(f"{where} has the {key} {result[key]!r}, not a number or a text")


def with_ids_of(
    found: dict[str, Any], content: dict[str, Any], results_file: Path
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Detections of demo.py, which counts images as they come, with the image ids of the annotations.

    Returns:
        The detections, and the ids of all images that were looked at.

    Raises:
        ResultsError: the file is not of demo.py, or an image is not in the annotations.
    """
    check_lists_of_demo(found, results_file)
    by_name: dict[str, list[Any]] = {}
    for image in content["images"]:
        by_name.setdefault(Path(image["file_name"]).name, []).append(image["id"])
    ids: dict[Any, Any] = {}
    for image in found["images"]:
        matches = by_name.get(Path(image["file_name"]).name, [])
        if len(matches) != 1 or "frame" in image:
            raise ResultsError(
                f"{results_file}: the image {image['file_name']} is {len(matches)} times in the annotations by its "
                "name, and must be once; evaluate detections of the data set's own images"
            )
        if matches[0] in ids.values():
            raise ResultsError(
                f"{results_file} has two images called {Path(image['file_name']).name}; keep one of them"
            )
        ids[image["id"]] = matches[0]
    detections = [{**x, "image_id": ids[x["image_id"]]} for x in found["annotations"]]
    return detections, sorted(ids.values())


def check_lists_of_demo(found: dict[str, Any], results_file: Path) -> None:
    """Raise ResultsError if images and detections are not as demo.py writes them, or do not belong together."""
    for key in ("images", "annotations"):
        if not isinstance(found.get(key), list):
            raise ResultsError(
                f"{results_file} has no list {key!r}, which a file of demo.py --json has"
            )
    for i, image in enumerate(found["images"]):
        if (
            not isinstance(image, dict)
            or not is_id(image.get("id"))
            or not is_text(image.get("file_name"))
        ):
            raise ResultsError(
                f"image {i} of {results_file} is {image!r:.80}, not an id and a file_name"
            )
    ids = {image["id"] for image in found["images"]}
    for i, detection in enumerate(found["annotations"]):
        check_detection(detection, f"detection {i} of {results_file}")
        if detection["image_id"] not in ids:
            raise ResultsError(
                f"detection {i} of {results_file} is of image {detection['image_id']!r}, not in its list"
            )


def evaluate(
    coco: COCO, results: list[dict[str, Any]], images: list[Any] | None = None
) -> COCOeval | None:
    """COCO's evaluation of boxes, accumulated and summarized; None if there are no detections."""
    return run_evaluation(coco, results, images) if results else None


def run_evaluation(
    coco: COCO, results: list[dict[str, Any]], images: list[Any] | None = None
) -> COCOeval:
    """The same without detections too: what there is to find then has an AP of 0.

    Args:
        coco: the annotations.
        results: detections.
        images: ids of the images that count; None for all.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            detections = coco.loadRes([dict(x) for x in results])
        else:  # which loadRes does not take
            detections = COCO()
            detections.dataset = {**coco.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(coco, detections, "bbox")
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def summary(evaluation: COCOeval | None) -> list[float]:
    """The six metrics in percent, NaN where there is nothing to find."""
    if evaluation is None:
        return [0.0] * len(METRICS)
    return [100 * x if x >= 0 else float("nan") for x in evaluation.stats[:6]]


def class_precisions(evaluation: COCOeval) -> dict[str, np.ndarray]:
    """(10, 101) precision of each class at IoU thresholds 0.5, 0.55, ... and recalls 0, 0.01, ...; else NaN."""
    precision = evaluation.eval["precision"]  # IoU x recall x class x area x detections
    precision = np.where(precision > -1, precision, np.nan)
    names = [category["name"] for category in evaluation.cocoGt.loadCats(evaluation.params.catIds)]
    return {name: precision[:, :, k, 0, -1] for k, name in enumerate(names)}


def confusion_matrix(
    coco: COCO,
    results: list[dict[str, Any]],
    *,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
    images: list[Any] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Which classes are taken for which.

    In each image detections, by falling score, take the free box that they overlap most, of whatever class. Crowd
    regions and detections in them are left out.

    Args:
        coco: the annotations.
        results: detections.
        score_threshold: of the detections that count.
        iou_threshold: of a detection and the box that it takes.
        images: ids of the images that count; None for all.

    Returns:
        (K + 1, K + 1) counts, true class by detected class, and the K names; the last row is of detections of nothing,
        the last column of boxes that were missed.
    """
    category_ids = sorted(coco.getCatIds())
    number = {category_id: i for i, category_id in enumerate(category_ids)}
    matrix = np.zeros((len(number) + 1, len(number) + 1), dtype=np.int64)
    found = by_image(results, score_threshold=score_threshold)
    for image_id in coco.getImgIds() if images is None else images:
        truth, detections = truth_of(coco, image_id), found.get(image_id, [])
        overlaps = box_overlaps(detections, truth)
        crowd = np.array([bool(x["iscrowd"]) for x in truth], dtype=bool)
        free = ~crowd
        for detection, overlap in zip(detections, overlaps, strict=True):
            column = number[detection["category_id"]]
            candidates = np.where(free, overlap, 0.0)
            if len(truth) and candidates.max() >= iou_threshold:
                best = int(candidates.argmax())
                free[best] = False
                matrix[number[truth[best]["category_id"]], column] += 1
            elif not (overlap[crowd] >= iou_threshold).any():
                matrix[-1, column] += 1
        for annotation in (x for x, is_free in zip(truth, free, strict=True) if is_free):
            matrix[number[annotation["category_id"]], -1] += 1
    return matrix, [coco.loadCats([i])[0]["name"] for i in category_ids]


def by_image(
    results: list[dict[str, Any]], *, score_threshold: float
) -> dict[Any, list[dict[str, Any]]]:
    """The detections with at least a score, by falling score, of each image's id."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda x: -x["score"]):
        if result["score"] >= score_threshold:
            found.setdefault(result["image_id"], []).append(result)
    return found


def truth_of(coco: COCO, image_id: Any) -> list[dict[str, Any]]:
    """The annotations of an image, crowd regions included."""
    annotations: list[dict[str, Any]] = coco.imgToAnns.get(image_id, [])
    return annotations


def box_overlaps(detections: list[dict[str, Any]], truth: list[dict[str, Any]]) -> np.ndarray:
    """(detections, truth) IoU of (x, y, width, height) boxes; with a crowd region, the part that lies in it."""
    if not detections or not truth:
        return np.zeros((len(detections), len(truth)))
    boxes = [
        np.asarray([x["bbox"] for x in side], dtype=np.float64) for side in (detections, truth)
    ]
    return np.asarray(mask.iou(*boxes, [int(x["iscrowd"]) for x in truth]))
