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
from salience_detr.data.datasets import clean_annotation


@pytest.fixture
def coco_file(tmp_path):
    """Writes a COCO file with one 40 x 30 picture and registers it under the name "faulty"."""
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.jpg")

    def write(annotations=(), **changes):
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}],
            "annotations": [
                {"id": i + 1, "image_id": 1, "category_id": 7, "area": 1, "iscrowd": 0, **annotation}
                for i, annotation in enumerate(annotations)
            ],
            "categories": [{"id": 7, "name": "scratch"}],
        } | changes
        path = tmp_path / "faulty.json"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        register_coco_dataset("faulty", path, tmp_path)
        return path

    yield write
    if "faulty" in DatasetCatalog.list():
        DatasetCatalog.remove("faulty")
        MetadataCatalog.remove("faulty")


def test_category_ids_become_contiguous_and_pictures_without_boxes_stay(coco_file):
    coco_file([{"bbox": [1, 2, 3, 4]}], images=[
        {"id": 1, "file_name": "a.jpg", "height": 30, "width": 40},
        {"id": 2, "file_name": "b.jpg", "height": 30, "width": 40},
    ])  # fmt: skip
    records = load_dataset("faulty", is_train=True)
    assert [len(record["annotations"]) for record in records] == [1, 0]
    assert records[0]["annotations"][0]["category_id"] == 0
    assert records[0]["annotations"][0]["bbox"] == [1, 2, 4, 6]


def test_boxes_are_clipped_or_dropped_with_one_counted_warning(coco_file, caplog):
    coco_file([{"bbox": [30, 20, 50, 5]}, {"bbox": [5, 5, 0, 4]}, {"bbox": [60, 5, 4, 4]}, {"bbox": [1, 1, 2, 2]}])
    with caplog.at_level(logging.WARNING, "salience_detr"):
        records = load_dataset("faulty", is_train=True)
    assert [x["bbox"] for x in records[0]["annotations"]] == [[30, 20, 40, 25], [1, 1, 3, 3]]
    messages = [r.message for r in caplog.records if "clipped" in r.message]
    assert messages == [
        "1 boxes reached out of their picture and were clipped, 2 boxes without area inside it were dropped"
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
        ({"categories": None}, "has no 'categories'"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 2, 2]}]}, "category id 8"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 7}]}, "has no 'bbox'"),
    ],
)
def test_faults_of_the_json_are_named(coco_file, changes, message):
    coco_file(**changes)
    with pytest.raises(DatasetError, match=message):
        load_dataset("faulty", is_train=True)


def test_truncated_json_is_named(coco_file):
    path = coco_file([{"bbox": [1, 2, 3, 4]}])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DatasetError, match="not valid JSON"):
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


def test_more_classes_than_the_model_has_say_both_numbers(surface_data):
    with pytest.raises(DatasetError, match=r"has 6 classes, but the model has 4; set model\.num_classes=6"):
        check_class_count("surface_defects_train", 4)
    check_class_count("surface_defects_train", 6)


def test_a_name_is_not_taken_twice_for_different_data(coco_file, tmp_path):
    path = coco_file()
    register_coco_dataset("faulty", path, tmp_path)  # the same again is harmless
    with pytest.raises(DatasetError, match="registered already"):
        register_coco_dataset("faulty", tmp_path / "other.json", tmp_path)


ENTRY = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{**ENTRY, "image_id": 5}]}, "annotation 1 in .* belongs to the unknown image id 5"),
        ({"annotations": [{**ENTRY, "bbox": None}]}, "has a bbox None, not"),
        ({"annotations": [{**ENTRY, "bbox": ["1", 2, 3, 4]}]}, "are not four numbers"),
        ({"categories": [{"id": 7}]}, "entry id 7 of 'categories' in .* has no 'name'"),
        ({"images": [{"file_name": "a.jpg"}]}, "entry number 0 of 'images' in .* has no 'id'"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": 30}]}, "entry id 1 of 'images' in .* has no 'width'"),
        ({"images": [{"id": 1, "height": 30, "width": 40}]}, "has no 'file_name'"),
    ],
)  # fmt: skip
def test_an_entry_that_lacks_something_is_named(coco_file, changes, message):
    coco_file(**changes)
    with pytest.raises(DatasetError, match=message):
        load_dataset("faulty")


def test_data_sets_that_number_their_classes_differently_are_not_joined(coco_file, surface_data):
    coco_file([{"bbox": [1, 1, 2, 2]}])
    with pytest.raises(DatasetError, match="'faulty' and 'surface_defects_val' have different classes"):
        load_dataset(["faulty", "surface_defects_val"])
