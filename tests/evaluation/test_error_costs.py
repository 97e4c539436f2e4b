"""AP with each type of error mended, of boxes and detections whose AP is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from salience_detr.evaluation.error_costs import cost_rows
from salience_detr.evaluation.results import Results, evaluate, make_coco, summary

PIT, DENT = 4, 8
BOX = [0, 0, 10, 10]
FAR = [100, 0, 10, 10]
LOOSE = [6, 0, 10, 10]  # an IoU of 0.25 with BOX
NOWHERE = [200, 0, 10, 10]
# COCO's AP is the mean precision at the recalls 0, 0.01, ..., 1: 51 of them are at most 0.5.
HALF = 100 * 51 / 101


def results_of(boxes, detections):
    """Return Results of one image; boxes are (class, box) or with a third value for crowd."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 500, "height": 500}],
        "categories": [{"id": PIT, "name": "pit"}, {"id": DENT, "name": "dent"}],
        "annotations": [],
    }
    for i, (category, box, *crowd) in enumerate(boxes, 1):
        annotation = {"id": i, "image_id": 1, "category_id": category, "bbox": box, "area": 100}
        content["annotations"].append({**annotation, "iscrowd": int(bool(crowd))})

    made = []
    for category, box, score in detections:
        made.append({"image_id": 1, "category_id": category, "bbox": box, "score": score})
    return Results(make_coco(content), made, [1])


def costs(boxes, detections, iou_threshold=0.5):
    """Return AP as it is, and the AP of each row that gains something."""
    first, *rows = cost_rows(results_of(boxes, detections), iou_threshold)
    gains = [row for row in rows if row["gain"]]
    for row in gains:
        assert row["gain"] == pytest.approx(row["AP"] - first["AP"])
    return first["AP"], {row["error"]: row["AP"] for row in gains}


def test_a_confused_class_costs_both_classes():
    before, mended = costs(
        [(PIT, BOX), (DENT, FAR)], [(DENT, BOX, 0.9), (DENT, FAR, 0.8), (PIT, NOWHERE, 0.1)]
    )
    assert before == pytest.approx(25)  # pit 0, dent 50
    assert mended == {
        "Cls": pytest.approx(100),
        "all false detections": pytest.approx(50),  # pit 0, dent 100
        "all boxes not found": pytest.approx(50),  # dent alone
    }


def test_the_best_loose_detection_gets_its_box_and_the_others_go():
    detections = [(PIT, LOOSE, 0.9), (PIT, [5, 0, 11, 10], 0.8), (PIT, FAR, 0.7)]
    before, mended = costs([(PIT, BOX), (PIT, FAR)], detections)

    assert before == pytest.approx(HALF / 3)  # the first two are false
    assert mended["Loc"] == pytest.approx(100)
    assert mended["all false detections"] == pytest.approx(HALF)


def test_a_loose_detection_of_a_box_that_is_found_goes():
    boxes = [(PIT, BOX), (PIT, FAR)]
    before, mended = costs(boxes, [(PIT, LOOSE, 0.9), (PIT, BOX, 0.8)])
    assert before == pytest.approx(HALF / 2)
    assert mended["Loc"] == mended["all false detections"] == pytest.approx(HALF)


def test_a_box_is_mended_once():
    boxes = [(PIT, BOX), (PIT, FAR)]
    _, mended = costs(boxes, [(PIT, LOOSE, 0.9), (PIT, [5, 0, 11, 10], 0.8)])
    assert mended["Loc"] == pytest.approx(HALF)


@pytest.mark.parametrize(
    ("error", "detection"),
    [("Dupe", (PIT, BOX)), ("Bkg", (PIT, NOWHERE)), ("Both", (PIT, [106, 0, 10, 10]))],
)
def test_other_false_detections_go(error, detection):
    boxes = [(PIT, BOX), (PIT, [50, 0, 10, 10]), (DENT, FAR)]
    detections = [(PIT, BOX, 0.9), (*detection, 0.8), (PIT, [50, 0, 10, 10], 0.7), (DENT, FAR, 0.9)]
    before, mended = costs(boxes, detections)

    pit = (51 + 50 * 2 / 3) / 101  # precision 1, then 2 of 3
    assert before == pytest.approx(50 * (pit + 1))
    assert mended == {error: pytest.approx(100), "all false detections": pytest.approx(100)}


def test_a_box_that_nothing_was_meant_for_is_a_miss():
    before, mended = costs([(PIT, BOX), (PIT, FAR)], [(PIT, BOX, 0.9)])
    assert before == pytest.approx(HALF)
    assert mended == {"Miss": pytest.approx(100), "all boxes not found": pytest.approx(100)}


def test_weak_detections_count_too():
    before, mended = costs([(PIT, BOX)], [(PIT, LOOSE, 0.0)])
    assert (before, mended["Loc"]) == (0, pytest.approx(100))


def test_detections_in_crowd_regions_cost_nothing():
    boxes = [(PIT, BOX), (PIT, FAR, "crowd")]
    assert costs(boxes, [(PIT, FAR, 0.9), (PIT, BOX, 0.8)]) == (pytest.approx(100), {})


def test_the_iou_is_that_of_the_other_tables():
    boxes, detections = [(PIT, BOX)], [(PIT, [0, 0, 10, 6], 0.9)]
    assert costs(boxes, detections) == (pytest.approx(100), {})
    assert costs(boxes, detections, 0.7)[1]["Loc"] == pytest.approx(100)


def test_without_mending_ap_is_that_of_coco():
    generator = np.random.default_rng(0)
    boxes = [(PIT if i % 3 else DENT, [40 * i, 0, 30, 20], *["crowd"][: i == 4]) for i in range(12)]
    detections = []
    for i in range(120):
        category, box, *_ = boxes[i % 12]
        moved = generator.normal(box, [3, 2, 3, 2]).clip(1).tolist()
        detections.append((category if i % 5 else PIT, moved, generator.uniform()))

    results = results_of(boxes, detections)
    expected = summary(evaluate(results))
    assert 5 < expected["AP75"] < expected["AP50"] < 95
    assert cost_rows(results, 0.5)[0]["AP"] == pytest.approx(expected["AP50"])
    assert cost_rows(results, 0.75)[0]["AP"] == pytest.approx(expected["AP75"])


def test_as_many_detections_count_as_in_coco_evaluation():
    detections = [(PIT, NOWHERE, 0.9)] * 100 + [(PIT, BOX, 0.8)]
    assert costs([(PIT, BOX)], detections)[0] == 0
    assert costs([(PIT, BOX)], detections[1:])[0] == pytest.approx(1)


def test_without_boxes_there_is_no_ap():
    for row in cost_rows(results_of([], [(PIT, BOX, 0.9)]), 0.5):
        assert row["AP"] is row["gain"] is None


def test_the_results_stay_as_they_were():
    results = results_of([(PIT, BOX), (PIT, FAR)], [(DENT, BOX, 0.9), (PIT, LOOSE, 0.8)])
    before = [detection.copy() for detection in results.detections]
    cost_rows(results, 0.5)
    assert results.detections == before and len(results.coco.anns) == 2
