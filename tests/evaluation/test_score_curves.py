"""F1, precision and recall over the score, on detections whose matches are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from salience_detr.evaluation.results import Results, ResultsError, evaluate
from salience_detr.evaluation.score_curves import (
    Measures,
    ScoreCurve,
    best_thresholds,
    overall_curve,
    score_curves,
    threshold_between,
    to_store,
)
from salience_detr.evaluation.threshold_rows import threshold_rows

PIT, DENT, CRACK = 4, 8, 9
BOX = [0, 0, 10, 10]
ELSEWHERE = [100, 100, 10, 10]


def truth(category, box, *, image=1, crowd=0):
    area = box[2] * box[3]
    box = {"image_id": image, "category_id": category, "bbox": box, "area": area}
    return {**box, "iscrowd": crowd}


def detection(category, box, score, *, image=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def results_of(boxes, detections, *, num_images=2):
    coco = COCO()
    names = {PIT: "pit", DENT: "dent", CRACK: "crack"}
    coco.dataset = {
        "images": [{"id": i + 1, "width": 500, "height": 500} for i in range(num_images)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
        "annotations": [{"id": i, **box} for i, box in enumerate(boxes, 1)],
    }
    coco.createIndex()
    return Results(coco, detections, list(coco.imgs))


def test_f1_is_computed_by_hand():
    # Two boxes. Scores 0.9 right, 0.8 wrong, 0.6 right, 0.5 wrong:
    # F1 = 2 TP / (detections + boxes) = 2/3, 2/4, 4/5, 4/6.
    boxes = [truth(PIT, BOX), truth(PIT, [30, 0, 10, 10])]
    found = [
        detection(PIT, BOX, 0.9),
        detection(PIT, ELSEWHERE, 0.8),
        detection(PIT, [30, 0, 10, 10], 0.6),
        detection(PIT, BOX, 0.5),  # the box is taken
    ]

    pit, dent, crack = score_curves(results_of(boxes, found))

    f1 = [pit.at(score).f1 for score in (0.9, 0.8, 0.6, 0.5, 0.95)]
    assert f1 == pytest.approx([2 / 3, 2 / 4, 4 / 5, 4 / 6, 0])
    best = pit.at(pit.best_threshold())
    assert (best.precision, best.recall) == (2 / 3, 1)
    assert pit.best_threshold() == 0.55  # between 0.5 and 0.6
    assert (pit.at(0.95).precision, pit.at(0.95).recall) == (None, 0)
    assert dent.at(0).f1 is None and crack.best_threshold() is None


def test_detections_of_the_same_score_count_together():
    # 0.5 is right once and wrong twice: 2/4 with them, as without any lower threshold.
    boxes = [truth(PIT, BOX)]
    found = [detection(PIT, BOX, 0.5), detection(PIT, ELSEWHERE, 0.5)]
    found.append(detection(PIT, ELSEWHERE, 0.5, image=2))

    pit = score_curves(results_of(boxes, found))[0]

    assert pit.best_threshold() == 0.25
    assert pit.at(0.25) == Measures(3, 1, 1)
    assert pit.at(0.25).f1 == 2 / 4


def test_of_several_best_thresholds_the_highest_is_taken():
    curve = ScoreCurve("pit", np.float32([0.9, 0.8, 0.7]), np.array([True, False, True]), 1)
    # 2/2, 2/3, 4/4
    assert curve.best_threshold() == 0.85


def test_crowd_regions_and_detections_in_them_do_not_count():
    crowd = truth(PIT, [200, 200, 90, 90], crowd=1)
    found = [detection(PIT, BOX, 0.9), detection(PIT, [205, 205, 10, 10], 0.8)]

    pit = score_curves(results_of([truth(PIT, BOX), crowd], found))[0]

    assert pit.scores.tolist() == pytest.approx([0.9])
    assert pit.at(0) == Measures(1, 1, 1)


def test_more_than_100_detections_of_a_class_and_image_do_not_count():
    found = [detection(PIT, ELSEWHERE, 0.5 + i / 1000) for i in range(100)]
    found.append(detection(PIT, BOX, 0.4))

    pit = score_curves(results_of([truth(PIT, BOX)], found))[0]

    assert pit.at(0) == Measures(100, 0, 1)
    assert best_thresholds([pit]) is None


def test_a_class_without_boxes_or_right_detections_has_the_threshold_of_all():
    boxes = [truth(PIT, BOX), truth(DENT, BOX)]
    found = [detection(PIT, BOX, 0.9), detection(DENT, ELSEWHERE, 0.3)]
    found.append(detection(CRACK, ELSEWHERE, 0.2))

    curves = score_curves(results_of(boxes, found))
    best = best_thresholds(curves)

    assert best.overall == best.classes["dent"] == best.classes["crack"] == 0.6
    assert best.reasons == {"dent": "no detection is correct", "crack": "no boxes"}
    assert overall_curve(curves).at(0) == Measures(3, 1, 2)  # the crack is a false one

    rows = threshold_rows(curves, best)
    assert rows[1]["note"] == "no detection is correct: that of all classes"
    assert rows[2]["F1"] is None
    assert [row["F1"] for row in rows[-2:]] == pytest.approx([200 / 3, 200 / 3])


@pytest.mark.parametrize("boxes", [[], [truth(PIT, BOX)]])
@pytest.mark.parametrize("found", [[], [detection(PIT, ELSEWHERE, 0.9)]])
def test_without_right_detections_there_is_nothing_to_store(boxes, found):
    best = best_thresholds(score_curves(results_of(boxes, found)))

    assert best is None
    with pytest.raises(ResultsError, match=r"no detection is correct at an IoU of 0\.5; evaluate"):
        to_store(best, iou_threshold=0.5, source="val.json")


def random_results(seed):
    random = np.random.default_rng(seed)
    boxes = []
    found = []
    for image in range(1, 9):
        for _ in range(6):
            box = [*random.uniform(0, 60, 2), *random.uniform(10, 40, 2)]
            category = int(random.choice([PIT, DENT]))
            boxes.append(truth(category, box, image=image, crowd=int(random.random() < 0.1)))
            near = [x + random.normal(0, 2) for x in box]
            score = float(np.float32(random.choice([random.random(), 0.5])))
            found.append(detection(category, near, score, image=image))
            score = float(np.float32(random.random() / 2))
            found.append(detection(int(random.choice([PIT, DENT])), box, score, image=image))
    return results_of(boxes, found, num_images=8)


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_precision_and_recall_are_those_of_pycocotools(iou):
    results = random_results(0)
    index = {0.5: 0, 0.75: 5}[iou]
    curves = score_curves(results, iou_threshold=iou)

    for threshold in (0.0, 0.25, 0.5, 0.7):
        kept = [x for x in results.detections if x["score"] >= threshold]
        evaluation = evaluate(Results(results.coco, kept, results.image_ids))

        for k, curve in enumerate(curves[:2]):
            measures = curve.at(threshold)
            assert measures.recall == evaluation.eval["recall"][index, k, 0, -1]

            # Its precision at the highest recall is that of all detections.
            correct = count = 0
            for image in evaluation.evalImgs[k * 32 : k * 32 + 8]:
                if image is not None:
                    counted = ~image["dtIgnore"][index].astype(bool)
                    count += counted.sum()
                    correct += (image["dtMatches"][index][counted] > 0).sum()
            assert measures.precision == correct / count


@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_is_better_and_float32_keeps_the_same_detections(seed):
    results = random_results(seed)
    curves = score_curves(results)
    best = best_thresholds(curves)

    for curve in curves[:2]:
        threshold = best.classes[curve.name]
        reached = curve.at(threshold).f1
        assert reached == max(curve.at(score).f1 for score in curve.scores)

        # As stored in JSON, read, and compared with the model's float32 scores.
        ids = {"pit": PIT, "dent": DENT}
        own = [x for x in results.detections if x["category_id"] == ids[curve.name]]
        scores = torch.tensor([x["score"] for x in own], dtype=torch.float32)
        keep = scores >= torch.tensor(threshold, dtype=torch.float32)
        kept = [x for x, is_kept in zip(own, keep.tolist(), strict=True) if is_kept]
        again = score_curves(Results(results.coco, kept, results.image_ids))
        assert next(x for x in again if x.name == curve.name).at(0).f1 == reached


def test_a_threshold_lies_between_neighbors_of_float32():
    upper = np.float32(0.7)
    lower = np.nextafter(upper, np.float32(0))
    threshold = np.float32(threshold_between(float(lower), float(upper)))
    assert lower < threshold <= upper
    assert threshold_between(0.0, 1e-12) == 1e-12
    assert threshold_between(0.31249, 0.3126) == 0.3125
