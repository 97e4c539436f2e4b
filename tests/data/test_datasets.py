"""Data sets with faults: what is used, what is dropped, and what the error says."""

from __future__ import annotations

import json
import logging
from collections import Counter

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from salience_detr.data import DatasetError, check_class_count, load_dataset, register_coco_dataset
from salience_detr.data.coco_format import prepare_for_evaluation
from salience_detr.data.datasets import check_files, clean_annotation

IMAGE = {"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]}


@pytest.fixture
def coco_file(tmp_path):
    """Return a function that writes a COCO file and registers it under the name "faulty".

    The file has one image of 40 x 30 pixels, unless other lists are given; None leaves one out.
    """
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.jpg")

    def write(annotations=(), **changes):
        defaults = {"image_id": 1, "category_id": 7, "area": 1, "iscrowd": 0}
        content = {
            "images": [IMAGE],
            "annotations": [{"id": i, **defaults, **x} for i, x in enumerate(annotations, 1)],
            "categories": [{"id": 7, "name": "scratch"}],
        }
        content.update(changes)
        content = {key: value for key, value in content.items() if value is not None}

        path = tmp_path / "faulty.json"
        path.write_text(json.dumps(content))
        register_coco_dataset("faulty", path, tmp_path)
        return path

    yield write

    if "faulty" in DatasetCatalog.list():
        DatasetCatalog.remove("faulty")
        MetadataCatalog.remove("faulty")


def test_category_ids_become_contiguous_and_images_without_boxes_stay(coco_file):
    without_boxes = {**IMAGE, "id": 2, "file_name": "b.jpg"}
    coco_file([{"bbox": [1, 2, 3, 4]}], images=[IMAGE, without_boxes])

    records = load_dataset("faulty", is_train=True)

    assert [len(record["annotations"]) for record in records] == [1, 0]
    assert records[0]["annotations"][0]["category_id"] == 0
    assert records[0]["annotations"][0]["bbox"] == [1, 2, 4, 6]


@pytest.mark.parametrize("segmentation", [[[]], [[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], None, {}, "x"])
def test_a_box_is_used_whatever_its_mask_looks_like(coco_file, segmentation):
    others = {"segmentation": segmentation, "keypoints": 5, "area": None, "iscrowd": None}
    coco_file([{"bbox": [1, 2, 3, 4], **others}])

    for is_train in (True, False):
        assert len(load_dataset("faulty", is_train=is_train)[0]["annotations"]) == 1


def test_boxes_to_ignore_are_like_crowds(coco_file):
    coco_file([{"bbox": [1, 2, 3, 4], "ignore": 1}, {"bbox": [1, 2, 3, 4], "ignore": 0}])

    assert len(load_dataset("faulty", is_train=True)[0]["annotations"]) == 1
    assert len(load_dataset("faulty", is_train=False)[0]["annotations"]) == 2

    annotations = [{"id": 1, "bbox": [1, 2, 3, 4], "ignore": 1, "area": 1}]
    prepare_for_evaluation(annotations)
    assert annotations[0]["iscrowd"] == 1


@pytest.mark.parametrize("ids", [[0, 1], ["a0", "b1"], [5, -2]])
def test_evaluation_gets_ids_that_count_and_all_that_it_needs(ids):
    annotations = [{"id": i, "bbox": [1, 2, 3, 4], "iscrowd": None, "area": None} for i in ids]

    prepare_for_evaluation(annotations)
    assert [(x["id"], x["iscrowd"], x["area"]) for x in annotations] == [(1, 0, 12), (2, 0, 12)]

    # Ids that count stay.
    prepare_for_evaluation(annotations[1:])
    assert annotations[1]["id"] == 2


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    records = [{"file_name": str(tmp_path / x)} for x in ("a.jpg", "b.jpg", "c.jpg")]
    records.append({"file_name": "s3://x/y.jpg"})

    message = r"2 of 4 images are missing, the first is .*b\.jpg; check the folder"
    with pytest.raises(DatasetError, match=message):
        check_files(records)
    check_files(records[:1])


def test_boxes_are_clipped_or_dropped_with_one_counted_warning(coco_file, caplog):
    coco_file(
        [
            {"bbox": [30, 20, 50, 5]},
            {"bbox": [5, 5, 0, 4]},
            {"bbox": [60, 5, 4, 4]},
            {"bbox": [1, 1, 2, 2]},
        ]
    )

    with caplog.at_level(logging.WARNING, "salience_detr"):
        records = load_dataset("faulty", is_train=True)

    assert [x["bbox"] for x in records[0]["annotations"]] == [[30, 20, 40, 25], [1, 1, 3, 3]]
    messages = [r.message for r in caplog.records if "clipped" in r.message]
    assert messages == [
        "1 boxes reached out of their image and were clipped, 2 boxes without area inside it were "
        "dropped"
    ]


def test_evaluation_leaves_annotations_alone(coco_file):
    coco_file([{"bbox": [30, 20, 50, 5]}])
    assert load_dataset("faulty")[0]["annotations"][0]["bbox"] == [30, 20, 50, 5]


def test_crowds_and_boxes_that_are_not_numbers_are_not_trained_on():
    crowd = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
    assert clean_annotation(crowd, 40, 30, Counter()) is None

    nan = {"bbox": [0, 0, float("nan"), 9], "bbox_mode": BoxMode.XYWH_ABS}
    assert clean_annotation(nan, 40, 30, Counter()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "has no list 'categories'"),
        (
            {"annotations": [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 2, 2]}]},
            "category id 8",
        ),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 7}]}, "has no 'bbox'"),
    ],
)
def test_faults_of_the_json_are_named(coco_file, changes, message):
    coco_file(**changes)

    with pytest.raises(DatasetError, match=message):
        load_dataset("faulty", is_train=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-20], "not valid JSON .* may be truncated"),
        (lambda data: b"\xef\xbb\xbf" + data, "save it without a byte order mark"),
        (lambda data: data.decode().encode("utf-16"), "not encoded in UTF-8"),
    ],
)
def test_files_that_are_not_json_in_utf_8_are_named(coco_file, change, message):
    path = coco_file([{"bbox": [1, 2, 3, 4]}])
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(DatasetError, match=message):
        load_dataset("faulty")


def test_an_unknown_name_says_how_to_register():
    with pytest.raises(DatasetError, match=r"no data set 'nowhere'; register it"):
        load_dataset("nowhere")


def test_a_missing_surface_defects_file_names_the_tool(tmp_path, monkeypatch):
    from salience_detr.data import register_surface_defects

    register_surface_defects(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"tools/make_surface_defects\.py"):
        load_dataset("surface_defects_val")
    register_surface_defects()


def test_another_number_of_classes_than_the_model_has_is_refused_with_both(surface_data):
    for num_classes in (4, 9):
        message = rf"has 6 classes, but the model has {num_classes}; set model\.num_classes=6"
        with pytest.raises(DatasetError, match=message):
            check_class_count("surface_defects_train", num_classes)

    check_class_count("surface_defects_train", 6)
    check_class_count("surface_defects_train", None)


def test_a_name_is_not_taken_twice_for_different_data(coco_file, tmp_path):
    path = coco_file()
    register_coco_dataset("faulty", path, tmp_path)  # the same again is harmless
    with pytest.raises(DatasetError, match="registered already"):
        register_coco_dataset("faulty", tmp_path / "other.json", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{**ANNOTATION, "image_id": 5}]},
            "annotation 1 in .* belongs to the unknown image id 5",
        ),
        ({"annotations": [{**ANNOTATION, "bbox": None}]}, "has the bbox None, not four numbers"),
        ({"annotations": [{**ANNOTATION, "bbox": ["1", 2, 3, 4]}]}, "not four numbers"),
        ({"categories": [{"id": 7}]}, "entry id 7 of 'categories' in .* has no 'name'"),
        ({"images": [{"file_name": "a.jpg"}]}, "entry number 0 of 'images' in .* has no 'id'"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "height": 30}]},
            "entry id 1 of 'images' in .* has no 'width'",
        ),
        ({"images": [{"id": 1, "height": 30, "width": 40}]}, "has no 'file_name'"),
        ({"images": [{**IMAGE, "width": "40"}]}, "has the width '40', not"),
        (
            {"images": [IMAGE, {**IMAGE, "id": "b"}]},
            "image ids that are numbers and others that are texts",
        ),
        (
            {"annotations": [{**ANNOTATION, "bbox": [1, 1, float("nan"), 2]}]},
            "not four numbers.*check_dataset.py",
        ),
        ({"annotations": [{**ANNOTATION, "bbox": [1, 1, 10**400, 2]}]}, "not four numbers"),
        (
            {"annotations": [{**ANNOTATION, "category_id": "7"}]},
            "has the category_id '7', not a whole number",
        ),
        (
            {"annotations": [{**ANNOTATION, "image_id": {}}]},
            "has the image_id {}, not a whole number or a text",
        ),
        ({"categories": [{"id": 7, "name": None}]}, "has the name None, not a name"),
        ({"categories": []}, "has no categories"),
    ],
)
def test_an_entry_that_lacks_something_is_named(coco_file, changes, message):
    coco_file(**changes)

    with pytest.raises(DatasetError, match=message):
        load_dataset("faulty")


def test_data_sets_that_number_their_classes_differently_are_not_joined(coco_file, surface_data):
    coco_file([{"bbox": [1, 1, 2, 2]}])

    message = "'faulty' and 'surface_defects_val' have different classes"
    with pytest.raises(DatasetError, match=message):
        load_dataset(["faulty", "surface_defects_val"])


@pytest.mark.parametrize(
    ("annotations", "counts"),
    [
        ([], "0 crowd regions or boxes to ignore, 0 boxes without area"),
        (
            [{"bbox": [1, 1, 2, 2], "iscrowd": 1}, {"bbox": [1, 1, 2, 2], "ignore": 1}],
            "2 crowd regions or boxes to ignore, 0 boxes without area",
        ),
        (
            [{"bbox": [1, 1, 0, 2]}, {"bbox": [90, 1, 2, 2]}, {"bbox": [5, 5, 2, 2], "iscrowd": 1}],
            "1 crowd regions or boxes to ignore, 2 boxes without area",
        ),
    ],
)
def test_training_data_without_a_box_to_learn_are_refused(coco_file, annotations, counts):
    coco_file(annotations)
    with pytest.raises(DatasetError, match=f"no box to learn in the training data: .*{counts}"):
        load_dataset("faulty", is_train=True)
    assert len(load_dataset("faulty")) == 1


def test_boxes_in_fractions_are_refused_and_corners_and_duplicates_told(coco_file, caplog):
    coco_file([{"bbox": [0.1, 0.1, 0.5, 0.25]}, {"bbox": [0, 0, 1, 1]}])
    for is_train in (True, False):
        with pytest.raises(DatasetError, match="2 of 2 boxes lie within the first pixel"):
            load_dataset("faulty", is_train=is_train)

    corners = [[20, 5, 39, 29], [25, 5, 38, 28], [21, 16, 39, 29]]
    coco_file([{"bbox": box} for box in corners])
    with caplog.at_level(logging.WARNING, "salience_detr"):
        load_dataset("faulty")
    assert "3 of 3 boxes fit into their image as corners" in caplog.text

    coco_file([{"bbox": [1, 1, 2, 2], "area": 0}] * 2)
    with caplog.at_level(logging.WARNING, "salience_detr"):
        load_dataset("faulty")
    assert "1 of 2 boxes are in the file twice" in caplog.text
    assert "2 of 2 boxes with width and height have an area of 0" in caplog.text
