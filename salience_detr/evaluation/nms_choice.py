"""AP of saved detections by the IoU threshold of a class-wise NMS on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from detectron2.layers import batched_nms
from detectron2.structures import BoxMode
from tqdm import tqdm

from salience_detr.evaluation.results import Detection, ImageId, Results, evaluate, summary

NmsRow: TypeAlias = dict[str, float | None]


def nms_rows(results: Results, thresholds: Sequence[float]) -> list[NmsRow]:
    """Return COCO's metrics without NMS, whose threshold is None, and with each threshold."""
    choices: list[float | None] = [None, *thresholds]

    rows = []
    for threshold in tqdm(choices, desc="NMS thresholds"):
        kept = results
        if threshold is not None:
            kept = suppress_duplicates(results, threshold)
        rows.append({"NMS IoU": threshold, **summary(evaluate(kept))})
    return rows


def best_nms_row(rows: Sequence[NmsRow]) -> NmsRow:
    """Return the row of the highest AP, of several the one of the highest AP50."""
    return max(rows, key=lambda row: (row["AP"] or 0.0, row["AP50"] or 0.0))


def suppress_duplicates(results: Results, iou_threshold: float) -> Results:
    """Return the results less what overlaps a better detection of its class in its image.

    It is what ``model.nms_iou_threshold`` does in the model, to detections clipped to the image.
    """
    by_image: dict[ImageId, list[Detection]] = defaultdict(list)
    for detection in results.detections:
        by_image[detection["image_id"]].append(detection)

    kept: list[Detection] = []
    for detections in by_image.values():
        corners = [
            BoxMode.convert(x["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for x in detections
        ]
        scores = torch.tensor([x["score"] for x in detections])
        classes = torch.tensor([x["category_id"] for x in detections])
        indices = batched_nms(torch.tensor(corners), scores, classes, iou_threshold)
        kept += [detections[i] for i in indices.tolist()]
    return replace(results, detections=kept)
