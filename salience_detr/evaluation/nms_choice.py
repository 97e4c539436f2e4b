"""AP of saved detections by the IoU threshold of a class-wise NMS on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from detectron2.structures import Boxes, BoxMode, Instances
from tqdm import tqdm

from salience_detr.evaluation.results import Detection, ImageId, Results, evaluate, summary
from salience_detr.modeling import postprocess

NmsRow: TypeAlias = dict[str, float | bool | None]


def nms_rows(results: Results, thresholds: Sequence[float]) -> list[NmsRow]:
    """Return COCO's metrics by ``NMS IoU`` and ``box voting``.

    The first row is without NMS, its IoU None; each threshold has a row without and with voting.
    """
    choices: list[tuple[float | None, bool]] = [(None, False)]
    for threshold in thresholds:
        choices += [(threshold, False), (threshold, True)]

    rows = []
    for iou, box_voting in tqdm(choices, desc="NMS thresholds"):
        kept = results
        if iou is not None:
            kept = suppress_duplicates(results, iou, box_voting=box_voting)
        rows.append({"NMS IoU": iou, "box voting": box_voting, **summary(evaluate(kept))})
    return rows


def best_nms_row(rows: Sequence[NmsRow]) -> NmsRow:
    """Return the row of the highest AP, of several the one of the highest AP50."""
    return max(rows, key=lambda row: (row["AP"] or 0.0, row["AP50"] or 0.0))


def suppress_duplicates(
    results: Results, iou_threshold: float, *, box_voting: bool = False
) -> Results:
    """Return the results less what overlaps a better detection of its class in its image.

    It is what ``model.nms_iou_threshold`` and ``model.nms_box_voting`` do in the model, to
    detections clipped to the image.
    """
    by_image: dict[ImageId, list[Detection]] = defaultdict(list)
    for detection in results.detections:
        by_image[detection["image_id"]].append(detection)

    kept: list[Detection] = []
    for detections in by_image.values():
        corners = [
            BoxMode.convert(x["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for x in detections
        ]
        instances = Instances(
            (0, 0),  # boxes are clipped already: the size does not matter
            pred_boxes=Boxes(torch.tensor(corners)),
            scores=torch.tensor([x["score"] for x in detections]),
            pred_classes=torch.tensor([x["category_id"] for x in detections]),
            index=torch.arange(len(detections)),
        )
        rest = postprocess.suppress_duplicates(instances, iou_threshold, box_voting=box_voting)

        for index, box in zip(rest.index.tolist(), rest.pred_boxes, strict=True):
            sides = BoxMode.convert(box.tolist(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            moved = detections[index].copy()
            moved["bbox"] = sides
            kept.append(moved)
    return replace(results, detections=kept)
