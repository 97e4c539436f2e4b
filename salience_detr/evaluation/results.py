"""Detections in COCO's results format: read, checked against annotations, and evaluated."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from salience_detr.data.coco_format import (
    LISTS,
    Content,
    DatasetError,
    Entry,
    distinct_names,
    entry_fault,
    first_fault,
    prepare_for_evaluation,
    read_coco,
)
from salience_detr.data.image_files import common_end
from salience_detr.evaluation.result_categories import CategoryError, match_categories
from salience_detr.utils.files import parse_json

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
ImageId = int | str
CategoryId = int | str


class ResultsError(ValueError):
    """A file of detections or annotations that cannot be evaluated."""


class Detection(TypedDict):
    """A detection as COCO's results format has it; ``bbox`` is (x, y, width, height) in pixels."""

    image_id: ImageId
    category_id: int
    bbox: list[float]
    score: float


class Annotation(TypedDict):
    """A ground-truth box, or a crowd region, completed by ``prepare_for_evaluation``."""

    id: int
    image_id: ImageId
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int


@dataclass(frozen=True)
class ImageResults:
    """Ground truth and detections of one image.

    Attributes:
        image_id: id of the image in the annotations.
        annotations: its G annotations, crowd regions included.
        detections: its D detections, best first.
    """

    image_id: ImageId
    annotations: list[Annotation]
    detections: list[Detection]

    @property
    def is_crowd(self) -> np.ndarray:
        """Return (G,) bool, True for crowd regions."""
        return np.array([x["iscrowd"] for x in self.annotations], dtype=bool)

    @property
    def overlaps(self) -> np.ndarray:
        """Return the (D, G) overlaps of detections and annotations, see :func:`box_overlaps`."""
        return box_overlaps(self.detections, self.annotations)


@dataclass(frozen=True)
class Results:
    """Detections together with the annotations that they are evaluated against.

    Attributes:
        coco: the annotations.
        detections: all detections, whatever their score.
        image_ids: ids of the images to evaluate on.
    """

    coco: COCO
    detections: list[Detection]
    image_ids: list[ImageId]

    def by_image(self, score_threshold: float) -> list[ImageResults]:
        """Return the images in the annotations' order, with detections of at least a score."""
        detections: dict[ImageId, list[Detection]] = {i: [] for i in self.coco.imgs}
        for detection in sorted(self.detections, key=lambda x: -x["score"]):
            if detection["score"] >= score_threshold:
                detections[detection["image_id"]].append(detection)

        chosen = set(self.image_ids)
        images = []
        for image_id in self.coco.imgs:
            if image_id in chosen:
                annotations = self.coco.imgToAnns[image_id]
                images.append(ImageResults(image_id, annotations, detections[image_id]))
        return images

    def subset(self, image_ids: list[ImageId]) -> Results:
        """Return the results of some images only."""
        chosen = set(image_ids)
        detections = [x for x in self.detections if x["image_id"] in chosen]
        return Results(self.coco, detections, image_ids)


def box_overlaps(
    detections: list[Detection] | list[Annotation], annotations: list[Annotation]
) -> np.ndarray:
    """Return the (detections, annotations) IoU, with a crowd region the part that lies in it."""
    if not detections or not annotations:
        return np.zeros((len(detections), len(annotations)))

    boxes = np.array([x["bbox"] for x in detections], dtype=np.float64)
    truth = np.array([x["bbox"] for x in annotations], dtype=np.float64)
    return np.asarray(mask.iou(boxes, truth, [x["iscrowd"] for x in annotations]))


def load_results(
    results_file: Path, annotation_file: Path, *, lists: Sequence[str] = LISTS
) -> Results:
    """Read detections and annotations, and check that they belong together.

    Detections that ``demo.py --json`` wrote are of some images only; they are evaluated on these.

    Args:
        results_file: detections.
        annotation_file: images, categories and annotations in COCO's format.
        lists: those of COCO's lists that it must have; to draw images, no annotations are needed.

    Raises:
        ResultsError: a file cannot be read or used; the message says which, and what is wrong.
    """
    content = read_results(results_file)
    truth = {"annotations": [], **read_annotations(annotation_file, lists)}
    detections: Any = content
    ids: dict[ImageId, ImageId] = {image["id"]: image["id"] for image in truth["images"]}

    category_ids: dict[CategoryId, CategoryId | None]
    category_ids = {category["id"]: category["id"] for category in truth["categories"]}

    # A list is COCO's results format, an object what demo.py writes, with ids of its own.
    if isinstance(content, dict):
        ids = match_demo_images(content.get("images"), truth["images"], results_file)
        detections = content.get("annotations")
        if content.get("categories"):
            try:
                category_ids = match_categories(content["categories"], truth["categories"])
            except CategoryError as error:
                raise ResultsError(f"{results_file}: {error} ({annotation_file})") from error
    check_entries("detections", detections, results_file)

    # pycocotools would leave such detections out without a word.
    for key, known in (("image_id", ids.keys()), ("category_id", category_ids.keys())):
        unknown = {detection[key] for detection in detections} - known
        if unknown:
            raise ResultsError(
                f"{results_file} has detections of the {key} {min(unknown, key=str)!r}, which is "
                f"unknown; do they belong to {annotation_file}?"
            )

    matched: list[Any] = []
    for detection in detections:
        category_id = category_ids[detection["category_id"]]
        if category_id is not None:
            own_ids = {"image_id": ids[detection["image_id"]], "category_id": category_id}
            matched.append({**detection, **own_ids})
    prepare_for_evaluation(truth["annotations"])
    return Results(make_coco(truth), matched, sorted(ids.values()))


def read_results(path: Path) -> Any:
    """Read a JSON file of detections, of whatever content.

    Raises:
        ResultsError: the file cannot be read, or is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON ({error}); it may be truncated") from error


def read_annotations(path: Path, lists: Sequence[str]) -> Content:
    """Read an annotation file in COCO's format.

    Raises:
        ResultsError: the file cannot be read, or has a mistake.
    """
    try:
        content = read_coco(path, lists=lists)
    except DatasetError as error:
        raise ResultsError(str(error)) from error

    fault = first_fault(content, path)
    if fault is not None:
        raise ResultsError(f"{fault}; tools/check_dataset.py repairs it with --fix")
    return content


def make_coco(content: Content) -> COCO:
    """Return pycocotools' index of annotations, without what it prints."""
    coco = COCO()
    coco.dataset = content

    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def category_names(coco: COCO) -> list[str]:
    """Return the names of the categories by rising id; names that several have get their ids."""
    return distinct_names(coco.loadCats(sorted(coco.getCatIds())))


def check_entries(kind: str, entries: Any, results_file: Path) -> None:
    """Raise ResultsError unless a results file has a list of valid "images" or "detections"."""
    if not isinstance(entries, list):
        raise ResultsError(
            f"{results_file} has no list of {kind}; it is not COCO's results format, nor a file of "
            "demo.py --json"
        )

    for i, entry in enumerate(entries):
        fault = entry_fault(kind, entry, without=("height", "width"))
        if fault is not None:
            raise ResultsError(f"number {i} of the {kind} in {results_file} {fault}")


def match_demo_images(
    images: Any, annotated: list[Entry], results_file: Path
) -> dict[ImageId, ImageId]:
    """Find each image of demo.py, which numbers images as they come, in the annotations by name.

    Raises:
        ResultsError: an image is not in the annotations, or its name is there or here twice.
    """
    check_entries("images", images, results_file)
    by_name: dict[str, list[Entry]] = {}
    for entry in annotated:
        by_name.setdefault(parts_of(entry["file_name"])[-1], []).append(entry)

    ids: dict[ImageId, ImageId] = {}
    taken: dict[ImageId, str] = {}
    for image in images:
        name = image["file_name"]
        matches = best_matches(name, by_name.get(parts_of(name)[-1], []))

        # Frames of a video have the video's name, which an image may have, too.
        if len(matches) != 1 or "frame" in image:
            raise ResultsError(
                f"{results_file}: the image {name} is {len(matches)} times in the annotations by "
                "its name, and must be once; evaluate detections of the data set's own images"
            )
        image_id = matches[0]["id"]
        if image_id in taken:
            raise ResultsError(
                f"{results_file} has two images called {matches[0]['file_name']} in the "
                f"annotations ({taken[image_id]} and {name}); keep one of them"
            )

        taken[image_id] = name
        ids[image["id"]] = image_id
    return ids


def parts_of(file_name: str) -> list[str]:
    """Return the parts of a path, which may have Windows' separators."""
    return [part for part in file_name.replace("\\", "/").split("/") if part] or [""]


def best_matches(name: str, entries: list[Entry]) -> list[Entry]:
    """Return the annotated images whose names end with the most parts of a path.

    Frames of several folders may have the same name: their folders tell them apart.
    """
    by_length: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        length = common_end(parts_of(name), parts_of(entry["file_name"]))
        by_length[length].append(entry)
    return by_length[max(by_length, default=0)]


def prepare_evaluation(results: Results) -> COCOeval:
    """Return COCO's evaluation of boxes, not run yet."""
    with contextlib.redirect_stdout(io.StringIO()):
        if results.detections:
            # Copies, as loadRes adds keys to what it is given.
            detections = results.coco.loadRes([dict(x) for x in results.detections])
        else:
            # loadRes fails without detections.
            detections = make_coco({**results.coco.dataset, "annotations": []})

    evaluation = COCOeval(results.coco, detections, "bbox")
    evaluation.params.imgIds = results.image_ids
    return evaluation


def evaluate(results: Results) -> COCOeval:
    """Run COCO's evaluation of boxes; without detections, AP is 0 where there are boxes."""
    evaluation = prepare_evaluation(results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def summary(evaluation: COCOeval) -> dict[str, float | None]:
    """Return COCO's six metrics in percent, None where there are no boxes."""
    metrics: dict[str, float | None] = {}
    for name, value in zip(METRICS, evaluation.stats, strict=False):
        # COCOeval writes -1 where there is nothing to measure.
        metrics[name] = None if value < 0 else 100 * float(value)
    return metrics


def class_precisions(evaluation: COCOeval) -> dict[str, np.ndarray]:
    """Return the precision of each class, (10 IoU thresholds, 101 recalls); NaN without boxes."""
    # (IoU thresholds, recalls, classes, areas, limits of detections per image), -1 for none.
    precision = evaluation.eval["precision"]
    precision = np.where(precision > -1, precision, np.nan)

    names = category_names(evaluation.cocoGt)
    return {name: precision[:, :, k, 0, -1] for k, name in enumerate(names)}
