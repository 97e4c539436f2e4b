"""Detections against annotations, by hand."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from salience_detr.evaluation.confusion import confusion_matrix
from salience_detr.evaluation.results import (
    ResultsError,
    class_precisions,
    evaluate,
    load_results,
    match_demo_images,
    summary,
)

NAMES = ["pit", "dent"]


def truth(annotation_id, image, category, box, crowd=0):
    return {
        "id": annotation_id,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "iscrowd": crowd,
    }


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


@pytest.fixture
def files(tmp_path):
    def write(annotations, detections):
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in (1, 2)
            ],
            "categories": [{"id": 4, "name": "pit"}, {"id": 8, "name": "dent"}],
            "annotations": annotations,
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        (tmp_path / "detections.json").write_text(json.dumps(detections))
        return load_results(tmp_path / "detections.json", tmp_path / "truth.json")

    return write


def test_confusion_counts_right_wrong_missed_and_background(files):
    results = files(
        [
            truth(1, 1, 4, [0, 0, 10, 10]),
            truth(2, 1, 8, [50, 50, 20, 20]),
            truth(3, 2, 4, [0, 0, 10, 10]),
            truth(4, 2, 8, [40, 40, 50, 50], crowd=1),
        ],
        [
            detection(1, 4, [0, 0, 10, 10], 0.9),  # right
            detection(1, 4, [50, 50, 20, 19], 0.8),  # a dent, taken for a pit
            detection(1, 8, [0, 0, 10, 9], 0.7),  # its box is taken: on background
            detection(1, 8, [50, 50, 20, 20], 0.1),  # below the threshold
            detection(2, 8, [45, 45, 10, 10], 0.9),  # in a crowd: does not count
            detection(2, 8, [0, 8, 10, 10], 0.9),  # overlaps too little
        ],
    )

    matrix, names = confusion_matrix(results)

    assert names == NAMES
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 2, 0]]


def test_precision_is_one_until_the_first_false_detection(files):
    results = files(
        [truth(1, 1, 4, [0, 0, 10, 10]), truth(2, 2, 4, [0, 0, 10, 10])],
        [
            detection(1, 4, [0, 0, 10, 10], 0.9),
            detection(1, 4, [60, 60, 10, 10], 0.8),
            detection(2, 4, [0, 0, 10, 10], 0.7),
        ],
    )

    precisions = class_precisions(evaluate(results))

    # Right, wrong, right: precision 1 up to recall 1/2, then 2/3.
    assert precisions["pit"][0, :51] == pytest.approx([1.0] * 51)
    assert precisions["pit"][0, 51:] == pytest.approx([2 / 3] * 50)
    assert np.isnan(precisions["dent"]).all()


def test_without_detections_ap_is_zero_and_every_box_is_missed(files):
    results = files([truth(1, 1, 4, [0, 0, 10, 10])], [])

    # The box of 100 pixels is small.
    metrics = summary(evaluate(results))
    assert metrics["AP"] == metrics["APs"] == 0
    assert metrics["APm"] is None

    assert confusion_matrix(results)[0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("first", [0, 1, "a"])
def test_perfect_detections_are_perfect_whatever_the_ids_of_the_annotations_are(files, first):
    boxes = [[10 * i, 10 * i, 9, 9] for i in range(4)]
    ids = [f"{first}{i}" if isinstance(first, str) else first + i for i in range(4)]
    annotations = [truth(i, 1, 4, box, crowd=None) for i, box in zip(ids, boxes, strict=True)]

    results = files(annotations, [detection(1, 4, box, 0.9) for box in boxes])

    assert evaluate(results).stats[0] == pytest.approx(1.0)


def test_annotations_with_a_mistake_are_refused_with_the_remedy(files):
    message = r"the entry id 1 of 'annotations' in .* has the bbox None, not .*check_dataset\.py"
    with pytest.raises(ResultsError, match=message):
        files([truth(1, 1, 4, None)], [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (detection(1, 4, [0, 0, float("nan"), 1], 0.9), "has the bbox .*nan.*, not four numbers"),
        (detection(1, 4, [0, 0, 1, 1], float("nan")), "has the score nan, not a number"),
        (detection([1], 4, [0, 0, 1, 1], 0.9), r"has the image_id \[1\], not a whole number"),
        # The other detection's image_id is a number.
        (detection("x", 4, [0, 0, 1, 1], 0.9), "the image_id 7, which is unknown.*truth"),
    ],
)
def test_detections_that_are_none_are_refused(files, wrong, message):
    with pytest.raises(ResultsError, match=message):
        files([], [wrong, detection(7, 4, [0, 0, 1, 1], 0.9)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "has no list of detections"),
        ({"annotations": []}, "has no list of images"),
        ({"images": [{"id": 1}], "annotations": []}, "0 of the images in .* has no 'file_name'"),
        ({"images": [], "annotations": [{"image_id": 1}]}, "0 of .* has no 'category_id'"),
        (
            {"images": [], "annotations": [detection(1, 4, [0, 0, 1, 1], 0.9)]},
            "image_id 1, which is unknown",
        ),
    ],
)
def test_a_file_that_demo_did_not_write_is_refused(files, content, message):
    with pytest.raises(ResultsError, match=message):
        files([], content)


def test_only_images_of_the_results_are_in_the_confusion_matrix(files):
    results = files(
        [truth(1, 1, 4, [0, 0, 10, 10]), truth(2, 2, 4, [0, 0, 10, 10])],
        {
            "images": [{"id": 9, "file_name": "some/2.jpg"}],
            "annotations": [detection(9, 4, [0, 0, 10, 10], 0.9)],
        },
    )

    assert results.image_ids == [2]
    matrix, _ = confusion_matrix(results)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_negative_side_is_no_box(files):
    with pytest.raises(ResultsError, match="negative"):
        files([], [detection(1, 4, [5, 5, -3, 2], 0.5)])


def test_a_demo_file_with_two_images_of_one_name_is_refused(tmp_path):
    images = [
        {"id": i, "file_name": f"{folder}/x.jpg", "height": 9, "width": 9}
        for i, folder in enumerate("ab")
    ]
    annotated = [{"id": 7, "file_name": "x.jpg"}]

    with pytest.raises(ResultsError, match=r"two images called x\.jpg"):
        match_demo_images(images, annotated, tmp_path / "detections.json")


def test_frames_of_one_name_in_several_folders_are_matched_by_their_folders(tmp_path):
    names = ["data/cam2/0001.jpg", "data/cam1/0001.jpg"]
    images = [{"id": i, "file_name": name, "height": 9, "width": 9} for i, name in enumerate(names)]
    annotated = [
        {"id": 7, "file_name": "cam1/0001.jpg"},
        {"id": 8, "file_name": "cam2\\0001.jpg"},
    ]
    assert match_demo_images(images, annotated, tmp_path / "detections.json") == {0: 8, 1: 7}

    elsewhere = [{"id": 0, "file_name": "cam3/0001.jpg", "height": 9, "width": 9}]
    with pytest.raises(ResultsError, match="is 2 times in the annotations"):
        match_demo_images(elsewhere, annotated, tmp_path / "detections.json")


def demo_file(categories, *detections):
    return {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": list(detections),
    }


def test_detections_of_demo_are_compared_by_the_names_of_their_categories(files, caplog):
    # The annotations have pit as 4 and dent as 8.
    boxes = [truth(1, 1, 4, [0, 0, 10, 10]), truth(2, 1, 8, [50, 50, 20, 20])]
    found = [
        detection(1, 8, [0, 0, 10, 10], 0.9),
        detection(1, 4, [50, 50, 20, 20], 0.9),
        detection(1, 0, [30, 30, 20, 20], 0.9),
    ]
    results = files(boxes, demo_file([(0, "weld"), (4, "Dent"), (8, "pit")], *found))

    assert [x["category_id"] for x in results.detections] == [4, 8]
    assert summary(evaluate(results))["AP"] == pytest.approx(100)
    assert "2 categories have other ids in the annotations and are found by name" in caplog.text
    assert "that the annotations lack are left out: weld" in caplog.text


def test_the_same_categories_are_compared_without_a_word(files, caplog):
    results = files([], demo_file([(4, "pit"), (8, "dent")], detection(1, 8, [0, 0, 1, 1], 0.5)))
    assert results.detections[0]["category_id"] == 8
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]


def test_detections_of_numbered_classes_are_compared_by_id(files):
    results = files([], demo_file([(4, "0"), (8, "1")], detection(1, 8, [0, 0, 1, 1], 0.5)))
    assert results.detections[0]["category_id"] == 8


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([(4, "cat"), (8, "dog")], r"its categories \(cat, dog\) are none of those .*pit, dent"),
        ([(4, "pit"), (4, "dent")], "two of its categories have the same id"),
        ([(4, "pit"), ("x", "dent")], "number 1 of its categories has the id 'x'"),
    ],
)
def test_categories_that_cannot_be_compared_are_refused(files, categories, message):
    with pytest.raises(ResultsError, match=message):
        files([], demo_file(categories))
