"""Boxes that are valid one by one, but do not mean what COCO's format says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salience_detr.data.annotation_checks import (
    Finding,
    check_content,
    describe_findings,
    find_duplicates,
    make_table,
)
from salience_detr.data.coco_format import prepare_for_evaluation

SIZE = (200, 100)
PIXELS = [[20.0, 10.0, 40.0, 50.0], [100.0, 5.0, 60.0, 90.0], [0.0, 0.0, 200.0, 100.0]]


def annotations_of(boxes, **others):
    common = {"image_id": 1, "category_id": 3, "area": 5, **others}
    return [{"id": i, "bbox": list(box), **common} for i, box in enumerate(boxes, 1)]


def findings(annotations, size=SIZE):
    return describe_findings(make_table(annotations, {1: size}), annotations)


def as_fractions(boxes):
    return (np.array(boxes) / np.array([*SIZE, *SIZE])).tolist()


def as_corners(boxes):
    return [[x, y, x + width, y + height] for x, y, width, height in boxes]


def test_boxes_in_pixels_are_not_suspicious():
    assert findings(annotations_of(PIXELS)) == {}
    assert findings([]) == {}


def test_boxes_in_fractions_are_found_with_the_remedy():
    found = findings(annotations_of(as_fractions(PIXELS)))
    (line,) = found[Finding.FRACTIONS]
    assert line.startswith("3 of 3 boxes lie within the first pixel of their image")
    assert "[0.1, 0.1, 0.2, 0.5] of annotation 1 in an image of 200x100" in line
    assert "multiply x and width by the image's width" in line


def test_a_full_image_box_in_fractions_is_one_of_them():
    assert Finding.FRACTIONS in findings(annotations_of([[0, 0, 1, 1], *as_fractions(PIXELS[:2])]))


def test_centers_in_fractions_are_fractions():
    assert Finding.FRACTIONS in findings(annotations_of([[0.5, 0.5, 1, 1], [0.9, 0.1, 0.2, 0.2]]))


def test_a_few_boxes_in_fractions_are_a_warning():
    found = findings(annotations_of([*PIXELS, *as_fractions(PIXELS[:1])]))
    assert list(found) == [Finding.SOME_FRACTIONS]


def test_a_box_of_one_pixel_in_a_tiny_image_is_no_fraction():
    assert findings(annotations_of([[0, 0, 1, 1]]), size=(2, 2)) == {}


def test_corners_are_found_where_most_boxes_fit_as_nothing_else():
    boxes = as_corners([[120, 40, 30, 30], [150, 20, 40, 60], [101, 50, 60, 45], [2, 2, 30, 30]])
    found = findings(annotations_of(boxes))
    (line,) = found[Finding.CORNERS]
    assert line.startswith("3 of 4 boxes fit into their image as corners")
    assert "[120, 40, 150, 70] of annotation 1 in an image of 200x100" in line
    assert "write x1 - x0 and y1 - y0" in line


def test_of_many_corners_a_fifth_need_not_fit_as_sides():
    inside = as_corners([[i, i, 40, 30] for i in range(1, 9)])
    outside = as_corners([[120, 40 + i, 30, 30] for i in range(3)])
    assert Finding.CORNERS in findings(annotations_of(inside + outside))


def test_boxes_that_reach_out_of_the_image_are_no_corners():
    assert findings(annotations_of([[150, 50, 80, 70], [180, 20, 50, 30], [90, 80, 60, 60]])) == {}


def test_corners_inside_the_image_cannot_be_told_from_sides():
    assert findings(annotations_of(as_corners([[2, 2, 30, 30], [5, 1, 20, 20]]))) == {}


def test_a_box_twice_is_found_up_to_rounding_and_not_across_classes_or_images():
    one = annotations_of([[10, 20, 30, 40]])[0]
    others = [
        one,
        {**one, "id": 2, "bbox": [10.001, 20, 30, 39.9995]},
        {**one, "id": 3, "bbox": [10.01, 20, 30, 40]},
        {**one, "id": 4, "category_id": 4},
        {**one, "id": 5, "image_id": 2},
        {**one, "id": 6, "iscrowd": 1},
        {**one, "id": 7},
    ]
    assert find_duplicates(make_table(others)) == {1: 0, 6: 0}


def test_a_box_thrice_stays_once_among_boxes_of_the_same_left_edge():
    boxes = [[5, y, 10, 10] for y in (1, 50, 1, 30, 50, 1)]
    assert sorted(find_duplicates(make_table(annotations_of(boxes)))) == [2, 4, 5]


@pytest.mark.parametrize(
    ("area", "finding", "word"),
    [
        (0, Finding.ZERO_AREA, "0"),
        (-3.5, Finding.ZERO_AREA, "0"),
        (None, Finding.NO_AREA, "no key"),
    ],
)
def test_an_area_that_is_none_is_found_and_counts_as_width_times_height(area, finding, word):
    annotations = annotations_of([[0, 0, 40, 50], [0, 0, 10, 10]], area=area)
    (line,) = findings(annotations)[finding]
    assert line.startswith("2 of 2 boxes") and "--fix writes it" in line

    prepare_for_evaluation(annotations)
    assert [x["area"] for x in annotations] == [2000, 100]


def test_a_whole_file_with_fractions_cannot_be_used():
    image = {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}
    content = {"images": [image], "annotations": annotations_of(as_fractions(PIXELS))}
    found, fault = check_content(content, Path("mine.json"))
    assert list(found) == [Finding.FRACTIONS]
    assert fault.startswith("mine.json: 3 of 3 boxes lie within the first pixel")

    content = {"images": [image], "annotations": annotations_of(PIXELS * 2)}
    found, fault = check_content(content, Path("mine.json"))
    assert fault is None
    assert found[Finding.TWICE][0].startswith("mine.json: 3 of 6 boxes are in the file twice")
    assert check_content({"images": [image]}, Path("mine.json")) == ({}, None)
