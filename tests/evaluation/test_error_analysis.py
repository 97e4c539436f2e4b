"""Error types of detections on boxes whose overlaps are known by hand."""

from __future__ import annotations

import pytest
from pycocotools.coco import COCO

from salience_detr.evaluation.confusion import confusion_matrix
from salience_detr.evaluation.error_analysis import (
    Outcome,
    class_rows,
    crowd_counts,
    density_rows,
    error_counts,
    find_errors,
    overlap_rows,
    rank_by_errors,
    size_rows,
)
from salience_detr.evaluation.results import Results, evaluate, summary


def truth(image, category, box, crowd=0):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "iscrowd": crowd,
        "area": box[2] * box[3],
    }


def detection(image, category, box, score=0.9):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def results_of(coco, detections, image_ids=None):
    return Results(coco, detections, image_ids or list(coco.imgs))


def annotations(*boxes, images=(1, 2)):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 500, "height": 500} for i in images],
        "categories": [{"id": 4, "name": "pit"}, {"id": 8, "name": "dent"}],
        "annotations": [{"id": i, **box} for i, box in enumerate(boxes, 1)],
    }
    coco.createIndex()
    return coco


# Boxes of width w and height 10 from x on overlap [0, 0, 10, 10] by the IoU in the comment.
@pytest.mark.parametrize(
    ("given", "outcome", "box_outcome"),
    [
        (detection(1, 4, [0, 0, 10, 10]), Outcome.CORRECT, Outcome.FOUND),
        (detection(1, 4, [0, 0, 5, 10]), Outcome.CORRECT, Outcome.FOUND),  # 1/2
        (detection(1, 4, [6, 0, 10, 10]), Outcome.LOC, Outcome.LOC),  # 4/16
        (detection(1, 4, [9, 0, 10, 10]), Outcome.BKG, Outcome.MISS),  # 1/19
        (detection(1, 8, [0, 0, 10, 9]), Outcome.CLS, Outcome.CLS),
        # Too little, and another class.
        (detection(1, 8, [6, 0, 10, 10]), Outcome.BOTH, Outcome.MISS),
        # In the crowd region, and in one of another class.
        (detection(1, 4, [205, 205, 10, 10]), Outcome.IGNORED, Outcome.MISS),
        (detection(1, 8, [205, 205, 10, 10]), Outcome.BKG, Outcome.MISS),
    ],
)
def test_a_detection_and_the_box_have_the_error_type_that_fits(given, outcome, box_outcome):
    coco = annotations(truth(1, 4, [0, 0, 10, 10]), truth(1, 4, [200, 200, 90, 90], crowd=1))

    image, empty = find_errors(results_of(coco, [given]))

    assert image.detection_outcomes == [outcome]
    assert image.box_outcomes == [box_outcome, Outcome.CROWD]
    assert image.num_boxes == 1
    is_found = box_outcome is Outcome.FOUND
    assert image.num_found == is_found
    assert image.num_false_negatives == 1 - is_found
    assert image.num_false_positives == (outcome not in (Outcome.CORRECT, Outcome.IGNORED))
    assert (empty.detection_outcomes, empty.box_outcomes, empty.num_boxes) == ([], [], 0)


def test_the_better_detection_takes_the_box_and_the_other_is_dupe():
    coco = annotations(truth(1, 4, [0, 0, 10, 10]))
    detections = [
        detection(1, 4, [0, 0, 10, 10], 0.5),
        detection(1, 4, [0, 0, 10, 8], 0.8),
        detection(1, 4, [0, 0, 10, 10], 0.2),  # below the threshold
    ]

    image = find_errors(results_of(coco, detections))[0]

    assert [x["score"] for x in image.image.detections] == [0.8, 0.5]
    assert image.detection_outcomes == [Outcome.CORRECT, Outcome.DUPE]


def test_a_right_detection_does_not_lose_its_box_to_one_of_another_class():
    coco = annotations(truth(1, 4, [0, 0, 10, 10]))
    detections = [detection(1, 8, [0, 0, 10, 10], 0.9), detection(1, 4, [0, 0, 10, 10], 0.5)]
    results = results_of(coco, detections)

    image = find_errors(results)[0]
    assert image.detection_outcomes == [Outcome.CLS, Outcome.CORRECT]
    assert image.box_outcomes == [Outcome.FOUND]

    # The confusion matrix goes by the place alone.
    matrix, _ = confusion_matrix(results)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_box_with_a_cls_and_a_loc_detection_is_cls():
    coco = annotations(truth(1, 4, [0, 0, 10, 10]))
    for scores in ((0.9, 0.5), (0.5, 0.9)):
        detections = [
            detection(1, 8, [0, 0, 10, 10], scores[0]),
            detection(1, 4, [6, 0, 10, 10], scores[1]),
        ]
        assert find_errors(results_of(coco, detections))[0].box_outcomes == [Outcome.CLS]


def test_only_the_wanted_images_count():
    boxes = [truth(name, 4, [0, 0, 10, 10]) for name in "ab"]
    coco = annotations(*boxes, images=("a", "b"))
    detections = [detection("a", 4, [0, 0, 10, 10])]
    results = results_of(coco, detections)
    results_of_b = results_of(coco, detections, ["b"])

    assert [x.num_found for x in find_errors(results)] == [1, 0]
    assert [x.image.image_id for x in find_errors(results_of_b)] == ["b"]

    matrix, _ = confusion_matrix(results_of_b)
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_images_are_ranked_by_their_mistakes_then_by_missed_boxes():
    coco = annotations(
        *[truth(i, 4, [0, 0, 10, 10]) for i in (1, 2, 3)],
        truth(2, 4, [50, 0, 10, 10]),
        images=(1, 2, 3, 4),
    )
    # Image 1 is right, 2 misses two, 3 misses one and has a false one, 4 has a false one.
    detections = [
        detection(1, 4, [0, 0, 10, 10]),
        detection(3, 4, [200, 0, 10, 10]),
        detection(4, 8, [0, 0, 10, 10]),
    ]

    ranking = rank_by_errors(find_errors(results_of(coco, detections)))

    assert [x.image.image_id for x in ranking] == [2, 3, 4]


def test_each_class_has_its_metrics_and_counts():
    coco = annotations(truth(1, 4, [0, 0, 10, 10]), truth(2, 4, [0, 0, 40, 40]))
    detections = [detection(1, 4, [0, 0, 10, 10]), detection(1, 8, [50, 50, 10, 10])]
    results = results_of(coco, detections)

    pit, dent = class_rows(evaluate(results), find_errors(results))

    assert (pit["class"], pit["boxes"], pit["correct"], pit["missed"]) == ("pit", 2, 1, 1)
    assert (pit["recall"], pit["precision"]) == (50, 100)

    # One of two is found, at every IoU: precision 1 at the recalls 0 to 0.5, 51 of 101.
    assert [pit[key] for key in ("AP", "AP50", "AP75")] == pytest.approx([100 * 51 / 101] * 3)
    assert pit["APs"] == pytest.approx(100)
    assert pit["APm"] == 0
    assert pit["APl"] is None
    assert pit["AR"] == pytest.approx(50)

    assert (dent["boxes"], dent["precision"], dent["background"]) == (0, 0, 1)
    assert [dent[key] for key in ("AP", "AR", "recall")] == [None] * 3


def test_boxes_are_small_medium_or_large_by_their_area():
    boxes = [
        truth(1, 4, [0, 0, 32, 31.9]),
        truth(1, 4, [100, 0, 32, 32]),
        truth(2, 4, [0, 0, 96, 96]),
    ]
    coco = annotations(*boxes, truth(2, 4, [200, 200, 10, 10], crowd=1))
    results = results_of(coco, [detection(2, 4, [0, 0, 96, 96])])

    rows = size_rows(evaluate(results), find_errors(results))

    counts = [(x["size"], x["boxes"], x["missed"], x["recall"]) for x in rows]
    assert counts == [("small", 1, 1, 0), ("medium", 1, 1, 0), ("large", 1, 0, 100)]
    assert rows[0]["AP"] == rows[0]["AR"] == 0
    assert rows[2]["AP"] == pytest.approx(100)


def test_crowded_images_are_told_from_sparse_ones():
    boxes = [truth(2, 4, [20 * i, 0, 10, 10]) for i in range(5)]
    coco = annotations(truth(1, 4, [0, 0, 10, 10]), *boxes, images=(1, 2, 3))
    detections = [detection(1, 4, [0, 0, 10, 10]), detection(3, 4, [0, 0, 10, 10])]
    results = results_of(coco, detections)

    none, few, medium, many = density_rows(results, find_errors(results))

    assert [x["pictures"] for x in (none, few, medium, many)] == [1, 1, 1, 0]
    assert (none["false"], none["AP"], none["recall"]) == (1, None, None)
    assert (few["boxes"], few["missed"], few["recall"]) == (1, 0, 100)
    assert few["AP"] == pytest.approx(100)
    assert (medium["boxes"], medium["missed"]) == (5, 5)
    assert (medium["AP"], medium["false per picture"]) == (0, 0)


def test_overlapping_boxes_and_crowd_regions_are_counted():
    coco = annotations(
        truth(1, 4, [0, 0, 10, 10]),
        truth(1, 8, [5, 0, 10, 10]),  # IoU 1/3 with the first
        truth(1, 4, [100, 0, 10, 10]),
        truth(1, 4, [100, 0, 50, 50], crowd=1),  # which is no box
    )
    detections = [
        detection(1, 4, [100, 0, 10, 10]),
        detection(1, 8, [5, 0, 10, 10]),
        detection(1, 4, [120, 20, 10, 10]),
    ]
    images = find_errors(results_of(coco, detections))

    alone, overlapping = overlap_rows(images)
    assert (alone["boxes"], alone["found"], alone["recall"]) == (1, 1, 100)
    assert (overlapping["boxes"], overlapping["found"], overlapping["overlooked"]) == (2, 1, 1)
    assert list(crowd_counts(images).values()) == [1, 1, 1]

    counts = error_counts(images)
    assert (counts["detections"]["correct"], counts["detections"]["ignored"]) == (2, 1)
    assert (counts["boxes"]["found"], counts["boxes"]["missed"]) == (2, 1)


def test_without_detections_all_is_missed_and_without_boxes_nothing_is_measured():
    coco = annotations(truth(1, 4, [0, 0, 10, 10]))
    results = results_of(coco, [])

    metrics = summary(evaluate(results))
    assert [metrics.pop(key) for key in ("AP", "AP50", "AP75", "APs")] == [0] * 4
    assert metrics == {"APm": None, "APl": None}
    assert class_rows(evaluate(results), find_errors(results))[0]["missed"] == 1

    results = results_of(annotations(), [detection(1, 4, [0, 0, 9, 9])])
    assert set(summary(evaluate(results)).values()) == {None}
