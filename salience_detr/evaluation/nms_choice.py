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

NmsRow: TypeAlias = dict[str, float | str | None]

# Arguments of suppress_duplicates by kind of NMS; those of the model are named nms_...
KINDS = {
    "hard": {"soft": False, "box_voting": False},
    "box voting": {"soft": False, "box_voting": True},
    "soft": {"soft": True, "box_voting": False},
}


def nms_rows(results: Results, thresholds: Sequence[float]) -> list[NmsRow]:
    """Return COCO's metrics by ``NMS IoU`` and ``kind``, a key of :data:`KINDS`.

    The first row is without NMS, both None; each threshold has a row for every kind.
    """
    choices: list[tuple[float | None, str | None]] = [(None, None)]
    choices += [(iou, kind) for iou in thresholds for kind in kinds_at(iou)]

    rows = []
    for iou, kind in tqdm(choices, desc="NMS thresholds"):
        kept = results
        if iou is not None and kind is not None:
            kept = suppress_duplicates(results, iou, **KINDS[kind])
        rows.append({"NMS IoU": iou, "kind": kind, **summary(evaluate(kept))})
    return rows


def kinds_at(iou_threshold: float) -> list[str]:
    """Return the kinds that a threshold has: above an IoU of 1 there are no scores to lower."""
    return [kind for kind in KINDS if kind != "soft" or iou_threshold < 1]


def best_nms_row(rows: Sequence[NmsRow]) -> NmsRow:
    """Return the row of the highest AP, of several the one of the highest AP50."""
    return max(rows, key=lambda row: (row["AP"] or 0.0, row["AP50"] or 0.0))


def overrides_of(row: NmsRow) -> str:
    """Return the overrides by which any model has the NMS of a row, or none."""
    iou, kind = row["NMS IoU"], row["kind"]
    threshold = "null" if iou is None else f"{iou:g}"
    words = [f"model.nms_iou_threshold={threshold}"]
    arguments = KINDS["hard" if kind is None else str(kind)]
    words += [f"model.nms_{name}={value}" for name, value in arguments.items()]
    return " ".join(words)


def suppress_duplicates(
    results: Results, iou_threshold: float, *, soft: bool = False, box_voting: bool = False
) -> Results:
    """Return the results after class-wise NMS in each image.

    It is what ``model.nms_iou_threshold``, ``nms_soft`` and ``nms_box_voting`` do in the model, to
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
        by_score = instances.scores.argsort(descending=True, stable=True)
        rest = postprocess.suppress_duplicates(
            instances[by_score], iou_threshold, soft=soft, box_voting=box_voting
        )

        for i, index in enumerate(rest.index.tolist()):
            box = rest.pred_boxes.tensor[i].tolist()
            changed = detections[index].copy()
            changed["bbox"] = BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            if soft:
                changed["score"] = rest.scores[i].item()
            kept.append(changed)
    return replace(results, detections=kept)
