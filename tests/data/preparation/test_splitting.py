"""A part for validation is drawn by class and by group, the same each time."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.splitting import describe_split, draw_val, split_coco


def drawn_names(names, classes, *arguments):
    return {names[index] for index in draw_val(names, classes, *arguments)}


def test_the_draw_does_not_depend_on_the_order_of_the_images():
    names = [f"{number}.jpg" for number in range(50)]
    classes = [{number % 3} for number in range(50)]
    expected = drawn_names(names, classes, 0.2)
    assert len(expected) == 10

    order = random.Random(1).sample(range(50), 50)
    shuffled = [names[index] for index in order]
    assert drawn_names(shuffled, [classes[index] for index in order], 0.2) == expected


def test_every_class_is_drawn_in_proportion_and_rare_ones_are_on_both_sides():
    # 60 images of class 0, 30 of class 1, 8 of class 2, 2 of class 3: a fifth are 12, 6, 2 and,
    # of 20 images in all, at least 1 of class 3 instead of 0.4.
    numbers = {0: 60, 1: 30, 2: 8, 3: 2}
    classes = [{label} for label, count in numbers.items() for _ in range(count)]
    names = [f"{index:03d}.png" for index in range(100)]
    drawn = draw_val(names, classes, 0.2)

    counts = Counter(label for index in drawn for label in classes[index])
    assert len(drawn) == 20
    assert counts[3] == 1 and counts[2] == 2 and counts[1] == 6


def test_images_with_several_classes_and_without_boxes_are_drawn_in_proportion():
    rng = random.Random(0)
    classes = [set(rng.choices(range(6), k=number % 4)) for number in range(400)]
    names = [f"{index}.png" for index in range(400)]
    drawn = draw_val(names, classes, 0.25)

    assert len(drawn) == 100
    in_all = Counter(label for labels in classes for label in labels or {None})
    in_val = Counter(label for index in drawn for label in classes[index] or {None})
    assert all(0.2 < in_val[label] / in_all[label] < 0.3 for label in in_all)


def test_images_of_one_group_stay_together():
    names = [f"part{part}/view{view}.jpg" for part in range(20) for view in range(5)]
    names += ["loose_1.jpg", "loose_2.jpg"]  # not matched: each stands alone
    drawn = drawn_names(names, [{0}] * 102, 0.2, r"^part(\d+)/")

    parts = {name.partition("/")[0] for name in drawn if "/" in name}
    assert all(sum(name.startswith(part + "/") for name in drawn) == 5 for part in parts)
    assert 19 <= len(drawn) <= 21


def test_a_class_of_one_image_stays_in_training_unless_the_fraction_needs_it():
    classes = [{0}, {0}, {0}, {1}]
    names = ["a", "b", "c", "d"]
    assert "d" not in drawn_names(names, classes, 0.25)
    # All classes occur once: half of the images are half of the images.
    assert len(draw_val(names, [{0}, {1}, {2}, {3}], 0.5)) == 2


@pytest.mark.parametrize(
    ("fraction", "split_by", "message"),
    [
        (0, None, "--val-fraction is 0; it lies between 0 and 1"),
        (1, None, "--val-fraction is 1;"),
        (-0.1, None, "--val-fraction is -0.1;"),
        (float("nan"), None, "--val-fraction is nan;"),
        (0.1, None, "0.1 of 4 images leaves none for validation"),
        (0.9, None, "0.9 of 4 images leaves none for training"),
        (0.5, "(", "is no regular expression"),
        (0.5, "a_", "has no group"),
        (0.5, "(z)", "matches none of 4 names, such as 'a_1.jpg'"),
        (0.5, "(jpg)", "all 4 images are one group"),
    ],
)
def test_draws_that_cannot_be_are_one_line(fraction, split_by, message):
    names = ["a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg"]
    with pytest.raises(DatasetError) as error:
        draw_val(names, [{0}] * 4, fraction, split_by)
    assert message in str(error.value) and "\n" not in str(error.value)


def content_of(num_images):
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9} for i in range(num_images)
    ]
    annotations = [
        {"id": 1 + i, "image_id": i, "category_id": 7, "bbox": [1, 1, 2, 2]}
        for i in range(num_images)
    ]
    categories = [{"id": 7, "name": "nick"}, {"id": 3, "name": "burr"}]
    return {
        "info": {"x": 1},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def test_a_file_is_split_with_its_annotations_and_keeps_the_rest(tmp_path):
    content = content_of(10)
    before = json.dumps(content)
    train, val = split_coco(content, tmp_path / "a.json", 0.3, None)

    assert json.dumps(content) == before
    assert [len(train["images"]), len(val["images"])] == [7, 3]
    for part in (train, val):
        ids = {image["id"] for image in part["images"]}
        assert [x["image_id"] in ids for x in part["annotations"]] == [True] * len(ids)
        assert part["categories"] == content["categories"] and part["info"] == {"x": 1}
    assert describe_split(train, val) == "7 images for training and 3 images for validation"


def test_classes_that_a_part_lacks_are_named():
    content = content_of(4)
    content["annotations"][0]["category_id"] = 3
    train, val = split_coco(content, "a.json", 0.25, None)
    assert describe_split(train, val) == (
        "3 images for training and 1 images for validation (without burr)"
    )


def test_a_file_with_a_mistake_is_not_split(tmp_path):
    content = content_of(4)
    content["annotations"][1]["category_id"] = 99
    with pytest.raises(DatasetError, match=r"unknown category id 99.*check_dataset"):
        split_coco(content, tmp_path / "a.json", 0.5, None)
