"""Own records of detectron2's users are completed, checked and written in COCO's format."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from salience_detr.data import DatasetError, load_dataset, register_coco_dataset
from salience_detr.data.own_records import to_coco

BOX = {"bbox": [4, 5, 14, 25], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}


@pytest.fixture
def register(tmp_path):
    """Return a function that registers records under the name "own", of an image of 40 x 30."""
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")

    def add(*changes, **metadata):
        base = {"file_name": str(tmp_path / "a.png"), "height": 30, "width": 40}
        records = [{**base, "annotations": [BOX], **change} for change in changes]
        records = [{k: v for k, v in record.items() if v is not None} for record in records]
        DatasetCatalog.register("own", lambda: records)
        MetadataCatalog.get("own").set(**metadata)

    yield add
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")


def test_images_without_ids_are_numbered_and_others_keep_theirs(register):
    register({}, {"image_id": "b"}, {}, thing_classes=["pit", "burr"])
    assert [record["image_id"] for record in load_dataset("own")] == ["0", "b", "2"]
    assert [record["image_id"] for record in load_dataset("own", is_train=True)] == ["0", "b", "2"]


def test_numbers_and_texts_as_ids_are_refused(register):
    register({"image_id": 3}, {"image_id": "b"})
    with pytest.raises(DatasetError, match="some image ids are numbers and others are texts"):
        load_dataset("own")


def test_boxes_of_arrays_are_lists_of_numbers(register):
    numbers = {"bbox": np.array([4, 5, 14, 25]), "category_id": np.int64(1)}
    register({"annotations": [BOX | numbers]}, thing_classes=["pit", "burr"])
    for is_train in (False, True):
        (annotation,) = load_dataset("own", is_train=is_train)[0]["annotations"]
        assert annotation["bbox"] == [4, 5, 14, 25]
        assert annotation["category_id"] == 1


def test_the_boxes_of_records_are_checked_together(register, caplog):
    register({"annotations": [BOX, BOX]}, {"annotations": [BOX]}, thing_classes=["pit", "burr"])
    load_dataset("own")
    assert "1 of 3 boxes are in the file twice" in caplog.text

    fractions = BOX | {"bbox": [0.1, 0.1, 0.5, 0.5]}
    DatasetCatalog.remove("own")
    register({"annotations": [fractions]})
    with pytest.raises(DatasetError, match="1 of 1 boxes lie within the first pixel"):
        load_dataset("own")


def test_images_without_sizes_get_those_of_their_files(register, tmp_path):
    register({"height": None}, {"height": None, "width": None, "file_name": tmp_path / "a.png"})
    for record in load_dataset("own", is_train=True):
        assert (record["width"], record["height"]) == (40, 30)
        assert record["file_name"] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": None}, "data set 'own': record 1 has no file_name; give each the path"),
        (
            {"annotations": [{"bbox": [4, 5, 14, 25], "category_id": 1}]},
            "record 1 has an annotation with bbox .4, 5, 14, 25., bbox_mode None; give four",
        ),
        (
            {"annotations": [BOX | {"bbox_mode": BoxMode.XYWH_REL}]},
            "bbox_mode <BoxMode.XYWH_REL: 3>; give four numbers in pixels",
        ),
        ({"file_name": "x.png", "width": None}, "record 1 has no height and width, and no image"),
        (
            {"annotations": [BOX | {"category_id": 2}]},
            "data set 'own': Got an invalid category_id=2 for a dataset of 2 classes",
        ),
    ],
)
def test_records_that_cannot_be_used_are_named(register, change, message):
    register({}, change, thing_classes=["pit", "burr"])
    with pytest.raises(DatasetError, match=message):
        load_dataset("own")


def test_records_become_a_file_in_coco_format(register):
    polygon = [[0, 0, 10, 0, 10, 5, 0, 5]]
    boxes = [
        BOX,
        {**BOX, "bbox": np.array([4.0, 5, 10, 20]), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1},
        {**BOX, "segmentation": polygon},
    ]
    register({"annotations": boxes}, thing_classes=["pit", "pit"])
    content = to_coco("own", load_dataset("own"))

    assert content["categories"] == [
        {"id": 0, "name": "pit (id 0)"},
        {"id": 1, "name": "pit (id 1)"},
    ]
    assert [x["bbox"] for x in content["annotations"]] == [[4, 5, 10, 20]] * 3
    assert [x["iscrowd"] for x in content["annotations"]] == [0, 1, 0]
    # Of the box, 10 x 20, or of the mask, 10 x 5.
    assert [x["area"] for x in content["annotations"]] == [200, 200, 50]


def test_a_file_is_not_registered_under_the_name_of_own_records(register):
    register({})
    with pytest.raises(DatasetError, match="'own' is registered already, for a function; choose"):
        register_coco_dataset("own", "a.json", ".")


def test_records_without_annotations_are_not_trained_on(register):
    register({"annotations": None})
    assert load_dataset("own")[0]["image_id"] == 0
    with pytest.raises(DatasetError, match="'own' has no annotations to train on"):
        load_dataset("own", is_train=True)
