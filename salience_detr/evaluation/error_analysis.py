"""What kinds of mistakes detections make: on which classes, sizes and images.

Detections count from a score on. In each image they take, by falling score, the free box of their class that they
overlap most, if by the IoU threshold: such a detection is correct, as in COCO's evaluation. Of the others

- "ignored" is one in a crowd region of its class,
- "duplicate" one on a box of its class that a better detection has taken,
- "class confused" one on a box of another class,
- "localization" one that overlaps a box of its class by ``LOOSE_IOU`` at least, but by less than the threshold,
- "background" any other; the first that fits, in this order.

A box that no detection took is missed. It is "class confused" or "localization" if such a detection lies on it, else
"overlooked".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from salience_detr.data.preparation.statistics import MEDIUM, SMALL
from salience_detr.evaluation.results import (
    METRICS,
    box_overlaps,
    by_image,
    run_evaluation,
    summary,
    truth_of,
)

Row = dict[str, Any]

FALSE_KINDS = ("localization", "class confused", "duplicate", "background")
KINDS = ("correct", *FALSE_KINDS, "ignored")  # of detections
MISSED_FATES = ("class confused", "localization", "overlooked")
FATES = ("found", *MISSED_FATES, "crowd")  # of boxes
# From which overlap on a detection means a box, if badly.
LOOSE_IOU = 0.1
# From which IoU with another box of its image a box counts as overlapping.
TOUCHING_IOU = 0.1
# Least numbers of boxes of the images of each row, and its name.
DENSITIES = ((0, "none"), (1, "few (1 to 4)"), (5, "medium (5 to 9)"), (10, "many (10 or more)"))
SIZES = ("small", "medium", "large")  # in the order of COCOeval's area ranges, after "all"


@dataclass(frozen=True)
class ImageErrors:
    """What became of the detections and the boxes of one image.

    Attributes:
        image_id: in the annotations.
        truth: its annotations, crowd regions included.
        detections: those that count, by falling score.
        kinds: of each detection, one of ``KINDS``.
        fates: of each annotation, one of ``FATES``.
    """

    image_id: Any
    truth: list[dict[str, Any]]
    detections: list[dict[str, Any]]
    kinds: list[str]
    fates: list[str]

    @property
    def num_boxes(self) -> int:
        """Without crowd regions."""
        return len(self.fates) - self.fates.count("crowd")

    @property
    def num_found(self) -> int:
        return self.fates.count("found")

    @property
    def num_missed(self) -> int:
        return self.num_boxes - self.num_found

    @property
    def num_false(self) -> int:
        return sum(kind in FALSE_KINDS for kind in self.kinds)


def examine(
    coco: COCO,
    results: list[dict[str, Any]],
    images: list[Any] | None = None,
    *,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
) -> list[ImageErrors]:
    """The mistakes on each image, in the order of the annotations.

    Args:
        coco: the annotations.
        results: detections in COCO's results format.
        images: ids of the images that count; None for all.
        score_threshold: of the detections that count.
        iou_threshold: of a detection and the box that it takes.
    """
    found = by_image(results, score_threshold=score_threshold)
    wanted = set(coco.imgs) if images is None else set(images)
    return [
        examine_image(
            entry["id"], truth_of(coco, entry["id"]), found.get(entry["id"], []), iou_threshold
        )
        for entry in coco.dataset["images"]
        if entry["id"] in wanted
    ]


def examine_image(
    image_id: Any,
    truth: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    iou_threshold: float,
) -> ImageErrors:
    """The same of one image with its detections by falling score."""
    overlaps = box_overlaps(detections, truth)
    same = np.array(
        [[x["category_id"] == y["category_id"] for y in truth] for x in detections], dtype=bool
    )
    same = same.reshape(overlaps.shape)
    crowd = np.array([bool(x["iscrowd"]) for x in truth], dtype=bool)
    free = ~crowd
    kinds = [""] * len(detections)
    for i, overlap in enumerate(overlaps):
        candidates = np.where(free & same[i], overlap, 0.0)
        if len(truth) and candidates.max() >= iou_threshold:
            free[candidates.argmax()] = False
            kinds[i] = "correct"
    fates = ["crowd" if is_crowd else "overlooked" if is_free else "found"
             for is_crowd, is_free in zip(crowd, free, strict=True)]  # fmt: skip
    for i, overlap in enumerate(overlaps):
        if kinds[i]:
            continue
        kinds[i], related = kind_of_mistake(overlap, same[i], crowd, iou_threshold)
        # On a box that two kinds lie on, the class was wrong at a fitting place: that says more.
        if related is not None and fates[related] in ("overlooked", "localization"):
            fates[related] = kinds[i]
    return ImageErrors(image_id, truth, detections, kinds, fates)


def kind_of_mistake(
    overlap: np.ndarray, same: np.ndarray, crowd: np.ndarray, iou_threshold: float
) -> tuple[str, int | None]:
    """The kind of a detection that took no box, and the annotation that it was meant for, if there is one.

    Args:
        overlap: (G,) with each annotation.
        same: (G,) whether it is of the detection's class.
        crowd: (G,) whether it is a crowd region.
        iou_threshold: from which on a detection is at the right place.
    """
    if (overlap[same & crowd] >= iou_threshold).any():
        return "ignored", None
    if (overlap[same & ~crowd] >= iou_threshold).any():
        return "duplicate", None
    for kind, boxes, least in (
        ("class confused", ~same & ~crowd, iou_threshold),
        ("localization", same & ~crowd, min(LOOSE_IOU, iou_threshold)),
    ):
        candidates = np.where(boxes, overlap, 0.0)
        if len(candidates) and candidates.max() >= least:
            return kind, int(candidates.argmax())
    return "background", None


def ranked(images: Sequence[ImageErrors]) -> list[ImageErrors]:
    """The images with mistakes, worst first: by missed boxes plus false detections, then by missed boxes."""
    with_mistakes = [x for x in images if x.num_missed + x.num_false]
    return sorted(with_mistakes, key=lambda x: (-x.num_missed - x.num_false, -x.num_missed))


def overall(evaluation: COCOeval) -> Row:
    """COCO's six metrics in percent, None where there is nothing to find."""
    return {
        name: none_for_nan(value) for name, value in zip(METRICS, summary(evaluation), strict=True)
    }


def class_rows(evaluation: COCOeval, images: Sequence[ImageErrors]) -> list[Row]:
    """Of each class: its boxes, its metrics, and what its detections and boxes became."""
    boxes: Counter[Any] = Counter()
    kinds: Counter[tuple[Any, str]] = Counter()
    for image in images:
        boxes.update(x["category_id"] for x in image.truth if not x["iscrowd"])
        kinds.update(
            (x["category_id"], kind) for x, kind in zip(image.detections, image.kinds, strict=True)
        )
    rows = []
    for k, category in enumerate(evaluation.cocoGt.loadCats(evaluation.params.catIds)):
        key, count = category["id"], boxes[category["id"]]
        correct, false = kinds[key, "correct"], sum(kinds[key, kind] for kind in FALSE_KINDS)
        metrics = {
            "AP": precision_of(evaluation, k),
            "AP50": precision_of(evaluation, k, iou=0),
            "AP75": precision_of(evaluation, k, iou=5),
            **{
                f"AP{size[0]}": precision_of(evaluation, k, area=i)
                for i, size in enumerate(SIZES, 1)
            },
            "AR": recall_of(evaluation, k),
        }
        rates = {"recall": percent(correct, count), "precision": percent(correct, correct + false)}
        mistakes = {kind: kinds[key, kind] for kind in KINDS} | {"missed": count - correct}
        rows.append({"class": category["name"], "boxes": count, **metrics, **rates, **mistakes})
    return rows


def size_rows(evaluation: COCOeval, images: Sequence[ImageErrors]) -> list[Row]:
    """Of small, medium and large boxes (by the annotated area): their number, AP, AR and how many were found."""
    counts, found = [0, 0, 0], [0, 0, 0]
    for image in images:
        for annotation, fate in zip(image.truth, image.fates, strict=True):
            size = sum(annotation["area"] >= side**2 for side in (SMALL, MEDIUM))
            counts[size] += fate != "crowd"
            found[size] += fate == "found"
    return [
        {
            "size": name,
            "boxes": counts[i],
            "AP": precision_of(evaluation, area=i + 1),
            "AR": recall_of(evaluation, area=i + 1),
            "missed": counts[i] - found[i],
            "recall": percent(found[i], counts[i]),
        }
        for i, name in enumerate(SIZES)
    ]


def density_rows(
    coco: COCO, results: list[dict[str, Any]], images: Sequence[ImageErrors]
) -> list[Row]:
    """Of images with no, few, medium and many boxes: how many there are, and how well they fare."""
    groups: list[list[ImageErrors]] = [[] for _ in DENSITIES]
    for image in images:
        groups[sum(image.num_boxes >= least for least, _ in DENSITIES) - 1].append(image)
    rows = []
    for (_, name), group in zip(DENSITIES, groups, strict=True):
        ids = {x.image_id for x in group}
        boxes, found = sum(x.num_boxes for x in group), sum(x.num_found for x in group)
        false = sum(x.num_false for x in group)
        metrics: Row = {"AP": None, "AP50": None}
        if boxes:
            evaluation = run_evaluation(
                coco, [x for x in results if x["image_id"] in ids], list(ids)
            )
            metrics = {name: overall(evaluation)[name] for name in metrics}
        counts = {
            "pictures": len(group),
            "boxes": boxes,
            **metrics,
            "missed": boxes - found,
            "false": false,
        }
        per_image = round(false / len(group), 2) if group else None
        row = {"boxes in the image": name, **counts, "false per image": per_image}
        rows.append({**row, "recall": percent(found, boxes)})
    return rows


def overlap_rows(images: Sequence[ImageErrors]) -> list[Row]:
    """Of boxes that overlap another one of their image (of any class) and of those that do not: how many were
    found."""
    fates: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for image in images:
        boxes = [x for x in image.truth if not x["iscrowd"]]
        own = [fate for fate in image.fates if fate != "crowd"]
        overlaps = box_overlaps(boxes, boxes)
        np.fill_diagonal(overlaps, 0.0)
        for overlap, fate in zip(overlaps, own, strict=True):
            fates[bool((overlap >= TOUCHING_IOU).any())][fate] += 1
    return [
        {
            "box": "overlaps another" if touches else "stands alone",
            "boxes": fates[touches].total(),
            **{fate: fates[touches][fate] for fate in FATES[:-1]},
            "recall": percent(fates[touches]["found"], fates[touches].total()),
        }
        for touches in (False, True)
    ]


def crowd_counts(images: Sequence[ImageErrors]) -> Row:
    """How many crowd regions there are, in how many images, and how many detections in them were ignored."""
    return {
        "crowd regions": sum(x.fates.count("crowd") for x in images),
        "images with crowd regions": sum("crowd" in x.fates for x in images),
        "detections ignored in them": sum(x.kinds.count("ignored") for x in images),
    }


def error_counts(images: Sequence[ImageErrors]) -> dict[str, Row]:
    """How many detections are of each of ``KINDS``, and how many boxes came to each of ``FATES``."""
    kinds = Counter(kind for x in images for kind in x.kinds)
    fates = Counter(fate for x in images for fate in x.fates)
    return {
        "detections": {kind: kinds[kind] for kind in KINDS},
        "boxes": {fate: fates[fate] for fate in FATES}
        | {"missed": sum(fates[fate] for fate in MISSED_FATES)},
    }


def precision_of(
    evaluation: COCOeval,
    category: int | slice = slice(None),
    *,
    iou: int | slice = slice(None),
    area: int = 0,
) -> float | None:
    """Average precision in percent; None where there is nothing to find.

    Args:
        evaluation: of COCO.
        category: number of the class; all for their mean.
        iou: number of the IoU threshold; all for their mean.
        area: number of the range of areas: all, small, medium, large.
    """
    return mean_percent(evaluation.eval["precision"][iou, :, category, area, -1])


def recall_of(
    evaluation: COCOeval, category: int | slice = slice(None), *, area: int = 0
) -> float | None:
    """Recall in percent, averaged over the IoU thresholds, of at most 100 detections per image; else as above."""
    return mean_percent(evaluation.eval["recall"][:, category, area, -1])


def mean_percent(values: np.ndarray) -> float | None:
    """The mean of the values that there are: COCOeval writes -1 for the others."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else None


def percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
