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

# Arguments of suppress_duplicates by form of the NMS; those of the model are named nms_...
FORMS = {"hard": {}, "voting": {"box_voting": True}, "soft": {"soft": True}}


def nms_rows(results: Results, thresholds: Sequence[float]) -> list[NmsRow]:
    """Return COCO's metrics by ``NMS IoU`` and ``form``, a key of :data:`FORMS`.

    The first row is without NMS, both None; each threshold has a row for every form.
    """
    choices: list[tuple[float | None, str | None]] = [(None, None)]
    choices += [(iou, form) for iou in thresholds for form in forms_at(iou)]

    rows = []
    for iou, form in tqdm(choices, desc="NMS thresholds"):
        kept = results
        if iou is not None and form is not None:
            kept = suppress_duplicates(results, iou, **FORMS[form])
        rows.append({"NMS IoU": iou, "form": form, **summary(evaluate(kept))})
    return rows


def forms_at(iou_threshold: float) -> list[str]:
    """Return the forms that a threshold has: above an IoU of 1 there are no scores to lower."""
    return [form for form in FORMS if form != "soft" or iou_threshold < 1]


def best_nms_row(rows: Sequence[NmsRow]) -> NmsRow:
    """Return the row of the highest AP, of several the one of the highest AP50."""
    return max(rows, key=lambda row: (row["AP"] or 0.0, row["AP50"] or 0.0))


def overrides_of(row: NmsRow) -> str:
    """Return the overrides by which a model has the NMS of a row, which is not the one without."""
    iou, form = row["NMS IoU"], row["form"]
    assert iou is not None and isinstance(form, str)
    words = [f"model.nms_iou_threshold={iou:g}"]
    words += [f"model.nms_{name}={value}" for name, value in FORMS[form].items()]
    return " ".join(words)


def suppress_duplicates(
    results: Results, iou_threshold: float, *, soft: bool = False, box_voting: bool = False
) -> Results:
    """Return the results less what overlaps a better detection of its class in its image.

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
