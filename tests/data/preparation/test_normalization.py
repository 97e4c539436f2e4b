"""Values that are certain get COCO's form; everything else stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pycocotools import mask

from salience_detr.data.preparation.normalization import (
    certain_box,
    mask_extent,
    normalize,
    number_of,
    whole_of,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12.5", 12.5), ("12", 12), (" 12.5 ", 12.5), ("1e2", 100.0), ("1.5E-1", 0.15), ("-3", -3),
        (".5", 0.5), ("5.", 5.0),
        ("inf", "inf"), ("nan", "nan"), ("", ""), ("1_000", "1_000"), ("0x10", "0x10"),
        ("12,5", "12,5"), ("9" * 5000, "9" * 5000), (None, None), (True, True), ([1], [1]),
    ],
)  # fmt: skip
def test_a_text_of_a_number_is_the_number(text, expected):
    assert number_of(text) == expected
    assert type(number_of(text)) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", 1), (1.0, 1), ("1.0", 1), ("007", 7), (1.5, 1.5), ("a1", "a1"), (True, True)],
)
def test_a_whole_number_may_have_decimals_or_be_a_text(value, expected):
    assert whole_of(value) == expected
    assert type(whole_of(value)) is type(expected)


def test_ids_and_boxes_of_text_become_numbers_in_all_lists():
    content = {
        "images": [{"id": 1.0, "width": "40", "height": "30.0"}],
        "annotations": [
            {
                "id": "5", "image_id": "1", "category_id": "2", "bbox": ["1", " 2.5 ", "3e0", "4"],
                "area": "12", "iscrowd": "0",
            }
        ],
        "categories": [{"id": "2", "name": "3"}],
        "info": {},
    }  # fmt: skip
    before = copy.deepcopy(content)
    normalized, changes = normalize(content)
    assert content == before
    assert normalized == {
        "images": [{"id": 1, "width": 40, "height": 30}],
        "annotations": [
            {
                "id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3.0, 4],
                "area": 12, "iscrowd": 0,
            }
        ],
        "categories": [{"id": 2, "name": "3"}],
        "info": {},
    }  # fmt: skip
    assert changes["entries with values made numbers"] == 3


@pytest.mark.parametrize(
    ("image_ids", "box_ids", "expected_images", "expected_boxes"),
    [
        ([1, 2], ["1", "2"], [1, 2], [1, 2]),
        (["1", "2"], [1, 2], ["1", "2"], ["1", "2"]),
        (["007", "8"], [7, 8.0], ["007", "8"], ["007", "8"]),
        ([1, "2"], ["1", 2], [1, 2], [1, 2]),
        ([1, "a"], [1, "a"], ["1", "a"], ["1", "a"]),
        (["1", "01"], ["1", 1], ["1", "01"], ["1", 1]),  # it is unknown which
        ([1], [[1]], [1], [[1]]),
    ],
)
def test_boxes_get_the_ids_of_their_images(image_ids, box_ids, expected_images, expected_boxes):
    content = {
        "images": [{"id": i} for i in image_ids],
        "annotations": [{"image_id": i} for i in box_ids],
        "categories": [],
    }
    normalized, _ = normalize(content)
    assert [x["id"] for x in normalized["images"]] == expected_images
    assert [x["image_id"] for x in normalized["annotations"]] == expected_boxes


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[2, 3, 10, 3, 10, 9, 2, 9]], [2, 3, 8, 6]),
        ([[2, 3, 10, 3, 10, 9], [20, 1, 30, 5, 22, 4]], [2, 1, 28, 8]),
        ([["2", "3", "10", "3", "10", "9.5"]], [2, 3, 8, 6.5]),
        ([2, 3, 10, 3, 10, 9], [2, 3, 8, 6]),
        ([[2, 3, 10, 3]], None),
        ([[2, 3, 10, 3, 10]], None),
        ([[2, 3, 2, 5, 2, 9]], None),
        ([[2, 3, None, 3, 10, 9]], None),
        ([], None), ("x", None), (None, None), ({}, None),
        ({"size": [5, 4], "counts": [5, 3, 12]}, [1, 0, 1, 3]),
        ({"size": [5, 4], "counts": [3, 4, 13]}, [0, 0, 2, 5]),
        ({"size": [5, 4], "counts": [20]}, None),
        ({"size": [5, 4], "counts": [3, 400]}, None),
        ({"size": [5, 4], "counts": "\x00"}, None),
        ({"size": [5, 4], "counts": [1, -5, 2]}, None),
    ],
)  # fmt: skip
def test_the_extent_of_a_mask(segmentation, expected):
    assert mask_extent(segmentation) == expected


def test_compressed_masks_have_the_extent_that_pycocotools_gives():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        pixels = np.zeros((37, 53), np.uint8, order="F")
        y, x = generator.integers(0, 30, 2)
        part = pixels[y : y + 7, x : x + 9]
        part[...] = generator.random(part.shape) < 0.4
        part[3, 4] = 1
        code = mask.encode(pixels)
        expected = mask.toBbox(code).tolist()
        assert mask_extent({"size": code["size"], "counts": code["counts"].decode()}) == expected


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], ["a"], "x"])
def test_a_box_that_is_none_becomes_the_extent_of_the_mask(bbox):
    annotation = {"bbox": bbox, "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]]}
    assert certain_box(annotation) == [2, 3, 8, 6]
    assert certain_box({"bbox": bbox}) == bbox


def test_a_box_with_an_area_stays_whatever_the_mask_is():
    annotation = {"bbox": [1, 1, 2, 2], "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]]}
    assert certain_box(annotation) == [1, 1, 2, 2]
    assert certain_box({"bbox": "[1, 1, 2.5, 2]"}) == [1, 1, 2.5, 2]


def test_entries_that_are_no_objects_stay():
    content = {"images": [None, 5], "annotations": ["x", []], "categories": [[]]}
    normalized, changes = normalize(content)
    assert normalized == content and not +changes
