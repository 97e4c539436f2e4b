"""Class-wise NMS on saved detections."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO

from salience_detr.config import load_config
from salience_detr.evaluation import nms_choice
from salience_detr.evaluation.nms_choice import best_nms_row, nms_rows, overrides_of
from salience_detr.evaluation.results import Results
from salience_detr.modeling.postprocess import suppress_duplicates


def detection(bbox, score, *, image=1, category=1):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def make_results(*detections):
    """Return results on two images, each with a box of class 1 at (10, 10, 20, 20)."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2)],
        "categories": [{"id": 1, "name": "pit"}, {"id": 2, "name": "dent"}],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [10, 10, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            for i in (1, 2)
        ],
    }
    coco.createIndex()
    return Results(coco, list(detections), [1, 2])


def test_only_worse_detections_of_the_same_class_and_image_are_left_out():
    best = detection([10, 10, 20, 20], 0.9)
    others = [
        detection([10, 10, 20, 18], 0.8, category=2),
        detection([10, 10, 20, 18], 0.8, image=2),
        detection([10, 10, 20, 10], 0.7),  # IoU .5
    ]
    duplicate = detection([10, 10, 20, 18], 0.8)  # IoU .9
    results = make_results(duplicate, *others, best)

    kept = nms_choice.suppress_duplicates(results, 0.6).detections
    assert duplicate not in kept
    assert len(kept) == 4
    assert all(x in kept for x in [best, *others])
    assert results.detections[0] is duplicate


@pytest.mark.parametrize("kind", nms_choice.KINDS)
def test_it_does_what_the_model_does(kind):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(200, 2, generator=generator) * 60
    size = torch.rand(200, 2, generator=generator) * 30 + 10
    scores = torch.rand(200, generator=generator).sort(descending=True).values
    classes = torch.randint(1, 3, (200,), generator=generator)
    instances = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.cat([low, low + size], dim=1)),
        scores=scores,
        pred_classes=classes,
    )

    detections = []
    boxes = torch.cat([low, size], dim=1).tolist()
    for box, score, category in zip(boxes, scores.tolist(), classes.tolist(), strict=True):
        detections.append(detection(box, score, category=category))
    results = make_results(*reversed(detections))  # files need not be in the order of scores
    arguments = nms_choice.KINDS[kind]
    kept = nms_choice.suppress_duplicates(results, 0.5, **arguments).detections

    expected = suppress_duplicates(instances, 0.5, **arguments)
    assert 20 < len(expected) < 180 or (kind == "soft" and len(expected) == 200)
    assert expected.scores.tolist() == sorted(expected.scores.tolist(), reverse=True)
    assert [x["score"] for x in kept] == pytest.approx(expected.scores.tolist())
    boxes = BoxMode.convert(expected.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    torch.testing.assert_close(torch.tensor([x["bbox"] for x in kept]), boxes)


def test_ap_by_threshold():
    # The duplicate stands before the box of the other image: precision .67 for its recall.
    results = make_results(
        detection([10, 10, 20, 20], 0.9),
        detection([10, 10, 20, 18], 0.8),
        detection([10, 10, 20, 20], 0.7, image=2),
    )
    rows = nms_rows(results, [0.95, 0.7])
    kinds = ["hard", "box voting", "soft"]
    assert [row["NMS IoU"] for row in rows] == [None, *[0.95] * 3, *[0.7] * 3]
    assert [row["kind"] for row in rows] == [None, *kinds, *kinds]
    assert len({row["AP"] for row in rows[:4]}) == 1
    assert rows[0]["AP"] < rows[4]["AP"] == pytest.approx(100)
    assert best_nms_row(rows) is rows[4]


@pytest.mark.parametrize("row", nms_rows(make_results(), [0.65]), ids=lambda row: row["kind"])
def test_a_model_of_any_nms_has_that_of_a_row_by_overrides(row):
    config = load_config("neu_det_r18_plus", overrides_of(row).split())  # it has soft NMS itself
    model = instantiate(config.model)
    assert model.nms_iou_threshold == row["NMS IoU"]
    assert model.nms_soft == (row["kind"] == "soft")
    assert model.nms_box_voting == (row["kind"] == "box voting")


def test_a_threshold_of_one_has_no_scores_to_lower():
    rows = nms_rows(make_results(detection([10, 10, 20, 20], 0.9)), [1.0])
    assert [row["kind"] for row in rows] == [None, "hard", "box voting"]


def test_of_equal_ap_without_nms_comes_first():
    rows = nms_rows(make_results(detection([10, 10, 20, 20], 0.9)), [0.7])
    assert best_nms_row(rows)["NMS IoU"] is None


def test_without_detections_there_is_nothing_to_choose():
    assert best_nms_row(nms_rows(make_results(), [0.7]))["NMS IoU"] is None
